//! A guest's agent without a guest: serves a VM's vsock socket, and runs commands on this host.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};

use proto::frame::Frame;
use proto::guest::{ExecRequest, SignalRequest, WaitRequest, WaitResponse};
use protobuf::Message;
use ttrpc::{Code, Request, Response};

#[derive(Default)]
struct Commands {
    waiting: HashMap<String, (ExecRequest, HashMap<String, UnixStream>)>,
    running: HashMap<String, u32>,
    ended: HashMap<String, WaitResponse>,
}

#[derive(Clone, Default)]
struct Agent {
    commands: Arc<Mutex<Commands>>,
    changed: Arc<Condvar>,
}

/// Serves `vsock.sock` in `dir` for as long as the test runs.
pub fn serve(dir: &Path) {
    let listener = UnixListener::bind(dir.join("vsock.sock")).unwrap();
    let agent = Agent::default();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (agent, stream) = (agent.clone(), stream.unwrap());
            std::thread::spawn(move || agent.connection(stream));
        }
    });
}

fn read_line(mut stream: &UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\n") && stream.read(&mut byte).unwrap() == 1 {
        line.extend(byte);
    }
    String::from_utf8(line).unwrap().trim_end().to_owned()
}

impl Agent {
    fn connection(&self, mut stream: UnixStream) {
        let port = read_line(&stream);
        writeln!(stream, "OK 1073741824").unwrap();
        match port.as_str() {
            "CONNECT 1024" => self.calls(&stream),
            "CONNECT 1025" => self.attach(stream),
            "CONNECT 1026" => forward(stream),
            other => panic!("unexpected {other:?}"),
        }
    }

    fn calls(&self, stream: &UnixStream) {
        while let Ok(Some(frame)) = Frame::read(&mut &*stream) {
            let request = Request::parse_from_bytes(&frame.payload).unwrap();
            let mut response = Response::new();
            match self.answer(&request) {
                Ok(payload) => response.payload = payload,
                Err((code, message)) => {
                    let status = response.mut_status();
                    status.set_code(code);
                    message.clone_into(&mut status.message);
                }
            }
            let answer = Frame {
                stream_id: frame.stream_id,
                kind: ttrpc::proto::MESSAGE_TYPE_RESPONSE,
                payload: response.write_to_bytes().unwrap(),
            };
            if answer.write(&mut &*stream).is_err() {
                return;
            }
        }
    }

    fn answer(&self, request: &Request) -> Result<Vec<u8>, (Code, &'static str)> {
        match request.method.as_str() {
            "Exec" => {
                let exec = ExecRequest::parse_from_bytes(&request.payload).unwrap();
                match exec.argv[0].as_str() {
                    "missing" => return Err((Code::NOT_FOUND, "no such command")),
                    "/etc/passwd" => return Err((Code::PERMISSION_DENIED, "not executable")),
                    _ => {}
                }
                let mut commands = self.commands.lock().unwrap();
                let id = format!("c{}", commands.waiting.len());
                let detached = exec.detach;
                if exec.detach {
                    assert!(start(&exec, &HashMap::new()).wait().unwrap().success());
                }
                commands.waiting.insert(id.clone(), (exec, HashMap::new()));
                let mut response = proto::guest::ExecResponse::new();
                response.exec_id = id;
                response.detached = detached;
                Ok(response.write_to_bytes().unwrap())
            }
            "Wait" => {
                let id = WaitRequest::parse_from_bytes(&request.payload)
                    .unwrap()
                    .exec_id;
                let mut commands = self.commands.lock().unwrap();
                while !commands.ended.contains_key(&id) {
                    commands = self.changed.wait(commands).unwrap();
                }
                Ok(commands.ended[&id].write_to_bytes().unwrap())
            }
            "Signal" => {
                let asked = SignalRequest::parse_from_bytes(&request.payload).unwrap();
                let pid = self.commands.lock().unwrap().running[&asked.exec_id];
                let kill = format!("kill -{} {pid}", asked.signal);
                assert!(
                    Command::new("sh")
                        .args(["-c", &kill])
                        .status()
                        .unwrap()
                        .success()
                );
                Ok(Vec::new())
            }
            _ => Err((Code::UNIMPLEMENTED, "unknown")),
        }
    }

    fn attach(&self, mut stream: UnixStream) {
        let line = read_line(&stream);
        let (id, name) = line.split_once(' ').unwrap();
        let mut commands = self.commands.lock().unwrap();
        let (exec, streams) = commands.waiting.get_mut(id).unwrap();
        stream.write_all(b"ok\n").unwrap();
        streams.insert(name.to_owned(), stream);
        if streams.len() == 2 + usize::from(exec.stdin) {
            let (exec, streams) = (exec.clone(), std::mem::take(streams));
            if exec.tool {
                drop(commands);
                return self.ended(id, run_tool(&exec, streams));
            }
            let child = start(&exec, &streams);
            commands.running.insert(id.to_owned(), child.id());
            drop(commands);
            self.wait_for(id, child);
        }
    }

    fn wait_for(&self, id: &str, mut child: Child) {
        let status = child.wait().unwrap();
        let end = WaitResponse {
            code: status.code().unwrap_or_default(),
            signal: status.signal().unwrap_or_default(),
            ..Default::default()
        };
        self.ended(id, end);
    }

    fn ended(&self, id: &str, end: WaitResponse) {
        self.commands
            .lock()
            .unwrap()
            .ended
            .insert(id.to_owned(), end);
        self.changed.notify_all();
    }
}

fn start(exec: &ExecRequest, streams: &HashMap<String, UnixStream>) -> Child {
    let stdio = |name: &str| {
        let stream = streams.get(name).map(|stream| stream.try_clone().unwrap());
        stream.map_or(Stdio::null(), |stream| {
            std::os::fd::OwnedFd::from(stream).into()
        })
    };
    Command::new(&exec.argv[0])
        .args(&exec.argv[1..])
        .envs(
            exec.env
                .iter()
                .filter_map(|variable| variable.split_once('=')),
        )
        .current_dir(Path::new("/").join(&exec.cwd))
        .stdin(stdio("stdin"))
        .stdout(stdio("stdout"))
        .stderr(stdio("stderr"))
        .spawn()
        .unwrap()
}

/// Packs or unpacks as the agent's own program does. The path `/full` has no room.
fn run_tool(exec: &ExecRequest, streams: HashMap<String, UnixStream>) -> WaitResponse {
    let path = Path::new(exec.argv.last().unwrap());
    let mut notes = Vec::new();
    let mut notice = |note| notes.push(note);
    let result = match exec.argv[0].as_str() {
        _ if path.ends_with("full") => {
            Err("Cannot write /full: No space left on device".to_owned())
        }
        "pack" => archive::pack(path, false, &streams["stdout"], &mut notice)
            .map_err(|error| error.to_string()),
        _ => {
            let names = exec.argv.iter().any(|word| word == "--names");
            let layout = if names {
                archive::Layout::Names
            } else {
                archive::Layout::Root
            };
            let rules = archive::Rules::default();
            archive::unpack(&streams["stdin"], path, layout, rules, &mut notice)
                .map_err(|error| error.to_string())
        }
    };
    let mut stderr = &streams["stderr"];
    for note in notes {
        writeln!(stderr, "note: {note}").unwrap();
    }
    let code = i32::from(result.is_err());
    if let Err(error) = result {
        writeln!(stderr, "error: {error}").unwrap();
    }
    WaitResponse {
        code,
        ..Default::default()
    }
}

/// Port 7 sends everything back, nobody listens on others.
fn forward(mut stream: UnixStream) {
    let target = read_line(&stream);
    if target != "tcp 7" {
        writeln!(stream, "error {target} is closed\x1b[2J").unwrap();
        return;
    }
    stream.write_all(b"ok\n").unwrap();
    std::io::copy(&mut &stream, &mut &stream).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
}
