//! Where the time of a restore goes: named stages, always measured.

use std::time::{Duration, Instant};

/// A finished stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    /// What was done.
    pub name: &'static str,
    /// How long it took.
    pub took: Duration,
}

/// Measures one stage after the other.
#[derive(Debug)]
pub struct StageTimer {
    since: Instant,
    stages: Vec<Stage>,
}

impl StageTimer {
    /// Starts the first stage.
    #[must_use]
    pub fn start() -> Self {
        Self {
            since: Instant::now(),
            stages: Vec::new(),
        }
    }

    /// Ends the current stage as `name` and starts the next.
    pub fn finish(&mut self, name: &'static str) {
        let now = Instant::now();
        self.stages.push(Stage {
            name,
            took: now - self.since,
        });
        self.since = now;
    }

    /// All finished stages, in order.
    #[must_use]
    pub fn into_stages(self) -> Vec<Stage> {
        self.stages
    }
}
