//! Compares a whole template with its checksums.

use std::error::Error;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::memory_files::{self, MemoryFiles};
use super::template::{self, STATE_NAME};
use super::{StoreError, disk_files};
use crate::disk;
use crate::error::is_shortage;
use crate::manifest::{self, Manifest};
use crate::memory::{self, ChunkDigests, MemoryError};
use crate::name::TemplateName;

/// What a verify found.
#[derive(Debug)]
pub struct VerifyReport {
    /// The template.
    pub name: TemplateName,
    /// Everything that is damaged; empty when the template is whole.
    pub problems: Vec<Problem>,
    /// 2 MiB chunks of guest memory that have data, all of which were compared.
    pub chunks: usize,
    /// The memory was whole, but a file of it had another modification time than it was published with,
    /// and has got that back: clones recognise it at once again.
    pub restamped: bool,
}

/// One damaged place.
#[derive(Debug)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// Where the damaged part starts in it, in bytes, where that is known.
    pub offset: Option<u64>,
    /// What is wrong, in words.
    pub reason: String,
}

impl VerifyReport {
    /// Whether nothing is damaged.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.problems.is_empty()
    }

    fn damaged(&mut self, file: PathBuf, error: &dyn Error) {
        self.problems.push(Problem {
            file,
            offset: None,
            reason: with_causes(error),
        });
    }
}

pub(super) fn verify(path: &Path, name: &TemplateName) -> Result<VerifyReport, StoreError> {
    let mut report = VerifyReport {
        name: name.clone(),
        problems: Vec::new(),
        chunks: 0,
        restamped: false,
    };
    let dir = template::open_locked(path, name)?;
    let manifest = match template::read_manifest(&dir, path, name) {
        Ok(manifest) => manifest,
        Err(error) if matches!(error, StoreError::NotFound { .. }) || is_shortage(&error) => {
            return Err(error);
        }
        Err(error) => {
            // Without the manifest nothing says what the other files should be.
            report.damaged(path.join(manifest::FILE_NAME), &error);
            return Ok(report);
        }
    };
    let state = template::read_state(&dir, path, &manifest.files.state, STATE_NAME);
    if let Err(error) = unless_shortage(state)? {
        report.damaged(path.join(STATE_NAME), &error);
    }
    let digests = unless_shortage(template::read_digests(&dir, path, &manifest))?;
    if let Err(error) = &digests {
        report.damaged(path.join(memory::DIGESTS_NAME), error);
    }
    let memory = open_memory(&mut report, &dir, path, &manifest)?;
    if let (Some(memory), Ok(digests)) = (memory, digests) {
        report.chunks = digests.count();
        compare(&mut report, &memory, &digests)?;
    }
    compare_disks(&mut report, &dir, path, &manifest)?;
    Ok(report)
}

/// Compares the disks with their checksums.
fn compare_disks(
    report: &mut VerifyReport,
    dir: &OwnedFd,
    path: &Path,
    manifest: &Manifest,
) -> Result<(), StoreError> {
    for (number, record) in manifest.files.disks.iter().enumerate() {
        let opened = unless_shortage(disk_files::open(dir, path, number, record))?;
        let verified = opened.and_then(|disk| disk.verify().map(|()| disk));
        match unless_shortage(verified)? {
            Ok(disk) if disk.has_published_time() => {}
            Ok(disk) => report.restamped |= disk.restamp(),
            Err(error) => report.damaged(path.join(disk::file_name(number)), &error),
        }
    }
    Ok(())
}

/// Opens the memory files; what is wrong with each goes to the report.
fn open_memory(
    report: &mut VerifyReport,
    dir: &OwnedFd,
    path: &Path,
    manifest: &Manifest,
) -> Result<Option<MemoryFiles>, StoreError> {
    let before = report.problems.len();
    let map = memory_files::read_map(dir, path, manifest);
    if let Err(error) = unless_shortage(map)? {
        report.damaged(path.join(memory::LAYERS_NAME), &error);
    }
    for (layer, record) in memory_files::memory_records(&manifest.files) {
        let checked = memory_files::check_layer(dir, path, layer, record);
        if let Err(error) = unless_shortage(checked)? {
            report.damaged(path.join(layer.file_name()), &error);
        }
    }
    if report.problems.len() > before {
        return Ok(None);
    }
    MemoryFiles::open(dir, path, manifest).map(Some)
}

/// Passes on what says nothing about the file.
fn unless_shortage<T, E>(result: Result<T, E>) -> Result<Result<T, E>, E>
where
    E: Error + 'static,
{
    match result {
        Err(error) if is_shortage(&error) => Err(error),
        other => Ok(other),
    }
}

fn compare(
    report: &mut VerifyReport,
    memory: &MemoryFiles,
    digests: &ChunkDigests,
) -> Result<(), MemoryError> {
    let damaged = memory.damaged_chunks(digests)?;
    if damaged.is_empty() && !memory.have_published_times() && memory.are_untouched()? {
        report.restamped = memory.restamp();
    }
    report
        .problems
        .extend(damaged.into_iter().map(|offset| Problem {
            file: memory.suspect(offset).to_path_buf(),
            offset: Some(offset),
            reason: format!("the 2 MiB at offset {offset:#x} are not as they were published"),
        }));
    Ok(())
}

fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
