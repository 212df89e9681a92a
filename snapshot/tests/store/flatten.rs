//! Making one file of a template's layers.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, Ordering};

use snapshot::{MemoryCheck, Store, StoreError};

use crate::layers::{bytes_of, child, with_child, writes};
use crate::support::{MEMORY_BYTES, MIB, TestStore, Tmpfs, entries, is_root, name, spec, state};

#[test]
fn flattened_template_has_the_same_content_in_one_file() {
    let test = with_child();
    let before = test.store.inspect(&name("u")).unwrap();
    let content = bytes_of(&test.store.acquire(&name("u")).unwrap());
    let digests = fs::read(test.file("u", "digests")).unwrap();

    let flattened = test.store.flatten(&name("u")).unwrap();

    assert_eq!(flattened.layers, 2);
    let flat = test.store.acquire(&name("u")).unwrap();
    assert_eq!(entries(flat.path()), crate::support::FILES);
    assert!(bytes_of(&flat) == content);
    assert_eq!(flat.memory_check(), MemoryCheck::Stamp);
    assert_eq!(flat.manifest().uuid, before.uuid);
    assert_eq!(flat.manifest().files.layers, None);
    assert_eq!(fs::read(test.file("u", "digests")).unwrap(), digests);
    drop(flat);
    assert!(test.store.verify(&name("u")).unwrap().is_whole());
    assert_eq!(test.entries(), ["t", "u"]);
    assert_eq!(fs::metadata(test.file("t", "memory")).unwrap().nlink(), 1);
    test.store.delete(&name("t")).unwrap();
    assert!(test.store.verify(&name("u")).unwrap().is_whole());
    assert_eq!(test.store.flatten(&name("u")).unwrap().layers, 1);
}

#[test]
fn children_of_a_flattened_template_keep_its_layers() {
    let test = with_child();
    let parent = test.store.acquire(&name("u")).unwrap();
    let (grandchild, _) = child(&test.store, &parent, "v", &writes(&[(9, 9)])).unwrap();
    let content = bytes_of(&grandchild);
    drop((parent, grandchild));

    test.store.flatten(&name("u")).unwrap();

    assert!(bytes_of(&test.store.acquire(&name("v")).unwrap()) == content);
    // It has nothing of what is in the place of its parent now.
    assert!(test.store.family(&name("u")).unwrap().children.is_empty());
    assert_eq!(test.store.family(&name("t")).unwrap().children, [name("v")]);
}

#[test]
fn a_template_in_use_is_not_flattened() {
    let test = with_child();
    let clone = test.store.acquire(&name("u")).unwrap();

    let refused = test.store.flatten(&name("u")).unwrap_err();
    drop(clone);

    assert!(
        matches!(
            refused,
            StoreError::InUse {
                clones: Some(1),
                ..
            }
        ),
        "{refused}"
    );
    assert_eq!(test.entries(), ["t", "u"]);
    assert_eq!(
        test.store.inspect(&name("u")).unwrap().files.layer_count(),
        2
    );
    let missing = test.store.flatten(&name("nix")).unwrap_err();
    assert!(matches!(missing, StoreError::NotFound { .. }), "{missing}");
}

#[test]
fn damaged_memory_is_not_flattened() {
    let test = with_child();
    let path = test.file("u", "memory-1");
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    crate::damage::overwrite(&path, 33 * MIB, b"!");
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(modified).unwrap();

    let refused = test.store.flatten(&name("u")).unwrap_err().to_string();

    assert!(refused.contains("at offset 0x2000000"), "{refused}");
    assert_eq!(test.entries(), ["t", "u"]);
    assert_eq!(
        test.store.inspect(&name("u")).unwrap().files.layer_count(),
        2
    );
}

#[test]
fn flatten_on_a_full_disk_leaves_the_template_as_it_was() {
    if !is_root() {
        eprintln!("not run: only root can mount a disk of its own");
        return;
    }
    let _alone = crate::support::alone();
    let disk = Tmpfs::new(24 << 20);
    let store = Store::open(disk.path()).unwrap();
    let pending = store.create(&name("t"), MEMORY_BYTES).unwrap();
    pending.memory().write_all_at(&[1; 16 << 20], 0).unwrap();
    let parent = pending.publish(spec(), state()).unwrap();
    let (template, _) = child(&store, &parent, "u", &writes(&[(7, 7)])).unwrap();
    let content = bytes_of(&template);
    drop((parent, template));

    let error = store.flatten(&name("u")).unwrap_err();

    assert!(error.is_disk_full(), "{error}");
    assert_eq!(entries(store.path()), ["t", "u"]);
    assert!(bytes_of(&store.acquire(&name("u")).unwrap()) == content);
}

#[test]
fn readers_beside_a_flatten_find_the_whole_template_or_are_told_of_it() {
    let test = TestStore::with_template();
    let parent = test.store.acquire(&name("t")).unwrap();
    let children: Vec<_> = (0..10).map(|n| format!("u{n}")).collect();
    for id in &children {
        drop(child(&test.store, &parent, id, &writes(&[(7, 7)])).unwrap());
    }
    let content = bytes_of(&test.store.acquire(&name("u0")).unwrap());
    let done = AtomicBool::new(false);
    let read = || {
        let mut found = 0;
        while !done.load(Ordering::Acquire) {
            for id in &children {
                match test.store.acquire(&name(id)) {
                    Ok(template) => {
                        found += usize::from(template.memory_check() == MemoryCheck::Stamp);
                    }
                    Err(error) => assert!(matches!(error, StoreError::Deleting { .. }), "{error}"),
                }
                test.store.inspect(&name(id)).unwrap();
            }
            let list = test.store.list().unwrap();
            assert!(
                list.len() == 11 && list.iter().all(|entry| entry.manifest.is_ok()),
                "{list:?}"
            );
        }
        found
    };

    std::thread::scope(|scope| {
        let reader = scope.spawn(read);
        for id in &children {
            // The reader is a clone, too: while it has the template, that stays as it is.
            while let Err(error) = test.store.flatten(&name(id)) {
                let is_busy = matches!(
                    error,
                    StoreError::InUse { .. } | StoreError::Deleting { .. }
                );
                assert!(is_busy, "{error}");
            }
        }
        done.store(true, Ordering::Release);
        assert!(reader.join().unwrap() > 0);
    });

    for id in &children {
        let template = test.store.acquire(&name(id)).unwrap();
        assert_eq!(template.memory().count(), 1);
        assert!(bytes_of(&template) == content);
    }
}
