//! A VM in use is shut down, from the request to its end.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use proto::AGENT_PORT;

use super::session::{Finish, Session, Step};
use crate::agent::Agent;
use crate::background::Background;
use crate::error::describe;
use crate::state::record::{End, EndReason, State};

/// The guest was asked to shut down.
#[derive(Debug)]
pub struct Stop {
    deadline: Instant,
    /// None as long as the machine stands still for a snapshot.
    asking: Option<Background<Result<(), String>>>,
}

impl Stop {
    /// When the guest has to have ended.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// What to poll for reading.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.asking.as_ref().map(AsFd::as_fd)
    }
}

impl Session {
    /// Asks the guest to shut down, or ends the VM when no time is given for that.
    pub fn begin_stop(&mut self, timeout: Duration) -> Step {
        if timeout.is_zero() || !self.has_agent {
            return Some(Finish::Ended(End::now(
                EndReason::Stopped,
                "stopped by the user",
            )));
        }
        let deadline = Instant::now() + timeout;
        if let Some(stop) = &mut self.stop {
            stop.deadline = stop.deadline.min(deadline);
            return None;
        }
        self.stop = Some(Stop {
            deadline,
            asking: None,
        });
        self.set_state(State::Stopping);
        None
    }

    fn ask_to_power_off(&mut self) -> std::io::Result<Background<Result<(), String>>> {
        self.machine.resume();
        let stream = self.machine.connect(AGENT_PORT)?;
        Background::start("power-off", move || {
            Agent::over(stream)
                .power_off()
                .map_err(|error| describe(&error.into()))
        })
    }

    /// Takes the next step of a shutdown when it is due.
    pub fn advance_stop(&mut self) -> Step {
        let Stop { deadline, asking } = self.stop.as_ref()?;
        if *deadline <= Instant::now() {
            return Some(killed("the guest did not power off in time"));
        }
        if let Some(asking) = asking {
            let error = asking.take()?.err()?;
            return Some(killed(&error));
        }
        if self.stands_still_for_a_snapshot() {
            return None;
        }
        match self.ask_to_power_off() {
            Ok(asking) => {
                self.stop.as_mut()?.asking = Some(asking);
                None
            }
            Err(error) => Some(killed(&error.to_string())),
        }
    }
}

fn killed(why: &str) -> Finish {
    Finish::Ended(End::now(
        EndReason::Stopped,
        format!("stopped by the user; killed, as {why}"),
    ))
}
