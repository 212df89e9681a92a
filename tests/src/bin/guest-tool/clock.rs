//! What time it is, and whether all CPUs agree.

use std::io::{BufRead, Write};
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::thread;

use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::{Error, service, ticks};

/// Answers each line of input with the time, so that the asker knows closely when it was read.
pub fn answer() -> Result<(), Error> {
    let mut out = std::io::stdout();
    writeln!(out, "ready")?;
    out.flush()?;
    for line in std::io::stdin().lock().lines() {
        line?;
        let realtime = nanoseconds(clock_gettime(ClockId::Realtime));
        let monotonic = nanoseconds(clock_gettime(ClockId::Monotonic));
        writeln!(out, "{realtime} {monotonic}")?;
        out.flush()?;
    }
    Ok(())
}

/// Job: keeps the time in a file.
pub fn note(file: &str) -> Result<(), Error> {
    let now = nanoseconds(clock_gettime(ClockId::Monotonic));
    service::publish(file, &now.to_string())?;
    service::report_ready()
}

/// The latest time that any CPU has read.
#[derive(Debug, Default)]
struct Latest {
    monotonic: i64,
    counter: u64,
}

/// Reads the clock and the time stamp counter on all CPUs in turns; none may be behind what another
/// CPU has read before.
pub fn cross_check(rounds: u64) -> Result<(), Error> {
    let cpus = ticks::cpus()?;
    let latest = Arc::new(Mutex::new(Latest::default()));
    let barrier = Arc::new(Barrier::new(cpus));
    let checkers: Vec<_> = (0..cpus)
        .map(|cpu| {
            let (latest, barrier) = (latest.clone(), barrier.clone());
            thread::spawn(move || {
                ticks::pin(cpu).map_err(|errno| format!("no CPU {cpu}: {errno}"))?;
                barrier.wait();
                (0..rounds).try_for_each(|_| check(cpu, &latest))
            })
        })
        .collect();
    for checker in checkers {
        checker.join().map_err(|_| "a checker has panicked")??;
    }
    println!("{cpus} CPUs agree");
    Ok(())
}

fn check(cpu: usize, latest: &Mutex<Latest>) -> Result<(), String> {
    {
        let mut latest = latest.lock().unwrap_or_else(PoisonError::into_inner);
        // The lock's atomic operation keeps the counter's read behind it.
        let counter = counter();
        let monotonic = nanoseconds(clock_gettime(ClockId::Monotonic));
        if monotonic < latest.monotonic {
            let by = latest.monotonic - monotonic;
            return Err(format!("CLOCK_MONOTONIC of CPU {cpu} is {by} ns behind"));
        }
        if counter < latest.counter {
            let by = latest.counter - counter;
            return Err(format!("the counter of CPU {cpu} is {by} ticks behind"));
        }
        *latest = Latest { monotonic, counter };
    }
    // Another CPU's turn.
    thread::yield_now();
    Ok(())
}

fn counter() -> u64 {
    // SAFETY: reads a register that every x86-64 CPU has.
    unsafe { std::arch::x86_64::_rdtsc() }
}

fn nanoseconds(time: Timespec) -> i64 {
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}
