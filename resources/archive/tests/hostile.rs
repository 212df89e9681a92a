//! Streams that want to leave the destination, or to break what reads them.

#![expect(
    clippy::unwrap_used,
    reason = "a test helper may panic as its test may"
)]

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use archive::{Error, Layout, Rules, unpack};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

/// A destination beside something that must not be touched.
struct Rig {
    scratch: TempDir,
    stream: Builder<Vec<u8>>,
}

impl Rig {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        fs::create_dir(scratch.path().join("to")).unwrap();
        fs::create_dir(scratch.path().join("outside")).unwrap();
        fs::write(scratch.path().join("outside/file"), "mine").unwrap();
        Self {
            scratch,
            stream: Builder::new(Vec::new()),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Adds an entry with its name and link as they are.
    fn add(&mut self, kind: EntryType, name: &str, link: &str, contents: &[u8]) -> &mut Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o6755);
        header.set_size(contents.len() as u64);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.stream.append(&header, contents).unwrap();
        self
    }

    fn file(&mut self, name: &str) -> &mut Self {
        self.add(EntryType::Regular, name, "", b"theirs")
    }

    fn link(&mut self, name: &str, target: &str) -> &mut Self {
        self.add(EntryType::Symlink, name, target, b"")
    }

    fn unpack(&mut self, layout: Layout) -> Result<(), Error> {
        let builder = std::mem::replace(&mut self.stream, Builder::new(Vec::new()));
        let stream = builder.into_inner().unwrap();
        let to = self.path("to");
        let result = unpack(&stream[..], &to, layout, Rules::default(), &mut |_| ());
        assert_eq!(
            fs::read_to_string(self.path("outside/file")).unwrap(),
            "mine"
        );
        assert_eq!(fs::read_dir(self.path("outside")).unwrap().count(), 1);
        assert_eq!(fs::read_dir(self.scratch.path()).unwrap().count(), 2);
        result
    }

    #[track_caller]
    fn assert_refused(&mut self) {
        for layout in [Layout::Names, Layout::Root] {
            let entries = self.stream.get_ref().clone();
            assert!(self.unpack(layout).is_err(), "{layout:?}");
            *self.stream.get_mut() = entries;
        }
        self.stream = Builder::new(Vec::new());
    }
}

#[test]
fn names_that_lead_out_are_refused() {
    for name in [
        "../outside/file",
        "/tmp/minivmm-file",
        "a/../../outside/x",
        "..",
        "./../x",
    ] {
        Rig::new().file(name).assert_refused();
        Rig::new()
            .add(EntryType::Directory, name, "", b"")
            .assert_refused();
        Rig::new().link(name, "x").assert_refused();
    }
}

#[test]
fn links_of_the_stream_are_not_followed_out() {
    let outside = Rig::new();
    let absolute = outside.path("outside");
    for target in [
        "../outside",
        absolute.to_str().unwrap(),
        "/",
        "a/../../outside",
    ] {
        let mut rig = Rig::new();
        rig.link("d", target).file("d/file");
        assert!(rig.unpack(Layout::Names).is_err(), "{target}");
        let mut rig = Rig::new();
        rig.link("d", target)
            .add(EntryType::Directory, "d/new", "", b"");
        assert!(rig.unpack(Layout::Names).is_err(), "{target}");
    }
    // Over the link itself: it is replaced.
    let mut rig = Rig::new();
    rig.link("f", "../outside/file")
        .file("f")
        .unpack(Layout::Names)
        .unwrap();
    assert!(fs::symlink_metadata(rig.path("to/f")).unwrap().is_file());
}

#[test]
fn links_in_the_destination_are_not_followed_out() {
    let mut rig = Rig::new();
    symlink("../outside", rig.path("to/d")).unwrap();
    assert!(matches!(
        rig.file("d/file").unpack(Layout::Names),
        Err(Error::Escapes { .. })
    ));
    symlink("../outside/file", rig.path("to/f")).unwrap();
    rig.file("f").unpack(Layout::Names).unwrap();
}

#[test]
fn hard_links_reach_nothing_outside() {
    for target in ["../outside/file", "/etc/passwd", "d/file"] {
        let mut rig = Rig::new();
        symlink("../outside", rig.path("to/d")).unwrap();
        rig.add(EntryType::Link, "x", target, b"");
        assert!(rig.unpack(Layout::Names).is_err(), "{target}");
    }
    // What a link in the stream leads to is linked as the link that it is, and writing replaces it.
    let mut rig = Rig::new();
    rig.link("l", "../outside/file")
        .add(EntryType::Link, "x", "l", b"")
        .file("x");
    rig.unpack(Layout::Names).unwrap();
}

#[test]
fn nothing_runs_as_its_owner_and_no_device_is_made() {
    let mut rig = Rig::new();
    rig.file("f")
        .add(EntryType::Char, "null", "", b"")
        .add(EntryType::Fifo, "p", "", b"");
    rig.unpack(Layout::Names).unwrap();
    assert_eq!(
        fs::metadata(rig.path("to/f")).unwrap().mode() & 0o7777,
        0o755
    );
    assert_eq!(fs::read_dir(rig.path("to")).unwrap().count(), 1);
}

#[test]
fn second_root_is_refused() {
    let mut rig = Rig::new();
    rig.file("a").file("b");
    assert!(matches!(rig.unpack(Layout::Root), Err(Error::Refused(_))));
}

/// Zeros without an end.
struct Endless;

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        buffer.fill(0);
        Ok(buffer.len())
    }
}

#[test]
fn endless_names_are_given_up() {
    for kind in [
        EntryType::GNULongName,
        EntryType::GNULongLink,
        EntryType::XHeader,
    ] {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(1 << 40);
        header.set_cksum();
        let rig = Rig::new();
        let stream = header.as_bytes().chain(Endless);
        let rules = Rules::default();
        let error = unpack(stream, &rig.path("to"), Layout::Names, rules, &mut |_| ()).unwrap_err();
        assert!(error.to_string().contains("headers"), "{error}");
    }
}

#[test]
fn what_is_no_archive_is_refused() {
    let rig = Rig::new();
    let to = rig.path("to");
    for bytes in [&b""[..], b"hello", &[7; 5000]] {
        let result = unpack(bytes, &to, Layout::Root, Rules::default(), &mut |_| ());
        assert!(matches!(result, Err(Error::Read(_))), "{bytes:?}");
    }
    let missing = unpack(
        &b""[..],
        Path::new("/no/such"),
        Layout::Names,
        Rules::default(),
        &mut |_| (),
    );
    assert!(matches!(missing, Err(Error::NoDirectory { .. })));
}
