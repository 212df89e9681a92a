//! What cannot be built is named, and leaves nothing behind.

#![expect(
    clippy::unwrap_used,
    reason = "a test helper may panic as its test may"
)]

mod fake;
mod support;

use std::fs;
use std::path::Path;

use guest::BuildOptions;
use support::{Rig, failure, options};

#[test]
fn wrong_kernels_are_named() {
    let rig = Rig::new();
    let mut arm64 = vec![0; 64];
    arm64[0x38..0x3c].copy_from_slice(b"ARM\x64");
    let cases = [
        (rig.file("empty", b""), "is an empty file"),
        (
            rig.file("text", b"hello"),
            "is something else; expected a Debian linux-image package",
        ),
        (rig.file("arm64", &arm64), "is a kernel for arm64"),
        (rig.file("elf", &fake::elf(2)), "is an ELF file"),
        (rig.path("root"), "is a directory without kernel/"),
        (rig.path("none"), "No such file"),
    ];
    for (kernel, words) in cases {
        let message = failure(&options(&kernel, &rig.output()));
        let name = kernel.display().to_string();
        assert!(
            message.contains(&name) && message.contains(words),
            "{message}"
        );
    }
}

#[test]
fn wrong_packages_are_named() {
    let rig = Rig::new();
    let readme = [("usr/share/doc/readme".to_owned(), b"x".to_vec())];
    let package = fake::package();
    let cases = [
        (
            fake::deb(&[("debian-binary", b"2.0\n".to_vec())]),
            "has no data.tar",
        ),
        (
            fake::deb(&[("data.tar", fake::tar(&readme))]),
            "has no boot/vmlinuz-VERSION",
        ),
        (
            fake::deb(&[("data.tar.bz2", b"BZh9xxxx".to_vec())]),
            "bzip2 compression",
        ),
        (package[..package.len() / 2].to_vec(), "data.tar.gz has"),
    ];
    for (content, words) in cases {
        let kernel = rig.file("wrong.deb", &content);
        let message = failure(&options(&kernel, &rig.output()));
        assert!(
            message.contains("wrong.deb") && message.contains(words),
            "{message}"
        );
    }
}

#[test]
fn cut_image_is_named() {
    let rig = Rig::new();
    let image = fake::bzimage();
    fs::write(rig.image(), &image[..image.len() - 8]).unwrap();
    let message = failure(&rig.options());
    assert!(message.contains("it is cut off"), "{message}");
}

#[test]
fn missing_dependency_is_named_with_what_was_searched() {
    let rig = Rig::new();
    fs::remove_file(rig.modules().join("kernel/net/vsock.ko")).unwrap();
    let message = failure(&rig.options());
    let expected = [
        "no module vsock, which vmw_vsock_virtio_transport needs",
        "2 names",
        "10 modules",
        &rig.modules().display().to_string(),
    ];
    for words in expected {
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn missing_module_that_was_asked_for_is_named() {
    let rig = Rig::new();
    let options = BuildOptions {
        extra_modules: vec!["no-such".into()],
        ..rig.options()
    };
    assert!(
        failure(&options).contains("no module no_such:"),
        "{}",
        failure(&options)
    );
}

#[test]
fn missing_modules_directory_is_named() {
    let rig = Rig::new();
    fs::remove_dir_all(rig.path("root/lib")).unwrap();
    let message = failure(&rig.options());
    assert!(
        message.contains("--modules") && message.contains("lib/modules"),
        "{message}"
    );
}

#[test]
fn modules_without_a_kernel_are_named_with_what_was_searched() {
    let rig = Rig::new();
    fs::remove_file(rig.image()).unwrap();
    let message = failure(&options(&rig.modules(), &rig.output()));
    assert!(message.contains("No kernel for the modules"), "{message}");
    assert!(
        message.contains(&rig.image().display().to_string()),
        "{message}"
    );
}

#[test]
fn agent_that_cannot_run_in_the_guest_is_named() {
    let rig = Rig::new();
    let script = rig.file("agent.sh", b"#!/bin/sh\n");
    let message = |agent: &Path| {
        failure(&BuildOptions {
            agent: agent.to_owned(),
            ..rig.options()
        })
    };
    assert!(message(&script).contains("not a 64-bit ELF file"));
    assert!(message(Path::new("/bin/ls")).contains("needs a dynamic loader"));
    assert!(message(Path::new("/no/agent")).contains("/no/agent"));
}
