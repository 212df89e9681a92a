//! The state directory: one directory for each VM, and the files of pools.
//!
//! - [`dir`]: the paths of one VM and the limit on their length.
//! - [`record`]: `vm.json`, what a VM is and how it ended.
//! - [`claim`]: who owns a VM's directory.
//! - [`end`]: how to end a VM from outside.
//! - [`files`]: locks, JSON that is replaced as a whole, removal.

pub mod claim;
pub mod dir;
pub mod end;
pub mod files;
pub mod record;

use std::fs::{DirBuilder, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::error::{FAILURE, coded};
use crate::id::VmId;
use dir::VmDir;
use record::Record;

/// Where VMs live while they run.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct StateDir {
    root: PathBuf,
}

/// A VM as it is found in the state directory.
#[derive(Debug)]
pub struct Found {
    /// Its directory.
    pub dir: VmDir,
    /// What it wrote about itself; `None` when it was killed before it could, or is about to.
    pub record: Option<Record>,
    /// Its process lives.
    pub alive: bool,
}

impl StateDir {
    /// The directory given by the user, or else below `$XDG_RUNTIME_DIR`, or else below `/run`.
    ///
    /// # Errors
    /// The current directory, needed to resolve a relative path, is gone.
    pub fn new(chosen: Option<&Path>) -> anyhow::Result<Self> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|value| !value.is_empty());
        let root = match (chosen, runtime) {
            (Some(chosen), _) => chosen.to_owned(),
            (None, Some(runtime)) => Path::new(&runtime).join("minivmm"),
            (None, None) => PathBuf::from("/run/minivmm"),
        };
        let root = std::path::absolute(&root)
            .with_context(|| format!("Cannot resolve the state directory {}", root.display()))?;
        Ok(Self { root })
    }

    /// The place of the VM `id`, whether it exists or not.
    pub fn vm(&self, id: &VmId) -> VmDir {
        VmDir::new(self.vms().join(id.as_str()), id.clone())
    }

    /// The VM `id`.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn find(&self, id: &VmId) -> anyhow::Result<Found> {
        let dir = self.vm(id);
        if !dir.exists() {
            return Err(no_such_vm(id));
        }
        let alive = {
            let _guard = self.guard()?;
            claim::is_alive(&dir)?
        };
        // Read after the lock was looked at: who was dead then will not write any more.
        Ok(Found {
            record: Record::read(&dir)?,
            dir,
            alive,
        })
    }

    /// The VM `id`, which has to run.
    ///
    /// # Errors
    /// There is none, it does not run, or it cannot be read.
    pub fn find_running(&self, id: &VmId) -> anyhow::Result<Found> {
        let vm = self.find(id)?;
        if vm.alive {
            return Ok(vm);
        }
        let end = vm.record.and_then(|record| record.end);
        let how = end.map_or_else(|| "its process was killed".to_owned(), |end| end.message);
        bail!("VM {id} has ended: {how}")
    }

    /// All VMs, by id.
    ///
    /// # Errors
    /// The state directory or a VM's directory cannot be read.
    pub fn list(&self) -> anyhow::Result<Vec<Found>> {
        let vms = self.vms();
        let entries = match std::fs::read_dir(&vms) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(error).with_context(|| format!("Cannot read {}", vms.display()));
            }
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry
                .with_context(|| format!("Cannot read {}", vms.display()))?
                .file_name();
            // Whatever is no id was not put there by us.
            let Some(Ok(id)) = name.to_str().map(str::parse::<VmId>) else {
                continue;
            };
            match self.find(&id) {
                Ok(vm) => found.push(vm),
                // Removed since the directory was read.
                Err(_) if !self.vm(&id).exists() => {}
                Err(error) => return Err(error),
            }
        }
        found.sort_by(|a, b| a.dir.id().cmp(b.dir.id()));
        Ok(found)
    }

    /// Waits until this process is the only one that makes a template for its clone, and stays it
    /// until the result is dropped. `wait_begins` is called if another one is.
    ///
    /// # Errors
    /// The state directory cannot be used.
    pub fn lock_creation(&self, wait_begins: impl FnOnce()) -> anyhow::Result<File> {
        self.create()?;
        let path = self.root.join("create.lock");
        let context = || format!("Cannot lock {}", path.display());
        let lock = files::open_lock(&path).with_context(context)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                wait_begins();
                lock.lock().with_context(context)?;
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(context),
        }
        Ok(lock)
    }

    /// Where pools keep their files.
    pub fn pools(&self) -> PathBuf {
        self.root.join("pools")
    }

    fn vms(&self) -> PathBuf {
        self.root.join("vms")
    }

    /// Excludes other processes that look at or change who owns a VM's directory, or a pool's files.
    ///
    /// # Errors
    /// The lock cannot be used.
    pub fn guard(&self) -> anyhow::Result<File> {
        let path = self.vms().join(".lock");
        let lock = files::open_lock(&path)
            .and_then(|lock| lock.lock().map(|()| lock))
            .with_context(|| format!("Cannot lock {}", path.display()))?;
        Ok(lock)
    }

    /// Makes the directory if it is missing.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create(&self) -> anyhow::Result<()> {
        let vms = self.vms();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&vms)
            .with_context(|| {
                format!(
                    "Cannot create the state directory {}; choose another with --state-dir",
                    vms.display()
                )
            })
    }
}

/// The error for an id that no VM has.
fn no_such_vm(id: &VmId) -> anyhow::Error {
    let hint = "'minivmm ps -a' lists the VMs there are";
    coded(FAILURE, format!("There is no VM {id}; {hint}"))
}
