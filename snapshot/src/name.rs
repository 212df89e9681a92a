//! The name of a template: also the name of its directory, so its grammar is narrow.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most characters a name may have.
pub const MAX_NAME_LENGTH: usize = 64;

/// 1 to 64 characters out of `a-z A-Z 0-9 _ . -`, the first one a letter or a digit.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct TemplateName(String);

/// Text that cannot be the name of a template.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("Template name is empty, expected 1 to {MAX_NAME_LENGTH} characters")]
    Empty,
    /// Too many characters; they are counted, not repeated.
    #[error("Template name has {0} characters, expected at most {MAX_NAME_LENGTH}")]
    TooLong(usize),
    /// The first character is one that may only stand further on.
    #[error("Template name {name:?} starts with {found:?}, expected a letter a-z, A-Z or a digit")]
    FirstCharacter {
        /// The whole name.
        name: String,
        /// Its first character.
        found: char,
    },
    /// A character that may stand nowhere.
    #[error("Template name {name:?} contains {found:?}, expected only a-z, A-Z, 0-9, _, . and -")]
    Character {
        /// The whole name.
        name: String,
        /// The first character that is not allowed.
        found: char,
    },
}

impl TemplateName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TemplateName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let length = text.chars().count();
        if length > MAX_NAME_LENGTH {
            return Err(NameError::TooLong(length));
        }
        let first = text.chars().next().ok_or(NameError::Empty)?;
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if let Some(found) = text.chars().find(|&c| !allowed(c)) {
            return Err(NameError::Character {
                name: text.to_owned(),
                found,
            });
        }
        if !first.is_ascii_alphanumeric() {
            return Err(NameError::FirstCharacter {
                name: text.to_owned(),
                found: first,
            });
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for TemplateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for TemplateName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for TemplateName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<TemplateName> for String {
    fn from(name: TemplateName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> NameError {
        text.parse::<TemplateName>().unwrap_err()
    }

    #[test]
    fn names_within_the_grammar_are_taken() {
        let longest = "x".repeat(MAX_NAME_LENGTH);
        for text in ["a", "0", "debian-12", "A_b.c-9", longest.as_str()] {
            assert_eq!(text.parse::<TemplateName>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn empty_name_is_refused() {
        assert_eq!(refused(""), NameError::Empty);
    }

    #[test]
    fn name_of_300_characters_is_refused_with_its_length() {
        assert_eq!(refused(&"n".repeat(300)), NameError::TooLong(300));
    }

    #[test]
    fn names_that_would_be_hidden_or_an_option_are_refused() {
        for text in [".", "..", ".hidden", "-dash", "_x"] {
            assert!(
                matches!(refused(text), NameError::FirstCharacter { .. }),
                "{text:?}"
            );
        }
    }

    #[test]
    fn separators_blanks_and_other_letters_are_refused_by_name() {
        for (text, bad) in [
            ("a/b", '/'),
            ("a b", ' '),
            ("ä", 'ä'),
            ("a\n", '\n'),
            ("a\0", '\0'),
        ] {
            assert!(
                matches!(refused(text), NameError::Character { found, .. } if found == bad),
                "{text:?}"
            );
        }
    }
}
