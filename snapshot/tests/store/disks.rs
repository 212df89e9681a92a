//! The disks of templates.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};

use snapshot::{OwnMemory, Store, StoreError, Template};

use crate::support::{MEMORY_BYTES, TestStore, fill, name, spec, state};

const LENGTH: u64 = 1 << 20;

fn source() -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(LENGTH).unwrap();
    file.write_all_at(b"content", 300_000).unwrap();
    file
}

/// Template `d` with a disk, an empty slot and a read-only disk.
fn make(store: &Store) -> Template {
    let mut pending = store.create(&name("d"), MEMORY_BYTES).unwrap();
    fill(&pending).unwrap();
    let disk = pending
        .add_disk(Some(&source()), LENGTH, false, &|| true)
        .unwrap();
    // As its guest does.
    disk.write_all_at(b"written", 4096).unwrap();
    pending.add_disk_slot();
    pending
        .add_disk(Some(&source()), LENGTH, true, &|| true)
        .unwrap();
    pending.publish(spec(), state()).unwrap()
}

fn check(template: &Template) {
    let read = |number: usize, at| {
        let mut bytes = [0; 7];
        let file = template.disks()[number].file.as_ref().unwrap();
        file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    };
    assert_eq!(&read(0, 4096), b"written");
    assert_eq!(&read(0, 300_000), b"content");
    assert_eq!(read(2, 4096), [0; 7]);
    assert!(template.disks()[1].file.is_none());
    let read_only: Vec<_> = template
        .disks()
        .iter()
        .map(|d| d.record.read_only)
        .collect();
    assert_eq!(read_only, [false, false, true]);
}

#[test]
fn disks_are_published_with_a_template() {
    let test = TestStore::new();
    drop(make(&test.store));

    let template = test.store.acquire(&name("d")).unwrap();

    check(&template);
    template.verify_disks().unwrap();
    let meta = fs::metadata(test.file("d", "disk-0")).unwrap();
    assert_eq!((meta.len(), meta.mode() & 0o777), (LENGTH, 0o400));
    assert!(meta.blocks() * 512 < LENGTH);
    assert!(!test.file("d", "disk-1").exists());
    assert!(test.store.verify(&name("d")).unwrap().is_whole());
}

#[test]
fn changed_disk_is_found_when_the_template_is_opened() {
    let test = TestStore::new();
    drop(make(&test.store));
    let path = test.file("d", "disk-0");
    let disk = OpenOptions::new().write(true).open(&path);
    // Only root writes to a file without write permission.
    let Ok(disk) = disk else { return };
    disk.write_all_at(b"x", 4096).unwrap();

    let error = test.store.acquire(&name("d")).unwrap_err();

    assert!(matches!(error, StoreError::DiskChanged { .. }), "{error}");
    assert!(error.to_string().contains("disk-0"), "{error}");
    let report = test.store.verify(&name("d")).unwrap();
    assert_eq!(report.problems[0].file, path);
    disk.write_all_at(b"w", 4096).unwrap();
    check(&test.store.acquire(&name("d")).unwrap());
    assert!(test.store.verify(&name("d")).unwrap().restamped);

    disk.set_len(LENGTH - 1).unwrap();
    let error = test.store.acquire(&name("d")).unwrap_err();
    assert!(matches!(error, StoreError::DiskLength { .. }), "{error}");
}

#[test]
fn flattened_template_keeps_its_disks() {
    let test = TestStore::with_template();
    let parent = test.store.acquire(&name("t")).unwrap();
    let mut pending = test.store.create(&name("d"), MEMORY_BYTES).unwrap();
    pending.start_from(&parent, &|| true).unwrap();
    pending
        .add_disk(Some(&source()), LENGTH, false, &|| true)
        .unwrap();
    pending.divide(&OwnMemory::default()).unwrap();
    drop(pending.publish(spec(), state()).unwrap());

    assert_eq!(test.store.flatten(&name("d")).unwrap().layers, 2);

    let flat = test.store.acquire(&name("d")).unwrap();
    assert_eq!(flat.disks().len(), 1);
    flat.verify_disks().unwrap();
}
