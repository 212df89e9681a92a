//! A process of a peer, with a directory of its own for its sockets.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use minivmm_tests::hybrid::HostPort;
use minivmm_tests::{LIMIT, scratch};
use proto::READY_PORT;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Ready, reply};

/// The socket of a VM whose vsock ports are reached as Firecracker's are.
pub const VSOCK: &str = "vsock";

/// Between `bind` and `listen` of a program there is nothing to wait for.
const BIND_TO_LISTEN: Duration = Duration::from_micros(100);

/// A process that runs. It is killed when this is dropped, and its directory removed.
#[derive(Debug)]
pub struct Program {
    child: Child,
    directory: PathBuf,
    begun: Instant,
}

impl Program {
    /// Starts a program in a directory of its own; `command` is told which. What it prints goes nowhere, but for
    /// its errors.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(
        path: &Path,
        prepare: impl FnOnce(&Path, &mut Command) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let directory = scratch::directory();
        let mut command = Command::new(path);
        command
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        prepare(&directory, &mut command)?;
        let begun = Instant::now();
        let child = command
            .spawn()
            .with_context(|| format!("Cannot start {}", path.display()))?;
        Ok(Self {
            child,
            directory,
            begun,
        })
    }

    /// Boots a VM whose vsock ports are at the socket [`VSOCK`] of its directory, and waits for its agent's answer.
    /// `command` is told the directory and the socket.
    ///
    /// # Errors
    /// It cannot be started, or does not answer.
    pub fn boot(
        path: &Path,
        prepare: impl FnOnce(&Path, &Path, &mut Command) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let mut ready = None;
        let program = Self::start(path, |directory, command| {
            let vsock = directory.join(VSOCK);
            ready = Some(HostPort::listen(&vsock, READY_PORT));
            prepare(directory, &vsock, command)
        })?;
        // The agent connects once it is ready.
        ready.map_or(Ok(()), |port| program.until_readable(port))?;
        reply::over_socket(&program.file(VSOCK))?;
        Ok(program)
    }

    /// The process id.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// A file of its directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Waits until it listens at a socket of its directory, and connects.
    ///
    /// # Errors
    /// It ended, or does not listen in time.
    pub fn connect(&self, socket: &str) -> anyhow::Result<UnixStream> {
        let path = self.file(socket);
        let created = inotify::init(CreateFlags::CLOEXEC)?;
        inotify::add_watch(&created, &self.directory, WatchFlags::CREATE)?;
        loop {
            match UnixStream::connect(&path) {
                Ok(stream) => return Ok(stream),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    std::thread::sleep(BIND_TO_LISTEN);
                    continue;
                }
                Err(error) => return Err(error).context(path.display().to_string()),
            }
            self.until_readable(&created)
                .with_context(|| format!("There is no {}", path.display()))?;
            let mut buffer = [std::mem::MaybeUninit::uninit(); 512];
            inotify::Reader::new(&created, &mut buffer).next()?;
        }
    }

    /// Waits until there is something to read.
    ///
    /// # Errors
    /// The program ended, or nothing came in time.
    pub fn until_readable(&self, stream: impl AsFd) -> anyhow::Result<()> {
        let process = pidfd_open(self.pid(), PidfdFlags::empty())?;
        let limit = Timespec::try_from(LIMIT)?;
        let mut events = [
            PollFd::new(&stream, PollFlags::IN),
            PollFd::new(&process, PollFlags::IN),
        ];
        if poll(&mut events, Some(&limit))? == 0 {
            bail!("Nothing came in {LIMIT:?}");
        }
        if events[0].revents().is_empty() {
            bail!("The program has ended");
        }
        Ok(())
    }

    /// It is a VM whose guest has answered now.
    pub fn ready(self) -> Ready<'static> {
        let took = self.begun.elapsed();
        Ready::new(took, self.pid(), move || drop(self))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // One that has ended already is no error.
        self.child.kill().unwrap_or_default();
        self.child.wait().map(drop).unwrap_or_default();
        std::fs::remove_dir_all(&self.directory).unwrap_or_default();
    }
}
