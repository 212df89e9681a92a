//! A root file system in memory.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::error::Error;

/// The permission bits of a mode, set-user-id and sticky included.
const PERMISSIONS: u32 = 0o7777;
const DIRECTORY_MODE: u32 = 0o755;

/// What is at a path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file with its content.
    File(Vec<u8>),
    /// A symbolic link to that text.
    Symlink(String),
    /// A character device with its numbers.
    CharacterDevice(u32, u32),
}

/// An entry. Everything belongs to root.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Node {
    /// Permission bits.
    pub permissions: u32,
    /// What it is.
    pub kind: Kind,
}

/// Entries by their path, without a slash at the start, parents before children.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    /// All entries in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// Adds a directory.
    pub fn directory(&mut self, path: &str, permissions: u32) -> Result<(), Error> {
        self.insert(
            path,
            Node {
                permissions,
                kind: Kind::Directory,
            },
        )
    }

    /// Adds a file.
    pub fn file(
        &mut self,
        path: &str,
        permissions: u32,
        content: impl Into<Vec<u8>>,
    ) -> Result<(), Error> {
        self.insert(
            path,
            Node {
                permissions,
                kind: Kind::File(content.into()),
            },
        )
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<(), Error> {
        self.insert(
            path,
            Node {
                permissions: 0o777,
                kind: Kind::Symlink(target.to_owned()),
            },
        )
    }

    /// Adds an entry with the directories above it, in place of what was there.
    pub fn insert(&mut self, path: &str, node: Node) -> Result<(), Error> {
        for (slash, _) in path.match_indices('/') {
            let parent = path.get(..slash).unwrap_or_default();
            let directory = Node {
                permissions: DIRECTORY_MODE,
                kind: Kind::Directory,
            };
            let parent_node = self.nodes.entry(parent.to_owned()).or_insert(directory);
            if parent_node.kind != Kind::Directory {
                let problem =
                    format!("something is to be put below it, so /{parent} must be a directory");
                return Err(Error::Layout {
                    path: path.to_owned(),
                    problem,
                });
            }
        }
        if node.kind != Kind::Directory && self.has_entries_below(path) {
            let problem = "it is to be no directory, and has entries already".to_owned();
            return Err(Error::Layout {
                path: path.to_owned(),
                problem,
            });
        }
        self.nodes.insert(path.to_owned(), node);
        Ok(())
    }

    fn has_entries_below(&self, path: &str) -> bool {
        let prefix = format!("{path}/");
        self.nodes
            .range(prefix.clone()..)
            .next()
            .is_some_and(|(next, _)| next.starts_with(&prefix))
    }

    /// Lays the content of `directory` over what is there.
    pub fn overlay(&mut self, directory: &Path) -> Result<(), Error> {
        self.overlay_at(directory, "")
    }

    fn overlay_at(&mut self, directory: &Path, prefix: &str) -> Result<(), Error> {
        for entry in fs::read_dir(directory).map_err(Error::file("list", directory))? {
            let entry = entry.map_err(Error::file("list", directory))?;
            let source = entry.path();
            let name = entry
                .file_name()
                .into_string()
                .map_err(|name| Error::Layout {
                    path: format!("{prefix}{}", name.display()),
                    problem: "its name is not UTF-8".to_owned(),
                })?;
            let path = format!("{prefix}{name}");
            let metadata = entry.metadata().map_err(Error::file("examine", &source))?;
            let permissions = metadata.permissions().mode() & PERMISSIONS;
            if metadata.is_dir() {
                self.directory(&path, permissions)?;
                self.overlay_at(&source, &format!("{path}/"))?;
            } else if metadata.is_symlink() {
                let target = fs::read_link(&source).map_err(Error::file("read", &source))?;
                let target = target
                    .into_os_string()
                    .into_string()
                    .map_err(|_| Error::Layout {
                        path: path.clone(),
                        problem: "the target of the link is not UTF-8".to_owned(),
                    })?;
                self.symlink(&path, &target)?;
            } else if metadata.is_file() {
                let content = fs::read(&source).map_err(Error::file("read", &source))?;
                self.file(&path, permissions, content)?;
            } else {
                let problem = "only directories, files and symbolic links can be put in".to_owned();
                return Err(Error::Layout { path, problem });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(tree: &Tree) -> Vec<&str> {
        tree.iter().map(|(path, _)| path).collect()
    }

    #[test]
    fn parents_are_made_and_come_first() {
        let mut tree = Tree::default();
        tree.file("a/b/c", 0o644, "x").unwrap();
        tree.file("a/b.txt", 0o644, "y").unwrap();
        assert_eq!(paths(&tree), ["a", "a/b", "a/b.txt", "a/b/c"]);
    }

    #[test]
    fn later_entries_replace_earlier_ones() {
        let mut tree = Tree::default();
        tree.file("etc/hostname", 0o644, "a").unwrap();
        tree.file("etc/hostname", 0o600, "b").unwrap();
        let expected = Node {
            permissions: 0o600,
            kind: Kind::File(b"b".to_vec()),
        };
        assert_eq!(tree.iter().last(), Some(("etc/hostname", &expected)));
    }

    #[test]
    fn directory_with_entries_does_not_become_a_link() {
        let mut tree = Tree::default();
        tree.file("bin/sh", 0o755, "x").unwrap();
        let error = tree.symlink("bin", "usr/bin").unwrap_err().to_string();
        assert!(error.contains("/bin "), "{error}");
        tree.symlink("lib", "usr/lib").unwrap();
        let error = tree.file("lib/x", 0o644, "x").unwrap_err().to_string();
        assert!(error.contains("/lib must be a directory"), "{error}");
    }

    #[test]
    fn overlay_keeps_modes_and_links() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir(root.join("opt")).unwrap();
        fs::set_permissions(root.join("opt"), fs::Permissions::from_mode(0o1750)).unwrap();
        fs::write(root.join("opt/run"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(root.join("opt/run"), fs::Permissions::from_mode(0o4711)).unwrap();
        std::os::unix::fs::symlink("../opt/run", root.join("opt/link")).unwrap();
        let mut tree = Tree::default();
        tree.overlay(root).unwrap();
        let found: Vec<_> = tree
            .iter()
            .map(|(path, node)| (path, node.permissions))
            .collect();
        assert_eq!(
            found,
            [("opt", 0o1750), ("opt/link", 0o777), ("opt/run", 0o4711)]
        );
    }

    #[test]
    fn overlay_with_a_socket_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(directory.path().join("s")).unwrap();
        let error = Tree::default()
            .overlay(directory.path())
            .unwrap_err()
            .to_string();
        assert!(error.contains("/s in the guest"), "{error}");
    }
}
