//! Deleting templates that others were made from.

use std::fs;

use snapshot::StoreError;

use crate::layers::{bytes_of, child, with_child, writes};
use crate::support::name;

#[test]
fn a_parent_with_children_is_deleted_only_when_told_so() {
    let test = with_child();
    let child_content = bytes_of(&test.store.acquire(&name("u")).unwrap());

    let refused = test.store.delete(&name("t")).unwrap_err();
    let family = test.store.family(&name("t")).unwrap();

    let allocated = test
        .store
        .inspect(&name("t"))
        .unwrap()
        .files
        .memory
        .allocated;
    assert!(
        matches!(&refused, StoreError::HasChildren { children, kept_bytes, .. }
            if *children == [name("u")] && *kept_bytes == allocated),
        "{refused}"
    );
    let text = refused.to_string();
    for part in ["u", "--force", &allocated.to_string()] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(family.children, [name("u")]);
    assert!(test.store.family(&name("u")).unwrap().children.is_empty());
    test.store.delete_from_family(&name("t")).unwrap();
    assert_eq!(test.entries(), ["u"]);
    assert!(bytes_of(&test.store.acquire(&name("u")).unwrap()) == child_content);
    test.store.delete(&name("u")).unwrap();
}

#[test]
fn grandchildren_need_the_first_too_and_its_bytes_are_told_with_the_last_that_goes() {
    let test = with_child();
    let parent = test.store.acquire(&name("u")).unwrap();
    drop(child(&test.store, &parent, "v", &writes(&[(9, 9)])).unwrap());
    drop(parent);
    let allocated = |template: &str| {
        let manifest = test.store.inspect(&name(template)).unwrap();
        manifest.files.memory.allocated
    };
    let (first, second) = (allocated("t"), allocated("u"));

    let both = test.store.family(&name("t")).unwrap();
    let one = test.store.family(&name("u")).unwrap();
    test.store.delete_from_family(&name("t")).unwrap();
    let then = test.store.family(&name("u")).unwrap();

    assert_eq!(both.children, [name("u"), name("v")]);
    assert_eq!(one.children, [name("v")]);
    // The first one's file stays for itself as long as it is there.
    assert_eq!(both.kept_bytes, first);
    assert_eq!(one.kept_bytes, second);
    assert_eq!(then.kept_bytes, first + second);
}

#[test]
fn a_family_is_found_although_manifests_are_damaged() {
    let test = with_child();
    for template in ["t", "u"] {
        let path = test.file(template, "manifest.json");
        fs::remove_file(&path).unwrap();
        fs::write(&path, "{}").unwrap();
    }

    let refused = test.store.delete(&name("t")).unwrap_err();

    assert!(
        matches!(refused, StoreError::HasChildren { .. }),
        "{refused}"
    );
    test.store.delete(&name("u")).unwrap();
    test.store.delete(&name("t")).unwrap();
}
