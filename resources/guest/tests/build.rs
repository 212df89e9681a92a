//! Whole builds, of a small made-up kernel.

#![expect(
    clippy::unwrap_used,
    reason = "a test helper may panic as its test may"
)]

mod fake;
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use fake::VERSION;
use guest::{BuildOptions, GuestManifest, Step, build};
use support::{Rig, entries, module_order, names, options, run};

#[test]
fn package_image_and_modules_directory_give_the_same_guest() {
    let rig = Rig::new();
    let package = rig.file("linux-image.deb", &fake::package());
    let mut results = Vec::new();
    for kernel in [package, rig.image(), rig.modules()] {
        let guest = run(&options(&kernel, &rig.output())).unwrap();
        assert_eq!(guest.manifest.kernel_version, VERSION);
        results.push((
            fs::read(&guest.initrd).unwrap(),
            fs::read(&guest.vmlinux).unwrap(),
        ));
        let expected = [
            "virtio_ring",
            "virtio",
            "virtio_mmio",
            "vsock",
            "vmw_vsock_virtio_transport",
            "virtio_mem",
            "virtio_rng",
            "virtio_balloon",
            "virtio_net",
        ];
        assert_eq!(module_order(&guest), expected);
    }
    assert!(results.iter().all(|result| *result == results[0]));
    assert_eq!(results[0].1, fake::elf(2));
    assert_eq!(names(&rig.path("out")), ["guest"]);
}

#[test]
fn initramfs_has_what_the_agent_expects() {
    let rig = Rig::new();
    let guest = run(&rig.options()).unwrap();
    let entries = entries(&guest.initrd);
    let text = |path: &str| String::from_utf8(entries[path].1.clone()).unwrap();
    assert_eq!(entries["init"].0, 0o100_755);
    assert!(!entries["init"].1.is_empty());
    assert_eq!(entries["dev/console"].0, 0o020_600);
    assert_eq!(text("etc/machine-id"), "");
    let list = text("etc/minivmm/modules");
    assert_eq!(list.lines().count(), 9);
    for path in list.lines() {
        let (mode, content) = &entries[path.strip_prefix('/').unwrap()];
        assert_eq!(*mode, 0o100_644);
        // Also those that are compressed in the package.
        assert!(
            content.starts_with(b"\x7fELF") && path.ends_with(".ko"),
            "{path}"
        );
    }
}

#[test]
fn manifest_can_be_read_and_matches_the_files() {
    let rig = Rig::new();
    let guest = run(&rig.options()).unwrap();
    let json = fs::read(guest.directory.join("guest.json")).unwrap();
    let manifest: GuestManifest = serde_json::from_slice(&json).unwrap();
    assert_eq!(manifest, guest.manifest);
    for file in &manifest.files {
        let metadata = fs::metadata(guest.directory.join(&file.name)).unwrap();
        assert_eq!(file.size_bytes, metadata.len());
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    }
    let roles: Vec<_> = manifest
        .sources
        .iter()
        .map(|source| source.role.as_str())
        .collect();
    assert_eq!(roles, ["kernel", "agent"]);
}

#[test]
fn steps_are_told_in_order() {
    let rig = Rig::new();
    let mut steps = Vec::new();
    build(&rig.options(), &mut |step| steps.push(step)).unwrap();
    let expected = [
        Step::ReadKernel(rig.image()),
        Step::ExtractKernel(VERSION.to_owned()),
        Step::WriteInitramfs(9),
        Step::Publish(rig.output()),
    ];
    assert_eq!(steps, expected);
}

#[test]
fn extra_module_brings_its_dependencies_from_a_second_reading() {
    let rig = Rig::new();
    let package = rig.file("linux-image.deb", &fake::package());
    let extra_modules = vec!["far".to_owned()];
    let guest = run(&BuildOptions {
        extra_modules,
        ..options(&package, &rig.output())
    })
    .unwrap();
    assert_eq!(module_order(&guest)[9..], ["near", "far"]);
}

#[test]
fn overlay_replaces_and_adds() {
    let rig = Rig::new();
    fs::create_dir_all(rig.path("overlay/etc")).unwrap();
    rig.file("overlay/etc/hostname", b"mine\n");
    rig.file("overlay/hello", b"#!/bin/sh\n");
    let overlay = Some(rig.path("overlay"));
    let guest = run(&BuildOptions {
        overlay,
        ..rig.options()
    })
    .unwrap();
    let entries = entries(&guest.initrd);
    assert_eq!(entries["etc/hostname"].1, b"mine\n");
    assert_eq!(entries["hello"].1, b"#!/bin/sh\n");
    assert!(entries.contains_key("etc/passwd"));
}

#[test]
fn busybox_comes_with_its_commands() {
    let busybox = Path::new("/bin/busybox");
    if !busybox.exists() {
        eprintln!("skipped: no {}", busybox.display());
        return;
    }
    let rig = Rig::new();
    let guest = run(&BuildOptions {
        busybox: Some(busybox.to_owned()),
        ..rig.options()
    })
    .unwrap();
    let entries = entries(&guest.initrd);
    assert_eq!(entries["bin/sh"], (0o120_777, b"/bin/busybox".to_vec()));
    assert_eq!(entries["bin/busybox"].0, 0o100_755);
}
