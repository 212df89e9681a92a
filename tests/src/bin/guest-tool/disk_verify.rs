//! Writers of a raw disk that know what must be on it: each block that the disk has acknowledged, in its
//! last generation. What they know is in the guest's memory, and so in a snapshot of it, beside the disk.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use minivmm_tests::random::Random;
use minivmm_tests::sector::{Label, SECTOR_BYTES};
use rustix::fs::OFlags;

use crate::{Error, service};

const SOCKET: &str = "disk-verify";
/// Past the page cache, or through it and then synced.
const WRITERS: [Access; 4] = [
    Access::Direct,
    Access::Buffered,
    Access::Direct,
    Access::Direct,
];
/// Of a write, in sectors: parts of the 4 KiB that disks of clones are kept in, and many of these.
const LENGTHS: [usize; 7] = [1, 3, 8, 8, 31, 64, 256];
const LONGEST: usize = 256;
/// A buffered writer's writes up to its next sync.
const WRITES_A_SYNC: u64 = 8;
/// Memory for O_DIRECT begins at a multiple of this, and so do the writers' parts of the disk.
const PAGE: usize = 4096;
const PAGE_SECTORS: u64 = 8;
/// Between two looks at how far the writers are. The host's deadline ends the waiting.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Access {
    Direct,
    Buffered,
}

/// What the writers and the thread that answers for them have in common.
#[derive(Debug, Default)]
struct Shared {
    writes: AtomicU64,
    /// What a writer has failed with.
    failure: OnceLock<String>,
    stop: AtomicBool,
}

/// One writer's part of the disk.
struct Area {
    access: Access,
    device: File,
    /// Past the page cache, whatever the access.
    direct: File,
    seed: u64,
    first: u64,
    /// Of each sector, acknowledged by the disk.
    generations: Vec<u64>,
    buffer: Vec<u8>,
}

/// Job: writes to all of a disk until [`check`] asks what is there, and answers.
pub fn serve(device: &str, seed: u64) -> Result<(), Error> {
    let sectors = File::open(device)?.seek(SeekFrom::End(0))? / SECTOR_BYTES as u64;
    let share = sectors / WRITERS.len() as u64 / PAGE_SECTORS * PAGE_SECTORS;
    let mut areas = Vec::new();
    for (number, access) in (0..).zip(WRITERS) {
        let mut area = Area::open(device, access, seed + number, number * share, share)?;
        area.write_all_once()?;
        areas.push(area);
    }
    let shared = Shared::default();
    thread::scope(|scope| {
        let writers = areas.into_iter().map(|mut area| {
            let shared = &shared;
            scope.spawn(move || {
                if let Err(error) = area.write_until_stopped(shared) {
                    shared.failure.get_or_init(|| error.to_string());
                }
                area
            })
        });
        let writers: Vec<_> = writers.collect();
        let answered = answer_all(&shared, writers);
        // Otherwise they would be waited for here.
        shared.stop.store(true, Ordering::SeqCst);
        answered
    })
}

/// Answers [`watch`], and [`check`] as often as it is asked.
fn answer_all(shared: &Shared, mut writers: Vec<ScopedJoinHandle<'_, Area>>) -> Result<(), Error> {
    let mut areas = Vec::new();
    service::serve(SOCKET, |line| {
        let verdict = if line == "check" {
            shared.stop.store(true, Ordering::SeqCst);
            for writer in writers.drain(..) {
                areas.push(writer.join().map_err(|_| "a writer has panicked")?);
            }
            check_all(shared, &mut areas)
        } else {
            wait_for_writes(shared, crate::number(line)?)
        };
        Ok(verdict.unwrap_or_else(|error| error.to_string()))
    })
}

fn wait_for_writes(shared: &Shared, more: u64) -> Result<String, Error> {
    let wanted = shared.writes.load(Ordering::SeqCst) + more;
    loop {
        if let Some(failure) = shared.failure.get() {
            return Err(failure.as_str().into());
        }
        let writes = shared.writes.load(Ordering::SeqCst);
        if writes >= wanted {
            return Ok(format!("ok after {writes} writes"));
        }
        thread::sleep(LOOK_AGAIN);
    }
}

fn check_all(shared: &Shared, areas: &mut [Area]) -> Result<String, Error> {
    if let Some(failure) = shared.failure.get() {
        return Err(failure.as_str().into());
    }
    for area in areas {
        area.check(0, area.generations.len())?;
    }
    let writes = shared.writes.load(Ordering::SeqCst);
    Ok(format!("ok after {writes} writes"))
}

/// Waits until the writers have made so many more writes.
pub fn watch(writes: u64) -> Result<(), Error> {
    ask(&writes.to_string())
}

/// Ends the writers and reads all of the disk; prints how many writes there were.
pub fn check() -> Result<(), Error> {
    ask("check")
}

fn ask(line: &str) -> Result<(), Error> {
    let answer = service::ask(SOCKET, line)?;
    if !answer.starts_with("ok") {
        return Err(format!("the writers say: {answer:?}").into());
    }
    println!("{answer}");
    Ok(())
}

impl Area {
    fn open(
        path: &str,
        access: Access,
        seed: u64,
        first: u64,
        sectors: u64,
    ) -> Result<Self, Error> {
        let flags = OFlags::DIRECT.bits().cast_signed();
        let mut options = File::options();
        options.read(true).write(true);
        let buffered = options.open(path)?;
        let direct = options.custom_flags(flags).open(path)?;
        Ok(Self {
            access,
            device: match access {
                Access::Direct => direct.try_clone()?,
                Access::Buffered => buffered,
            },
            direct,
            seed,
            first,
            generations: vec![0; usize::try_from(sectors)?],
            buffer: vec![0; LONGEST * SECTOR_BYTES + PAGE],
        })
    }

    /// Gives every sector its first generation.
    fn write_all_once(&mut self) -> Result<(), Error> {
        let all = self.generations.len();
        for start in (0..all).step_by(LONGEST) {
            self.write(start, LONGEST.min(all - start))?;
        }
        Ok(self.device.sync_data()?)
    }

    /// Writes in random places; reads some of them, and what was written long ago.
    fn write_until_stopped(&mut self, shared: &Shared) -> Result<(), Error> {
        let mut random = Random::with_seed(self.seed);
        for count in 1.. {
            if shared.stop.load(Ordering::SeqCst) {
                break;
            }
            let (start, length) = self.somewhere(&mut random);
            self.write(start, length)?;
            if self.access == Access::Buffered && count % WRITES_A_SYNC == 0 {
                self.device.sync_data()?;
            }
            shared.writes.fetch_add(1, Ordering::SeqCst);
            if random.below(4) == 0 {
                let (start, length) = self.somewhere(&mut random);
                self.check(start, length)?;
            }
        }
        Ok(self.device.sync_data()?)
    }

    fn somewhere(&self, random: &mut Random) -> (usize, usize) {
        let length = *random.choose(&LENGTHS);
        let last = self.generations.len().saturating_sub(length);
        // The remainder is smaller than what was a usize.
        let start = usize::try_from(random.below(last as u64 + 1)).unwrap_or(0);
        (start, length)
    }

    /// Writes sectors with the generation after their last one, in one write. The area is this writer's
    /// alone, so what it has written before is what is there.
    fn write(&mut self, start: usize, length: usize) -> Result<(), Error> {
        let labels = self.labels(start, length, 1);
        let bytes = page_aligned(&mut self.buffer, length);
        for (label, sector) in labels.iter().zip(bytes.chunks_exact_mut(SECTOR_BYTES)) {
            label.fill(sector);
        }
        let offset = (self.first + start as u64) * SECTOR_BYTES as u64;
        self.device.write_all_at(bytes, offset)?;
        for generation in &mut self.generations[start..start + length] {
            *generation += 1;
        }
        Ok(())
    }

    /// Reads sectors from the disk and compares them.
    fn check(&mut self, start: usize, length: usize) -> Result<(), Error> {
        let end = start + length;
        for start in (start..end).step_by(LONGEST) {
            let length = LONGEST.min(end - start);
            let labels = self.labels(start, length, 0);
            let bytes = page_aligned(&mut self.buffer, length);
            let offset = (self.first + start as u64) * SECTOR_BYTES as u64;
            // What is still in the page cache is written first, by the kernel.
            self.direct.read_exact_at(bytes, offset)?;
            for (label, sector) in labels.iter().zip(bytes.chunks_exact(SECTOR_BYTES)) {
                label.check(sector)?;
            }
        }
        Ok(())
    }

    fn labels(&self, start: usize, length: usize, later: u64) -> Vec<Label> {
        let numbers = self.first + start as u64..;
        let generations = &self.generations[start..start + length];
        numbers
            .zip(generations)
            .map(|(number, generation)| Label {
                seed: self.seed,
                number,
                generation: generation + later,
            })
            .collect()
    }
}

/// So many sectors of a buffer that is a page longer than the longest.
fn page_aligned(buffer: &mut [u8], sectors: usize) -> &mut [u8] {
    let start = buffer.as_ptr().align_offset(PAGE).min(PAGE);
    &mut buffer[start..start + sectors * SECTOR_BYTES]
}
