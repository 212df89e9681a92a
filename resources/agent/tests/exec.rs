//! Running commands, over real sockets with real processes.

#![expect(
    clippy::unwrap_used,
    reason = "a test helper may panic as its test may"
)]

mod support;

use std::io::Read;
use std::thread;

use proto::CallError;
use proto::guest::{ExecRequest, SignalRequest};
use proto::stdio::Stream;
use support::{Agent, TIMEOUT, command, line, read_all, shell};
use ttrpc::Code;

fn refused(error: CallError) -> (Code, String) {
    match error {
        CallError::Refused { code, message, .. } => (code, message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn output_errors_and_code_are_told_apart() {
    let ran = Agent::start().sh("echo out; echo err >&2; exit 7");
    assert_eq!(
        (ran.code(), ran.out(), ran.err()),
        (7, "out\n".into(), "err\n".into())
    );
}

#[test]
fn signal_that_ends_the_command_is_reported() {
    let ran = Agent::start().sh("kill -TERM $$");
    assert_eq!((ran.status.code, ran.status.signal), (0, 15));
}

#[test]
fn long_output_is_complete_a_hundred_times() {
    let agent = Agent::start();
    let expected: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    for round in 0..100 {
        let ran = agent.run(&command(&["seq", "1", "200000"]), &[]);
        assert_eq!(ran.code(), 0);
        assert!(
            ran.stdout == expected.as_bytes(),
            "{} bytes in round {round}",
            ran.stdout.len()
        );
    }
}

#[test]
fn bytes_pass_unchanged_both_ways() {
    let agent = Agent::start();
    let data: Vec<u8> = (0..=u8::MAX).cycle().take(1_000_003).collect();
    let ran = agent.run(
        &ExecRequest {
            stdin: true,
            ..command(&["cat"])
        },
        &data,
    );
    assert_eq!(ran.code(), 0);
    assert!(
        ran.stdout == data,
        "{} of {} bytes",
        ran.stdout.len(),
        data.len()
    );
}

#[test]
fn closed_input_is_end_of_file() {
    let agent = Agent::start();
    let ran = agent.run(
        &ExecRequest {
            stdin: true,
            ..command(&["wc", "-c"])
        },
        b"x\n",
    );
    assert_eq!(ran.out(), "2\n");
    assert_eq!(agent.run(&command(&["wc", "-c"]), &[]).out(), "0\n");
}

#[test]
fn command_that_does_not_read_its_input_ends() {
    let agent = Agent::start();
    let input = vec![b'x'; 1 << 20];
    let ran = agent.run(
        &ExecRequest {
            stdin: true,
            ..command(&["true"])
        },
        &input,
    );
    assert_eq!(ran.code(), 0);
}

#[test]
fn background_child_that_keeps_the_pipe_does_not_hold_the_command() {
    let agent = Agent::start();
    let ran = agent.sh("sleep 1000 & echo $!; echo hi");
    let (pid, rest) = ran
        .out()
        .split_once('\n')
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap();
    assert_eq!(rest, "hi\n");
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
    agent.sh(&format!("kill {pid}"));
}

#[test]
fn nothing_runs_before_all_streams_are_attached() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let mark = directory.path().join("mark");
    let mut client = agent.client();
    let id = client
        .exec(&shell(&format!("touch {}", mark.display())), TIMEOUT)
        .unwrap();
    let _stderr = agent.attach(&id, Stream::Stderr);
    client.check(TIMEOUT).unwrap();
    assert!(!mark.exists());
    let stdout = agent.attach(&id, Stream::Stdout);
    read_all(stdout);
    assert!(mark.exists());
}

#[test]
fn command_whose_streams_are_not_attached_is_dropped() {
    let mut client = Agent::start().client();
    // The agent is gone with its guard, and so is the wait.
    let error = client.check(TIMEOUT).unwrap_err();
    assert!(matches!(error, CallError::Closed { .. }), "{error:?}");

    let agent = Agent::start();
    let mut client = agent.client();
    let id = client.exec(&shell("true"), TIMEOUT).unwrap();
    let (code, message) = refused(client.wait(&id).unwrap_err());
    assert_eq!(code, Code::DEADLINE_EXCEEDED);
    assert!(message.contains("attached"), "{message}");
}

#[test]
fn host_that_vanishes_ends_the_process_group() {
    let agent = Agent::start();
    let mut client = agent.client();
    let id = client
        .exec(&shell("echo $$; sleep 1000; echo never"), TIMEOUT)
        .unwrap();
    let stderr = agent.attach(&id, Stream::Stderr);
    let stdout = agent.attach(&id, Stream::Stdout);
    line(&stdout);
    drop((stdout, stderr));
    let status = client.wait(&id).unwrap();
    assert_eq!(status.signal, 1, "{status:?}");
}

#[test]
fn process_that_ignores_the_hangup_is_killed() {
    let agent = Agent::start();
    let mut client = agent.client();
    let script = "trap '' HUP; echo ready; while :; do sleep 1000; done";
    let id = client.exec(&shell(script), TIMEOUT).unwrap();
    let stderr = agent.attach(&id, Stream::Stderr);
    let stdout = agent.attach(&id, Stream::Stdout);
    assert_eq!(line(&stdout), "ready");
    drop((stdout, stderr));
    assert_eq!(client.wait(&id).unwrap().signal, 9);
}

#[test]
fn reader_that_leaves_early_ends_an_endless_writer() {
    let agent = Agent::start();
    let mut client = agent.client();
    let id = client.exec(&command(&["yes"]), TIMEOUT).unwrap();
    let _stderr = agent.attach(&id, Stream::Stderr);
    let mut stdout = agent.attach(&id, Stream::Stdout);
    stdout.read_exact(&mut [0; 100_000]).unwrap();
    drop(stdout);
    assert_eq!(client.wait(&id).unwrap().signal, 13);
}

#[test]
fn endless_writer_does_not_keep_others_waiting() {
    let agent = Agent::start();
    let mut client = agent.client();
    let id = client.exec(&command(&["yes"]), TIMEOUT).unwrap();
    let _stderr = agent.attach(&id, Stream::Stderr);
    let mut stdout = agent.attach(&id, Stream::Stdout);
    let reader = thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()).unwrap());
    assert_eq!(agent.sh("echo hi").out(), "hi\n");
    client
        .signal(
            &SignalRequest {
                exec_id: id.clone(),
                signal: 9,
                ..Default::default()
            },
            TIMEOUT,
        )
        .unwrap();
    assert_eq!(client.wait(&id).unwrap().signal, 9);
    assert!(reader.join().unwrap() > 0);
}

#[test]
fn commands_that_cannot_run_are_refused_at_once() {
    let agent = Agent::start();
    let mut client = agent.client();
    let mut refusal = |request: &ExecRequest| refused(client.exec(request, TIMEOUT).unwrap_err());
    let (code, message) = refusal(&command(&["no-such-command"]));
    assert_eq!(code, Code::NOT_FOUND);
    assert!(
        message.starts_with("no-such-command: command not found in PATH="),
        "{message}"
    );
    assert_eq!(
        refusal(&command(&["/etc/passwd"])).0,
        Code::PERMISSION_DENIED
    );
    assert_eq!(refusal(&command(&[])).0, Code::INVALID_ARGUMENT);
    let request = ExecRequest {
        cwd: "/no/such".into(),
        ..command(&["true"])
    };
    assert_eq!(refusal(&request).0, Code::INVALID_ARGUMENT);
}

#[test]
fn file_that_the_user_may_not_execute_ends_with_126_and_why() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("private");
    std::fs::write(&path, "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let request = ExecRequest {
        user: "65534".into(),
        ..command(&[path.to_str().unwrap()])
    };
    let ran = Agent::start().run(&request, &[]);
    assert_eq!(ran.code(), 126);
    assert!(ran.err().contains(path.to_str().unwrap()), "{}", ran.err());
}

#[test]
fn script_without_its_interpreter_ends_with_127_and_why() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("script");
    std::fs::write(&path, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let ran = Agent::start().run(&command(&[path.to_str().unwrap()]), &[]);
    assert_eq!(ran.code(), 127);
    assert!(ran.err().contains("interpreter"), "{}", ran.err());
}

#[test]
fn environment_and_directory_are_the_requested_ones() {
    let request = ExecRequest {
        env: vec!["A=1".into(), "B=x=y".into(), "A=2".into()],
        cwd: "/usr".into(),
        ..shell("echo $A $B; pwd")
    };
    assert_eq!(Agent::start().run(&request, &[]).out(), "2 x=y\n/usr\n");
}

#[test]
fn user_and_groups_are_the_requested_ones() {
    let request = ExecRequest {
        user: "65534:7".into(),
        ..shell("id -u; id -g; id -G")
    };
    assert_eq!(Agent::start().run(&request, &[]).out(), "65534\n7\n7\n");
}

#[test]
fn command_gets_no_descriptor_of_the_agents() {
    let script = "ls /proc/self/fd";
    // What the test itself passes on to its children.
    let without_agent = std::process::Command::new("sh")
        .args(["-c", script])
        .output()
        .unwrap();
    let agent = Agent::start();
    let _open = agent.client();
    assert_eq!(
        agent.sh(script).out(),
        String::from_utf8(without_agent.stdout).unwrap()
    );
}

#[test]
fn command_has_every_signal_unblocked_and_by_default() {
    // The upper half are real-time signals, which belong to the C library.
    const STANDARD: u64 = 0x7fff_ffff;
    let ran = Agent::start().sh("grep -E '^Sig(Blk|Ign)' /proc/self/status");
    let out = ran.out();
    let masks: Vec<u64> = out
        .lines()
        .map(|line| u64::from_str_radix(line.split('\t').nth(1).unwrap(), 16).unwrap())
        .collect();
    let [blocked, ignored] = masks.as_slice() else {
        panic!("{out}");
    };
    assert_eq!((*blocked, ignored & STANDARD), (0, 0), "{out}");
}

#[test]
fn command_leads_a_session_of_its_own() {
    let ran = Agent::start().sh("ps -o pid=,pgid=,sid= -p $$");
    let numbers: Vec<_> = ran
        .out()
        .split_ascii_whitespace()
        .map(str::to_owned)
        .collect();
    assert_eq!(numbers.len(), 3);
    assert!(
        numbers.iter().all(|number| *number == numbers[0]),
        "{numbers:?}"
    );
}

#[test]
fn many_commands_at_once_get_their_own_output() {
    let agent = Agent::start();
    thread::scope(|scope| {
        for number in 0..64 {
            let agent = &agent;
            scope.spawn(move || {
                let ran = agent.sh(&format!("sleep 0.1; echo {number}; exit {number}"));
                assert_eq!((ran.code(), ran.out()), (number, format!("{number}\n")));
            });
        }
    });
}

#[test]
fn commands_leave_no_descriptor_and_no_thread_behind() {
    let agent = Agent::start();
    agent.sh("true");
    // The connections of that run are closed by us; a new call comes after the agent saw it.
    agent.client().check(TIMEOUT).unwrap();
    let before = agent.open_files();
    for _ in 0..200 {
        agent.sh("true");
    }
    agent.client().check(TIMEOUT).unwrap();
    let after = agent.open_files();
    assert!(
        after <= before + 1,
        "{before} descriptors before, {after} after"
    );
    assert_eq!(agent.threads(), 1);
}

#[test]
fn wrong_stream_lines_are_refused_with_the_reason() {
    let agent = Agent::start();
    let refusal = |line: &str| agent.ask_for(line).1;
    assert!(
        refusal("nonsense").starts_with("error expected"),
        "{}",
        refusal("nonsense")
    );
    assert_eq!(refusal("99 stdout"), "error No command \"99\"");
    let id = agent.client().exec(&shell("true"), TIMEOUT).unwrap();
    assert_eq!(
        refusal(&format!("{id} stdin")),
        format!("error command {id} has no stdin")
    );
    let _stdout = agent.attach(&id, Stream::Stdout);
    assert!(refusal(&format!("{id} stdout")).contains("attached already"));
    assert!(refusal(&"x".repeat(300)).contains("longer than"));
}

#[test]
fn calls_on_unknown_or_ended_commands_are_refused() {
    let agent = Agent::start();
    let mut client = agent.client();
    let signal = |exec_id: &str, signal| SignalRequest {
        exec_id: exec_id.to_owned(),
        signal,
        ..Default::default()
    };
    for exec_id in ["", "x", "7"] {
        assert_eq!(
            refused(client.wait(exec_id).unwrap_err()).0,
            Code::NOT_FOUND
        );
        let error = client.signal(&signal(exec_id, 15), TIMEOUT).unwrap_err();
        assert_eq!(refused(error).0, Code::NOT_FOUND);
    }
    let id = client.exec(&shell("true"), TIMEOUT).unwrap();
    let error = client.signal(&signal(&id, 99), TIMEOUT).unwrap_err();
    assert_eq!(refused(error).0, Code::INVALID_ARGUMENT);
    client.signal(&signal(&id, 15), TIMEOUT).unwrap();
    let error = client.signal(&signal(&id, 15), TIMEOUT).unwrap_err();
    assert_eq!(refused(error).0, Code::FAILED_PRECONDITION);
    assert_eq!(client.wait(&id).unwrap().signal, 15);
    assert_eq!(refused(client.wait(&id).unwrap_err()).0, Code::NOT_FOUND);
}

#[test]
fn status_is_kept_for_a_wait_that_comes_late() {
    let agent = Agent::start();
    let id = agent.client().exec(&shell("exit 3"), TIMEOUT).unwrap();
    let stderr = agent.attach(&id, Stream::Stderr);
    read_all(agent.attach(&id, Stream::Stdout));
    read_all(stderr);
    assert_eq!(agent.client().wait(&id).unwrap().code, 3);
}

#[test]
fn detached_command_prints_into_its_log_and_is_waited_for() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("logs/log");
    let mut request = shell("echo out; echo err >&2; cat; exit 3");
    request.detach = true;
    request.log = log.to_str().unwrap().to_owned();
    let mut client = agent.client();
    let id = client.exec(&request, TIMEOUT).unwrap();
    assert_eq!(client.wait(&id).unwrap().code, 3);
    assert_eq!(std::fs::read_to_string(log).unwrap(), "out\nerr\n");
    assert_eq!(
        agent.ask_for(&format!("{id} stdout")).1.split(' ').next(),
        Some("error")
    );
}

#[test]
fn detached_command_outlives_the_connection_and_can_be_signalled() {
    let agent = Agent::start();
    let mut request = shell("trap 'exit 5' USR1; while :; do sleep 0.05; done");
    request.detach = true;
    let id = agent.client().exec(&request, TIMEOUT).unwrap();
    let signal = SignalRequest {
        exec_id: id.clone(),
        signal: 10,
        ..Default::default()
    };
    let mut client = agent.client();
    // Before the trap is set the signal would end it.
    let trapped = || {
        let status = support::status_of_children(agent.pid());
        status.iter().any(|status| catches_usr1(status))
    };
    while !trapped() {
        thread::yield_now();
    }
    client.signal(&signal, TIMEOUT).unwrap();
    assert_eq!(client.wait(&id).unwrap().code, 5);
}

#[test]
fn detached_command_that_cannot_be_started_is_refused() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut request = command(&[script.to_str().unwrap()]);
    request.detach = true;
    let (code, message) = refused(agent.client().exec(&request, TIMEOUT).unwrap_err());
    assert_eq!(code, Code::NOT_FOUND);
    assert!(message.contains("interpreter"), "{message}");
}

/// Whether the process of this /proc/PID/status catches SIGUSR1.
fn catches_usr1(status: &str) -> bool {
    let caught = status
        .lines()
        .find_map(|line| line.strip_prefix("SigCgt:\t"));
    caught.is_some_and(|mask| u64::from_str_radix(mask, 16).unwrap() & (1 << 9) != 0)
}
