//! The kernel file: a bzImage or an ELF vmlinux, checked and loaded.

use crate::layout::{HIGH_MEMORY, LOW_RAM_END};
use linux_loader::elf;
use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use vm_memory::{ByteValued, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Where the setup header is in a bzImage, and its magic number.
const SETUP_HEADER_OFFSET: u64 = 0x1f1;
const HDRS: u32 = u32::from_le_bytes(*b"HdrS");
/// First boot protocol version that has everything used here (Linux 3.8).
const OLDEST_PROTOCOL: u16 = 0x20c;
/// `xloadflags`: the kernel has a 64-bit entry point.
const XLF_KERNEL_64: u16 = 1;
/// The 64-bit entry point is this far behind the start of the loaded image.
const ENTRY_64_OFFSET: u64 = 0x200;
/// Unit of `syssize`.
const PARAGRAPH: u64 = 16;
const SECTOR: u64 = 512;

/// A kernel in guest memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct LoadedKernel {
    /// First instruction, in 64-bit mode.
    pub entry: GuestAddress,
    /// First byte in use from [`HIGH_MEMORY`] on.
    pub start: u64,
    /// First byte behind everything that the kernel needs before it manages memory itself.
    pub end: u64,
    /// The header of a bzImage.
    pub header: Option<setup_header>,
}

/// The kernel file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file cannot be opened or read.
    #[error("Cannot read kernel {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The file is something else.
    #[error(
        "Kernel {path} is {found}; expected a bzImage (vmlinuz) or an x86-64 ELF vmlinux{hint}"
    )]
    Kind {
        /// The file.
        path: PathBuf,
        /// What it looks like.
        found: &'static str,
        /// What to do, with a leading separator, or nothing.
        hint: &'static str,
    },
    /// The file ends too early.
    #[error("Kernel {path} is cut off: it has {found} bytes, its header says {expected}")]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes there.
        found: u64,
        /// Bytes announced.
        expected: u64,
    },
    /// Not enough memory.
    #[error(
        "Kernel {path} needs memory up to {needed:#x}, the guest has it up to {room:#x}; give it more with --mem"
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Highest address needed.
        needed: u64,
        /// End of low RAM.
        room: u64,
    },
    /// The loader refuses the file.
    #[error("Kernel {path} cannot be loaded")]
    Load {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: linux_loader::loader::Error,
    },
}

enum Kind {
    BzImage,
    Elf,
}

/// Loads the kernel at `path`.
pub(super) fn load(memory: &GuestMemoryMmap, path: &Path) -> Result<LoadedKernel, KernelError> {
    let mut image = Image::open(path)?;
    match image.kind()? {
        Kind::BzImage => image.load_bzimage(memory),
        Kind::Elf => image.load_elf(memory),
    }
}

/// RAM below the MMIO hole ends here.
fn low_ram_end(memory: &GuestMemoryMmap) -> u64 {
    memory
        .iter()
        .map(|r| r.start_addr().0 + r.len())
        .filter(|end| *end <= LOW_RAM_END)
        .max()
        .unwrap_or(0)
}

struct Image<'a> {
    path: &'a Path,
    file: File,
    length: u64,
}

impl<'a> Image<'a> {
    fn open(path: &'a Path) -> Result<Self, KernelError> {
        let read = |source| KernelError::Read {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(read)?;
        let metadata = file.metadata().map_err(read)?;
        let image = Self {
            path,
            file,
            length: metadata.len(),
        };
        if metadata.is_dir() {
            return Err(image.other("a directory", ""));
        }
        if !metadata.is_file() {
            return Err(image.other("not a regular file", ""));
        }
        Ok(image)
    }

    fn other(&self, found: &'static str, hint: &'static str) -> KernelError {
        KernelError::Kind {
            path: self.path.to_owned(),
            found,
            hint,
        }
    }

    fn failed(&self, source: io::Error) -> KernelError {
        KernelError::Read {
            path: self.path.to_owned(),
            source,
        }
    }

    /// Tells by content, never by name: a bzImage may well be called vmlinux.
    fn kind(&mut self) -> Result<Kind, KernelError> {
        let mut start = Vec::new();
        self.file
            .by_ref()
            .take(0x206)
            .read_to_end(&mut start)
            .map_err(|e| self.failed(e))?;
        self.file.rewind().map_err(|e| self.failed(e))?;
        let unpack = "; unpack it first";
        match start.as_slice() {
            [] => Err(self.other("empty", "")),
            [0x7f, b'E', b'L', b'F', ..] => self.check_elf(&start),
            bytes if bytes.get(0x202..0x206) == Some(b"HdrS") => Ok(Kind::BzImage),
            [0x1f, 0x8b, ..] => Err(self.other("gzip-compressed", unpack)),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Err(self.other("zstd-compressed", unpack)),
            [0xfd, b'7', b'z', b'X', b'Z', ..] => Err(self.other("xz-compressed", unpack)),
            bytes if bytes.get(0x38..0x3c) == Some(b"ARM\x64") => {
                Err(self.other("a kernel for 64-bit ARM", ""))
            }
            [b'!', b'<', b'a', b'r', b'c', b'h', b'>', ..] => Err(self.other(
                "a Debian package",
                "; make a guest of it with: minivmm guest build --kernel PACKAGE -o DIR",
            )),
            _ => Err(self.other("of an unknown kind", "")),
        }
    }

    fn check_elf(&self, start: &[u8]) -> Result<Kind, KernelError> {
        const CLASS_64: u8 = 2;
        const X86_64: [u8; 2] = 62u16.to_le_bytes();
        if start.get(4) != Some(&CLASS_64) {
            return Err(self.other("a 32-bit ELF file", ""));
        }
        if start.get(18..20) != Some(&X86_64) {
            return Err(self.other("an ELF file for another architecture", ""));
        }
        Ok(Kind::Elf)
    }

    fn load_bzimage(&mut self, memory: &GuestMemoryMmap) -> Result<LoadedKernel, KernelError> {
        let header = self.setup_header()?;
        self.check_protocol(&header)?;
        // The image unpacks itself to its preferred address, and needs room behind that.
        let start = header.pref_address.max(HIGH_MEMORY.0);
        let end = start.saturating_add(header.init_size.into());
        self.check_room(memory, end)?;
        let loaded = BzImage::load(memory, Some(HIGH_MEMORY), &mut self.file, Some(HIGH_MEMORY))
            .map_err(|source| self.refused(source))?;
        let entry = GuestAddress(loaded.kernel_load.0 + ENTRY_64_OFFSET);
        Ok(LoadedKernel {
            entry,
            start: HIGH_MEMORY.0,
            end,
            header: Some(header),
        })
    }

    fn setup_header(&mut self) -> Result<setup_header, KernelError> {
        let mut header = setup_header::default();
        self.file
            .seek(SeekFrom::Start(SETUP_HEADER_OFFSET))
            .map_err(|e| self.failed(e))?;
        let read = self.file.read_exact(header.as_mut_slice());
        read.map_err(|_| self.truncated(SETUP_HEADER_OFFSET + size_of::<setup_header>() as u64))?;
        Ok(header)
    }

    fn check_protocol(&self, header: &setup_header) -> Result<(), KernelError> {
        if header.header != HDRS || header.version < OLDEST_PROTOCOL {
            return Err(self.other("a bzImage of a Linux older than 3.8", ""));
        }
        if header.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(self.other("a 32-bit bzImage", ""));
        }
        let sectors = if header.setup_sects == 0 {
            4
        } else {
            u64::from(header.setup_sects)
        };
        let expected = (sectors + 1) * SECTOR + u64::from(header.syssize) * PARAGRAPH;
        if self.length < expected {
            Err(self.truncated(expected))
        } else {
            Ok(())
        }
    }

    fn load_elf(&mut self, memory: &GuestMemoryMmap) -> Result<LoadedKernel, KernelError> {
        let segments = self.elf_segments()?;
        let expected = segments
            .iter()
            .map(|s| s.p_offset.saturating_add(s.p_filesz))
            .max();
        let end = segments
            .iter()
            .map(|s| s.p_paddr.saturating_add(s.p_memsz))
            .max();
        let (Some(expected), Some(end)) = (expected, end) else {
            return Err(self.other("an ELF file without a loadable segment", ""));
        };
        if self.length < expected {
            return Err(self.truncated(expected));
        }
        self.check_room(memory, end)?;
        let loaded = Elf::load(memory, None, &mut self.file, Some(HIGH_MEMORY))
            .map_err(|source| self.refused(source))?;
        let start = segments.iter().map(|s| s.p_paddr).min().unwrap_or(0);
        Ok(LoadedKernel {
            entry: loaded.kernel_load,
            start,
            end,
            header: None,
        })
    }

    /// The segments to load, read ahead of the loader to check them against file and memory.
    fn elf_segments(&mut self) -> Result<Vec<elf::Elf64_Phdr>, KernelError> {
        let mut header = elf::Elf64_Ehdr::default();
        let header_size = size_of::<elf::Elf64_Ehdr>() as u64;
        self.file
            .read_exact(header.as_mut_slice())
            .map_err(|_| self.truncated(header_size))?;
        self.file
            .seek(SeekFrom::Start(header.e_phoff))
            .map_err(|e| self.failed(e))?;
        let mut segments = Vec::new();
        let table = u64::from(header.e_phnum) * size_of::<elf::Elf64_Phdr>() as u64;
        for _ in 0..header.e_phnum {
            let mut segment = elf::Elf64_Phdr::default();
            let read = self.file.read_exact(segment.as_mut_slice());
            read.map_err(|_| self.truncated(header.e_phoff.saturating_add(table)))?;
            segments.push(segment);
        }
        segments.retain(|segment| segment.p_type == elf::PT_LOAD);
        Ok(segments)
    }

    fn check_room(&self, memory: &GuestMemoryMmap, needed: u64) -> Result<(), KernelError> {
        let room = low_ram_end(memory);
        if needed > room {
            return Err(KernelError::TooLarge {
                path: self.path.to_owned(),
                needed,
                room,
            });
        }
        Ok(())
    }

    fn truncated(&self, expected: u64) -> KernelError {
        KernelError::Truncated {
            path: self.path.to_owned(),
            found: self.length,
            expected,
        }
    }

    fn refused(&self, source: linux_loader::loader::Error) -> KernelError {
        KernelError::Load {
            path: self.path.to_owned(),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use vm_memory::Bytes;

    fn memory(mib: usize) -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), mib << 20)]).unwrap()
    }

    fn refusal(content: &[u8]) -> String {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        load(&memory(64), file.path()).unwrap_err().to_string()
    }

    /// A minimal ELF file: one segment of `file` bytes in the file and `mem` in memory.
    fn elf_file(machine: u16, file: u64, mem: u64) -> Vec<u8> {
        let mut header = elf::Elf64_Ehdr::default();
        header.e_ident[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
        header.e_machine = machine;
        header.e_entry = 0x100_0000;
        header.e_phoff = 64;
        header.e_phentsize = 56;
        header.e_phnum = 1;
        let segment = elf::Elf64_Phdr {
            p_type: elf::PT_LOAD,
            p_offset: 120,
            p_paddr: 0x100_0000,
            p_filesz: file,
            p_memsz: mem,
            ..Default::default()
        };
        [header.as_slice(), segment.as_slice(), b"\x90\x90\x90\xf4"].concat()
    }

    #[test]
    fn other_files_are_named() {
        assert!(refusal(b"").contains("is empty"));
        assert!(refusal(&[0x1f, 0x8b, 8, 0]).contains("gzip-compressed"));
        assert!(refusal(b"!<arch>\ndebian-binary").contains("Debian package"));
        assert!(refusal(b"hello").contains("unknown kind"));
        assert!(refusal(&elf_file(183, 4, 4)).contains("another architecture"));
        let mut old = elf_file(62, 4, 4);
        old[4] = 1;
        assert!(refusal(&old).contains("32-bit ELF"));
    }

    #[test]
    fn directory_and_missing_file_are_named() {
        let error = load(&memory(64), Path::new("/")).unwrap_err().to_string();
        assert!(error.contains("a directory"), "{error}");
        let error = load(&memory(64), Path::new("/nonexistent/kernel"))
            .unwrap_err()
            .to_string();
        assert_eq!(error, "Cannot read kernel /nonexistent/kernel");
    }

    #[test]
    fn elf_is_loaded_at_its_address() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&elf_file(62, 4, 8)).unwrap();
        let memory = memory(64);
        let kernel = load(&memory, file.path()).unwrap();
        assert_eq!(
            (kernel.entry, kernel.end),
            (GuestAddress(0x100_0000), 0x100_0008)
        );
        let loaded: [u8; 4] = memory.read_obj(GuestAddress(0x100_0000)).unwrap();
        assert_eq!(loaded, [0x90, 0x90, 0x90, 0xf4]);
    }

    #[test]
    fn bzimage_that_wants_to_be_behind_all_addresses_is_refused() {
        let header = setup_header {
            setup_sects: 1,
            header: HDRS,
            version: OLDEST_PROTOCOL,
            xloadflags: XLF_KERNEL_64,
            pref_address: u64::MAX - 1,
            init_size: 4096,
            ..Default::default()
        };
        let mut image = vec![0; 2048];
        let at = usize::try_from(SETUP_HEADER_OFFSET).unwrap();
        image[at..at + size_of::<setup_header>()].copy_from_slice(header.as_slice());
        let error = refusal(&image);
        assert!(error.contains("give it more with --mem"), "{error}");
    }

    #[test]
    fn truncated_files_are_refused() {
        let whole = elf_file(62, 4, 8);
        assert!(refusal(&whole[..whole.len() - 1]).contains("cut off"));
        assert!(refusal(&whole[..40]).contains("cut off"));
        assert!(refusal(&whole[..100]).contains("cut off"));
    }

    #[test]
    fn kernel_larger_than_memory_is_refused() {
        let error = refusal(&elf_file(62, 4, 64 << 20));
        assert!(error.contains("give it more with --mem"), "{error}");
        assert!(refusal(&elf_file(62, 4, u64::MAX)).contains("give it more"));
    }
}
