//! Why a state file was refused, or could not be made.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::{Arch, FORMAT, MAX_FILE_BYTES, MAX_SECTION_NAME};
use crate::checksum::Checksum;
use crate::error::FileError;

/// A state file that cannot be used. Every message starts with the path of the file.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is nothing in it.
    #[error("{} is empty, expected a state file", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// It starts with something else than the mark of a state file.
    #[error("{} is not a state file: it starts with \"{found}\", expected \"MVMSTATE\"", path.display())]
    NotState {
        /// The file.
        path: PathBuf,
        /// Its first bytes, escaped.
        found: String,
    },
    /// Its format is not one this build reads.
    #[error("{} has state format {found}, this build reads format {FORMAT}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format version.
        found: u16,
    },
    /// It holds a machine of another architecture.
    #[error("{} is for {found}, expected {}", path.display(), Arch::CURRENT)]
    Arch {
        /// The file.
        path: PathBuf,
        /// The architecture it names, or its unknown tag.
        found: String,
    },
    /// Its end is missing.
    #[error("{} is cut off: {found} of {expected} bytes", path.display())]
    CutOff {
        /// The file.
        path: PathBuf,
        /// Bytes there are.
        found: u64,
        /// Bytes its header names; the least any state file has when the header is cut too.
        expected: u64,
    },
    /// Something follows its end.
    #[error("{} has {found} bytes, expected {expected} from its header", path.display())]
    TrailingBytes {
        /// The file.
        path: PathBuf,
        /// Bytes there are.
        found: u64,
        /// Bytes its header names.
        expected: u64,
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
    /// The section table contradicts itself, although the checksum is right.
    #[error("{} has a bad section table: entry {entry}: {reason}", path.display())]
    Table {
        /// The file.
        path: PathBuf,
        /// Number of the entry, from 0.
        entry: u32,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A section that is needed is not there.
    #[error("{} has no section {section}, it has: {present}", path.display())]
    MissingSection {
        /// The file.
        path: PathBuf,
        /// The section asked for.
        section: String,
        /// The sections there are.
        present: String,
    },
    /// A section has a version that the asking code does not read.
    #[error("{} has section {section} in version {found}, this build reads {} to {}", path.display(), supported.start(), supported.end())]
    SectionVersion {
        /// The file.
        path: PathBuf,
        /// The section.
        section: String,
        /// Its version.
        found: u16,
        /// Versions that are read.
        supported: RangeInclusive<u16>,
    },
    /// A section's body is not what its version says.
    #[error("{} has section {section} that does not decode", path.display())]
    SectionBody {
        /// The file.
        path: PathBuf,
        /// The section.
        section: String,
        /// What the decoder met.
        source: postcard::Error,
    },
    /// The digests of a memory file contradict themselves.
    #[error("{} has digests {reason}", path.display())]
    Digests {
        /// The file.
        path: PathBuf,
        /// What is wrong with them.
        reason: &'static str,
    },
    /// A section's body goes on after its value.
    #[error("{} has section {section} with {unread} bytes after its value", path.display())]
    SectionTrailing {
        /// The file.
        path: PathBuf,
        /// The section.
        section: String,
        /// Bytes left over.
        unread: usize,
    },
}

/// A state that cannot be written: always a mistake in the calling code.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The name is outside the grammar.
    #[error("Section name {0:?} is not 1 to {MAX_SECTION_NAME} of a-z, 0-9 and -")]
    Name(String),
    /// The name was used before.
    #[error("Section {0} was written twice")]
    Duplicate(String),
    /// The value could not be encoded.
    #[error("Section {section} does not encode")]
    Encode {
        /// The section.
        section: String,
        /// What the encoder met.
        source: postcard::Error,
    },
    /// The file would be larger than a reader accepts.
    #[error(
        "Section {section} makes the state {found} bytes long, at most {MAX_FILE_BYTES} are read back"
    )]
    TooLarge {
        /// The section that went too far.
        section: String,
        /// Bytes with it.
        found: u64,
    },
}
