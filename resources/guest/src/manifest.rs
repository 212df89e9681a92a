//! `guest.json`: what a built guest consists of and where it came from.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::initramfs::Initramfs;
use crate::modules::Module;
use crate::rootfs::ImageRecord;
use crate::source::KernelSource;

/// The manifest's name in the output directory.
pub const FILE_NAME: &str = "guest.json";
/// Raised when a reader of the older form could misunderstand it.
pub(crate) const FORMAT: u32 = 1;

/// The content of a guest.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct GuestManifest {
    /// Version of this file's form.
    pub format: u32,
    /// The kernel's version.
    pub kernel_version: String,
    /// The modules, in the order in which the agent loads them.
    pub modules: Vec<ModuleRecord>,
    /// The files of the guest.
    pub files: Vec<FileRecord>,
    /// What they were made from.
    pub sources: Vec<SourceRecord>,
    /// Where the root file system on the disk comes from.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub image: Option<ImageRecord>,
}

/// A module of the initramfs.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ModuleRecord {
    /// Its name.
    pub name: String,
    /// Its path below `/lib/modules/VERSION`.
    pub file: String,
    /// Digest of the decompressed module.
    pub sha256: String,
}

/// A file of the guest.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct FileRecord {
    /// Its name in the output directory.
    pub name: String,
    /// Its length.
    pub size_bytes: u64,
    /// Its digest.
    pub sha256: String,
}

/// A file that went in.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SourceRecord {
    /// What it was used as: `kernel`, `agent` or `busybox`.
    pub role: String,
    /// Its path as it was given.
    pub path: String,
    /// Its digest.
    pub sha256: String,
}

impl GuestManifest {
    /// Describes a guest of these parts.
    pub(crate) fn new(
        kernel: &KernelSource,
        modules: &[Module],
        initramfs: &Initramfs,
        files: [(&str, &[u8]); 3],
        image: Option<ImageRecord>,
    ) -> Self {
        let digest = |bytes: &[u8]| hex(&Sha256::digest(bytes));
        Self {
            format: FORMAT,
            kernel_version: kernel.version.clone(),
            modules: modules
                .iter()
                .map(|module| ModuleRecord {
                    name: module.name.clone(),
                    file: module.file.clone(),
                    sha256: digest(&module.data),
                })
                .collect(),
            files: files
                .iter()
                .map(|(name, content)| FileRecord {
                    name: (*name).to_owned(),
                    size_bytes: u64::try_from(content.len()).unwrap_or(u64::MAX),
                    sha256: digest(content),
                })
                .collect(),
            sources: [&kernel.sources[..], &initramfs.sources].concat(),
            image,
        }
    }

    pub(crate) fn to_json(&self) -> Vec<u8> {
        // A structure of strings and numbers always has a JSON form.
        let mut json = serde_json::to_vec_pretty(self).unwrap_or_default();
        json.push(b'\n');
        json
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
