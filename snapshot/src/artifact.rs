//! A file that went into a template, named by its content: the kernel, the initrd.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::FileError;
use crate::files;

const READ_BYTES: usize = 256 * 1024;

/// A file as it was when the template was made.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Artifact {
    /// Where it was, as an absolute path when that could be told.
    pub path: PathBuf,
    /// SHA-256 of its content, 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// Its length in bytes.
    pub size: u64,
}

impl Artifact {
    /// Reads the file to its end and takes its digest. Symbolic links are followed.
    ///
    /// # Errors
    /// [`FileError`] when it cannot be read or is no regular file.
    pub fn of(path: &Path) -> Result<Self, FileError> {
        let real = path.canonicalize().map_err(FileError::on("find", path))?;
        let (file, _) = files::open_regular_at(CWD, &real, path)?;
        let (sha256, size) = digest(file, path)?;
        Ok(Self {
            path: real,
            sha256,
            size,
        })
    }
}

fn digest(mut file: File, path: &Path) -> Result<(String, u64), FileError> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut size = 0;
    loop {
        let count = file
            .read(&mut buffer)
            .map_err(FileError::on("read", path))?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        size += count as u64;
    }
    let hex = hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok((hex, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_is_sha256_of_the_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        std::fs::write(&path, "abc").unwrap();

        let artifact = Artifact::of(&path).unwrap();

        assert_eq!(artifact.size, 3);
        assert_eq!(
            artifact.sha256,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();

        let error = Artifact::of(dir.path()).unwrap_err();

        assert!(error.to_string().contains("is a directory"), "{error}");
    }
}
