//! Builds in a directory of their own, and a look at what came out.

#![allow(dead_code, reason = "each test file uses its own part of it")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use guest::{BuildOptions, BuiltGuest, Error, build};
use tempfile::TempDir;

use crate::fake::{self, VERSION};

pub fn options(kernel: &Path, output: &Path) -> BuildOptions {
    BuildOptions {
        kernel: kernel.to_owned(),
        modules: None,
        // This test is a static program, as an agent is.
        agent: std::env::current_exe().unwrap(),
        busybox: None,
        overlay: None,
        extra_modules: Vec::new(),
        root: None,
        output: output.to_owned(),
    }
}

pub fn run(options: &BuildOptions) -> Result<BuiltGuest, Error> {
    build(options, &mut |_| ())
}

/// The message of a build that must fail, and leave nothing behind.
pub fn failure(options: &BuildOptions) -> String {
    let parent = options.output.parent().unwrap();
    let before = names(parent);
    let error = run(options).unwrap_err();
    assert_eq!(names(parent), before, "left behind after: {error}");
    match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

pub fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Mode and content of every entry of a newc archive, by path.
pub fn entries(initrd: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    let archive = fs::read(initrd).unwrap();
    let mut rest = archive.as_slice();
    let mut entries = BTreeMap::new();
    loop {
        let mut reader = cpio::newc::Reader::new(rest).unwrap();
        if reader.entry().is_trailer() {
            return entries;
        }
        let mut content = Vec::new();
        reader.read_to_end(&mut content).unwrap();
        entries.insert(
            reader.entry().name().to_owned(),
            (reader.entry().mode(), content),
        );
        rest = reader.finish().unwrap();
    }
}

pub fn module_order(guest: &BuiltGuest) -> Vec<&str> {
    guest
        .manifest
        .modules
        .iter()
        .map(|module| module.name.as_str())
        .collect()
}

/// A made-up kernel installed below `root`, and an empty directory `out`.
pub struct Rig {
    directory: TempDir,
}

impl Rig {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fake::root(&directory.path().join("root"));
        fs::create_dir(directory.path().join("out")).unwrap();
        Self { directory }
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join(below)
    }

    pub fn image(&self) -> PathBuf {
        self.path(&format!("root/boot/vmlinuz-{VERSION}"))
    }

    pub fn modules(&self) -> PathBuf {
        self.path(&format!("root/lib/modules/{VERSION}"))
    }

    pub fn output(&self) -> PathBuf {
        self.path("out/guest")
    }

    pub fn options(&self) -> BuildOptions {
        options(&self.image(), &self.output())
    }

    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }
}
