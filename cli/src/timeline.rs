//! What happened when since the program started.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Steps with their times. A forked process goes on with its parent's.
#[derive(Clone, Debug)]
pub struct Timeline {
    start: Instant,
    steps: Vec<Step>,
}

/// One step, when it was done.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Step {
    /// What was done.
    pub step: String,
    /// Milliseconds from the start of the program until it was done.
    pub at_ms: f64,
}

impl Timeline {
    /// Starts now.
    pub fn start() -> Self {
        Self {
            start: Instant::now(),
            steps: Vec::new(),
        }
    }

    /// Goes on with that of another process, which had begun at `start` of [`Self::began_at`].
    pub fn continued(start: Duration) -> Self {
        let now = Instant::now();
        let since = monotonic().saturating_sub(start);
        Self {
            start: now.checked_sub(since).unwrap_or(now),
            steps: Vec::new(),
        }
    }

    /// When it began, on the clock that all processes of a host have in common.
    pub fn began_at(&self) -> Duration {
        monotonic().saturating_sub(self.start.elapsed())
    }

    /// Notes that a step is done.
    pub fn mark(&mut self, step: &str) {
        self.steps.push(Step {
            step: step.to_owned(),
            at_ms: self.elapsed_ms(),
        });
    }

    /// Notes steps that others have done, each with its time.
    pub fn add_instants<'a>(&mut self, steps: impl IntoIterator<Item = (&'a str, Instant)>) {
        let mut steps: Vec<_> = steps.into_iter().collect();
        steps.sort_by_key(|(_, at)| *at);
        self.steps.extend(steps.into_iter().map(|(step, at)| Step {
            step: step.to_owned(),
            at_ms: in_ms(at.duration_since(self.start)),
        }));
    }

    /// Notes steps that were measured elsewhere and of which the last one has just ended.
    pub fn add_durations<'a>(
        &mut self,
        group: &str,
        steps: impl DoubleEndedIterator<Item = (&'a str, Duration)>,
    ) {
        let mut at_ms = self.elapsed_ms();
        let mut added = Vec::new();
        for (name, took) in steps.rev() {
            added.push(Step {
                step: format!("{group}: {name}"),
                at_ms,
            });
            at_ms -= took.as_secs_f64() * 1e3;
        }
        self.steps.extend(added.into_iter().rev());
    }

    /// Milliseconds since the start, to a microsecond.
    pub fn elapsed_ms(&self) -> f64 {
        in_ms(self.start.elapsed())
    }

    /// The steps so far.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }
}

fn monotonic() -> Duration {
    // It began at the start of the host and is never negative.
    clock_gettime(ClockId::Monotonic)
        .try_into()
        .unwrap_or_default()
}

/// Milliseconds, to a microsecond.
fn in_ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// The steps as lines: when each was done and how long it took.
pub fn render(steps: &[Step]) -> Vec<String> {
    let mut before = 0.0;
    let line = |step: &Step| {
        let took = step.at_ms - before;
        before = step.at_ms;
        format!("{:>10.3} ms  {took:>+10.3}  {}", step.at_ms, step.step)
    };
    steps.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_process_goes_on_where_one_was() {
        let here = Timeline {
            start: Instant::now() - Duration::from_secs(5),
            steps: Vec::new(),
        };
        let there = Timeline::continued(here.began_at());
        let difference = there.elapsed_ms() - here.elapsed_ms();
        assert!(difference.abs() < 1000.0, "{difference} ms");
    }

    #[test]
    fn lines_show_the_time_and_the_difference() {
        let step = |step: &str, at_ms| Step {
            step: step.to_owned(),
            at_ms,
        };
        let lines = render(&[step("one", 1.5), step("two", 4.0)]);
        assert_eq!(lines[0], "     1.500 ms      +1.500  one");
        assert_eq!(lines[1], "     4.000 ms      +2.500  two");
    }
}
