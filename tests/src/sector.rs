//! Sectors of a disk that tell by whom, where and in which generation they were written: one that is torn,
//! lost, stale or in another's place is told from one that is right.

use crate::random::Random;

/// Bytes of a sector.
pub const SECTOR_BYTES: usize = 512;
const WORDS: usize = SECTOR_BYTES / 8;

/// What a sector says of itself. Generation 0 is a sector that was never written: zeros.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Label {
    /// Of the writer.
    pub seed: u64,
    /// Where on the disk, in sectors.
    pub number: u64,
    /// Rises with every write of the sector.
    pub generation: u64,
}

/// A sector is not the one that was written last.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SectorError {
    /// It is a sector as it was once written, but another one.
    #[error("sector {} has generation {}, written was {}", .expected.number, .found, .expected.generation)]
    Generation {
        /// What is there.
        found: u64,
        /// What was to be there.
        expected: Label,
    },
    /// It was written by somebody else or for another place.
    #[error("there is {found:?} in the place of {expected:?}")]
    Misplaced {
        /// What is there.
        found: Label,
        /// What was to be there.
        expected: Label,
    },
    /// It is no sector that was ever written.
    #[error(
        "{expected:?} is torn: {right} of {SECTOR_BYTES} bytes are as they should be, and its label is {found:?}"
    )]
    Torn {
        /// What its first words say.
        found: Label,
        /// What was to be there.
        expected: Label,
        /// How much of that is there.
        right: usize,
    },
}

impl Label {
    /// Makes `bytes`, of the length of a sector, the sector of this label.
    pub fn fill(&self, bytes: &mut [u8]) {
        if self.generation == 0 {
            return bytes.fill(0);
        }
        // Any two labels have different fillings, so parts of two sectors do not make a third.
        let mut filling = Random::with_seed(self.seed);
        for word in [self.number, self.generation] {
            filling = Random::with_seed(filling.number() ^ word);
        }
        let label = [self.seed, self.number, self.generation];
        let words = label
            .into_iter()
            .chain(std::iter::repeat_with(|| filling.number()));
        for (place, word) in bytes.chunks_exact_mut(8).zip(words.take(WORDS)) {
            place.copy_from_slice(&word.to_le_bytes());
        }
    }

    /// Compares a sector with this label's.
    ///
    /// # Errors
    /// See [`SectorError`].
    pub fn check(&self, bytes: &[u8]) -> Result<(), SectorError> {
        let mut right = [0; SECTOR_BYTES];
        self.fill(&mut right);
        if bytes == right {
            return Ok(());
        }
        let expected = *self;
        let found = Self::said_by(bytes);
        let same = bytes.iter().zip(right).filter(|(a, b)| *a == b).count();
        found.fill(&mut right);
        Err(if bytes != right {
            SectorError::Torn {
                found,
                expected,
                right: same,
            }
        } else if found.generation == 0 || (found.seed, found.number) == (self.seed, self.number) {
            SectorError::Generation {
                found: found.generation,
                expected,
            }
        } else {
            SectorError::Misplaced { found, expected }
        })
    }

    fn said_by(bytes: &[u8]) -> Self {
        let mut words = bytes.chunks_exact(8).map(|word| {
            let word = word.try_into().unwrap_or_default();
            u64::from_le_bytes(word)
        });
        let mut next = || words.next().unwrap_or_default();
        Self {
            seed: next(),
            number: next(),
            generation: next(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: Label = Label {
        seed: 7,
        number: 1000,
        generation: 3,
    };

    fn sector(label: Label) -> [u8; SECTOR_BYTES] {
        let mut bytes = [0xff; SECTOR_BYTES];
        label.fill(&mut bytes);
        bytes
    }

    #[test]
    fn the_sector_that_was_written_last_is_right() {
        LABEL.check(&sector(LABEL)).unwrap();
        let untouched = Label {
            generation: 0,
            ..LABEL
        };
        untouched.check(&[0; SECTOR_BYTES]).unwrap();
    }

    #[test]
    fn an_older_one_and_one_that_was_never_written_are_stale() {
        for generation in [0, 2, 4] {
            let found = sector(Label {
                generation,
                ..LABEL
            });
            let expected = LABEL;
            assert_eq!(
                LABEL.check(&found),
                Err(SectorError::Generation {
                    found: generation,
                    expected
                })
            );
        }
    }

    #[test]
    fn anothers_is_misplaced() {
        for other in [Label { seed: 8, ..LABEL }, Label { number: 1, ..LABEL }] {
            let found = LABEL.check(&sector(other)).unwrap_err();
            let expected = LABEL;
            assert_eq!(
                found,
                SectorError::Misplaced {
                    found: other,
                    expected
                }
            );
        }
    }

    #[test]
    fn parts_of_two_and_a_changed_byte_are_torn() {
        let older = sector(Label {
            generation: 2,
            ..LABEL
        });
        let mut halves = sector(LABEL);
        halves[256..].copy_from_slice(&older[256..]);
        let mut changed = sector(LABEL);
        changed[511] ^= 1;
        for torn in [halves, changed] {
            let error = LABEL.check(&torn).unwrap_err();
            assert!(matches!(error, SectorError::Torn { .. }), "{error}");
        }
    }
}
