//! Warm templates: a command that is run in a guest before it is frozen, so that it is done, or runs
//! already, in every clone.

mod guest;
mod run;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use proto::forward::Target;
use regex_lite::{Regex, RegexBuilder};

pub use run::warm_up;

/// How long may pass between the last time-out and the end of the last call.
const LAST_CALLS: Duration = Duration::from_secs(30);

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Warm {
    /// For the guest's shell.
    pub command: String,
    /// What tells that it is ready, while it goes on; without it, it is ready when it has ended.
    pub ready: Option<Ready>,
    /// How long that may take.
    pub timeout: Duration,
}

impl Warm {
    /// The longest time after which it is known whether the guest is warm.
    pub fn most_time(&self) -> Duration {
        self.timeout + LAST_CALLS
    }
}

/// What tells that a command is ready.
#[derive(Clone, Debug)]
pub enum Ready {
    /// Something that it has printed.
    Output(Regex),
    /// It listens there.
    Connect(Target),
    /// Another command for the guest's shell succeeds.
    Exec(String),
}

impl FromStr for Ready {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = "expected output:REGEX, port:NUMBER, socket:/PATH or exec:COMMAND";
        let (kind, what) = text.split_once(':').ok_or(usage)?;
        match (kind, what) {
            (_, "") => Err(usage.to_owned()),
            ("output", pattern) => RegexBuilder::new(pattern)
                .multi_line(true)
                .build()
                .map(Self::Output)
                .map_err(|error| error.to_string()),
            ("port", port) => port
                .parse()
                .map(|port| Self::Connect(Target::Tcp(port)))
                .map_err(|_| format!("{port:?} is no port, expected 1 to 65535")),
            ("socket", path) => Target::unix(path)
                .map(Self::Connect)
                .ok_or_else(|| format!("{path:?} cannot be the path of a Unix socket")),
            ("exec", command) => Ok(Self::Exec(command.to_owned())),
            _ => Err(usage.to_owned()),
        }
    }
}

impl std::fmt::Display for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Output(pattern) => write!(f, "its output did not match {:?}", pattern.as_str()),
            Self::Connect(Target::Tcp(port)) => write!(f, "nothing listened on port {port}"),
            Self::Connect(Target::Unix(path)) => write!(f, "nothing listened on {path}"),
            Self::Exec(command) => write!(f, "'{command}' did not succeed"),
        }
    }
}

/// A guest that is to be warm.
#[derive(Clone, Debug)]
pub struct Job {
    /// The VM's vsock socket.
    pub vsock: PathBuf,
    /// What is to be run there.
    pub warm: Warm,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_told_apart() {
        let parse = |text: &str| text.parse::<Ready>().unwrap().to_string();
        assert_eq!(parse("port:80"), "nothing listened on port 80");
        assert_eq!(parse("socket:/run/s"), "nothing listened on /run/s");
        assert_eq!(parse("exec:test -e /x:y"), "'test -e /x:y' did not succeed");
        assert_eq!(
            parse("output:a: [0-9]+"),
            "its output did not match \"a: [0-9]+\""
        );
        for wrong in [
            "",
            "80",
            "port:",
            "port:0",
            "output:(",
            "socket:run",
            "exec:",
            "file:/x",
        ] {
            assert!(wrong.parse::<Ready>().is_err(), "{wrong}");
        }
    }
}
