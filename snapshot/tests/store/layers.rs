//! Templates of clones: their memory is in layers, which they have in common with those they come from.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};

use snapshot::memory::{LAYERS_NAME, Layer, MAX_LAYERS};
use snapshot::{CopyReason, MemoryCheck, OwnMemory, Start, Store, StoreError, Template};

use crate::child::Other;
use crate::support::{MEMORY_BYTES, MIB, TestStore, Tmpfs, entries, is_root, name, spec, state};

pub const PAGE: u64 = 4096;

/// What a clone did before it became a template.
#[derive(Clone, Default)]
pub struct Changes {
    /// Pages and the byte they were filled with.
    pub written: Vec<(u64, u8)>,
    /// Memory that was given back or added.
    pub replaced: Vec<Range<u64>>,
    /// Memory there was in the end; that of the parent when it is 0.
    pub length: u64,
}

pub fn writes(pages: &[(u64, u8)]) -> Changes {
    Changes {
        written: pages.to_vec(),
        ..Changes::default()
    }
}

/// Makes a template of a clone of `parent`, as a VM process does.
pub fn child(
    store: &Store,
    parent: &Template,
    child: &str,
    changes: &Changes,
) -> Result<(Template, Start), StoreError> {
    let length = changes.length.max(parent.memory().length());
    let mut pending = store.create(&name(child), length)?;
    let start = pending.start_from(parent, &|| true)?;
    let page = |page: u64| page * PAGE..(page + 1) * PAGE;
    let own = OwnMemory {
        written: changes.written.iter().map(|(at, _)| page(*at)).collect(),
        replaced: changes.replaced.clone(),
    };
    let content = content_of(parent, changes);
    for range in pending.divide(&own)? {
        // Zeros are left out, as the VM process does.
        for start in range.step_by(4096) {
            let bytes = &content[usize::try_from(start).unwrap()..][..4096];
            if bytes.iter().any(|byte| *byte != 0) {
                pending.memory().write_all_at(bytes, start).unwrap();
            }
        }
    }
    Ok((pending.publish(spec(), state())?, start))
}

pub fn bytes_of(template: &Template) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(template.memory().length()).unwrap()];
    template.memory().read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// What the clone has in its memory.
fn content_of(parent: &Template, changes: &Changes) -> Vec<u8> {
    let mut bytes = bytes_of(parent);
    let length = usize::try_from(changes.length).unwrap().max(bytes.len());
    bytes.resize(length, 0);
    let index = |byte: u64| usize::try_from(byte).unwrap();
    for range in &changes.replaced {
        bytes[index(range.start)..index(range.end)].fill(0);
    }
    for (page, byte) in &changes.written {
        bytes[index(page * PAGE)..index((page + 1) * PAGE)].fill(*byte);
    }
    bytes
}

fn is_layer(start: &Start, count: usize) -> bool {
    matches!(start, Start::Layer { layers } if *layers == count)
}

/// A template `t` and one of its clone's, `u`, with one page of its own.
pub fn with_child() -> TestStore {
    let test = TestStore::with_template();
    let parent = test.store.acquire(&name("t")).unwrap();
    drop(child(&test.store, &parent, "u", &writes(&[(7, 7)])).unwrap());
    test
}

#[test]
fn five_generations_have_their_content_and_little_on_disk() {
    let test = TestStore::with_template();
    let index = |page: u64| usize::try_from(page * PAGE).unwrap();
    let mut parent = test.store.acquire(&name("t")).unwrap();
    // Every one changes a page of the first, one of its parent's, and zeroes what its parent wrote.
    for (generation, layers) in (1..=5).zip(2..) {
        let byte = u8::try_from(generation).unwrap();
        let changes = Changes {
            written: vec![
                (0, byte),
                (100 + generation, byte),
                (99 + generation, 0),
                (1 << 13, byte),
            ],
            ..Changes::default()
        };
        let expected = content_of(&parent, &changes);

        let id = format!("g{generation}");
        let (template, start) = child(&test.store, &parent, &id, &changes).unwrap();

        assert!(is_layer(&start, layers), "{start:?}");
        assert_eq!(template.memory_check(), MemoryCheck::Stamp);
        let bytes = bytes_of(&template);
        assert!(bytes == expected, "generation {generation}");
        assert_eq!(bytes[index(99 + generation)], 0);
        let files = &template.manifest().files;
        assert!(files.memory.allocated <= 4 * 65536, "{files:?}");
        assert_eq!(
            fs::metadata(test.file(&id, "memory")).unwrap().len(),
            MEMORY_BYTES
        );
        assert!(test.store.verify(&name(&id)).unwrap().is_whole());
        // The parent is not needed any more, except by its descendants.
        let gone = parent.name().clone();
        drop(parent);
        if generation % 2 == 0 {
            test.store.delete_from_family(&gone).unwrap();
        }
        assert!(test.store.verify(&name(&id)).unwrap().is_whole());
        parent = test.store.acquire(&name(&id)).unwrap();
        assert!(bytes_of(&parent) == expected, "generation {generation}");
    }
}

#[test]
fn layers_are_the_same_files_with_the_same_records() {
    let test = with_child();
    let inode = |template, file: &str| fs::metadata(test.file(template, file)).unwrap().ino();

    let parent = test.store.inspect(&name("t")).unwrap();
    let child = test.store.inspect(&name("u")).unwrap();

    assert_eq!(inode("t", "memory"), inode("u", "memory-1"));
    let below = child.files.below();
    assert_eq!(below.len(), 1);
    assert_eq!(below[0].uuid, parent.uuid);
    assert_eq!(below[0].template, parent.name);
    assert_eq!(below[0].file, parent.files.memory);
    assert_eq!(child.files.shared_bytes(), parent.files.memory.allocated);
}

#[test]
fn digests_are_those_of_a_template_with_all_of_it_in_one_file() {
    let test = with_child();
    let whole = test.store.create(&name("w"), MEMORY_BYTES).unwrap();
    let content = bytes_of(&test.store.acquire(&name("u")).unwrap());
    whole.memory().write_all_at(&content, 0).unwrap();
    drop(whole.publish(spec(), state()).unwrap());

    let digests = |template| fs::read(test.file(template, "digests")).unwrap();

    assert_eq!(digests("u"), digests("w"));
    assert_ne!(digests("u"), digests("t"));
}

#[test]
fn only_chunks_with_changes_are_read_for_the_digests() {
    let test = TestStore::with_template();
    let parent = test.store.acquire(&name("t")).unwrap();
    // What is damaged in the parent must not be called right by its child.
    let path = test.file("t", "memory");
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    crate::damage::overwrite(&path, 33 * MIB, b"!");
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(modified).unwrap();

    drop(child(&test.store, &parent, "u", &writes(&[(7, 7)])).unwrap());

    let report = test.store.verify(&name("u")).unwrap();
    assert_eq!(report.problems.len(), 1, "{report:?}");
    assert_eq!(report.problems[0].offset, Some(32 * MIB));
    assert_eq!(report.problems[0].file, test.file("u", "memory-1"));
}

#[test]
fn memory_that_was_given_back_or_added_is_zero() {
    let test = TestStore::with_template();
    let parent = test.store.acquire(&name("t")).unwrap();
    let changes = Changes {
        written: vec![((MEMORY_BYTES + 4 * MIB) / PAGE, 9)],
        replaced: vec![32 * MIB..34 * MIB, MEMORY_BYTES..MEMORY_BYTES + 16 * MIB],
        length: MEMORY_BYTES + 16 * MIB,
    };
    let expected = content_of(&parent, &changes);

    let (grown, _) = child(&test.store, &parent, "u", &changes).unwrap();
    let (second, start) = child(&test.store, &grown, "v", &writes(&[(3, 3)])).unwrap();

    assert!(bytes_of(&grown) == expected);
    assert!(is_layer(&start, 3), "{start:?}");
    let bytes = bytes_of(&second);
    assert_eq!(bytes[12288], 3);
    assert!(bytes[16384..] == expected[16384..]);
    for template in ["u", "v"] {
        assert!(test.store.verify(&name(template)).unwrap().is_whole());
    }
}

#[test]
fn a_template_that_would_be_too_deep_starts_with_a_copy() {
    let test = TestStore::with_template();
    let mut parent = test.store.acquire(&name("t")).unwrap();
    for generation in 1..MAX_LAYERS as u64 {
        let id = format!("g{generation}");
        let changes = writes(&[(generation, 1), (500, u8::try_from(generation).unwrap())]);
        (parent, _) = child(&test.store, &parent, &id, &changes).unwrap();
    }
    assert_eq!(parent.memory().count(), MAX_LAYERS);
    let changes = Changes {
        written: vec![(500, 0), (501, 1)],
        replaced: std::iter::once(32 * MIB..34 * MIB).collect(),
        length: MEMORY_BYTES + 4 * MIB,
    };
    let expected = content_of(&parent, &changes);

    let (flat, start) = child(&test.store, &parent, "flat", &changes).unwrap();
    let (above, next) = child(&test.store, &flat, "above", &writes(&[(1, 9)])).unwrap();

    assert!(matches!(start, Start::Copy(CopyReason::Deep)), "{start:?}");
    assert_eq!(flat.memory().count(), 1);
    assert!(bytes_of(&flat) == expected);
    assert!(is_layer(&next, 2), "{next:?}");
    assert_eq!(bytes_of(&above)[4096], 9);
    assert!(test.store.verify(&name("flat")).unwrap().is_whole());
    assert_eq!(entries(flat.path()), crate::support::FILES);
}

#[test]
fn where_files_cannot_be_linked_they_are_copied() {
    if !is_root() {
        eprintln!("not run: only root can mount another file system");
        return;
    }
    let test = TestStore::with_template();
    let elsewhere = Tmpfs::new(64 << 20);
    let other = Store::open(elsewhere.path()).unwrap();
    let parent = test.store.acquire(&name("t")).unwrap();
    let changes = writes(&[(7, 7), (0, 0)]);
    let expected = content_of(&parent, &changes);

    let (copy, start) = child(&other, &parent, "u", &changes).unwrap();

    assert!(
        matches!(start, Start::Copy(CopyReason::NoLinks(_))),
        "{start:?}"
    );
    assert!(bytes_of(&copy) == expected);
    assert_eq!(entries(copy.path()), crate::support::FILES);
}

#[test]
fn a_parent_whose_files_were_removed_under_a_clone_is_copied() {
    let test = TestStore::with_template();
    let parent = test.store.acquire(&name("t")).unwrap();
    let expected = content_of(&parent, &writes(&[(7, 7)]));
    fs::remove_dir_all(parent.path()).unwrap();

    let (copy, start) = child(&test.store, &parent, "u", &writes(&[(7, 7)])).unwrap();

    assert!(
        matches!(start, Start::Copy(CopyReason::NoLinks(_))),
        "{start:?}"
    );
    assert!(bytes_of(&copy) == expected);
    assert!(test.store.verify(&name("u")).unwrap().is_whole());
}

#[test]
fn kill_in_a_snapshot_leaves_nothing_and_the_parent_whole() {
    let test = with_child();
    let mut other = Other::start("stop in snapshot", &test.root);
    other.wait_for("linked");
    assert_eq!(fs::metadata(test.file("t", "memory")).unwrap().nlink(), 3);
    other.kill();
    assert_eq!(test.entries(), [".v.creating", "t", "u"]);

    test.store.sweep().unwrap();

    assert_eq!(test.entries(), ["t", "u"]);
    assert_eq!(fs::metadata(test.file("t", "memory")).unwrap().nlink(), 2);
    for template in ["t", "u"] {
        assert!(test.store.verify(&name(template)).unwrap().is_whole());
    }
}

#[test]
fn kill_at_30_moments_of_snapshot_and_flatten_leaves_whole_templates() {
    let test = TestStore::with_template();
    for moment in 0..30_u32 {
        let mut other = Other::start("churn layers", &test.root);
        other.wait_for("round");
        // A moment somewhere in the round: what matters is that it is not always the same one.
        (0..moment * 40_000).for_each(|turn| {
            std::hint::black_box(turn);
        });
        other.kill();

        let list = test.store.list().unwrap();

        let shown = test.entries();
        assert!(
            shown
                .iter()
                .all(|entry| ["t", "u"].contains(&entry.as_str())),
            "{shown:?}"
        );
        for entry in &list {
            entry.manifest.as_ref().unwrap();
            assert!(test.store.verify(&entry.name).unwrap().is_whole());
        }
        if list.len() == 2 {
            let bytes = bytes_of(&test.store.acquire(&name("u")).unwrap());
            assert_eq!((bytes[7 * 4096], bytes[0], bytes[4096]), (7, 1, 1));
            test.store.delete(&name("u")).unwrap();
        }
        assert_eq!(fs::metadata(test.file("t", "memory")).unwrap().nlink(), 1);
    }
}

#[test]
fn copied_store_is_accepted_by_its_content_and_gets_its_times_back() {
    let test = with_child();
    let copy = Store::open(&test.root.with_file_name("copy")).unwrap();
    for template in ["t", "u"] {
        let target = copy.path().join(template);
        fs::create_dir(&target).unwrap();
        for file in entries(&test.store.path().join(template)) {
            fs::copy(test.file(template, &file), target.join(&file)).unwrap();
        }
    }

    let before = copy.acquire(&name("u")).unwrap().memory_check();
    let report = copy.verify(&name("u")).unwrap();
    let after = copy.acquire(&name("u")).unwrap().memory_check();

    assert_eq!(before, MemoryCheck::Content);
    assert!(report.is_whole() && report.restamped, "{report:?}");
    assert_eq!(after, MemoryCheck::Stamp);
    // Nothing is shared any more, so nothing stays.
    copy.delete(&name("t")).unwrap();
}

#[test]
fn names_of_layers_are_those_in_the_documentation() {
    let names: Vec<_> = Layer::all(3).map(Layer::file_name).collect();
    assert_eq!(names, ["memory", "memory-1", "memory-2"]);
    assert_eq!(LAYERS_NAME, "layers");
}
