//! The state file's parser against input nobody wrote on purpose.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot set up what it tests has failed"
)]

use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use snapshot::manifest::Manifest;
use snapshot::{StateFile, StateWriter};

fn sample() -> Vec<u8> {
    let mut writer = StateWriter::new();
    writer.section("vcpu-0", 1, &vec![7_u64; 40]).unwrap();
    writer.section("vsock", 2, "a socket").unwrap();
    writer.finish()
}

fn parse(bytes: &[u8]) -> Result<StateFile, String> {
    StateFile::parse(bytes.to_vec(), Path::new("state")).map_err(|error| error.to_string())
}

proptest! {
    #[test]
    fn noise_is_refused(bytes in vec(any::<u8>(), 0..4096)) {
        prop_assert!(parse(&bytes).is_err());
    }

    #[test]
    fn noise_after_the_magic_is_refused(bytes in vec(any::<u8>(), 0..4096)) {
        let file = [b"MVMSTATE\x01\0\x01\0".as_slice(), &bytes].concat();
        prop_assert!(parse(&file).is_err());
    }

    #[test]
    fn any_change_is_refused(at in 0..sample().len(), with in vec(any::<u8>(), 0..64)) {
        let mut bytes = sample();
        let end = bytes.len().min(at + with.len());
        bytes.splice(at..end, with);
        prop_assert!(bytes == sample() || parse(&bytes).is_err());
    }

    #[test]
    fn any_value_comes_back(value in any::<(u64, Vec<u8>, Option<String>, i32)>(), version: u16) {
        let mut writer = StateWriter::new();
        writer.section("value", version, &value).unwrap();
        let file = parse(&writer.finish()).unwrap();
        prop_assert_eq!(
            file.section::<(u64, Vec<u8>, Option<String>, i32)>("value", version..=version).unwrap(),
            value
        );
    }

    #[test]
    fn noise_in_a_section_is_no_panic(body: [u8; 32]) {
        let mut writer = StateWriter::new();
        // An array is encoded as its bytes; a Vec would put its length before them.
        writer.section("noise", 1, &body).unwrap();
        let file = parse(&writer.finish()).unwrap();
        type Shape = (Vec<u64>, Option<String>, Vec<(bool, char)>);
        if let Err(error) = file.section::<Shape>("noise", 1..=1) {
            prop_assert!(error.to_string().contains("section noise"));
        }
    }

    #[test]
    fn noise_is_no_manifest(bytes in vec(any::<u8>(), 0..2048)) {
        prop_assert!(Manifest::parse(&bytes, Path::new("manifest.json")).is_err());
    }
}
