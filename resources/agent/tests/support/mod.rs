//! An agent on a Unix socket, and a host that talks to it.

#![allow(dead_code, reason = "each test file uses its own part of it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use proto::AgentClient;
use proto::guest::{ExecRequest, WaitResponse};
use proto::stdio::{Attach, Stream};
use tempfile::TempDir;

/// Far longer than any call takes, and short enough for a test run that hangs to be noticed.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// The program, ended when the test is over.
pub struct Agent {
    process: Child,
    socket: PathBuf,
    _directory: TempDir,
}

impl Agent {
    /// Starts the agent and waits until it says that it listens.
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent");
        let mut process = Command::new(env!("CARGO_BIN_EXE_minivmm-agent"))
            .arg("--listen")
            .arg(format!("unix:{}", socket.display()))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stderr.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(line.contains("serving on"), "{line}");
        Self {
            process,
            socket,
            _directory: directory,
        }
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).unwrap()
    }

    pub fn client(&self) -> AgentClient {
        AgentClient::new(self.connect())
    }

    /// Asks for a stream of a command; the connection and the agent's answer.
    pub fn ask_for(&self, line: &str) -> (UnixStream, String) {
        self.ask_at(".stdio", line)
    }

    /// Asks for a stream to a program of the guest's own.
    pub fn open(&self, line: &str) -> (UnixStream, String) {
        self.ask_at(".forward", line)
    }

    fn ask_at(&self, suffix: &str, line: &str) -> (UnixStream, String) {
        let mut path = self.socket.clone().into_os_string();
        path.push(suffix);
        let mut stream = UnixStream::connect(path).unwrap();
        // At once: a line that is too long is refused, and the connection closed, before its end.
        stream.write_all(format!("{line}\n").as_bytes()).unwrap();
        let mut answer = Vec::new();
        let mut byte = [0];
        while stream.read(&mut byte).unwrap() == 1 {
            if byte[0] == b'\n' {
                break;
            }
            answer.push(byte[0]);
        }
        (stream, String::from_utf8(answer).unwrap())
    }

    pub fn attach(&self, exec_id: &str, stream: Stream) -> UnixStream {
        let attach = Attach {
            exec_id: exec_id.to_owned(),
            stream,
        };
        let (connection, answer) = self.ask_for(&attach.to_string());
        assert_eq!(answer, "ok");
        connection
    }

    /// Runs a command to its end with that input.
    pub fn run(&self, request: &ExecRequest, input: &[u8]) -> Ran {
        let mut client = self.client();
        let id = client.exec(request, TIMEOUT).unwrap();
        let stdin = request.stdin.then(|| self.attach(&id, Stream::Stdin));
        let stderr = (!request.tty).then(|| self.attach(&id, Stream::Stderr));
        let stdout = self.attach(&id, Stream::Stdout);
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                if let Some(mut stdin) = stdin {
                    // The command may end without reading all of it.
                    stdin
                        .write_all(input)
                        .and_then(|()| stdin.shutdown(Shutdown::Write))
                        .ok();
                }
            });
            let stderr = scope.spawn(|| stderr.map(read_all).unwrap_or_default());
            let stdout = read_all(stdout);
            writer.join().unwrap();
            let status = client.wait(&id).unwrap();
            Ran {
                status,
                stdout,
                stderr: stderr.join().unwrap(),
            }
        })
    }

    /// Runs `sh -c script` without input.
    pub fn sh(&self, script: &str) -> Ran {
        self.run(&shell(script), &[])
    }

    /// How many descriptors the agent has open.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .unwrap()
            .count()
    }

    /// How many threads the agent has.
    pub fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.pid()))
            .unwrap()
            .count()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// What the kernel says of each process that was started by `pid`.
pub fn status_of_children(pid: u32) -> Vec<String> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = std::fs::read_to_string(path).unwrap();
    let status = |child| std::fs::read_to_string(format!("/proc/{child}/status")).ok();
    children.split_whitespace().filter_map(status).collect()
}

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub status: WaitResponse,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Ran {
    pub fn code(&self) -> i32 {
        assert_eq!(self.status.signal, 0, "{self:?}");
        self.status.code
    }

    pub fn out(&self) -> String {
        String::from_utf8(self.stdout.clone()).unwrap()
    }

    pub fn err(&self) -> String {
        String::from_utf8(self.stderr.clone()).unwrap()
    }
}

pub fn command(argv: &[&str]) -> ExecRequest {
    let argv = argv.iter().map(|&arg| arg.to_owned()).collect();
    ExecRequest {
        argv,
        ..Default::default()
    }
}

pub fn shell(script: &str) -> ExecRequest {
    command(&["sh", "-c", script])
}

pub fn read_all(mut stream: UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

/// The first line that comes, without its end.
pub fn line(stream: &UnixStream) -> String {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}
