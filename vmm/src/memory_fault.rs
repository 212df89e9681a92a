//! Guest memory that cannot be reached any more: its file was cut short, its disk is full, or the
//! host's own memory is broken.
//!
//! A vCPU that touches it ends with [`ExitReason::MemoryLost`](crate::ExitReason). Everybody else in
//! this process gets SIGBUS, in the middle of whatever it does, perhaps with a lock held. Nothing can
//! be put right from there: the handler says in one line what happened, wakes the owner of the
//! machine, and holds the thread while the owner writes down how the machine ended. The owner must
//! not wait for other threads any more, so it must not drop the machine either.

use rustix::process::getpid;
use rustix::thread::gettid;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::register_signal_handler;

/// How long the owner may take to end in order; it may be waiting for the thread that is held.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What the handler works with. It is set once, before the handler can run.
static CAUGHT: OnceLock<Caught> = OnceLock::new();

#[derive(Debug)]
struct Caught {
    line: String,
    exit_code: i32,
    wake: EventFd,
    happened: AtomicBool,
}

/// Tells whether SIGBUS has come. Readable once it has.
#[derive(Debug, Clone, Copy)]
pub struct MemoryFaults(&'static Caught);

impl MemoryFaults {
    /// Catches SIGBUS from now on, for as long as the process lives. The handler prints `line` on
    /// standard error, and ends the process with `exit_code` when the owner does not. A second call
    /// changes neither.
    ///
    /// # Errors
    /// No descriptors left, or the signal cannot be handled.
    pub fn catch(line: String, exit_code: u8) -> io::Result<Self> {
        let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let caught = CAUGHT.get_or_init(|| Caught {
            line: format!("{line}\n"),
            exit_code: exit_code.into(),
            wake,
            happened: AtomicBool::new(false),
        });
        register_signal_handler(libc::SIGBUS, on_fault).map_err(io::Error::from)?;
        Ok(Self(caught))
    }

    /// Whether it has come.
    #[must_use]
    pub fn happened(&self) -> bool {
        self.0.happened.load(Ordering::Acquire)
    }
}

impl AsFd for MemoryFaults {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to a static, which is never closed.
        unsafe { BorrowedFd::borrow_raw(self.0.wake.as_raw_fd()) }
    }
}

/// Only what may be done in a signal handler: system calls and atomics.
extern "C" fn on_fault(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let Some(caught) = CAUGHT.get() else {
        return;
    };
    if !caught.happened.swap(true, Ordering::AcqRel) {
        // There is nobody to tell that the log cannot be written.
        rustix::io::write(rustix::stdio::stderr(), caught.line.as_bytes()).unwrap_or_default();
        caught.wake.write(1).unwrap_or_default();
    }
    // The owner itself cannot be waited for.
    if gettid() != getpid() {
        std::thread::sleep(LAST_WORDS);
    }
    // SAFETY: ends the process without running anything else in it.
    unsafe { libc::_exit(caught.exit_code) };
}
