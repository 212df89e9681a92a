//! Steps the wall clock.

use rustix::time::{ClockId, Timespec, clock_settime};

use crate::error::{Error, Refusal};

const NANOSECONDS: i64 = 1_000_000_000;
const MICROSECONDS: i64 = 1_000_000;

/// Sets CLOCK_REALTIME to `nanoseconds` since the epoch.
pub fn set_realtime(nanoseconds: i64) -> Result<(), Error> {
    let time = Timespec {
        tv_sec: nanoseconds.div_euclid(NANOSECONDS),
        tv_nsec: nanoseconds.rem_euclid(NANOSECONDS),
    };
    clock_settime(ClockId::Realtime, time).map_err(Error::system("set the clock"))
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
    use super::nanoseconds;

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
