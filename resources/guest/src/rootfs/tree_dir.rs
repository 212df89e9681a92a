//! A directory that becomes a root file system, out of which no name leads.
//!
//! Every path is resolved by the kernel with this directory as its root (`openat2`, RESOLVE_IN_ROOT), so
//! that absolute links mean what they mean in the guest, and neither they nor `..` reach the host.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, mkdirat, open, openat, openat2,
    statat, unlinkat,
};
use rustix::io::Errno;

use crate::error::Error;

/// Of directories that an archive does not mention.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);
const AS_PLACE: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// The directory.
#[derive(Debug)]
pub struct TreeDir {
    path: PathBuf,
    root: OwnedFd,
}

/// Where an entry goes: its name in an open directory.
#[derive(Debug)]
pub struct Place {
    /// The directory.
    pub parent: OwnedFd,
    /// The name, without a slash.
    pub name: std::ffi::OsString,
}

impl TreeDir {
    /// Makes it, empty.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let made =
            mkdirat(CWD, path, DIRECTORY_MODE).and_then(|()| open(path, AS_PLACE, Mode::empty()));
        let root = made.map_err(|errno| Error::file("create", path)(errno.into()))?;
        Ok(Self {
            path: path.to_owned(),
            root,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory itself.
    pub fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Finds the place of a path, and makes the directories that lead there. `None` is the root itself.
    ///
    /// # Errors
    /// The path has `..` in it, or leads through something that is no directory.
    pub fn place(&self, path: &Path) -> io::Result<Option<Place>> {
        let parts = parts(path)?;
        let Some((name, parents)) = parts.split_last() else {
            return Ok(None);
        };
        let mut parent = self.resolve(Path::new(""))?;
        let mut way = PathBuf::new();
        for part in parents {
            way.push(part);
            parent = match self.resolve(&way) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    mkdirat(&parent, *part, DIRECTORY_MODE)?;
                    self.resolve(&way)?
                }
                result => result?,
            };
        }
        Ok(Some(Place {
            parent,
            name: (*name).to_owned(),
        }))
    }

    fn resolve(&self, path: &Path) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        Ok(openat2(&self.root, path, AS_PLACE, Mode::empty(), IN_ROOT)?)
    }
}

impl Place {
    /// What is there, if anything.
    pub fn file_type(&self) -> io::Result<Option<FileType>> {
        match statat(&self.parent, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Removes what is there, with all that is below it. Nothing there is fine.
    pub fn remove(&self) -> io::Result<()> {
        remove_all(&self.parent, &self.name)
    }

    /// The entry in this directory of another name.
    pub fn beside(&self, name: &[u8]) -> io::Result<Self> {
        if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
            return Err(io::Error::other("it names nothing to hide"));
        }
        Ok(Self {
            parent: self.parent.try_clone()?,
            name: OsStr::from_bytes(name).to_owned(),
        })
    }
}

/// The names in a directory.
pub fn names(directory: impl AsFd) -> io::Result<Vec<Vec<u8>>> {
    let directory = openat(
        directory,
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut names = Vec::new();
    for entry in Dir::new(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Removes an entry of a directory, whatever it is; never what a link leads to.
fn remove_all(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(parent, name, flags, Mode::empty())?;
    for child in names(&directory)? {
        remove_all(&directory, OsStr::from_bytes(&child))?;
    }
    Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

/// The names of a path: `/a/./b` and `a/b` are the same place.
fn parts(path: &Path) -> io::Result<Vec<&OsStr>> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(Ok(name)),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
            Component::ParentDir => Some(Err(io::Error::other("its name has '..' in it"))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn rig() -> (tempfile::TempDir, TreeDir) {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::create_dir(scratch.path().join("outside")).unwrap();
        let tree = TreeDir::create(&scratch.path().join("root")).unwrap();
        (scratch, tree)
    }

    #[test]
    fn missing_directories_are_made() {
        let (_scratch, tree) = rig();
        let place = tree.place(Path::new("/a/./b/c")).unwrap().unwrap();
        assert_eq!(place.name, "c");
        assert!(tree.path().join("a/b").is_dir());
        assert_eq!(place.file_type().unwrap(), None);
        assert!(tree.place(Path::new("./")).unwrap().is_none());
    }

    #[test]
    fn no_name_leads_out() {
        let (scratch, tree) = rig();
        let outside = scratch.path().join("outside");
        symlink(&outside, tree.path().join("absolute")).unwrap();
        symlink("../../../../../../..", tree.path().join("upwards")).unwrap();
        assert!(tree.place(Path::new("a/../../b")).is_err());
        // The links mean places in the tree, which are made there.
        assert!(tree.place(Path::new("absolute/x")).is_err());
        let place = tree.place(Path::new("upwards/etc/x")).unwrap().unwrap();
        assert!(tree.path().join("etc").is_dir());
        assert_eq!(place.name, "x");
        assert_eq!(std::fs::read_dir(outside).unwrap().count(), 0);
    }

    #[test]
    fn removing_stops_at_links() {
        let (scratch, tree) = rig();
        let outside = scratch.path().join("outside");
        std::fs::write(outside.join("kept"), "x").unwrap();
        std::fs::create_dir_all(tree.path().join("a/b")).unwrap();
        symlink(&outside, tree.path().join("a/b/link")).unwrap();
        tree.place(Path::new("a"))
            .unwrap()
            .unwrap()
            .remove()
            .unwrap();
        assert!(!tree.path().join("a").exists());
        assert!(outside.join("kept").exists());
    }
}
