//! What a manifest says of a template's disks.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::checksum::Checksum;

/// A disk, or a slot that a clone may fill.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct DiskRecord {
    /// The guest cannot write to it.
    #[serde(default)]
    pub read_only: bool,
    /// Its file; nothing for an empty slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<DiskContent>,
}

/// The file of a disk.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct DiskContent {
    /// Length in bytes.
    pub size: u64,
    /// Bytes it took on disk when it was published.
    pub allocated: u64,
    /// Its modification time when it was published. Another time means that the file was written
    /// to, swapped, or copied without its time: then its content is compared with the checksum
    /// before it is used.
    pub modified: Timestamp,
    /// Of all blocks that are not zero, with their places.
    pub checksum: Checksum,
}
