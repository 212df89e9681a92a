//! Tells the user on standard error what goes on: notices at once, steps when they take long.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::background::Background;
use crate::poll;

/// A step that ends within this is not worth a line.
const QUIET_TIME: Duration = Duration::from_secs(1);
/// How often a terminal's line is brought up to date.
const REFRESH: Duration = Duration::from_millis(200);

/// The user's view of what goes on.
#[derive(Debug)]
pub struct Progress {
    quiet: bool,
    terminal: bool,
    step: Option<Current>,
}

#[derive(Debug)]
struct Current {
    text: String,
    since: Instant,
    shown: bool,
}

impl Progress {
    /// With `quiet` nothing is told.
    pub fn new(quiet: bool) -> Self {
        Self {
            quiet,
            terminal: io::stderr().is_terminal(),
            step: None,
        }
    }

    /// Whether nothing is told.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Hands the user's view on; `self` tells nothing any more.
    pub fn take(&mut self) -> Self {
        std::mem::replace(self, Self::new(true))
    }

    /// Something the user should know but did not ask for.
    pub fn notice(&mut self, text: impl Display) {
        self.finish();
        if !self.quiet {
            // The terminal may be in raw mode, where a newline alone does not return.
            let end = if self.terminal { "\r\n" } else { "\n" };
            print(&format!("minivmm: {text}{end}"));
        }
    }

    /// Begins a step, which ends the one before.
    pub fn step(&mut self, text: impl Display) {
        self.finish();
        self.step = Some(Current {
            text: text.to_string(),
            since: Instant::now(),
            shown: false,
        });
    }

    /// Ends the step.
    pub fn finish(&mut self) {
        let shown = self.step.take().is_some_and(|step| step.shown);
        if shown && self.terminal {
            print("\r\x1b[K");
        }
    }

    /// When [`Progress::refresh`] has something to show next.
    pub fn next_refresh(&self) -> Option<Instant> {
        let step = self.step.as_ref().filter(|_| !self.quiet)?;
        if !step.shown {
            Some(step.since + QUIET_TIME)
        } else if self.terminal {
            Some(Instant::now() + REFRESH)
        } else {
            None
        }
    }

    /// Shows a step that takes long: a line that counts on a terminal, one plain line elsewhere.
    pub fn refresh(&mut self) {
        let Some(step) = self.step.as_mut().filter(|_| !self.quiet) else {
            return;
        };
        let elapsed = step.since.elapsed();
        if elapsed < QUIET_TIME || (step.shown && !self.terminal) {
            return;
        }
        step.shown = true;
        if self.terminal {
            print(&format!("\r\x1b[K{} ({} s)", step.text, elapsed.as_secs()));
        } else {
            print(&format!("minivmm: {} ...\n", step.text));
        }
    }
}

impl Progress {
    /// Waits for the result of a step's work, shows the step while that takes long, and ends it.
    ///
    /// # Errors
    /// The work cannot be waited for.
    pub fn wait_for<T: Send + 'static>(&mut self, work: &Background<T>) -> io::Result<T> {
        let result = loop {
            poll::readable(work, self.next_refresh())?;
            self.refresh();
            if let Some(result) = work.take() {
                break result;
            }
        };
        self.finish();
        Ok(result)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

fn print(text: &str) {
    let mut stderr = io::stderr().lock();
    // Without a standard error there is nobody to tell that it is missing.
    if stderr.write_all(text.as_bytes()).is_ok() {
        stderr.flush().unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_step_is_not_shown() {
        let mut progress = Progress::new(false);
        progress.step("boot");
        progress.refresh();
        assert!(!progress.step.as_ref().unwrap().shown);
        assert!(progress.next_refresh().unwrap() > Instant::now());
    }

    #[test]
    fn quiet_never_asks_for_a_refresh() {
        let mut progress = Progress::new(true);
        progress.step("boot");
        assert_eq!(progress.next_refresh(), None);
    }
}
