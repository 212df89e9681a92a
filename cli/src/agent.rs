//! The guest's agent: what minivmm asks of it, and within what time.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::anyhow;
use proto::guest::shutdown_request::Action;
use proto::{AGENT_PORT, AgentClient, CallError, MIN_ENTROPY_BYTES, agent, guest};
use serde::{Deserialize, Serialize};
use ttrpc::Code;
use vmm::Moment;

use crate::hybrid::{self, ConnectError};
use crate::id::VmId;
use crate::net::GuestNetwork;
use crate::random;

/// For calls that the agent answers at once.
pub const PROMPT: Duration = Duration::from_secs(10);

/// How much longer than its processes may take to stop the agent may take to say so.
const HOLD_ANSWER: Duration = Duration::from_secs(1);
/// How far the guest's clock may be off for sure. What it was told is late by the time that took.
const TIME_TOLERANCE: Duration = Duration::from_millis(50);
/// How long a guest that is slow to answer is told the time again.
const TIME_PATIENCE: Duration = Duration::from_secs(5);

/// What makes a VM different from every other one.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The guest's vsock context id.
    pub cid: u32,
    /// Its host name.
    pub hostname: String,
    /// Its generation id.
    pub generation: [u8; 16],
    /// Its machine id, 32 hexadecimal digits.
    pub machine_id: String,
    /// The template, if it is a clone of one.
    pub template: Option<String>,
    /// What its network interface is to be.
    pub network: Option<Box<GuestNetwork>>,
    /// When time began to pass for it, by two clocks.
    pub begun: Option<Moment>,
}

impl Identity {
    /// A new identity for the VM `id`.
    ///
    /// # Errors
    /// The kernel gives no random bytes.
    pub fn new(id: &VmId) -> std::io::Result<Self> {
        let mut generation = [0; 16];
        let mut machine = [0; 16];
        let mut cid = [0; 4];
        random::fill(&mut generation)?;
        random::fill(&mut machine)?;
        random::fill(&mut cid)?;
        Ok(Self {
            cid: usable_cid(u32::from_ne_bytes(cid)),
            hostname: id.to_string(),
            generation,
            machine_id: random::hex(&machine),
            template: None,
            network: None,
            begun: None,
        })
    }
}

/// Maps any number to a context id that a guest may have: 0 to 2 and the last one are taken.
fn usable_cid(random: u32) -> u32 {
    3 + random % (u32::MAX - 3)
}

/// What the guest reports after it has taken its identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// CPUs in use; 0 if the agent does not tell.
    pub online_cpus: u32,
    /// The guest's total memory in bytes; 0 if the agent does not tell.
    pub memory_bytes: u64,
    /// The agent's version.
    pub agent_version: String,
    /// What the guest's own programs did to make it unique, in their order.
    pub hooks: Vec<Hook>,
}

/// A program of the guest's that ran at the adoption.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Hook {
    /// Its file name.
    pub name: String,
    /// What went wrong. No hook ran after this one, and the guest's other processes are held.
    pub failure: Option<String>,
    /// The end of what it printed, if something went wrong.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub output: String,
    /// How long it ran.
    pub took_ms: u32,
}

impl Adopted {
    /// The hook that did not end well.
    pub fn failed_hook(&self) -> Option<&Hook> {
        self.hooks.iter().find(|hook| hook.failure.is_some())
    }
}

/// A hook that did not end well.
#[derive(Clone, Debug, thiserror::Error)]
#[error("Hook {} of the guest {}{}", .0.name, .0.failure.as_deref().unwrap_or("failed"), said(.0))]
pub struct HookFailed(pub Hook);

/// What the guest is to use of what was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Online {
    /// CPUs in all; 0 leaves them alone.
    pub cpus: u8,
    /// Memory beyond what there was at boot, in bytes; 0 waits for none.
    pub added_bytes: u64,
}

/// What the guest uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IsOnline {
    /// CPUs.
    pub cpus: u32,
    /// Memory that its kernel manages, in bytes.
    pub memory_bytes: u64,
    /// It has the memory that it was to have.
    pub has_memory: bool,
    /// What its kernel refused, if anything.
    pub refused: String,
}

impl From<guest::HookResult> for Hook {
    fn from(result: guest::HookResult) -> Self {
        Self {
            name: printable(&result.name),
            failure: Some(printable(&result.failure)).filter(|failure| !failure.is_empty()),
            output: printable(&result.output),
            took_ms: result.took_ms,
        }
    }
}

/// What the guest sends must not steer the terminal that it is shown on.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() && c != '\n' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

fn no_network_call() -> anyhow::Error {
    anyhow!(
        "The guest's agent cannot set up the network; build the guest anew with 'minivmm guest build'"
    )
}

fn said(hook: &Hook) -> String {
    if hook.output.is_empty() {
        return String::new();
    }
    format!("; its output ends with:\n{}", hook.output)
}

/// A connection to the agent.
#[derive(Debug)]
pub struct Agent {
    client: AgentClient,
}

impl Agent {
    /// Speaks over a connected stream.
    pub fn over(stream: UnixStream) -> Self {
        Self {
            client: AgentClient::new(stream),
        }
    }

    /// Connects through a VM's socket.
    ///
    /// # Errors
    /// The VM or its agent is not there.
    pub fn connect(socket: &Path) -> Result<Self, ConnectError> {
        hybrid::connect(socket, AGENT_PORT, PROMPT).map(Self::over)
    }

    /// The calls themselves.
    pub fn client(&mut self) -> &mut AgentClient {
        &mut self.client
    }

    /// Gives the guest its identity, fresh entropy and the time. With an agent that knows only
    /// Kata's calls the host name and the machine id stay as they are.
    ///
    /// # Errors
    /// The agent refused, or did not answer within `timeout`.
    pub fn adopt(&mut self, identity: &Identity, timeout: Duration) -> anyhow::Result<Adopted> {
        let mut entropy = vec![0; MIN_ENTROPY_BYTES];
        random::fill(&mut entropy)?;
        let begun = identity.begun;
        let (now, asked) = begun.map_or_else(
            || (SystemTime::now(), Instant::now()),
            |begun| (begun.realtime, begun.at),
        );
        let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let request = guest::AdoptRequest {
            entropy,
            realtime_ns: i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX),
            hostname: identity.hostname.clone(),
            generation_id: identity.generation.to_vec(),
            machine_id: identity.machine_id.clone(),
            cid: identity.cid.into(),
            id: identity.hostname.clone(),
            template: identity.template.clone().unwrap_or_default(),
            tsc: begun.map_or(0, |begun| begun.tsc),
            tsc_khz: begun.map_or(0, |begun| begun.tsc_khz),
            network: identity
                .network
                .as_deref()
                .map(GuestNetwork::request)
                .into(),
            ..Default::default()
        };
        match self.client.adopt(&request, timeout) {
            Ok(response) => {
                if identity.network.is_some() && response.interface.is_empty() {
                    return Err(no_network_call());
                }
                if !response.clock_is_exact {
                    self.correct_time(asked.elapsed(), timeout)?;
                }
                Ok(Adopted {
                    online_cpus: response.online_cpus,
                    memory_bytes: response.memory_bytes,
                    agent_version: response.agent_version,
                    hooks: response.hooks.into_iter().map(Hook::from).collect(),
                })
            }
            Err(CallError::Refused {
                code: Code::UNIMPLEMENTED,
                ..
            }) if identity.network.is_some() => Err(no_network_call()),
            Err(CallError::Refused {
                code: Code::UNIMPLEMENTED,
                ..
            }) => Ok(self.adopt_by_kata_calls(request.entropy, timeout)?),
            Err(error) => Err(error.into()),
        }
    }

    fn adopt_by_kata_calls(
        &mut self,
        entropy: Vec<u8>,
        timeout: Duration,
    ) -> Result<Adopted, CallError> {
        let reseed = agent::ReseedRandomDevRequest {
            data: entropy,
            ..Default::default()
        };
        self.client.reseed_random_dev(&reseed, timeout)?;

        let took = self.set_time(timeout)?;
        self.correct_time(took, timeout)?;

        let version = self.client.version(timeout)?;
        Ok(Adopted {
            agent_version: version.agent_version,
            ..Adopted::default()
        })
    }

    /// Tells the time again when telling it `took` so long that the guest's clock may be off: the
    /// first call to a clone meets a guest that has to wake up.
    fn correct_time(&mut self, mut took: Duration, timeout: Duration) -> Result<(), CallError> {
        let deadline = Instant::now() + TIME_PATIENCE;
        while took > TIME_TOLERANCE {
            if Instant::now() > deadline {
                tracing::warn!(?took, "Guest is slow; its clock may be late by as much");
                return Ok(());
            }
            took = self.set_time(timeout)?;
        }
        Ok(())
    }

    /// Returns how long it took, by which the guest's clock is late at most.
    fn set_time(&mut self, timeout: Duration) -> Result<Duration, CallError> {
        let asked = Instant::now();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let time = agent::SetGuestDateTimeRequest {
            Sec: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
            Usec: now.subsec_micros().into(),
            ..Default::default()
        };
        self.client.set_guest_date_time(&time, timeout)?;
        Ok(asked.elapsed())
    }

    /// Gets the guest ready to become a template. An agent without that call needs nothing.
    ///
    /// # Errors
    /// The agent refused, or did not answer within `timeout`.
    pub fn prepare(&mut self, timeout: Duration) -> Result<(), CallError> {
        match self.client.prepare(timeout) {
            Ok(_)
            | Err(CallError::Refused {
                code: Code::UNIMPLEMENTED,
                ..
            }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Keeps the guest's processes from running while it is saved, for as long as this connection
    /// lives. False when the guest does not want it.
    ///
    /// # Errors
    /// They did not stop within `timeout`, or the agent does not know the call.
    pub fn hold(&mut self, timeout: Duration) -> anyhow::Result<bool> {
        let request = guest::HoldRequest {
            timeout_ms: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
            ..Default::default()
        };
        match self.client.hold(&request, timeout + HOLD_ANSWER) {
            Ok(response) => Ok(response.held),
            Err(CallError::Refused {
                code: Code::UNIMPLEMENTED,
                ..
            }) => Err(anyhow!(
                "the guest's agent does not know how; build the guest anew with 'minivmm guest build'"
            )),
            Err(error) => Err(error.into()),
        }
    }

    /// Lets held processes go on. Returns how long they were held.
    ///
    /// # Errors
    /// The agent refused or did not answer.
    pub fn release(&mut self) -> Result<Duration, CallError> {
        let response = self.client.release(PROMPT)?;
        Ok(Duration::from_nanos(response.held_ns))
    }

    /// Makes the guest use what was added to its machine, and waits until it does, or until `patience`
    /// is over: how far it is then.
    ///
    /// # Errors
    /// The agent does not answer, or does not know the call.
    pub fn online(&mut self, wanted: Online, patience: Duration) -> anyhow::Result<IsOnline> {
        let request = guest::OnlineRequest {
            cpus: wanted.cpus.into(),
            added_bytes: wanted.added_bytes,
            timeout_ms: u32::try_from(patience.as_millis()).unwrap_or(u32::MAX),
            ..Default::default()
        };
        match self.client.online(&request, patience + PROMPT) {
            Ok(response) => Ok(IsOnline {
                cpus: response.online_cpus,
                memory_bytes: response.mem_total_bytes,
                has_memory: response.has_memory,
                refused: response.refused,
            }),
            Err(CallError::Refused {
                code: Code::UNIMPLEMENTED,
                ..
            }) => Err(anyhow!(
                "The guest's agent cannot bring added CPUs and memory into use; build the guest \
                 with 'minivmm guest build'"
            )),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks the guest to power off.
    ///
    /// # Errors
    /// The agent refused or did not answer.
    pub fn power_off(&mut self) -> Result<(), CallError> {
        self.client.shutdown(Action::POWEROFF, PROMPT)
    }
}

#[cfg(test)]
#[path = "agent_tests.rs"]
mod tests;
