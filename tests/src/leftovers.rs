//! What must not be there after a test.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Pid;

use crate::watch::process_ends;

/// How long a process that has let go of everything may take to be gone.
const EXIT_TIME: Duration = Duration::from_secs(60);

/// What was found; empty is good.
#[derive(Debug, Default)]
#[must_use]
pub struct Leftovers {
    found: Vec<String>,
}

impl Leftovers {
    /// # Panics
    /// Something was found.
    #[track_caller]
    pub fn assert_none(&self) {
        assert!(
            self.found.is_empty(),
            "left behind:\n{}",
            self.found.join("\n")
        );
    }

    /// Adds the lines of a table of the kernel's that name `path` or what is below it.
    fn add_lines(&mut self, kind: &str, table: &str, path: &Path) {
        let text = fs::read_to_string(table).unwrap();
        for line in text.lines().filter(|line| names(line, path)) {
            // A disk that a test has made for itself goes when it does.
            if !line.contains(" minivmm-tests ") {
                self.add(kind, line);
            }
        }
    }

    fn add(&mut self, kind: &str, what: impl std::fmt::Display) {
        self.found.push(format!("{kind} {what}"));
    }
}

/// Processes, sockets, mounts and directories of VMs of the host at `root`.
pub fn of_vms(root: &Path) -> Leftovers {
    let mut left = Leftovers::default();
    for pid in processes_of(root) {
        if !process_ends(pid, EXIT_TIME) {
            left.add("process", describe_process(pid));
        }
    }
    let run = root.join("run");
    left.add_lines("mount", "/proc/self/mountinfo", &run);
    left.add_lines("socket", "/proc/net/unix", &run);
    // The lock of the state directory itself stays.
    let vms = run.join("vms");
    for path in entries_of(&vms) {
        if path != vms.join(".lock") {
            left.add("file", path.display());
        }
    }
    left
}

/// Templates in the store, whole or half-made.
pub fn of_templates(store: &Path) -> Leftovers {
    let mut left = Leftovers::default();
    for path in entries_of(&store.join("templates")) {
        left.add("file", path.display());
    }
    left
}

/// Files that a program has left in its working directory or that of temporary files, and mounts.
pub fn of_work(root: &Path) -> Leftovers {
    let mut left = Leftovers::default();
    for path in ["work", "tmp"]
        .iter()
        .flat_map(|name| files_below(&root.join(name)))
    {
        left.add("file", path.display());
    }
    left.add_lines("mount", "/proc/self/mountinfo", root);
    left
}

/// Shows what the VMs of a failed test have logged.
pub fn print_logs(state: &Path) {
    const SHOWN_LINES: usize = 40;
    for path in files_below(state) {
        if path.extension().is_some_and(|extension| extension == "log") {
            let text = fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<_> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
            eprintln!("--- {}\n{tail}", path.display());
        }
    }
}

/// Processes that were started with the state directory below `root` in their environment.
#[must_use]
pub fn processes_of(root: &Path) -> Vec<Pid> {
    let needle = format!("MINIVMM_STATE_DIR={}\0", root.join("run").display());
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(Pid::from_raw)
        .filter(|pid| {
            // Of a process that has ended in between nothing is left.
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ
                .windows(needle.len())
                .any(|window| window == needle.as_bytes())
        })
        .collect()
}

fn names(line: &str, path: &Path) -> bool {
    let mut words = line.split_ascii_whitespace();
    words.any(|word| Path::new(word).starts_with(path))
}

fn describe_process(pid: Pid) -> String {
    let mut text = pid.to_string();
    for name in ["cmdline", "status", "wchan"] {
        let content = fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let start: String = content
            .replace('\0', " ")
            .lines()
            .take(3)
            .collect::<Vec<_>>()
            .join("; ");
        write!(text, ", {name}: {start}").unwrap();
    }
    text
}

/// Everything below `directory` but directories.
fn files_below(directory: &Path) -> Vec<PathBuf> {
    let (directories, mut files): (Vec<_>, Vec<_>) = entries_of(directory)
        .into_iter()
        .partition(|path| path.is_dir() && !path.is_symlink());
    files.extend(directories.iter().flat_map(|path| files_below(path)));
    files
}

/// What is in `directory`; nothing when it is not there.
fn entries_of(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}
