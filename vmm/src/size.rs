//! Memory sizes as users write them.

use std::fmt;
use std::str::FromStr;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// Guest memory is given and mapped in units of this many bytes, the size of a huge page and of a
/// virtio-mem block.
const GRANULE: u64 = 2 * MIB;
/// A Linux guest does not boot with less.
const MINIMUM: u64 = 32 * MIB;
/// More than any host has; keeps address arithmetic far from overflow.
const MAXIMUM: u64 = 16 * TIB;

/// An amount of guest memory: a multiple of 2 MiB, from 32 MiB to 16 TiB.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Deserialize, serde::Serialize,
)]
#[serde(try_from = "u64", into = "u64")]
pub struct MemorySize(u64);

/// A text or number that is no usable memory size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a number with a unit.
    #[error(
        "{0:?} is not a memory size; write a whole number and a unit: K, M, G or T, for example 512M"
    )]
    Syntax(String),
    /// Not a multiple of the granule.
    #[error("{asked} is not a multiple of 2M; the nearest sizes are {below} and {above}")]
    Granule {
        /// What was asked for.
        asked: String,
        /// The next smaller usable size.
        below: MemorySize,
        /// The next larger usable size.
        above: MemorySize,
    },
    /// Too small or too large.
    #[error("{0} is outside the range of memory sizes, 32M to 16T")]
    Range(String),
}

impl MemorySize {
    /// A size of `mib` MiB.
    ///
    /// # Errors
    /// Outside the range or not a multiple of 2 MiB.
    pub fn from_mib(mib: u64) -> Result<Self, SizeError> {
        Self::from_bytes(mib.saturating_mul(MIB))
    }

    /// A size in bytes.
    ///
    /// # Errors
    /// Outside the range or not a multiple of 2 MiB.
    pub fn from_bytes(bytes: u64) -> Result<Self, SizeError> {
        if !(MINIMUM..=MAXIMUM).contains(&bytes) {
            return Err(SizeError::Range(format_bytes(bytes)));
        }
        if !bytes.is_multiple_of(GRANULE) {
            let below = bytes / GRANULE * GRANULE;
            return Err(SizeError::Granule {
                asked: format_bytes(bytes),
                below: Self(below),
                above: Self(below + GRANULE),
            });
        }
        Ok(Self(bytes))
    }

    /// The size in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format_bytes(self.0))
    }
}

impl TryFrom<u64> for MemorySize {
    type Error = SizeError;

    fn try_from(bytes: u64) -> Result<Self, SizeError> {
        Self::from_bytes(bytes)
    }
}

impl From<MemorySize> for u64 {
    fn from(size: MemorySize) -> Self {
        size.bytes()
    }
}

impl FromStr for MemorySize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let syntax = || SizeError::Syntax(text.to_owned());
        let unit_start = text
            .find(|c: char| !c.is_ascii_digit())
            .ok_or_else(syntax)?;
        let (digits, unit) = text.split_at(unit_start);
        let unit = match unit.to_ascii_lowercase().as_str() {
            "k" | "kib" => KIB,
            "m" | "mib" => MIB,
            "g" | "gib" => GIB,
            "t" | "tib" => TIB,
            _ => return Err(syntax()),
        };
        if digits.is_empty() {
            return Err(syntax());
        }
        let number: u64 = digits
            .parse()
            .map_err(|_| SizeError::Range(text.to_owned()))?;
        let bytes = number
            .checked_mul(unit)
            .ok_or_else(|| SizeError::Range(text.to_owned()))?;
        Self::from_bytes(bytes)
    }
}

/// The largest unit that leaves a whole number.
fn format_bytes(bytes: u64) -> String {
    [(TIB, "T"), (GIB, "G"), (MIB, "M"), (KIB, "K")]
        .iter()
        .find(|(unit, _)| bytes > 0 && bytes.is_multiple_of(*unit))
        .map_or_else(
            || format!("{bytes} bytes"),
            |(unit, name)| format!("{}{name}", bytes / unit),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<u64, SizeError> {
        text.parse::<MemorySize>().map(MemorySize::bytes)
    }

    #[test]
    fn sizes_with_a_unit_are_taken() {
        assert_eq!(parse("256M"), Ok(256 * MIB));
        assert_eq!(parse("1g"), Ok(GIB));
        assert_eq!(parse("1GiB"), Ok(GIB));
        assert_eq!(parse("65536k"), Ok(64 * MIB));
        assert_eq!(parse("16T"), Ok(16 * TIB));
    }

    #[test]
    fn other_texts_are_refused_with_the_grammar() {
        for text in [
            "", "512", "-1", "1 G", "1.5G", "1e3", "G", "1MB", "0x10M", "+1G",
        ] {
            assert!(matches!(parse(text), Err(SizeError::Syntax(_))), "{text:?}");
        }
    }

    #[test]
    fn sizes_outside_the_range_are_refused() {
        for text in [
            "0K",
            "1K",
            "30M",
            "17T",
            "18446744073709551615T",
            "99999999999999999999M",
        ] {
            assert!(matches!(parse(text), Err(SizeError::Range(_))), "{text:?}");
        }
    }

    #[test]
    fn odd_sizes_name_their_neighbours() {
        let error = parse("127M").unwrap_err();
        assert_eq!(
            error.to_string(),
            "127M is not a multiple of 2M; the nearest sizes are 126M and 128M"
        );
        assert!(matches!(parse("100001K"), Err(SizeError::Granule { .. })));
    }

    #[test]
    fn display_parses_back() {
        for text in ["32M", "1G", "1026M", "3T"] {
            assert_eq!(text.parse::<MemorySize>().unwrap().to_string(), text);
        }
    }
}
