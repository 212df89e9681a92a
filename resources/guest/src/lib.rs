//! Builds a guest from a distribution's kernel: `minivmm guest build`.
//!
//! `build` reads top to bottom what happens:
//! - `source` finds kernel and modules in what the user has: a package (`deb`) or files.
//! - `image` takes the ELF kernel out of the bzImage; `decompress` knows the formats.
//! - `modules` picks the drivers for the VMM's devices, with what they depend on.
//! - `initramfs` lays out the root file system, and `archive` writes it.
//! - `rootfs` makes a disk from an image, when there is one.
//! - `publish` makes all of it appear at once, or not at all.

mod archive;
mod built;
mod busybox;
mod deb;
mod decompress;
mod elf;
mod error;
mod image;
mod initramfs;
mod manifest;
mod modules;
mod publish;
mod rootfs;
mod source;
mod tree;

use std::path::PathBuf;

pub use error::Error;
pub use manifest::{FILE_NAME as MANIFEST_FILE, GuestManifest, ModuleRecord, SourceRecord};
pub use modules::{DEFAULT_MODULES, DISK_MODULES};
pub use rootfs::{Choice, ImageConfig, ImageRecord, RootOptions};

use initramfs::Initramfs;
use publish::Staging;
use source::KernelSource;

/// Name of the bzImage in the output directory.
pub const VMLINUZ_FILE: &str = "vmlinuz";
/// Name of the ELF kernel in the output directory.
pub const VMLINUX_FILE: &str = "vmlinux";
/// Name of the initramfs in the output directory.
pub const INITRD_FILE: &str = "initrd.img";
/// Name of the disk with the root file system in the output directory.
pub const ROOT_FILE: &str = "rootfs.ext4";

/// What to build and from what.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// A Debian `linux-image` package, a bzImage, or a `/lib/modules/VERSION` directory.
    pub kernel: PathBuf,
    /// The modules of a bzImage, when they are not found beside it.
    pub modules: Option<PathBuf>,
    /// The agent's static program, which becomes `/init`.
    pub agent: PathBuf,
    /// A static busybox to put in with all of its commands.
    pub busybox: Option<PathBuf>,
    /// A directory whose content is laid over the root file system.
    pub overlay: Option<PathBuf>,
    /// Modules to load besides [`DEFAULT_MODULES`] and [`DISK_MODULES`].
    pub extra_modules: Vec<String>,
    /// The root file system, when it is to be on a disk.
    pub root: Option<RootOptions>,
    /// The directory to make, or to replace when it holds a guest already.
    pub output: PathBuf,
}

/// Where a build has got to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step {
    /// Reading the kernel and its modules.
    ReadKernel(PathBuf),
    /// Decompressing the kernel of that version.
    ExtractKernel(String),
    /// Writing an initramfs with that many modules.
    WriteInitramfs(usize),
    /// Looking at that image.
    ReadImage(PathBuf),
    /// Unpacking a layer, of so many.
    UnpackLayer(usize, usize),
    /// Making the file system on the disk.
    MakeFileSystem,
    /// Moving the guest to its place.
    Publish(PathBuf),
}

/// A guest that is ready to boot.
#[derive(Clone, Debug)]
pub struct BuiltGuest {
    /// The output directory.
    pub directory: PathBuf,
    /// The kernel as the package has it.
    pub vmlinuz: PathBuf,
    /// The kernel as an ELF file, which boots without decompressing itself.
    pub vmlinux: PathBuf,
    /// The initramfs, not compressed.
    pub initrd: PathBuf,
    /// The disk with the root file system, when there is one.
    pub root: Option<PathBuf>,
    /// What is in them and where it came from.
    pub manifest: GuestManifest,
}

/// Builds a guest.
///
/// # Errors
///
/// See [`Error`]. Nothing is left behind, and a guest that was in the output directory stays.
pub fn build(options: &BuildOptions, progress: &mut dyn FnMut(Step)) -> Result<BuiltGuest, Error> {
    let staging = Staging::begin(&options.output)?;

    progress(Step::ReadKernel(options.kernel.clone()));
    let wanted = modules::wanted(&options.extra_modules);
    let mut kernel = KernelSource::open(&options.kernel, options.modules.as_deref(), &wanted)?;
    let wanted = modules::without_missing(wanted, &options.extra_modules, &kernel);
    let modules = modules::resolve(&wanted, &mut kernel)?;

    progress(Step::ExtractKernel(kernel.version.clone()));
    let vmlinux = image::extract_vmlinux(&kernel.image, &kernel.image_name)?;

    let root = options.root.as_ref();
    let root = root.map(|root| rootfs::make(root, &staging, ROOT_FILE, progress));
    let image = root.transpose()?;

    progress(Step::WriteInitramfs(modules.len()));
    let config = image.as_ref().map(|image| &image.config);
    let initramfs = Initramfs::assemble(options, &kernel.version, &modules, config)?;
    let initrd = initramfs.to_archive()?;

    progress(Step::Publish(options.output.clone()));
    staging.write(VMLINUZ_FILE, &kernel.image)?;
    staging.write(VMLINUX_FILE, &vmlinux)?;
    staging.write(INITRD_FILE, &initrd)?;
    let manifest = GuestManifest::new(
        &kernel,
        &modules,
        &initramfs,
        [
            (VMLINUZ_FILE, &kernel.image[..]),
            (VMLINUX_FILE, &vmlinux[..]),
            (INITRD_FILE, &initrd[..]),
        ],
        image,
    );
    staging.write(MANIFEST_FILE, &manifest.to_json())?;
    let directory = staging.publish()?;
    Ok(BuiltGuest {
        vmlinuz: directory.join(VMLINUZ_FILE),
        vmlinux: directory.join(VMLINUX_FILE),
        initrd: directory.join(INITRD_FILE),
        root: manifest.image.is_some().then(|| directory.join(ROOT_FILE)),
        directory,
        manifest,
    })
}
