//! Processes that are killed where they stand.

use snapshot::StoreError;

use crate::child::Other;
use crate::support::{MEMORY_BYTES, TestStore, Tmpfs, is_root, make, name};

#[test]
fn killed_creator_leaves_nothing_that_is_listed_and_the_next_command_sweeps() {
    let test = TestStore::new();
    let mut other = Other::start("stop in create", &test.root);
    other.wait_for("creating");
    other.kill();
    assert_eq!(test.entries(), [".t.creating"]);

    let acquired = test.store.acquire(&name("t")).unwrap_err();
    let list = test.store.list().unwrap();

    assert!(
        matches!(acquired, StoreError::NotFound { .. }),
        "{acquired}"
    );
    assert!(list.is_empty());
    assert_eq!(test.entries(), [""; 0]);
}

#[test]
fn create_after_a_killed_creator_succeeds() {
    let test = TestStore::new();
    let mut other = Other::start("stop in create", &test.root);
    other.wait_for("creating");
    other.kill();

    drop(make(&test.store, "t").unwrap());

    assert_eq!(test.entries(), ["t"]);
    assert!(test.store.verify(&name("t")).unwrap().is_whole());
}

#[test]
fn sweep_leaves_living_creators_alone() {
    let test = TestStore::new();
    let pending = test.store.create(&name("a"), MEMORY_BYTES).unwrap();
    let mut other = Other::start("stop in create", &test.root);
    other.wait_for("creating");

    let swept = test.store.sweep().unwrap();

    assert_eq!(swept, 0);
    assert_eq!(test.entries(), [".a.creating", ".t.creating"]);
    other.finish();
    drop(pending);
}

#[test]
fn killed_holder_does_not_hold_any_more() {
    let test = TestStore::with_template();
    let mut other = Other::start("hold", &test.root);
    other.wait_for("holding");
    other.kill();

    test.store.delete(&name("t")).unwrap();

    assert_eq!(test.entries(), [""; 0]);
}

#[test]
fn delete_that_stops_half_way_has_hidden_the_template() {
    if !is_root() {
        eprintln!("not run: only root can mount, which is what stops the delete");
        return;
    }
    let test = TestStore::with_template();
    let obstacle = test.file("t", "obstacle");
    std::fs::create_dir(&obstacle).unwrap();
    let mut mounted = Tmpfs::at(&obstacle);

    test.store.delete(&name("t")).unwrap_err();

    assert!(test.store.list().unwrap().is_empty());
    drop(make(&test.store, "t").unwrap());
    // The mount has moved with the hidden directory.
    let hidden = test
        .entries()
        .into_iter()
        .find(|entry| entry.starts_with(".t."))
        .unwrap();
    mounted.moved_to(&test.store.path().join(hidden).join("obstacle"));
    drop(mounted);
    assert_eq!(test.store.sweep().unwrap(), 1);
    assert_eq!(test.entries(), ["t"]);
}

#[test]
fn kill_at_30_moments_of_create_and_delete_leaves_a_whole_template_or_none() {
    let test = TestStore::new();
    for moment in 0..30_u32 {
        let mut other = Other::start("churn", &test.root);
        other.wait_for("round");
        other.wait_for("round");
        // A moment somewhere in the round: what matters is that it is not always the same one.
        (0..moment * 20_000).for_each(|turn| {
            std::hint::black_box(turn);
        });
        other.kill();

        let list = test.store.list().unwrap();

        assert!(
            test.entries().iter().all(|entry| entry == "t"),
            "{:?}",
            test.entries()
        );
        for entry in list {
            entry.manifest.unwrap();
            assert!(test.store.verify(&entry.name).unwrap().is_whole());
            test.store.delete(&entry.name).unwrap();
        }
        drop(make(&test.store, "t").unwrap());
        test.store.delete(&name("t")).unwrap();
    }
}
