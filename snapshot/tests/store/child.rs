//! Parts that tests play in other processes: this test binary, started again.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use snapshot::Store;

use crate::layers;
use crate::support::{MEMORY_BYTES, fill, make, name, spec, state};

const ROLE: &str = "SNAPSHOT_TEST_ROLE";
const STORE: &str = "SNAPSHOT_TEST_STORE";

/// Another process at work on a store; killed when dropped.
pub struct Other {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Other {
    pub fn start(role: &str, root: &Path) -> Self {
        Self::spawn(&mut command(role, root))
    }

    /// As the user `nobody`, where the caller is root.
    pub fn start_as_nobody(role: &str, root: &Path) -> Self {
        let mut command = command(role, root);
        command.uid(65534).gid(65534).current_dir("/");
        Self::spawn(&mut command)
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    /// Waits until it has said this; panics with what it said when it ends before.
    pub fn wait_for(&mut self, word: &str) {
        let mut said = String::new();
        loop {
            let start = said.len();
            if self.output.read_line(&mut said).unwrap() == 0 {
                panic!("the other process ended: {said}");
            }
            if said[start..].trim() == word {
                return;
            }
        }
    }

    /// Kills it where it stands.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Lets it go on to its end; panics when it did not end well.
    pub fn finish(mut self) {
        drop(self.child.stdin.take());
        let mut said = String::new();
        self.output.read_to_string(&mut said).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "the other process failed: {said}");
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn command(role: &str, root: &Path) -> Command {
    // By way of /proc, so that a user who may not enter this checkout can be that process too.
    let mut command = Command::new("/proc/self/exe");
    command
        .args([
            "--exact",
            "child::other_process",
            "--ignored",
            "--nocapture",
        ])
        .env(ROLE, role)
        .env(STORE, root)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

/// Not a test: where a process that [`Other`] starts begins.
#[test]
#[ignore = "started by other tests, in a process of its own"]
fn other_process() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let root = PathBuf::from(std::env::var_os(STORE).unwrap());
    match role.as_str() {
        "hold" => hold(&root),
        "stop in create" => stop_in_create(&root),
        "churn" => churn(&root),
        "stop in snapshot" => stop_in_snapshot(&root),
        "churn layers" => churn_layers(&root),
        "race" => race(&root),
        "make with umask 000" => make_with_umask(&root, 0o000),
        "make with umask 022" => make_with_umask(&root, 0o022),
        "read" => read(&root),
        other => panic!("no role {other:?}"),
    }
}

/// Past the test harness, which may keep what is printed.
fn say(word: &str) {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "\n{word}").unwrap();
    stdout.flush().unwrap();
}

fn wait_until_told() {
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

fn hold(root: &Path) {
    let template = Store::open(root).unwrap().acquire(&name("t")).unwrap();
    say("holding");
    wait_until_told();
    drop(template);
}

fn stop_in_create(root: &Path) {
    let store = Store::open(root).unwrap();
    let pending = store.create(&name("t"), MEMORY_BYTES).unwrap();
    fill(&pending).unwrap();
    say("creating");
    wait_until_told();
}

/// Makes and deletes templates until it is killed.
fn churn(root: &Path) {
    let store = Store::open(root).unwrap();
    loop {
        say("round");
        let pending = store.create(&name("t"), MEMORY_BYTES).unwrap();
        fill(&pending).unwrap();
        let template = pending.publish(spec(), state()).unwrap();
        drop(template);
        store.delete(&name("t")).unwrap();
    }
}

fn stop_in_snapshot(root: &Path) {
    let store = Store::open(root).unwrap();
    let parent = store.acquire(&name("u")).unwrap();
    let mut pending = store.create(&name("v"), MEMORY_BYTES).unwrap();
    pending.start_from(&parent, &|| true).unwrap();
    fill(&pending).unwrap();
    say("linked");
    wait_until_told();
}

/// Makes, flattens and deletes a template of a clone until it is killed.
fn churn_layers(root: &Path) {
    let store = Store::open(root).unwrap();
    let parent = store.acquire(&name("t")).unwrap();
    loop {
        say("round");
        drop(layers::child(&store, &parent, "u", &layers::writes(&[(7, 7)])).unwrap());
        store.flatten(&name("u")).unwrap();
        store.delete(&name("u")).unwrap();
    }
}

/// Tries to make the same template as others do at the same time.
fn race(root: &Path) {
    let store = Store::open(root).unwrap();
    say("ready");
    wait_until_told();
    match make(&store, "t") {
        Ok(_) => std::fs::write(root.join(format!("winner-{}", std::process::id())), "").unwrap(),
        Err(snapshot::StoreError::Busy { .. } | snapshot::StoreError::Exists { .. }) => {}
        Err(other) => panic!("{other}"),
    }
}

fn make_with_umask(root: &Path, umask: u32) {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(umask));
    drop(make(&Store::open(root).unwrap(), "t").unwrap());
}

/// Uses a store it must not write to.
fn read(root: &Path) {
    let store = Store::open(root).unwrap();
    assert_eq!(store.list().unwrap().len(), 1);
    store.inspect(&name("t")).unwrap();
    drop(store.acquire(&name("t")).unwrap());
    assert!(store.verify(&name("t")).unwrap().is_whole());
    let error = make(&store, "u").unwrap_err().to_string();
    assert!(error.starts_with("Cannot "), "{error}");
    store.delete(&name("t")).unwrap_err();
}
