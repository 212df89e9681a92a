//! Templates in layers that were damaged after they were published.

use std::fs;
use std::os::unix::fs::symlink;

use snapshot::{MemoryCheck, StoreError};

use crate::damage::{overwrite, set_length, with_content};
use crate::layers::{child, with_child, writes};
use crate::support::{MEMORY_BYTES, MIB, TestStore, chain, name};

/// Acquires `u`, which must be refused with an error that names this file, and so must the others that
/// look at templates.
fn refused(test: &TestStore, file: &str) -> String {
    let path = test.file("u", file);
    let error = chain(&test.store.acquire(&name("u")).unwrap_err());
    assert!(error.contains(path.to_str().unwrap()), "{error}");
    let report = test.store.verify(&name("u")).unwrap();
    assert_eq!(report.problems.len(), 1, "{report:?}");
    assert_eq!(report.problems[0].file, path);
    error
}

fn is_listed_as_damaged(test: &TestStore) -> bool {
    let list = test.store.list().unwrap();
    let child = list.iter().find(|entry| entry.name == name("u")).unwrap();
    child.manifest.is_err()
}

#[test]
fn every_flipped_bit_of_the_map_is_found() {
    let test = with_child();
    let good = fs::read(test.file("u", "layers")).unwrap();
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        with_content(&test, "u", "layers", &bytes);
        refused(&test, "layers");
    }
    with_content(&test, "u", "layers", &good);
    drop(test.store.acquire(&name("u")).unwrap());
}

#[test]
fn every_cut_of_the_map_is_found() {
    let test = with_child();
    let good = fs::read(test.file("u", "layers")).unwrap();
    for length in 0..good.len() {
        with_content(&test, "u", "layers", &good[..length]);
        refused(&test, "layers");
        assert!(is_listed_as_damaged(&test));
    }
}

#[test]
fn map_of_another_template_is_refused() {
    let test = with_child();
    let parent = test.store.acquire(&name("t")).unwrap();
    drop(child(&test.store, &parent, "v", &writes(&[(8, 7)])).unwrap());
    let foreign = fs::read(test.file("v", "layers")).unwrap();
    with_content(&test, "u", "layers", &foreign);

    let error = test.store.acquire(&name("u")).unwrap_err();

    assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
}

#[test]
fn missing_files_are_named() {
    for file in ["layers", "memory", "memory-1"] {
        let test = with_child();
        fs::remove_file(test.file("u", file)).unwrap();

        let error = refused(&test, file);

        assert!(error.contains("No such file"), "{error}");
        assert!(is_listed_as_damaged(&test));
        // The parent has its own link.
        drop(test.store.acquire(&name("t")).unwrap());
        test.store.delete(&name("u")).unwrap();
    }
}

#[test]
fn layer_of_another_length_is_refused_with_both_lengths() {
    for length in [0, MEMORY_BYTES - 4096, MEMORY_BYTES + 4096] {
        let test = with_child();
        set_length(&test.file("u", "memory-1"), length);

        let error = refused(&test, "memory-1");

        let lengths = format!("has {length} bytes, expected {MEMORY_BYTES}");
        assert!(error.ends_with(&lengths), "{error}");
        assert!(is_listed_as_damaged(&test));
        // It is one file: the parent has lost it too.
        test.store.acquire(&name("t")).unwrap_err();
    }
}

#[test]
fn layer_of_another_template_is_refused_by_its_content() {
    let test = with_child();
    let pending = test.store.create(&name("v"), MEMORY_BYTES).unwrap();
    drop(
        pending
            .publish(crate::support::spec(), crate::support::state())
            .unwrap(),
    );
    fs::rename(test.file("v", "memory"), test.file("u", "memory-1")).unwrap();

    let error = test.store.acquire(&name("u")).unwrap_err().to_string();

    let path = test.file("u", "memory-1");
    assert!(error.starts_with(path.to_str().unwrap()), "{error}");
    assert!(
        error.contains("was changed after it was published"),
        "{error}"
    );
}

#[test]
fn layer_that_was_written_to_is_refused_in_all_that_have_it() {
    let test = with_child();
    overwrite(&test.file("t", "memory"), 33 * MIB, b"\x01");

    for (template, file) in [("t", "memory"), ("u", "memory-1")] {
        let error = test.store.acquire(&name(template)).unwrap_err().to_string();
        let path = test.file(template, file);
        assert!(error.starts_with(path.to_str().unwrap()), "{error}");
        assert!(error.contains("at offset 0x2000000"), "{error}");
    }
}

#[test]
fn layer_that_is_no_regular_file_is_refused() {
    let test = with_child();
    let path = test.file("u", "memory-1");
    fs::remove_file(&path).unwrap();
    symlink(test.file("t", "memory"), &path).unwrap();

    let error = refused(&test, "memory-1");

    assert!(error.contains("is a symbolic link"), "{error}");
    assert!(is_listed_as_damaged(&test));
}

#[test]
fn copied_layer_is_accepted_by_its_content() {
    let test = with_child();
    let path = test.file("u", "memory-1");
    let copy = path.with_file_name("copy");
    fs::copy(&path, &copy).unwrap();
    fs::rename(&copy, &path).unwrap();

    let template = test.store.acquire(&name("u")).unwrap();

    assert_eq!(template.memory_check(), MemoryCheck::Content);
}
