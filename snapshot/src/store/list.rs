//! Lists the templates of a store, damaged ones too.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, statat};

use super::memory_files::memory_records;
use super::{Store, StoreError, lock, remove, template};
use crate::error::{FileError, is_shortage};
use crate::manifest::{FileRecords, Manifest};
use crate::name::TemplateName;
use crate::{MemoryError, memory, state};

/// One template of a list.
#[derive(Debug)]
pub struct ListedTemplate {
    /// Its name now, which is that of its directory.
    pub name: TemplateName,
    /// What is known about it, or why it cannot be cloned.
    pub manifest: Result<Manifest, StoreError>,
}

pub(super) fn list(store: &Store) -> Result<Vec<ListedTemplate>, StoreError> {
    let unreadable = |error| FileError::on("read", store.path())(error);
    let mut names = Vec::new();
    let mut has_leftovers = false;
    for entry in std::fs::read_dir(store.path()).map_err(unreadable)? {
        let file_name = entry.map_err(unreadable)?.file_name();
        has_leftovers |= remove::is_leftover_name(&file_name);
        // What has no template's name was not put there by a store.
        if let Some(Ok(name)) = file_name.to_str().map(str::parse::<TemplateName>) {
            names.push(name);
        }
    }
    if has_leftovers {
        remove::sweep_for_tidiness(store);
    }
    names.sort();
    let mut listed = Vec::new();
    for name in names {
        match quick_check(&store.template_path(&name), &name) {
            // One that was deleted since its name was read is not damaged, it is gone.
            Err(StoreError::NotFound { .. }) => {}
            Err(error) if is_shortage(&error) => return Err(error),
            manifest => listed.push(ListedTemplate { name, manifest }),
        }
    }
    Ok(listed)
}

/// What can be told without reading the large files. No lock is taken: a template that is deleted or
/// replaced meanwhile, by a flattened one, has lost its files and is looked at again.
fn quick_check(path: &Path, name: &TemplateName) -> Result<Manifest, StoreError> {
    loop {
        let (dir, manifest) = template::read_current_manifest(path, name)?;
        match check_files(&dir, path, &manifest.files) {
            Ok(()) => return Ok(manifest),
            Err(error) if lock::is_still_at(&dir, path)? => return Err(error),
            Err(_) => {}
        }
    }
}

/// The kind and the length of each file.
fn check_files(dir: &OwnedFd, path: &Path, records: &FileRecords) -> Result<(), StoreError> {
    let check = |file_name: &str, expected, is_memory| {
        let file = path.join(file_name);
        let stat = statat(dir, file_name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(FileError::on("inspect", &file))?;
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return Err(not_regular(file));
        }
        let found = stat.st_size.cast_unsigned();
        if found == expected {
            Ok(())
        } else {
            Err(wrong_length(is_memory, file, found, expected))
        }
    };
    check(template::STATE_NAME, records.state.size, false)?;
    check(memory::DIGESTS_NAME, records.digests.size, false)?;
    if let Some(layers) = &records.layers {
        check(memory::LAYERS_NAME, layers.map.size, false)?;
    }
    for (layer, record) in memory_records(records) {
        check(&layer.file_name(), record.size, true)?;
    }
    Ok(())
}

fn not_regular(path: PathBuf) -> StoreError {
    FileError::NotRegular {
        path,
        found: "something else",
    }
    .into()
}

fn wrong_length(is_memory: bool, path: PathBuf, found: u64, expected: u64) -> StoreError {
    if is_memory {
        MemoryError::Length {
            path,
            found,
            expected,
        }
        .into()
    } else if found < expected {
        state::StateError::CutOff {
            path,
            found,
            expected,
        }
        .into()
    } else {
        state::StateError::TrailingBytes {
            path,
            found,
            expected,
        }
        .into()
    }
}
