//! The commands of a busybox.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::Error;

/// Asks the program itself for the paths of its commands, without a slash at the start.
pub fn applets(busybox: &Path) -> Result<Vec<String>, Error> {
    let problem = |problem: String| Error::Program {
        path: busybox.to_owned(),
        problem,
    };
    let output = Command::new(busybox)
        .arg("--list-full")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| problem(format!("cannot be run to list its commands: {error}")))?;
    let list = String::from_utf8_lossy(&output.stdout);
    let applets: Vec<String> = list
        .lines()
        .filter(|line| is_path(line))
        .map(str::to_owned)
        .collect();
    if !output.status.success() || !applets.iter().any(|applet| applet.ends_with("/sh")) {
        let text = format!(
            "is no usable busybox: --list-full ended with {} and {} commands, expected sh among \
             them",
            output.status,
            applets.len()
        );
        return Err(problem(text));
    }
    Ok(applets)
}

fn is_path(line: &str) -> bool {
    let clean = |part: &str| !part.is_empty() && part != "." && part != "..";
    line.split('/').all(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_that_is_no_busybox_is_refused() {
        for (path, words) in [
            ("/bin/true", "no usable busybox"),
            ("/no/such", "cannot be run"),
        ] {
            let error = applets(Path::new(path)).unwrap_err().to_string();
            assert!(error.contains(path) && error.contains(words), "{error}");
        }
    }

    #[test]
    fn strange_paths_are_left_out() {
        assert!(is_path("usr/bin/awk") && is_path("linuxrc"));
        for line in ["", "/bin/sh", "bin//sh", "../etc/passwd", "bin/"] {
            assert!(!is_path(line), "{line}");
        }
    }
}
