//! Random numbers that can be had again: the seed is printed, and taken from `MINIVMM_SEED`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A generator of random numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator with the seed of `MINIVMM_SEED`, or a new one. `test` is printed with it.
    ///
    /// # Panics
    /// The variable is no number.
    #[must_use]
    #[track_caller]
    pub fn of(test: &str) -> Self {
        let given = std::env::var("MINIVMM_SEED").ok();
        let seed = given.map_or_else(from_clock, |seed| seed.parse().unwrap());
        eprintln!("{test}: MINIVMM_SEED={seed}");
        Self(seed)
    }

    /// The generator of this seed.
    #[must_use]
    pub fn with_seed(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    #[must_use]
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    #[must_use]
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    /// One of them.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn choose<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let index = self.below(all.len() as u64);
        &all[usize::try_from(index).unwrap()]
    }

    /// A time shorter than `most`, which is at least a microsecond.
    ///
    /// # Panics
    /// It is longer than half a million years.
    #[must_use]
    pub fn time_below(&mut self, most: Duration) -> Duration {
        Duration::from_micros(self.below(u64::try_from(most.as_micros()).unwrap()))
    }
}

fn from_clock() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::from(since.subsec_nanos())
}

/// How often a long test does it: `MINIVMM_ROUNDS` in a soak, `usual` else.
///
/// # Panics
/// The variable is no number.
#[must_use]
pub fn rounds(usual: u32) -> u32 {
    let given = std::env::var("MINIVMM_ROUNDS").ok();
    given.map_or(usual, |rounds| rounds.parse().unwrap())
}
