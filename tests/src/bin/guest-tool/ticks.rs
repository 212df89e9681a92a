//! Timers: a thread on every CPU that counts how often it has woken up.

use std::num::NonZero;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::{Error, service};

const SOCKET: &str = "ticks";
const TICK: Duration = Duration::from_millis(10);

/// One counter a CPU.
#[derive(Debug)]
struct Counters {
    values: Mutex<Vec<u64>>,
    changed: Condvar,
}

/// Job: counts, and answers [`watch`].
pub fn serve() -> Result<(), Error> {
    let counters = Arc::new(Counters {
        values: Mutex::new(vec![0; cpus()?]),
        changed: Condvar::new(),
    });
    for cpu in 0..cpus()? {
        let counters = counters.clone();
        thread::spawn(move || {
            pin(cpu)?;
            loop {
                thread::sleep(TICK);
                counters.count(cpu);
            }
            #[expect(unreachable_code, reason = "gives the closure its type")]
            Ok::<(), rustix::io::Errno>(())
        });
    }
    counters.wait_for(&vec![1; cpus()?]);
    service::serve(SOCKET, |line| {
        let more: u64 = crate::number(line)?;
        let before = counters.now();
        let wanted: Vec<u64> = before.iter().map(|count| count + more).collect();
        let after = counters.wait_for(&wanted);
        Ok(format!("{before:?} {after:?}\n"))
    })
}

/// Waits until every counter has gone on by `count`. Nothing but the counting CPUs' own timers wakes
/// this process up.
pub fn watch(count: u64) -> Result<(), Error> {
    let answer = service::ask(SOCKET, &count.to_string())?;
    if answer.is_empty() {
        return Err("the counting process has ended".into());
    }
    print!("{answer}");
    Ok(())
}

/// Job: every CPU works all the time.
pub fn keep_busy() -> Result<(), Error> {
    for cpu in 0..cpus()? {
        thread::spawn(move || {
            if pin(cpu).is_ok() {
                loop {
                    std::hint::black_box(cpu);
                }
            }
        });
    }
    service::report_ready()?;
    loop {
        thread::park();
    }
}

/// Runs on every CPU in use, one after the other, and prints where it really was.
pub fn run_on_each() -> Result<(), Error> {
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online")?;
    let mut seen = Vec::new();
    for range in online.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        for cpu in crate::number(first)?..=crate::number(last)? {
            pin(cpu)?;
            seen.push(rustix::thread::sched_getcpu().to_string());
        }
    }
    println!("{}", seen.join(" "));
    Ok(())
}

/// The number of CPUs in use.
pub fn cpus() -> Result<usize, Error> {
    Ok(thread::available_parallelism().map(NonZero::get)?)
}

/// Keeps this thread on one CPU.
pub fn pin(cpu: usize) -> rustix::io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set)
}

impl Counters {
    fn count(&self, cpu: usize) {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        values[cpu] += 1;
        self.changed.notify_all();
    }

    fn now(&self) -> Vec<u64> {
        self.values
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits until no counter is behind `wanted`.
    fn wait_for(&self, wanted: &[u64]) -> Vec<u64> {
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        let behind = |values: &mut Vec<u64>| values.iter().zip(wanted).any(|(is, want)| is < want);
        self.changed
            .wait_while(values, behind)
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
