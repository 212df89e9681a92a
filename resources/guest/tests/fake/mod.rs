//! A kernel, modules and packages that are just real enough to be read.

#![allow(dead_code, reason = "each test file uses its own part of it")]

use std::fs;
use std::io::Write;
use std::path::Path;

pub const VERSION: &str = "6.1.0-9-test";

pub fn elf(kind: u16) -> Vec<u8> {
    let mut header = vec![0; 64];
    header[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    header[16..18].copy_from_slice(&kind.to_le_bytes());
    header[18..20].copy_from_slice(&62_u16.to_le_bytes());
    header[20..24].copy_from_slice(&1_u32.to_le_bytes());
    header[52..54].copy_from_slice(&64_u16.to_le_bytes());
    header
}

pub fn module(info: &[&str]) -> Vec<u8> {
    let strings = info.join("\0") + "\0";
    let names = b"\0.modinfo\0.shstrtab\0";
    let mut file = elf(1);
    let table = 64 + strings.len() + names.len();
    file[40..48].copy_from_slice(&(table as u64).to_le_bytes());
    file[58..64].copy_from_slice(&[64, 0, 3, 0, 2, 0]);
    file.extend(strings.as_bytes());
    file.extend(names);
    file.extend([0; 64]);
    let places = [
        (1_u32, 1_u32, 64, strings.len()),
        (10, 3, 64 + strings.len(), names.len()),
    ];
    for (name, kind, start, size) in places {
        let mut section = [0; 64];
        section[..4].copy_from_slice(&name.to_le_bytes());
        section[4..8].copy_from_slice(&kind.to_le_bytes());
        section[24..32].copy_from_slice(&(start as u64).to_le_bytes());
        section[32..40].copy_from_slice(&(size as u64).to_le_bytes());
        file.extend(section);
    }
    file
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn bzimage() -> Vec<u8> {
    let payload = gzip(&elf(2));
    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
    image[0x236] = 1;
    image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    let version = format!("{VERSION} (me@here) #1\0");
    image[0x300..0x300 + version.len()].copy_from_slice(version.as_bytes());
    image.extend(payload);
    image
}

/// Files below `/lib/modules/VERSION`.
pub fn modules() -> Vec<(String, Vec<u8>)> {
    let magic = format!("vermagic={VERSION} SMP");
    let module = |depends: &str| module(&[&format!("depends={depends}"), &magic]);
    [
        ("kernel/virtio/virtio_mmio.ko", module("virtio,virtio-ring")),
        ("kernel/virtio/virtio.ko", module("virtio_ring")),
        ("kernel/virtio/virtio_ring.ko", module("")),
        ("kernel/virtio/virtio_mem.ko", module("virtio")),
        ("kernel/char/virtio-rng.ko", module("virtio")),
        ("kernel/mm/virtio_balloon.ko", module("virtio")),
        ("kernel/net/virtio_net.ko", module("virtio")),
        (
            "kernel/net/vmw_vsock_virtio_transport.ko.gz",
            gzip(&module("virtio,vsock")),
        ),
        ("kernel/net/vsock.ko", module("")),
        ("kernel/fs/far.ko", module("near,built_in")),
        ("kernel/fs/near.ko", module("")),
        (
            "modules.builtin",
            b"kernel/misc/pvpanic-mmio.ko\nkernel/built-in.ko\n".to_vec(),
        ),
    ]
    .map(|(path, data)| (path.to_owned(), data))
    .into()
}

fn files() -> Vec<(String, Vec<u8>)> {
    modules()
        .into_iter()
        .map(|(path, data)| (format!("lib/modules/{VERSION}/{path}"), data))
        .chain([(format!("boot/vmlinuz-{VERSION}"), bzimage())])
        .collect()
}

/// Writes `boot/vmlinuz-VERSION` and `lib/modules/VERSION` below `root`.
pub fn root(root: &Path) {
    for (path, data) in files() {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, data).unwrap();
    }
}

pub fn tar(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        builder
            .append_data(&mut header, format!("./{path}"), data.as_slice())
            .unwrap();
    }
    builder.into_inner().unwrap()
}

pub fn deb(members: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut builder = ar::Builder::new(Vec::new());
    for (name, data) in members {
        let header = ar::Header::new(name.as_bytes().to_vec(), data.len() as u64);
        builder.append(&header, data.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

pub fn package() -> Vec<u8> {
    deb(&[
        ("debian-binary", b"2.0\n".to_vec()),
        ("data.tar.gz", gzip(&tar(&files()))),
    ])
}
