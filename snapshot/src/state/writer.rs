//! Builds a state file in memory.

use serde::Serialize;

use super::{
    Arch, CHECKSUM_BYTES, ENTRY_BYTES, FORMAT, HEADER_BYTES, MAGIC, MAX_FILE_BYTES,
    MAX_SECTION_NAME, WriteError, is_section_name,
};
use crate::checksum::Checksum;

/// Collects sections; [`finish`](Self::finish) makes the bytes of the file out of them.
#[derive(Debug, Default)]
pub struct StateWriter {
    entries: Vec<Entry>,
    bodies: Vec<u8>,
}

#[derive(Debug)]
struct Entry {
    name: String,
    version: u16,
    length: u64,
}

impl StateWriter {
    /// A state without sections.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a section; `version` says which shape `value` has.
    ///
    /// # Errors
    /// [`WriteError`] when the name is no section name or was used before, or when the value
    /// does not encode or makes the file too large to be read back.
    pub fn section<T: Serialize + ?Sized>(
        &mut self,
        name: &str,
        version: u16,
        value: &T,
    ) -> Result<(), WriteError> {
        if !is_section_name(name.as_bytes()) {
            return Err(WriteError::Name(name.to_owned()));
        }
        if self.entries.iter().any(|entry| entry.name == name) {
            return Err(WriteError::Duplicate(name.to_owned()));
        }
        let body = postcard::to_stdvec(value).map_err(|source| WriteError::Encode {
            section: name.to_owned(),
            source,
        })?;
        self.bodies.extend(&body);
        self.entries.push(Entry {
            name: name.to_owned(),
            version,
            length: body.len() as u64,
        });
        let found = self.file_bytes() as u64;
        if found > MAX_FILE_BYTES {
            return Err(WriteError::TooLarge {
                section: name.to_owned(),
                found,
            });
        }
        Ok(())
    }

    /// The bytes of the file.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.finish_as(FORMAT, Arch::CURRENT.tag())
    }

    pub(super) fn finish_as(self, format: u16, arch: u16) -> Vec<u8> {
        let total = self.file_bytes();
        // Every section keeps the file within MAX_FILE_BYTES, so there are far fewer than 2^32.
        let count = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        let mut file = Vec::with_capacity(total);
        file.extend(MAGIC);
        file.extend(format.to_le_bytes());
        file.extend(arch.to_le_bytes());
        file.extend(count.to_le_bytes());
        file.extend((total as u64).to_le_bytes());
        let mut offset = (HEADER_BYTES + self.entries.len() * ENTRY_BYTES) as u64;
        for entry in &self.entries {
            let mut name = [0; MAX_SECTION_NAME];
            name[..entry.name.len()].copy_from_slice(entry.name.as_bytes());
            file.extend(name);
            file.extend(entry.version.to_le_bytes());
            file.extend([0; 6]);
            file.extend(offset.to_le_bytes());
            file.extend(entry.length.to_le_bytes());
            offset += entry.length;
        }
        file.extend(&self.bodies);
        let checksum = Checksum::of(&file);
        file.extend(checksum.raw().to_le_bytes());
        file
    }

    fn file_bytes(&self) -> usize {
        HEADER_BYTES + self.entries.len() * ENTRY_BYTES + self.bodies.len() + CHECKSUM_BYTES
    }
}
