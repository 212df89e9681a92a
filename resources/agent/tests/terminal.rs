//! Commands on a terminal.

#![expect(
    clippy::unwrap_used,
    reason = "a test helper may panic as its test may"
)]

mod support;

use std::io::{BufRead, BufReader, Write};

use proto::guest::{ExecRequest, ResizeRequest};
use proto::stdio::Stream;
use support::{Agent, TIMEOUT, command, line, shell};

#[test]
fn terminal_has_a_size_that_can_be_changed() {
    let agent = Agent::start();
    let mut client = agent.client();
    let request = ExecRequest {
        tty: true,
        rows: 24,
        cols: 80,
        stdin: true,
        ..shell("tty; stty size; read x; stty size")
    };
    let id = client.exec(&request, TIMEOUT).unwrap();
    let mut stdin = agent.attach(&id, Stream::Stdin);
    let stdout = agent.attach(&id, Stream::Stdout);
    let mut lines = BufReader::new(&stdout).lines().map(Result::unwrap);
    assert!(lines.next().unwrap().starts_with("/dev/pts/"));
    assert_eq!(lines.next().unwrap(), "24 80");
    let resize = ResizeRequest {
        exec_id: id.clone(),
        rows: 50,
        cols: 132,
        ..Default::default()
    };
    client.resize(&resize, TIMEOUT).unwrap();
    stdin.write_all(b"go\n").unwrap();
    assert_eq!(lines.next().unwrap(), "go");
    assert_eq!(lines.next().unwrap(), "50 132");
    assert_eq!(client.wait(&id).unwrap().code, 0);
}

#[test]
fn end_of_input_ends_a_reader_on_a_terminal() {
    let request = ExecRequest {
        tty: true,
        stdin: true,
        ..command(&["cat"])
    };
    let ran = Agent::start().run(&request, b"x\n");
    assert_eq!((ran.code(), ran.out()), (0, "x\r\nx\r\n".into()));
}

#[test]
fn long_output_on_a_terminal_is_complete() {
    let agent = Agent::start();
    let expected: String = (1..=20_000).map(|number| format!("{number}\r\n")).collect();
    for _ in 0..20 {
        let ran = agent.run(
            &ExecRequest {
                tty: true,
                ..command(&["seq", "20000"])
            },
            &[],
        );
        assert!(
            ran.stdout == expected.as_bytes(),
            "{} bytes",
            ran.stdout.len()
        );
    }
}

#[test]
fn background_child_that_keeps_the_terminal_does_not_hold_the_command() {
    let agent = Agent::start();
    let script = "trap '' HUP; sleep 1000 & echo $!; echo hi";
    let ran = agent.run(
        &ExecRequest {
            tty: true,
            ..shell(script)
        },
        &[],
    );
    let out = ran.out();
    let (pid, rest) = out.split_once("\r\n").unwrap();
    assert_eq!(rest, "hi\r\n");
    agent.sh(&format!("kill {pid}"));
}

#[test]
fn vanished_terminal_hangs_up_on_its_foreground_group() {
    let agent = Agent::start();
    let mut client = agent.client();
    let request = ExecRequest {
        tty: true,
        ..shell("echo ready; sleep 1000")
    };
    let id = client.exec(&request, TIMEOUT).unwrap();
    let stdout = agent.attach(&id, Stream::Stdout);
    assert_eq!(line(&stdout), "ready");
    drop(stdout);
    assert_eq!(client.wait(&id).unwrap().signal, 1);
}
