//! The 64-bit checksum that guards every file of a template against accidents.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

/// XXH3 with 64 bits, written `xxh3:` and 16 lower-case hexadecimal digits.
///
/// It finds damage, not forgery: whoever can write to the store can also write a checksum.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Checksum(u64);

/// Text that is not a [`Checksum`].
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no checksum, expected xxh3: and 16 lower-case hexadecimal digits")]
pub struct ChecksumError(String);

impl Checksum {
    /// The checksum of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(XxHash3_64::oneshot(bytes))
    }

    pub(crate) const fn from_raw(value: u64) -> Self {
        Self(value)
    }

    pub(crate) const fn raw(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "xxh3:{:016x}", self.0)
    }
}

impl FromStr for Checksum {
    type Err = ChecksumError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let value = text
            .strip_prefix("xxh3:")
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .map(Self);
        // Comparing with the one way to write it leaves no second spelling: a flipped case bit in
        // a manifest is damage like any other.
        match value {
            Some(checksum) if checksum.to_string() == text => Ok(checksum),
            _ => Err(ChecksumError(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Checksum {
    type Error = ChecksumError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Checksum> for String {
    fn from(checksum: Checksum) -> Self {
        checksum.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_is_read_back() {
        let checksum = Checksum::of(b"guest");

        assert_eq!(checksum.to_string().parse::<Checksum>().unwrap(), checksum);
    }

    #[test]
    fn every_other_spelling_is_refused() {
        for text in [
            "",
            "xxh3:",
            "xxh3:00",
            "xxh3:ABCDEF0123456789",
            "crc:0000000000000000",
        ] {
            assert!(text.parse::<Checksum>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn published_value_of_the_algorithm_holds() {
        // XXH3-64 of no bytes with seed 0, as its specification gives it: a change of the crate
        // or of its defaults must not make old templates unreadable.
        assert_eq!(Checksum::of(b"").raw(), 0x2d06_8005_38d3_94c2);
    }
}
