//! Builds from Debian's packages, where `target/kernels` has them.

#![expect(
    clippy::unwrap_used,
    reason = "a test helper may panic as its test may"
)]

mod fake;
mod support;

use std::fs;
use std::path::{Path, PathBuf};

use support::{module_order, options, run};

const ALL_AS_MODULES: [&str; 9] = [
    "virtio_ring",
    "virtio",
    "virtio_mmio",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
    "virtio_mem",
    "pvpanic",
    "pvpanic_mmio",
];

fn package(name: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap();
    let path = root.join("target/kernels").join(format!("{name}.deb"));
    if !path.exists() {
        eprintln!("skipped: no {}", path.display());
        return None;
    }
    Some(path)
}

fn build(name: &str, expected_modules: &[&str]) {
    let Some(package) = package(name) else { return };
    let directory = tempfile::tempdir().unwrap();
    let guest = run(&options(&package, &directory.path().join("guest"))).unwrap();
    assert_eq!(module_order(&guest), expected_modules);
    let vmlinux = fs::read(&guest.vmlinux).unwrap();
    let banner = format!("Linux version {} ", guest.manifest.kernel_version);
    let banner = banner.as_bytes();
    assert!(vmlinux.windows(banner.len()).any(|window| window == banner));
}

#[test]
fn cloud_kernel_6_1_with_lz4() {
    build("linux-image-cloud-amd64", &ALL_AS_MODULES);
}

#[test]
fn cloud_kernel_6_12_with_zstd_and_compressed_modules() {
    // This one has virtio itself built in.
    build("linux-image-6.12-cloud-amd64", &ALL_AS_MODULES[2..]);
}

#[test]
fn full_kernel_6_1_with_xz() {
    build("linux-image-amd64", &ALL_AS_MODULES);
}
