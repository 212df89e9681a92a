//! `vm.json`: what a VM is and how it ended.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::dir::VmDir;
use super::files::replace_json;
use crate::id::VmId;

/// The version of the file's format.
const VERSION: u32 = 1;

/// What a VM is.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Record {
    version: u32,
    /// The VM's id.
    pub id: VmId,
    /// How it came to be.
    pub kind: Kind,
    /// The template it was restored from or is to become.
    pub template: Option<String>,
    /// The VM's process.
    pub pid: u32,
    /// The guest's vsock context id.
    pub cid: u32,
    /// vCPUs it started with.
    pub cpus: u8,
    /// Memory it started with.
    pub memory_bytes: u64,
    /// When it was started, in milliseconds since the epoch.
    pub created_ms: u64,
    /// The Unix socket that leads to the guest's vsock ports.
    pub vsock: PathBuf,
    /// How far it has come.
    pub state: State,
    /// How it ended.
    pub end: Option<End>,
    /// What was done to its template while it ran.
    #[serde(default)]
    pub template_damage: Option<String>,
    /// Its disks, in the order of their slots.
    #[serde(default)]
    pub disks: Vec<DiskEntry>,
}

/// A disk of a VM.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct DiskEntry {
    /// Where its bytes are.
    pub kind: DiskKind,
    /// The file, where it is the VM's own.
    pub path: Option<PathBuf>,
    /// Length in bytes.
    pub size_bytes: u64,
    /// The guest cannot write to it.
    pub read_only: bool,
}

/// Where the bytes of a disk are.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskKind {
    /// In a file or device of the user's.
    File,
    /// In the template or a file that is only read, and what the VM writes in its own directory.
    Overlay,
    /// In the template.
    Template,
    /// Nowhere: a slot without a disk.
    Empty,
}

/// How a VM came to be.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Booted by `run`.
    Boot,
    /// Restored from a template.
    Clone,
    /// Booted to become a template.
    Template,
}

/// How far a VM has come.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The guest's agent has not answered yet.
    Starting,
    /// The guest runs.
    Running,
    /// All vCPUs stand still.
    Paused,
    /// The guest was asked to shut down.
    Stopping,
    /// The VM has ended, see [`Record::end`].
    Exited,
    /// The VM's process was killed.
    Dead,
}

impl State {
    /// The state as it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Exited => "exited",
            Self::Dead => "dead",
        }
    }
}

/// How a VM ended.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct End {
    /// What happened.
    pub reason: EndReason,
    /// The exit code of `run --foreground` and `wait`.
    pub code: u8,
    /// For people.
    pub message: String,
    /// When, in milliseconds since the epoch.
    pub ended_ms: u64,
}

/// What ended a VM.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndReason {
    /// The guest powered itself off.
    Poweroff,
    /// The guest asked for a reset.
    Reboot,
    /// A vCPU gave up.
    TripleFault,
    /// The guest's kernel panicked.
    Panic,
    /// Its memory could not be reached any more: the template's file was cut short, or the disk of a
    /// template in the making is full.
    MemoryLost,
    /// KVM or the VMM failed.
    Internal,
    /// The user stopped it.
    Stopped,
    /// The VM's process was killed.
    Killed,
}

impl EndReason {
    /// The exit code of `run --foreground` and `wait`.
    pub fn code(self) -> u8 {
        match self {
            Self::Poweroff => 0,
            Self::Reboot => 10,
            Self::TripleFault => 11,
            Self::Panic => 12,
            Self::Internal | Self::Killed => 13,
            Self::Stopped => 14,
            Self::MemoryLost => 15,
        }
    }
}

impl End {
    /// An end that happened now.
    pub fn now(reason: EndReason, message: impl Into<String>) -> Self {
        Self {
            reason,
            code: reason.code(),
            message: message.into(),
            ended_ms: now_ms(),
        }
    }

    /// The end of a VM whose process is gone without a word.
    pub fn killed() -> Self {
        Self::now(EndReason::Killed, "the VM process was killed")
    }
}

impl Record {
    /// The record of a VM that this process starts now.
    pub fn starting(dir: &VmDir, kind: Kind, cid: u32) -> Self {
        Self {
            version: VERSION,
            id: dir.id().clone(),
            kind,
            template: None,
            pid: std::process::id(),
            cid,
            cpus: 0,
            memory_bytes: 0,
            created_ms: now_ms(),
            vsock: dir.vsock_socket(),
            state: State::Starting,
            end: None,
            template_damage: None,
            disks: Vec::new(),
        }
    }

    /// Reads a VM's record; `None` when there is none yet.
    ///
    /// # Errors
    /// The file cannot be read or is none of ours.
    pub fn read(dir: &VmDir) -> anyhow::Result<Option<Self>> {
        let path = dir.record();
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("Cannot read {}", path.display()));
            }
        };
        let remedy = || {
            let id = dir.id();
            format!(
                "{} is damaged; 'minivmm rm {id}' removes the VM",
                path.display()
            )
        };
        let record: Self = serde_json::from_slice(&text).with_context(remedy)?;
        if record.version != VERSION {
            bail!(
                "{} has format {}, this minivmm reads {VERSION}",
                path.display(),
                record.version
            );
        }
        Ok(Some(record))
    }

    /// Replaces the VM's record at once, so that a reader sees the old one or the new one.
    ///
    /// Not synced to disk: a running VM does not survive what would lose it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, dir: &VmDir) -> anyhow::Result<()> {
        replace_json(&dir.record(), self)
    }
}

/// Milliseconds since the epoch.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}
