//! A shell on the console, for a guest that was started with `minivmm.debug_shell`.

use std::fs::File;
use std::io;
use std::process::Command;

use rustix::io::Errno;
use rustix::process::WaitOptions;

use crate::exec::spawn::become_session_leader;
use crate::say;

const SHELL: &str = "/bin/sh";
const CONSOLE: &str = "/dev/console";

/// Starts it. The guest goes on without it when it cannot be started.
pub fn start() {
    let start = || -> io::Result<()> {
        let console = File::options().read(true).write(true).open(CONSOLE)?;
        let mut command = Command::new(SHELL);
        command
            .stdin(console.try_clone()?)
            .stdout(console.try_clone()?)
            .stderr(console);
        become_session_leader(&mut command, true, None);
        command.spawn()?;
        Ok(())
    };
    if let Err(error) = start() {
        say(&format!("Cannot start {SHELL} on {CONSOLE}: {error}"));
    }
}

/// Reaps until no process is left.
pub fn wait_until_it_ends() {
    while !matches!(
        rustix::process::wait(WaitOptions::empty()),
        Err(Errno::CHILD)
    ) {}
}
