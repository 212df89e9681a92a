//! Templates that were damaged after they were published.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use snapshot::{MemoryCheck, StateError, StoreError};

use crate::support::{FILES, MEMORY_BYTES, MIB, TestStore, chain, make, name};

/// Acquires `t`, which must be refused with an error that names this file.
fn refused(test: &TestStore, file: &str) -> StoreError {
    let error = test.store.acquire(&name("t")).unwrap_err();
    let path = test.file("t", file);
    assert!(
        chain(&error).contains(path.to_str().unwrap()),
        "{}",
        chain(&error)
    );
    error
}

pub fn with_content(test: &TestStore, template: &str, file: &str, content: &[u8]) {
    let path = test.file(template, file);
    fs::remove_file(&path).unwrap();
    fs::write(&path, content).unwrap();
}

pub fn set_length(path: &Path, length: u64) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(length).unwrap();
}

pub fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

#[test]
fn bit_flips_at_200_places_of_the_state_are_refused() {
    let test = TestStore::with_template();
    let good = fs::read(test.file("t", "state")).unwrap();
    for step in 0..200 {
        let bit = step * good.len() * 8 / 200 + step % 8;
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        with_content(&test, "t", "state", &bytes);
        refused(&test, "state");
    }
}

#[test]
fn cuts_at_50_places_of_the_state_are_refused() {
    let test = TestStore::with_template();
    let good = fs::read(test.file("t", "state")).unwrap();
    for step in 0..50 {
        with_content(&test, "t", "state", &good[..step * good.len() / 50]);
        let error = refused(&test, "state");
        assert!(
            matches!(
                error,
                StoreError::State(StateError::CutOff { .. } | StateError::Empty { .. })
            ),
            "{error}"
        );
    }
}

#[test]
fn every_cut_and_200_bit_flips_of_the_manifest_are_refused() {
    let test = TestStore::with_template();
    let good = fs::read(test.file("t", "manifest.json")).unwrap();
    for step in 0..200 {
        let bit = step * good.len() * 8 / 200 + step % 8;
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        with_content(&test, "t", "manifest.json", &bytes);
        refused(&test, "manifest.json");
        with_content(&test, "t", "manifest.json", &good[..bit / 8]);
        refused(&test, "manifest.json");
    }
}

#[test]
fn state_of_another_template_is_refused() {
    let test = TestStore::with_template();
    with_content(&test, "t", "state", &snapshot::StateWriter::new().finish());

    let error = refused(&test, "state");

    assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
}

#[test]
fn memory_of_another_length_is_refused_with_both_lengths() {
    for length in [
        0,
        1,
        MEMORY_BYTES - 4096,
        MEMORY_BYTES + 1,
        MEMORY_BYTES + 4096,
    ] {
        let test = TestStore::with_template();
        set_length(&test.file("t", "memory"), length);

        let error = refused(&test, "memory").to_string();

        let lengths = format!("has {length} bytes, expected {MEMORY_BYTES}");
        assert!(error.ends_with(&lengths), "{error}");
    }
}

#[test]
fn missing_files_are_named() {
    for file in ["manifest.json", "state", "memory"] {
        let test = TestStore::with_template();
        fs::remove_file(test.file("t", file)).unwrap();

        let error = chain(&refused(&test, file));

        assert!(error.contains("No such file"), "{error}");
        assert!(test.store.list().unwrap()[0].manifest.is_err());
    }
}

/// Puts something else in a file's place.
type Swap = fn(&Path);

#[test]
fn other_things_in_a_files_place_are_refused_by_kind() {
    let swaps: [(&str, Swap); 4] = [
        ("a directory", |path| fs::create_dir(path).unwrap()),
        ("a FIFO", |path| {
            mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        }),
        ("a socket", |path| drop(UnixListener::bind(path).unwrap())),
        ("a symbolic link", |path| {
            let target = path.with_file_name("target");
            fs::write(&target, "").unwrap();
            symlink(&target, path).unwrap();
        }),
    ];
    for file in ["manifest.json", "state", "memory"] {
        for (kind, swap) in swaps {
            let test = TestStore::with_template();
            let path = test.file("t", file);
            fs::remove_file(&path).unwrap();
            swap(&path);

            let error = chain(&refused(&test, file));

            assert!(
                error.contains(&format!("is {kind}, expected a regular file")),
                "{error}"
            );
            assert!(test.store.list().unwrap()[0].manifest.is_err());
            test.store.delete(&name("t")).unwrap();
        }
    }
}

#[test]
fn state_larger_than_any_state_is_not_read() {
    let test = TestStore::with_template();
    set_length(&test.file("t", "state"), 1 << 40);

    let error = refused(&test, "state").to_string();

    assert!(error.contains("more than the"), "{error}");
}

#[test]
fn memory_that_was_written_to_is_refused_with_the_place() {
    let test = TestStore::with_template();
    overwrite(&test.file("t", "memory"), 33 * MIB, b"\x01");

    let error = refused(&test, "memory").to_string();

    assert!(error.contains("at offset 0x2000000"), "{error}");
}

#[test]
fn memory_that_was_swapped_for_one_of_the_same_length_is_refused() {
    let test = TestStore::with_template();
    let pending = test.store.create(&name("u"), MEMORY_BYTES).unwrap();
    drop(
        pending
            .publish(crate::support::spec(), crate::support::state())
            .unwrap(),
    );
    fs::rename(test.file("u", "memory"), test.file("t", "memory")).unwrap();

    let error = refused(&test, "memory").to_string();

    assert!(
        error.contains("was changed after it was published"),
        "{error}"
    );
}

#[test]
fn cut_and_stretched_memory_is_refused_although_its_length_is_right() {
    let test = TestStore::with_template();
    let path = test.file("t", "memory");
    set_length(&path, MEMORY_BYTES - 4096);
    set_length(&path, MEMORY_BYTES);

    refused(&test, "memory");
}

#[test]
fn change_under_a_running_clone_is_noticed() {
    let test = TestStore::with_template();
    let template = test.store.acquire(&name("t")).unwrap();
    assert!(template.is_memory_untouched().unwrap());

    overwrite(&test.file("t", "memory"), 5, b"x");

    assert!(!template.is_memory_untouched().unwrap());
    template.verify_memory().unwrap_err();
}

#[test]
fn copied_memory_is_accepted_by_its_content_and_verify_gives_it_its_time_back() {
    let test = TestStore::with_template();
    let path = test.file("t", "memory");
    let copy = path.with_file_name("copy");
    // Another inode, another time, and maybe without the holes.
    fs::copy(&path, &copy).unwrap();
    fs::rename(&copy, &path).unwrap();

    let before = test.store.acquire(&name("t")).unwrap().memory_check();
    let report = test.store.verify(&name("t")).unwrap();
    let after = test.store.acquire(&name("t")).unwrap().memory_check();

    assert_eq!(before, MemoryCheck::Content);
    assert!(report.is_whole() && report.restamped, "{report:?}");
    assert_eq!(after, MemoryCheck::Stamp);
}

#[test]
fn renamed_template_is_the_same_template() {
    let test = TestStore::with_template();
    fs::rename(
        test.store.path().join("t"),
        test.store.path().join("renamed"),
    )
    .unwrap();

    let template = test.store.acquire(&name("renamed")).unwrap();

    assert_eq!(template.memory_check(), MemoryCheck::Stamp);
}

#[test]
fn verify_finds_a_flipped_bit_whose_traces_were_removed() {
    let test = TestStore::with_template();
    let path = test.file("t", "memory");
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    overwrite(&path, MEMORY_BYTES - 2, b"m");
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_modified(modified).unwrap();

    let report = test.store.verify(&name("t")).unwrap();

    assert_eq!(report.problems.len(), 1, "{report:?}");
    assert_eq!(report.problems[0].offset, Some(MEMORY_BYTES - 2 * MIB));
    assert_eq!(report.problems[0].file, path);
}

#[test]
fn verify_names_every_damaged_file() {
    let test = TestStore::with_template();
    for file in ["digests", "state"] {
        with_content(&test, "t", file, b"garbage");
    }
    set_length(&test.file("t", "memory"), 4096);

    let report = test.store.verify(&name("t")).unwrap();

    let mut files: Vec<_> = report
        .problems
        .iter()
        .map(|p| p.file.file_name().unwrap())
        .collect();
    files.sort();
    assert_eq!(files, ["digests", "memory", "state"], "{report:?}");
}

#[test]
fn verify_of_a_damaged_manifest_is_a_report() {
    let test = TestStore::with_template();
    with_content(&test, "t", "manifest.json", b"{}");

    let report = test.store.verify(&name("t")).unwrap();

    assert_eq!(report.problems.len(), 1, "{report:?}");
}

#[test]
fn damaged_template_does_not_hide_the_others_and_can_be_deleted() {
    let test = TestStore::with_template();
    drop(make(&test.store, "u").unwrap());
    with_content(&test, "t", "manifest.json", b"\0\0\0\0");
    fs::write(test.store.path().join("file"), "").unwrap();
    fs::create_dir(test.store.path().join("lost+found")).unwrap();

    let list = test.store.list().unwrap();
    test.store.delete(&name("t")).unwrap();

    let damaged: Vec<_> = list
        .iter()
        .map(|e| (e.name.as_str(), e.manifest.is_err()))
        .collect();
    assert_eq!(damaged, [("file", true), ("t", true), ("u", false)]);
    assert_eq!(test.entries(), ["file", "lost+found", "u"]);
}

#[test]
fn random_megabyte_in_any_file_is_refused_or_not_read() {
    // Not random between runs, so that a failure is met again.
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed.to_le_bytes()[0]
    })
    .take(1 << 20)
    .collect();
    for file in FILES {
        let test = TestStore::with_template();
        with_content(&test, "t", file, &noise);

        let report = test.store.verify(&name("t")).unwrap();

        assert_eq!(report.problems.len(), 1, "{file}: {report:?}");
        assert_eq!(test.store.acquire(&name("t")).is_err(), file != "digests");
    }
}
