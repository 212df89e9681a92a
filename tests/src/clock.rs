//! A guest's time compared with this host's.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::LIMIT;
use crate::vm::Vm;

/// How closely the difference of two clocks is determined, in nanoseconds.
const PRECISION: i64 = 40_000_000;

/// A process in the guest that tells the time as fast as it can.
#[derive(Debug)]
pub struct GuestClock {
    client: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// One answer. All times are in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// The guest's `CLOCK_REALTIME`.
    pub realtime: i64,
    /// The guest's `CLOCK_MONOTONIC`.
    pub monotonic: i64,
    /// The host's `CLOCK_REALTIME` before the question.
    pub before: i64,
    /// The host's `CLOCK_REALTIME` after the answer.
    pub after: i64,
}

impl GuestClock {
    /// Starts the process in the guest.
    ///
    /// # Panics
    /// It cannot be started.
    #[must_use]
    #[track_caller]
    pub fn of(vm: &Vm) -> Self {
        let mut command = vm.exec_command(["guest-tool", "clock"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut client = command.spawn().unwrap();
        let ask = client.stdin.take().unwrap();
        let mut answers = BufReader::new(client.stdout.take().unwrap());
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self {
            client,
            ask,
            answers,
        }
    }

    /// Asks for the time.
    ///
    /// # Panics
    /// There is no answer.
    #[must_use]
    #[track_caller]
    pub fn read(&mut self) -> Reading {
        let before = host_realtime();
        self.ask.write_all(b"\n").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let after = host_realtime();
        let (realtime, monotonic) = line.trim().split_once(' ').unwrap();
        Reading {
            realtime: realtime.parse().unwrap(),
            monotonic: monotonic.parse().unwrap(),
            before,
            after,
        }
    }

    /// The least and the most that the guest's realtime can be ahead of the host's, close together.
    ///
    /// # Panics
    /// They do not come close in time.
    #[must_use]
    #[track_caller]
    pub fn ahead(&mut self) -> (i64, i64) {
        let started = Instant::now();
        let (mut least, mut most) = (i64::MIN, i64::MAX);
        loop {
            let reading = self.read();
            least = least.max(reading.realtime - reading.after);
            most = most.min(reading.realtime - reading.before);
            if most.saturating_sub(least) <= PRECISION {
                return (least, most);
            }
            assert!(started.elapsed() < LIMIT, "{least} to {most} ns");
        }
    }

    /// The guest's realtime is within `limit` of the host's.
    ///
    /// # Panics
    /// It is not.
    #[track_caller]
    pub fn assert_right(&mut self, limit: Duration) {
        let (least, most) = self.ahead();
        let limit = i64::try_from(limit.as_nanos()).unwrap();
        let shown = format!("the guest is {} to {} us ahead", least / 1000, most / 1000);
        eprintln!("{shown}");
        assert!(least >= -limit && most <= limit, "{shown}");
    }
}

impl Drop for GuestClock {
    fn drop(&mut self) {
        self.client.kill().unwrap_or_default();
        self.client.wait().map(drop).unwrap_or_default();
    }
}

/// The host's `CLOCK_REALTIME` in nanoseconds.
///
/// # Panics
/// It is before 1970, or after 2262.
#[must_use]
pub fn host_realtime() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_nanos()).unwrap()
}
