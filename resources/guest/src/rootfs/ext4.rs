//! Makes the ext4 file system, with Debian's e2fsprogs.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use crate::error::Error;

const BLOCK_BYTES: u64 = 4096;
/// For the journal, the group descriptors and the like.
const OVERHEAD_BYTES: u64 = 40 << 20;
const INODE_BYTES: u64 = 256;
/// Files that can be added to what the image has.
const SPARE_INODES: u64 = 16 << 10;
/// Makes a file system at `file` with what is in `root`, and room for `free_bytes` more.
pub fn make(root: &Path, file: &Path, free_bytes: u64) -> Result<(), Error> {
    let mut content = Content::default();
    content.add(root).map_err(Error::file("read", root))?;
    let inodes = content.files + SPARE_INODES;
    let bytes = content.bytes + inodes * INODE_BYTES + OVERHEAD_BYTES + free_bytes;
    File::create_new(file)
        .and_then(|image| image.set_len(bytes.next_multiple_of(1 << 20)))
        .map_err(Error::file("create", file))?;
    // Nothing is left for the kernel to write in the background: it would do that in every clone.
    let extended = "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0,nodiscard";
    let mut command = Command::new("mke2fs");
    command
        .args([
            "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-L", "root",
        ])
        .args([
            "-J",
            "size=16",
            "-E",
            extended,
            "-N",
            &inodes.to_string(),
            "-d",
        ])
        .arg(root)
        .arg(file)
        .env("PATH", search_path());
    let output = command.output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::RootFs {
            path: root.to_owned(),
            problem:
                "there is no mke2fs to make its file system; install the Debian package e2fsprogs"
                    .to_owned(),
        },
        _ => Error::file("run mke2fs on", file)(error),
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::RootFs {
        path: root.to_owned(),
        problem: format!("mke2fs ended with {}: {}", output.status, said.trim()),
    })
}

/// mke2fs is where an ordinary user does not look.
fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/sbin:/sbin")
}

#[derive(Debug, Default)]
struct Content {
    bytes: u64,
    files: u64,
}

impl Content {
    fn add(&mut self, path: &Path) -> io::Result<()> {
        let metadata = fs::symlink_metadata(path)?;
        self.files += 1;
        self.bytes += metadata.len().next_multiple_of(BLOCK_BYTES).min(
            // A file with holes takes what it has.
            metadata.blocks() * 512 + BLOCK_BYTES,
        );
        if metadata.is_dir() {
            for entry in fs::read_dir(path)? {
                self.add(&entry?.path())?;
            }
        }
        Ok(())
    }
}
