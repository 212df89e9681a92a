//! Target `kernels`: files that are to be a kernel, an initial RAM disk, or a package with both, for
//! a cold boot and for `guest build`.

use crate::machine::must;
use guest::BuildOptions;
use minivmm_tests::tiny::elf;
use std::fs;
use std::path::PathBuf;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm::{BootConfig, MemorySize, VcpuCounts, VsockConfig, boot};

const MEMORY_MIB: u64 = 32;

/// Boots from, or builds a guest from, the file behind the first byte.
pub fn run(bytes: &[u8]) {
    let Some((kind, file)) = bytes.split_first() else {
        return;
    };
    match kind % 3 {
        0 => load(file, None),
        1 => load(&tiny_kernel(), Some(file)),
        _ => build(file),
    }
}

fn load(kernel: &[u8], initrd: Option<&[u8]>) {
    let directory = must(tempfile::tempdir());
    let put = |name: &str, content: &[u8]| {
        let path = directory.path().join(name);
        must(fs::write(&path, content));
        path
    };
    let memory = must(MemorySize::from_mib(MEMORY_MIB));
    let config = BootConfig {
        cpus: must(VcpuCounts::new(1, 1)),
        memory,
        max_memory: memory,
        kernel: put("kernel", kernel),
        initrd: initrd.map(|content| put("initrd", content)),
        cmdline: "console=ttyS0".to_owned(),
        vsock: VsockConfig {
            cid: 3,
            socket: PathBuf::new(),
        },
        disks: Vec::new(),
        rng: false,
        balloon: false,
        net: None,
    };
    let length = must(usize::try_from(memory.bytes()));
    let ram = must(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), length)]));
    if let Ok(entry) = boot::load(&ram, &config) {
        assert!(entry.0 < u64::MAX, "no kernel starts there");
    }
}

fn build(kernel: &[u8]) {
    let directory = must(tempfile::tempdir());
    let path = |name: &str| directory.path().join(name);
    must(fs::write(path("kernel"), kernel));
    must(fs::create_dir(path("modules")));
    let options = BuildOptions {
        kernel: path("kernel"),
        modules: Some(path("modules")),
        // Never read: no kernel from here has the modules that a guest needs.
        agent: path("agent"),
        busybox: None,
        overlay: None,
        extra_modules: Vec::new(),
        root: None,
        output: path("guest"),
    };
    let built = guest::build(&options, &mut |_| {});
    assert!(built.is_err(), "a guest without an agent");
    assert!(!path("guest").exists(), "half a guest is left");
}

/// An ELF kernel whose one instruction halts the CPU.
pub fn tiny_kernel() -> Vec<u8> {
    // hlt
    elf(&[0xf4])
}
