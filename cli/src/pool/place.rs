//! The files of a pool: `pools/NAME.*` in the state directory.
//!
//! Who holds the lock owns them. Looks at the lock and changes of owner happen under the state directory's
//! own lock, as with VMs.

use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use snapshot::TemplateName;

use crate::error::{FAILURE, coded};
use crate::state::StateDir;
use crate::state::dir::check_socket_path;
use crate::state::files::{remove_if_there, replace_json, try_lock};

/// The paths of one pool.
#[derive(Clone, Debug)]
pub struct Place {
    state: StateDir,
    dir: PathBuf,
    name: TemplateName,
}

/// A pool as its process describes it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Whose clones it has.
    pub template: TemplateName,
    /// The directory of the store.
    pub store: PathBuf,
    /// The pool's own process.
    pub pid: u32,
    /// Where clones are asked for.
    pub socket: PathBuf,
    /// Clones it is to have ready.
    pub size: usize,
    /// Clones that are ready.
    pub ready: usize,
    /// Clones that it has handed out.
    pub handed_out: u64,
    /// Clones that died while they waited.
    pub died: u64,
    /// Memory of those that are ready, which they share with nobody.
    pub memory_bytes: u64,
    /// Why there are not as many as there should be.
    pub problem: Option<String>,
}

/// Ownership of a pool's files, which go when it does.
#[derive(Debug)]
pub struct Claim {
    place: Place,
    _lock: File,
}

impl Place {
    /// The pool of a template, whether it exists or not.
    pub fn of(state: &StateDir, name: &TemplateName) -> Self {
        Self {
            state: state.clone(),
            dir: state.pools(),
            name: name.clone(),
        }
    }

    /// Where clones are asked for.
    pub fn socket(&self) -> PathBuf {
        self.dir.join(format!("{}.sock", self.name))
    }

    fn lock(&self) -> PathBuf {
        self.dir.join(format!("{}.lock", self.name))
    }

    fn status(&self) -> PathBuf {
        self.dir.join(format!("{}.json", self.name))
    }

    /// Takes the files over. What a killed pool left goes away.
    ///
    /// # Errors
    /// Such a pool runs already, or the state directory cannot be used.
    pub fn claim(self) -> anyhow::Result<Claim> {
        check_socket_path(&self.socket(), "--state-dir")?;
        self.state.create()?;
        let create = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir);
        create.with_context(|| format!("Cannot create {}", self.dir.display()))?;
        let _guard = self.state.guard()?;
        let Some(lock) = try_lock(&self.lock())? else {
            return Err(coded(
                FAILURE,
                format!(
                    "A pool of template {} runs already; 'minivmm pool --list' shows it",
                    self.name
                ),
            ));
        };
        for path in [self.socket(), self.status()] {
            remove_if_there(&path)?;
        }
        Ok(Claim {
            place: self,
            _lock: lock,
        })
    }
}

impl Claim {
    /// The paths.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Tells everybody how the pool is.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn publish(&self, status: &Status) -> anyhow::Result<()> {
        replace_json(&self.place.status(), status)
    }

    /// Removes the files.
    ///
    /// # Errors
    /// One of them cannot be removed.
    pub fn remove(self) -> anyhow::Result<()> {
        let _guard = self.place.state.guard()?;
        let place = &self.place;
        for path in [place.socket(), place.status(), place.lock()] {
            remove_if_there(&path)?;
        }
        Ok(())
    }
}

/// The pools that run, by name.
///
/// # Errors
/// The state directory cannot be read.
pub fn list(state: &StateDir) -> anyhow::Result<Vec<Status>> {
    let dir = state.pools();
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("Cannot read {}", dir.display())),
    };
    let _guard = state.guard()?;
    let mut pools = Vec::new();
    for entry in entries {
        let path = entry
            .with_context(|| format!("Cannot read {}", dir.display()))?
            .path();
        let lock = path.with_extension("lock");
        if path.extension() != Some("json".as_ref()) || try_lock(&lock)?.is_some() {
            continue;
        }
        let context = || format!("Cannot read {}", path.display());
        let text = std::fs::read(&path).with_context(context)?;
        let status: Status = serde_json::from_slice(&text).with_context(context)?;
        pools.push(status);
    }
    pools.sort_by(|a, b| a.template.cmp(&b.template));
    Ok(pools)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> (tempfile::TempDir, StateDir, Place) {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::new(Some(root.path())).unwrap();
        let place = Place::of(&state, &"base".parse().unwrap());
        (root, state, place)
    }

    fn status(place: &Place) -> Status {
        Status {
            template: place.name.clone(),
            store: "/store".into(),
            pid: 7,
            socket: place.socket(),
            size: 4,
            ready: 3,
            handed_out: 2,
            died: 1,
            memory_bytes: 4096,
            problem: None,
        }
    }

    #[test]
    fn one_pool_of_a_template_at_a_time_and_nothing_stays() {
        let (_root, state, place) = place();
        assert_eq!(list(&state).unwrap(), []);
        let claim = place.clone().claim().unwrap();
        let error = place.clone().claim().unwrap_err().to_string();
        assert!(error.contains("template base runs already"), "{error}");
        claim.publish(&status(&place)).unwrap();
        assert_eq!(list(&state).unwrap(), [status(&place)]);
        claim.remove().unwrap();
        assert_eq!(std::fs::read_dir(state.pools()).unwrap().count(), 0);
        place.claim().unwrap();
    }

    #[test]
    fn what_a_killed_pool_left_is_not_listed_and_goes_away() {
        let (_root, state, place) = place();
        let claim = place.clone().claim().unwrap();
        claim.publish(&status(&place)).unwrap();
        std::fs::write(place.socket(), "stale").unwrap();
        drop(claim);
        assert_eq!(list(&state).unwrap(), []);
        let _claim = place.clone().claim().unwrap();
        assert!(!place.socket().exists() && !place.status().exists());
    }

    #[test]
    fn a_socket_path_that_is_too_long_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("d".repeat(100));
        let state = StateDir::new(Some(&deep)).unwrap();
        let error = Place::of(&state, &"base".parse().unwrap()).claim();
        let text = error.unwrap_err().to_string();
        assert!(text.contains("--state-dir"), "{text}");
    }
}
