//! Starts a command in a session of its own.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use rustix::fs::{OFlags, fchown, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, ioctl_tiocsctty, setrlimit, setsid};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};

use crate::exec::plan::{Log, Plan};
use crate::exec::user::User;

/// A running command with our ends of its streams, none of which block.
#[derive(Debug)]
pub struct Started {
    /// The process, which leads its session and group.
    pub pid: Pid,
    /// Where its input goes.
    pub stdin: Option<OwnedFd>,
    /// Where its output comes from.
    pub stdout: OwnedFd,
    /// Where its errors come from, unless it has a terminal.
    pub stderr: Option<OwnedFd>,
    /// Its terminal.
    pub terminal: Option<OwnedFd>,
}

/// Starts `plan` with its output in its log. The process must be reaped by whoever watches for
/// SIGCHLD.
pub fn spawn_detached(plan: &Plan, log: &Log) -> io::Result<Pid> {
    let (stdout, stderr) = match log {
        None => (Stdio::null(), Stdio::null()),
        Some(path) => {
            if let Some(directory) = path.parent() {
                fs::create_dir_all(directory)?;
            }
            let log = File::options().append(true).create(true).open(path)?;
            (log.try_clone()?.into(), log.into())
        }
    };
    start(plan, Stdio::null(), stdout, stderr)
}

/// Starts `plan`. The process must be reaped by whoever watches for SIGCHLD.
pub fn spawn(plan: &Plan) -> io::Result<Started> {
    match plan.terminal {
        Some(window) => spawn_on_terminal(plan, window),
        None => spawn_on_pipes(plan),
    }
}

fn spawn_on_pipes(plan: &Plan) -> io::Result<Started> {
    let (stdout, child_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr, child_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    let (child_stdin, stdin) = if plan.stdin {
        let (child_stdin, stdin) = pipe_with(PipeFlags::CLOEXEC)?;
        (Stdio::from(child_stdin), Some(stdin))
    } else {
        (Stdio::null(), None)
    };
    for ours in [Some(&stdout), Some(&stderr), stdin.as_ref()]
        .into_iter()
        .flatten()
    {
        set_nonblocking(ours)?;
    }
    let pid = start(plan, child_stdin, child_stdout.into(), child_stderr.into())?;
    Ok(Started {
        pid,
        stdin,
        stdout,
        stderr: Some(stderr),
        terminal: None,
    })
}

fn spawn_on_terminal(plan: &Plan, window: Winsize) -> io::Result<Started> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = openpt(flags)?;
    unlockpt(&terminal)?;
    let child_end = ioctl_tiocgptpeer(&terminal, flags)?;
    tcsetwinsize(&terminal, window)?;
    if let Some(user) = &plan.user {
        fchown(&child_end, Some(user.uid), None)?;
    }
    set_nonblocking(&terminal)?;
    let pid = start(
        plan,
        child_end.try_clone()?.into(),
        child_end.try_clone()?.into(),
        child_end.into(),
    )?;
    Ok(Started {
        pid,
        stdin: plan.stdin.then(|| terminal.try_clone()).transpose()?,
        stdout: terminal.try_clone()?,
        stderr: None,
        terminal: Some(terminal),
    })
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    Ok(fcntl_setfl(fd, OFlags::NONBLOCK)?)
}

fn start(plan: &Plan, stdin: Stdio, stdout: Stdio, stderr: Stdio) -> io::Result<Pid> {
    let mut command = Command::new(&plan.program);
    if let Some((name, arguments)) = plan.argv.split_first() {
        command.arg0(name).args(arguments);
    }
    command
        .envs(plan.env.iter().map(|(name, value)| (name, value)))
        .current_dir(&plan.cwd)
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr);
    become_session_leader(&mut command, plan.terminal.is_some(), plan.user.clone());
    let child = command.spawn()?;
    i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::other(format!("process id {} is out of range", child.id())))
}

/// Has the child lead a session of its own, on the terminal that is its stdin if it has one.
pub fn become_session_leader(command: &mut Command, terminal: bool, user: Option<User>) {
    let files = original_file_limit();
    let prepare = move || {
        setsid()?;
        if terminal {
            ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        if let Some(user) = &user {
            set_thread_groups(&user.groups)?;
            set_thread_gid(user.gid)?;
            set_thread_uid(user.uid)?;
        }
        setrlimit(Resource::Nofile, files)?;
        reset_signals()?;
        // The agent blocks the signals that it reads from its signalfd.
        SigSet::all().thread_unblock()?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only: it allocates nothing,
    // takes no lock, and the environment it captured was made before the fork.
    unsafe { command.pre_exec(prepare) };
}

/// Gives signals their default actions. One that whoever started the agent has ignored, as `nohup`
/// does with SIGHUP, would be ignored in every command as well, through exec.
fn reset_signals() -> io::Result<()> {
    let fixed = [Signal::SIGKILL, Signal::SIGSTOP];
    for number in Signal::iterator().filter(|number| !fixed.contains(number)) {
        // SAFETY: the default action is no handler, so there is no code that it could run.
        unsafe { signal(number, SigHandler::SigDfl) }?;
    }
    Ok(())
}

/// What the kernel gives a process; the agent itself works with more.
const USUAL_FILE_LIMIT: u64 = 1024;

/// Lets the agent itself have as many descriptors as it may.
pub fn raise_file_limit() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    )?)
}

fn original_file_limit() -> Rlimit {
    let limit = getrlimit(Resource::Nofile);
    let current = limit
        .current
        .map_or(USUAL_FILE_LIMIT, |now| now.min(USUAL_FILE_LIMIT));
    Rlimit {
        current: Some(current),
        ..limit
    }
}
