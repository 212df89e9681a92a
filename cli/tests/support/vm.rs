//! A VM directory as a VM process would keep it, without a machine: its lock, its record, and a
//! thread that answers on its control socket.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver};

use serde_json::{Value, json};

use super::Sandbox;

pub struct FakeVm {
    dir: PathBuf,
    lock: Option<File>,
    requests: Receiver<Value>,
}

impl FakeVm {
    /// A VM of that id which runs in this process and answers each request with `answer`; without
    /// an answer the connection is closed.
    pub fn start(sandbox: &Sandbox, id: &str, answer: fn(&Value) -> Option<Value>) -> Self {
        let dir = sandbox.state().join("vms").join(id);
        std::fs::create_dir_all(&dir).unwrap();
        let lock = File::create(dir.join("lock")).unwrap();
        lock.try_lock().unwrap();
        let listener = UnixListener::bind(dir.join("ctl.sock")).unwrap();
        let (sender, requests) = mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                let request: Value = serde_json::from_str(&line).unwrap();
                let reply = answer(&request);
                let listens = sender.send(request).is_ok();
                if let Some(reply) = reply.filter(|_| listens) {
                    writeln!(stream, "{reply}").unwrap();
                }
            }
        });
        let vm = Self {
            dir,
            lock: Some(lock),
            requests,
        };
        // No process has this number: pids end at 4194304.
        vm.write_record(id, "running", &json!(null), 99_999_999);
        vm
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn write_record(&self, id: &str, state: &str, end: &Value, pid: u32) {
        let record = json!({
            "version": 1, "id": id, "kind": "clone", "template": "base", "pid": pid,
            "cid": 77, "cpus": 2, "memory_bytes": 268_435_456, "created_ms": 0,
            "vsock": self.dir.join("vsock.sock"), "state": state, "end": end,
        });
        std::fs::write(self.dir.join("vm.json"), record.to_string()).unwrap();
    }

    /// Releases the lock, as the end of the process does. To close it would not do: a program that another
    /// test is starting has it too, from fork to exec.
    pub fn die(&mut self) {
        if let Some(lock) = self.lock.take() {
            lock.unlock().unwrap();
        }
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<String> {
        let request = |value: Value| value["request"].as_str().unwrap().to_owned();
        self.requests.try_iter().map(request).collect()
    }
}

/// Answers as a VM that does what it is told.
pub fn obedient(request: &Value) -> Option<Value> {
    Some(match request["request"].as_str().unwrap() {
        "status" => json!({"reply": "status", "state": "running"}),
        "pause" | "resume" => json!({"reply": "done"}),
        _ => json!({"reply": "ended", "end": panicked()}),
    })
}

pub fn panicked() -> Value {
    json!({"reason": "panic", "code": 12, "message": "guest kernel panicked", "ended_ms": 5})
}
