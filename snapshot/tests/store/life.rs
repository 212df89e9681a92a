//! The life of a template: made, listed, acquired, deleted; and two of everything at once.

use std::os::unix::fs::FileExt;
use std::thread;

use snapshot::{MemoryCheck, Store, StoreError};

use crate::child::Other;
use crate::support::{FILES, MEMORY_BYTES, MIB, TestStore, entries, make, name, spec, state};

#[test]
fn published_template_comes_back_as_it_was() {
    let test = TestStore::with_template();

    let template = test.store.acquire(&name("t")).unwrap();

    assert_eq!(template.manifest().spec.guest, spec().guest);
    assert_eq!(template.manifest().cpuid::<Vec<u8>>().unwrap(), [1, 2, 3]);
    assert_eq!(
        template.state().section::<&str>("serial", 1..=3).unwrap(),
        "console"
    );
    assert_eq!(template.memory_check(), MemoryCheck::Stamp);
    let mut bytes = [0; 6];
    template
        .memory()
        .read_exact_at(&mut bytes, 33 * MIB + 5)
        .unwrap();
    assert_eq!(&bytes, b"middle");
    assert_eq!(entries(template.path()), FILES);
}

#[test]
fn memory_of_a_template_cannot_be_written_through_it() {
    let test = TestStore::with_template();

    let template = test.store.acquire(&name("t")).unwrap();

    let error = template
        .memory()
        .deepest()
        .write_all_at(b"x", 0)
        .unwrap_err();
    assert_eq!(
        error.raw_os_error(),
        Some(rustix::io::Errno::BADF.raw_os_error())
    );
}

#[test]
fn memory_takes_no_more_room_than_its_data() {
    let test = TestStore::with_template();

    let record = test.store.inspect(&name("t")).unwrap().files.memory;

    assert_eq!(record.size, MEMORY_BYTES);
    // Two pages at the start, one in the middle and one at the end; file systems may take 64 KiB
    // where one page would do.
    assert!(record.allocated <= 4 * 65536, "{record:?}");
}

#[test]
fn list_is_sorted_and_knows_sizes() {
    let test = TestStore::new();
    for template in ["b", "a", "c.1"] {
        drop(make(&test.store, template).unwrap());
    }

    let list = test.store.list().unwrap();

    let names: Vec<_> = list.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c.1"]);
    assert_eq!(
        list[0].manifest.as_ref().unwrap().files.memory.size,
        MEMORY_BYTES
    );
}

#[test]
fn name_that_exists_is_refused_before_and_during_the_work() {
    let test = TestStore::with_template();

    let error = test.store.create(&name("t"), MEMORY_BYTES).unwrap_err();

    assert!(matches!(error, StoreError::Exists { .. }), "{error}");
    assert_eq!(test.entries(), ["t"]);
}

#[test]
fn missing_template_is_named_with_the_store() {
    let test = TestStore::new();

    let acquire = test.store.acquire(&name("nix")).unwrap_err();
    let delete = test.store.delete(&name("nix")).unwrap_err();
    let verify = test.store.verify(&name("nix")).unwrap_err();

    for error in [acquire, delete, verify] {
        assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
        assert!(
            error.to_string().contains(test.root.to_str().unwrap()),
            "{error}"
        );
    }
}

#[test]
fn dropped_pending_template_leaves_nothing() {
    let test = TestStore::new();

    drop(test.store.create(&name("t"), MEMORY_BYTES).unwrap());

    assert_eq!(test.entries(), [""; 0]);
}

#[test]
fn state_that_no_reader_would_take_is_not_published() {
    let test = TestStore::new();
    let pending = test.store.create(&name("t"), MEMORY_BYTES).unwrap();

    let error = pending.publish(spec(), b"nonsense".to_vec()).unwrap_err();

    assert!(matches!(error, StoreError::State(_)), "{error}");
    assert_eq!(test.entries(), [""; 0]);
}

#[test]
fn memory_sizes_that_are_no_pages_are_refused() {
    let test = TestStore::new();
    for bytes in [0, 1, 4095, 4097] {
        let error = test.store.create(&name("t"), bytes).unwrap_err();
        assert!(
            error.to_string().contains(&format!("{bytes} bytes")),
            "{error}"
        );
    }
    assert_eq!(test.entries(), [""; 0]);
}

#[test]
fn template_is_held_by_every_clone_until_the_last_is_gone() {
    let test = TestStore::new();
    let first = make(&test.store, "t").unwrap();
    let second = test.store.acquire(&name("t")).unwrap();

    let with_two = test.store.delete(&name("t")).unwrap_err();
    drop(first);
    let with_one = test.store.delete(&name("t")).unwrap_err();
    drop(second);
    test.store.delete(&name("t")).unwrap();

    assert!(
        matches!(
            with_two,
            StoreError::InUse {
                clones: Some(2),
                ..
            }
        ),
        "{with_two}"
    );
    assert!(
        matches!(
            with_one,
            StoreError::InUse {
                clones: Some(1),
                ..
            }
        ),
        "{with_one}"
    );
    assert_eq!(test.entries(), [""; 0]);
}

#[test]
fn template_is_held_by_another_process_until_it_ends() {
    let test = TestStore::with_template();
    let mut other = Other::start("hold", &test.root);
    other.wait_for("holding");

    let error = test.store.delete(&name("t")).unwrap_err();
    other.finish();
    test.store.delete(&name("t")).unwrap();

    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
}

#[test]
fn second_creator_of_a_name_is_told_that_there_is_one() {
    let test = TestStore::new();
    let mut other = Other::start("stop in create", &test.root);
    other.wait_for("creating");

    let same = test.store.create(&name("t"), MEMORY_BYTES).unwrap_err();
    let another = make(&test.store, "u");

    assert!(matches!(same, StoreError::Busy { .. }), "{same}");
    assert!(another.is_ok());
    other.finish();
}

#[test]
fn one_of_many_threads_makes_the_template() {
    let test = TestStore::new();

    let results: Vec<_> = thread::scope(|scope| {
        let tries: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| make(&test.store, "t")))
            .collect();
        tries.into_iter().map(|one| one.join().unwrap()).collect()
    });

    let losers = results.iter().filter_map(|result| result.as_ref().err());
    for error in losers.clone() {
        assert!(
            matches!(error, StoreError::Busy { .. } | StoreError::Exists { .. }),
            "{error}"
        );
    }
    assert_eq!(losers.count(), 7);
    assert_eq!(test.entries(), ["t"]);
    assert!(test.store.verify(&name("t")).unwrap().is_whole());
}

#[test]
fn one_of_many_processes_makes_the_template() {
    let test = TestStore::new();
    let mut others: Vec<_> = (0..6).map(|_| Other::start("race", &test.root)).collect();
    for other in &mut others {
        other.wait_for("ready");
    }

    for other in others {
        other.finish();
    }

    let winners = entries(&test.root)
        .into_iter()
        .filter(|name| name.starts_with("winner-"));
    assert_eq!(winners.count(), 1);
    assert_eq!(test.entries(), ["t"]);
}

#[test]
fn create_beside_one_that_is_given_up_succeeds_or_is_busy() {
    let test = TestStore::new();
    let attempts = || {
        for _ in 0..500 {
            match test.store.create(&name("t"), MEMORY_BYTES) {
                Ok(pending) => drop(pending),
                Err(error) => assert!(matches!(error, StoreError::Busy { .. }), "{error}"),
            }
        }
    };

    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(attempts);
        }
    });

    assert_eq!(test.entries(), [""; 0]);
}

#[test]
fn acquire_beside_create_and_delete_is_whole_or_not_there() {
    let test = TestStore::new();
    let store = Store::open(&test.root).unwrap();

    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut found = 0;
            while found < 20 {
                match store.acquire(&name("t")) {
                    Ok(template) => {
                        template.verify_memory().unwrap();
                        found += 1;
                    }
                    Err(StoreError::NotFound { .. } | StoreError::Deleting { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
            }
        });
        while !reader.is_finished() {
            drop(make(&test.store, "t").unwrap());
            // Refused while the reader holds it.
            while let Err(error) = test.store.delete(&name("t")) {
                assert!(matches!(error, StoreError::InUse { .. }), "{error}");
            }
        }
    });

    assert_eq!(test.entries(), [""; 0]);
}

#[test]
fn state_is_published_byte_for_byte() {
    let test = TestStore::with_template();

    assert_eq!(std::fs::read(test.file("t", "state")).unwrap(), state());
}
