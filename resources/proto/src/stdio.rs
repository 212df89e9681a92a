//! The line that opens a stream of a command on [`STDIO_PORT`](crate::STDIO_PORT).

use std::fmt;
use std::str::FromStr;

/// The agent's answer to a line it accepts; raw bytes follow.
pub const ACCEPTED: &str = "ok\n";
/// How a refusal begins; the reason and a newline follow.
pub const REFUSED_PREFIX: &str = "error ";
/// The longest line that either side sends, newline included.
pub const MAX_LINE_BYTES: usize = 256;

/// One of a command's streams.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Stream {
    /// Host to guest. Closing the host's sending half is the command's end of file.
    Stdin,
    /// Guest to host. With a terminal this carries everything that the command prints.
    Stdout,
    /// Guest to host; not there with a terminal.
    Stderr,
}

impl Stream {
    /// The stream's name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdin => "stdin",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Asks for one stream of one command. Displays as the line without its newline.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Attach {
    /// The id that `Exec` returned.
    pub exec_id: String,
    /// Which of its streams.
    pub stream: Stream,
}

impl fmt::Display for Attach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.exec_id, self.stream)
    }
}

/// A line that is not `<exec_id> stdin|stdout|stderr`.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("expected '<exec_id> stdin|stdout|stderr', got {0:?}")]
pub struct BadAttach(String);

impl FromStr for Attach {
    type Err = BadAttach;

    fn from_str(line: &str) -> Result<Self, BadAttach> {
        let parsed = line.split_once(' ').and_then(|(exec_id, stream)| {
            let stream = match stream {
                "stdin" => Stream::Stdin,
                "stdout" => Stream::Stdout,
                "stderr" => Stream::Stderr,
                _ => return None,
            };
            (!exec_id.is_empty()).then(|| Self {
                exec_id: exec_id.to_owned(),
                stream,
            })
        });
        parsed.ok_or_else(|| BadAttach(line.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attach_line_round_trips() {
        let attach = Attach {
            exec_id: "7".to_owned(),
            stream: Stream::Stderr,
        };
        assert_eq!(attach.to_string(), "7 stderr");
        assert_eq!("7 stderr".parse(), Ok(attach));
    }

    #[test]
    fn wrong_lines_are_named() {
        for line in ["", "7", "7 ", " stdin", "7 stdlog", "7 stdin ", "7  stdin"] {
            let error = line.parse::<Attach>().unwrap_err();
            assert!(error.to_string().contains(&format!("{line:?}")), "{error}");
        }
    }
}
