//! Work that takes long, on threads of its own that report back to the loop.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, read, write};
use ttrpc::Code;

use crate::error::{Error, Refusal};
use crate::say;
use crate::server::calls::Caller;
use crate::server::connection::Answer;

/// Enough for reading sysfs, and little in a clone.
const STACK_BYTES: usize = 128 * 1024;
/// A host that starts more than that at once is told so.
const MAX_RUNNING: usize = 16;

/// The answer that a job has worked out; no caller when nobody is to get it.
pub type Done = (Option<Caller>, Answer);

/// The jobs that run.
#[derive(Debug)]
pub struct Jobs {
    running: usize,
    wake: Arc<OwnedFd>,
    report: Sender<Done>,
    reports: Receiver<Done>,
}

impl Jobs {
    /// None yet.
    pub fn new() -> Result<Self, Error> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(Error::system("create an eventfd"))?;
        let (report, reports) = channel();
        Ok(Self {
            running: 0,
            wake: Arc::new(wake),
            report,
            reports,
        })
    }

    /// Readable when a job is done.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Answers `caller` with what `job` works out.
    pub fn start(
        &mut self,
        caller: Caller,
        job: impl FnOnce() -> Answer + Send + 'static,
    ) -> Result<(), Refusal> {
        self.spawn(Some(caller), job)
    }

    /// Runs `job` for its effect; a failure is said on the console.
    pub fn start_unanswered(
        &mut self,
        job: impl FnOnce() -> Answer + Send + 'static,
    ) -> Result<(), Refusal> {
        self.spawn(None, job)
    }

    fn spawn(
        &mut self,
        caller: Option<Caller>,
        job: impl FnOnce() -> Answer + Send + 'static,
    ) -> Result<(), Refusal> {
        if self.running >= MAX_RUNNING {
            let text = format!("{MAX_RUNNING} long calls are being worked on already");
            return Err(Refusal::new(Code::RESOURCE_EXHAUSTED, text));
        }
        let (report, wake) = (self.report.clone(), Arc::clone(&self.wake));
        let body = move || {
            let answer = job();
            // Both can fail only when the loop has ended, and the agent with it.
            if report.send((caller, answer)).is_ok() {
                wake_loop(&wake);
            }
        };
        thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(body)
            .map_err(Error::system("start a thread"))?;
        self.running += 1;
        Ok(())
    }

    /// What has been worked out since the last time.
    pub fn done(&mut self) -> Result<Vec<Done>, Error> {
        match read(&self.wake, &mut [0; 8]) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(Error::system("read an eventfd")(errno)),
        }
        let done: Vec<Done> = self.reports.try_iter().collect();
        self.running = self.running.saturating_sub(done.len());
        for (caller, answer) in &done {
            if let (None, Err(refusal)) = (caller, answer) {
                say(&refusal.message);
            }
        }
        Ok(done)
    }
}

fn wake_loop(wake: &OwnedFd) {
    if let Err(errno) = write(wake, &1_u64.to_ne_bytes()) {
        say(&format!("Cannot report the end of a long call: {errno}"));
    }
}
