//! What the store refuses, and why.

use std::path::PathBuf;

use crate::checksum::Checksum;
use crate::error::FileError;
use crate::manifest::ManifestError;
use crate::memory::MemoryError;
use crate::name::TemplateName;
use crate::state::StateError;

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or directory could not be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The manifest is damaged.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The state file is damaged.
    #[error(transparent)]
    State(#[from] StateError),
    /// The memory file is damaged.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The manifest could not be encoded.
    #[error("Cannot encode the manifest of template {name}")]
    Encode {
        /// The template.
        name: TemplateName,
        /// What the encoder met.
        source: serde_json::Error,
    },
    /// Anybody could swap files in the store.
    #[error("{} has mode {mode:o}, a store must not be writable by others: use chmod o-w", path.display())]
    WorldWritable {
        /// The store's directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// There is no such template.
    #[error("Template {name} does not exist in {}", store.display())]
    NotFound {
        /// The template.
        name: TemplateName,
        /// The directory that was looked in.
        store: PathBuf,
    },
    /// There is such a template already.
    #[error("Template {name} exists: delete it first or choose another name")]
    Exists {
        /// The template.
        name: TemplateName,
    },
    /// Another process is making it.
    #[error("Template {name} is being created by another process")]
    Busy {
        /// The template.
        name: TemplateName,
    },
    /// Another process is deleting or replacing it.
    #[error("Template {name} is being deleted or flattened by another process")]
    Deleting {
        /// The template.
        name: TemplateName,
    },
    /// Clones of it run.
    #[error("Template {name} is in use{}: stop its clones first", count_of(*clones))]
    InUse {
        /// The template.
        name: TemplateName,
        /// How many hold it, where the kernel tells.
        clones: Option<usize>,
    },
    /// Templates that were made of its clones have its memory files, too.
    #[error(
        "Template {name} shares memory with what was made of its clones: {}. With --force it is \
         deleted and they go on to work; {kept_bytes} bytes stay on the disk until they are \
         deleted or flattened",
        list_of(children)
    )]
    HasChildren {
        /// The template.
        name: TemplateName,
        /// The templates that need its files.
        children: Vec<TemplateName>,
        /// Bytes of its files that they keep on the disk.
        kept_bytes: u64,
    },
    /// A disk's file has another length.
    #[error("{} has {found} bytes, expected {expected}", path.display())]
    DiskLength {
        /// The file.
        path: PathBuf,
        /// Bytes.
        found: u64,
        /// Bytes according to the manifest.
        expected: u64,
    },
    /// A disk is not as it was published.
    #[error("{} was changed after it was published: checksum {found}, expected {expected}", path.display())]
    DiskChanged {
        /// The file.
        path: PathBuf,
        /// Checksum of what is there.
        found: Checksum,
        /// Checksum according to the manifest.
        expected: Checksum,
    },
    /// A file is whole, but another one than the manifest names.
    #[error("{} is not the file its manifest names: {found_size} bytes with checksum {found}, expected {expected_size} with {expected}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        found_size: u64,
        /// Its checksum.
        found: Checksum,
        /// Length in bytes according to the manifest.
        expected_size: u64,
        /// Checksum according to the manifest.
        expected: Checksum,
    },
}

impl StoreError {
    /// Whether the cause is a full disk or quota.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::File(error) | Self::Memory(MemoryError::File(error)) => error.is_disk_full(),
            _ => false,
        }
    }
}

fn list_of(names: &[TemplateName]) -> String {
    let names: Vec<_> = names.iter().map(TemplateName::as_str).collect();
    names.join(", ")
}

fn count_of(clones: Option<usize>) -> String {
    match clones {
        Some(1) => " by 1 clone".to_owned(),
        Some(count) => format!(" by {count} clones"),
        None => String::new(),
    }
}
