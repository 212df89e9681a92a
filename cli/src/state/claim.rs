//! Who owns a VM's directory: the process that holds the lock in it.
//!
//! Every look at that lock and every change of owner happens under the state directory's own
//! lock, so that a look never makes a start fail and a removal never hits a new VM.

use std::fs::{DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;

use anyhow::{Context, bail};

use super::dir::VmDir;
use super::files::try_lock;
use super::record::{Record, State};
use super::{StateDir, no_such_vm};
use crate::error::{FAILURE, coded};
use crate::id::VmId;

/// Descriptors that removing a directory takes: the state directory's lock, and the directory.
const TO_REMOVE: usize = 2;

/// Ownership of a VM's directory, until it is dropped.
#[derive(Debug)]
pub struct Claim {
    /// Given back when the directory is removed, which may be because there are no others.
    reserve: Vec<File>,
    state: StateDir,
    dir: VmDir,
    replaced: Option<State>,
    _lock: File,
}

impl Claim {
    /// Makes the directory of a new VM. What an ended or killed VM left under that id goes away.
    ///
    /// # Errors
    /// The id is in use, or the directory cannot be made.
    pub fn new(state: &StateDir, id: &VmId) -> anyhow::Result<Self> {
        let dir = state.vm(id);
        dir.check_socket_paths()?;
        state.create()?;
        let mut reserve = reserve().context("No descriptors left")?;

        let _guard = state.guard()?;
        let is_new = match DirBuilder::new().mode(0o700).create(dir.path()) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("Cannot create {}", dir.path().display()));
            }
        };
        // Without its lock nobody would own it.
        let locked = try_lock(&dir.lock()).inspect_err(|_| {
            if is_new {
                reserve.clear();
                std::fs::remove_dir_all(dir.path()).unwrap_or_default();
            }
        });
        let Some(lock) = locked? else {
            let hint = "choose another --id, or end it with 'minivmm rm -f'";
            return Err(coded(FAILURE, format!("VM {id} is running; {hint}")));
        };
        let replaced = if is_new { None } else { Some(clear(&dir)?) };
        Ok(Self {
            state: state.clone(),
            dir,
            replaced,
            reserve,
            _lock: lock,
        })
    }

    /// Takes over what an ended or killed VM left.
    ///
    /// # Errors
    /// There is no such VM, or it runs.
    pub fn leftover(state: &StateDir, id: &VmId) -> anyhow::Result<Self> {
        let dir = state.vm(id);
        if !dir.exists() {
            return Err(no_such_vm(id));
        }
        let _guard = state.guard()?;
        // Somebody else may have removed it meanwhile.
        if !dir.exists() {
            return Err(no_such_vm(id));
        }
        let Some(lock) = try_lock(&dir.lock())? else {
            bail!("VM {id} is running; stop it first, or use 'minivmm rm -f {id}'");
        };
        Ok(Self {
            state: state.clone(),
            dir,
            replaced: None,
            reserve: Vec::new(),
            _lock: lock,
        })
    }

    /// The directory.
    pub fn dir(&self) -> &VmDir {
        &self.dir
    }

    /// How the VM that had this id before had ended.
    pub fn replaced(&self) -> Option<State> {
        self.replaced
    }

    /// Removes the directory with all that is in it.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn remove(mut self) -> anyhow::Result<()> {
        self.reserve.clear();
        let _guard = self.state.guard()?;
        std::fs::remove_dir_all(self.dir.path())
            .with_context(|| format!("Cannot remove {}", self.dir.path().display()))
    }
}

fn reserve() -> io::Result<Vec<File>> {
    (0..TO_REMOVE).map(|_| File::open("/dev/null")).collect()
}

/// Whether the VM's process lives. The caller holds the state directory's lock.
pub(super) fn is_alive(dir: &VmDir) -> anyhow::Result<bool> {
    if !dir.lock().exists() {
        return Ok(false);
    }
    Ok(try_lock(&dir.lock())?.is_none())
}

/// Removes everything in the directory but the lock, and says what state the VM was in.
fn clear(dir: &VmDir) -> anyhow::Result<State> {
    let before = match Record::read(dir) {
        Ok(Some(record)) if record.state == State::Exited => State::Exited,
        // Killed, or damaged and of no use to anybody.
        Ok(_) | Err(_) => State::Dead,
    };
    let lock = dir.lock();
    let clear = || -> io::Result<()> {
        for entry in std::fs::read_dir(dir.path())? {
            let entry = entry?;
            if entry.path() == lock {
                continue;
            }
            if entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path())?;
            } else {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    };
    clear().with_context(|| format!("Cannot clear {}", dir.path().display()))?;
    Ok(before)
}

#[cfg(test)]
mod tests {
    use super::super::record::{End, EndReason, Kind};
    use super::*;
    use std::path::Path;

    fn state() -> (tempfile::TempDir, StateDir, VmId) {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::new(Some(root.path())).unwrap();
        (root, state, "vm-1".parse().unwrap())
    }

    #[test]
    fn an_id_is_in_use_while_the_claim_lives() {
        let (_root, state, id) = state();
        let claim = Claim::new(&state, &id).unwrap();
        assert_eq!(claim.replaced(), None);
        let error = Claim::new(&state, &id).unwrap_err().to_string();
        assert!(error.contains("vm-1 is running"), "{error}");
        assert!(state.find(&id).unwrap().alive);
        assert!(Claim::leftover(&state, &id).is_err());

        claim.remove().unwrap();
        assert!(!state.vm(&id).exists());
        assert!(
            Claim::leftover(&state, &id)
                .unwrap_err()
                .to_string()
                .contains("no VM vm-1")
        );
    }

    #[test]
    fn what_a_killed_vm_left_is_replaced() {
        let (_root, state, id) = state();
        let claim = Claim::new(&state, &id).unwrap();
        Record::starting(claim.dir(), Kind::Boot, 3)
            .write(claim.dir())
            .unwrap();
        std::fs::write(claim.dir().vsock_socket(), "stale").unwrap();
        drop(claim);
        assert!(!state.find(&id).unwrap().alive);

        let claim = Claim::new(&state, &id).unwrap();
        assert_eq!(claim.replaced(), Some(State::Dead));
        assert!(!claim.dir().vsock_socket().exists());
        assert_eq!(Record::read(claim.dir()).unwrap(), None);
    }

    #[test]
    fn an_ended_vm_is_told_from_a_killed_one() {
        let (_root, state, id) = state();
        let claim = Claim::new(&state, &id).unwrap();
        let mut record = Record::starting(claim.dir(), Kind::Boot, 3);
        record.state = State::Exited;
        record.end = Some(End::now(EndReason::Reboot, "the guest rebooted"));
        record.write(claim.dir()).unwrap();
        assert_eq!(Record::read(claim.dir()).unwrap(), Some(record));
        drop(claim);
        assert_eq!(
            Claim::new(&state, &id).unwrap().replaced(),
            Some(State::Exited)
        );
    }

    #[test]
    fn directories_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let (_root, state, id) = state();
        let claim = Claim::new(&state, &id).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(claim.dir().path()), 0o700);
        assert_eq!(mode(&claim.dir().lock()), 0o600);
    }

    #[test]
    fn many_claims_of_one_id_at_once_have_one_winner() {
        let (_root, state, id) = state();
        let won = std::thread::scope(|scope| {
            let tries: Vec<_> = (0..16)
                .map(|_| scope.spawn(|| Claim::new(&state, &id).ok()))
                .collect();
            let claims: Vec<_> = tries
                .into_iter()
                .filter_map(|t| t.join().unwrap())
                .collect();
            claims.len()
        });
        assert_eq!(won, 1);
    }
}
