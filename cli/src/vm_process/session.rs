//! The poll loop of a VM process: serves the machine from its first instruction to its end.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use rustix::event::{PollFd, PollFlags};
use vmm::{ExitReason, Machine, MemoryFaults};

use super::bring_up::{Ask, BringUp};
use super::console::ConsoleHub;
use super::link::{Command, Message, VmEnd};
use super::memory_asked::MemoryAsked;
use super::resizing::Resizing;
use super::sizing::SizeReport;
use super::snapshot::Origin;
use super::snapshotting::Snapshotting;
use super::stopping::Stop;
use super::template_watch::TemplateWatch;
use super::tuning::Tuning;
use crate::control::server::{ClientId, Server};
use crate::control::{Reply, Request};
use crate::error::describe;
use crate::net::Network;
use crate::poll;
use crate::signals::Signals;
use crate::state::dir::VmDir;
use crate::state::record::{End, EndReason, Record, State};
use crate::timeline::Timeline;

/// How soon input that the guest had no room for is offered again.
const INPUT_RETRY: Duration = Duration::from_millis(10);

/// A machine and everybody who has something to say about it.
#[derive(Debug)]
pub struct Session {
    pub machine: Machine,
    pub origin: Origin,
    pub dir: VmDir,
    pub record: Record,
    pub control: Server,
    pub console: ConsoleHub,
    pub signals: Signals,
    /// The command that started the VM, for as long as the VM depends on it.
    pub link: Option<VmEnd>,
    pub timeline: Timeline,
    pub bring_up: BringUp,
    pub start: Start,
    pub ready: bool,
    /// How a clone came to its size, when that is not its template's.
    pub size: Option<SizeReport>,
    pub has_agent: bool,
    pub waiting: Vec<ClientId>,
    pub stop: Option<Stop>,
    pub resizing: Option<Resizing>,
    pub snapshotting: Option<Snapshotting>,
    pub memory_asked: Vec<MemoryAsked>,
    pub memory_faults: MemoryFaults,
    /// What its network card is connected to.
    pub network: Option<Network>,
    /// Of a clone: whether its template stays as it was.
    pub template_watch: Option<TemplateWatch>,
    /// Of a template's first clone.
    pub tuning: Option<Tuning>,
}

/// What is wanted of the start.
#[derive(Debug)]
pub struct Start {
    /// What the agent is asked first.
    pub ask: Ask,
    /// How long the agent may take for that once it is up.
    pub ask_timeout: Duration,
    /// How long the guest may take in all.
    pub timeout: Duration,
    /// When the agent has to have answered.
    pub deadline: Instant,
    /// Go on without an agent that has not.
    pub agent_is_optional: bool,
    /// The VM lives only as long as the command.
    pub foreground: bool,
    /// It is a clone, whose vCPUs ran at this time.
    pub restored_ms: Option<f64>,
}

/// How a session is over.
#[derive(Debug)]
pub enum Finish {
    /// The guest has ended or was stopped.
    Ended(End),
    /// The command was interrupted before the VM was ready, or with a VM in the foreground.
    GivenUp,
    /// The VM could not be brought up.
    Failed(anyhow::Error),
    /// The guest is ready to be frozen.
    Prepared,
}

/// The end, if one step of the loop has led to it.
pub type Step = Option<Finish>;

impl Session {
    /// Serves until it is over.
    pub fn run(&mut self) -> Finish {
        loop {
            if let Err(error) = self.wait() {
                return Finish::Failed(error);
            }
            self.pump_console();
            let finish = self
                .watch_template()
                .or_else(|| self.guest_has_ended())
                .or_else(|| self.heed_command())
                .or_else(|| self.heed_signals())
                .or_else(|| self.heed_requests())
                .or_else(|| self.advance_bring_up());
            self.advance_resize();
            self.advance_snapshot();
            self.answer_memory();
            let finish = finish.or_else(|| self.advance_stop());
            if let Some(finish) = finish {
                return finish;
            }
        }
    }

    /// Tells everybody who waits for it how the VM has ended. A template that is being published is
    /// waited for: who asked for it has to learn whether there is one.
    pub fn announce(&mut self, end: &End) {
        self.finish_snapshot();
        for client in std::mem::take(&mut self.waiting) {
            self.control
                .reply(client, &Reply::Ended { end: end.clone() });
        }
        self.record.end = Some(end.clone());
        self.set_state(State::Exited);
    }

    /// Moves the guest's output to the log and the clients, and their input to the guest.
    pub fn pump_console(&mut self) {
        let taken = self.machine.console().take();
        if !taken.bytes.is_empty() {
            self.console.output(&taken.bytes, taken.dropped);
        }
        let input = self.machine.console_input();
        self.console.serve(|bytes| input.push(bytes));
    }

    /// Tells the command something that the user should know.
    pub fn notice(&self, text: String) {
        tracing::warn!("{text}");
        if let Some(link) = &self.link {
            link.send(&Message::Notice(text));
        }
    }

    fn wait(&self) -> anyhow::Result<()> {
        let console = self.machine.console();
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.machine.ended(), PollFlags::IN),
            PollFd::from_borrowed_fd(console.as_fd(), PollFlags::IN),
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.memory_faults, PollFlags::IN),
        ];
        let readers: [Option<BorrowedFd<'_>>; 6] = [
            self.template_watch.as_ref().and_then(TemplateWatch::fd),
            self.link.as_ref().map(AsFd::as_fd),
            self.bring_up.fd(),
            self.stop.as_ref().and_then(Stop::fd),
            self.resizing.as_ref().map(Resizing::fd),
            self.snapshotting.as_ref().map(Snapshotting::fd),
        ];
        let readers = readers.into_iter().flatten();
        let readers = readers.chain(self.memory_asked.iter().map(MemoryAsked::fd));
        let readers = readers.map(|fd| (fd, PollFlags::IN));
        let all = readers.chain(self.control.fds()).chain(self.console.fds());
        fds.extend(all.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));

        let start = (!self.bring_up.is_done()).then_some(self.start.deadline);
        let stop = self.stop.as_ref().map(Stop::deadline);
        let input = self
            .console
            .has_unread_input()
            .then(|| Instant::now() + INPUT_RETRY);
        let deadline = [
            stop,
            input,
            self.control.again_at(),
            self.console.again_at(),
        ]
        .into_iter()
        .fold(start, poll::earlier);
        poll::wait(&mut fds, deadline).context("Cannot wait for the VM")?;
        Ok(())
    }

    /// A template that is written to is told of. One that is cut short ends the VM, before a thread
    /// meets what is gone.
    fn watch_template(&mut self) -> Step {
        let watch = self.template_watch.as_mut();
        let damage = watch.and_then(TemplateWatch::find_damage)?;
        let text = format!("the template is damaged: {}", damage.text);
        self.notice(text.clone());
        self.record.template_damage = Some(damage.text);
        self.write_record();
        let lost = || {
            End::now(
                EndReason::MemoryLost,
                format!("guest memory is lost; {text}"),
            )
        };
        damage.is_lost.then(|| Finish::Ended(lost()))
    }

    fn guest_has_ended(&self) -> Step {
        let reason = if self.memory_faults.happened() {
            ExitReason::MemoryLost
        } else {
            self.machine.exit_reason()?
        };
        let mut message = reason.to_string();
        let damage = self.record.template_damage.as_ref();
        let reason = match reason {
            ExitReason::Poweroff => EndReason::Poweroff,
            ExitReason::Reboot => EndReason::Reboot,
            ExitReason::TripleFault => EndReason::TripleFault,
            ExitReason::Panic => EndReason::Panic,
            ExitReason::MemoryLost => EndReason::MemoryLost,
            ExitReason::Internal(_) => EndReason::Internal,
        };
        if let Some(damage) = damage {
            message = format!("{message}; its template is damaged: {damage}");
        }
        Some(Finish::Ended(End::now(reason, message)))
    }

    /// Ends the machine, unless one of its threads is held because it touched lost memory: that one
    /// cannot be waited for, and goes with the process.
    pub fn dispose(self) {
        if self.memory_faults.happened() {
            std::mem::forget(self);
        }
    }

    fn heed_command(&mut self) -> Step {
        match self.link.as_ref()?.command() {
            Command::Listens => None,
            Command::LetGo => {
                self.link = None;
                None
            }
            Command::Gone => Some(Finish::GivenUp),
        }
    }

    fn heed_signals(&self) -> Step {
        let caught = !self.signals.take().is_empty();
        caught.then(|| Finish::Ended(End::now(EndReason::Stopped, "stopped by a signal")))
    }

    fn heed_requests(&mut self) -> Step {
        let mut finish = None;
        for (client, request) in self.control.serve() {
            let reply = match request {
                Request::Status => Reply::Status {
                    state: self.record.state,
                },
                Request::Pause => as_reply(self.pause()),
                Request::Resume => as_reply(self.resume()),
                Request::GuestMemory => {
                    self.ask_for_memory(client);
                    continue;
                }
                Request::Wait => {
                    self.waiting.push(client);
                    continue;
                }
                Request::Snapshot {
                    name,
                    store,
                    hold_timeout_ms,
                } => {
                    let hold = hold_timeout_ms.map(Duration::from_millis);
                    match self.begin_snapshot(client, &name, &store, hold) {
                        Ok(()) => continue,
                        Err(error) => as_reply(Err(error)),
                    }
                }
                Request::Resize {
                    cpus,
                    memory_bytes,
                    timeout_ms,
                } => {
                    let timeout = Duration::from_millis(timeout_ms);
                    match self.begin_resize(client, cpus, memory_bytes, timeout) {
                        Ok(()) => continue,
                        Err(error) => as_reply(Err(error)),
                    }
                }
                Request::Stop { timeout_ms } => {
                    self.waiting.push(client);
                    finish = finish.or(self.begin_stop(Duration::from_millis(timeout_ms)));
                    continue;
                }
            };
            self.control.reply(client, &reply);
        }
        finish
    }

    fn pause(&mut self) -> anyhow::Result<()> {
        if !self.bring_up.is_done() {
            return Err(anyhow!("it is still starting"));
        }
        if self.stop.is_some() {
            return Err(anyhow!("it is shutting down"));
        }
        self.machine.pause()?;
        self.set_state(State::Paused);
        Ok(())
    }

    fn resume(&mut self) -> anyhow::Result<()> {
        if self.record.state == State::Paused {
            // A snapshot lets it go on when it is taken.
            if !self.stands_still_for_a_snapshot() {
                self.machine.resume();
            }
            self.set_state(State::Running);
        }
        Ok(())
    }

    /// Brings the VM into a state that everybody can see.
    pub fn set_state(&mut self, state: State) {
        self.record.state = state;
        tracing::info!(state = state.name(), "VM changed its state");
        self.write_record();
    }

    /// Writes down what others can know of the VM.
    pub fn write_record(&self) {
        if let Err(error) = self.record.write(&self.dir) {
            tracing::error!("{error:#}");
        }
    }
}

pub fn as_reply(result: anyhow::Result<()>) -> Reply {
    match result {
        Ok(()) => Reply::Done,
        Err(error) => Reply::Error {
            message: describe(&error),
        },
    }
}
