//! Disks that are full at every write of a create.

use std::io::ErrorKind;

use snapshot::{Store, StoreError, Template};

use crate::support::{
    MEMORY_BYTES, MIB, Tmpfs, alone, chain, entries, fill, is_root, name, spec, state,
};

enum Outcome {
    Made,
    GuestMemoryFull,
    Refused(StoreError),
}

fn try_to_make(store: &Store) -> Outcome {
    let pending = match store.create(&name("t"), MEMORY_BYTES) {
        Ok(pending) => pending,
        Err(error) => return Outcome::Refused(error),
    };
    if let Err(error) = fill(&pending) {
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        assert!(pending.disk_bytes_left().unwrap() < 65536);
        return Outcome::GuestMemoryFull;
    }
    match pending.publish(spec(), state()).map(drop::<Template>) {
        Ok(()) => Outcome::Made,
        Err(error) => Outcome::Refused(error),
    }
}

#[test]
fn disk_that_is_full_at_any_write_is_named_and_nothing_is_left() {
    let _alone = alone();
    if !is_root() {
        eprintln!("not run: only root can mount a small tmpfs");
        return;
    }
    let mut refused = 0;
    for pages in 1.. {
        let tmpfs = Tmpfs::new(pages * 4096);
        let root = tmpfs.path().join("store");
        let Ok(store) = Store::open(&root) else {
            continue;
        };
        match try_to_make(&store) {
            Outcome::Made => break,
            Outcome::GuestMemoryFull => {}
            Outcome::Refused(error) => {
                refused += 1;
                assert!(error.is_disk_full(), "{}", chain(&error));
                let text = chain(&error);
                assert!(text.contains(root.to_str().unwrap()), "{text}");
                assert!(text.contains("No space left on device"), "{text}");
            }
        }
        assert!(store.list().unwrap().is_empty());
        assert_eq!(
            entries(store.path()),
            [""; 0],
            "left behind with {pages} pages"
        );
    }
    assert!(refused >= 1, "no write of publish met a full disk");
}

#[test]
fn create_succeeds_once_there_is_room_again() {
    let _alone = alone();
    if !is_root() {
        eprintln!("not run: only root can mount a small tmpfs");
        return;
    }
    let tmpfs = Tmpfs::new(2 * MIB);
    let store = Store::open(&tmpfs.path().join("store")).unwrap();
    let ballast = tmpfs.path().join("ballast");
    let full = std::fs::write(&ballast, vec![1; 4 << 20]).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::StorageFull);
    assert!(!matches!(try_to_make(&store), Outcome::Made));

    std::fs::remove_file(&ballast).unwrap();

    assert!(matches!(try_to_make(&store), Outcome::Made));
    assert!(store.verify(&name("t")).unwrap().is_whole());
}
