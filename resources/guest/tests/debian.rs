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

/// Sorted, and apart from it what has to come before what: the order of those that need nothing
/// differs from kernel to kernel.
const ALL_AS_MODULES: [&str; 20] = [
    "crc16",
    "crc32c_generic",
    "ext4",
    "failover",
    "jbd2",
    "mbcache",
    "net_failover",
    "pvpanic",
    "pvpanic_mmio",
    "virtio",
    "virtio_balloon",
    "virtio_blk",
    "virtio_mem",
    "virtio_mmio",
    "virtio_net",
    "virtio_ring",
    "virtio_rng",
    "vmw_vsock_virtio_transport",
    "vmw_vsock_virtio_transport_common",
    "vsock",
];

const NEEDS: [(&str, &str); 17] = [
    ("ext4", "jbd2"),
    ("ext4", "mbcache"),
    ("ext4", "crc32c_generic"),
    ("virtio_blk", "virtio"),
    ("pvpanic_mmio", "pvpanic"),
    ("virtio_mmio", "virtio"),
    ("virtio_mmio", "virtio_ring"),
    ("virtio_mem", "virtio"),
    ("virtio_mem", "virtio_ring"),
    ("virtio_rng", "virtio"),
    ("virtio_net", "virtio"),
    ("virtio_net", "net_failover"),
    ("net_failover", "failover"),
    ("virtio_rng", "virtio_ring"),
    ("vmw_vsock_virtio_transport_common", "vsock"),
    ("vmw_vsock_virtio_transport", "vsock"),
    (
        "vmw_vsock_virtio_transport",
        "vmw_vsock_virtio_transport_common",
    ),
];

/// Cloud kernels have it built in.
const EXT4: [&str; 5] = ["crc16", "crc32c_generic", "ext4", "jbd2", "mbcache"];

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

fn build(name: &str, built_in: &[&str]) {
    let Some(package) = package(name) else { return };
    let directory = tempfile::tempdir().unwrap();
    let guest = run(&options(&package, &directory.path().join("guest"))).unwrap();
    let order = module_order(&guest);
    let mut sorted = order.clone();
    sorted.sort_unstable();
    let mut expected = ALL_AS_MODULES.to_vec();
    expected.retain(|module| !built_in.contains(module));
    assert_eq!(sorted, expected);
    let place = |name| order.iter().position(|module| *module == name);
    let as_modules = NEEDS
        .iter()
        .filter(|(module, _)| !built_in.contains(module));
    for &(module, needed) in as_modules {
        // One that is built in has no place, which is before any other.
        assert!(place(needed) < place(module), "{module} before {needed}");
    }
    let vmlinux = fs::read(&guest.vmlinux).unwrap();
    let banner = format!("Linux version {} ", guest.manifest.kernel_version);
    let banner = banner.as_bytes();
    assert!(vmlinux.windows(banner.len()).any(|window| window == banner));
}

#[test]
fn cloud_kernel_6_1_with_lz4() {
    build("linux-image-cloud-amd64", &EXT4);
}

#[test]
fn cloud_kernel_6_12_with_zstd_and_compressed_modules() {
    // This one has virtio itself built in.
    let built_in = [&EXT4[..], &["virtio", "virtio_ring"]].concat();
    build("linux-image-6.12-cloud-amd64", &built_in);
}

#[test]
fn full_kernel_6_1_with_xz() {
    build("linux-image-amd64", &[]);
}
