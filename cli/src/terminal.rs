//! The user's terminal in raw mode, and back.

use std::io::{self, Stdin};
use std::os::fd::AsFd;

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// Puts the terminal on standard input into raw mode until it is dropped.
#[derive(Debug)]
pub struct RawMode {
    stdin: Stdin,
    before: Termios,
}

impl RawMode {
    /// Raw mode if standard input is a terminal, otherwise `None`.
    ///
    /// # Errors
    /// The terminal refused.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !isatty(&stdin) {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Self { stdin, before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // The terminal may be gone by now; there is nobody left to tell.
        if let Err(error) = tcsetattr(&self.stdin, OptionalActions::Now, &self.before) {
            tracing::debug!(%error, "Cannot restore the terminal");
        }
    }
}

/// Rows and columns of the terminal `fd`; `None` when it is none.
pub fn window_size(fd: &impl AsFd) -> Option<(u32, u32)> {
    let size = tcgetwinsize(fd).ok()?;
    Some((size.ws_row.into(), size.ws_col.into()))
}
