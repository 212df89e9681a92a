//! Getting a vCPU thread out of KVM_RUN.
//!
//! A signal alone is not enough: one that arrives just before the thread enters KVM_RUN would be
//! forgotten. So its handler sets `immediate_exit` in the vCPU's run structure, and the entry
//! returns at once.

use kvm_ioctls::VcpuFd;
use std::cell::Cell;
use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::thread::JoinHandle;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    /// The `immediate_exit` byte of the vCPU that this thread runs.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// Installs the signal handler. Once per process, before the first vCPU thread.
///
/// # Errors
/// The signal cannot be handled.
pub fn install_handler() -> io::Result<()> {
    register_signal_handler(SIGRTMIN(), on_kick).map_err(io::Error::from)
}

/// Makes kicks of the calling thread reach `vcpu`, which must outlive the thread.
pub(super) fn watch_this_thread(vcpu: &mut VcpuFd) {
    let byte = &raw mut vcpu.get_kvm_run().immediate_exit;
    IMMEDIATE_EXIT.set(byte);
}

/// Interrupts `thread`, which runs a vCPU.
pub(super) fn kick<T>(thread: &JoinHandle<T>) {
    // SAFETY: the handle proves that the thread has not been joined, so its id is valid.
    let result = unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGRTMIN()) };
    // ESRCH: the thread has ended by itself, and needs no kick.
    if result != 0 && result != libc::ESRCH {
        let error = io::Error::from_raw_os_error(result);
        tracing::error!(%error, "vCPU thread cannot be interrupted");
    }
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let byte = IMMEDIATE_EXIT.get();
    if !byte.is_null() {
        // SAFETY: the byte is in the mapped run structure of a vCPU that outlives its thread, and
        // only this thread and the kernel write to it.
        unsafe { byte.write_volatile(1) };
    }
}
