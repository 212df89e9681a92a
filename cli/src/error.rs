//! Exit codes, and errors that carry one.

use std::fmt;

/// What a command ends with when nothing went wrong.
pub const SUCCESS: u8 = 0;
/// An error of minivmm itself.
pub const FAILURE: u8 = 1;
/// Wrong usage: an argument that can never work.
pub const USAGE: u8 = 2;
/// Ended by Ctrl-C or SIGTERM before there was a result.
pub const INTERRUPTED: u8 = 130;

/// The exit code of a command that did its work.
pub type Outcome = anyhow::Result<u8>;

/// An error with an exit code other than [`FAILURE`].
#[derive(Debug, PartialEq, Eq)]
pub struct Coded {
    /// The exit code.
    pub code: u8,
    /// What to tell the user.
    pub message: String,
}

impl fmt::Display for Coded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Coded {}

/// An argument that can never work: exit code [`USAGE`].
pub fn usage(message: impl Into<String>) -> anyhow::Error {
    coded(USAGE, message)
}

/// An error that ends the program with `code`.
pub fn coded(code: u8, message: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Coded {
        code,
        message: message.into(),
    })
}

/// The exit code that `error` asks for.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    error
        .chain()
        .find_map(|cause| cause.downcast_ref::<Coded>())
        .map_or(FAILURE, |coded| coded.code)
}

/// The whole chain on one line, causes that repeat what was just said left out.
pub fn describe(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.ends_with(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn code_is_found_below_context() {
        let error = Err::<(), _>(usage("bad")).context("outer").unwrap_err();
        assert_eq!(exit_code(&error), USAGE);
        assert_eq!(describe(&error), "outer: bad");
    }

    #[test]
    fn other_errors_are_failures_and_repeated_causes_are_said_once() {
        let inner = std::io::Error::other("disk on fire");
        let error = anyhow::Error::new(std::io::Error::other(inner)).context("Cannot read x");
        assert_eq!(exit_code(&error), FAILURE);
        assert_eq!(describe(&error), "Cannot read x: disk on fire");
    }
}
