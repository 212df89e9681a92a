//! A program that runs on a terminal of its own, which the test types on.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

use crate::captured::Captured;
use crate::watch::{LIMIT, process_ends};

/// A program on a terminal. It is killed when this is dropped.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    started: Instant,
    user: File,
    // Keeps the terminal there when the program has ended.
    program_side: OwnedFd,
    screen: Captured,
}

impl Terminal {
    /// Starts a program whose standard streams are a new terminal of 30 rows and 100 columns.
    ///
    /// # Panics
    /// There are no terminals, or the program cannot be started.
    #[track_caller]
    #[must_use]
    pub fn start(command: &mut Command) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let user = openpt(flags).unwrap();
        grantpt(&user).unwrap();
        unlockpt(&user).unwrap();
        let name = ptsname(&user, Vec::new()).unwrap();
        // Not the test binary's own controlling terminal, whose end would be the binary's, too.
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let open = || rustix::fs::open(&name, flags, Mode::empty()).unwrap();
        let program_side = open();
        let size = Winsize {
            ws_row: 30,
            ws_col: 100,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&program_side, size).unwrap();

        command.stdin(Stdio::from(open()));
        command.stdout(Stdio::from(open()));
        command.stderr(Stdio::from(open()));
        let child = command.spawn().unwrap();
        // The descriptors that the program got are this process's too until then.
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let user = File::from(user);
        Self {
            child,
            started: Instant::now(),
            screen: Captured::of(Some(user.try_clone().unwrap())),
            user,
            program_side,
        }
    }

    /// Types.
    ///
    /// # Panics
    /// The terminal takes nothing.
    #[track_caller]
    pub fn type_in(&mut self, bytes: &[u8]) {
        self.user.write_all(bytes).unwrap();
    }

    /// Waits until `text` is on the screen.
    ///
    /// # Panics
    /// It takes too long.
    #[track_caller]
    pub fn until_screen(&self, text: &str) -> &Self {
        let text_bytes = text.as_bytes();
        let found = self.screen.until(|screen| {
            screen
                .windows(text_bytes.len())
                .any(|window| window == text_bytes)
        });
        assert!(
            found,
            "{text:?} did not appear within {:?}; the screen: {}",
            self.started.elapsed(),
            self.screen()
        );
        self
    }

    /// Everything printed so far.
    #[must_use]
    pub fn screen(&self) -> String {
        self.screen.text()
    }

    /// The terminal's settings as they are now, to be compared.
    ///
    /// # Panics
    /// The system does not tell.
    #[must_use]
    pub fn settings(&self) -> String {
        format!("{:#?}", tcgetattr(&self.program_side).unwrap())
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends the program a signal.
    ///
    /// # Panics
    /// It cannot be sent.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for the program's end; returns its exit code, `None` when a signal ended it.
    ///
    /// # Panics
    /// It takes too long.
    #[track_caller]
    pub fn wait(&mut self) -> Option<i32> {
        let in_time = process_ends(self.pid(), LIMIT);
        assert!(in_time, "it did not end; the screen: {}", self.screen());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.child.kill().unwrap_or_default();
            self.child.wait().map(drop).unwrap_or_default();
        }
    }
}
