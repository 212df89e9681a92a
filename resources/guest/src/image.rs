//! Takes the ELF kernel out of a bzImage.
//!
//! The setup header (Documentation/arch/x86/boot.rst of the kernel) says where the compressed
//! kernel lies in the image; its own first bytes say how it is compressed.

use crate::decompress::Format;
use crate::elf;
use crate::error::Error;

// Offsets in the image.
const SETUP_SECTORS: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const HEADER_MAGIC: usize = 0x202;
const PROTOCOL_VERSION: usize = 0x206;
const VERSION_POINTER: usize = 0x20e;
const XLOADFLAGS: usize = 0x236;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

const SECTOR_BYTES: usize = 512;
/// What the version pointer and the setup code are relative to.
const HEADER_BASE: usize = 0x200;
/// The number of setup sectors that 0 stands for.
const DEFAULT_SETUP_SECTORS: usize = 4;
/// The first protocol with all fields that are read here.
const MIN_PROTOCOL: u16 = 0x020c;
/// XLF_KERNEL_64: the kernel has a 64-bit entry point.
const HAS_64_BIT_ENTRY: u16 = 1;
/// The length of the decompressed kernel follows the compressed one.
const LENGTH_BYTES: usize = 4;

/// Whether `bytes` start like a bzImage.
pub fn is_bzimage(bytes: &[u8]) -> bool {
    read::<2>(bytes, BOOT_FLAG) == Some([0x55, 0xaa])
        && read::<4>(bytes, HEADER_MAGIC) == Some(*b"HdrS")
}

/// Whether `bytes` start like an arm64 kernel.
pub fn is_arm64_image(bytes: &[u8]) -> bool {
    read::<4>(bytes, 0x38) == Some(*b"ARM\x64")
}

/// The kernel's version, such as `6.1.0-56-cloud-amd64`.
pub fn version(image: &[u8], name: &str) -> Result<String, Error> {
    let damaged = || problem(name, "its header names no version");
    let pointer = read(image, VERSION_POINTER)
        .map(u16::from_le_bytes)
        .ok_or_else(damaged)?;
    let text = image
        .get(HEADER_BASE + usize::from(pointer)..)
        .ok_or_else(damaged)?;
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    // The version is followed by who built the kernel, where and when.
    let version = text.split(|byte| *byte == b' ').next().unwrap_or_default();
    let plausible = |byte: &u8| byte.is_ascii_alphanumeric() || b".-+_~".contains(byte);
    match std::str::from_utf8(version) {
        Ok(text) if !text.is_empty() && version.iter().all(plausible) => Ok(text.to_owned()),
        _ => Err(damaged()),
    }
}

/// The ELF kernel inside the image.
pub fn extract_vmlinux(image: &[u8], name: &str) -> Result<Vec<u8>, Error> {
    check(image, name)?;
    let payload = payload(image, name)?;
    let format = Format::detect(payload).ok_or_else(|| {
        let start = payload.get(..4).unwrap_or_default();
        problem(
            name,
            format!("its payload starts with {start:02x?}, no known compression"),
        )
    })?;
    let (compressed, length) = payload
        .split_last_chunk::<LENGTH_BYTES>()
        .ok_or_else(|| problem(name, "its payload is empty"))?;
    // In gzip's own trailer the length is there already.
    let compressed = if format == Format::Gzip {
        payload
    } else {
        compressed
    };
    let vmlinux = format
        .decompress(compressed)
        .map_err(|error| problem(name, format!("cannot decompress it: {error}")))?;

    let expected = u32::from_le_bytes(*length);
    if u32::try_from(vmlinux.len()) != Ok(expected) {
        let found = vmlinux.len();
        return Err(problem(
            name,
            format!("decompresses to {found} bytes, expected {expected}"),
        ));
    }
    elf::check_x86_64(&vmlinux)
        .map_err(|found| problem(name, format!("its payload is {found}, expected x86_64 ELF")))?;
    Ok(vmlinux)
}

fn check(image: &[u8], name: &str) -> Result<(), Error> {
    let protocol = read(image, PROTOCOL_VERSION)
        .map(u16::from_le_bytes)
        .unwrap_or_default();
    if protocol < MIN_PROTOCOL {
        return Err(problem(
            name,
            format!("boot protocol {protocol:#06x}, expected at least {MIN_PROTOCOL:#06x}"),
        ));
    }
    let flags = read(image, XLOADFLAGS)
        .map(u16::from_le_bytes)
        .unwrap_or_default();
    if flags & HAS_64_BIT_ENTRY == 0 {
        return Err(problem(
            name,
            "it is a 32-bit kernel, expected one for x86_64",
        ));
    }
    Ok(())
}

fn payload<'a>(image: &'a [u8], name: &str) -> Result<&'a [u8], Error> {
    let field = |offset| {
        read(image, offset).and_then(|bytes| usize::try_from(u32::from_le_bytes(bytes)).ok())
    };
    let sectors = match image.get(SETUP_SECTORS) {
        None | Some(0) => DEFAULT_SETUP_SECTORS,
        Some(sectors) => usize::from(*sectors),
    };
    let offset = field(PAYLOAD_OFFSET).unwrap_or_default();
    let length = field(PAYLOAD_LENGTH).unwrap_or_default();
    let start = (sectors + 1) * SECTOR_BYTES + offset;
    start.checked_add(length).and_then(|end| image.get(start..end)).ok_or_else(|| {
        problem(
            name,
            format!(
                "it is cut off: its payload is {length} bytes at {start}, the image has {} bytes",
                image.len()
            ),
        )
    })
}

fn read<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

fn problem(name: &str, problem: impl Into<String>) -> Error {
    Error::Image {
        name: name.to_owned(),
        problem: problem.into(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use super::*;

    /// A bzImage that holds `vmlinux`, compressed with gzip.
    pub(crate) fn bzimage(vmlinux: &[u8], version: &str) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(vmlinux).unwrap();
        let payload = encoder.finish().unwrap();
        let setup_sectors = 1_u8;
        let start = (usize::from(setup_sectors) + 1) * SECTOR_BYTES;
        let mut image = vec![0; start];
        let mut put = |offset: usize, bytes: &[u8]| {
            image[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        put(SETUP_SECTORS, &[setup_sectors]);
        put(BOOT_FLAG, &[0x55, 0xaa]);
        put(HEADER_MAGIC, b"HdrS");
        put(PROTOCOL_VERSION, &0x020f_u16.to_le_bytes());
        put(VERSION_POINTER, &0x100_u16.to_le_bytes());
        put(
            HEADER_BASE + 0x100,
            format!("{version} (builder@host) #1\0").as_bytes(),
        );
        put(XLOADFLAGS, &HAS_64_BIT_ENTRY.to_le_bytes());
        put(
            PAYLOAD_LENGTH,
            &u32::try_from(payload.len()).unwrap().to_le_bytes(),
        );
        image.extend(payload);
        image
    }

    fn text(result: Result<Vec<u8>, Error>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn kernel_and_version_come_out_again() {
        let vmlinux = elf::tests::tiny_elf(62);
        let image = bzimage(&vmlinux, "6.1.0-9-test");
        assert!(is_bzimage(&image));
        assert_eq!(version(&image, "k").unwrap(), "6.1.0-9-test");
        assert_eq!(extract_vmlinux(&image, "k").unwrap(), vmlinux);
    }

    #[test]
    fn cut_image_is_refused_wherever_it_is_cut() {
        let image = bzimage(&elf::tests::tiny_elf(62), "6.1");
        for length in [0, 0x210, 0x240, 0x250, SECTOR_BYTES * 2, image.len() - 1] {
            assert!(
                extract_vmlinux(&image[..length], "k").is_err(),
                "cut at {length}"
            );
        }
        let message = text(extract_vmlinux(&image[..image.len() - 1], "k"));
        assert!(message.contains("cut off"), "{message}");
    }

    #[test]
    fn wrong_kernels_are_told_apart() {
        let mut image = bzimage(&elf::tests::tiny_elf(62), "6.1");
        image[XLOADFLAGS] = 0;
        assert!(text(extract_vmlinux(&image, "k")).contains("32-bit"));
        image[PROTOCOL_VERSION] = 0;
        assert!(text(extract_vmlinux(&image, "k")).contains("boot protocol 0x0200"));

        let message = text(extract_vmlinux(
            &bzimage(&elf::tests::tiny_elf(183), "6.1"),
            "k",
        ));
        assert!(message.contains("machine 183"), "{message}");
    }

    #[test]
    fn unknown_and_damaged_payloads_are_told_apart() {
        let vmlinux = elf::tests::tiny_elf(62);
        let mut image = bzimage(&vmlinux, "6.1");
        let start = image.len()
            - read(&image, PAYLOAD_LENGTH)
                .map(u32::from_le_bytes)
                .unwrap() as usize;
        let last = image.len() - 1;
        image[last] ^= 1;
        assert!(text(extract_vmlinux(&image, "k")).contains("decompress"));
        image[start] = b'?';
        assert!(text(extract_vmlinux(&image, "k")).contains("no known compression"));
    }
}
