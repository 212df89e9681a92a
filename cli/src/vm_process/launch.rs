//! The command's side: forks the VM process or takes one from a pool, follows it until the VM is ready, and
//! with `--foreground` until its end.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, pidfd_send_signal, waitpid};
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use super::link::{CommandEnd, Message};
use super::plan::{CreatePlan, Created, Plan, Ready, RestorePlan};
use super::process;
use super::sizing::SizeReport;
use super::taking::{self, NotTaken};
use crate::args::Context;
use crate::attach::{Attached, Attachment};
use crate::error::{FAILURE, INTERRUPTED, Outcome, SUCCESS, coded, describe};
use crate::id::VmId;
use crate::signals::Signals;
use crate::state::StateDir;
use crate::state::claim::Claim;
use crate::state::end::open_process;
use crate::state::record::{End, EndReason};
use crate::{output, poll, timeline};

/// How long an interrupted VM process may take to clean up before it is killed.
const CLEAN_UP_TIME: Duration = Duration::from_secs(10);
/// How long a pool may take to find a clone, which is there or not.
const TAKING_TIME: Duration = Duration::from_secs(5);
/// Signals this close are one: timeout(1), for example, sends two.
const ONE_INTERRUPTION: Duration = Duration::from_millis(500);
/// How long the console may take to be printed after the VM has ended, without any progress.
const CONSOLE_TIME: Duration = Duration::from_secs(2);

/// How a VM is to live.
#[derive(Args, Clone, Debug)]
pub struct LifeArgs {
    /// Id of the VM [default: a random one]
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    pub id: Option<VmId>,
    /// Attach the terminal to the guest's console and end with the VM's exit code; Ctrl-] ends
    /// the VM
    #[arg(long, conflicts_with = "json")]
    pub foreground: bool,
    /// Remove the VM with its logs when it ends
    #[arg(long)]
    pub rm: bool,
    /// Print what is known about the VM as JSON
    #[arg(long)]
    pub json: bool,
    /// Print when each step of the start was done
    #[arg(long)]
    pub timings: bool,
}

/// Starts a VM and prints its id, or is its console until its end.
pub fn vm(context: Context, plan: Plan, life: &LifeArgs) -> Outcome {
    context.state.vm(plan.id()).check_socket_paths()?;
    let mut follower = Follower::start(context, plan, life.foreground, life.rm)?;
    if life.foreground {
        return follower.until_end(life.timings);
    }
    let ready = follower.until_ready();
    tell(&mut follower, ready, life)
}

/// Takes a VM from a pool and prints its id. Without a pool, or with an empty one, a VM is started as by
/// [`vm`].
pub fn pooled_vm(mut context: Context, plan: RestorePlan, life: &LifeArgs) -> Outcome {
    context.state.vm(&plan.id).check_socket_paths()?;
    let reason = match taking::ask(&context, &plan, life.rm) {
        Ok(link) => {
            let mut follower = Follower::of_pool(context, plan.id.clone(), link)?;
            match follower.until_ready() {
                Err(error) if error.is::<NotTaken>() => {
                    context = follower.context;
                    error
                }
                ready => return tell(&mut follower, ready, life),
            }
        }
        Err(error) => error,
    };
    let notice = format!("making a clone of its own: {}", describe(&reason));
    context.progress.notice(notice);
    vm(context, Plan::Restore(plan), life)
}

/// Prints what became of a VM, and lets it go.
fn tell(follower: &mut Follower, ready: anyhow::Result<Ready>, life: &LifeArgs) -> Outcome {
    let id = follower.id.clone();
    let ready = match ready {
        Ok(ready) => ready,
        Err(error) => {
            if let Some(size) = follower.size.take().filter(|_| life.json) {
                output::json(&Shortfall { id, size })?;
            }
            return Err(error);
        }
    };
    if life.json {
        output::json(&ready)?;
    } else {
        output::line(&ready.id)?;
    }
    if life.timings {
        print_timings(&ready.timeline);
    }
    // Last, so that a VM whose id nobody could be told does not stay.
    follower
        .link
        .let_go()
        .with_context(|| format!("VM {id} has ended right after its start"))?;
    Ok(SUCCESS)
}

/// Makes a template.
///
/// # Errors
/// It could not be made, or the user interrupted.
pub fn template(context: &mut Context, plan: CreatePlan) -> anyhow::Result<Created> {
    context.state.vm(&plan.id).check_socket_paths()?;
    let own = Context {
        state: context.state.clone(),
        store: context.store.clone(),
        verbosity: context.verbosity,
        progress: context.progress.take(),
        timeline: context.timeline.clone(),
        early: None,
    };
    let mut follower = Follower::start(own, Plan::Create(plan), false, false)?;
    let created = follower.until_created();
    context.progress = follower.context.progress.take();
    created
}

/// Prints a timeline on standard error.
pub fn print_timings(steps: &[timeline::Step]) {
    for line in timeline::render(steps) {
        output::complain(line);
    }
}

/// What `--json` tells of a clone that did not come to its size, and is gone.
#[derive(Serialize)]
struct Shortfall {
    id: VmId,
    size: Box<SizeReport>,
}

/// Follows one VM process.
struct Follower {
    context: Context,
    id: VmId,
    process: Process,
    link: CommandEnd,
    signals: Signals,
    attachment: Option<Attachment>,
    foreground: bool,
    /// When the user has interrupted first.
    interrupted: Option<Instant>,
    /// The VM process is killed at this time.
    kill_at: Option<Instant>,
    /// The link has ended.
    silent: bool,
    /// How far the VM's growth got, when that is why there is no VM.
    size: Option<Box<SizeReport>>,
}

/// The VM process.
#[derive(Debug)]
enum Process {
    /// This one has forked it.
    Child(Pid),
    /// It is a pool's, and has been found; `None` when it was gone by then, which the link tells too.
    Member(Option<OwnedFd>),
    /// The pool has until then to find one.
    Awaited(Instant),
}

impl Follower {
    fn start(
        mut context: Context,
        plan: Plan,
        foreground: bool,
        remove: bool,
    ) -> anyhow::Result<Self> {
        let id = plan.id().clone();
        let started = process::start(&mut context, plan, foreground, remove)?;
        let follower = Self::of(context, id, Process::Child(started.pid), started.link)?;
        let attachment = started.console.as_ref().map(Attachment::new).transpose()?;
        Ok(Self {
            attachment,
            foreground,
            ..follower
        })
    }

    fn of_pool(context: Context, id: VmId, link: CommandEnd) -> anyhow::Result<Self> {
        let process = Process::Awaited(Instant::now() + TAKING_TIME);
        Self::of(context, id, process, link)
    }

    fn of(context: Context, id: VmId, process: Process, link: CommandEnd) -> anyhow::Result<Self> {
        let signals =
            Signals::catch(&[SIGHUP, SIGINT, SIGQUIT, SIGTERM]).context("Cannot catch signals")?;
        Ok(Self {
            context,
            id,
            process,
            link,
            signals,
            attachment: None,
            foreground: false,
            interrupted: None,
            kill_at: None,
            silent: false,
            size: None,
        })
    }

    fn until_ready(&mut self) -> anyhow::Result<Ready> {
        loop {
            match self.next_message()? {
                // One that was given up while it said so is going to say how it ends.
                Some(Message::Ready(ready)) if self.interrupted.is_none() => return Ok(*ready),
                Some(Message::Ended(end)) => bail!("VM {} has ended: {}", self.id, end.message),
                Some(Message::Empty { reason }) => return Err(NotTaken(reason).into()),
                Some(_) => {}
                None => return Err(self.lost()),
            }
        }
    }

    fn until_created(&mut self) -> anyhow::Result<Created> {
        loop {
            match self.next_message()? {
                Some(Message::Created(created)) => {
                    self.reap();
                    return Ok(*created);
                }
                Some(_) => {}
                None => return Err(self.lost()),
            }
        }
    }

    fn until_end(&mut self, timings: bool) -> Outcome {
        let mut timeline = Vec::new();
        let end: End = loop {
            match self.next_message()? {
                Some(Message::Ended(end)) => break end,
                Some(Message::Ready(ready)) if timings => timeline = ready.timeline,
                Some(_) => {}
                None => return Err(self.lost()),
            }
        };
        self.print_rest_of_console()?;
        // The terminal has to be itself again before anything is printed on it.
        self.attachment = None;
        self.reap();
        print_timings(&timeline);
        self.context
            .progress
            .notice(format!("VM {}: {}", self.id, end.message));
        Ok(end.code)
    }

    /// The next message that is not only for the user; `None` at the end of the link.
    fn next_message(&mut self) -> anyhow::Result<Option<Message>> {
        loop {
            if self.silent {
                return Ok(None);
            }
            self.wait()?;
            let (messages, open) = self
                .link
                .receive()
                .context("The VM process sent something unexpected")?;
            self.silent = !open;
            for message in messages {
                match message {
                    Message::Taken { pid } => self.process = Process::Member(open_process(pid)),
                    Message::Notice(text) => self.context.progress.notice(text),
                    Message::Step(text) if !self.foreground => self.context.progress.step(text),
                    Message::Step(_) => {}
                    Message::Failed {
                        code,
                        message,
                        size,
                    } => {
                        self.size = size;
                        self.attachment = None;
                        self.reap();
                        return Err(coded(code, message));
                    }
                    result => {
                        self.context.progress.finish();
                        return Ok(Some(result));
                    }
                }
            }
        }
    }

    /// Waits for the link, a signal, or the console, and moves the console's bytes.
    fn wait(&mut self) -> anyhow::Result<()> {
        let mut deadline = poll::earlier(self.context.progress.next_refresh(), self.kill_at);
        if let Process::Awaited(until) = self.process {
            if until <= Instant::now() {
                return Err(NotTaken("the pool does not answer".to_owned()).into());
            }
            deadline = poll::earlier(deadline, Some(until));
        }
        let wanted = self
            .attachment
            .as_ref()
            .map(Attachment::fds)
            .unwrap_or_default();
        let mut fds = vec![
            PollFd::new(&self.link, PollFlags::IN),
            PollFd::new(&self.signals, PollFlags::IN),
        ];
        fds.extend(
            wanted
                .iter()
                .flatten()
                .map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)),
        );
        poll::wait(&mut fds, deadline).context("Cannot wait for the VM process")?;
        let mut polled = fds.iter().skip(2);
        let ready = wanted
            .map(|fd| fd.is_some() && polled.next().is_some_and(|fd| !fd.revents().is_empty()));
        drop(fds);

        self.context.progress.refresh();
        self.move_console(ready)?;
        if !self.signals.take().is_empty() {
            self.interrupt()?;
        }
        if self.kill_at.is_some_and(|at| at <= Instant::now()) {
            self.kill()?;
        }
        Ok(())
    }

    fn move_console(&mut self, ready: [bool; 2]) -> anyhow::Result<()> {
        let Some(attachment) = &mut self.attachment else {
            return Ok(());
        };
        // A standard output that cannot be written is no reason to end the VM.
        match attachment.step(ready).unwrap_or(Attached::Ended) {
            Attached::Yes => Ok(()),
            Attached::Ended => {
                self.attachment = None;
                Ok(())
            }
            Attached::Left => {
                self.attachment = None;
                self.interrupt()
            }
        }
    }

    /// Makes the VM end; the second time at once.
    fn interrupt(&mut self) -> anyhow::Result<()> {
        if let Some(first) = self.interrupted {
            return if first.elapsed() < ONE_INTERRUPTION {
                Ok(())
            } else {
                self.kill()
            };
        }
        let now = Instant::now();
        self.interrupted = Some(now);
        self.kill_at = Some(now + CLEAN_UP_TIME);
        // If its process has gone already, the link says so next.
        self.link.give_up().unwrap_or_default();
        Ok(())
    }

    fn kill(&mut self) -> anyhow::Result<()> {
        self.kill_at = None;
        let killed = match &self.process {
            Process::Child(pid) => kill_process(*pid, Signal::KILL),
            Process::Member(Some(pidfd)) => pidfd_send_signal(pidfd, Signal::KILL),
            Process::Member(None) => Ok(()),
            // Nobody is there who could be killed.
            Process::Awaited(_) => bail!("Interrupted"),
        };
        killed.context("Cannot kill the VM process")
    }

    fn print_rest_of_console(&mut self) -> anyhow::Result<()> {
        while let Some(attachment) = &mut self.attachment {
            let [_, output] = attachment.fds();
            let Some((fd, flags)) = output else {
                break;
            };
            let mut fds = [PollFd::from_borrowed_fd(fd, flags)];
            if poll::wait(&mut fds, Some(Instant::now() + CONSOLE_TIME))? == 0 {
                break;
            }
            self.move_console([false, true])?;
        }
        Ok(())
    }

    /// The VM process has gone without a last word: says how, and cleans up after it.
    fn lost(&mut self) -> anyhow::Error {
        self.attachment = None;
        self.context.progress.finish();
        if matches!(self.process, Process::Awaited(_)) && self.interrupted.is_none() {
            return NotTaken("the pool has ended".to_owned()).into();
        }
        let how = self.reap();
        let log = self.context.state.vm(&self.id).vmm_log();
        let log = std::fs::read_to_string(log).unwrap_or_default();
        clean_up(&self.context.state, &self.id);
        let last = log
            .lines()
            .last()
            .map(|line| format!("; its log ends with: {line}"));
        let last = last.unwrap_or_default();
        if self.interrupted.is_some() {
            return coded(INTERRUPTED, "Interrupted");
        }
        let code = if self.foreground {
            EndReason::Killed.code()
        } else {
            FAILURE
        };
        coded(code, format!("The VM process {how}{last}"))
    }

    fn reap(&mut self) -> String {
        let pid = match &self.process {
            Process::Child(pid) => *pid,
            Process::Member(pidfd) => {
                // It has closed the link, so its end is near; how it ends is told to its parent only.
                if let Some(pidfd) = pidfd {
                    poll::readable(pidfd, Some(Instant::now() + CLEAN_UP_TIME)).unwrap_or_default();
                }
                return "has ended".to_owned();
            }
            Process::Awaited(_) => return "is gone".to_owned(),
        };
        match waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => match (status.terminating_signal(), status.exit_status()) {
                (Some(signal), _) => format!("was killed by signal {signal}"),
                (None, Some(code)) if code == i32::from(EndReason::MemoryLost.code()) => {
                    "cannot reach the guest's memory any more".to_owned()
                }
                (None, code) => format!("ended with code {}", code.unwrap_or_default()),
            },
            Ok(None) => "is gone".to_owned(),
            Err(error) => format!("is gone ({error})"),
        }
    }
}

/// Removes what a VM process that was killed has left.
fn clean_up(state: &StateDir, id: &VmId) {
    if !state.vm(id).exists() {
        return;
    }
    if let Err(error) = Claim::leftover(state, id).and_then(Claim::remove) {
        tracing::warn!("{error:#}");
    }
}
