//! One command, from request to exit status.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use proto::stdio::Stream;
use rustix::process::{Pid, WaitStatus};
use rustix::termios::tcsetwinsize;
use ttrpc::Code;

use crate::error::{Error, Refusal};
use crate::exec::End;
use crate::exec::channel::Channel;
use crate::exec::outcome::{ATTACH_TIMEOUT, Outcome, never_attached};
use crate::exec::plan::{Log, Plan, window};
use crate::exec::pump::{Progress, Pump};
use crate::exec::spawn::{Started, spawn, spawn_detached};
use crate::server::poller::{Poller, Token};

/// How long a command whose host has gone may go on after SIGHUP.
const HANGUP_GRACE: Duration = Duration::from_secs(2);
/// How long the rest of a terminal's output may take when something in the background keeps the
/// terminal open.
const TERMINAL_DRAIN: Duration = Duration::from_millis(200);
// What shells exit with when they cannot run a command.
const CODE_CANNOT_EXECUTE: i32 = 126;
const CODE_NOT_FOUND: i32 = 127;

#[derive(Debug)]
enum State {
    /// The host attaches the streams.
    Attaching { until: Instant },
    /// The process runs; with a time, it has been asked to end by then.
    Running { pid: Pid, kill_at: Option<Instant> },
    /// Its status is known. Output may still be on its way; that of a terminal is waited for until
    /// the given time.
    Ended {
        outcome: Outcome,
        drain_until: Option<Instant>,
    },
}

/// A command.
#[derive(Debug)]
pub struct Session {
    id: u32,
    plan: Plan,
    state: State,
    stdin: Channel,
    stdout: Channel,
    stderr: Channel,
    terminal: Option<OwnedFd>,
}

impl Session {
    /// A command that waits for its streams.
    pub fn new(id: u32, plan: Plan) -> Self {
        Self {
            id,
            state: State::Attaching {
                until: Instant::now() + ATTACH_TIMEOUT,
            },
            stdin: Channel::expected(plan.stdin),
            stdout: Channel::Expected,
            stderr: Channel::expected(plan.terminal.is_none()),
            terminal: None,
            plan,
        }
    }

    /// A command that runs already and has no streams.
    pub fn detached(id: u32, plan: Plan, log: &Log) -> Result<Self, Refusal> {
        let pid = spawn_detached(&plan, log).map_err(|error| {
            let code = match error.kind() {
                ErrorKind::NotFound => Code::NOT_FOUND,
                _ => Code::PERMISSION_DENIED,
            };
            Refusal::new(code, cannot_execute(&plan, &error))
        })?;
        Ok(Self {
            id,
            state: State::Running { pid, kill_at: None },
            stdin: Channel::None,
            stdout: Channel::None,
            stderr: Channel::None,
            terminal: None,
            plan,
        })
    }

    /// The process, while it runs.
    pub fn pid(&self) -> Option<Pid> {
        match self.state {
            State::Running { pid, .. } => Some(pid),
            _ => None,
        }
    }

    /// The outcome, once the command has ended and its output is delivered.
    pub fn outcome(&self) -> Option<&Outcome> {
        match &self.state {
            State::Ended { outcome, .. } if !self.stdout.is_open() && !self.stderr.is_open() => {
                Some(outcome)
            }
            _ => None,
        }
    }

    /// When `expire` has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Attaching { until } => Some(until),
            State::Running { kill_at, .. } => kill_at,
            State::Ended { drain_until, .. } => drain_until,
        }
    }

    fn channel(&mut self, stream: Stream) -> &mut Channel {
        match stream {
            Stream::Stdin => &mut self.stdin,
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// Whether `stream` may be attached now; the reason if not.
    pub fn may_attach(&mut self, stream: Stream) -> Result<(), String> {
        let id = self.id;
        if let State::Ended {
            outcome: Outcome::NeverAttached,
            ..
        } = self.state
        {
            return Err(never_attached());
        }
        match self.channel(stream) {
            Channel::Expected => Ok(()),
            Channel::None => Err(format!("command {id} has no {stream}")),
            _ => Err(format!("{stream} of command {id} is attached already")),
        }
    }

    /// Takes a stream's connection, and starts the command when it was the last one.
    pub fn attach(
        &mut self,
        stream: Stream,
        connection: OwnedFd,
        early: Vec<u8>,
        poller: &Poller,
    ) -> Result<(), Error> {
        *self.channel(stream) = Channel::Attached(connection, early);
        let missing = [&self.stdin, &self.stdout, &self.stderr]
            .into_iter()
            .any(|channel| matches!(channel, Channel::Expected));
        if missing {
            return Ok(());
        }
        match spawn(&self.plan) {
            Ok(started) => self.started(started, poller),
            Err(error) => {
                self.not_started(&error);
                self.watch(poller)
            }
        }
    }

    fn started(&mut self, started: Started, poller: &Poller) -> Result<(), Error> {
        self.state = State::Running {
            pid: started.pid,
            kill_at: None,
        };
        if let (Some((source, early)), Some(sink)) = (self.stdin.take(), started.stdin) {
            self.stdin = Channel::Open(if started.terminal.is_some() {
                Pump::to_terminal(source, sink, early)
            } else {
                Pump::new(Some(source), sink, early)
            });
        }
        if let Some((sink, _)) = self.stdout.take() {
            self.stdout = Channel::Open(Pump::new(Some(started.stdout), sink, Vec::new()));
        }
        if let (Some((sink, _)), Some(source)) = (self.stderr.take(), started.stderr) {
            self.stderr = Channel::Open(Pump::new(Some(source), sink, Vec::new()));
        }
        self.terminal = started.terminal;
        self.watch(poller)
    }

    /// Ends the session as a shell would: with the reason as its error output.
    fn not_started(&mut self, error: &io::Error) {
        let code = match error.kind() {
            ErrorKind::NotFound => CODE_NOT_FOUND,
            _ => CODE_CANNOT_EXECUTE,
        };
        self.state = State::Ended {
            outcome: Outcome::Exited(code),
            drain_until: None,
        };
        self.stdin = Channel::Finished;
        let text = cannot_execute(&self.plan, error) + "\n";
        let errors = if self.plan.terminal.is_some() {
            &mut self.stdout
        } else {
            &mut self.stderr
        };
        if let Some((sink, _)) = errors.take() {
            *errors = Channel::Open(Pump::new(None, sink, text.into_bytes()));
        }
        if let Some((connection, _)) = self.stdout.take() {
            drop(connection);
            self.stdout = Channel::Finished;
        }
    }

    fn watch(&self, poller: &Poller) -> Result<(), Error> {
        let channels = [
            (Stream::Stdin, &self.stdin),
            (Stream::Stdout, &self.stdout),
            (Stream::Stderr, &self.stderr),
        ];
        for (stream, channel) in channels {
            let Channel::Open(pump) = channel else {
                continue;
            };
            let (source_end, sink_end) = End::of(stream);
            for (fd, end) in [(pump.source(), source_end), (pump.sink(), sink_end)] {
                if let Some(fd) = fd {
                    poller.watch_changes(fd, Token::Stream(self.id, end))?;
                }
            }
        }
        Ok(())
    }

    /// Moves a stream after something has happened at one end. True when there is more to move.
    pub fn advance(&mut self, end: End, chunk: &mut [u8]) -> bool {
        let stream = end.stream();
        let is_host_end = matches!(end, End::StdoutSink | End::StderrSink);
        let Channel::Open(pump) = self.channel(stream) else {
            return false;
        };
        let progress = if is_host_end && pump.sink_is_dead() {
            Progress::SinkLost
        } else {
            pump.turn(chunk)
        };
        match progress {
            Progress::Blocked => return false,
            Progress::Unfinished => return true,
            Progress::Finished => *self.channel(stream) = Channel::Finished,
            Progress::SinkLost => *self.channel(stream) = Channel::Lost,
        }
        self.hang_up_if_abandoned();
        false
    }

    /// Asks the process to end when nobody takes its output any more.
    fn hang_up_if_abandoned(&mut self) {
        let State::Running { pid, kill_at: None } = self.state else {
            return;
        };
        let outputs = [&self.stdout, &self.stderr];
        let lost = outputs.iter().any(|output| matches!(output, Channel::Lost));
        let open = outputs.iter().any(|output| output.is_open());
        if lost && !open {
            // Closing a terminal hangs up on its foreground group too.
            self.stdin = Channel::Finished;
            self.terminal = None;
            for signal in [Signal::SIGHUP, Signal::SIGCONT] {
                signal_group(pid, signal);
            }
            self.state = State::Running {
                pid,
                kill_at: Some(Instant::now() + HANGUP_GRACE),
            };
        }
    }

    /// Does what is due. True when there is output to move.
    pub fn expire(&mut self, now: Instant) -> bool {
        match &mut self.state {
            State::Attaching { until } if *until <= now => self.end(Outcome::NeverAttached),
            State::Running {
                pid,
                kill_at: due @ Some(_),
            } if *due <= Some(now) => {
                *due = None;
                signal_group(*pid, Signal::SIGKILL);
            }
            State::Ended {
                drain_until: due @ Some(_),
                ..
            } if *due <= Some(now) => {
                *due = None;
                if let Channel::Open(pump) = &mut self.stdout {
                    pump.end_when_empty();
                    return true;
                }
            }
            _ => {}
        }
        false
    }

    /// The process has been reaped. What it printed is still delivered.
    pub fn reaped(&mut self, status: WaitStatus) {
        let on_terminal = self.plan.terminal.is_some();
        for output in [&mut self.stdout, &mut self.stderr] {
            if let Channel::Open(pump) = output {
                pump.process_ended(on_terminal);
            }
        }
        self.stdin = Channel::Finished;
        let drain_until = on_terminal.then(|| Instant::now() + TERMINAL_DRAIN);
        self.state = State::Ended {
            outcome: Outcome::of(status),
            drain_until,
        };
    }

    fn end(&mut self, outcome: Outcome) {
        for channel in [&mut self.stdin, &mut self.stdout, &mut self.stderr] {
            *channel = Channel::Finished;
        }
        self.state = State::Ended {
            outcome,
            drain_until: None,
        };
    }

    /// Sends a signal to the command; one that has not started yet ends by it.
    pub fn signal(&mut self, signal: Signal) -> Result<(), Refusal> {
        match self.state {
            State::Attaching { .. } => self.end(Outcome::Killed(signal as i32)),
            State::Running { pid, .. } => signal_group(pid, signal),
            State::Ended { .. } => return Err(self.ended()),
        }
        Ok(())
    }

    /// Changes the size of the terminal.
    pub fn resize(&mut self, rows: u32, cols: u32) -> Result<(), Refusal> {
        let id = self.id;
        let size = window(rows, cols);
        let planned = self.plan.terminal.as_mut().ok_or_else(|| {
            Refusal::new(
                Code::FAILED_PRECONDITION,
                format!("Command {id} has no terminal"),
            )
        })?;
        *planned = size;
        match (&self.state, &self.terminal) {
            (State::Ended { .. }, _) => Err(self.ended()),
            (_, Some(terminal)) => tcsetwinsize(terminal, size)
                .map_err(|errno| Error::system("resize a terminal")(errno).into()),
            (_, None) => Ok(()),
        }
    }

    fn ended(&self) -> Refusal {
        Refusal::new(
            Code::FAILED_PRECONDITION,
            format!("Command {} has ended", self.id),
        )
    }
}

fn cannot_execute(plan: &Plan, error: &io::Error) -> String {
    let hint = match error.kind() {
        // It was there when it was looked up.
        ErrorKind::NotFound => " (is its interpreter or loader missing?)",
        _ => "",
    };
    format!("{}: cannot execute: {error}{hint}", plan.program.display())
}

fn signal_group(leader: Pid, signal: Signal) {
    let group = nix::unistd::Pid::from_raw(leader.as_raw_nonzero().get());
    match killpg(group, signal) {
        // The leader is a zombie that is about to be reaped.
        Ok(()) | Err(nix::Error::ESRCH) => {}
        Err(errno) => crate::say(&format!("Cannot send {signal} to group {group}: {errno}")),
    }
}
