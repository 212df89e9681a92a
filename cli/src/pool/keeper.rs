//! The process of a pool: keeps as many members ready as it was told to.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Signal, pidfd_send_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::member;
use super::place::{Claim, Place, Status};
use super::refill::{Census, Next, Refill};
use super::request::{Stock, Word};
use crate::args::Context;
use crate::json_lines::{self, Lines};
use crate::listen;
use crate::poll;
use crate::signals::Signals;
use crate::state::end::open_process;
use crate::vm_process::fork;
use crate::vm_process::link::Message;

/// How long members may take to end with their pool before they are killed.
const END_TIME: Duration = Duration::from_secs(5);

/// A pool that runs.
#[derive(Debug)]
pub struct Keeper {
    context: Context,
    stock: Stock,
    claim: Claim,
    listener: UnixListener,
    signals: Signals,
    members: Vec<Member>,
    refill: Refill,
    status: Status,
    published: Option<Status>,
    was_full: bool,
}

/// A process of the pool's that somebody may take.
#[derive(Debug)]
struct Member {
    link: UnixStream,
    lines: Lines,
    /// To kill it with; there once it has said which process it is, if it was not gone by then.
    process: Option<OwnedFd>,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Making,
    Ready { private_bytes: u64 },
    Taken { at: Instant },
    Failed,
}

impl Keeper {
    /// Opens the pool. Nothing is in it yet.
    ///
    /// # Errors
    /// There is such a pool, or its files cannot be made.
    pub fn open(
        context: Context,
        stock: Stock,
        size: usize,
        most_bytes: Option<u64>,
    ) -> anyhow::Result<Self> {
        let claim = Place::of(&context.state, &stock.template).claim()?;
        let socket = claim.place().socket();
        let listener = listen::private(&socket)?;
        let signals = Signals::catch(&[SIGHUP, SIGINT, SIGTERM]).context("Cannot catch signals")?;
        let status = Status {
            template: stock.template.clone(),
            store: stock.store.clone(),
            pid: std::process::id(),
            socket,
            size,
            ready: 0,
            handed_out: 0,
            died: 0,
            memory_bytes: 0,
            problem: None,
        };
        Ok(Self {
            context,
            stock,
            claim,
            listener,
            signals,
            members: Vec::new(),
            refill: Refill::new(size, most_bytes),
            status,
            published: None,
            was_full: false,
        })
    }

    /// Keeps the pool until a signal comes. `full` is called when all members are ready for the first time.
    ///
    /// # Errors
    /// The first member cannot be made, or the pool's own files cannot be used.
    pub fn run(
        mut self,
        mut full: impl FnMut(&Status) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let step = format!("Filling the pool of {}", self.stock.template);
        self.context.progress.step(step);
        let result = self.keep(&mut full);
        self.context.progress.finish();
        let ended = self.end_members();
        let removed = self.claim.remove();
        result.and(ended).and(removed)
    }

    fn keep(&mut self, full: &mut impl FnMut(&Status) -> anyhow::Result<()>) -> anyhow::Result<()> {
        loop {
            let next = self.make_members()?;
            self.publish()?;
            let is_full = self.status.ready >= self.status.size || next == Next::TooMuchMemory;
            if is_full && !std::mem::replace(&mut self.was_full, true) {
                self.context.progress.finish();
                full(&self.status)?;
            }
            self.wait(next)?;
            if !self.signals.take().is_empty() {
                return Ok(());
            }
            self.hear_members()?;
            self.answer_callers();
        }
    }

    /// Makes what is missing.
    fn make_members(&mut self) -> anyhow::Result<Next> {
        let next = self.refill.next(&self.census(), Instant::now());
        match next {
            Next::Make => {
                let member = self.make_member()?;
                self.members.push(member);
            }
            Next::TooMuchMemory => {
                let limit = "--max-memory allows no more clones";
                self.status.problem = Some(limit.to_owned());
            }
            Next::At(_) | Next::Enough => {}
        }
        Ok(next)
    }

    fn make_member(&self) -> anyhow::Result<Member> {
        let no_descriptors = "No descriptors left for a clone";
        let (link, pool) = UnixStream::pair().context(no_descriptors)?;
        link.set_nonblocking(true).context(no_descriptors)?;
        let inheritance = member::Inheritance {
            stock: self.stock.clone(),
            state: self.context.state.clone(),
            listener: self.listener.try_clone().context(no_descriptors)?,
            pool,
        };
        fork::fork_orphan(move || member::run(inheritance)).context("Cannot fork")?;
        Ok(Member {
            link,
            lines: Lines::default(),
            process: None,
            stage: Stage::Making,
        })
    }

    fn census(&self) -> Census {
        let mut census = Census::default();
        for member in &self.members {
            match member.stage {
                Stage::Making => census.making += 1,
                Stage::Ready { private_bytes } => {
                    census.ready += 1;
                    census.ready_bytes += private_bytes;
                }
                Stage::Taken { at } => census.taken_at = census.taken_at.max(Some(at)),
                Stage::Failed => {}
            }
        }
        census
    }

    /// Waits for a signal, a member, or with none ready a caller.
    fn wait(&self, next: Next) -> anyhow::Result<()> {
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        let links = self.members.iter();
        fds.extend(links.map(|member| PollFd::new(&member.link, PollFlags::IN)));
        if self.census().ready == 0 {
            fds.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        let look_again = match next {
            Next::At(at) => Some(at),
            Next::Make | Next::Enough | Next::TooMuchMemory => None,
        };
        let deadline = poll::earlier(look_again, self.context.progress.next_refresh());
        poll::wait(&mut fds, deadline).context("Cannot wait for the pool's clones")?;
        Ok(())
    }

    fn hear_members(&mut self) -> anyhow::Result<()> {
        self.context.progress.refresh();
        let mut members = std::mem::take(&mut self.members);
        let mut result = Ok(());
        members.retain_mut(|member| {
            let heard = self.hear(member);
            heard.unwrap_or_else(|error| {
                result = Err(error);
                true
            })
        });
        self.members = members;
        result
    }

    /// Takes what a member says; whether it is still there.
    fn hear(&mut self, member: &mut Member) -> anyhow::Result<bool> {
        let (words, open) = member.lines.receive(&member.link).unwrap_or_default();
        for word in words {
            match word {
                Word::Begun { pid } => member.process = open_process(pid),
                Word::Ready { private_bytes } => {
                    member.stage = Stage::Ready { private_bytes };
                    self.refill.succeeded();
                    self.status.problem = None;
                }
                Word::Taken => {
                    member.stage = Stage::Taken { at: Instant::now() };
                    self.status.handed_out += 1;
                }
                Word::Failed { message } => {
                    member.stage = Stage::Failed;
                    self.lose(&message)?;
                }
            }
        }
        if open {
            return Ok(true);
        }
        match member.stage {
            Stage::Making => self.lose("a process was killed that made a clone")?,
            Stage::Ready { .. } => {
                self.status.died += 1;
                self.lose("a clone was killed that was ready")?;
            }
            // It is on its own, or has said what is wrong.
            Stage::Taken { .. } | Stage::Failed => {}
        }
        Ok(false)
    }

    /// A member is lost. A pool that never had one does not get one.
    fn lose(&mut self, why: &str) -> anyhow::Result<()> {
        self.refill.failed(Instant::now());
        let status = &self.status;
        if !self.was_full && status.ready == 0 && status.handed_out == 0 && status.died == 0 {
            bail!("No clone for the pool: {why}");
        }
        self.report(why.to_owned());
        Ok(())
    }

    /// Tells the user of a problem, once.
    fn report(&mut self, problem: String) {
        if self.status.problem.as_ref() != Some(&problem) {
            self.context.progress.notice(&problem);
            self.status.problem = Some(problem);
        }
    }

    /// Sends those away who come while nothing is ready: they make a clone themselves in the time in which
    /// the pool would make one.
    fn answer_callers(&self) {
        if self.census().ready > 0 {
            return;
        }
        let reason = self.status.problem.clone();
        let reason = reason.unwrap_or_else(|| "all its clones are taken".to_owned());
        while let Ok((caller, _)) = self.listener.accept() {
            let message = Message::Empty {
                reason: reason.clone(),
            };
            json_lines::send(&caller, &message).unwrap_or_default();
        }
    }

    fn publish(&mut self) -> anyhow::Result<()> {
        let census = self.census();
        let status = Status {
            ready: census.ready,
            memory_bytes: census.ready_bytes,
            ..self.status.clone()
        };
        if self.published.as_ref() != Some(&status) {
            self.claim.publish(&status)?;
            self.published = Some(status.clone());
        }
        self.status = status;
        Ok(())
    }

    /// Ends those that nobody has taken, and waits for their end.
    fn end_members(&mut self) -> anyhow::Result<()> {
        let is_ours = |member: &Member| matches!(member.stage, Stage::Making | Stage::Ready { .. });
        self.members.retain(is_ours);
        for member in &self.members {
            // One that is gone cannot be told.
            member
                .link
                .shutdown(std::net::Shutdown::Write)
                .unwrap_or_default();
        }
        let deadline = Instant::now() + END_TIME;
        while !self.members.is_empty() && Instant::now() < deadline {
            let links = self.members.iter();
            let mut fds: Vec<_> = links
                .map(|member| PollFd::new(&member.link, PollFlags::IN))
                .collect();
            poll::wait(&mut fds, Some(deadline)).context("Cannot wait for the pool's clones")?;
            self.members.retain_mut(|member| {
                let heard = member.lines.receive::<Word>(&member.link);
                let (words, open) = heard.unwrap_or_default();
                open && !words.contains(&Word::Taken)
            });
        }
        for process in self.members.iter().filter_map(|m| m.process.as_ref()) {
            pidfd_send_signal(process, Signal::KILL).unwrap_or_default();
        }
        Ok(())
    }
}
