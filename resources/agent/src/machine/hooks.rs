//! Programs of the guest's that make a clone unique where the agent cannot: `on-clone.d`.
//!
//! They run when the clone has its identity and before any other process does, one after the other
//! in the order of their names. The first one that fails is the last.

use std::collections::VecDeque;
use std::fs::{self, DirEntry};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::exec::plan::DEFAULT_PATH;
use crate::exec::spawn::become_session_leader;
use crate::say;

const DIRECTORY: &str = "/etc/minivmm/on-clone.d";
/// The kernel parameter that says how long all hooks may take together, in seconds.
const TIMEOUT_PARAMETER: &str = "minivmm.hook_timeout=";
const TIMEOUT: Duration = Duration::from_secs(10);
/// How much of the end of a failed hook's output is told.
const TAIL_LINES: usize = 10;
const LINE_BYTES: usize = 256;
/// How much of a hook's output goes to the console, which is slow and may be a log of limited size.
const SAID_BYTES: usize = 16 * 1024;

/// How a hook did.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ran {
    /// Its file name.
    pub name: String,
    /// What went wrong.
    pub failure: Option<String>,
    /// The end of its output, if something went wrong.
    pub output: String,
    /// How long it ran.
    pub took: Duration,
}

/// Runs all hooks with these variables in their environment. A guest without hooks costs one look.
pub fn run_all(variables: &[(&str, &str)]) -> Vec<Ran> {
    run_directory(Path::new(DIRECTORY), variables, timeout)
}

fn timeout() -> Duration {
    let parameters = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    timeout_of(&parameters).unwrap_or(TIMEOUT)
}

fn timeout_of(parameters: &str) -> Option<Duration> {
    let mut words = parameters.split_ascii_whitespace();
    let value = words.find_map(|word| word.strip_prefix(TIMEOUT_PARAMETER))?;
    let seconds = value.parse().ok().filter(|seconds| *seconds > 0);
    if seconds.is_none() {
        say(&format!(
            "{TIMEOUT_PARAMETER}{value}: expected a number of seconds; hooks have {} s",
            TIMEOUT.as_secs()
        ));
    }
    seconds.map(Duration::from_secs)
}

fn run_directory(
    directory: &Path,
    variables: &[(&str, &str)],
    timeout: impl FnOnce() -> Duration,
) -> Vec<Ran> {
    let hooks = match list(directory) {
        Ok(hooks) => hooks,
        Err(error) => {
            return vec![Ran {
                name: directory.display().to_string(),
                failure: Some(format!("cannot be listed: {error}")),
                output: String::new(),
                took: Duration::ZERO,
            }];
        }
    };
    let mut ran = Vec::new();
    if hooks.is_empty() {
        return ran;
    }
    let timeout = timeout();
    let limit = Limit {
        deadline: Instant::now() + timeout,
        timeout,
    };
    for hook in hooks {
        let done = run(&hook, variables, &limit);
        let has_failed = done.failure.is_some();
        ran.push(done);
        if has_failed {
            break;
        }
    }
    ran
}

/// Everything that is not hidden, by name.
fn list(directory: &Path) -> io::Result<Vec<DirEntry>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut hooks = entries.collect::<io::Result<Vec<_>>>()?;
    hooks.retain(|hook| !hook.file_name().as_encoded_bytes().starts_with(b"."));
    hooks.sort_by_key(DirEntry::file_name);
    Ok(hooks)
}

struct Limit {
    deadline: Instant,
    timeout: Duration,
}

fn run(hook: &DirEntry, variables: &[(&str, &str)], limit: &Limit) -> Ran {
    let begun = Instant::now();
    let name = hook.file_name().to_string_lossy().into_owned();
    let mut output = Output::of(&name);
    let failure = match start(&hook.path(), variables) {
        Ok((child, pipe)) => match finish(child, &pipe, &mut output, limit) {
            Ok(failure) => failure,
            Err(error) => Some(format!("cannot be waited for: {error}")),
        },
        Err(error) => Some(format!("cannot be started: {error}")),
    };
    output.end_line();
    if let Some(failure) = &failure {
        say(&format!("hook {name} {failure}"));
    }
    Ran {
        name,
        output: failure.as_ref().map_or_else(String::new, |_| output.tail()),
        failure,
        took: begun.elapsed(),
    }
}

fn start(path: &Path, variables: &[(&str, &str)]) -> io::Result<(Child, OwnedFd)> {
    let (pipe, end) = pipe_with(PipeFlags::CLOEXEC)?;
    fcntl_setfl(&pipe, OFlags::NONBLOCK)?;
    let mut command = Command::new(path);
    if std::env::var_os("PATH").is_none() {
        command.env("PATH", DEFAULT_PATH);
    }
    command
        .envs(variables.iter().copied())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(end.try_clone()?)
        .stderr(end);
    become_session_leader(&mut command, false, None);
    Ok((command.spawn()?, pipe))
}

/// Waits until the hook has ended; what it leaves behind in the background is not waited for.
/// The loop that reaps children is the caller's and waits, too.
fn finish(
    mut child: Child,
    pipe: &OwnedFd,
    output: &mut Output,
    limit: &Limit,
) -> io::Result<Option<String>> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("its process id is out of range"))?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let mut open = true;
    loop {
        let left = limit.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            kill_process_group(pid, Signal::KILL)?;
            child.wait()?;
            drain(pipe, output)?;
            let seconds = limit.timeout.as_secs();
            return Ok(Some(format!(
                "did not end within the {seconds} s that all hooks have"
            )));
        }
        let left = Timespec::try_from(left).unwrap_or_default();
        let mut fds = vec![PollFd::new(&process, PollFlags::IN)];
        // A hook may close its output long before it ends.
        if open {
            fds.push(PollFd::new(pipe, PollFlags::IN));
        }
        match poll(&mut fds, Some(&left)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ended = child.try_wait()?;
        open = open && drain(pipe, output)?;
        if let Some(status) = ended {
            return Ok(failure_of(status));
        }
    }
}

/// Takes what is there. False when no more will come.
fn drain(pipe: &OwnedFd, output: &mut Output) -> io::Result<bool> {
    let mut buffer = [0; 1024];
    // One that writes without end must not keep us from looking at the time.
    for _ in 0..64 {
        match rustix::io::read(pipe, &mut buffer) {
            Ok(0) => return Ok(false),
            Ok(count) => output.take(buffer.get(..count).unwrap_or(&[])),
            Err(Errno::AGAIN) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(true)
}

fn failure_of(status: ExitStatus) -> Option<String> {
    match (status.code(), status.signal()) {
        (Some(0), _) => None,
        (Some(code), _) => Some(format!("ended with exit code {code}")),
        (None, Some(signal)) => Some(format!("was ended by signal {signal}")),
        (None, None) => Some(status.to_string()),
    }
}

/// What a hook prints: to the console, and the last of it to be told.
struct Output {
    name: String,
    line: Vec<u8>,
    tail: VecDeque<String>,
    said: usize,
}

impl Output {
    fn of(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            line: Vec::new(),
            tail: VecDeque::new(),
            said: 0,
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' || self.line.len() == LINE_BYTES {
                self.end_line();
            }
            if *byte != b'\n' {
                self.line.push(*byte);
            }
        }
    }

    fn end_line(&mut self) {
        if self.line.is_empty() {
            return;
        }
        let line = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        if self.said < SAID_BYTES {
            self.said += line.len();
            say(&format!("hook {}: {line}", self.name));
        }
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    fn tail(&self) -> String {
        let lines: Vec<&str> = self.tail.iter().map(String::as_str).collect();
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with these scripts. Another process writes them: a child that a test beside this
    /// one forks would keep our descriptor open, and a file that is open for writing cannot be run.
    fn directory(hooks: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, script) in hooks {
            let write = r#"printf '#!/bin/sh\n%s\n' "$2" >"$1" && chmod 755 "$1""#;
            let mut command = Command::new("sh");
            command.args(["-c", write, "sh"]);
            command.arg(directory.path().join(name)).arg(script);
            assert!(command.status().unwrap().success());
        }
        directory
    }

    fn run_in(directory: &Path, timeout: Duration) -> Vec<Ran> {
        run_directory(directory, &[("MINIVMM_ID", "vm-1")], || timeout)
    }

    fn failure(hook: &Ran) -> &str {
        hook.failure.as_deref().unwrap_or("none")
    }

    #[test]
    fn no_directory_and_an_empty_one_are_no_hooks() {
        let directory = directory(&[(".hidden", "exit 1")]);
        let never = || panic!("asked for a time-out");
        assert_eq!(run_directory(directory.path(), &[], never), []);
        assert_eq!(run_directory(&directory.path().join("x"), &[], never), []);
    }

    #[test]
    fn they_run_in_order_and_the_first_failure_is_the_last() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let note = format!("echo $0 $MINIVMM_ID >>{}", file.path().display());
        let fail = format!("{note}; for i in $(seq 20); do echo $i; done; echo bad >&2; exit 7");
        let directory = directory(&[("20-b", &fail), ("10-a", &note), ("30-c", &note)]);
        let ran = run_in(directory.path(), TIMEOUT);
        let names: Vec<&str> = ran.iter().map(|hook| hook.name.as_str()).collect();
        assert_eq!(names, ["10-a", "20-b"]);
        assert_eq!((&ran[0].failure, ran[0].output.as_str()), (&None, ""));
        assert_eq!(failure(&ran[1]), "ended with exit code 7");
        assert_eq!(ran[1].output, "12\n13\n14\n15\n16\n17\n18\n19\n20\nbad");
        let noted = fs::read_to_string(file.path()).unwrap();
        let noted: Vec<&str> = noted.lines().collect();
        assert!(noted[0].ends_with("10-a vm-1") && noted[1].ends_with("20-b vm-1"));
        assert_eq!(noted.len(), 2);
    }

    #[test]
    fn what_is_no_program_has_failed() {
        let directory = directory(&[]);
        fs::write(directory.path().join("README"), "text").unwrap();
        let ran = run_in(directory.path(), TIMEOUT);
        assert!(failure(&ran[0]).starts_with("cannot be started: Permission denied"));
        fs::remove_file(directory.path().join("README")).unwrap();
        fs::create_dir(directory.path().join("sub")).unwrap();
        let ran = run_in(directory.path(), TIMEOUT);
        assert!(failure(&ran[0]).starts_with("cannot be started"));
    }

    #[test]
    fn all_have_one_deadline_and_children_end_with_it() {
        let directory = directory(&[("a", "echo begun; sleep 1000 & wait"), ("b", "exit 1")]);
        let ran = run_in(directory.path(), Duration::from_secs(1));
        assert_eq!(ran.len(), 1);
        assert_eq!(
            failure(&ran[0]),
            "did not end within the 1 s that all hooks have"
        );
        assert_eq!(ran[0].output, "begun");
    }

    #[test]
    fn one_that_closes_its_output_or_never_stops_writing_is_waited_for() {
        let directory = directory(&[("a", "exec >&- 2>&-; sleep 0.1"), ("b", "kill -9 $$")]);
        let ran = run_in(directory.path(), TIMEOUT);
        assert_eq!(failure(&ran[0]), "none");
        assert!(ran[0].took >= Duration::from_millis(100));
        assert_eq!(failure(&ran[1]), "was ended by signal 9");
        let directory = self::directory(&[("a", "yes")]);
        let ran = run_in(directory.path(), Duration::from_secs(1));
        assert!(failure(&ran[0]).starts_with("did not end within the 1 s"));
    }

    #[test]
    fn what_goes_on_in_the_background_is_not_waited_for() {
        let directory = directory(&[("a", "sleep 5 & echo done")]);
        let ran = run_in(directory.path(), TIMEOUT);
        assert_eq!(failure(&ran[0]), "none");
        assert!(ran[0].took < Duration::from_secs(5));
    }

    #[test]
    fn timeout_is_a_kernel_parameter() {
        let seconds = |text| timeout_of(text).map(|timeout| timeout.as_secs());
        assert_eq!(seconds("quiet minivmm.hook_timeout=30\n"), Some(30));
        for text in [
            "",
            "quiet",
            "minivmm.hook_timeout=",
            "minivmm.hook_timeout=0",
        ] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }
}
