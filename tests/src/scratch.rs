//! The directory of the test binary, which goes away however that ends.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::host::program;

/// Waits for the end of the test binary, which closes its standard input; then ends the VMs that a
/// killed test has left, and removes the directory.
const REAPER: &str = r#"
trap '' HUP INT TERM
read -r _
for vm in "$0"/*/run/vms/*; do
    "$1" --state-dir "${vm%/vms/*}" rm -f "${vm##*/}"
done
rm -rf "$0"
"#;

#[derive(Debug)]
struct Scratch {
    path: PathBuf,
    // The test binary's hold on the reaper: its standard input.
    _reaper: Child,
}

/// A new directory below that of the test binary. Its path is short, because sockets go there.
///
/// # Panics
/// It cannot be made.
#[must_use]
pub fn directory() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = root().join(number.to_string());
    std::fs::create_dir(&path).unwrap();
    path
}

fn root() -> &'static Path {
    static SCRATCH: OnceLock<Scratch> = OnceLock::new();
    &SCRATCH.get_or_init(make).path
}

fn make() -> Scratch {
    let directory = tempfile::Builder::new().prefix("mvt-").tempdir().unwrap();
    let reaper = Command::new("sh")
        .args(["-c", REAPER])
        .arg(directory.path())
        .arg(program())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Scratch {
        path: directory.keep(),
        _reaper: reaper,
    }
}
