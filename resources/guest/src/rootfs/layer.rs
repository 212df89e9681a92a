//! Unpacks a layer over those below it (OCI image specification, "Image Layer Filesystem Changeset").

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    fchmod, fchown, fsetxattr, linkat, makedev, mkdirat, mknodat, openat, symlinkat, utimensat,
};
use sha2::{Digest, Sha256};
use tar::{Archive, Entry, EntryType};

use super::tree_dir::{Place, TreeDir, names};
use crate::decompress::Format;
use crate::error::Error;
use crate::manifest::hex;

/// In front of the name of what a layer hides.
const WHITEOUT: &[u8] = b".wh.";
/// Hides all that the layers below have in a directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// In front of an extended attribute's name in a tar's extended headers.
const XATTR: &str = "SCHILY.xattr.";
/// Permission bits, set-user-id and sticky included.
const PERMISSIONS: u32 = 0o7777;

/// A layer's file, and the digest that it must have when it is decompressed.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The file.
    pub path: PathBuf,
    /// SHA-256 of the tar, in lower-case hexadecimal digits.
    pub diff_id: String,
}

/// Unpacks a tar, compressed or not.
pub fn apply(path: &Path, root: &TreeDir) -> Result<(), Error> {
    let mut reader = open(path)?;
    unpack(&mut reader, path, root)
}

/// Unpacks a layer, whose digest is checked on the way.
pub fn apply_verified(layer: &Layer, root: &TreeDir) -> Result<(), Error> {
    let mut reader = Hashing {
        inner: open(&layer.path)?,
        hasher: Sha256::new(),
    };
    unpack(&mut reader, &layer.path, root)?;
    // What follows the archive's end counts too.
    io::copy(&mut reader, &mut io::sink()).map_err(Error::file("read", &layer.path))?;
    let found = hex(&reader.hasher.finalize());
    if found != layer.diff_id {
        return Err(Error::RootFs {
            path: layer.path.clone(),
            problem: format!(
                "the layer's content has the digest sha256:{found}, expected sha256:{}",
                layer.diff_id
            ),
        });
    }
    Ok(())
}

/// The tar in a file.
pub fn open(path: &Path) -> Result<Box<dyn Read>, Error> {
    let decompressed = || {
        let mut file = BufReader::with_capacity(256 << 10, File::open(path)?);
        let format = Format::detect(file.fill_buf()?);
        Ok(match format {
            None => Box::new(file) as Box<dyn Read>,
            // Layers that can be fetched in parts consist of many members.
            Some(Format::Gzip) => Box::new(MultiGzDecoder::new(file)),
            Some(format) => format.reader(file)?,
        })
    };
    decompressed().map_err(Error::file("read", path))
}

struct Hashing<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}

fn unpack(reader: &mut dyn Read, path: &Path, root: &TreeDir) -> Result<(), Error> {
    let mut archive = Archive::new(reader);
    let mut unpacking = Unpacking {
        root,
        unpacked: HashSet::new(),
        directories: Vec::new(),
    };
    for entry in archive.entries().map_err(Error::file("read", path))? {
        let mut entry = entry.map_err(Error::file("read", path))?;
        let name = entry.path().map_err(Error::file("read", path))?;
        // `./a` and `/a` are `a`; `..` is refused when its place is looked for.
        let plain = |part: &Component<'_>| !matches!(part, Component::RootDir | Component::CurDir);
        let name: PathBuf = name.components().filter(plain).collect();
        unpacking
            .entry(&name, &mut entry)
            .map_err(|error| Error::RootFs {
                path: path.to_owned(),
                problem: format!("cannot unpack its entry {}: {error}", name.display()),
            })?;
    }
    unpacking.finish().map_err(Error::file("unpack", path))
}

struct Unpacking<'a> {
    root: &'a TreeDir,
    /// What this layer has brought, which it does not hide itself.
    unpacked: HashSet<PathBuf>,
    /// Directories get their times when nothing is added to them any more.
    directories: Vec<(OwnedFd, Timestamps)>,
}

impl Unpacking<'_> {
    fn entry(&mut self, path: &Path, entry: &mut Entry<'_, impl Read>) -> io::Result<()> {
        let Some(place) = self.root.place(path)? else {
            let root = self.root.root().try_clone()?;
            return self.directory_is(root, entry);
        };
        let name = place.name.as_bytes();
        if name == OPAQUE {
            return self.hide_all(path, &place);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return place.beside(hidden)?.remove();
        }
        self.unpacked.insert(path.to_owned());
        let kind = entry.header().entry_type();
        let is_there = place.file_type()?;
        if is_there.is_some()
            && (is_there, kind) != (Some(FileType::Directory), EntryType::Directory)
        {
            place.remove()?;
        }
        match kind {
            EntryType::Directory => self.directory(&place, is_there, entry),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                file(&place, entry)
            }
            EntryType::Link => self.hard_link(&place, entry),
            EntryType::Symlink => symlink(&place, entry),
            EntryType::Char => node(&place, FileType::CharacterDevice, entry),
            EntryType::Block => node(&place, FileType::BlockDevice, entry),
            EntryType::Fifo => node(&place, FileType::Fifo, entry),
            other => Err(io::Error::other(format!(
                "it is of the unknown type {other:?}"
            ))),
        }
    }

    fn hide_all(&self, marker: &Path, place: &Place) -> io::Result<()> {
        let directory = marker.parent().unwrap_or(Path::new(""));
        for name in names(&place.parent)? {
            if !self
                .unpacked
                .contains(&directory.join(OsStr::from_bytes(&name)))
            {
                place.beside(&name)?.remove()?;
            }
        }
        Ok(())
    }

    fn directory(
        &mut self,
        place: &Place,
        is_there: Option<FileType>,
        entry: &mut Entry<'_, impl Read>,
    ) -> io::Result<()> {
        if is_there != Some(FileType::Directory) {
            mkdirat(&place.parent, &place.name, Mode::RWXU)?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(&place.parent, &place.name, flags, Mode::empty())?;
        self.directory_is(directory, entry)
    }

    fn directory_is(
        &mut self,
        directory: OwnedFd,
        entry: &mut Entry<'_, impl Read>,
    ) -> io::Result<()> {
        // The root was opened without the right to change it.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(&directory, ".", flags, Mode::empty())?;
        describe(&directory, entry)?;
        self.directories.push((directory, times(entry)?));
        Ok(())
    }

    fn hard_link(&self, place: &Place, entry: &Entry<'_, impl Read>) -> io::Result<()> {
        let target = target(entry)?;
        let existing = self.root.place(&target)?;
        let existing = existing.ok_or_else(|| io::Error::other("it is a hard link to the root"))?;
        let linked = linkat(
            &existing.parent,
            &existing.name,
            &place.parent,
            &place.name,
            AtFlags::empty(),
        );
        linked.map_err(|errno| {
            io::Error::other(format!("no hard link to {}: {errno}", target.display()))
        })
    }

    fn finish(self) -> io::Result<()> {
        for (directory, times) in self.directories {
            rustix::fs::futimens(&directory, &times)?;
        }
        Ok(())
    }
}

fn file(place: &Place, entry: &mut Entry<'_, impl Read>) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat(&place.parent, &place.name, flags, Mode::RUSR | Mode::WUSR)?;
    let mut file = File::from(file);
    io::copy(entry, &mut file)?;
    describe(&file, entry)?;
    rustix::fs::futimens(&file, &times(entry)?)?;
    Ok(())
}

/// Owner, permissions and extended attributes. The owner first: a new one takes set-user-id away.
fn describe(file: impl AsFd, entry: &mut Entry<'_, impl Read>) -> io::Result<()> {
    let (uid, gid) = owner(entry)?;
    fchown(&file, Some(uid), Some(gid))?;
    fchmod(
        &file,
        Mode::from_raw_mode(entry.header().mode()? & PERMISSIONS),
    )?;
    let Some(extensions) = entry.pax_extensions()? else {
        return Ok(());
    };
    for extension in extensions {
        let extension = extension?;
        let key = extension.key().map_err(io::Error::other)?;
        if let Some(name) = key.strip_prefix(XATTR) {
            let set = fsetxattr(&file, name, extension.value_bytes(), XattrFlags::empty());
            set.map_err(|errno| io::Error::other(format!("attribute {name}: {errno}")))?;
        }
    }
    Ok(())
}

fn symlink(place: &Place, entry: &Entry<'_, impl Read>) -> io::Result<()> {
    symlinkat(target(entry)?, &place.parent, &place.name)?;
    describe_link(place, entry)
}

fn node(place: &Place, kind: FileType, entry: &Entry<'_, impl Read>) -> io::Result<()> {
    let header = entry.header();
    let major = header.device_major()?.unwrap_or_default();
    let minor = header.device_minor()?.unwrap_or_default();
    let device = makedev(major, minor);
    mknodat(&place.parent, &place.name, kind, Mode::RUSR, device)?;
    describe_link(place, entry)?;
    let mode = Mode::from_raw_mode(header.mode()? & PERMISSIONS);
    // It was made just now, so it is no link that could be followed.
    Ok(chmodat(&place.parent, &place.name, mode, AtFlags::empty())?)
}

/// Owner and times of what cannot be opened.
fn describe_link(place: &Place, entry: &Entry<'_, impl Read>) -> io::Result<()> {
    let (uid, gid) = owner(entry)?;
    let not_followed = AtFlags::SYMLINK_NOFOLLOW;
    chownat(
        &place.parent,
        &place.name,
        Some(uid),
        Some(gid),
        not_followed,
    )?;
    Ok(utimensat(
        &place.parent,
        &place.name,
        &times(entry)?,
        not_followed,
    )?)
}

fn target(entry: &Entry<'_, impl Read>) -> io::Result<PathBuf> {
    let target = entry.link_name()?;
    Ok(target
        .ok_or_else(|| io::Error::other("it is a link to nothing"))?
        .into_owned())
}

fn owner(entry: &Entry<'_, impl Read>) -> io::Result<(Uid, Gid)> {
    let id = |number: u64, what| {
        let id = u32::try_from(number).ok().filter(|id| *id != u32::MAX);
        id.ok_or_else(|| io::Error::other(format!("it belongs to {what} {number}")))
    };
    let header = entry.header();
    Ok((
        Uid::from_raw(id(header.uid()?, "user")?),
        Gid::from_raw(id(header.gid()?, "group")?),
    ))
}

fn times(entry: &Entry<'_, impl Read>) -> io::Result<Timestamps> {
    let seconds = i64::try_from(entry.header().mtime()?).map_err(io::Error::other)?;
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    Ok(Timestamps {
        last_access: time,
        last_modification: time,
    })
}
