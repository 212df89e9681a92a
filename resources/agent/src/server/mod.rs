//! The agent's loop: everything that happens, one thing after another.
//!
//! - [`poller`] waits; [`listeners`] are where the host connects.
//! - [`connection`] is a ttrpc connection, [`calls`] what can be called on it, [`adoption`] the call
//!   that a clone gets first, [`jobs`] the few calls that take long.
//! - [`attach`] is a connection for a stream until a command or a program takes it over.

pub mod adoption;
pub mod attach;
pub mod calls;
pub mod connection;
pub mod jobs;
pub mod listeners;
pub mod poller;

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use proto::forward::Target;
use proto::guest::shutdown_request::Action;
use proto::stdio::Attach;
use protobuf::Message;
use ttrpc::Code;

use crate::error::{Error, Refusal};
use crate::exec::spawn::raise_file_limit;
use crate::exec::table::Table;
use crate::forward::Relays;
use crate::machine::{Machine, shutdown};
use crate::say;
use attach::{Attaching, Step};
use calls::{Caller, Outcome, Services};
use connection::{Answer, Closed, Connection};
use jobs::Jobs;
pub use listeners::Listeners;
use poller::{Poller, Token};

/// What the agent reads as events instead of being interrupted by.
const SIGNALS: [Signal; 4] = [
    Signal::SIGCHLD,
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGPWR,
];

/// The agent, once it listens.
#[derive(Debug)]
pub struct Server {
    poller: Poller,
    listeners: Listeners,
    signals: SignalFd,
    services: Services,
    connections: BTreeMap<u32, Connection>,
    attaching: BTreeMap<u32, Attaching>,
    /// Connections that have not said yet which program of the guest's they want.
    asking: BTreeMap<u32, Attaching>,
    relays: Relays,
    last_connection: u32,
    /// Nobody can attach to a command, and so start it, while processes are held.
    holding: bool,
    stopped: bool,
}

impl Server {
    /// Prepares to serve on `listeners`, for commands and, where it is ours, `machine`. From here on the signals are blocked.
    pub fn new(listeners: Listeners, machine: Option<Machine>) -> Result<Self, Error> {
        raise_file_limit().map_err(Error::system("raise the limit of open files"))?;
        let signals = SIGNALS.into_iter().collect::<SigSet>();
        signals
            .thread_block()
            .map_err(Error::system("block signals"))?;
        let signals =
            SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
                .map_err(Error::system("watch for signals"))?;
        let services = Services {
            machine,
            commands: Table::new(),
            jobs: Jobs::new()?,
        };

        let poller = Poller::new()?;
        poller.watch_input(&listeners.calls, Token::CallListener)?;
        poller.watch_input(&listeners.stdio, Token::StdioListener)?;
        poller.watch_input(&listeners.forward, Token::ForwardListener)?;
        poller.watch_input(signals.as_fd(), Token::Signal)?;
        poller.watch_input(services.jobs.as_fd(), Token::Job)?;
        Ok(Self {
            poller,
            listeners,
            signals,
            services,
            connections: BTreeMap::new(),
            attaching: BTreeMap::new(),
            asking: BTreeMap::new(),
            relays: Relays::default(),
            last_connection: 0,
            holding: false,
            stopped: false,
        })
    }

    /// Serves until a service is told to stop, or the loop itself fails.
    pub fn run(mut self) -> Result<(), Error> {
        while !self.stopped {
            for token in self.poller.wait(self.patience())? {
                self.handle(token)?;
            }
            self.follow_hold()?;
            self.services.commands.advance_unfinished();
            self.relays.advance_unfinished();
            self.services.commands.expire(Instant::now());
            for (caller, answer) in self.services.commands.answers() {
                self.answer(caller, answer.and_then(|answer| encode(&answer)));
            }
        }
        Ok(())
    }

    /// How long the loop may sleep: for ever, unless a command waits for something.
    fn patience(&self) -> Option<Duration> {
        if self.services.commands.has_unfinished() || self.relays.has_unfinished() {
            return Some(Duration::ZERO);
        }
        let deadline = self.services.commands.next_deadline();
        deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    fn handle(&mut self, token: Token) -> Result<(), Error> {
        match token {
            Token::CallListener => self.accept_calls(),
            Token::StdioListener => self.accept_stdio(),
            Token::Signal => self.read_signals(),
            Token::Job => self.finish_jobs(),
            Token::Call(id) => self.receive_calls(id),
            Token::Attach(id) => self.receive_attach(id),
            Token::Stream(id, end) => {
                self.services.commands.advance(id, end);
                Ok(())
            }
            Token::ForwardListener => self.accept_forward(),
            Token::Asking(id) => self.receive_target(id),
            Token::Relay(id) => {
                self.relays.advance(id);
                Ok(())
            }
        }
    }

    /// Leaves new streams alone while processes are held, and takes care of them afterwards.
    fn follow_hold(&mut self) -> Result<(), Error> {
        let holding = self.services.is_holding();
        if holding == self.holding {
            return Ok(());
        }
        self.holding = holding;
        if holding {
            return self.poller.forget(&self.listeners.stdio);
        }
        self.poller
            .watch_input(&self.listeners.stdio, Token::StdioListener)?;
        let attaching: Vec<u32> = self.attaching.keys().copied().collect();
        attaching
            .into_iter()
            .try_for_each(|id| self.receive_attach(id))
    }

    fn next_connection(&mut self) -> u32 {
        self.last_connection = self.last_connection.wrapping_add(1);
        self.last_connection
    }

    fn accept_calls(&mut self) -> Result<(), Error> {
        if let Some(socket) = self.listeners.accept_call()? {
            let id = self.next_connection();
            let connection = Connection::new(socket);
            self.poller
                .watch_changes(connection.as_fd(), Token::Call(id))?;
            self.connections.insert(id, connection);
        }
        Ok(())
    }

    fn accept_stdio(&mut self) -> Result<(), Error> {
        if self.services.is_holding() {
            return Ok(());
        }
        if let Some(socket) = self.listeners.accept_stdio()? {
            let id = self.next_connection();
            let attaching = Attaching::new(socket);
            self.poller
                .watch_changes(attaching.as_fd(), Token::Attach(id))?;
            self.attaching.insert(id, attaching);
        }
        Ok(())
    }

    fn receive_calls(&mut self, id: u32) -> Result<(), Error> {
        let Some(connection) = self.connections.get_mut(&id) else {
            return Ok(());
        };
        let received = connection.flush().and_then(|()| connection.receive());
        let Ok((requests, finished)) = received else {
            self.forget(id);
            return Ok(());
        };
        for (stream_id, request) in requests {
            let caller = Caller {
                connection: id,
                stream_id,
            };
            match self.services.call(caller, &request) {
                Outcome::Answer(answer) => self.answer(caller, answer),
                Outcome::Later => {}
                // The answer is short: it has gone into the empty buffer of the socket.
                Outcome::AnswerAndClose(answer) => {
                    self.answer(caller, answer);
                    self.forget(id);
                }
                Outcome::AnswerAndEnd(answer, action) => {
                    self.answer(caller, answer);
                    self.end(action)?;
                }
            }
        }
        // A client that only half-closes does not want the answers it still waits for.
        if finished {
            self.forget(id);
        }
        Ok(())
    }

    fn receive_attach(&mut self, id: u32) -> Result<(), Error> {
        if self.services.is_holding() {
            return Ok(());
        }
        let Some(attaching) = self.attaching.get_mut(&id) else {
            return Ok(());
        };
        let step = attaching.receive::<Attach>();
        if matches!(step, Step::Incomplete) {
            return Ok(());
        }
        let Some(attaching) = self.attaching.remove(&id) else {
            return Ok(());
        };
        match step {
            Step::Incomplete | Step::Gone => {}
            Step::Wrong(reason) => attaching.refuse(&reason),
            Step::Asks(attach, early) => match self.services.commands.may_attach(&attach) {
                Err(reason) => attaching.refuse(&reason),
                Ok(()) => {
                    self.poller.forget(attaching.as_fd())?;
                    if let Some(socket) = attaching.accept() {
                        self.services
                            .commands
                            .attach(&attach, socket, early, &self.poller)?;
                    }
                }
            },
        }
        Ok(())
    }

    fn accept_forward(&mut self) -> Result<(), Error> {
        if let Some(socket) = self.listeners.accept_forward()? {
            let id = self.next_connection();
            let asking = Attaching::new(socket);
            self.poller
                .watch_changes(asking.as_fd(), Token::Asking(id))?;
            self.asking.insert(id, asking);
        }
        Ok(())
    }

    fn receive_target(&mut self, id: u32) -> Result<(), Error> {
        let Some(mut asking) = self.asking.remove(&id) else {
            return Ok(());
        };
        match asking.receive::<Target>() {
            Step::Incomplete => drop(self.asking.insert(id, asking)),
            Step::Gone => {}
            Step::Wrong(reason) => asking.refuse(&reason),
            Step::Asks(target, early) => {
                self.poller.forget(asking.as_fd())?;
                let host = asking.into_socket();
                self.relays.start(id, host, &target, early, &self.poller)?;
            }
        }
        Ok(())
    }

    fn finish_jobs(&mut self) -> Result<(), Error> {
        for (caller, answer) in self.services.jobs.done()? {
            if let Some(caller) = caller {
                self.answer(caller, answer);
            }
        }
        Ok(())
    }

    fn answer(&mut self, caller: Caller, answer: Answer) {
        let Some(connection) = self.connections.get_mut(&caller.connection) else {
            return;
        };
        if let Err(Closed) = connection.answer(caller.stream_id, answer) {
            self.forget(caller.connection);
        }
    }

    fn forget(&mut self, connection: u32) {
        self.connections.remove(&connection);
        self.services.forget_caller(connection);
    }

    fn read_signals(&mut self) -> Result<(), Error> {
        while let Some(info) = self
            .signals
            .read_signal()
            .map_err(Error::system("read a signal"))?
        {
            match Signal::try_from(info.ssi_signo.cast_signed()) {
                Ok(Signal::SIGCHLD) => self.services.commands.reap()?,
                // Ctrl-alt-del, when it is PID 1 that gets it.
                Ok(Signal::SIGINT) => self.stop(Action::REBOOT)?,
                _ => self.stop(Action::POWEROFF)?,
            }
        }
        Ok(())
    }

    /// Obeys a signal: PID 1 ends the machine, a service itself.
    fn stop(&mut self, action: Action) -> Result<(), Error> {
        if std::process::id() == 1 {
            return self.end(action);
        }
        self.stopped = true;
        Ok(())
    }

    fn end(&mut self, action: Action) -> Result<(), Error> {
        say(match action {
            Action::POWEROFF => "powering off",
            Action::REBOOT => "rebooting",
            Action::HALT => "halting",
        });
        // So that processes can end in order.
        if let Some(machine) = &mut self.services.machine
            && let Err(error) = machine.held.release()
        {
            say(&error.to_string());
        }
        match shutdown::end(action) {
            Err(error) if std::process::id() != 1 => say(&error.to_string()),
            result => result?,
        }
        Ok(())
    }
}

fn encode(message: &impl Message) -> Answer {
    message
        .write_to_bytes()
        .map_err(|error| Refusal::new(Code::INTERNAL, error.to_string()))
}
