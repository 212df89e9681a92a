//! The guest's serial console in the VM process: `console.log`, and the clients of `console.sock`.
//! Nothing here waits for a client.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags};

use crate::listen::Listener;
use crate::poll;
use crate::state::dir::VmDir;

/// Half of what `console.log` and the file before it may take together.
const MAX_LOG_BYTES: u64 = 8 << 20;
/// What is kept for a client that does not read; after that its oldest output is dropped.
const MAX_UNSENT_BYTES: usize = 256 * 1024;
/// What is kept of the output for error messages.
const TAIL_BYTES: usize = 16 << 10;
/// Clients at one time; further ones are turned away.
const MAX_CLIENTS: usize = 16;
/// How long clients may take for the last output.
const FLUSH_TIME: Duration = Duration::from_secs(1);

/// The console's listeners and its log.
#[derive(Debug)]
pub struct ConsoleHub {
    listener: Listener,
    clients: Vec<Client>,
    log: Log,
    tail: VecDeque<u8>,
    /// What clients have typed and the guest has not yet taken.
    typed: VecDeque<u8>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    unsent: VecDeque<u8>,
    /// It has ended its sending half, and may still read.
    typed_all: bool,
}

#[derive(Debug)]
struct Log {
    path: PathBuf,
    before: PathBuf,
    file: File,
    size: u64,
    failed: bool,
}

impl ConsoleHub {
    /// Listens, with `first` as a client from the first byte on.
    ///
    /// # Errors
    /// The socket or the log cannot be made.
    pub fn open(dir: &VmDir, first: Option<UnixStream>) -> anyhow::Result<Self> {
        let mut hub = Self {
            listener: Listener::private(&dir.console_socket())?,
            clients: Vec::new(),
            log: Log::open(dir)?,
            tail: VecDeque::new(),
            typed: VecDeque::new(),
        };
        if let Some(stream) = first {
            hub.admit(stream);
        }
        Ok(hub)
    }

    /// What to poll for. [`ConsoleHub::serve`] is to be called when any of it is ready.
    pub fn fds(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let clients = self.clients.iter().map(|client| {
            let mut flags = PollFlags::empty();
            // While the guest takes nothing, its users are not read either.
            flags.set(PollFlags::IN, self.typed.is_empty() && !client.typed_all);
            flags.set(PollFlags::OUT, !client.unsent.is_empty());
            (client.stream.as_fd(), flags)
        });
        let listener = self.listener.fd().map(|fd| (fd, PollFlags::IN));
        listener.into_iter().chain(clients).collect()
    }

    /// When [`ConsoleHub::serve`] is to be called though nothing is ready.
    pub fn again_at(&self) -> Option<Instant> {
        self.listener.again_at()
    }

    /// Takes output of the guest; `dropped` bytes were lost before it.
    pub fn output(&mut self, bytes: &[u8], dropped: u64) {
        if dropped > 0 {
            let note = format!("\r\n[minivmm: {dropped} bytes of console output were lost]\r\n");
            self.add(note.as_bytes());
        }
        self.add(bytes);
    }

    fn add(&mut self, bytes: &[u8]) {
        self.log.write(bytes);
        push_bounded(&mut self.tail, bytes, TAIL_BYTES);
        for client in &mut self.clients {
            push_bounded(&mut client.unsent, bytes, MAX_UNSENT_BYTES);
        }
    }

    /// Moves bytes from and to the clients. `push` types into the guest and returns how many
    /// bytes found room.
    pub fn serve(&mut self, push: impl Fn(&[u8]) -> usize) {
        self.accept();
        let typed = &mut self.typed;
        let may_read = typed.is_empty();
        self.clients.retain_mut(|client| {
            // What somebody typed before they left counts.
            let gone = poll::has_hung_up(&client.stream);
            let mut more = gone || may_read;
            while more {
                more = client.read(typed) && gone;
            }
            !gone && client.send()
        });
        let room = push(self.typed.make_contiguous());
        self.typed.drain(..room.min(self.typed.len()));
    }

    /// Input waits for the guest, which does not tell when it has room: ask again soon.
    pub fn has_unread_input(&self) -> bool {
        !self.typed.is_empty()
    }

    /// Sends what clients have not been sent, as far as they take it.
    pub fn flush(&mut self) {
        let deadline = Instant::now() + FLUSH_TIME;
        loop {
            self.clients
                .retain_mut(|client| client.send() && !client.unsent.is_empty());
            let waiting = self.clients.iter();
            let mut fds: Vec<_> = waiting
                .map(|client| PollFd::new(&client.stream, PollFlags::OUT))
                .collect();
            if fds.is_empty() || !matches!(poll::wait(&mut fds, Some(deadline)), Ok(1..)) {
                return;
            }
        }
    }

    /// The last lines that the guest has printed.
    pub fn tail(&self) -> String {
        let bytes: Vec<u8> = self.tail.iter().copied().collect();
        last_lines(&String::from_utf8_lossy(&bytes))
    }

    fn accept(&mut self) {
        while let Some(stream) = self.listener.accept() {
            if self.clients.len() < MAX_CLIENTS {
                self.admit(stream);
            } else {
                tracing::warn!("More than {MAX_CLIENTS} console clients");
            }
        }
    }

    fn admit(&mut self, stream: UnixStream) {
        match stream.set_nonblocking(true) {
            Ok(()) => self.clients.push(Client {
                stream,
                unsent: VecDeque::new(),
                typed_all: false,
            }),
            Err(error) => tracing::warn!(%error, "Cannot serve a console client"),
        }
    }
}

impl Client {
    /// Takes some of what the client has typed; `false` when there is nothing.
    fn read(&mut self, typed: &mut VecDeque<u8>) -> bool {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer) {
            Ok(0) => {
                self.typed_all = true;
                false
            }
            Ok(count) => {
                typed.extend(buffer.iter().take(count));
                true
            }
            Err(error) => error.kind() == ErrorKind::Interrupted,
        }
    }

    /// Sends what fits; `false` when the client is gone.
    fn send(&mut self) -> bool {
        while !self.unsent.is_empty() {
            match self.stream.write(self.unsent.make_contiguous()) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }
}

impl Log {
    fn open(dir: &VmDir) -> anyhow::Result<Self> {
        let path = dir.console_log();
        let file = create(&path).with_context(|| format!("Cannot create {}", path.display()))?;
        Ok(Self {
            before: dir.console_log_before(),
            path,
            file,
            size: 0,
            failed: false,
        })
    }

    /// A log that cannot be written is no reason to stop the guest; it is said once.
    fn write(&mut self, bytes: &[u8]) {
        let written = self.rotate().and_then(|()| self.file.write_all(bytes));
        match written {
            Ok(()) => self.size += bytes.len() as u64,
            Err(error) if !self.failed => {
                self.failed = true;
                tracing::error!(%error, path = %self.path.display(), "Console log is incomplete");
            }
            Err(_) => {}
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        if self.size < MAX_LOG_BYTES {
            return Ok(());
        }
        std::fs::rename(&self.path, &self.before)?;
        self.file = create(&self.path)?;
        self.size = 0;
        Ok(())
    }
}

fn create(path: &std::path::Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

fn push_bounded(queue: &mut VecDeque<u8>, bytes: &[u8], limit: usize) {
    queue.extend(bytes);
    let excess = queue.len().saturating_sub(limit);
    queue.drain(..excess);
}

/// The last lines of a console. A guest whose agent has ended panics with a long trace: the agent's own
/// words stay before it.
fn last_lines(text: &str) -> String {
    const LINES: usize = 15;
    const AGENT: &str = "minivmm-agent: ";
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let skip = lines.len().saturating_sub(LINES);
    let (before, last) = lines.split_at(skip);
    let said = before.iter().rfind(|line| line.starts_with(AGENT));
    let said = said.into_iter().flat_map(|line| [*line, "[...]"]);
    let lines: Vec<&str> = said.chain(last.iter().copied()).collect();
    lines.join("\n")
}

#[cfg(test)]
#[path = "console_tests.rs"]
mod tests;
