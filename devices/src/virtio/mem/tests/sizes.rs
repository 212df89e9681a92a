//! The configuration space, and the sizes in it.

use super::driver::*;
use crate::virtio::device::{DeviceKind, VirtioDevice};
use crate::virtio::mem::{BLOCK_SIZE, SizeError};

#[test]
fn configuration_space_is_laid_out_as_specified() {
    let mut driver = Driver::new(512, 130);
    assert_eq!(driver.device.kind(), DeviceKind::Mem);
    assert_eq!(driver.device.features(), 0);
    assert_eq!(driver.ask(PLUG, 0, 2), (ACK, 0));
    let fields = [0, 8, 16, 24, 32, 40, 48, 56].map(|offset| driver.config(offset));
    let expected = [2, 0, 4096, 512, 256, 4, 130, 0].map(|mib| mib * MIB);
    assert_eq!(fields, expected);
}

#[test]
fn configuration_space_is_read_at_any_offset_and_length() {
    let driver = Driver::new(512, 130);
    let mut whole = [0; 80];
    driver.device.read_config(0, &mut whole);
    assert_eq!(whole[..8], BLOCK_SIZE.to_le_bytes());
    assert_eq!(whole[56..], [0; 24]);
    for offset in 0..70 {
        for length in 0..10 {
            let mut part = vec![0; length];
            driver.device.read_config(offset as u64, &mut part);
            assert_eq!(part, whole[offset..offset + length]);
        }
    }
    for offset in [u64::MAX, 1 << 32, 56] {
        assert_eq!(driver.config(offset), 0);
    }
}

#[test]
fn usable_size_grows_with_the_request_in_units_of_linux() {
    let mut driver = Driver::new(300, 0);
    for (requested, usable) in [
        (0, 0),
        (2, 128),
        (128, 128),
        (130, 256),
        (258, 300),
        (4, 300),
    ] {
        let announced = driver.device.map().usable_size_for(requested * MIB);
        assert_eq!(announced, Ok(usable * MIB));
        driver.request(requested);
        assert_eq!(driver.sizes(), [usable, 0, requested]);
    }
}

#[test]
fn impossible_request_is_refused_and_changes_nothing() {
    let mut driver = Driver::new(300, 100);
    for found in [1, 2 * MIB - 1, 299 * MIB] {
        let error = driver.device.set_requested_size(found).unwrap_err();
        assert_eq!(error, SizeError::Unaligned { found });
    }
    for found in [302 * MIB, 300 * MIB + 1, u64::MAX] {
        let limit = 300 * MIB;
        let error = driver.device.set_requested_size(found).unwrap_err();
        assert_eq!(error, SizeError::TooLarge { found, limit });
        assert!(driver.device.map().usable_size_for(found).is_err());
    }
    assert_eq!(driver.sizes(), [128, 0, 100]);
}

#[test]
fn generation_rises_with_what_a_request_changes_and_only_then() {
    let mut driver = Driver::new(256, 256);
    let mut generation = driver.config_generation();
    for (kind, offset, blocks, answer, changes) in [
        (PLUG, 0, 3, ACK, true),
        (PLUG, 0, 3, ERROR, false),
        (STATE, 0, 3, ACK, false),
        (UNPLUG, 0, 1, ACK, true),
        (UNPLUG_ALL, 0, 0, ACK, true),
        (UNPLUG_ALL, 0, 0, ACK, false),
    ] {
        assert_eq!(driver.ask(kind, offset, blocks).0, answer);
        generation += u32::from(changes);
        assert_eq!(driver.config_generation(), generation);
    }
}
