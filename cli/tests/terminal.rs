//! Commands on a terminal: raw while they run, itself again afterwards, and told how far a copy is.

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};
use support::vm::{FakeVm, obedient};
use support::{Sandbox, agent};

/// A terminal, and the program on it.
struct Terminal {
    user: File,
    program: File,
}

impl Terminal {
    #[expect(
        clippy::unwrap_used,
        reason = "a test that cannot be set up has failed"
    )]
    fn open() -> Self {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&user).unwrap();
        unlockpt(&user).unwrap();
        let name = ptsname(&user, Vec::new()).unwrap();
        let name = name.into_string().unwrap();
        let program = File::options().read(true).write(true).open(name).unwrap();
        Self {
            user: user.into(),
            program,
        }
    }

    #[expect(
        clippy::unwrap_used,
        reason = "a test that cannot be set up has failed"
    )]
    fn run(&self, sandbox: &Sandbox, args: &[&str]) -> Child {
        let stdio = || -> Stdio { OwnedFd::from(self.program.try_clone().unwrap()).into() };
        let mut command = sandbox.command(args);
        command
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio())
            .spawn()
            .unwrap()
    }

    /// Reads until the program has printed `text`.
    #[expect(
        clippy::unwrap_used,
        reason = "a test that cannot be set up has failed"
    )]
    fn expect(&mut self, text: &str) {
        let mut seen = Vec::new();
        let mut byte = [0];
        while !seen.ends_with(text.as_bytes()) {
            self.user.read_exact(&mut byte).unwrap();
            seen.extend(byte);
        }
    }

    #[expect(
        clippy::unwrap_used,
        reason = "a test that cannot be set up has failed"
    )]
    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.program).unwrap().local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }
}

#[test]
fn the_escape_key_leaves_the_console_and_the_terminal_is_itself_again() {
    let sandbox = Sandbox::new();
    let vm = FakeVm::start(&sandbox, "vm", obedient);
    let listener = UnixListener::bind(vm.dir().join("console.sock")).unwrap();
    let mut terminal = Terminal::open();
    assert!(!terminal.is_raw());
    let mut program = terminal.run(&sandbox, &["console", "vm"]);
    let (mut guest, _) = listener.accept().unwrap();

    guest.write_all(b"login: ").unwrap();
    terminal.expect("login: ");
    assert!(terminal.is_raw());
    terminal.user.write_all(b"\x03x\x1d").unwrap();
    let mut typed = [0; 2];
    guest.read_exact(&mut typed).unwrap();
    assert_eq!(&typed, b"\x03x");
    assert!(program.wait().unwrap().success());
    assert!(!terminal.is_raw());
}

#[test]
fn a_signal_ends_the_console_and_the_terminal_is_itself_again() {
    let sandbox = Sandbox::new();
    let vm = FakeVm::start(&sandbox, "vm", obedient);
    let listener = UnixListener::bind(vm.dir().join("console.sock")).unwrap();
    let mut terminal = Terminal::open();
    let mut program = terminal.run(&sandbox, &["console", "vm"]);
    let (mut guest, _) = listener.accept().unwrap();
    guest.write_all(b"login: ").unwrap();
    terminal.expect("login: ");

    support::signal(&program, Signal::TERM);
    assert_eq!(program.wait().unwrap().code(), Some(130));
    assert!(!terminal.is_raw());
}

#[test]
fn a_command_without_a_terminal_of_its_own_leaves_ours_alone() {
    let sandbox = Sandbox::new();
    let vm = FakeVm::start(&sandbox, "vm", obedient);
    agent::serve(vm.dir());
    let mut terminal = Terminal::open();
    // Standard input is a terminal and not asked for: the command reads nothing.
    let mut program = terminal.run(&sandbox, &["exec", "vm", "--", "sh", "-c", "cat; echo end"]);
    terminal.expect("end");
    assert!(!terminal.is_raw());
    assert!(program.wait().unwrap().success());
}

/// A copy that takes longer than a second tells how far it is, and leaves nothing when it is interrupted.
#[test]
fn a_long_copy_shows_its_progress_and_ends_with_nothing() {
    let sandbox = Sandbox::new();
    let vm = FakeVm::start(&sandbox, "vm", obedient);
    agent::serve(vm.dir());
    let (source, to) = (sandbox.root().join("large"), sandbox.root().join("to"));
    std::fs::write(&source, vec![b'x'; 8 << 20]).unwrap();
    std::fs::create_dir(&to).unwrap();
    let from = format!("vm:{}", source.display());
    let packed = sandbox.command(&["cp", &from, "-"]).output().unwrap();
    assert!(packed.status.success());

    let mut terminal = Terminal::open();
    let stderr: Stdio = OwnedFd::from(terminal.program.try_clone().unwrap()).into();
    let mut command = sandbox.command(&["cp", "-", &format!("vm:{}", to.display())]);
    let mut copy = command
        .stdin(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let mut stream = copy.stdin.take().unwrap();
    // Slowly, until it says something, which it does when more is copied.
    let shown = std::thread::spawn(move || {
        terminal.expect(" MiB, ");
        terminal.expect("/s");
        begun.elapsed()
    });
    let mut blocks = packed.stdout.chunks(64 << 10).take(100);
    while !shown.is_finished() {
        stream.write_all(blocks.next().unwrap()).unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(shown.join().unwrap() >= Duration::from_secs(1));

    support::signal(&copy, Signal::TERM);
    assert!(!copy.wait().unwrap().success());
    assert!(std::fs::read_dir(&to).unwrap().next().is_none());
}
