//! A guest that was built before, found by its directory.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::error::Error;
use crate::manifest::{FORMAT, GuestManifest};
use crate::{BuiltGuest, INITRD_FILE, MANIFEST_FILE, ROOT_FILE, VMLINUX_FILE, VMLINUZ_FILE};

impl BuiltGuest {
    /// Opens the directory that a build has made. Its files are not read.
    ///
    /// # Errors
    /// It holds no guest, or one of another version.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(MANIFEST_FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                return Err(Error::NoGuest {
                    path: directory.to_owned(),
                });
            }
            Err(error) => return Err(Error::file("read", &path)(error)),
        };
        let not_understood = |problem: String| Error::Manifest {
            path: path.clone(),
            problem,
        };
        let manifest: GuestManifest =
            serde_json::from_slice(&text).map_err(|error| not_understood(error.to_string()))?;
        if manifest.format != FORMAT {
            let found = manifest.format;
            return Err(not_understood(format!(
                "has format {found}, expected {FORMAT}; build the guest again"
            )));
        }
        Ok(Self {
            vmlinuz: directory.join(VMLINUZ_FILE),
            vmlinux: directory.join(VMLINUX_FILE),
            initrd: directory.join(INITRD_FILE),
            root: manifest.image.is_some().then(|| directory.join(ROOT_FILE)),
            directory: directory.to_owned(),
            manifest,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_guest_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |part: &str| {
            let error = BuiltGuest::open(dir.path()).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
            assert!(error.contains(dir.path().to_str().unwrap()), "{error}");
        };
        refused("guest build");
        fs::write(dir.path().join(MANIFEST_FILE), "{").unwrap();
        refused("EOF");
        let newer = r#"{"format":9,"kernel_version":"6","modules":[],"files":[],"sources":[]}"#;
        fs::write(dir.path().join(MANIFEST_FILE), newer).unwrap();
        refused("format 9, expected 1");
    }
}
