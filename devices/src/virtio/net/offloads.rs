//! The features of the device, and what of them a tap has to know.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_STATUS,
};

/// What the device offers.
pub(super) const OFFERED: u64 = bit(VIRTIO_NET_F_CSUM)
    | bit(VIRTIO_NET_F_GUEST_CSUM)
    | bit(VIRTIO_NET_F_MAC)
    | bit(VIRTIO_NET_F_GUEST_TSO4)
    | bit(VIRTIO_NET_F_GUEST_TSO6)
    | bit(VIRTIO_NET_F_HOST_TSO4)
    | bit(VIRTIO_NET_F_HOST_TSO6)
    | bit(VIRTIO_NET_F_MRG_RXBUF)
    | bit(VIRTIO_NET_F_STATUS);

// From include/uapi/linux/if_tun.h.
const TUN_F_CSUM: u32 = 1;
const TUN_F_TSO4: u32 = 2;
const TUN_F_TSO6: u32 = 4;

/// What the tap may leave undone in the frames that it gives to a guest with these features.
pub(super) fn of_tap(features: u64) -> u32 {
    // The tap refuses the others without checksums.
    if !has(features, VIRTIO_NET_F_GUEST_CSUM) {
        return 0;
    }
    let pairs = [
        (VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4),
        (VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6),
    ];
    let segments = pairs.into_iter().filter(|(bit, _)| has(features, *bit));
    segments.fold(TUN_F_CSUM, |flags, (_, flag)| flags | flag)
}

/// A frame may be spread over several of the driver's buffers.
pub(super) fn has_mergeable(features: u64) -> bool {
    has(features, VIRTIO_NET_F_MRG_RXBUF)
}

const fn bit(number: u32) -> u64 {
    1 << number
}

fn has(features: u64, number: u32) -> bool {
    features & bit(number) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tap_offloads_what_the_guest_takes() {
        assert_eq!(of_tap(OFFERED), TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6);
        assert_eq!(of_tap(0), 0);
        assert_eq!(of_tap(bit(VIRTIO_NET_F_GUEST_TSO4)), 0);
        let ipv6 = bit(VIRTIO_NET_F_GUEST_CSUM) | bit(VIRTIO_NET_F_GUEST_TSO6);
        assert_eq!(of_tap(ipv6), TUN_F_CSUM | TUN_F_TSO6);
    }
}
