//! Makes one memory file of a template's layers.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::FlockOperation;

use super::pending::PendingTemplate;
use super::template::{self, Template};
use super::{Store, StoreError, lock, remove};
use crate::manifest::Manifest;
use crate::name::TemplateName;

/// What a flatten did.
#[derive(Debug)]
pub struct Flattened {
    /// What is known about the template now.
    pub manifest: Manifest,
    /// How many layers its memory had; with one there was nothing to do.
    pub layers: usize,
}

/// The new files are made beside the template, which changes places with them at the end. Until then it
/// can be cloned; a clone that runs at the end keeps it as it was.
pub(super) fn flatten(store: &Store, name: &TemplateName) -> Result<Flattened, StoreError> {
    remove::sweep_for_tidiness(store);
    let path = store.template_path(name);
    let dir = template::open_directory(&path, name)?;
    take(&dir, &path, name)?;
    if !lock::try_lock(&dir, &path, FlockOperation::NonBlockingLockShared)? {
        return Err(StoreError::Deleting { name: name.clone() });
    }
    let template = Template::load(dir, &path, name)?;
    let layers = template.memory().count();
    let manifest = if layers == 1 {
        template.manifest().clone()
    } else {
        let flat = PendingTemplate::beside(store, &template)?;
        let (claim, manifest) = flat.copy_of(&template)?;
        let dir = template.into_directory();
        take(&dir, &path, name)?;
        claim.replace(&dir)?;
        manifest
    };
    Ok(Flattened { manifest, layers })
}

/// Takes the lock that nobody has while clones run.
fn take(dir: &OwnedFd, path: &Path, name: &TemplateName) -> Result<(), StoreError> {
    if !lock::try_lock(dir, path, FlockOperation::NonBlockingLockExclusive)? {
        return Err(StoreError::InUse {
            name: name.clone(),
            clones: lock::holders(dir),
        });
    }
    if lock::is_still_at(dir, path)? {
        Ok(())
    } else {
        Err(template::not_found(path, name))
    }
}
