//! Reads a tar stream into a directory.

use std::ffi::OsStr;
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, Uid};
use tar::{Archive, Entry, EntryType};

use crate::input::{Allowance, Input};
use crate::place::{Place, Root};
use crate::tree::{Attributes, Tree};
use crate::{Error, Notice};

/// Headers and small files are read together.
const BUFFER_BYTES: usize = 64 * 1024;
const PERMISSIONS: u32 = 0o777;
const SPECIAL_BITS: u32 = 0o7000;

/// How names in the stream and the destination belong together.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Layout {
    /// The first entry is the root, and goes where [`Place::of_root`] says.
    Root,
    /// All names are below the destination.
    Names,
}

/// What of the stream's attributes is taken over.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Rules {
    /// Owners and groups.
    pub owners: bool,
    /// The bits that make a program run as its owner or group.
    pub special_bits: bool,
}

/// Reads all of `stream` into `destination`.
///
/// # Errors
/// The stream is cut off, is no archive or leads out of the destination, or something cannot be
/// written. What was complete by then is there, and nothing half-made.
pub fn unpack(
    stream: impl Read,
    destination: &Path,
    layout: Layout,
    rules: Rules,
    notice: Notice<'_>,
) -> Result<(), Error> {
    let allowance = Allowance::default();
    let mut archive = Archive::new(Input {
        stream: BufReader::with_capacity(BUFFER_BYTES, stream),
        allowance: &allowance,
    });
    let mut entries = archive.entries().map_err(Error::Read)?;
    let mut unpacker: Option<Unpacker> = None;
    if layout == Layout::Names {
        let place = Place::of_names(destination)?;
        unpacker = Some(Unpacker::new(place, rules)?);
    }
    loop {
        allowance.headers();
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(Error::Read)?;
        let unpacker = match &mut unpacker {
            Some(unpacker) => unpacker,
            empty => {
                let is_directory = entry.header().entry_type().is_dir();
                let name = name_of(&entry);
                let place = Place::of_root(destination, &name, is_directory)?;
                empty.insert(Unpacker::new(place, rules)?)
            }
        };
        allowance.contents(entry.size());
        unpacker.entry(&mut entry, notice)?;
    }
    match unpacker {
        Some(unpacker) => unpacker.finish(),
        None => Err(Error::Read(io::ErrorKind::UnexpectedEof.into())),
    }
}

struct Unpacker {
    tree: Tree,
    root: Root,
    rules: Rules,
    /// The destination was made for this stream and takes over the root's attributes.
    is_new: bool,
    /// Directories in their order, and what they are to have in the end.
    directories: Vec<(PathBuf, Attributes)>,
}

impl Unpacker {
    fn new(place: Place, rules: Rules) -> Result<Self, Error> {
        if place.is_new {
            std::fs::create_dir(&place.directory)
                .map_err(Error::file("create directory", &place.directory))?;
        }
        Ok(Self {
            tree: Tree::open(&place.directory)?,
            root: place.root,
            rules,
            is_new: place.is_new,
            directories: Vec::new(),
        })
    }

    fn entry(&mut self, entry: &mut Entry<'_, impl Read>, notice: Notice<'_>) -> Result<(), Error> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let given = name_of(entry);
        let name = self.root.apply(&given)?;
        let attributes = self.attributes(entry)?;
        let is_old_directory = given.as_os_str().as_bytes().ends_with(b"/");
        match kind {
            EntryType::Directory => self.directory(name, attributes),
            EntryType::Regular if is_old_directory => self.directory(name, attributes),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let size = entry.size();
                self.tree.file(&name, entry, size, &attributes)
            }
            EntryType::Symlink => {
                let target = link_target(entry, &given)?;
                self.tree.symlink(&name, &target, &attributes)
            }
            EntryType::Link => {
                let existing = self.root.apply(&link_target(entry, &given)?)?;
                self.tree.link(&name, &existing)
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                notice(format!(
                    "{} is left out: it is a device or a named pipe",
                    given.display()
                ));
                Ok(())
            }
            other => Err(Error::Refused(format!(
                "{} is of the unknown kind {:?}",
                given.display(),
                char::from(other.as_byte())
            ))),
        }
    }

    fn directory(&mut self, name: PathBuf, attributes: Attributes) -> Result<(), Error> {
        self.tree.make_directory(&name)?;
        if !name.as_os_str().is_empty() || self.is_new {
            self.directories.push((name, attributes));
        }
        Ok(())
    }

    /// From the last to the first, so that one which may not be written to, or not searched, comes
    /// after all that is in it.
    fn finish(self) -> Result<(), Error> {
        self.directories
            .iter()
            .rev()
            .try_for_each(|(name, attributes)| self.tree.finish_directory(name, attributes))
    }

    fn attributes(&self, entry: &Entry<'_, impl Read>) -> Result<Attributes, Error> {
        let header = entry.header();
        let mask = match self.rules.special_bits {
            true => PERMISSIONS | SPECIAL_BITS,
            false => PERMISSIONS,
        };
        let id = |id: io::Result<u64>| -> Result<u32, Error> {
            let id = id.map_err(Error::Read)?;
            u32::try_from(id)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| Error::Refused(format!("there is no user or group {id}")))
        };
        let owner = match self.rules.owners {
            true => {
                let (uid, gid) = (id(header.uid())?, id(header.gid())?);
                Some((Uid::from_raw(uid), Gid::from_raw(gid)))
            }
            false => None,
        };
        let mtime = header.mtime().map_err(Error::Read)?;
        Ok(Attributes {
            mode: Mode::from_raw_mode(header.mode().map_err(Error::Read)? & mask),
            owner,
            mtime: i64::try_from(mtime).unwrap_or(i64::MAX),
        })
    }
}

fn name_of(entry: &Entry<'_, impl Read>) -> PathBuf {
    OsStr::from_bytes(&entry.path_bytes()).into()
}

fn link_target(entry: &Entry<'_, impl Read>, name: &Path) -> Result<PathBuf, Error> {
    let target = entry.link_name_bytes();
    let target = target.filter(|target| !target.is_empty() && !target.contains(&0));
    target
        .map(|target| OsStr::from_bytes(&target).into())
        .ok_or_else(|| Error::Refused(format!("{} is a link to nothing", name.display())))
}
