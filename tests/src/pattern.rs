//! Bytes that tell where in a stream they belong: what is lost, doubled or moved shows.

use std::io::{self, ErrorKind, Read, Write};

/// Bytes of one block. Every block has the same random filling but for its number at the start.
pub const BLOCK_BYTES: usize = 4096;

/// Blocks that are made and compared at once.
const BATCH: usize = 16;

/// A stream of numbered blocks.
#[derive(Debug, Clone)]
pub struct Pattern {
    filling: [u8; BLOCK_BYTES],
}

/// What was received is not what was sent.
#[derive(Debug, thiserror::Error)]
pub enum PatternError {
    /// A byte differs.
    #[error("byte {offset} is {found:#04x}, expected {expected:#04x}")]
    Differs {
        /// Where in the stream.
        offset: u64,
        /// What is there.
        found: u8,
        /// What was to be there.
        expected: u8,
    },
    /// The stream has ended early.
    #[error("ended after {found} bytes, expected {expected}")]
    Ended {
        /// Bytes that have come.
        found: u64,
        /// Bytes that were to come.
        expected: u64,
    },
    /// The stream cannot be read.
    #[error("cannot read on after {received} bytes")]
    Read {
        /// Bytes that have come.
        received: u64,
        /// Why not.
        source: io::Error,
    },
}

impl Pattern {
    /// The stream that belongs to `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut filling = [0; BLOCK_BYTES];
        let mut state = seed;
        for word in filling.chunks_exact_mut(8) {
            word.copy_from_slice(&next_random(&mut state).to_le_bytes());
        }
        Self { filling }
    }

    /// One block.
    #[must_use]
    pub fn block(&self, number: u64) -> [u8; BLOCK_BYTES] {
        let mut block = self.filling;
        block[..8].copy_from_slice(&number.to_le_bytes());
        block
    }

    /// Writes the first `bytes` of the stream.
    ///
    /// # Errors
    /// The receiver does not take them.
    pub fn send(&self, mut to: impl Write, bytes: u64) -> io::Result<()> {
        let mut sent = 0;
        while sent < bytes {
            let batch = self.batch(sent, bytes - sent);
            to.write_all(&batch)?;
            sent += batch.len() as u64;
        }
        to.flush()
    }

    /// Reads `bytes` and compares each with the stream.
    ///
    /// # Errors
    /// See [`PatternError`].
    pub fn receive(&self, mut from: impl Read, bytes: u64) -> Result<(), PatternError> {
        let mut received = 0;
        while received < bytes {
            let expected = self.batch(received, bytes - received);
            let mut found = vec![0; expected.len()];
            let filled = fill(&mut from, &mut found).map_err(|(filled, source)| {
                let received = received + filled as u64;
                PatternError::Read { received, source }
            })?;
            compare(received, &found[..filled], &expected[..filled])?;
            received += filled as u64;
            if filled < expected.len() {
                return Err(PatternError::Ended {
                    found: received,
                    expected: bytes,
                });
            }
        }
        Ok(())
    }

    /// The next blocks at `offset`, which is a multiple of a block, and at most `limit` bytes.
    fn batch(&self, offset: u64, limit: u64) -> Vec<u8> {
        let first = offset / BLOCK_BYTES as u64;
        let mut batch = Vec::with_capacity(BATCH * BLOCK_BYTES);
        for number in first..first + BATCH as u64 {
            batch.extend_from_slice(&self.block(number));
        }
        batch.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        batch
    }
}

/// Reads until `buffer` is full or the stream ends; an error says how much was read before it.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> Result<usize, (usize, io::Error)> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err((filled, error)),
        }
    }
    Ok(filled)
}

fn compare(offset: u64, found: &[u8], expected: &[u8]) -> Result<(), PatternError> {
    if found == expected {
        return Ok(());
    }
    let mut pairs = (offset..).zip(found.iter().zip(expected));
    let different = pairs.find(|(_, (found, expected))| found != expected);
    different.map_or(Ok(()), |(offset, (&found, &expected))| {
        Err(PatternError::Differs {
            offset,
            found,
            expected,
        })
    })
}

/// `SplitMix64`.
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(bytes: u64) -> Vec<u8> {
        let mut sent = Vec::new();
        Pattern::new(1).send(&mut sent, bytes).unwrap();
        sent
    }

    #[test]
    fn what_was_sent_is_accepted() {
        for bytes in [0, 1, 4096, 70_000, 200_001] {
            let sent = sent(bytes);
            assert_eq!(sent.len() as u64, bytes);
            Pattern::new(1).receive(&sent[..], bytes).unwrap();
        }
    }

    #[test]
    fn loss_doubling_and_change_are_found() {
        let whole = sent(200_000);
        let mut lost = whole.clone();
        lost.drain(8192..12_288);
        let mut doubled = whole.clone();
        doubled.splice(8192..8192, whole[4096..8192].to_vec());
        let mut changed = whole.clone();
        changed[150_000] ^= 1;
        for (damaged, at) in [(lost, 8192), (doubled, 8192), (changed, 150_000)] {
            let error = Pattern::new(1).receive(&damaged[..], 190_000).unwrap_err();
            assert!(
                matches!(error, PatternError::Differs { offset, .. } if offset == at),
                "{error}"
            );
        }
        assert!(matches!(
            Pattern::new(1).receive(&whole[..100], 200),
            Err(PatternError::Ended { found: 100, .. })
        ));
        assert!(Pattern::new(2).receive(&whole[..], 200).is_err());
    }
}
