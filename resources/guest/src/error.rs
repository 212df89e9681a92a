//! Why a guest cannot be built.

use std::io;
use std::path::PathBuf;

/// A failed build. The message names the file, what was found in it and what was expected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory could not be used.
    #[error("Cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel argument is none of the three things that are understood.
    #[error(
        "{} is {found}; expected a Debian linux-image package, an x86 bzImage (vmlinuz) or a \
         /lib/modules/VERSION directory",
        path.display()
    )]
    NotAKernel {
        /// The argument.
        path: PathBuf,
        /// What it looks like.
        found: &'static str,
    },
    /// The package holds no kernel.
    #[error(
        "Package {} has no boot/vmlinuz-VERSION; a package that only depends on the kernel's is \
         no use here: take the linux-image package that it depends on",
        path.display()
    )]
    NoKernelInPackage {
        /// The package.
        path: PathBuf,
    },
    /// The package is not laid out as dpkg does.
    #[error("Package {}: {problem}", path.display())]
    Package {
        /// The package.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// No kernel was found for a modules directory.
    #[error("No kernel for the modules in {}; looked for {}", path.display(), join(searched))]
    NoKernelBeside {
        /// The modules directory.
        path: PathBuf,
        /// Where a kernel would have been found.
        searched: Vec<PathBuf>,
    },
    /// No modules were found for a bzImage.
    #[error(
        "No modules for kernel {version} of {}; looked for {}; name their directory with --modules",
        path.display(), join(searched)
    )]
    NoModulesBeside {
        /// The bzImage.
        path: PathBuf,
        /// Its version.
        version: String,
        /// Where modules would have been found.
        searched: Vec<PathBuf>,
    },
    /// The kernel image is damaged or of a kind that cannot be used.
    #[error("Kernel {name}: {problem}")]
    Image {
        /// Where the image comes from.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A module that is needed is neither built in nor there.
    #[error(
        "Kernel {version} has no module {module}{}: it is not built in (modules.builtin, {builtin} \
         names), and not among the {available} modules in {place}",
        needed_by.as_ref().map(|by| format!(", which {by} needs")).unwrap_or_default()
    )]
    MissingModule {
        /// The module.
        module: String,
        /// The module that depends on it; none when it was asked for.
        needed_by: Option<String>,
        /// The kernel's version.
        version: String,
        /// How many names modules.builtin has.
        builtin: usize,
        /// How many modules there are.
        available: usize,
        /// Where.
        place: String,
    },
    /// A module is damaged, or another kernel's.
    #[error("Module {name}: {problem}")]
    Module {
        /// Its file.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A program that goes into the guest cannot run there.
    #[error("{} {problem}", path.display())]
    Program {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Two things want the same place in the guest's root file system.
    #[error("/{path} in the guest: {problem}")]
    Layout {
        /// The path.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// A root file system cannot be made from what was given.
    #[error("{}: {problem}", path.display())]
    RootFs {
        /// The image, or the part of it.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A directory that no build has made.
    #[error(
        "{} is no guest: there is no {} in it; 'minivmm guest build -o DIR' makes one",
        path.display(), crate::MANIFEST_FILE
    )]
    NoGuest {
        /// The directory.
        path: PathBuf,
    },
    /// The description of a guest that was built before is not understood.
    #[error("{} {problem}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The output directory holds something else.
    #[error(
        "{} exists and holds no guest (no {}); give a new directory or empty it",
        path.display(), crate::MANIFEST_FILE
    )]
    OutputInUse {
        /// The directory.
        path: PathBuf,
    },
}

impl Error {
    /// Wraps the failure of `action` on `path`; for `map_err`.
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }
}

fn join(paths: &[PathBuf]) -> String {
    paths
        .iter()
        .map(|path| path.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}
