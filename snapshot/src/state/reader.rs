//! Reads a state file: refuses it whole, or hands out its sections.

use std::collections::HashSet;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use serde::Deserialize;

use super::{
    Arch, CHECKSUM_BYTES, ENTRY_BYTES, FORMAT, HEADER_BYTES, MAGIC, MAX_FILE_BYTES,
    MAX_SECTION_NAME, StateError, is_section_name,
};
use crate::checksum::Checksum;
use crate::files;

const LEAST_BYTES: usize = HEADER_BYTES + CHECKSUM_BYTES;

/// A state file whose header, checksum and section table have been found right.
#[derive(Debug)]
pub struct StateFile {
    origin: PathBuf,
    bytes: Vec<u8>,
    sections: Vec<Section>,
    checksum: Checksum,
}

#[derive(Debug)]
struct Section {
    name: String,
    version: u16,
    body: Range<usize>,
}

impl StateFile {
    /// Reads and checks a state file.
    ///
    /// # Errors
    /// [`StateError`] when it cannot be read, or for the first thing that is wrong with it.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let bytes = files::read_regular_at(CWD, path, path, MAX_FILE_BYTES)?;
        Self::parse(bytes, path)
    }

    /// Checks the bytes of a state file; `origin` is what errors call it.
    ///
    /// # Errors
    /// [`StateError`] for the first thing that is wrong with them.
    pub fn parse(bytes: Vec<u8>, origin: &Path) -> Result<Self, StateError> {
        let count = check_header(&bytes, origin)?;
        let checksum = check_sum(&bytes, origin)?;
        let sections = read_table(&bytes, count, origin)?;
        Ok(Self {
            origin: origin.to_path_buf(),
            bytes,
            sections,
            checksum,
        })
    }

    /// Decodes a section whose version is one of `supported`.
    ///
    /// # Errors
    /// [`StateError`] when the section is missing, of another version, or not what its version
    /// says.
    pub fn section<'a, T: Deserialize<'a>>(
        &'a self,
        name: &str,
        supported: RangeInclusive<u16>,
    ) -> Result<T, StateError> {
        let section = self.find(name)?;
        if !supported.contains(&section.version) {
            return Err(StateError::SectionVersion {
                path: self.origin.clone(),
                section: name.to_owned(),
                found: section.version,
                supported,
            });
        }
        let body = &self.bytes[section.body.clone()];
        let (value, rest) =
            postcard::take_from_bytes(body).map_err(|source| StateError::SectionBody {
                path: self.origin.clone(),
                section: name.to_owned(),
                source,
            })?;
        if rest.is_empty() {
            Ok(value)
        } else {
            Err(StateError::SectionTrailing {
                path: self.origin.clone(),
                section: name.to_owned(),
                unread: rest.len(),
            })
        }
    }

    /// The version of a section, for a reader that knows several shapes.
    ///
    /// # Errors
    /// [`StateError::MissingSection`].
    pub fn version(&self, name: &str) -> Result<u16, StateError> {
        self.find(name).map(|section| section.version)
    }

    /// Whether there is such a section.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.sections.iter().any(|section| section.name == name)
    }

    /// The names of all sections, in the order they were written.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.sections.iter().map(|section| section.name.as_str())
    }

    /// The file it came from.
    #[must_use]
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// Its length in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The checksum it carries, which is right.
    #[must_use]
    pub fn checksum(&self) -> Checksum {
        self.checksum
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn find(&self, name: &str) -> Result<&Section, StateError> {
        self.sections
            .iter()
            .find(|section| section.name == name)
            .ok_or_else(|| StateError::MissingSection {
                path: self.origin.clone(),
                section: name.to_owned(),
                present: self.names().collect::<Vec<_>>().join(", "),
            })
    }
}

/// Everything that can be told without trusting a byte after the header. Returns the number of
/// sections.
fn check_header(bytes: &[u8], origin: &Path) -> Result<u32, StateError> {
    let path = || origin.to_path_buf();
    if bytes.is_empty() {
        return Err(StateError::Empty { path: path() });
    }
    let start = &bytes[..bytes.len().min(MAGIC.len())];
    if !MAGIC.starts_with(start) {
        return Err(StateError::NotState {
            path: path(),
            found: start.escape_ascii().to_string(),
        });
    }
    let found = bytes.len() as u64;
    if bytes.len() < LEAST_BYTES {
        return Err(StateError::CutOff {
            path: path(),
            found,
            expected: LEAST_BYTES as u64,
        });
    }
    let format = u16::from_le_bytes(field(bytes, 8));
    if format != FORMAT {
        return Err(StateError::Format {
            path: path(),
            found: format,
        });
    }
    let tag = u16::from_le_bytes(field(bytes, 10));
    if tag != Arch::CURRENT.tag() {
        return Err(StateError::Arch {
            path: path(),
            found: Arch::from_tag(tag).map_or_else(
                || format!("architecture tag {tag}"),
                |arch| arch.to_string(),
            ),
        });
    }
    let expected = u64::from_le_bytes(field(bytes, 16));
    if found < expected {
        return Err(StateError::CutOff {
            path: path(),
            found,
            expected,
        });
    }
    if found > expected {
        return Err(StateError::TrailingBytes {
            path: path(),
            found,
            expected,
        });
    }
    Ok(u32::from_le_bytes(field(bytes, 12)))
}

fn check_sum(bytes: &[u8], origin: &Path) -> Result<Checksum, StateError> {
    let end = bytes.len() - CHECKSUM_BYTES;
    let expected = Checksum::from_raw(u64::from_le_bytes(field(bytes, end)));
    let found = Checksum::of(&bytes[..end]);
    if found == expected {
        Ok(found)
    } else {
        Err(StateError::Checksum {
            path: origin.to_path_buf(),
            found,
            expected,
        })
    }
}

fn read_table(bytes: &[u8], count: u32, origin: &Path) -> Result<Vec<Section>, StateError> {
    let bodies_end = bytes.len() - CHECKSUM_BYTES;
    let bad = |entry, reason| StateError::Table {
        path: origin.to_path_buf(),
        entry,
        reason,
    };
    let mut next = (count as usize)
        .checked_mul(ENTRY_BYTES)
        .and_then(|table| table.checked_add(HEADER_BYTES))
        .filter(|&table_end| table_end <= bodies_end)
        .ok_or_else(|| bad(0, "more entries than the file has room for"))?;
    let mut sections: Vec<Section> = Vec::with_capacity(count as usize);
    let mut names = HashSet::new();
    for entry in 0..count {
        let section = read_entry(bytes, HEADER_BYTES + entry as usize * ENTRY_BYTES)
            .map_err(|reason| bad(entry, reason))?;
        if section.body.start != next || section.body.end > bodies_end {
            return Err(bad(entry, "its body is not where it belongs"));
        }
        if !names.insert(section.name.clone()) {
            return Err(bad(entry, "its name was there before"));
        }
        next = section.body.end;
        sections.push(section);
    }
    if next != bodies_end {
        return Err(bad(count, "bytes that belong to no section"));
    }
    Ok(sections)
}

fn read_entry(bytes: &[u8], at: usize) -> Result<Section, &'static str> {
    let name: [u8; MAX_SECTION_NAME] = field(bytes, at);
    let length = name.iter().position(|&b| b == 0).unwrap_or(name.len());
    let (name, padding) = name.split_at(length);
    if !is_section_name(name) || padding.iter().any(|&byte| byte != 0) {
        return Err("its name is no section name");
    }
    if field::<6>(bytes, at + 34) != [0; 6] {
        return Err("reserved bytes are not zero");
    }
    let offset = u64::from_le_bytes(field(bytes, at + 40));
    let length = u64::from_le_bytes(field(bytes, at + 48));
    let end = offset.checked_add(length).ok_or("its length overflows")?;
    let position = |value| usize::try_from(value).map_err(|_| "its body is past the file's end");
    Ok(Section {
        name: String::from_utf8_lossy(name).into_owned(),
        version: u16::from_le_bytes(field(bytes, at + 32)),
        body: position(offset)?..position(end)?,
    })
}

/// The `N` bytes at `at`, which the caller knows to be within `bytes`.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}
