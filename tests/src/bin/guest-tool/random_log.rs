//! Random numbers with the time each was read, without a pause: what a process reads right after it
//! has become part of a clone is among them.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::rand::{GetRandomFlags, getrandom};
use rustix::time::{ClockId, clock_gettime};

use crate::{Error, service, ticks};

const SOCKET: &str = "random-log";
/// The oldest notes give way to new ones.
const NOTES: usize = 1 << 19;

/// When, in nanoseconds of the monotonic clock, and which number.
type Note = (u64, u64);

/// Job: notes numbers until [`dump`] asks for them.
pub fn serve() -> Result<(), Error> {
    let notes = Arc::new(Mutex::new(vec![(0, 0); NOTES]));
    let done = Arc::new(AtomicBool::new(false));
    let listener = service::listen(SOCKET)?;
    let writer = {
        let (notes, done) = (notes.clone(), done.clone());
        std::thread::spawn(move || take_notes(&notes, &done))
    };
    service::report_ready()?;
    let (mut stream, _) = listener.accept()?;
    done.store(true, Ordering::SeqCst);
    let next = writer.join().map_err(|_| "the writer has panicked")?;
    let notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
    let (newest, oldest) = notes.split_at(next % NOTES);
    let mut bytes = Vec::with_capacity(NOTES * size_of::<Note>());
    for (time, value) in oldest.iter().chain(newest).filter(|note| note.0 != 0) {
        bytes.extend_from_slice(&time.to_le_bytes());
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    Ok(stream.write_all(&bytes)?)
}

/// On the last CPU, so that the agent can work on the first. Returns how many notes it took.
fn take_notes(notes: &Mutex<Vec<Note>>, done: &AtomicBool) -> usize {
    if let Ok(cpus) = ticks::cpus() {
        // A machine of one CPU shares it.
        ticks::pin(cpus - 1).unwrap_or_default();
    }
    let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
    let mut taken = 0;
    while !done.load(Ordering::SeqCst) {
        // Before the number: one that was on its way at a freeze belongs to the time before.
        let now = clock_gettime(ClockId::Monotonic);
        let now = now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned();
        let mut bytes = [0; 8];
        if getrandom(&mut bytes, GetRandomFlags::empty()) != Ok(bytes.len()) {
            continue;
        }
        notes[taken % NOTES] = (now, u64::from_le_bytes(bytes));
        taken += 1;
    }
    taken
}

/// Prints the notes in binary.
pub fn dump() -> Result<(), Error> {
    let mut bytes = Vec::new();
    service::connect(SOCKET)?.read_to_end(&mut bytes)?;
    Ok(std::io::stdout().write_all(&bytes)?)
}
