//! Trees that are packed and unpacked.

#![expect(
    clippy::unwrap_used,
    reason = "a test helper may panic as its test may"
)]

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use archive::{Error, Layout, Rules, pack, unpack};
use tempfile::TempDir;

struct Scratch(TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The names in directory `name`.
    fn names(&self, name: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(name)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name());
        names.map(|name| name.into_string().unwrap()).collect()
    }
}

fn packed(source: &Path) -> Vec<u8> {
    let mut stream = Vec::new();
    pack(source, false, &mut stream, &mut |note| panic!("{note}")).unwrap();
    stream
}

fn unpacked(stream: &[u8], destination: &Path) -> Result<(), Error> {
    let rules = Rules::default();
    unpack(stream, destination, Layout::Root, rules, &mut |note| {
        panic!("{note}")
    })
}

fn copy(source: &Path, destination: &Path) -> Result<(), Error> {
    unpacked(&packed(source), destination)
}

#[test]
fn tree_is_copied_with_its_attributes() {
    let scratch = Scratch::new();
    let from = scratch.path("from");
    let long = "n".repeat(200);
    fs::create_dir_all(from.join("sub/empty")).unwrap();
    fs::write(from.join("sub/file"), "text").unwrap();
    fs::write(from.join(&long), "long").unwrap();
    fs::hard_link(from.join("sub/file"), from.join("twin")).unwrap();
    symlink("/does/not/exist", from.join("sub/link")).unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let file = fs::File::options()
        .write(true)
        .open(from.join("sub/file"))
        .unwrap();
    file.set_modified(time).unwrap();
    fs::set_permissions(from.join("sub/file"), PermissionsExt::from_mode(0o640)).unwrap();
    // It may not be written to, but what is in it has to get there.
    fs::set_permissions(from.join("sub"), PermissionsExt::from_mode(0o555)).unwrap();

    let to = scratch.path("to");
    copy(&from, &to).unwrap();
    assert_eq!(fs::read_to_string(to.join("sub/file")).unwrap(), "text");
    assert_eq!(fs::read_to_string(to.join(long)).unwrap(), "long");
    assert_eq!(
        fs::read_link(to.join("sub/link")).unwrap(),
        Path::new("/does/not/exist")
    );
    let metadata = fs::metadata(to.join("sub/file")).unwrap();
    assert_eq!(metadata.modified().unwrap(), time);
    assert_eq!(metadata.mode() & 0o7777, 0o640);
    assert_eq!(metadata.ino(), fs::metadata(to.join("twin")).unwrap().ino());
    assert_eq!(fs::metadata(to.join("sub")).unwrap().mode() & 0o7777, 0o555);
    // Once more, over what is there.
    copy(&from.join("."), &to).unwrap();
    assert_eq!(fs::read_to_string(to.join("twin")).unwrap(), "text");
}

#[test]
fn place_is_that_of_docker_cp() {
    let scratch = Scratch::new();
    fs::create_dir_all(scratch.path("from/sub")).unwrap();
    fs::write(scratch.path("from/sub/x"), "x").unwrap();
    for name in ["a", "b"] {
        fs::create_dir(scratch.path(name)).unwrap();
    }
    copy(&scratch.path("from/sub"), &scratch.path("a")).unwrap();
    copy(&scratch.path("from/sub/."), &scratch.path("b")).unwrap();
    copy(&scratch.path("from/sub"), &scratch.path("c")).unwrap();
    copy(&scratch.path("from/sub/."), &scratch.path("d")).unwrap();
    copy(&scratch.path("from/sub/x"), &scratch.path("a")).unwrap();
    copy(&scratch.path("from/sub/x"), &scratch.path("e")).unwrap();
    for name in ["a/sub/x", "b/x", "c/x", "d/x", "a/x", "e"] {
        assert_eq!(
            fs::read_to_string(scratch.path(name)).unwrap(),
            "x",
            "{name}"
        );
    }
    let onto_file = copy(&scratch.path("from/sub"), &scratch.path("e"));
    assert!(matches!(onto_file, Err(Error::NotADirectory { .. })));
    // A file in place of a directory of that name.
    fs::create_dir_all(scratch.path("f/x")).unwrap();
    let error = copy(&scratch.path("from/sub/x"), &scratch.path("f")).unwrap_err();
    assert!(error.to_string().contains("f/x"), "{error}");
    assert_eq!(scratch.names("f").len(), 1);
}

#[test]
fn links_are_copied_as_such_or_followed() {
    let scratch = Scratch::new();
    fs::write(scratch.path("file"), "text").unwrap();
    symlink("file", scratch.path("link")).unwrap();
    copy(&scratch.path("link"), &scratch.path("copy")).unwrap();
    assert_eq!(
        fs::read_link(scratch.path("copy")).unwrap(),
        Path::new("file")
    );
    let mut stream = Vec::new();
    pack(&scratch.path("link"), true, &mut stream, &mut |_| ()).unwrap();
    unpacked(&stream, &scratch.path("followed")).unwrap();
    assert!(
        fs::symlink_metadata(scratch.path("followed"))
            .unwrap()
            .is_file()
    );
}

#[test]
fn file_that_is_replaced_is_never_half_there() {
    let scratch = Scratch::new();
    fs::write(scratch.path("from"), vec![b'n'; 1_000_000]).unwrap();
    fs::write(scratch.path("to"), "old").unwrap();
    let stream = packed(&scratch.path("from"));
    for length in [700, 600_000, 999_999] {
        let error = unpacked(&stream[..length], &scratch.path("to")).unwrap_err();
        assert!(matches!(&error, Error::Read(error) if error.kind() == ErrorKind::UnexpectedEof));
        assert_eq!(fs::read_to_string(scratch.path("to")).unwrap(), "old");
        assert_eq!(scratch.names("").len(), 2);
    }
    unpacked(&stream, &scratch.path("to")).unwrap();
    assert_eq!(fs::metadata(scratch.path("to")).unwrap().len(), 1_000_000);
    assert_eq!(scratch.names("").len(), 2);
}

#[test]
fn files_of_every_size_and_with_holes_arrive_whole() {
    let scratch = Scratch::new();
    let pattern = |size: usize| -> Vec<u8> { (0..=250).cycle().take(size).collect() };
    for size in [
        0, 1, 511, 512, 513, 4096, 262_143, 262_144, 262_145, 1_000_000,
    ] {
        let bytes = pattern(size);
        fs::write(scratch.path("from"), &bytes).unwrap();
        copy(&scratch.path("from"), &scratch.path("to")).unwrap();
        assert!(fs::read(scratch.path("to")).unwrap() == bytes, "{size}");
    }
    let mut holes = vec![0; 4 << 20];
    holes[5_000] = 1;
    holes[2 << 20] = 2;
    fs::write(scratch.path("from"), &holes).unwrap();
    copy(&scratch.path("from"), &scratch.path("to")).unwrap();
    assert!(fs::read(scratch.path("to")).unwrap() == holes);
    let blocks = fs::metadata(scratch.path("to")).unwrap().blocks();
    assert!(blocks < 512, "{blocks}");
}

#[test]
fn files_of_the_kernel_have_their_contents() {
    let scratch = Scratch::new();
    copy(Path::new("/proc/self/limits"), &scratch.path("limits")).unwrap();
    let text = fs::read_to_string(scratch.path("limits")).unwrap();
    assert!(text.contains("Max open files"));
    copy(
        Path::new("/sys/kernel/mm/transparent_hugepage/enabled"),
        &scratch.path("thp"),
    )
    .unwrap();
    assert!(fs::metadata(scratch.path("thp")).unwrap().len() < 100);
}

#[test]
fn what_is_no_file_is_named_and_left_out() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("from")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(scratch.path("from/socket")).unwrap();
    let mut notes = Vec::new();
    let mut stream = Vec::new();
    pack(&scratch.path("from"), false, &mut stream, &mut |note| {
        notes.push(note);
    })
    .unwrap();
    assert!(
        notes.len() == 1 && notes[0].contains("socket is left out"),
        "{notes:?}"
    );
    unpacked(&stream, &scratch.path("to")).unwrap();
    assert_eq!(fs::read_dir(scratch.path("to")).unwrap().count(), 0);
}

#[test]
fn missing_source_is_named() {
    let error = pack(Path::new("/no/such"), false, Vec::new(), &mut |_| ()).unwrap_err();
    assert!(error.to_string().contains("/no/such"), "{error}");
}
