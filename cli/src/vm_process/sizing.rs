//! Bringing a machine to another size, and waiting until its guest says that it has it.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vmm::{Machine, MemoryRequest, MemorySize, Presence};

use crate::agent::{Agent, Online};

/// The size that a VM is to have; what is `None` stays as it is.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Target {
    /// vCPUs.
    pub cpus: Option<u8>,
    /// Memory in all.
    pub memory: Option<MemorySize>,
}

/// A change of size that the machine has begun and the guest has to finish.
#[derive(Clone, Debug)]
pub struct Sizing {
    target: Target,
    /// Memory beyond what the guest has booted with.
    added_bytes: u64,
    boot_bytes: u64,
    grows: Growth,
    presence: Presence,
    memory: Option<MemoryRequest>,
    begun: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Growth {
    cpus: bool,
    memory: bool,
}

/// How far a change of size got.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct SizeReport {
    /// The guest has what was asked for.
    pub reached: bool,
    /// vCPUs asked for; `None` when they were to stay.
    pub wanted_cpus: Option<u8>,
    /// vCPUs that the machine has.
    pub cpus: u8,
    /// CPUs that the guest uses.
    pub online_cpus: u32,
    /// Memory asked for; `None` when it was to stay.
    pub wanted_memory_bytes: Option<u64>,
    /// Memory that the guest has taken.
    pub memory_bytes: u64,
    /// Memory that the guest's kernel manages.
    pub guest_memory_bytes: u64,
    /// Why the guest's kernel refused something.
    pub refused: Option<String>,
    /// From the begin until the guest had its CPUs and its memory, or until it was given up.
    pub took_ms: f64,
}

/// How far a change of size got, and when.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// How far.
    pub report: SizeReport,
    /// What happened when, for a timeline.
    pub steps: Vec<(&'static str, Instant)>,
}

/// A change of size that the guest did not finish.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.shortfall())]
pub struct NotReached(pub SizeReport);

impl Target {
    /// Nothing is to change.
    pub fn is_empty(self) -> bool {
        self.cpus.is_none() && self.memory.is_none()
    }
}

impl Sizing {
    /// Tells the machine what it is to have.
    ///
    /// # Errors
    /// The machine cannot have it; it stays as it was.
    pub fn begin(machine: &mut Machine, target: Target) -> Result<Self, vmm::Error> {
        let begun = Instant::now();
        machine.check_size(target.cpus, target.memory)?;
        let presence = machine.presence().clone();
        let memory = machine.memory_request();
        let boot_bytes = machine.memory_size().bytes();
        let plugged_bytes = memory.as_ref().map_or(0, MemoryRequest::plugged_bytes);
        let added_bytes = target.memory.map_or(plugged_bytes, |memory| {
            memory.bytes().saturating_sub(boot_bytes)
        });
        let present = presence.present().len();
        // Memory first: the guest's kernel needs some of it for every CPU that comes.
        if let Some(memory) = target.memory {
            machine.set_memory_size(memory)?;
        }
        if let Some(cpus) = target.cpus {
            machine.set_vcpu_count(cpus)?;
        }
        Ok(Self {
            target,
            added_bytes,
            boot_bytes,
            grows: Growth {
                cpus: target.cpus.is_some_and(|cpus| usize::from(cpus) > present),
                memory: added_bytes > plugged_bytes,
            },
            presence,
            memory,
            begun,
        })
    }

    /// Waits until the guest has the size, for `timeout` at most. Blocks.
    ///
    /// # Errors
    /// The agent does not answer, or knows nothing of added CPUs and memory.
    pub fn finish(&self, agent: UnixStream, timeout: Duration) -> anyhow::Result<Outcome> {
        let deadline = Instant::now() + timeout;
        let left = || deadline.saturating_duration_since(Instant::now());
        let mut agent = Agent::over(agent);
        // What is to go, goes by the guest's kernel alone.
        let cpus = self.target.cpus.map_or(0, usize::from);
        let cpus_gone = self.grows.cpus
            || self.target.cpus.is_none()
            || self.presence.wait_for_at_most(cpus, left());
        let wanted = Online {
            cpus: self.target.cpus.filter(|_| self.grows.cpus).unwrap_or(0),
            added_bytes: if self.grows.memory {
                self.added_bytes
            } else {
                0
            },
        };
        let (online, plugged_at) = std::thread::scope(|scope| {
            let plugged = scope.spawn(|| self.wait_plugged(left()));
            let online = agent.online(wanted, left());
            (online, plugged.join().ok().flatten())
        });
        let online = online?;
        let memory = self.memory.as_ref();
        let memory_settled =
            self.target.memory.is_none() || memory.is_none() || plugged_at.is_some();

        let has_cpus = self
            .target
            .cpus
            .is_none_or(|cpus| online.cpus == u32::from(cpus));
        let has_memory = !self.grows.memory || online.has_memory;
        let reached = cpus_gone && has_cpus && memory_settled && has_memory;
        let report = SizeReport {
            reached,
            wanted_cpus: self.target.cpus,
            cpus: u8::try_from(self.presence.present().len()).unwrap_or(u8::MAX),
            online_cpus: online.cpus,
            wanted_memory_bytes: self.target.memory.map(MemorySize::bytes),
            memory_bytes: self.boot_bytes + memory.map_or(0, MemoryRequest::plugged_bytes),
            guest_memory_bytes: online.memory_bytes,
            refused: Some(online.refused).filter(|text| !text.is_empty()),
            took_ms: self.begun.elapsed().as_secs_f64() * 1000.0,
        };
        let plugged = plugged_at.map(|at| ("guest: memory taken", at));
        let settled = ("guest: CPUs and memory in use", Instant::now());
        Ok(Outcome {
            report,
            steps: plugged.into_iter().chain([settled]).collect(),
        })
    }

    /// Waits until the guest has taken, or given back, its memory, and tells when it had.
    fn wait_plugged(&self, patience: Duration) -> Option<Instant> {
        self.target.memory?;
        let plugged = self.memory.as_ref()?.wait_for(self.added_bytes, patience);
        plugged.then(Instant::now)
    }
}

impl SizeReport {
    /// What the guest lacks or has too much of, in words.
    fn shortfall(&self) -> String {
        let mut parts = Vec::new();
        if let Some(wanted) = self
            .wanted_cpus
            .filter(|n| u32::from(*n) != self.online_cpus)
        {
            parts.push(format!(
                "it uses {} CPUs, {wanted} were asked for, the machine has {}",
                self.online_cpus, self.cpus
            ));
        }
        if let Some(wanted) = self.wanted_memory_bytes {
            let mib = |bytes: u64| bytes >> 20;
            if wanted == self.memory_bytes {
                let managed = mib(self.guest_memory_bytes);
                let taken = mib(self.memory_bytes);
                parts.push(format!(
                    "it has taken {taken}M of memory, of which its kernel manages {managed}M"
                ));
            } else {
                let taken = mib(self.memory_bytes);
                let wanted = mib(wanted);
                parts.push(format!(
                    "it has taken {taken}M of memory, {wanted}M were asked for"
                ));
            }
        }
        if let Some(refused) = &self.refused {
            parts.push(format!("its kernel refused: {refused}"));
        }
        format!(
            "The guest did not come to the size in {:.1} s: {}",
            self.took_ms / 1000.0,
            parts.join("; ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> SizeReport {
        SizeReport {
            reached: false,
            wanted_cpus: Some(4),
            cpus: 4,
            online_cpus: 1,
            wanted_memory_bytes: Some(1 << 30),
            memory_bytes: 512 << 20,
            guest_memory_bytes: 480 << 20,
            refused: None,
            took_ms: 2500.0,
        }
    }

    #[test]
    fn shortfall_tells_how_far_it_got() {
        assert_eq!(
            NotReached(report()).to_string(),
            "The guest did not come to the size in 2.5 s: it uses 1 CPUs, 4 were asked for, the \
             machine has 4; it has taken 512M of memory, 1024M were asked for"
        );
    }

    #[test]
    fn shortfall_names_the_kernels_refusal_and_memory_that_is_not_online() {
        let report = SizeReport {
            wanted_cpus: None,
            memory_bytes: 1 << 30,
            refused: Some("cpu1: Input/output error".to_owned()),
            ..report()
        };
        let text = report.shortfall();
        assert!(text.contains("of which its kernel manages 480M"), "{text}");
        assert!(
            text.ends_with("its kernel refused: cpu1: Input/output error"),
            "{text}"
        );
    }
}
