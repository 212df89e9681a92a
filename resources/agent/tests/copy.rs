//! The agent's tools, which pack and unpack files.

#![expect(
    clippy::unwrap_used,
    reason = "a test helper may panic as its test may"
)]

mod support;

use std::fs;
use std::path::Path;

use proto::guest::ExecRequest;
use support::{Agent, command};

fn tool(words: &[&str], stdin: bool) -> ExecRequest {
    let mut request = command(words);
    (request.tool, request.stdin) = (true, stdin);
    request
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn tree_goes_out_and_in_again() {
    let agent = Agent::start();
    let scratch = tempfile::tempdir().unwrap();
    let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::write(from.join("file"), vec![b'x'; 1_000_000]).unwrap();
    let packed = agent.run(&tool(&["pack", text(&from)], false), &[]);
    assert_eq!((packed.code(), packed.err()), (0, String::new()));
    let unpacked = agent.run(&tool(&["unpack", text(&to)], true), &packed.stdout);
    assert_eq!((unpacked.code(), unpacked.err()), (0, String::new()));
    assert_eq!(fs::metadata(to.join("file")).unwrap().len(), 1_000_000);
}

#[test]
fn failures_are_one_line_and_a_code() {
    let agent = Agent::start();
    let ran = agent.run(&tool(&["pack", "/no/such"], false), &[]);
    assert_eq!(ran.code(), 1);
    assert_eq!(
        ran.err(),
        "error: Cannot read /no/such: No such file or directory (os error 2)\n"
    );
    let ran = agent.run(&tool(&["unpack", "--names", "/no/such"], true), &[0; 1024]);
    assert_eq!(ran.err(), "error: There is no directory /no/such\n");
    let ran = agent.run(&tool(&["unpack", "/tmp/x"], true), b"no archive");
    assert!(
        ran.code() == 1 && ran.err().starts_with("error: Cannot read the archive"),
        "{ran:?}"
    );
    let ran = agent.run(&tool(&["rm", "/tmp/x"], false), &[]);
    assert_eq!(ran.err(), "error: The agent has no such tool\n");
}

#[test]
fn disk_that_is_full_is_named_and_nothing_half_made_is_left() {
    let agent = Agent::start();
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("file");
    fs::write(&file, vec![b'x'; 4 << 20]).unwrap();
    let packed = agent.run(&tool(&["pack", text(&file)], false), &[]);
    // A file may not become larger than that: the same as a full disk, but for its name.
    let script = format!(
        "ulimit -f 1024; exec /proc/{}/exe tool unpack /dev/shm",
        agent.pid()
    );
    let mut request = support::shell(&script);
    request.stdin = true;
    let ran = agent.run(&request, &packed.stdout);
    assert_ne!((ran.status.code, ran.status.signal), (0, 0));
    assert!(!Path::new("/dev/shm/file").exists());
    let left = fs::read_dir("/dev/shm").unwrap();
    assert!(
        !left
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().contains("minivmm-cp"))
    );
}
