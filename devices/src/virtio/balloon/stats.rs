//! What the guest's driver tells of its memory (virtio 1.2, section 5.5.6.3), and how the owner waits
//! for news.

use serde::{Deserialize, Serialize};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes of one statistic: a tag of 16 bits and a value of 64, without padding.
const RECORD: usize = 10;

// Tags.
const SWAP_IN: u16 = 0;
const SWAP_OUT: u16 = 1;
const MAJOR_FAULTS: u16 = 2;
const MINOR_FAULTS: u16 = 3;
const FREE: u16 = 4;
const TOTAL: u16 = 5;
const AVAILABLE: u16 = 6;
const CACHES: u16 = 7;

/// The guest's memory as its kernel sees it. A driver need not tell all.
#[derive(Debug, Clone, Copy, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct GuestMemoryStats {
    /// Bytes that were read from swap.
    pub swap_in_bytes: Option<u64>,
    /// Bytes that were written to swap.
    pub swap_out_bytes: Option<u64>,
    /// Page faults that read from a disk.
    pub major_faults: Option<u64>,
    /// Other page faults.
    pub minor_faults: Option<u64>,
    /// Bytes that are used for nothing.
    pub free_bytes: Option<u64>,
    /// Bytes that the kernel manages.
    pub total_bytes: Option<u64>,
    /// Bytes that programs can have without swapping.
    pub available_bytes: Option<u64>,
    /// Bytes of files in the page cache.
    pub cached_bytes: Option<u64>,
}

impl GuestMemoryStats {
    /// Reads the driver's records. What is cut off, or of a tag that is not known, is left out.
    #[must_use]
    pub fn parse(records: &[u8]) -> Self {
        let mut stats = Self::default();
        for record in records.chunks_exact(RECORD) {
            let Some((tag, value)) = record.split_first_chunk::<2>() else {
                continue;
            };
            let Ok(value) = value.try_into().map(u64::from_le_bytes) else {
                continue;
            };
            if let Some(place) = stats.place(u16::from_le_bytes(*tag)) {
                *place = Some(value);
            }
        }
        stats
    }

    fn place(&mut self, tag: u16) -> Option<&mut Option<u64>> {
        match tag {
            SWAP_IN => Some(&mut self.swap_in_bytes),
            SWAP_OUT => Some(&mut self.swap_out_bytes),
            MAJOR_FAULTS => Some(&mut self.major_faults),
            MINOR_FAULTS => Some(&mut self.minor_faults),
            FREE => Some(&mut self.free_bytes),
            TOTAL => Some(&mut self.total_bytes),
            AVAILABLE => Some(&mut self.available_bytes),
            CACHES => Some(&mut self.cached_bytes),
            _ => None,
        }
    }
}

/// The newest statistics of a device. It needs no access to the device, so that waiting keeps
/// nobody from using that.
#[derive(Debug, Clone, Default)]
pub struct StatsHandle(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    newest: Mutex<Newest>,
    changed: Condvar,
}

#[derive(Debug, Clone, Copy, Default)]
struct Newest {
    stats: GuestMemoryStats,
    /// How many the driver has sent.
    count: u64,
}

impl StatsHandle {
    /// How many statistics have come.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.lock().count
    }

    /// Waits for statistics after the first `count`; none when there are none at the deadline.
    #[must_use]
    pub fn wait_after(&self, count: u64, deadline: Duration) -> Option<GuestMemoryStats> {
        let is_old = |newest: &mut Newest| newest.count <= count;
        let waited = self
            .0
            .changed
            .wait_timeout_while(self.lock(), deadline, is_old);
        let (newest, _) = waited.unwrap_or_else(PoisonError::into_inner);
        (newest.count > count).then_some(newest.stats)
    }

    pub(super) fn report(&self, stats: GuestMemoryStats) {
        let mut newest = self.lock();
        newest.stats = stats;
        newest.count += 1;
        self.0.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Newest> {
        self.0.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_taken_by_their_tags() {
        let mut records = Vec::new();
        for (tag, value) in [(FREE, 7_u64), (99, 1), (TOTAL, u64::MAX), (FREE, 8)] {
            records.extend(tag.to_le_bytes());
            records.extend(value.to_le_bytes());
        }
        records.extend([5, 0, 1]);
        let expected = GuestMemoryStats {
            free_bytes: Some(8),
            total_bytes: Some(u64::MAX),
            ..GuestMemoryStats::default()
        };
        assert_eq!(GuestMemoryStats::parse(&records), expected);
    }

    #[test]
    fn news_are_waited_for() {
        let device = StatsHandle::default();
        let owner = device.clone();
        assert_eq!(owner.wait_after(0, Duration::from_millis(1)), None);
        let waiter = std::thread::spawn(move || owner.wait_after(1, Duration::from_secs(60)));
        let stats = GuestMemoryStats::parse(&[4, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        device.report(GuestMemoryStats::default());
        device.report(stats);
        assert_eq!(waiter.join().unwrap(), Some(stats));
        assert_eq!(device.count(), 2);
    }
}
