//! The poll loop of one command: streams, signals, window size, and the exit code.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use proto::{CallError, guest};
use rustix::event::{PollFd, PollFlags};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};

use crate::agent::Agent;
use crate::background::Background;
use crate::copy::{Progress, StreamCopy};
use crate::poll;
use crate::signals::Signals;
use crate::terminal::{RawMode, window_size};

/// Signals for the command instead of for us.
const FORWARDED: [i32; 6] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];
/// How long the agent may take to pass on a signal.
const SIGNAL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long output may stay silent after the command has ended before it is given up.
const SILENCE_AFTER_END: Duration = Duration::from_secs(10);

/// A command whose streams are attached.
#[derive(Debug)]
pub struct Session<'a> {
    /// The VM's vsock socket.
    pub vsock: &'a Path,
    /// The connection that started the command.
    pub agent: Agent,
    /// The command.
    pub exec_id: String,
    /// It has a terminal.
    pub tty: bool,
    /// Its streams.
    pub streams: Streams,
}

/// The command's ends of the standard streams.
#[derive(Debug)]
pub struct Streams {
    /// Host to guest.
    pub stdin: Option<UnixStream>,
    /// Guest to host.
    pub stdout: UnixStream,
    /// Guest to host; not there with a terminal.
    pub stderr: Option<UnixStream>,
}

impl Session<'_> {
    /// Moves bytes and signals until the command has ended and its output is complete.
    ///
    /// # Errors
    /// The connection to the guest was lost.
    pub fn run(self) -> anyhow::Result<u8> {
        let signals = Signals::catch(&[&FORWARDED[..], &[SIGWINCH]].concat())
            .context("Cannot catch signals")?;
        let raw = if self.tty { RawMode::enter()? } else { None };
        let mut traffic = Traffic::new(&self.streams).context("Cannot use the standard streams")?;
        let mut control = Control {
            vsock: self.vsock,
            exec_id: &self.exec_id,
            agent: None,
        };
        let mut end = EndOfCommand::watch(self.agent, self.exec_id.clone())?;
        drop(self.streams);

        let mut silent_since = None;
        while !(end.is_known() && traffic.is_complete()) {
            if end.is_known() {
                traffic.close_input();
            }
            let deadline = silent_since.map(|since: Instant| since + SILENCE_AFTER_END);
            if traffic.wait_and_move(&signals, &end, deadline)? == 0 {
                bail!("The command has ended, but its output does not");
            }
            for signal in signals.take() {
                control.pass_on(signal, self.tty)?;
            }
            end.look();
            silent_since = end.is_known().then(Instant::now);
        }
        drop(raw);
        end.exit_code()
    }
}

/// The three copies.
struct Traffic {
    input: Option<(StreamCopy, UnixStream)>,
    outputs: Vec<StreamCopy>,
}

impl Traffic {
    fn new(streams: &Streams) -> io::Result<Self> {
        let input = match &streams.stdin {
            Some(stream) => {
                stream.set_nonblocking(true)?;
                Some((StreamCopy::new(&io::stdin(), stream)?, stream.try_clone()?))
            }
            None => None,
        };
        let mut outputs = vec![StreamCopy::new(&streams.stdout, &io::stdout())?];
        if let Some(stream) = &streams.stderr {
            outputs.push(StreamCopy::new(stream, &io::stderr())?);
        }
        Ok(Self { input, outputs })
    }

    fn is_complete(&self) -> bool {
        self.outputs.is_empty()
    }

    fn close_input(&mut self) {
        self.input = None;
    }

    /// Waits for anything to happen and moves what can be moved. Returns how much was ready.
    fn wait_and_move(
        &mut self,
        signals: &Signals,
        end: &EndOfCommand,
        deadline: Option<Instant>,
    ) -> anyhow::Result<usize> {
        let copies = self.input.iter().map(|(copy, _)| copy).chain(&self.outputs);
        let mut fds = vec![PollFd::new(signals, PollFlags::IN)];
        let mut slots = Vec::with_capacity(3);
        for copy in copies {
            slots.push(copy.poll_for().map(|(fd, flags)| {
                fds.push(PollFd::from_borrowed_fd(fd, flags));
                fds.len() - 1
            }));
        }
        if !end.is_known() {
            fds.push(PollFd::new(&end.waiting, PollFlags::IN));
        }
        let count = poll::wait(&mut fds, deadline)?;
        let is_ready = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
        let mut ready = slots.into_iter().map(|slot| slot.is_some_and(is_ready));
        let input_ready = self.input.is_some() && ready.next() == Some(true);
        let outputs_ready: Vec<bool> = ready.collect();

        if input_ready {
            self.move_input()?;
        }
        self.move_outputs(&outputs_ready)?;
        Ok(count)
    }

    fn move_input(&mut self) -> anyhow::Result<()> {
        let Some((copy, stream)) = &mut self.input else {
            return Ok(());
        };
        // A terminal that has gone away reads as an error; for the command that is the end.
        let progress = copy.step().unwrap_or(Progress::Ended);
        if progress != Progress::Open {
            match stream.shutdown(Shutdown::Write) {
                Err(error) if error.kind() != io::ErrorKind::NotConnected => {
                    return Err(error).context("Cannot end the command's input");
                }
                _ => self.input = None,
            }
        }
        Ok(())
    }

    fn move_outputs(&mut self, ready: &[bool]) -> anyhow::Result<()> {
        let mut ready = ready.iter();
        let mut failed = None;
        self.outputs.retain_mut(|copy| {
            if ready.next() != Some(&true) {
                return true;
            }
            match copy.step() {
                Ok(progress) => progress == Progress::Open,
                Err(error) => {
                    failed = Some(error);
                    false
                }
            }
        });
        failed.map_or(Ok(()), |error| {
            Err(error).context("Cannot copy the command's output")
        })
    }
}

/// A second connection to the agent, made when it is needed: the first one waits for the end.
struct Control<'a> {
    vsock: &'a Path,
    exec_id: &'a str,
    agent: Option<Agent>,
}

impl Control<'_> {
    fn pass_on(&mut self, signal: i32, tty: bool) -> anyhow::Result<()> {
        let exec_id = self.exec_id.to_owned();
        let client = match &mut self.agent {
            Some(agent) => agent.client(),
            empty => empty.insert(Agent::connect(self.vsock)?).client(),
        };
        let result = if signal == SIGWINCH {
            let Some((rows, cols)) = window_size(&io::stdin()).filter(|_| tty) else {
                return Ok(());
            };
            let request = guest::ResizeRequest {
                exec_id,
                rows,
                cols,
                ..Default::default()
            };
            client.resize(&request, SIGNAL_TIMEOUT)
        } else {
            let request = guest::SignalRequest {
                exec_id,
                signal,
                ..Default::default()
            };
            client.signal(&request, SIGNAL_TIMEOUT)
        };
        match result {
            // The command has ended in this moment.
            Ok(()) | Err(CallError::Refused { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The exit code, once it is there.
struct EndOfCommand {
    waiting: Background<Result<guest::WaitResponse, CallError>>,
    known: Option<Result<guest::WaitResponse, CallError>>,
}

impl EndOfCommand {
    fn watch(mut agent: Agent, exec_id: String) -> anyhow::Result<Self> {
        let wait = move || agent.client().wait(&exec_id);
        Ok(Self {
            waiting: Background::start("wait", wait).context("Cannot start a thread")?,
            known: None,
        })
    }

    fn is_known(&self) -> bool {
        self.known.is_some()
    }

    fn look(&mut self) {
        if self.known.is_none() {
            self.known = self.waiting.take();
        }
    }

    fn exit_code(self) -> anyhow::Result<u8> {
        let Some(result) = self.known else {
            bail!("The command's exit code was not reported");
        };
        let end = result.context("The VM or its agent has gone away")?;
        let code = if end.signal == 0 {
            end.code
        } else {
            128 + end.signal
        };
        u8::try_from(code).with_context(|| format!("The agent reported the exit code {code}"))
    }
}
