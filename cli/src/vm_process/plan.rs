//! What a VM process is to start, and what it reports when that is done.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use snapshot::TemplateName;

use super::sizing::{SizeReport, Target};
use crate::agent::Hook;
use crate::disk_args::DiskSpec;
use crate::id::VmId;
use crate::machine_args::MachineSpec;
use crate::net::{GuestNetwork, NetPlan};
use crate::timeline::Step;
use crate::warm::Warm;

/// What to start.
#[derive(Debug)]
pub enum Plan {
    /// A machine from a kernel.
    Boot(BootPlan),
    /// A clone of a template.
    Restore(RestorePlan),
    /// A machine that becomes a template.
    Create(CreatePlan),
}

/// A machine from a kernel.
#[derive(Debug)]
pub struct BootPlan {
    /// Its id.
    pub id: VmId,
    /// What it is made of.
    pub machine: MachineSpec,
    /// What its network card is connected to.
    pub net: Option<NetPlan>,
    /// An agent is expected in the guest.
    pub with_agent: bool,
    /// How long that may take.
    pub timeout: Duration,
}

/// A clone of a template.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct RestorePlan {
    /// Its id.
    pub id: VmId,
    /// The template.
    pub template: TemplateName,
    /// The directory of the store.
    pub store: PathBuf,
    /// What its network card is connected to; nothing when the template has none.
    #[serde(default)]
    pub net: Option<NetPlan>,
    /// What it is to have; the template's where it does not say.
    #[serde(default)]
    pub size: Target,
    /// Disks for the template's empty slots.
    #[serde(default)]
    pub disks: Vec<DiskSpec>,
    /// An agent is expected in the guest.
    #[serde(default = "yes")]
    pub with_agent: bool,
    /// How long the agent may take.
    #[serde(default = "usual_timeout")]
    pub timeout: Duration,
    /// Leave it running when the agent does not answer.
    #[serde(default)]
    pub keep: bool,
    /// Compare every byte of the template with its checksums first.
    #[serde(default)]
    pub verify: bool,
}

fn yes() -> bool {
    true
}

fn usual_timeout() -> Duration {
    Duration::from_secs(60)
}

/// A machine that becomes a template.
#[derive(Debug)]
pub struct CreatePlan {
    /// The id of the machine while it boots.
    pub id: VmId,
    /// The template.
    pub name: TemplateName,
    /// The directory of the store.
    pub store: PathBuf,
    /// What it is made of.
    pub machine: MachineSpec,
    /// How long the guest may take until its agent answers.
    pub timeout: Duration,
    /// What is run in it before it is frozen.
    pub warm: Option<Warm>,
}

impl CreatePlan {
    /// A plan with a new id for the machine.
    ///
    /// # Errors
    /// The kernel gives no random bytes.
    pub fn new(
        name: &TemplateName,
        store: &Path,
        machine: MachineSpec,
        timeout: Duration,
    ) -> std::io::Result<Self> {
        Ok(Self {
            id: VmId::generate(name.as_str())?,
            name: name.clone(),
            store: store.to_owned(),
            machine,
            timeout,
            warm: None,
        })
    }
}

impl Plan {
    /// The id of the VM.
    pub fn id(&self) -> &VmId {
        match self {
            Self::Boot(plan) => &plan.id,
            Self::Restore(plan) => &plan.id,
            Self::Create(plan) => &plan.id,
        }
    }
}

/// A VM that is up.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Ready {
    /// Its id.
    pub id: VmId,
    /// Its process.
    pub pid: u32,
    /// The guest's vsock context id.
    pub cid: u32,
    /// The Unix socket that leads to the guest's vsock ports.
    pub vsock: PathBuf,
    /// The template it is a clone of.
    pub template: Option<String>,
    /// vCPUs.
    pub cpus: u8,
    /// Memory.
    pub memory_bytes: u64,
    /// Its network, when it has one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub network: Option<GuestNetwork>,
    /// How it came to its size; `None` when that is its template's.
    pub size: Option<SizeReport>,
    /// What the guest's agent said; `None` when it was not waited for.
    pub guest: Option<GuestReport>,
    /// From the start of the program until the clone's vCPUs ran; `None` for a machine that was
    /// booted.
    pub restore_ms: Option<f64>,
    /// From the start of the program until the agent had answered; `None` when it was not waited
    /// for.
    pub agent_ms: Option<f64>,
    /// What happened when.
    pub timeline: Vec<Step>,
}

/// What the guest's agent said about it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct GuestReport {
    /// CPUs in use; 0 if the agent does not tell.
    pub online_cpus: u32,
    /// Total memory that the guest's kernel manages; 0 if the agent does not tell.
    pub memory_bytes: u64,
    /// The agent's version.
    pub agent_version: String,
    /// The guest's own programs that made the clone unique, in their order.
    pub hooks: Vec<Hook>,
}

/// A template that was made.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Created {
    /// The template.
    pub name: TemplateName,
    /// Its directory.
    pub path: PathBuf,
    /// The guest's memory.
    pub memory_bytes: u64,
    /// What of it takes room on the disk.
    pub allocated_bytes: u64,
    /// From the start of the program until the agent had answered.
    pub agent_ms: f64,
    /// From the pause until the machine's state was saved; its memory is in its file already.
    pub save_ms: f64,
    /// From then until the template was published.
    pub publish_ms: f64,
    /// From the start of the program until the template was published.
    pub total_ms: f64,
    /// What happened when.
    pub timeline: Vec<Step>,
}
