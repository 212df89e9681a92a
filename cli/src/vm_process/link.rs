//! The socket between a command and the VM process it has forked, or has found in a pool.
//!
//! The VM process sends messages, one JSON object a line. The other way there is one byte: the
//! command has taken note that the VM is ready and lets it go. If the socket ends without it, the
//! command was interrupted or killed, and the VM ends too.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};

use super::plan::{Created, Ready};
use super::sizing::SizeReport;
use crate::json_lines::{self, Lines};
use crate::state::record::End;

const LET_GO: &[u8] = b"k";

/// What a VM process tells.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Message {
    /// A process of a pool takes the request; what follows is its own.
    Taken {
        /// Of the process.
        pid: u32,
    },
    /// The pool has no clone ready. The last message.
    Empty {
        /// Why not.
        reason: String,
    },
    /// Something the user should know.
    Notice(String),
    /// A step begins.
    Step(String),
    /// The VM is up.
    Ready(Box<Ready>),
    /// The template is published. The last message.
    Created(Box<Created>),
    /// The VM has ended. The last message.
    Ended(End),
    /// It could not be started. The last message; nothing is left behind.
    Failed {
        /// The command's exit code.
        code: u8,
        /// What to tell the user.
        message: String,
        /// How far its growth got, when that is why.
        size: Option<Box<SizeReport>>,
    },
}

/// Makes both ends.
///
/// # Errors
/// No descriptors left.
pub fn pair() -> io::Result<(CommandEnd, VmEnd)> {
    let (command, vm) = UnixStream::pair()?;
    command.set_nonblocking(true)?;
    vm.set_nonblocking(true)?;
    Ok((CommandEnd::of(command), VmEnd::of(vm)))
}

/// The VM process's end.
#[derive(Debug)]
pub struct VmEnd {
    stream: UnixStream,
    /// Closed with it: a pool waits for the clone that it handed out to be on its own.
    _companion: Option<UnixStream>,
}

/// What a VM process knows of its command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// It listens.
    Listens,
    /// It has what it wanted.
    LetGo,
    /// It was interrupted or killed.
    Gone,
}

impl VmEnd {
    /// Over a socket that does not block.
    pub fn of(stream: UnixStream) -> Self {
        Self {
            stream,
            _companion: None,
        }
    }

    /// Keeps `companion` open for as long as this is.
    pub fn with(self, companion: UnixStream) -> Self {
        Self {
            _companion: Some(companion),
            ..self
        }
    }

    /// Tells the command. One that is gone is no error: [`VmEnd::command`] tells.
    pub fn send(&self, message: &Message) {
        // A whole life of messages fits into the socket's buffer.
        if let Err(error) = json_lines::send(&self.stream, message) {
            tracing::debug!(%error, "The command that started this VM does not listen");
        }
    }

    /// What the command has done.
    pub fn command(&self) -> Command {
        match (&self.stream).read(&mut [0]) {
            Ok(0) => Command::Gone,
            Ok(_) => Command::LetGo,
            Err(error) if is_transient(&error) => Command::Listens,
            Err(_) => Command::Gone,
        }
    }
}

impl AsFd for VmEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// The command's end.
#[derive(Debug)]
pub struct CommandEnd {
    stream: UnixStream,
    lines: Lines,
}

impl CommandEnd {
    /// Over a socket that does not block.
    pub fn of(stream: UnixStream) -> Self {
        Self {
            stream,
            lines: Lines::default(),
        }
    }

    /// The messages that have come, and whether there may be more.
    ///
    /// # Errors
    /// The socket failed, or what came is no message.
    pub fn receive(&mut self) -> io::Result<(VecDeque<Message>, bool)> {
        self.lines.receive(&self.stream)
    }

    /// Lets a VM that is ready go its way.
    ///
    /// # Errors
    /// Its process has gone already.
    pub fn let_go(&self) -> io::Result<()> {
        (&self.stream).write_all(LET_GO)
    }

    /// Makes the VM end. What it has to say until then can still be received.
    ///
    /// # Errors
    /// Its process has gone already.
    pub fn give_up(&self) -> io::Result<()> {
        self.stream.shutdown(std::net::Shutdown::Write)
    }
}

impl AsFd for CommandEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::record::EndReason;

    #[test]
    fn messages_arrive_in_order_and_then_the_end() {
        let (mut command, vm) = pair().unwrap();
        let first = Message::Step("Booting".to_owned());
        let second = Message::Ended(End::now(EndReason::Reboot, "rebooted"));
        vm.send(&first);
        vm.send(&second);
        assert_eq!(
            command.receive().unwrap(),
            (VecDeque::from([first, second]), true)
        );
        drop(vm);
        assert_eq!(command.receive().unwrap(), (VecDeque::new(), false));
    }

    #[test]
    fn the_vm_learns_what_its_command_has_done() {
        let (command, vm) = pair().unwrap();
        assert_eq!(vm.command(), Command::Listens);
        command.let_go().unwrap();
        assert_eq!(vm.command(), Command::LetGo);
        drop(command);
        assert_eq!(vm.command(), Command::Gone);
    }

    #[test]
    fn a_command_that_gives_up_still_hears() {
        let (mut command, vm) = pair().unwrap();
        command.give_up().unwrap();
        assert_eq!(vm.command(), Command::Gone);
        let last = Message::Notice("bye".to_owned());
        vm.send(&last);
        assert_eq!(command.receive().unwrap().0, [last]);
    }
}
