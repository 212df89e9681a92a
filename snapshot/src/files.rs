//! Opening and writing files without being led astray by what is there in their place.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, Stat, fchmod, fstat, openat};
use rustix::io::Errno;

use crate::error::FileError;

/// Mode of a file while it is written.
pub(crate) const MODE_WRITING: Mode = Mode::RUSR.union(Mode::WUSR);
/// Mode of a published file: nobody writes to it again, nobody else reads it.
pub(crate) const MODE_PUBLISHED: Mode = Mode::RUSR;
/// Mode of every directory of a store.
pub(crate) const MODE_DIRECTORY: Mode = Mode::RWXU;

/// Opens `name` under `dir` for reading; `path` is what errors call it.
///
/// A symbolic link is not followed, and a FIFO does not make the open wait for a writer.
pub(crate) fn open_regular_at(
    dir: BorrowedFd<'_>,
    name: &Path,
    path: &Path,
) -> Result<(File, Stat), FileError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = openat(dir, name, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::LOOP => FileError::NotRegular {
            path: path.to_path_buf(),
            found: "a symbolic link",
        },
        Errno::NXIO => FileError::NotRegular {
            path: path.to_path_buf(),
            found: "a socket",
        },
        other => FileError::on("open", path)(other),
    })?;
    let stat = fstat(&fd).map_err(FileError::on("inspect", path))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok((File::from(fd), stat)),
        other => Err(FileError::NotRegular {
            path: path.to_path_buf(),
            found: describe(other),
        }),
    }
}

/// Reads a whole regular file of at most `limit` bytes, in one read.
pub(crate) fn read_regular_at(
    dir: BorrowedFd<'_>,
    name: &Path,
    path: &Path,
    limit: u64,
) -> Result<Vec<u8>, FileError> {
    let (mut file, stat) = open_regular_at(dir, name, path)?;
    let length = stat.st_size.cast_unsigned();
    let too_large = || FileError::TooLarge {
        path: path.to_path_buf(),
        found: length,
        limit,
    };
    if length > limit {
        return Err(too_large());
    }
    let mut bytes = vec![0; usize::try_from(length).map_err(|_| too_large())?];
    file.read_exact(&mut bytes)
        .map_err(FileError::on("read", path))?;
    Ok(bytes)
}

/// Makes a file that must not be there yet, readable and writable by its owner only.
pub(crate) fn create_at(dir: BorrowedFd<'_>, name: &str, path: &Path) -> Result<File, FileError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = openat(dir, name, flags, MODE_WRITING).map_err(FileError::on("create", path))?;
    Ok(File::from(fd))
}

/// Makes a file with this content, takes its write permission away and brings it to the disk.
pub(crate) fn write_published_at(
    dir: BorrowedFd<'_>,
    name: &str,
    path: &Path,
    content: &[u8],
) -> Result<(), FileError> {
    let mut file = create_at(dir, name, path)?;
    file.write_all(content)
        .map_err(FileError::on("write", path))?;
    fchmod(&file, MODE_PUBLISHED).map_err(FileError::on("set the mode of", path))?;
    file.sync_all().map_err(FileError::on("sync", path))
}

/// Bytes that a file takes on disk.
pub(crate) fn allocated_bytes(stat: &Stat) -> u64 {
    // st_blocks counts 512 bytes, whatever the file system's block size is.
    stat.st_blocks.cast_unsigned() * 512
}

/// Opens a directory, not through a symbolic link.
pub(crate) fn open_directory(path: &Path) -> Result<OwnedFd, FileError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::NOTDIR | Errno::LOOP => FileError::NotDirectory {
            path: path.to_path_buf(),
        },
        other => FileError::on("open", path)(other),
    })
}

/// Brings a directory's entries to the disk.
pub(crate) fn sync_directory(dir: impl AsFd, path: &Path) -> Result<(), FileError> {
    rustix::fs::fsync(dir).map_err(FileError::on("sync", path))
}

const fn describe(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "a directory",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Symlink => "a symbolic link",
        FileType::RegularFile => "a regular file",
        FileType::Unknown => "of unknown kind",
    }
}
