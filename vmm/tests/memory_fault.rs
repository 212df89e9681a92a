//! What a process does when memory that it has mapped is cut off its file.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use vmm::MemoryFaults;

const ROLE: &str = "MEMORY_FAULT_ROLE";
const LINE: &str = "the memory of this test is gone";
const CODE: u8 = 15;

/// Runs this program again, which touches memory that is not there: in its first thread or another.
fn fault(role: &str) -> Output {
    Command::new("/proc/self/exe")
        .args(["--exact", "other_process", "--ignored", "--nocapture"])
        .env(ROLE, role)
        .output()
        .unwrap()
}

#[test]
fn lost_memory_is_reported_once_and_ends_the_process() {
    for (role, code) in [("owner hears", 3), ("owner is busy", CODE.into())] {
        let ended = fault(role);
        let text = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.signal(), None, "{role}: {text}");
        assert_eq!(ended.status.code(), Some(code), "{role}: {text}");
        assert_eq!(text.matches(LINE).count(), 1, "{role}: {text}");
    }
}

/// Not a test: what [`fault`] runs.
#[test]
#[ignore = "started by another test, in a process of its own"]
fn other_process() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let faults = MemoryFaults::catch(LINE.to_owned(), CODE).unwrap();
    assert!(!faults.happened());
    let threads = [(); 2].map(|()| std::thread::spawn(touch_what_is_gone));
    match role.as_str() {
        "owner hears" => {
            poll(&mut [PollFd::new(&faults, PollFlags::IN)], None).unwrap();
            assert!(faults.happened());
            std::process::exit(3);
        }
        _ => threads.map(|thread| thread.join().unwrap_or_default()),
    };
}

#[expect(
    unsafe_code,
    reason = "a mapping whose file is cut short is what this is about"
)]
fn touch_what_is_gone() {
    const LENGTH: usize = 8192;
    let file = tempfile::tempfile().unwrap();
    file.set_len(LENGTH as u64).unwrap();
    // SAFETY: a new mapping, which nobody else uses.
    let mapped = unsafe {
        mmap(
            std::ptr::null_mut(),
            LENGTH,
            ProtFlags::READ,
            MapFlags::PRIVATE,
            &file,
            0,
        )
    };
    let mapped = mapped.unwrap().cast::<u8>();
    file.set_len(0).unwrap();
    // SAFETY: the mapping is there, though nothing is behind it: the handler ends the process.
    let byte = unsafe { mapped.read_volatile() };
    panic!("read {byte} of nothing");
}
