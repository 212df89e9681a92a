//! State files that carry a right checksum and nonsense: a saved machine, with bytes of its
//! sections changed.

use crate::machine::must;
use arbitrary::Arbitrary;
use serde::Serialize;
use serde::ser::{SerializeTuple, Serializer};
use snapshot::StateWriter;

const HEADER: usize = 24;
const ENTRY: usize = 56;

/// A change of one section.
#[derive(Debug, Arbitrary)]
pub struct Edit<'a> {
    section: u8,
    at: u16,
    change: Change<'a>,
}

#[derive(Debug, Arbitrary)]
enum Change<'a> {
    Set(u8),
    Overwrite(&'a [u8]),
    Insert(u8),
    Remove(u8),
    /// A number in postcard's encoding: seven bits a byte.
    Number(u64),
    CutOff,
    Version(u16),
}

/// The sections of a state file.
#[derive(Debug, Clone)]
pub struct Sections(Vec<Section>);

#[derive(Debug, Clone)]
struct Section {
    name: String,
    version: u16,
    body: Vec<u8>,
}

impl Sections {
    /// Takes a valid state file apart; on purpose not with its reader.
    pub fn of(file: &[u8]) -> Self {
        let count = must(usize::try_from(number(file, 12, 4)));
        let read = |entry: usize| {
            let at = HEADER + entry * ENTRY;
            let name = file[at..at + 32].split(|byte| *byte == 0).next();
            let start = must(usize::try_from(number(file, at + 40, 8)));
            let length = must(usize::try_from(number(file, at + 48, 8)));
            Section {
                name: String::from_utf8_lossy(name.unwrap_or_default()).into_owned(),
                version: must(u16::try_from(number(file, at + 32, 2))),
                body: file[start..start + length].to_vec(),
            }
        };
        Self((0..count).map(read).collect())
    }

    /// Makes one change.
    pub fn edit(&mut self, edit: &Edit<'_>) {
        let Some(index) = usize::from(edit.section).checked_rem(self.0.len()) else {
            return;
        };
        let section = &mut self.0[index];
        let body = &mut section.body;
        let at = usize::from(edit.at).checked_rem(body.len()).unwrap_or(0);
        match edit.change {
            Change::Set(value) => body[at..].iter_mut().take(1).for_each(|byte| *byte = value),
            Change::Overwrite(bytes) => {
                let places = body[at..].iter_mut();
                places.zip(bytes).for_each(|(byte, value)| *byte = *value);
            }
            Change::Insert(value) => body.insert(at, value),
            Change::Remove(count) => {
                let end = body.len().min(at + usize::from(count));
                body.drain(at..end);
            }
            Change::Number(value) => {
                let length = body[at..].iter().position(|byte| byte & 0x80 == 0);
                let end = length.map_or(body.len(), |length| at + length + 1);
                body.splice(at..end, varint(value));
            }
            Change::CutOff => body.truncate(at),
            Change::Version(version) => section.version = version,
        }
    }

    /// A state file with these sections, which are what the checksum says.
    pub fn file(&self) -> Vec<u8> {
        let mut writer = StateWriter::new();
        for section in &self.0 {
            must(writer.section(&section.name, section.version, &Raw(&section.body)));
        }
        writer.finish()
    }
}

/// Bytes that are encoded as themselves.
struct Raw<'a>(&'a [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tuple = serializer.serialize_tuple(self.0.len())?;
        for byte in self.0 {
            tuple.serialize_element(byte)?;
        }
        tuple.end()
    }
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            bytes.push(low & 0x7f);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

fn number(file: &[u8], at: usize, length: usize) -> u64 {
    let bytes = file[at..at + length].iter().rev();
    bytes.fold(0, |value, byte| value << 8 | u64::from(*byte))
}
