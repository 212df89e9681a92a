//! The host name, in the kernel and in the files that repeat it.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use rustix::system::{sethostname, uname};

use super::overwrite;
use crate::error::{Error, Refusal};
use crate::say;

const HOSTNAME: &str = "/etc/hostname";
const HOSTS: &str = "/etc/hosts";
/// __NEW_UTS_LEN of the kernel.
const MAX_BYTES: usize = 64;
/// Means every machine itself, and is never another name for one.
const LOCALHOST: &str = "localhost";

/// Checks a host name before anything is changed.
pub fn check(name: &str) -> Result<(), Refusal> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if name.len() > MAX_BYTES || !name.chars().all(allowed) {
        return Err(Refusal::invalid(format!(
            "Host name {name:?}: expected at most {MAX_BYTES} letters, digits and -._"
        )));
    }
    Ok(())
}

/// Gives the machine the name: in the kernel, in /etc/hostname if it is there, and in place of the
/// old name in /etc/hosts. A file that cannot be written stays as it is: the kernel's name counts.
pub fn set(name: &str) -> Result<(), Error> {
    let old = uname().nodename().to_string_lossy().into_owned();
    set_in_kernel(name)?;
    rewrite(Path::new(HOSTNAME), |_| Some(format!("{name}\n")));
    rewrite(Path::new(HOSTS), |hosts| renamed(hosts, &old, name));
    Ok(())
}

/// Sets the host name that /etc/hostname gives, if there is one.
pub fn set_from_file() -> Result<(), Error> {
    match fs::read_to_string(HOSTNAME) {
        Ok(name) if !name.trim().is_empty() => set_in_kernel(name.trim()),
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::file("read", HOSTNAME)(error))
        }
        _ => Ok(()),
    }
}

fn set_in_kernel(name: &str) -> Result<(), Error> {
    sethostname(name.as_bytes()).map_err(Error::system("set the host name"))
}

/// Changes a file where it is, as it may be a mount.
fn rewrite(path: &Path, change: impl FnOnce(&str) -> Option<String>) {
    let try_rewrite = || -> io::Result<()> {
        let old = fs::read_to_string(path)?;
        match change(&old) {
            Some(new) if new != old => overwrite(path, &new),
            _ => Ok(()),
        }
    };
    match try_rewrite() {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            say(&format!(
                "The old host name stays in {}: {error}",
                path.display()
            ));
        }
        _ => {}
    }
}

/// The text of /etc/hosts with the machine's own name changed; `None` when it is not in there.
fn renamed(hosts: &str, old: &str, new: &str) -> Option<String> {
    if old.is_empty() || old == LOCALHOST || !hosts.contains(old) {
        return None;
    }
    let lines = hosts.split_inclusive('\n').map(|line| {
        let is_own = line.starts_with("127.") || line.starts_with("::1");
        if is_own {
            renamed_line(line, old, new)
        } else {
            line.to_owned()
        }
    });
    Some(lines.collect())
}

/// Changes the name wherever it is a word, or the first label of one.
fn renamed_line(line: &str, old: &str, new: &str) -> String {
    let words = line.split_inclusive([' ', '\t', '\n']);
    let renamed = words.map(|word| match word.strip_prefix(old) {
        Some(rest) if rest.is_empty() || rest.starts_with(['.', ' ', '\t', '\n']) => {
            format!("{new}{rest}")
        }
        _ => word.to_owned(),
    });
    renamed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        check("clone-1.example_2").unwrap();
        for name in ["a b", "a\n", "ä", &"x".repeat(65)] {
            let refusal = check(name).unwrap_err();
            assert!(
                refusal.message.contains(&format!("{name:?}")),
                "{}",
                refusal.message
            );
        }
    }

    #[test]
    fn own_name_is_changed_in_hosts_and_nothing_else() {
        let hosts = "127.0.0.1\tlocalhost base base-2\n\
                     127.0.1.1 base.example.org base # base\n\
                     ::1 ip6-localhost base\n\
                     10.0.0.1 base\n";
        let expected = "127.0.0.1\tlocalhost web base-2\n\
                        127.0.1.1 web.example.org web # web\n\
                        ::1 ip6-localhost web\n\
                        10.0.0.1 base\n";
        assert_eq!(renamed(hosts, "base", "web").unwrap(), expected);
        assert_eq!(renamed(hosts, "localhost", "web"), None);
        assert_eq!(renamed(hosts, "other", "web"), None);
        assert_eq!(renamed(hosts, "", "web"), None);
        let without_end = renamed("127.0.1.1 base", "base", "web");
        assert_eq!(without_end.unwrap(), "127.0.1.1 web");
    }
}
