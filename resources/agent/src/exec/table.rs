//! All commands, and who waits for them.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::time::Instant;

use nix::sys::signal::Signal;
use proto::guest::{ExecRequest, WaitResponse};
use proto::stdio::Attach;
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus};
use ttrpc::Code;

use crate::error::{Error, Refusal};
use crate::exec::End;
use crate::exec::image::Image;
use crate::exec::plan::Plan;
use crate::exec::pump::CHUNK_BYTES;
use crate::exec::session::Session;
use crate::server::calls::Caller;
use crate::server::poller::Poller;

/// How many commands may be there at once, so that a host in a loop gets an answer it can read.
const MAX_COMMANDS: usize = 1024;
/// How many ended commands that nobody has waited for are remembered.
const MAX_UNCLAIMED: usize = 256;

/// The answer to a call of `Wait`.
pub type WaitAnswer = (Caller, Result<WaitResponse, Refusal>);

/// All commands by their id.
#[derive(Debug)]
pub struct Table {
    sessions: BTreeMap<u32, Session>,
    waiting: Vec<(u32, Caller)>,
    unclaimed: VecDeque<u32>,
    /// Streams that have more to move than one turn allows.
    unfinished: Vec<(u32, End)>,
    chunk: Vec<u8>,
    image: Image,
    last_id: u32,
}

impl Table {
    /// No command yet.
    pub fn new() -> Self {
        Self {
            sessions: BTreeMap::new(),
            waiting: Vec::new(),
            unclaimed: VecDeque::new(),
            unfinished: Vec::new(),
            chunk: Vec::new(),
            image: Image::load(),
            last_id: 0,
        }
    }

    /// Sets a command up and returns its id.
    pub fn create(&mut self, request: ExecRequest) -> Result<String, Refusal> {
        let plan = Plan::new(request, &self.image)?;
        if self.sessions.len() >= MAX_COMMANDS {
            let text = format!("{MAX_COMMANDS} commands are there already");
            return Err(Refusal::new(Code::RESOURCE_EXHAUSTED, text));
        }
        let id = self.last_id.wrapping_add(1);
        let session = match plan.detached.clone() {
            None => Session::new(id, plan),
            Some(log) => Session::detached(id, plan, &log)?,
        };
        self.last_id = id;
        self.sessions.insert(id, session);
        Ok(id.to_string())
    }

    fn find(&mut self, exec_id: &str) -> Result<(u32, &mut Session), Refusal> {
        exec_id
            .parse()
            .ok()
            .and_then(|id| Some((id, self.sessions.get_mut(&id)?)))
            .ok_or_else(|| Refusal::new(Code::NOT_FOUND, format!("No command {exec_id:?}")))
    }

    /// Whether the stream may be attached; the reason if not.
    pub fn may_attach(&mut self, attach: &Attach) -> Result<(), String> {
        let (_, session) = self
            .find(&attach.exec_id)
            .map_err(|refusal| refusal.message)?;
        session.may_attach(attach.stream)
    }

    /// Takes a stream's connection with what came on it already.
    pub fn attach(
        &mut self,
        attach: &Attach,
        connection: OwnedFd,
        early: Vec<u8>,
        poller: &Poller,
    ) -> Result<(), Error> {
        match self.find(&attach.exec_id) {
            Ok((_, session)) => session.attach(attach.stream, connection, early, poller),
            // Gone since `may_attach`; closing the connection says so.
            Err(_) => Ok(()),
        }
    }

    /// Has `caller` answered when the command has ended.
    pub fn wait(&mut self, exec_id: &str, caller: Caller) -> Result<(), Refusal> {
        let (id, _) = self.find(exec_id)?;
        self.waiting.push((id, caller));
        Ok(())
    }

    /// Sends a signal to a command.
    pub fn signal(&mut self, exec_id: &str, number: i32) -> Result<(), Refusal> {
        let signal = Signal::try_from(number)
            .map_err(|_| Refusal::invalid(format!("{number} is not the number of a signal")))?;
        self.find(exec_id)?.1.signal(signal)
    }

    /// Changes the size of a command's terminal.
    pub fn resize(&mut self, exec_id: &str, rows: u32, cols: u32) -> Result<(), Refusal> {
        self.find(exec_id)?.1.resize(rows, cols)
    }

    /// Something has happened at one end of a stream.
    pub fn advance(&mut self, id: u32, end: End) {
        // Made on first use: an agent that runs no command does without.
        self.chunk.resize(CHUNK_BYTES, 0);
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if session.advance(end, &mut self.chunk) {
            self.unfinished.push((id, end));
        }
    }

    /// Whether some stream waits for its next turn.
    pub fn has_unfinished(&self) -> bool {
        !self.unfinished.is_empty()
    }

    /// Gives every unfinished stream one more turn.
    pub fn advance_unfinished(&mut self) {
        for (id, end) in std::mem::take(&mut self.unfinished) {
            self.advance(id, end);
        }
    }

    /// Reaps every child that has ended, whoever's it was.
    pub fn reap(&mut self) -> Result<(), Error> {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => self.reaped(pid, status),
                Ok(None) | Err(Errno::CHILD) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::system("reap children")(errno)),
            }
        }
    }

    fn reaped(&mut self, pid: Pid, status: WaitStatus) {
        let found = self
            .sessions
            .iter_mut()
            .find(|(_, session)| session.pid() == Some(pid));
        // Others are orphans that PID 1 has inherited.
        let Some((&id, session)) = found else { return };
        session.reaped(status);
        for end in [End::StdoutSource, End::StderrSource] {
            self.advance(id, end);
        }
    }

    /// When `expire` has something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.sessions.values().filter_map(Session::deadline).min()
    }

    /// Does what is due.
    pub fn expire(&mut self, now: Instant) {
        let sessions = self.sessions.iter_mut();
        let to_move: Vec<u32> = sessions
            .filter_map(|(id, session)| session.expire(now).then_some(*id))
            .collect();
        for id in to_move {
            self.advance(id, End::StdoutSource);
        }
    }

    /// The answers for those who wait for a command that has ended. It is then forgotten; one that
    /// nobody waits for is remembered for a while.
    pub fn answers(&mut self) -> Vec<WaitAnswer> {
        let mut answers = Vec::new();
        let sessions = &self.sessions;
        self.waiting.retain(|(id, caller)| {
            let outcome = sessions.get(id).and_then(Session::outcome);
            answers.extend(outcome.map(|outcome| (*id, (*caller, outcome.answer()))));
            outcome.is_none()
        });
        for (id, _) in &answers {
            self.sessions.remove(id);
            self.unclaimed.retain(|unclaimed| unclaimed != id);
        }
        self.remember_unclaimed();
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    fn remember_unclaimed(&mut self) {
        for (id, session) in &self.sessions {
            if session.outcome().is_some() && !self.unclaimed.contains(id) {
                self.unclaimed.push_back(*id);
            }
        }
        while self.unclaimed.len() > MAX_UNCLAIMED {
            if let Some(id) = self.unclaimed.pop_front() {
                self.sessions.remove(&id);
            }
        }
    }

    /// A connection has gone: nobody waits on it any more.
    pub fn forget_callers(&mut self, connection: u32) {
        self.waiting
            .retain(|(_, caller)| caller.connection != connection);
    }
}
