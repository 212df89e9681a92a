//! The directory that a stream goes into. Every name is resolved by the kernel below it.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, chownat, fchmod,
    fchown, futimens, linkat, mkdirat, open, openat, openat2, renameat, symlinkat, unlinkat,
    utimensat,
};
use rustix::io::Errno;

use crate::Error;

/// What a directory gets until its own mode is set, and for good when the stream has no entry for it.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);
/// What a file gets until its contents are complete.
const PRIVATE: Mode = Mode::from_raw_mode(0o600);
/// A run of so many zeros becomes a hole.
const HOLE_BYTES: usize = 4096;
const BLOCK_BYTES: usize = 64 * HOLE_BYTES;

/// What a file is to have besides its contents.
#[derive(Clone, Copy, Debug)]
pub struct Attributes {
    /// Permissions.
    pub mode: Mode,
    /// Owner, if it is not whoever makes it.
    pub owner: Option<(Uid, Gid)>,
    /// When it was changed last, in seconds since 1970.
    pub mtime: i64,
}

/// A directory and what is below it.
#[derive(Debug)]
pub struct Tree {
    root: Rc<OwnedFd>,
    path: PathBuf,
    /// The last directory that something was put into.
    last: RefCell<Option<(PathBuf, Rc<OwnedFd>)>>,
    block: RefCell<Vec<u8>>,
}

impl Tree {
    pub fn open(path: &Path) -> Result<Self, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(path, flags, Mode::empty()).map_err(Error::file("open", path))?;
        Ok(Self {
            root: Rc::new(root),
            path: path.to_owned(),
            last: RefCell::new(None),
            block: RefCell::new(vec![0; BLOCK_BYTES]),
        })
    }

    fn full(&self, name: &Path) -> PathBuf {
        self.path.join(name)
    }

    fn beneath(&self, name: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let name = if name.as_os_str().is_empty() {
            Path::new(".")
        } else {
            name
        };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        openat2(
            &*self.root,
            name,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        )
    }

    /// The directory `name`, which is made with those above it where it is missing.
    fn directory(&self, name: &Path) -> Result<Rc<OwnedFd>, Error> {
        if name.as_os_str().is_empty() {
            return Ok(Rc::clone(&self.root));
        }
        if let Some((last, directory)) = &*self.last.borrow()
            && last == name
        {
            return Ok(Rc::clone(directory));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let directory = match self.beneath(name, flags) {
            Err(Errno::NOENT) => {
                self.make_directory(name)?;
                self.beneath(name, flags)
            }
            result => result,
        };
        let directory = Rc::new(directory.map_err(|errno| self.unusable(name, errno))?);
        *self.last.borrow_mut() = Some((name.to_owned(), Rc::clone(&directory)));
        Ok(directory)
    }

    fn unusable(&self, name: &Path, errno: Errno) -> Error {
        if errno == Errno::XDEV {
            return Error::Escapes {
                path: name.to_owned(),
            };
        }
        Error::file("use directory", self.full(name))(errno)
    }

    fn parent<'a>(&self, name: &'a Path) -> Result<(Rc<OwnedFd>, &'a OsStr), Error> {
        let last = name
            .file_name()
            .ok_or_else(|| Error::Refused(format!("{name:?} has to be a directory")))?;
        let parent = name.parent().unwrap_or(Path::new(""));
        Ok((self.directory(parent)?, last))
    }

    /// Makes a directory unless it is there. The destination itself is.
    pub fn make_directory(&self, name: &Path) -> Result<(), Error> {
        if name.as_os_str().is_empty() {
            return Ok(());
        }
        let (parent, last) = self.parent(name)?;
        match mkdirat(&parent, last, DIRECTORY_MODE) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => self
                .beneath(name, OFlags::PATH | OFlags::DIRECTORY)
                .map(drop)
                .map_err(|errno| self.unusable(name, errno)),
            Err(errno) => Err(Error::file("create directory", self.full(name))(errno)),
        }
    }

    /// Gives a directory its attributes, once nothing is put into it any more.
    pub fn finish_directory(&self, name: &Path, attributes: &Attributes) -> Result<(), Error> {
        let finish = || {
            let directory = self.beneath(name, OFlags::RDONLY | OFlags::DIRECTORY)?;
            set(directory.as_fd(), attributes)
        };
        finish().map_err(Error::file("set the attributes of", self.full(name)))
    }

    /// Makes a symbolic link, in place of what has its name.
    pub fn symlink(
        &self,
        name: &Path,
        target: &Path,
        attributes: &Attributes,
    ) -> Result<(), Error> {
        let (parent, last) = self.parent(name)?;
        let make = || {
            replace(&parent, last, |temporary| {
                symlinkat(target, &parent, temporary)
            })?;
            if let Some((uid, gid)) = attributes.owner {
                chownat(
                    &parent,
                    last,
                    Some(uid),
                    Some(gid),
                    AtFlags::SYMLINK_NOFOLLOW,
                )?;
            }
            let times = times_of(attributes);
            utimensat(&parent, last, &times, AtFlags::SYMLINK_NOFOLLOW)
        };
        make().map_err(Error::file("create link", self.full(name)))
    }

    /// Gives what is there already another name.
    pub fn link(&self, name: &Path, existing: &Path) -> Result<(), Error> {
        let (from, from_last) = self.parent(existing)?;
        let (parent, last) = self.parent(name)?;
        replace(&parent, last, |temporary| {
            linkat(&from, from_last, &parent, temporary, AtFlags::empty())
        })
        .map_err(Error::file("link", self.full(name)))
    }

    /// Makes a file of what `contents` has, which must be `size` bytes. It has its name once it is
    /// complete.
    pub fn file(
        &self,
        name: &Path,
        contents: impl Read,
        size: u64,
        attributes: &Attributes,
    ) -> Result<(), Error> {
        let (parent, last) = self.parent(name)?;
        let failed = |action| Error::file(action, self.full(name));
        let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
        match openat(&parent, ".", flags, PRIVATE) {
            Ok(file) => {
                let file = self.fill(file.into(), name, contents, size, attributes)?;
                let descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
                let publish = |temporary: &OsStr| {
                    let follow = AtFlags::SYMLINK_FOLLOW;
                    linkat(CWD, descriptor.as_str(), &parent, temporary, follow)
                };
                replace(&parent, last, publish).map_err(failed("create"))
            }
            // The file system does not know files without a name.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {
                let temporary = temporary_name(last);
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let file = openat(&parent, &temporary, flags, PRIVATE).map_err(failed("create"))?;
                let filled = self.fill(file.into(), name, contents, size, attributes);
                let named = filled.and_then(|_| {
                    renameat(&parent, &temporary, &parent, last).map_err(failed("create"))
                });
                named.inspect_err(|_| remove(&parent, &temporary))
            }
            Err(errno) => Err(failed("create")(errno)),
        }
    }

    fn fill(
        &self,
        mut file: File,
        name: &Path,
        mut contents: impl Read,
        size: u64,
        attributes: &Attributes,
    ) -> Result<File, Error> {
        let failed = |action| Error::file::<io::Error>(action, self.full(name));
        let mut block = self.block.borrow_mut();
        let mut left = size;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
            let room = block.get_mut(..most).unwrap_or_default();
            contents.read_exact(room).map_err(Error::Read)?;
            write_with_holes(&mut file, room).map_err(failed("write"))?;
            left -= room.len() as u64;
        }
        file.set_len(size).map_err(failed("write"))?;
        set(file.as_fd(), attributes)
            .map_err(Error::file("set the attributes of", self.full(name)))?;
        Ok(file)
    }
}

/// Writes what is not zero, and seeks over the rest.
fn write_with_holes(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    let is_hole = |piece: &[u8]| piece.len() == HOLE_BYTES && piece.iter().all(|byte| *byte == 0);
    let mut pending = 0;
    let mut at = 0;
    for piece in bytes.chunks(HOLE_BYTES) {
        if is_hole(piece) {
            file.write_all(bytes.get(pending..at).unwrap_or_default())?;
            file.seek(SeekFrom::Current(HOLE_BYTES as i64))?;
            pending = at + piece.len();
        }
        at += piece.len();
    }
    file.write_all(bytes.get(pending..).unwrap_or_default())
}

/// Has `make` make something under a temporary name, and gives it its own.
fn replace(
    parent: &OwnedFd,
    last: &OsStr,
    make: impl Fn(&OsStr) -> Result<(), Errno>,
) -> Result<(), Errno> {
    // Where nothing has the name no other is needed.
    match make(last) {
        Err(Errno::EXIST) => {}
        result => return result,
    }
    let temporary = temporary_name(last);
    make(temporary.as_ref())?;
    // Two names of one file stay both, although that is no error.
    let renamed = renameat(parent, &temporary, parent, last);
    remove(parent, &temporary);
    renamed
}

/// Removes a temporary name. It is gone already when it has become the right one.
fn remove(parent: &OwnedFd, temporary: &str) {
    match unlinkat(parent, temporary, AtFlags::empty()) {
        Ok(()) | Err(_) => {}
    }
}

/// A name that nothing else has. The process's id is in it, for whoever finds it.
fn temporary_name(last: &OsStr) -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let shown: String = last.to_string_lossy().chars().take(32).collect();
    format!(".{shown}.minivmm-cp.{}.{number}", std::process::id())
}

fn set(fd: BorrowedFd<'_>, attributes: &Attributes) -> Result<(), Errno> {
    // Changing the owner takes the special bits away, so the mode comes after it.
    if let Some((uid, gid)) = attributes.owner {
        fchown(fd, Some(uid), Some(gid))?;
    }
    fchmod(fd, attributes.mode)?;
    futimens(fd, &times_of(attributes))
}

fn times_of(attributes: &Attributes) -> Timestamps {
    let time = Timespec {
        tv_sec: attributes.mtime,
        tv_nsec: 0,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
