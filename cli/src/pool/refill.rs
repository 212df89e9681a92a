//! When a pool makes its next member.

use std::time::{Duration, Instant};

/// A clone that was handed out has the host to itself until it is up, but no longer than this.
const UNDISTURBED: Duration = Duration::from_secs(5);
/// The wait after the first member that cannot be made; doubled with every other one.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// What a pool is to have, and what went wrong lately.
#[derive(Debug)]
pub struct Refill {
    /// Members that are to be ready.
    size: usize,
    /// Most memory that they may take, in bytes.
    most_bytes: Option<u64>,
    failures: u32,
    not_before: Option<Instant>,
}

/// What a pool has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Members that are being made.
    pub making: usize,
    /// Members that wait for somebody.
    pub ready: usize,
    /// Memory of those, in bytes.
    pub ready_bytes: u64,
    /// When the last one was taken of those that are not up yet.
    pub taken_at: Option<Instant>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Make a member.
    Make,
    /// Look again at this time.
    At(Instant),
    /// There are as many as there should be, or one is being made.
    Enough,
    /// One more would take too much memory.
    TooMuchMemory,
}

impl Refill {
    /// For a pool of `size` members that take at most `most_bytes`.
    pub fn new(size: usize, most_bytes: Option<u64>) -> Self {
        Self {
            size,
            most_bytes,
            failures: 0,
            not_before: None,
        }
    }

    /// A member is ready.
    pub fn succeeded(&mut self) {
        self.failures = 0;
        self.not_before = None;
    }

    /// A member could not be made, or died before anybody had taken it.
    pub fn failed(&mut self, now: Instant) {
        let wait = FIRST_WAIT.saturating_mul(1 << self.failures.min(16));
        self.not_before = Some(now + wait.min(LONGEST_WAIT));
        self.failures += 1;
    }

    /// What is to be done now.
    pub fn next(&self, census: &Census, now: Instant) -> Next {
        // One after the other: a host that is busy making members does not get a clone up faster.
        if census.making > 0 || census.ready >= self.size {
            return Next::Enough;
        }
        if self.is_too_much(census) {
            return Next::TooMuchMemory;
        }
        let undisturbed = census.taken_at.map(|at| at + UNDISTURBED);
        // `None` is before any time.
        match undisturbed.max(self.not_before) {
            Some(at) if at > now => Next::At(at),
            _ => Next::Make,
        }
    }

    /// One more takes about as much as the others.
    fn is_too_much(&self, census: &Census) -> bool {
        let ready = u64::try_from(census.ready).unwrap_or(u64::MAX);
        let one = census.ready_bytes.checked_div(ready).unwrap_or(0);
        self.most_bytes
            .is_some_and(|most| census.ready_bytes + one > most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(ready: usize) -> Census {
        Census {
            ready,
            ready_bytes: 1000 * ready as u64,
            ..Census::default()
        }
    }

    #[test]
    fn one_is_made_at_a_time_until_there_are_enough() {
        let refill = Refill::new(2, None);
        let now = Instant::now();
        assert_eq!(refill.next(&ready(0), now), Next::Make);
        let making = Census {
            making: 1,
            ..ready(0)
        };
        assert_eq!(refill.next(&making, now), Next::Enough);
        assert_eq!(refill.next(&ready(1), now), Next::Make);
        assert_eq!(refill.next(&ready(2), now), Next::Enough);
    }

    #[test]
    fn a_clone_that_was_taken_comes_up_first() {
        let refill = Refill::new(2, None);
        let now = Instant::now();
        let taken = Census {
            taken_at: Some(now),
            ..ready(1)
        };
        assert_eq!(refill.next(&taken, now), Next::At(now + UNDISTURBED));
        assert_eq!(refill.next(&taken, now + UNDISTURBED), Next::Make);
    }

    #[test]
    fn failures_make_the_wait_longer_and_a_success_ends_it() {
        let mut refill = Refill::new(1, None);
        let now = Instant::now();
        let mut wait = || {
            refill.failed(now);
            match refill.next(&ready(0), now) {
                Next::At(at) => at - now,
                next => panic!("{next:?}"),
            }
        };
        assert_eq!([wait(), wait()], [FIRST_WAIT, 2 * FIRST_WAIT]);
        let longest = (0..100).map(|_| wait()).last();
        assert_eq!(longest, Some(LONGEST_WAIT));
        refill.succeeded();
        assert_eq!(refill.next(&ready(0), now), Next::Make);
    }

    #[test]
    fn memory_is_limited_by_what_members_take() {
        let refill = Refill::new(9, Some(2500));
        let now = Instant::now();
        assert_eq!(refill.next(&ready(1), now), Next::Make);
        assert_eq!(refill.next(&ready(2), now), Next::TooMuchMemory);
    }
}
