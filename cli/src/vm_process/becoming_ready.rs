//! A VM becomes ready, from the first word of its agent to the answer that the command waits for.

use std::time::Instant;

use anyhow::anyhow;

use super::bring_up::{Answer, Ask, BringUp};
use super::link::Message;
use super::plan::{GuestReport, Ready};
use super::session::{Finish, Session, Step};
use super::sizing::{NotReached, Outcome, SizeReport};
use super::snapshot::Origin;
use super::tuning::Tuning;
use crate::agent::{Adopted, HookFailed};
use crate::error::describe;
use crate::state::record::State;

impl Session {
    /// Takes the next step from running vCPUs to a VM that is ready.
    pub fn advance_bring_up(&mut self) -> Step {
        match self.try_advance() {
            Ok(step) => step,
            Err(error) if self.start.agent_is_optional => {
                self.notice(format!("going on without an agent: {}", describe(&error)));
                self.bring_up = BringUp::Done;
                self.report_ready(None)
            }
            Err(error) => Some(Finish::Failed(error)),
        }
    }

    fn try_advance(&mut self) -> anyhow::Result<Step> {
        let late = self.start.deadline <= Instant::now();
        match &mut self.bring_up {
            BringUp::Done => return Ok(None),
            BringUp::Booting(bell) => {
                if bell.has_rung()? {
                    self.timeline.mark("agent up");
                    let ask = self.start.ask.clone();
                    let (timeout, keep) = (self.start.ask_timeout, self.start.agent_is_optional);
                    if let Ask::Prepare(Some(job)) = &ask {
                        self.start.deadline = Instant::now() + timeout + job.warm.most_time();
                        if let Some(link) = &self.link {
                            link.send(&Message::Step("Warming the guest up".to_owned()));
                        }
                    }
                    self.bring_up = BringUp::ask(&self.machine, ask, timeout, keep)?;
                    return Ok(None);
                }
            }
            BringUp::Asking(asking) => {
                if let Some(answer) = asking.take() {
                    self.bring_up = BringUp::Done;
                    return answer.map(|answer| self.take_answer(answer));
                }
            }
        }
        if late {
            let seconds = self.start.timeout.as_secs();
            let hint = "--timeout gives it more time, --foreground shows its console";
            return Err(anyhow!(
                "The guest's agent did not answer within {seconds} s; {hint}"
            ));
        }
        Ok(None)
    }

    fn take_answer(&mut self, answer: Answer) -> Step {
        match answer {
            Answer::Prepared => {
                self.timeline.mark("agent answered");
                Some(Finish::Prepared)
            }
            Answer::Adopted(adopted, at, size) => {
                let steps = size
                    .as_ref()
                    .map_or_else(Vec::new, |size| size.steps.clone());
                let answered = ("agent answered", at);
                self.timeline
                    .add_instants(std::iter::once(answered).chain(steps));
                self.has_agent = true;
                if let Some(finish) = self.check_hooks(&adopted) {
                    return Some(finish);
                }
                let mut guest = GuestReport {
                    online_cpus: adopted.online_cpus,
                    memory_bytes: adopted.memory_bytes,
                    agent_version: adopted.agent_version,
                    hooks: adopted.hooks,
                };
                if let Some(Outcome { report: size, .. }) = size {
                    if let Some(finish) = self.take_size(&size) {
                        return Some(finish);
                    }
                    guest.online_cpus = size.online_cpus;
                    guest.memory_bytes = size.guest_memory_bytes;
                    self.size = Some(size);
                }
                self.report_ready(Some(guest))
            }
        }
    }

    /// A clone that is not unique in the way that its own programs see to is no clone, unless it may
    /// stay as it is.
    fn check_hooks(&self, adopted: &Adopted) -> Step {
        let error = HookFailed(adopted.failed_hook()?.clone());
        if !self.start.agent_is_optional {
            return Some(Finish::Failed(error.into()));
        }
        self.notice(format!("going on nevertheless: {error}"));
        None
    }

    /// A clone that did not come to its size is no clone, unless it may stay as it is.
    fn take_size(&mut self, size: &SizeReport) -> Step {
        self.note_size(size);
        if size.reached {
            return None;
        }
        let error = NotReached(size.clone());
        if !self.start.agent_is_optional {
            return Some(Finish::Failed(error.into()));
        }
        self.notice(format!("going on nevertheless: {error}"));
        None
    }

    /// Tells the command that the VM is up. One that nobody could find is not.
    pub fn report_ready(&mut self, guest: Option<GuestReport>) -> Option<Finish> {
        self.record.state = State::Running;
        if let Err(error) = self.record.write(&self.dir) {
            return Some(Finish::Failed(error));
        }
        tracing::info!(state = State::Running.name(), "VM changed its state");
        self.ready = true;
        let has_answered = guest.is_some();
        let link = self.link.as_ref()?;
        let record = &self.record;
        link.send(&Message::Ready(Box::new(Ready {
            id: record.id.clone(),
            pid: record.pid,
            cid: record.cid,
            vsock: record.vsock.clone(),
            template: record.template.clone(),
            cpus: record.cpus,
            memory_bytes: record.memory_bytes,
            network: self.network.as_ref().map(|network| network.guest.clone()),
            size: self.size.clone(),
            agent_ms: guest.is_some().then(|| self.timeline.elapsed_ms()),
            guest,
            restore_ms: self.start.restored_ms,
            timeline: self.timeline.steps().to_vec(),
        })));
        if has_answered {
            self.record_working_set();
        }
        None
    }

    /// The first clone of a template that is ready tells later ones what it has written. One that was grown
    /// has written more than others do.
    fn record_working_set(&mut self) {
        let Origin::Template(template) = &self.origin else {
            return;
        };
        if self.size.is_some() || template.has_working_set() {
            return;
        }
        let written = self.machine.working_set().map_err(anyhow::Error::new);
        let begun = written.and_then(|written| Ok(Tuning::begin(template.clone(), written)?));
        match begun {
            Ok(tuning) => self.tuning = Some(tuning),
            Err(error) => tracing::debug!("Later clones take longer: {}", describe(&error)),
        }
    }
}
