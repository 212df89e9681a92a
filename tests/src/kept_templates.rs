//! Templates that the test binaries of one run have in common, each of which runs in a lab of its own: the
//! first that needs one keeps a copy for those after it. Without `MINIVMM_KEPT_TEMPLATES` nobody keeps any.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A template's place in a store.
fn in_store(store: &Path, name: &str) -> PathBuf {
    store.join("templates").join(name)
}

fn kept(name: &str) -> Option<PathBuf> {
    let directory = std::env::var_os("MINIVMM_KEPT_TEMPLATES")?;
    Some(PathBuf::from(directory).join(name))
}

/// Brings a template that is kept into a store; whether there was one.
pub(crate) fn take(store: &Path, name: &str) -> bool {
    kept(name).is_some_and(|kept| kept.is_dir() && copy(&kept, &in_store(store, name)))
}

/// Keeps a template. One that another lab has kept meanwhile is as good.
pub(crate) fn keep(store: &Path, name: &str) {
    if let Some(kept) = kept(name)
        && !kept.exists()
        && !copy(&in_store(store, name), &kept)
    {
        eprintln!("{} is not kept", kept.display());
    }
}

/// The copy is there as a whole or not at all.
fn copy(from: &Path, to: &Path) -> bool {
    let unfinished = to.with_extension(format!("{}.unfinished", std::process::id()));
    // Not every file system that labs share takes an owner.
    let copied = Command::new("cp")
        .args(["-r", "--preserve=mode,timestamps", "--sparse=always"])
        .args([from, &unfinished])
        .status()
        .is_ok_and(|status| status.success());
    let done = copied && std::fs::rename(&unfinished, to).is_ok();
    if !done {
        std::fs::remove_dir_all(&unfinished).unwrap_or_default();
    }
    done
}
