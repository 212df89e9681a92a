//! Flow control: how much each side may send before the other has taken it (virtio 1.2, 5.10.6.3).
//!
//! All counters are free-running and wrap at 2^32, as the header fields do.

use std::num::Wrapping;

/// What the guest may send on one connection before the host program reads, in bytes.
pub(super) const RECEIVE_BUFFER: u32 = 256 * 1024;
/// The guest hears of free space when it would otherwise have seen this much less than there is.
const UPDATE_THRESHOLD: u32 = RECEIVE_BUFFER / 2;

/// Both directions' accounts of one connection.
#[derive(Debug, Default)]
pub(super) struct Credit {
    guest_buffer: u32,
    guest_forwarded: Wrapping<u32>,
    sent: Wrapping<u32>,
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    announced: Wrapping<u32>,
    asked: bool,
}

impl Credit {
    /// Takes over what a header from the guest says about its buffer.
    pub(super) fn guest_says(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.guest_buffer = buf_alloc;
        self.guest_forwarded = Wrapping(fwd_cnt);
        if self.to_guest() > 0 {
            self.asked = false;
        }
    }

    /// Bytes that may be sent to the guest now. A guest whose figures make no sense gets none.
    pub(super) fn to_guest(&self) -> u32 {
        let in_flight = self.sent - self.guest_forwarded;
        self.guest_buffer.saturating_sub(in_flight.0)
    }

    /// Records `count` bytes sent to the guest.
    pub(super) fn sent(&mut self, count: u32) {
        self.sent += count;
    }

    /// Records that a CREDIT_REQUEST was sent; one is enough until there is credit again.
    pub(super) fn ask(&mut self) {
        self.asked = true;
    }

    /// True when nothing can be sent and the guest knows that we wait for it.
    pub(super) fn is_stalled(&self) -> bool {
        self.asked && self.to_guest() == 0
    }

    /// Records `count` bytes from the guest; false when that is more than it was allowed to send.
    pub(super) fn receive(&mut self, count: u32) -> bool {
        let in_flight = self.received - self.forwarded;
        if count > RECEIVE_BUFFER.saturating_sub(in_flight.0) {
            return false;
        }
        self.received += count;
        true
    }

    /// Records that `count` bytes from the guest are out of our hands; true when the guest should
    /// be told without waiting for another packet.
    pub(super) fn forwarded(&mut self, count: u32) -> bool {
        self.forwarded += count;
        (self.forwarded - self.announced).0 >= UPDATE_THRESHOLD
    }

    /// The `buf_alloc` and `fwd_cnt` fields of a packet that is sent now.
    pub(super) fn announce(&mut self) -> (u32, u32) {
        self.announced = self.forwarded;
        (RECEIVE_BUFFER, self.forwarded.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_credit_is_respected_across_the_wrap() {
        let mut credit = Credit {
            sent: Wrapping(u32::MAX - 9),
            ..Credit::default()
        };
        credit.guest_says(100, u32::MAX - 9);
        assert_eq!(credit.to_guest(), 100);
        credit.sent(60);
        assert_eq!(credit.to_guest(), 40);
        credit.guest_says(100, 50);
        assert_eq!(credit.to_guest(), 100);
    }

    #[test]
    fn senseless_figures_give_no_credit() {
        let mut credit = Credit::default();
        credit.guest_says(4096, 1);
        assert_eq!(credit.to_guest(), 0);
        credit.guest_says(10, 0);
        credit.sent(10);
        credit.guest_says(5, 0);
        assert_eq!(credit.to_guest(), 0);
    }

    #[test]
    fn guest_cannot_send_more_than_the_buffer() {
        let mut credit = Credit::default();
        assert!(credit.receive(RECEIVE_BUFFER));
        assert!(!credit.receive(1));
        assert!(!credit.forwarded(10));
        assert!(credit.receive(10));
        assert!(!credit.receive(1));
    }

    #[test]
    fn update_is_due_at_half_of_the_buffer_and_not_again_after_announcing() {
        let mut credit = Credit::default();
        assert!(credit.receive(RECEIVE_BUFFER));
        assert!(!credit.forwarded(UPDATE_THRESHOLD - 1));
        assert!(credit.forwarded(1));
        assert_eq!(credit.announce(), (RECEIVE_BUFFER, UPDATE_THRESHOLD));
        assert!(!credit.forwarded(1));
    }

    #[test]
    fn credit_is_asked_for_once_per_stall() {
        let mut credit = Credit::default();
        assert!(!credit.is_stalled());
        credit.ask();
        assert!(credit.is_stalled());
        credit.guest_says(0, 0);
        assert!(credit.is_stalled());
        credit.guest_says(1, 0);
        credit.sent(1);
        assert!(!credit.is_stalled());
    }
}
