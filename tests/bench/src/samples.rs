//! What was measured in several rounds.

use serde::Serialize;

/// The unit of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Unit {
    /// Milliseconds.
    #[serde(rename = "ms")]
    Milliseconds,
    /// Microseconds.
    #[serde(rename = "us")]
    Microseconds,
    /// KiB, of 1024 bytes.
    #[serde(rename = "KiB")]
    Kibibytes,
    /// Clones in a second.
    #[serde(rename = "1/s")]
    PerSecond,
    /// MiB in a second.
    #[serde(rename = "MiB/s")]
    MebibytesPerSecond,
}

/// One figure, measured several times.
#[derive(Clone, Debug)]
pub struct Samples {
    unit: Unit,
    values: Vec<f64>,
}

impl Samples {
    /// None yet.
    pub fn new(unit: Unit) -> Self {
        Self {
            unit,
            values: Vec::new(),
        }
    }

    /// A figure that is measured once.
    pub fn once(unit: Unit, value: f64) -> Self {
        Self {
            unit,
            values: vec![value],
        }
    }

    /// Adds one.
    pub fn add(&mut self, value: f64) {
        self.values.push(value);
    }

    /// Its unit.
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// All of them, in their order.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// Smallest, median and largest; `None` without any.
    pub fn summary(&self) -> Option<Summary> {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let upper = *sorted.get(middle)?;
        let lower = if sorted.len().is_multiple_of(2) {
            *sorted.get(middle.checked_sub(1)?)?
        } else {
            upper
        };
        Some(Summary {
            min: *sorted.first()?,
            median: f64::midpoint(lower, upper),
            max: *sorted.last()?,
        })
    }
}

/// The figures of a table's line.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The smallest.
    pub min: f64,
    /// The one in the middle.
    pub median: f64,
    /// The largest.
    pub max: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(values: &[f64]) -> Option<Summary> {
        let mut samples = Samples::new(Unit::Milliseconds);
        values.iter().for_each(|value| samples.add(*value));
        samples.summary()
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(summary(&[]), None);
        assert_eq!(summary(&[3.0]).unwrap().median, 3.0);
        assert_eq!(summary(&[9.0, 1.0, 2.0]).unwrap().median, 2.0);
        let even = summary(&[9.0, 1.0, 2.0, 4.0]).unwrap();
        assert_eq!((even.min, even.median, even.max), (1.0, 3.0, 9.0));
    }
}
