//! minivmm's guest agent: PID 1 of an initramfs, or a service in a root file system.
//!
//! One thread and one epoll loop do everything, so an idle agent sleeps in one system call, the
//! end of a child cannot race with a caller that waits for it, and a clone pays for few pages:
//! - [`init`] sets up a machine whose PID 1 the agent is.
//! - [`server`] listens, reads calls and answers them; [`exec`] runs commands
//!   for it, [`forward`] connects it with programs of the guest's own.
//! - [`tool`] is what the agent starts its own program for: copies of files.
//! - [`machine`] is what the calls do to the guest: entropy, clock, identity, hot-plug, power.

mod error;
mod exec;
mod forward;
mod init;
mod machine;
mod server;
mod tool;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use error::Error;
use machine::{Machine, vsock};
use server::{Listeners, Server};

/// The agent's version, as `grpc.Health/Version` reports it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

fn main() -> ExitCode {
    let result = if std::process::id() == 1 {
        init::run()
    } else if std::env::args_os()
        .nth(1)
        .is_some_and(|word| word == tool::TOOL)
    {
        return tool::run(std::env::args_os().skip(2).collect());
    } else {
        run_as_service()
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // For PID 1 this return is a kernel panic, which is how the host learns of it.
        Err(error) => {
            say(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Prints one line on the console, or on standard error when the agent is a service.
fn say(line: &str) {
    // A console that takes nothing is no reason to end the machine.
    let line = format!("minivmm-agent: {line}\n");
    std::io::stderr()
        .write_all(line.as_bytes())
        .unwrap_or_default();
}

fn run_as_service() -> Result<(), Error> {
    match parse_arguments(std::env::args_os().skip(1))? {
        None => {
            let server = Server::new(Listeners::vsock()?, Some(Machine::open()?))?;
            vsock::announce_ready();
            say("serving on vsock");
            server.run()
        }
        Some(path) => {
            let listeners = Listeners::unix(&path)?;
            say(&format!("serving on {}", path.display()));
            Server::new(listeners, None)?.run()
        }
    }
}

fn parse_arguments(mut args: impl Iterator<Item = OsString>) -> Result<Option<PathBuf>, Error> {
    let Some(first) = args.next() else {
        return Ok(None);
    };
    let value = args.next();
    let path = value
        .as_ref()
        .and_then(|value| value.to_str())
        .filter(|_| first == "--listen")
        .and_then(|value| value.strip_prefix("unix:"))
        .filter(|path| !path.is_empty());
    match (path, args.next()) {
        (Some(path), None) => Ok(Some(PathBuf::from(path))),
        _ => Err(Error::Usage(format!(
            "Unexpected arguments from {}",
            first.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Option<PathBuf>, Error> {
        parse_arguments(args.iter().map(OsString::from))
    }

    #[test]
    fn no_argument_means_vsock() {
        assert_eq!(parse(&[]).unwrap(), None);
    }

    #[test]
    fn unix_address_is_taken() {
        assert_eq!(
            parse(&["--listen", "unix:/run/a"]).unwrap(),
            Some(PathBuf::from("/run/a"))
        );
    }

    #[test]
    fn anything_else_is_a_usage_error() {
        for args in [
            &["--listen"][..],
            &["--listen", "tcp:1"],
            &["--listen", "unix:"],
            &["--listen", "unix:/a", "x"],
            &["x"],
        ] {
            assert!(matches!(parse(args), Err(Error::Usage(_))), "{args:?}");
        }
    }
}
