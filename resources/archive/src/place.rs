//! Where the root of a stream goes: the rules of `docker cp`.
//!
//! | root | destination | result |
//! |---|---|---|
//! | anything | a directory | in it, by its own name |
//! | contents of a directory (`DIR/.`) | a directory | in it |
//! | a file | a file, or nothing yet | that is its name |
//! | a directory | nothing yet | that is its name |
//! | a directory | a file | refused |
//! | a file | nothing yet, with `/` at the end | refused |

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::Error;
use crate::pack::CONTENTS_ONLY;

/// Where a stream goes.
#[derive(Debug, Eq, PartialEq)]
pub struct Place {
    /// The directory below which everything is.
    pub directory: PathBuf,
    /// It is made for the stream.
    pub is_new: bool,
    /// What becomes of the root's name.
    pub root: Root,
}

/// What becomes of the first part of each name.
#[derive(Debug, Eq, PartialEq)]
pub enum Root {
    /// Names stay as they are.
    Any,
    /// It has to be this one, which becomes the other.
    Renamed(OsString, OsString),
    /// It has to be this one, which is the directory itself.
    Directory(OsString),
}

impl Place {
    /// For a stream whose names stay as they are.
    ///
    /// # Errors
    /// `destination` is no directory.
    pub fn of_names(destination: &Path) -> Result<Self, Error> {
        if !destination.is_dir() {
            let path = destination.to_owned();
            return Err(Error::NoDirectory { path });
        }
        Ok(Self::within(destination, Root::Any))
    }

    /// For a stream whose root has this name.
    ///
    /// # Errors
    /// It cannot go there.
    pub fn of_root(
        destination: &Path,
        name: &Path,
        root_is_directory: bool,
    ) -> Result<Self, Error> {
        let mut parts = name.components();
        let name = match (parts.next(), parts.next()) {
            (Some(Component::Normal(name)), None) => Some(name.to_owned()),
            (Some(Component::CurDir) | None, None) if root_is_directory => None,
            _ => {
                let text = format!("its root is {name:?}, expected one name");
                return Err(Error::Refused(text));
            }
        };
        let existing = fs::metadata(destination).ok();
        if existing.as_ref().is_some_and(fs::Metadata::is_dir) {
            let root = name.map_or(Root::Any, |name| Root::Renamed(name.clone(), name));
            return Ok(Self::within(destination, root));
        }
        let path = || destination.to_owned();
        if root_is_directory && (existing.is_some() || is_link(destination)) {
            return Err(Error::NotADirectory { path: path() });
        }
        if root_is_directory {
            let name = name.unwrap_or_else(|| CONTENTS_ONLY.into());
            parent_of(destination)?;
            return Ok(Self {
                is_new: true,
                ..Self::within(destination, Root::Directory(name))
            });
        }
        if destination.as_os_str().as_bytes().ends_with(b"/") {
            return Err(Error::NoDirectory { path: path() });
        }
        // Through a link to where it leads, as long as that is there.
        let destination = match existing {
            Some(_) => {
                fs::canonicalize(destination).map_err(Error::file("look up", destination))?
            }
            None => path(),
        };
        let parent = parent_of(&destination)?;
        match (name, destination.file_name()) {
            (Some(from), Some(to)) => Ok(Self::within(&parent, Root::Renamed(from, to.into()))),
            _ => Err(Error::NoDirectory { path: destination }),
        }
    }

    fn within(directory: &Path, root: Root) -> Self {
        Self {
            directory: directory.to_owned(),
            is_new: false,
            root,
        }
    }
}

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink())
}

fn parent_of(destination: &Path) -> Result<PathBuf, Error> {
    let parent = match destination.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => destination,
    };
    if parent.is_dir() {
        Ok(parent.to_owned())
    } else {
        Err(Error::NoDirectory {
            path: parent.to_owned(),
        })
    }
}

impl Root {
    /// The name below the directory of what the stream calls `name`.
    ///
    /// # Errors
    /// It leads out of the directory, or has another root.
    pub fn apply(&self, name: &Path) -> Result<PathBuf, Error> {
        let mut parts = Vec::new();
        for part in name.components() {
            match part {
                Component::Normal(part) => parts.push(part),
                Component::CurDir => {}
                Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                    let path = name.to_owned();
                    return Err(Error::Escapes { path });
                }
            }
        }
        let (expected, new) = match self {
            Self::Any => return Ok(parts.iter().collect()),
            // The contents of a directory: their names have no root.
            Self::Directory(root) if root == CONTENTS_ONLY => return Ok(parts.iter().collect()),
            Self::Renamed(expected, new) => (expected, Some(new.as_os_str())),
            Self::Directory(expected) => (expected, None),
        };
        match parts.split_first() {
            Some((root, rest)) if root == expected => Ok(new.iter().chain(rest).collect()),
            _ => Err(Error::Refused(format!(
                "{name:?} is not below its root {expected:?}"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rename(from: &str, to: &str) -> Root {
        Root::Renamed(from.into(), to.into())
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        for name in ["../a", "a/../../b", "/a", "..", "a/.."] {
            for root in [Root::Any, rename("a", "b"), Root::Directory(".".into())] {
                assert!(root.apply(Path::new(name)).is_err(), "{name} {root:?}");
            }
        }
    }

    #[test]
    fn root_is_renamed_and_others_are_refused() {
        let root = rename("a", "b");
        assert_eq!(root.apply(Path::new("a")).unwrap(), Path::new("b"));
        assert_eq!(
            root.apply(Path::new("./a/x/./y")).unwrap(),
            Path::new("b/x/y")
        );
        assert!(root.apply(Path::new("c")).is_err());
        assert!(root.apply(Path::new(".")).is_err());
        let root = Root::Directory("a".into());
        assert_eq!(root.apply(Path::new("a/x")).unwrap(), Path::new("x"));
        assert_eq!(root.apply(Path::new("a")).unwrap(), Path::new(""));
    }

    #[test]
    fn rules_are_those_of_docker_cp() {
        let scratch = tempfile::tempdir().unwrap();
        let path = |name: &str| scratch.path().join(name);
        fs::create_dir(path("dir")).unwrap();
        fs::write(path("file"), "").unwrap();
        std::os::unix::fs::symlink("file", path("link")).unwrap();
        std::os::unix::fs::symlink("nowhere", path("dangling")).unwrap();
        let place = |destination: &str, name: &str, directory| {
            Place::of_root(&path(destination), Path::new(name), directory)
        };
        let at = |directory: &str, root| Place::within(&path(directory), root);

        for directory in [false, true] {
            assert_eq!(
                place("dir", "x", directory).unwrap(),
                at("dir", rename("x", "x"))
            );
        }
        assert_eq!(place("dir", ".", true).unwrap(), at("dir", Root::Any));
        assert_eq!(
            place("file", "x", false).unwrap(),
            at("", rename("x", "file"))
        );
        assert_eq!(place("link", "x", false).unwrap().root, rename("x", "file"));
        assert_eq!(
            place("dangling", "x", false).unwrap().root,
            rename("x", "dangling")
        );
        assert_eq!(place("new", "x", false).unwrap().root, rename("x", "new"));
        let new = place("new", "x", true).unwrap();
        assert!(new.is_new && new.root == Root::Directory("x".into()));
        assert!(matches!(
            place("file", "x", true),
            Err(Error::NotADirectory { .. })
        ));
        assert!(matches!(
            place("dangling", "x", true),
            Err(Error::NotADirectory { .. })
        ));
        assert!(matches!(
            place("new/", "x", false),
            Err(Error::NoDirectory { .. })
        ));
        assert!(matches!(
            place("no/new", "x", true),
            Err(Error::NoDirectory { .. })
        ));
        assert!(matches!(
            place("no/new", "x", false),
            Err(Error::NoDirectory { .. })
        ));
        for (name, directory) in [("x/y", true), ("..", true), ("/", true), (".", false)] {
            assert!(
                matches!(place("dir", name, directory), Err(Error::Refused(_))),
                "{name}"
            );
        }
    }
}
