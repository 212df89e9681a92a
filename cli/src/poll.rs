//! poll(2) with deadlines.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Waits until one of `fds` is ready or `deadline` has passed. Returns the number of ready ones.
/// A signal does not end the wait.
///
/// # Errors
/// What poll(2) reported.
pub fn wait(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<usize> {
    loop {
        let timeout = deadline.map(|deadline| timespec(until(deadline)));
        match poll(fds, timeout.as_ref()) {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

/// Waits until `fd` is readable or at its end; `false` when `deadline` passes first.
///
/// # Errors
/// What poll(2) reported.
pub fn readable(fd: &impl AsFd, deadline: Option<Instant>) -> io::Result<bool> {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    Ok(wait(&mut fds, deadline)? > 0)
}

/// Whether the other side of a socket has closed it. One that only ended its sending half may
/// still read.
pub fn has_hung_up(stream: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    let polled = wait(&mut fds, Some(Instant::now()));
    let [fd] = fds;
    polled.is_err() || fd.revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

/// The time left until `deadline`.
pub fn until(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// The earlier of two deadlines, where `None` is never.
pub fn earlier(first: Option<Instant>, second: Option<Instant>) -> Option<Instant> {
    match (first, second) {
        (Some(first), Some(second)) => Some(first.min(second)),
        (first, second) => first.or(second),
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
