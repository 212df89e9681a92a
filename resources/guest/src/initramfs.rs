//! Lays out the guest's root file system.

use std::fs;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::manifest::{SourceRecord, hex};
use crate::modules::Module;
use crate::rootfs::ImageConfig;
use crate::tree::{Kind, Node, Tree};
use crate::{BuildOptions, archive, busybox, elf};

/// The agent loads what this file lists, in this order.
const MODULE_LIST: &str = "etc/minivmm/modules";

/// How the image of the root file system wants its programs to be run, for the agent.
const IMAGE: &str = "etc/minivmm/image";

/// Directories that are mounted over or that programs expect.
const DIRECTORIES: [(&str, u32); 12] = [
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("mnt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sbin", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr/bin", 0o755),
    ("var", 0o755),
];

const FILES: [(&str, &str); 5] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    ),
    ("etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
    ("etc/hostname", "minivmm\n"),
    (
        "etc/os-release",
        "ID=minivmm\nNAME=minivmm\nPRETTY_NAME=\"minivmm guest\"\n",
    ),
    // Empty means that the agent fills it in.
    ("etc/machine-id", ""),
];

/// The kernel opens the first for PID 1 before anything is mounted.
const DEVICES: [(&str, u32, (u32, u32)); 2] =
    [("dev/console", 0o600, (5, 1)), ("dev/null", 0o666, (1, 3))];

/// The root file system and what it was made from.
#[derive(Debug)]
pub struct Initramfs {
    tree: Tree,
    /// The programs that were put in.
    pub sources: Vec<SourceRecord>,
}

impl Initramfs {
    /// Puts agent, modules, busybox and overlay together; later ones replace earlier ones.
    pub fn assemble(
        options: &BuildOptions,
        version: &str,
        modules: &[Module],
        image: Option<&ImageConfig>,
    ) -> Result<Self, Error> {
        let mut initramfs = Self {
            tree: Tree::default(),
            sources: Vec::new(),
        };
        initramfs.add_base()?;
        initramfs.add_program("agent", &options.agent, "init")?;
        initramfs.add_modules(version, modules)?;
        if let Some(busybox) = &options.busybox {
            initramfs.add_busybox(busybox)?;
        }
        if let Some(overlay) = &options.overlay {
            initramfs.tree.overlay(overlay)?;
        }
        if let Some(image) = image {
            initramfs.tree.file(IMAGE, 0o644, image.to_records())?;
        }
        Ok(initramfs)
    }

    /// The archive for the kernel.
    pub fn to_archive(&self) -> Result<Vec<u8>, Error> {
        archive::write(&self.tree)
    }

    fn add_base(&mut self) -> Result<(), Error> {
        for (path, permissions) in DIRECTORIES {
            self.tree.directory(path, permissions)?;
        }
        for (path, content) in FILES {
            self.tree.file(path, 0o644, content)?;
        }
        for (path, permissions, (major, minor)) in DEVICES {
            let kind = Kind::CharacterDevice(major, minor);
            self.tree.insert(path, Node { permissions, kind })?;
        }
        Ok(())
    }

    fn add_program(&mut self, role: &str, source: &Path, path: &str) -> Result<(), Error> {
        let program = fs::read(source).map_err(Error::file("read", source))?;
        elf::check_static_program(&program).map_err(|problem| Error::Program {
            path: source.to_owned(),
            problem,
        })?;
        self.sources.push(SourceRecord {
            role: role.to_owned(),
            path: source.display().to_string(),
            sha256: hex(&Sha256::digest(&program)),
        });
        self.tree.file(path, 0o755, elf::strip(&program))
    }

    fn add_modules(&mut self, version: &str, modules: &[Module]) -> Result<(), Error> {
        let mut list = String::new();
        for module in modules {
            let path = format!("lib/modules/{version}/{}", module.file);
            list.push_str(&format!("/{path}\n"));
            self.tree.file(&path, 0o644, module.data.clone())?;
        }
        self.tree.file(MODULE_LIST, 0o644, list)
    }

    fn add_busybox(&mut self, source: &Path) -> Result<(), Error> {
        self.add_program("busybox", source, "bin/busybox")?;
        for applet in busybox::applets(source)? {
            if applet != "bin/busybox" && applet != "linuxrc" {
                self.tree.symlink(&applet, "/bin/busybox")?;
            }
        }
        Ok(())
    }
}
