//! Writes a tree as a newc cpio archive, the same bytes for the same tree.

use std::io::{self, Write};

use cpio::newc::{Builder, trailer};

use crate::error::Error;
use crate::tree::{Kind, Node, Tree};

// The file types of stat(2).
const DIRECTORY: u32 = 0o040_000;
const REGULAR_FILE: u32 = 0o100_000;
const SYMBOLIC_LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// Writes the archive. It is not compressed: the host's page cache has room for the few megabytes,
/// and a guest, above all one that is emulated, then boots without decompressing anything.
pub fn write(tree: &Tree) -> Result<Vec<u8>, Error> {
    let mut archive = Vec::new();
    for (number, (path, node)) in (1..).zip(tree.iter()) {
        write_entry(&mut archive, number, path, node).map_err(|error| Error::Layout {
            path: path.to_owned(),
            problem: error.to_string(),
        })?;
    }
    trailer(archive).map_err(|error| Error::Layout {
        path: String::new(),
        problem: error.to_string(),
    })
}

fn write_entry(archive: &mut Vec<u8>, number: u32, path: &str, node: &Node) -> io::Result<()> {
    let entry = Builder::new(path).ino(number);
    let (entry, content) = match &node.kind {
        Kind::Directory => (entry.mode(DIRECTORY | node.permissions).nlink(2), &[][..]),
        Kind::File(content) => (
            entry.mode(REGULAR_FILE | node.permissions),
            content.as_slice(),
        ),
        Kind::Symlink(target) => (
            entry.mode(SYMBOLIC_LINK | node.permissions),
            target.as_bytes(),
        ),
        Kind::CharacterDevice(major, minor) => {
            let entry = entry.mode(CHARACTER_DEVICE | node.permissions);
            (entry.rdev_major(*major).rdev_minor(*minor), &[][..])
        }
    };
    let length = u32::try_from(content.len())
        .map_err(|_| io::Error::other("a file in a cpio archive is smaller than 4 GiB"))?;
    let mut writer = entry.write(archive, length);
    writer.write_all(content)?;
    writer.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn tree() -> Tree {
        let mut tree = Tree::default();
        tree.file("init", 0o755, "agent").unwrap();
        tree.symlink("bin/sh", "busybox").unwrap();
        let kind = Kind::CharacterDevice(5, 1);
        tree.insert(
            "dev/console",
            Node {
                permissions: 0o600,
                kind,
            },
        )
        .unwrap();
        tree
    }

    #[test]
    fn archive_has_every_entry_with_its_type_and_mode() {
        let archive = write(&tree()).unwrap();
        let mut rest = archive.as_slice();
        let mut found = Vec::new();
        loop {
            let mut reader = cpio::newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let mut content = String::new();
            reader.read_to_string(&mut content).unwrap();
            let entry = reader.entry();
            let device = (entry.rdev_major(), entry.rdev_minor());
            found.push((entry.name().to_owned(), entry.mode(), device, content));
            rest = reader.finish().unwrap();
        }
        let expected = [
            ("bin", 0o040_755, (0, 0), ""),
            ("bin/sh", 0o120_777, (0, 0), "busybox"),
            ("dev", 0o040_755, (0, 0), ""),
            ("dev/console", 0o020_600, (5, 1), ""),
            ("init", 0o100_755, (0, 0), "agent"),
        ];
        let expected = expected
            .map(|(name, mode, device, text)| (name.to_owned(), mode, device, text.to_owned()));
        assert_eq!(found, expected);
    }

    #[test]
    fn same_tree_gives_same_bytes() {
        assert_eq!(write(&tree()).unwrap(), write(&tree()).unwrap());
    }
}
