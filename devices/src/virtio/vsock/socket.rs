//! Writing to host sockets: never blocks, never raises SIGPIPE.

use rustix::net::{SendFlags, send};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use vm_memory::VolatileSlice;

/// Writes what fits of `bytes`; the error kind is `WouldBlock` when nothing does.
pub(super) fn send_bytes(socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    Ok(send(
        socket,
        bytes,
        SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
    )?)
}

/// Writes what fits of a buffer that the guest may be changing at the same time.
pub(super) fn send_volatile(socket: impl AsFd, data: &VolatileSlice<'_>) -> io::Result<usize> {
    let guard = data.ptr_guard();
    // SAFETY: the guard keeps `data.len()` bytes at its address mapped, and only the kernel reads
    // them, so it does not matter that the guest can write to them meanwhile.
    let sent = unsafe {
        libc::send(
            socket.as_fd().as_raw_fd(),
            guard.as_ptr().cast(),
            data.len(),
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}
