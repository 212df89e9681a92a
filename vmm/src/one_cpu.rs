//! Beginning what has to wait, on a host with one CPU.
//!
//! A new thread or process runs there when its maker sleeps, or has used up its time. Whatever it waits for is asked
//! for that much later. With more CPUs it runs at once, beside its maker.

use std::io;
use vmm_sys_util::syscall::SyscallReturnCode;

/// With one CPU, waits for a sign of somebody who was just made, and lets them go on after it until they sleep. With
/// more nobody is waited for.
pub fn let_begin(wait: impl FnOnce()) {
    if has_one_cpu() {
        wait_politely(wait);
    }
}

/// Whether this thread has one CPU only.
fn has_one_cpu() -> bool {
    rustix::thread::sched_getaffinity(None).is_ok_and(|cpus| cpus.count() == 1)
}

/// Waits, and takes the CPU from nobody when it is over.
///
/// As a rule a thread that is woken takes the CPU from who wakes it. One of the batch class does not
/// (sched(7)), so this thread is of that class meanwhile.
fn wait_politely<T>(wait: impl FnOnce() -> T) -> T {
    let changed = policy() == Some(libc::SCHED_OTHER) && set_policy(libc::SCHED_BATCH).is_ok();
    let sign = wait();
    if changed && let Err(error) = set_policy(libc::SCHED_OTHER) {
        tracing::debug!(%error, "This thread stays of the batch class");
    }
    sign
}

fn policy() -> Option<libc::c_int> {
    // SAFETY: the call reads a number about the calling thread.
    let policy = unsafe { libc::sched_getscheduler(0) };
    (policy >= 0).then_some(policy)
}

fn set_policy(policy: libc::c_int) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the call reads the parameters, which outlive it, and changes how the calling thread is scheduled.
    let result = unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
    SyscallReturnCode(result).into_empty_result()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_is_another_only_while_it_waits() {
        let before = policy();
        let meanwhile = wait_politely(policy);
        assert_eq!(meanwhile, Some(libc::SCHED_BATCH));
        assert_eq!(policy(), before);
    }

    #[test]
    fn a_thread_that_is_bound_to_a_cpu_has_one() {
        std::thread::spawn(|| {
            let cpus = rustix::thread::sched_getaffinity(None).unwrap();
            let first = (0..).find(|&cpu| cpus.is_set(cpu)).unwrap();
            let mut one = rustix::thread::CpuSet::new();
            one.set(first);
            rustix::thread::sched_setaffinity(None, &one).unwrap();
            assert!(has_one_cpu());
        })
        .join()
        .unwrap();
    }
}
