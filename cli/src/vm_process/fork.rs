//! Forks a VM process, and makes it independent of the command that started it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::Mode;
use rustix::process::{Pid, WaitOptions, waitpid};

/// Forks and runs `child` in the new process, which ends with the code that `child` returns.
///
/// Has to be called before this process has started a thread.
///
/// # Errors
/// What fork(2) reported.
#[expect(unsafe_code, reason = "there is no safe fork")]
pub fn fork(child: impl FnOnce() -> u8) -> io::Result<Pid> {
    // SAFETY: this process has one thread, so that no lock is held by a thread that the new
    // process does not have.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            share_one_heap();
            std::process::exit(child().into())
        }
        pid => Pid::from_raw(pid).ok_or_else(|| io::Error::other("fork returned a bad pid")),
    }
}

/// Keeps the C library from making a heap for each thread: four system calls and two pages of private memory for
/// threads that hardly ever allocate.
#[expect(unsafe_code, reason = "an option of the C library's allocator")]
fn share_one_heap() {
    // SAFETY: the option changes no memory, and this process has one thread yet.
    let accepted = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    debug_assert_eq!(accepted, 1, "malloc takes no options");
}

/// As [`fork`], for a process that this one does not have to wait for.
///
/// # Errors
/// What fork(2) reported.
pub fn fork_orphan(child: impl FnOnce() -> u8) -> io::Result<()> {
    let between = fork(|| fork(child).map_or(1, |_| 0))?;
    match waitpid(Some(between), WaitOptions::empty())? {
        Some((_, status)) if status.exit_status() == Some(0) => Ok(()),
        _ => Err(io::Error::other("the second fork failed")),
    }
}

/// Leaves the terminal, the working directory and the descriptors of the command behind. Standard
/// error is kept for the time being, and so is `keep`.
///
/// # Errors
/// A system call failed.
pub fn leave_command(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    rustix::process::setsid()?;
    rustix::process::chdir("/")?;
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    drop(null);
    close_all_but(keep)
}

/// Sends standard error to `log` from now on.
///
/// # Errors
/// The file cannot be made.
pub fn log_to(log: &Path) -> io::Result<()> {
    let file: File = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(log)?;
    Ok(rustix::stdio::dup2_stderr(&file)?)
}

/// Closes every descriptor above standard error that is not in `keep`, also those that whoever
/// started the command had open: a VM must not hold a stranger's pipe or lock for its life.
fn close_all_but(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    kept.sort_unstable();
    let mut first = libc::STDERR_FILENO + 1;
    for fd in kept {
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = first.max(fd + 1);
    }
    close_range(first, RawFd::MAX)
}

#[expect(
    unsafe_code,
    reason = "descriptors of unknown owners cannot be closed safely"
)]
fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    // SAFETY: the objects of the command that own these descriptors are never used nor dropped in
    // this process: it ends with exit(), and works only with what it was given in `keep`.
    let result = unsafe { libc::close_range(first.cast_unsigned(), last.cast_unsigned(), 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
