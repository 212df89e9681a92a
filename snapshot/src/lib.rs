//! The on-disk form of a frozen machine, and the store that keeps such machines as templates.
//!
//! Nothing in here knows a device or KVM. A machine hands in named, versioned sections and a
//! memory file, and gets the same back, or an error that says which file is damaged and how.
//!
//! | Module | What it holds |
//! |---|---|
//! | [`state`] | the state file: plain header, section table, checksum |
//! | [`memory`] | the memory files: sparse, read-only once published, a digest for each 2 MiB |
//! | [`disk`] | the disks: sparse, read-only once published, a checksum for each |
//! | [`manifest`] | `manifest.json`: what the template is, and the checksums of its other files |
//! | [`store`] | the directory of templates: publish, acquire, list, verify, delete |
//!
//! A template on disk:
//!
//! ```text
//! STORE/templates/NAME/manifest.json   read first; carries its own checksum and the others'
//! STORE/templates/NAME/state           sections of the machine; read whole, checksum tested
//! STORE/templates/NAME/memory          guest memory; mapped, never read whole to start a clone
//! STORE/templates/NAME/digests         chunk digests of the memory; read by verify only
//! STORE/templates/NAME/disk-0           a disk, and so on; clones write to overlays of their own
//! STORE/templates/NAME/working-set     a hint: pages that clones write at once; the first clone tells
//! STORE/templates/NAME/layers          of a snapshot: which page is in which of the memory files
//! STORE/templates/NAME/memory-1        of a snapshot: its parent's memory file, and so on
//! ```

#![forbid(unsafe_code)]

pub mod artifact;
pub mod checksum;
pub mod disk;
pub mod error;
mod files;
pub mod manifest;
pub mod memory;
pub mod name;
pub mod state;
pub mod store;

pub use artifact::Artifact;
pub use checksum::Checksum;
pub use disk::{DiskContent, DiskRecord};
pub use error::FileError;
pub use manifest::{GuestSpec, HostInfo, Manifest, ManifestError, TemplateSpec};
pub use memory::{MemoryError, MemoryLayers, OwnMemory, Wanted};
pub use name::{NameError, TemplateName};
pub use state::{Arch, StateError, StateFile, StateWriter, WriteError};
pub use store::{
    CopyReason, Family, Flattened, ListedTemplate, MemoryCheck, PendingTemplate, Problem, Start,
    Store, StoreError, Template, TemplateDisk, VerifyReport, WorkingSet,
};
