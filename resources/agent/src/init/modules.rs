//! Loads the kernel modules that `guest build` listed.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::system::finit_module;

use crate::say;

/// One module a line, in loading order: the path of the file, then its parameters.
const LIST: &str = "/etc/minivmm/modules";

/// From include/uapi/linux/module.h: the kernel decompresses the file.
const MODULE_INIT_COMPRESSED_FILE: i32 = 4;

/// Loads every listed module. One that fails is named on the console and the rest are loaded: what
/// is really needed is missed later, where it can be said what for.
pub fn load_listed() {
    let list = match fs::read_to_string(LIST) {
        Ok(list) => list,
        // A kernel with everything built in needs no list.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return say(&format!("Cannot read {LIST}: {error}")),
    };
    for (path, parameters) in list.lines().filter_map(parse_line) {
        if let Err(error) = load(path, parameters) {
            say(&format!("Cannot load {path}: {error}"));
        }
    }
}

fn parse_line(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let (path, parameters) = line.split_once(' ').unwrap_or((line, ""));
    Some((path, parameters.trim()))
}

fn load(path: &str, parameters: &str) -> io::Result<()> {
    let file = File::open(path)?;
    let compressed = Path::new(path)
        .extension()
        .is_some_and(|extension| extension != "ko");
    let flags = if compressed {
        MODULE_INIT_COMPRESSED_FILE
    } else {
        0
    };
    let parameters = CString::new(parameters)?;
    match finit_module(&file, &parameters, flags) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::parse_line;

    #[test]
    fn lines_are_a_path_and_parameters() {
        assert_eq!(parse_line("/lib/a.ko"), Some(("/lib/a.ko", "")));
        assert_eq!(
            parse_line("/lib/a.ko x=1  y=2\n"),
            Some(("/lib/a.ko", "x=1  y=2"))
        );
        assert_eq!(parse_line("# comment"), None);
        assert_eq!(parse_line("  "), None);
    }
}
