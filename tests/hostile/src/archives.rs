//! Target `archives`: tar streams that a hostile guest sends for files of its own.

use crate::input::actions;
use crate::machine::must;
use arbitrary::Arbitrary;
use archive::{Layout, Rules, unpack};
use std::fs;
use tar::{Builder, EntryType, Header};

/// Few names, so that they meet.
const NAMES: [&str; 12] = [
    "a",
    "b",
    "a/b",
    "a/../b",
    "../mine",
    "/mine",
    ".",
    "..",
    "",
    "a/b/c",
    "./a/",
    "b/../../mine/f",
];
const KINDS: [EntryType; 10] = [
    EntryType::Regular,
    EntryType::Directory,
    EntryType::Symlink,
    EntryType::Link,
    EntryType::GNULongName,
    EntryType::GNULongLink,
    EntryType::XHeader,
    EntryType::GNUSparse,
    EntryType::Fifo,
    EntryType::Continuous,
];
const MINE: &[u8] = b"not to be touched";

#[derive(Debug, Arbitrary)]
enum Part<'a> {
    /// An entry: its kind, name and link by number, and what is in it.
    Entry(u8, u8, u8, &'a [u8]),
    /// An entry whose header says something else about its size.
    Size(u8, u8, u64, &'a [u8]),
    /// The bytes themselves.
    Bytes(&'a [u8]),
}

impl Part<'_> {
    fn write(&self, stream: &mut Vec<u8>) {
        let (kind, name, link, size, contents) = match *self {
            Self::Entry(kind, name, link, contents) => {
                (kind, name, link, contents.len() as u64, contents)
            }
            Self::Size(kind, name, size, contents) => (kind, name, 0, size, contents),
            Self::Bytes(bytes) => return stream.extend_from_slice(bytes),
        };
        let mut header = Header::new_gnu();
        header.set_entry_type(one_of(&KINDS, kind));
        header.set_size(size);
        header.set_mode(0o4755);
        let old = header.as_old_mut();
        for (field, text) in [(&mut old.name, name), (&mut old.linkname, link)] {
            let text = one_of(&NAMES, text);
            field[..text.len()].copy_from_slice(text.as_bytes());
        }
        header.set_cksum();
        let mut builder = Builder::new(stream);
        must(builder.append(&header, contents));
        // Without the end that it would write.
        std::mem::forget(builder);
    }
}

fn one_of<T: Copy>(list: &[T], number: u8) -> T {
    list[usize::from(number) % list.len()]
}

/// Unpacks in both ways, and looks at what is beside the destination.
pub fn run(bytes: &[u8]) {
    let mut stream = Vec::new();
    for part in actions::<Part<'_>>(bytes) {
        part.write(&mut stream);
    }
    for layout in [Layout::Root, Layout::Names] {
        let scratch = must(tempfile::tempdir());
        let (to, mine) = (scratch.path().join("to"), scratch.path().join("mine"));
        must(fs::create_dir(&to));
        must(fs::create_dir(&mine));
        must(fs::write(mine.join("f"), MINE));
        must(std::os::unix::fs::symlink("../mine", to.join("b")));
        // It may be refused; what counts is what it did.
        let result = unpack(&stream[..], &to, layout, Rules::default(), &mut |_| ());
        drop(result);
        assert_eq!(must(fs::read(mine.join("f"))), MINE);
        assert_eq!(
            must(fs::read_dir(&mine)).count(),
            1,
            "something new in {mine:?}"
        );
        assert_eq!(must(fs::read_dir(scratch.path())).count(), 2);
    }
}
