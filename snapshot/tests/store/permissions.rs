//! Who may read a store, and stores that may only be read.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use snapshot::{Store, StoreError};

use crate::child::Other;
use crate::support::{FILES, MEMORY_BYTES, TestStore, Tmpfs, alone, is_root, make, name};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn assert_private(root: &Path) {
    let template = root.join("templates/t");
    for dir in [
        root,
        root.parent().unwrap(),
        &root.join("templates"),
        &template,
    ] {
        assert_eq!(mode(dir), 0o700, "{}", dir.display());
    }
    for file in FILES {
        assert_eq!(mode(&template.join(file)), 0o400, "{file}");
    }
}

#[test]
fn files_are_private_whatever_the_umask_is() {
    let _alone = alone();
    for umask in ["000", "022"] {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("new/store");

        Other::start(&format!("make with umask {umask}"), &root).finish();

        assert_private(&root);
    }
}

#[test]
fn pending_files_are_private_too() {
    let test = TestStore::new();

    let pending = test.store.create(&name("t"), MEMORY_BYTES).unwrap();

    let path = pending.memory_path();
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
}

#[test]
fn store_that_everybody_can_write_to_is_refused() {
    for below in ["", "templates"] {
        let test = TestStore::new();
        let path = test.root.join(below);
        fs::set_permissions(&path, Permissions::from_mode(0o1777)).unwrap();

        let error = Store::open(&test.root).unwrap_err();

        assert!(
            matches!(error, StoreError::WorldWritable { mode: 0o1777, .. }),
            "{error}"
        );
    }
}

#[test]
fn store_that_is_a_file_is_refused() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    fs::write(&path, "").unwrap();

    let error = Store::open(&path).unwrap_err();

    assert!(error.to_string().ends_with("is not a directory"), "{error}");
}

#[test]
fn store_on_a_read_only_mount_can_be_used() {
    let _alone = alone();
    if !is_root() {
        eprintln!("not run: only root can mount");
        return;
    }
    let tmpfs = Tmpfs::new(32 << 20);
    let root = tmpfs.path().join("store");
    drop(make(&Store::open(&root).unwrap(), "t").unwrap());
    tmpfs.make_read_only();

    Other::start("read", &root).finish();
}

#[test]
fn store_of_a_user_without_write_permission_can_be_used() {
    let test = TestStore::with_template();
    let template = test.store.path().join("t");
    let dirs = [template.as_path(), test.store.path(), &test.root];
    for dir in dirs {
        fs::set_permissions(dir, Permissions::from_mode(0o500)).unwrap();
    }

    if is_root() {
        // Root is not stopped by permissions, so somebody else reads.
        fs::set_permissions(test.root.parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
        let files: Vec<_> = FILES.iter().map(|file| template.join(file)).collect();
        for path in dirs.into_iter().chain(files.iter().map(AsRef::as_ref)) {
            chown(path, Some(65534), Some(65534)).unwrap();
        }
        Other::start_as_nobody("read", &test.root).finish();
    } else {
        Other::start("read", &test.root).finish();
    }

    for dir in dirs {
        fs::set_permissions(dir, Permissions::from_mode(0o700)).unwrap();
    }
}

#[test]
fn other_users_make_templates_of_their_own() {
    let _alone = alone();
    if !is_root() {
        eprintln!("not run: every other test runs without root already");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    chown(&home, Some(65534), Some(65534)).unwrap();

    Other::start_as_nobody("make with umask 022", &home.join("new/store")).finish();

    assert_private(&home.join("new/store"));
}
