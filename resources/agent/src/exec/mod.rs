//! Runs commands for the host.
//!
//! - [`plan`] turns a request into what is to be run, and refuses what cannot be.
//! - [`image`] is what a command gets that is not told otherwise.
//! - [`spawn`] starts it; [`pump`] moves one of its streams between process and host.
//! - [`channel`] is a stream of a command; [`session`] is one command from request to [`outcome`]; [`table`] is all of them.

pub mod channel;
pub mod debug_shell;
pub mod image;
pub mod outcome;
pub mod plan;
pub mod pump;
pub mod session;
pub mod spawn;
pub mod table;
pub mod user;

use proto::stdio::Stream;

/// One end of a command's stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// The connection that brings the host's input.
    StdinSource,
    /// Where the command reads it.
    StdinSink,
    /// Where the command prints.
    StdoutSource,
    /// The connection that takes it to the host.
    StdoutSink,
    /// Where the command prints errors.
    StderrSource,
    /// The connection that takes them to the host.
    StderrSink,
}

impl End {
    const ALL: [Self; 6] = [
        Self::StdinSource,
        Self::StdinSink,
        Self::StdoutSource,
        Self::StdoutSink,
        Self::StderrSource,
        Self::StderrSink,
    ];

    /// Both ends of a stream, source first.
    pub fn of(stream: Stream) -> (Self, Self) {
        match stream {
            Stream::Stdin => (Self::StdinSource, Self::StdinSink),
            Stream::Stdout => (Self::StdoutSource, Self::StdoutSink),
            Stream::Stderr => (Self::StderrSource, Self::StderrSink),
        }
    }

    /// The stream that this is an end of.
    pub fn stream(self) -> Stream {
        match self {
            Self::StdinSource | Self::StdinSink => Stream::Stdin,
            Self::StdoutSource | Self::StdoutSink => Stream::Stdout,
            Self::StderrSource | Self::StderrSink => Stream::Stderr,
        }
    }

    /// A small number for it.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The end that has that number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|end| end.number() == number)
    }
}
