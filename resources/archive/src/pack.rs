//! Writes a file or a directory as a tar stream.
//!
//! The first entry is what was asked for, by its last name; the names of all others begin with that
//! name. Only the contents of a directory whose path ends with `/.` are asked for: its entry is `.`.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, fstatfs, open};
use tar::{Builder, EntryType, Header};

use crate::contents::{Block, Contents, Failure};
use crate::{Error, Notice};

/// The name of the root when only its contents are asked for.
pub const CONTENTS_ONLY: &str = ".";

/// Headers and small files are written together.
const BUFFER_BYTES: usize = 64 * 1024;

/// File systems that are the kernel's words and no files. A copy of `/` leaves them out.
const PSEUDO_FILE_SYSTEMS: [i64; 10] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x1cd1,      // devpts
    0x6367_7270, // cgroup2
    0x0027_e0eb, // cgroup
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0xcafe_4a11, // bpf
    0x6165_676c, // pstore
];

/// Writes `source` to `out`. A link is copied as such, with `follow` what it leads to.
///
/// # Errors
/// Something cannot be read, or `out` fails. What is written is no complete archive then, except for
/// [`Error::Changed`].
pub fn pack(source: &Path, follow: bool, out: impl Write, notice: Notice<'_>) -> Result<(), Error> {
    let mut packer = Packer {
        builder: Builder::new(BufWriter::with_capacity(BUFFER_BYTES, out)),
        links: HashMap::new(),
        changed: None,
        notice,
    };
    let name = root_name(source)?;
    let source = if follow {
        &fs::canonicalize(source).map_err(Error::file("read", source))?
    } else {
        source
    };
    let metadata = fs::symlink_metadata(source).map_err(Error::file("read", source))?;
    packer.tree(source, &name, &metadata)?;
    packer
        .builder
        .into_inner()
        .and_then(|mut out| out.flush())
        .map_err(Error::Write)?;
    packer
        .changed
        .map_or(Ok(()), |path| Err(Error::Changed { path }))
}

/// The name that the root of `source` has in the stream.
///
/// # Errors
/// It has to be looked up, and is not there.
pub fn root_name(source: &Path) -> Result<PathBuf, Error> {
    let bytes = source.as_os_str().as_bytes();
    let only_contents = bytes == b"." || bytes.ends_with(b"/.");
    match source.file_name() {
        _ if only_contents => Ok(CONTENTS_ONLY.into()),
        Some(name) => Ok(name.into()),
        // It ends with "..", or is the root.
        None => {
            let real = fs::canonicalize(source).map_err(Error::file("read", source))?;
            Ok(real.file_name().map_or(CONTENTS_ONLY.into(), Into::into))
        }
    }
}

struct Packer<'a, W: Write> {
    builder: Builder<W>,
    /// What has more than one name, by device and inode, and the name that it was written by.
    links: HashMap<(u64, u64), PathBuf>,
    changed: Option<PathBuf>,
    notice: Notice<'a>,
}

/// A directory whose entries are being written.
struct Level {
    path: PathBuf,
    name: PathBuf,
    /// What is left of it, the next one last.
    left: Vec<OsString>,
}

impl<W: Write> Packer<'_, W> {
    fn tree(&mut self, source: &Path, name: &Path, metadata: &Metadata) -> Result<(), Error> {
        let device = metadata.dev();
        let mut block = Block::new();
        let mut levels = Vec::new();
        self.entry(source, name, metadata, &mut block)?;
        if metadata.is_dir() {
            levels.push(Level::of(source, name)?);
        }
        while let Some(level) = levels.last_mut() {
            let Some(child) = level.left.pop() else {
                levels.pop();
                continue;
            };
            let (path, name) = (level.path.join(&child), level.name.join(&child));
            let metadata = match fs::symlink_metadata(&path) {
                Ok(metadata) => metadata,
                // Removed since the directory was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::file("read", path)(error)),
            };
            self.entry(&path, &name, &metadata, &mut block)?;
            if metadata.is_dir() && (metadata.dev() == device || self.is_wanted(&path)?) {
                levels.push(Level::of(&path, &name)?);
            }
        }
        Ok(())
    }

    /// Whether what is mounted there is to be copied.
    fn is_wanted(&mut self, path: &Path) -> Result<bool, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let kind = open(path, flags, Mode::empty())
            .and_then(|directory| fstatfs(&directory))
            .map_err(Error::file("read", path))?
            .f_type;
        let pseudo = PSEUDO_FILE_SYSTEMS.contains(&kind);
        if pseudo {
            (self.notice)(format!(
                "{} is left empty: a file system of the kernel's is mounted there",
                path.display()
            ));
        }
        Ok(!pseudo)
    }

    fn entry(
        &mut self,
        path: &Path,
        name: &Path,
        metadata: &Metadata,
        block: &mut Block,
    ) -> Result<(), Error> {
        let kind = metadata.file_type();
        let mut header = header_of(metadata);
        if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            return self.bare(&mut header, name);
        }
        if !kind.is_file() && !kind.is_symlink() {
            let what = if kind.is_socket() {
                "a socket"
            } else if kind.is_fifo() {
                "a named pipe"
            } else {
                "a device"
            };
            (self.notice)(format!("{} is left out: it is {what}", path.display()));
            return Ok(());
        }
        if metadata.nlink() > 1 {
            let id = (metadata.dev(), metadata.ino());
            if let Some(first) = self.links.get(&id) {
                header.set_entry_type(EntryType::Link);
                let linked = self.builder.append_link(&mut header, name, first);
                return linked.map_err(Error::Write);
            }
            self.links.insert(id, name.to_owned());
        }
        if kind.is_symlink() {
            let target = fs::read_link(path).map_err(Error::file("read", path))?;
            header.set_entry_type(EntryType::Symlink);
            let linked = self.builder.append_link(&mut header, name, target);
            return linked.map_err(Error::Write);
        }
        self.file(path, name, header, metadata, block)
    }

    fn file(
        &mut self,
        path: &Path,
        name: &Path,
        mut header: Header,
        metadata: &Metadata,
        block: &mut Block,
    ) -> Result<(), Error> {
        // It may be something else by now, such as a pipe that nobody opens at its other end.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = open(path, flags, Mode::empty()).map_err(Error::file("open", path))?;
        let contents =
            Contents::of(file.into(), metadata.len(), block).map_err(Error::file("read", path))?;
        header.set_entry_type(EntryType::Regular);
        header.set_size(contents.length());
        self.bare(&mut header, name)?;
        match contents.write(self.builder.get_mut()) {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.changed.get_or_insert_with(|| path.to_owned());
                Ok(())
            }
            Err(Failure::Read(error)) => Err(Error::file("read", path)(error)),
            Err(Failure::Write(error)) => Err(Error::Write(error)),
        }
    }

    /// Writes a header; what belongs to it follows by other means.
    fn bare(&mut self, header: &mut Header, name: &Path) -> Result<(), Error> {
        self.builder
            .append_data(header, name, io::empty())
            .map_err(Error::Write)
    }
}

impl Level {
    fn of(path: &Path, name: &Path) -> Result<Self, Error> {
        let entries = fs::read_dir(path).map_err(Error::file("list", path))?;
        let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
        let mut left: Vec<OsString> = names
            .collect::<io::Result<_>>()
            .map_err(Error::file("list", path))?;
        left.sort_unstable_by(|a, b| OsStr::cmp(b, a));
        let name = if name == Path::new(CONTENTS_ONLY) {
            PathBuf::new()
        } else {
            name.to_owned()
        };
        Ok(Self {
            path: path.to_owned(),
            name,
            left,
        })
    }
}

fn header_of(metadata: &Metadata) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(metadata.mode() & 0o7777);
    header.set_uid(metadata.uid().into());
    header.set_gid(metadata.gid().into());
    // The format knows no time before 1970.
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or_default());
    header.set_size(0);
    header
}
