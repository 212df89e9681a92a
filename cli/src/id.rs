//! The names of VMs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest id, in characters.
const MAX_LENGTH: usize = 64;
/// Random digits of a generated id.
const RANDOM_DIGITS: usize = 8;

/// A VM's id: 1 to 64 of `A-Z a-z 0-9 _ . -`, beginning with a letter or a digit.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmId(String);

/// A text that is no id.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{found}; expected 1 to {MAX_LENGTH} of A-Z a-z 0-9 _ . -, beginning with a letter or a digit"
)]
pub struct BadId {
    found: String,
}

impl VmId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A new id: `prefix`, a dash and random digits.
    ///
    /// # Errors
    /// The kernel gives no random bytes.
    pub fn generate(prefix: &str) -> std::io::Result<Self> {
        let mut bytes = [0; RANDOM_DIGITS / 2];
        crate::random::fill(&mut bytes)?;
        let longest = MAX_LENGTH - RANDOM_DIGITS - 1;
        let prefix = prefix.get(..longest).unwrap_or(prefix);
        Ok(Self(format!("{prefix}-{}", crate::random::hex(&bytes))))
    }
}

impl FromStr for VmId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        let length = text.chars().count();
        let found = if text.is_empty() {
            "the id is empty".to_owned()
        } else if let Some(bad) = text.chars().find(|&c| !allowed(c)) {
            format!("{bad:?} is not allowed in an id")
        } else if length > MAX_LENGTH {
            format!("the id has {length} characters")
        } else if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            format!(
                "the id begins with {:?}",
                text.chars().next().unwrap_or(' ')
            )
        } else {
            return Ok(Self(text.to_owned()));
        };
        Err(BadId { found })
    }
}

impl TryFrom<String> for VmId {
    type Error = BadId;

    fn try_from(text: String) -> Result<Self, BadId> {
        text.parse()
    }
}

impl From<VmId> for String {
    fn from(id: VmId) -> Self {
        id.0
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_the_grammar_are_accepted() {
        for text in ["a", "0", "web-1", "A_b.c-9", &"x".repeat(64)] {
            assert_eq!(text.parse::<VmId>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn other_ids_are_refused_and_the_reason_named() {
        for (text, reason) in [
            ("", "is empty"),
            ("a/b", "'/' is not allowed"),
            ("..", "begins with '.'"),
            ("../x", "'/' is not allowed"),
            ("a b", "' ' is not allowed"),
            ("-a", "begins with '-'"),
            ("_a", "begins with '_'"),
            ("é", "'é' is not allowed"),
            ("a\n", "'\\n' is not allowed"),
            (&"x".repeat(300), "has 300 characters"),
        ] {
            let error = text.parse::<VmId>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text:?}: {error}");
            assert!(error.contains("expected 1 to 64"), "{error}");
        }
    }

    #[test]
    fn generated_ids_are_valid_and_differ() {
        for prefix in ["vm", &"t".repeat(64)] {
            let first = VmId::generate(prefix).unwrap();
            let second = VmId::generate(prefix).unwrap();
            assert_eq!(first.as_str().parse(), Ok(first.clone()));
            assert_ne!(first, second);
        }
    }
}
