//! `manifest.json`: what a template is, for people and programs, and the root of its checksums.
//!
//! The file is an envelope, `{"format": 1, "checksum": "xxh3:…", "template": {…}}`. The checksum
//! is over the text of `template` as it stands in the file; that value carries the checksums of
//! the template's other files. So one flipped bit anywhere is found when a template is opened,
//! except in guest memory, whose digests only a verify reads.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::artifact::Artifact;
use crate::checksum::{Checksum, ChecksumError};
use crate::disk::DiskRecord;
use crate::error::FileError;
use crate::files;
use crate::name::TemplateName;
use crate::state::Arch;

/// Name of the manifest in a template's directory.
pub const FILE_NAME: &str = "manifest.json";

/// The newest format of the manifest that is read. Fields may be added within a format; it goes up when
/// an older program would misunderstand the file. A manifest is written in the oldest format that has all
/// of it:
///
/// | Format | What an older program would not know |
/// |---|---|
/// | 1 | |
/// | 2 | [`FileRecords::layers`]: it would take the memory file for all of the memory |
/// | 3 | [`FileRecords::disks`]: it would start the guest without them |
pub const FORMAT: u32 = 3;

/// The most bytes a manifest may have.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// Everything that is known about a template without opening its other files.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Manifest {
    /// The name it was created under; its directory may have been renamed since.
    pub name: TemplateName,
    /// Tells this template from every other, also of the same name.
    pub uuid: Uuid,
    /// When it was published.
    pub created: Timestamp,
    /// The architecture of the guest.
    pub arch: Arch,
    /// What its creator said about it.
    pub spec: TemplateSpec,
    /// Its other files.
    pub files: FileRecords,
}

/// The creator's part of a manifest.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct TemplateSpec {
    /// The version of minivmm that made it.
    pub minivmm: String,
    /// Number of the machine's frozen addresses and interrupt lines.
    pub abi: u32,
    /// The machine and what runs in it.
    pub guest: GuestSpec,
    /// The machine it was made on.
    pub host: HostInfo,
    /// The CPUID the guest was given, as JSON of the creator's own shape.
    pub cpuid: Box<RawValue>,
}

/// A template's machine and what was booted in it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct GuestSpec {
    /// vCPUs that are online.
    pub cpus: u32,
    /// vCPUs a clone can grow to.
    pub max_cpus: u32,
    /// RAM in bytes.
    pub memory_bytes: u64,
    /// RAM in bytes a clone can grow to.
    pub max_memory_bytes: u64,
    /// The kernel that was booted.
    pub kernel: Artifact,
    /// The initrd it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<Artifact>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Its processes stand still in a clone until the agent in it has been called.
    #[serde(default)]
    pub held: bool,
    /// The devices that it has and not every machine has, such as `rng`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
}

/// The machine a template was made on.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct HostInfo {
    /// Kernel release as `uname -r` gives it.
    pub kernel: String,
    /// CPU vendor, `GenuineIntel` for one.
    pub cpu_vendor: String,
    /// CPU model in words.
    pub cpu_model: String,
}

/// The files beside the manifest.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct FileRecords {
    /// The state file.
    pub state: FileRecord,
    /// The memory file.
    pub memory: MemoryRecord,
    /// The digests of the memory's chunks.
    pub digests: FileRecord,
    /// What of the memory is in files of other templates; nothing when the memory file has all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<LayerRecords>,
    /// The disks, in the order of their slots: `disk-0`, `disk-1`, ...
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskRecord>,
}

impl FileRecords {
    /// Bytes on disk of the files that the template has in common with those it comes from.
    #[must_use]
    pub fn shared_bytes(&self) -> u64 {
        self.below().iter().map(|layer| layer.file.allocated).sum()
    }

    /// How many files the memory is made of.
    #[must_use]
    pub fn layer_count(&self) -> usize {
        1 + self.below().len()
    }

    /// The memory files below the template's own, the nearest first.
    #[must_use]
    pub fn below(&self) -> &[LayerRecord] {
        self.layers.as_ref().map_or(&[], |layers| &layers.below)
    }
}

/// What a memory in several layers is made of.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct LayerRecords {
    /// The map that says which page is in which layer.
    pub map: FileRecord,
    /// The layers below the template's own memory file, the nearest first: `memory-1`, `memory-2`, ...
    pub below: Vec<LayerRecord>,
}

/// A memory file that belongs to another template, too.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct LayerRecord {
    /// The name of the template that it was made for. That may be gone since, or have been renamed.
    pub template: TemplateName,
    /// Tells that template from every other.
    pub uuid: Uuid,
    /// The file.
    #[serde(flatten)]
    pub file: MemoryRecord,
}

/// A file that is checked whenever it is opened.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct FileRecord {
    /// Length in bytes.
    pub size: u64,
    /// The checksum the file itself carries.
    pub checksum: Checksum,
}

/// A memory file.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct MemoryRecord {
    /// Length in bytes: all of its guest's RAM.
    pub size: u64,
    /// Bytes it took on disk when it was published.
    pub allocated: u64,
    /// Its modification time when it was published. Another time means that the file was written
    /// to, swapped, or copied without its time: then its content is compared with the digests
    /// before it is used.
    pub modified: Timestamp,
}

/// A manifest that cannot be used. Every message starts with the path of the file.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not JSON of the right shape.
    #[error("{} is not a template manifest", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser met.
        source: serde_json::Error,
    },
    /// Its format is not one this build reads.
    #[error("{} has manifest format {found}, this build reads formats 1 to {FORMAT}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Its content is that of another format.
    #[error("{} is damaged: it says format {found}, its content has format {expected}", path.display())]
    OtherFormat {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: u32,
        /// What it has.
        expected: u32,
    },
    /// A part of the envelope is missing.
    #[error("{} has no {field}, expected format, checksum and template", path.display())]
    MissingField {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
    },
    /// The checksum in it is no checksum.
    #[error("{} carries a bad checksum", path.display())]
    ChecksumText {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ChecksumError,
    },
    /// Its content changed after it was written.
    #[error("{} is damaged: checksum {found}, expected {expected}", path.display())]
    Checksum {
        /// The file.
        path: PathBuf,
        /// Checksum of what is there.
        found: Checksum,
        /// Checksum the file carries.
        expected: Checksum,
    },
}

#[derive(Deserialize)]
struct Envelope<'a> {
    format: Option<u32>,
    checksum: Option<String>,
    #[serde(borrow)]
    template: Option<&'a RawValue>,
}

impl Manifest {
    /// Checks and decodes the bytes of a manifest; `origin` is what errors call it.
    ///
    /// # Errors
    /// [`ManifestError`] for the first thing that is wrong with them.
    pub fn parse(bytes: &[u8], origin: &Path) -> Result<Self, ManifestError> {
        let syntax = |source| ManifestError::Syntax {
            path: origin.to_path_buf(),
            source,
        };
        let missing = |field| ManifestError::MissingField {
            path: origin.to_path_buf(),
            field,
        };
        let envelope: Envelope<'_> = serde_json::from_slice(bytes).map_err(syntax)?;
        let format = envelope.format.ok_or_else(|| missing("format"))?;
        if !(1..=FORMAT).contains(&format) {
            return Err(ManifestError::Format {
                path: origin.to_path_buf(),
                found: format,
            });
        }
        let checksum = envelope.checksum.ok_or_else(|| missing("checksum"))?;
        let template = envelope.template.ok_or_else(|| missing("template"))?.get();
        let expected = checksum
            .parse()
            .map_err(|source| ManifestError::ChecksumText {
                path: origin.to_path_buf(),
                source,
            })?;
        let found = Checksum::of(template.as_bytes());
        if found != expected {
            return Err(ManifestError::Checksum {
                path: origin.to_path_buf(),
                found,
                expected,
            });
        }
        let manifest: Self = serde_json::from_str(template).map_err(syntax)?;
        // The checksum does not cover the format.
        let expected = manifest.format();
        if format != expected {
            return Err(ManifestError::OtherFormat {
                path: origin.to_path_buf(),
                found: format,
                expected,
            });
        }
        Ok(manifest)
    }

    /// The oldest format that has all of it.
    fn format(&self) -> u32 {
        match &self.files {
            files if !files.disks.is_empty() => 3,
            files if files.layers.is_some() => 2,
            _ => 1,
        }
    }

    /// The CPUID the guest was given, in the shape its creator gave it.
    ///
    /// # Errors
    /// When it has another shape.
    pub fn cpuid<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.spec.cpuid.get())
    }

    pub(crate) fn read_at(dir: BorrowedFd<'_>, path: &Path) -> Result<Self, ManifestError> {
        let bytes = files::read_regular_at(dir, Path::new(FILE_NAME), path, MAX_FILE_BYTES)?;
        Self::parse(&bytes, path)
    }

    /// The text of the file.
    pub(crate) fn encode(&self) -> Result<String, serde_json::Error> {
        let template = serde_json::to_string_pretty(self)?;
        let checksum = Checksum::of(template.as_bytes());
        let format = self.format();
        Ok(format!(
            "{{\n\"format\": {format},\n\"checksum\": \"{checksum}\",\n\"template\": {template}\n}}\n"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample() -> Manifest {
        let record = FileRecord {
            size: 100,
            checksum: Checksum::of(b"state"),
        };
        Manifest {
            name: "debian".parse().unwrap(),
            uuid: Uuid::from_u128(7),
            created: "2026-08-01T12:00:00Z".parse().unwrap(),
            arch: Arch::CURRENT,
            spec: TemplateSpec {
                minivmm: "0.1.0".to_owned(),
                abi: 1,
                guest: GuestSpec {
                    cpus: 1,
                    max_cpus: 8,
                    memory_bytes: 256 << 20,
                    max_memory_bytes: 4 << 30,
                    kernel: Artifact {
                        path: "/boot/vmlinuz".into(),
                        sha256: "00".repeat(32),
                        size: 1,
                    },
                    initrd: None,
                    cmdline: "console=ttyS0".to_owned(),
                    held: true,
                    devices: vec!["rng".to_owned()],
                },
                host: HostInfo {
                    kernel: "6.1.0".to_owned(),
                    cpu_vendor: "GenuineIntel".to_owned(),
                    cpu_model: "a CPU".to_owned(),
                },
                cpuid: serde_json::value::to_raw_value(&json!([{"function": 1}])).unwrap(),
            },
            files: FileRecords {
                state: record.clone(),
                memory: MemoryRecord {
                    size: 256 << 20,
                    allocated: 4096,
                    modified: Timestamp::UNIX_EPOCH,
                },
                digests: record,
                layers: None,
                disks: Vec::new(),
            },
        }
    }

    /// One whose memory is in layers.
    fn layered() -> Manifest {
        let mut manifest = sample();
        let file = manifest.files.memory.clone();
        let layer = |uuid| LayerRecord {
            template: "base".parse().unwrap(),
            uuid: Uuid::from_u128(uuid),
            file: file.clone(),
        };
        manifest.files.layers = Some(LayerRecords {
            map: manifest.files.digests.clone(),
            below: vec![layer(8), layer(9)],
        });
        manifest
    }

    fn refused(text: &str) -> ManifestError {
        Manifest::parse(text.as_bytes(), Path::new("/s/manifest.json")).unwrap_err()
    }

    #[test]
    fn manifest_comes_back_as_written() {
        for sample in [sample(), layered()] {
            let text = sample.encode().unwrap();

            let manifest = Manifest::parse(text.as_bytes(), Path::new("m")).unwrap();

            assert_eq!(manifest.encode().unwrap(), text);
            assert_eq!(manifest.files, sample.files);
        }
        let manifest = sample();
        assert_eq!(
            manifest.cpuid::<serde_json::Value>().unwrap(),
            json!([{"function": 1}])
        );
    }

    #[test]
    fn only_what_an_older_program_would_misunderstand_has_the_newer_format() {
        let format = |manifest: &Manifest| {
            let text = manifest.encode().unwrap();
            serde_json::from_str::<serde_json::Value>(&text).unwrap()["format"].clone()
        };
        assert_eq!(format(&sample()), 1);
        assert_eq!(format(&layered()), 2);
        let mut with_slot = layered();
        with_slot.files.disks.push(DiskRecord {
            read_only: false,
            content: None,
        });
        assert_eq!(format(&with_slot), 3);
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let good = layered().encode().unwrap().into_bytes();
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(
                Manifest::parse(&bytes, Path::new("m")).is_err(),
                "bit {bit} of {:?} may change",
                char::from(good[bit / 8])
            );
        }
    }

    #[test]
    fn every_cut_is_refused() {
        let good = sample().encode().unwrap();
        // The newline at the end is no part of the JSON.
        for length in 0..good.len() - 1 {
            refused(&good[..length]);
        }
    }

    #[test]
    fn newer_format_is_refused_whatever_else_is_in_it() {
        let error = refused(r#"{"format": 4, "body": []}"#);

        assert_eq!(
            error.to_string(),
            "/s/manifest.json has manifest format 4, this build reads formats 1 to 3"
        );
    }

    #[test]
    fn missing_parts_are_named() {
        for (text, field) in [
            (r#"{"checksum": "", "template": {}}"#, "format"),
            (r#"{"format": 1, "template": {}}"#, "checksum"),
            (r#"{"format": 1, "checksum": ""}"#, "template"),
        ] {
            let error = refused(text);
            assert!(
                matches!(error, ManifestError::MissingField { field: f, .. } if f == field),
                "{error}"
            );
        }
    }

    #[test]
    fn other_files_are_refused() {
        for text in ["", "\0", "[]", "null", "{}", "not json"] {
            refused(text);
        }
    }
}
