//! Steps the wall clock.

use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_settime};

use crate::error::{Error, Refusal};

const NANOSECONDS: i64 = 1_000_000_000;
const MICROSECONDS: i64 = 1_000_000;

/// Nobody waits longer for a clone.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// Sets CLOCK_REALTIME to `nanoseconds` since the epoch.
pub fn set_realtime(nanoseconds: i64) -> Result<(), Error> {
    let time = Timespec {
        tv_sec: nanoseconds.div_euclid(NANOSECONDS),
        tv_nsec: nanoseconds.rem_euclid(NANOSECONDS),
    };
    clock_settime(ClockId::Realtime, time).map_err(Error::system("set the clock"))
}

/// The time since this CPU's time stamp counter was `tsc`. None without a frequency, or when the counter cannot have
/// got from there to here while somebody waited.
pub fn since_counter(tsc: u64, khz: u32) -> Option<Duration> {
    // SAFETY: the instruction reads a register. Linux lets every program use it unless that has asked for the contrary.
    let now = unsafe { std::arch::x86_64::_rdtsc() };
    between(tsc, now, khz)
}

fn between(then: u64, now: u64, khz: u32) -> Option<Duration> {
    let ticks = u128::from(now.checked_sub(then)?);
    let nanoseconds = (ticks * 1_000_000).checked_div(u128::from(khz))?;
    let elapsed = Duration::from_nanos(u64::try_from(nanoseconds).ok()?);
    (elapsed <= LONGEST_WAIT).then_some(elapsed)
}

/// Nanoseconds since the epoch from the two numbers of Kata's SetGuestDateTime.
pub fn nanoseconds(seconds: i64, microseconds: i64) -> Result<i64, Refusal> {
    if seconds < 0 || !(0..MICROSECONDS).contains(&microseconds) {
        return Err(Refusal::invalid(format!(
            "Time is {seconds} s and {microseconds} us, expected no negative number and less than \
             a million microseconds"
        )));
    }
    seconds
        .checked_mul(NANOSECONDS)
        .and_then(|total| total.checked_add(microseconds * 1000))
        .ok_or_else(|| Refusal::invalid(format!("Time of {seconds} s is out of range")))
}

#[cfg(test)]
mod tests {
    use super::{between, nanoseconds, since_counter};
    use std::time::Duration;

    #[test]
    fn the_counter_tells_how_long_ago_something_was() {
        let ms = |ms| Some(Duration::from_millis(ms));
        assert_eq!(between(1000, 1000 + 2_500_000, 2_500_000), ms(1));
        assert_eq!(between(7, 7, 2_500_000), ms(0));
        assert_eq!(between(u64::MAX - 3_000, u64::MAX, 3_000), ms(1));
    }

    #[test]
    fn a_counter_that_makes_no_sense_tells_nothing() {
        assert_eq!(between(0, 1000, 0), None);
        assert_eq!(between(1000, 999, 2_500_000), None);
        assert_eq!(between(0, u64::MAX, 1), None);
        // Without a frequency whatever the counter is.
        assert_eq!(since_counter(0, 0), None);
    }

    #[test]
    fn seconds_and_microseconds_add_up() {
        assert_eq!(nanoseconds(2, 3).unwrap(), 2_000_003_000);
    }

    #[test]
    fn impossible_times_are_refused() {
        for (seconds, microseconds) in [(-1, 0), (0, -1), (0, 1_000_000), (i64::MAX, 0)] {
            let refusal = nanoseconds(seconds, microseconds).unwrap_err();
            assert!(
                refusal.message.contains(&seconds.to_string()),
                "{}",
                refusal.message
            );
        }
    }
}
