//! What the driver is told about a disk: features and configuration space (virtio 1.2, section 5.2.4).

use super::clusters::CLUSTER;
use super::image::SECTOR;
use super::{MAX_BUFFER_BYTES, MAX_DATA_BUFFERS, MAX_SEGMENTS, QUEUES};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
};

/// Sectors of one discard or write-zeroes segment, 2 GiB.
const MAX_SEGMENT_SECTORS: u32 = 1 << 22;
const SECTOR_BYTES: u32 = 512;
/// Two to the power of this is the number of sectors in a cluster.
const PHYSICAL_BLOCK_EXPONENT: u8 = 3;
const SECTORS_PER_CLUSTER: u16 = 1 << PHYSICAL_BLOCK_EXPONENT;
const _: () = assert!(SECTOR_BYTES as u64 == SECTOR);
const _: () = assert!(SECTORS_PER_CLUSTER as u64 * SECTOR == CLUSTER);

/// The feature bits of a disk.
pub(super) fn features(read_only: bool) -> u64 {
    let all = [
        VIRTIO_BLK_F_SIZE_MAX,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_MQ,
    ];
    let changes = if read_only {
        [VIRTIO_BLK_F_RO].as_slice()
    } else {
        [VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES].as_slice()
    };
    all.iter().chain(changes).map(|bit| 1 << bit).sum()
}

/// The configuration space of a disk of `length` bytes.
pub(super) fn space(length: u64) -> Vec<u8> {
    let mut bytes = (length / SECTOR).to_le_bytes().to_vec();
    let mut put = |value: &[u8]| bytes.extend_from_slice(value);
    put(&MAX_BUFFER_BYTES.to_le_bytes());
    put(&u32::from(MAX_DATA_BUFFERS).to_le_bytes());
    // No geometry.
    put(&[0; 4]);
    put(&SECTOR_BYTES.to_le_bytes());
    // Physical blocks are clusters, aligned, and the least and the best to write.
    put(&[PHYSICAL_BLOCK_EXPONENT, 0]);
    put(&SECTORS_PER_CLUSTER.to_le_bytes());
    put(&u32::from(SECTORS_PER_CLUSTER).to_le_bytes());
    // No choice of a write-back cache, and padding.
    put(&[0; 2]);
    put(&QUEUES.to_le_bytes());
    put(&MAX_SEGMENT_SECTORS.to_le_bytes());
    put(&u32::from(MAX_SEGMENTS).to_le_bytes());
    put(&u32::from(SECTORS_PER_CLUSTER).to_le_bytes());
    put(&MAX_SEGMENT_SECTORS.to_le_bytes());
    put(&u32::from(MAX_SEGMENTS).to_le_bytes());
    // Zeroes may be holes, and padding.
    put(&[1, 0, 0, 0]);
    bytes
}
