//! Patterns in the guest's memory.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter};
use std::os::unix::fs::FileExt;

use minivmm_tests::pattern::{BLOCK_BYTES, Pattern};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::{Error, service};

const FILLING: &str = "/filling";
const FILLING_FILE: &str = "/filling/pattern";
/// What is left to the rest of the guest.
const SPARED_BYTES: u64 = 24 << 20;
const CHUNK_BYTES: u64 = 1 << 20;
/// A page in words of 8 bytes.
const PAGE_WORDS: usize = 512;

/// Writes to every free page until hardly any is left.
pub fn dirty_all() -> Result<(), Error> {
    let mut chunks = Vec::new();
    let pattern = Pattern::new(u64::from(std::process::id()));
    while available_bytes()? > SPARED_BYTES + CHUNK_BYTES {
        let mut chunk = Vec::new();
        pattern.send(&mut chunk, CHUNK_BYTES)?;
        chunks.push(chunk);
    }
    for chunk in &chunks {
        pattern.receive(&chunk[..], CHUNK_BYTES)?;
    }
    println!("{}", chunks.len() as u64 * CHUNK_BYTES);
    Ok(())
}

/// Writes to the begin and the end of every page of as much memory, and compares them when all are
/// written: no page may be another one too, or lose what is in it.
pub fn use_up(bytes: u64, seed: u64) -> Result<(), Error> {
    let words = usize::try_from(bytes / 8)?;
    let mut memory = vec![0u64; words];
    let mark = |number: u64| (seed + number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for (number, page) in (0..).zip(memory.chunks_exact_mut(PAGE_WORDS)) {
        (page[0], page[PAGE_WORDS - 1]) = (mark(number), !mark(number));
    }
    for (number, page) in (0..).zip(memory.chunks_exact(PAGE_WORDS)) {
        if (page[0], page[PAGE_WORDS - 1]) != (mark(number), !mark(number)) {
            return Err(format!("page {number} is not what was written").into());
        }
    }
    println!("{bytes}");
    Ok(())
}

fn available_bytes() -> Result<u64, Error> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_ascii_whitespace().next());
    Ok(crate::number::<u64>(kib.ok_or("no MemAvailable")?)? << 10)
}

/// Job: fills memory, as a file that is nowhere else.
pub fn fill(bytes: u64, seed: u64) -> Result<(), Error> {
    fs::create_dir_all(FILLING)?;
    match mount(
        "tmpfs",
        FILLING,
        "tmpfs",
        MountFlags::empty(),
        Some(c"size=100%"),
    ) {
        Ok(()) | Err(Errno::BUSY) => {}
        Err(errno) => return Err(format!("cannot mount {FILLING}: {errno}").into()),
    }
    let file = File::create(FILLING_FILE)?;
    Pattern::new(seed).send(BufWriter::new(file), bytes)?;
    service::report_ready()
}

/// Compares what [`fill`] wrote.
pub fn check_filling(bytes: u64, seed: u64) -> Result<(), Error> {
    let file = BufReader::new(File::open(FILLING_FILE)?);
    Ok(Pattern::new(seed).receive(file, bytes)?)
}

/// Job: writes a block to each physical address. The kernel was told that these are no memory
/// (`memmap=4K$ADDRESS`), otherwise it would not let us.
pub fn mark(seed: u64, addresses: &[u64]) -> Result<(), Error> {
    let memory = File::options().read(true).write(true).open("/dev/mem")?;
    let pattern = Pattern::new(seed);
    for &address in addresses {
        memory
            .write_all_at(&pattern.block(address), address)
            .map_err(|error| format!("cannot write at {address:#x}: {error}"))?;
    }
    service::report_ready()
}

/// Compares what [`mark`] wrote.
pub fn check_marks(seed: u64, addresses: &[u64]) -> Result<(), Error> {
    let memory = File::open("/dev/mem")?;
    let pattern = Pattern::new(seed);
    for &address in addresses {
        let mut found = [0; BLOCK_BYTES];
        memory
            .read_exact_at(&mut found, address)
            .map_err(|error| format!("cannot read at {address:#x}: {error}"))?;
        if found != pattern.block(address) {
            return Err(format!("memory at {address:#x} is not what was written").into());
        }
    }
    println!("{} places are as they were written", addresses.len());
    Ok(())
}
