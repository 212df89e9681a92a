//! The guests that `tests/prepare-guests` has made, and the machines they are booted on.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;

/// How long the guest may take until its agent answers, in seconds: the lab is slow, and the machine
/// below it may have other things to do.
const BOOT_SECONDS: &str = "300";

const USUAL_CMDLINE: &str =
    "console=ttyS0 quiet panic=-1 pci=off 8250.nr_uarts=1 noreplace-smp psi=0";

/// Names are cut here: sockets are in directories that are named after them.
const NAME_BYTES: usize = 32;

/// A guest and its machine: the options of `run` and `template create`.
#[derive(Clone, Debug)]
pub struct Guest {
    package: &'static str,
    image: &'static str,
    /// Its root file system is on a disk.
    has_root_disk: bool,
    options: Vec<(&'static str, String)>,
    flags: Vec<&'static str>,
}

impl Guest {
    /// Debian 12's kernel, as an ELF image; one vCPU and 256 MiB.
    #[must_use]
    pub fn debian_6_1() -> Self {
        Self::of("linux-image-cloud-amd64")
    }

    /// The same with drivers for PCI, which some other virtual machine monitors need. `tests/prepare-guests pci`
    /// makes it.
    #[must_use]
    pub fn debian_6_1_with_pci() -> Self {
        Self::of("pci")
    }

    /// Debian 12's backported kernel, as an ELF image; one vCPU and 256 MiB.
    #[must_use]
    pub fn debian_6_12() -> Self {
        Self::of("linux-image-6.12-cloud-amd64")
    }

    /// Debian 12's backported kernel with programs in `/etc/minivmm/on-clone.d`.
    #[must_use]
    pub fn with_hooks() -> Self {
        Self::of("hooks")
    }

    /// A Debian 12 on a disk, with sqlite3 and Python.
    #[must_use]
    pub fn debian_root() -> Self {
        Self::on_a_disk("debian")
    }

    /// An OCI image of busybox on a disk, whose program greets.
    #[must_use]
    pub fn oci_root() -> Self {
        Self::on_a_disk("oci")
    }

    fn on_a_disk(name: &'static str) -> Self {
        Self {
            has_root_disk: true,
            ..Self::of(name)
        }
    }

    fn of(package: &'static str) -> Self {
        Self {
            package,
            image: "vmlinux",
            has_root_disk: false,
            options: Vec::new(),
            flags: Vec::new(),
        }
    }

    /// The kernel as the bzImage that the distribution ships.
    #[must_use]
    pub fn bzimage(mut self) -> Self {
        self.image = "vmlinuz";
        self
    }

    /// This many vCPUs.
    #[must_use]
    pub fn cpus(self, count: u8) -> Self {
        self.option("--cpus", &count.to_string())
    }

    /// This much memory, for example `512M`.
    #[must_use]
    pub fn memory(self, size: &str) -> Self {
        self.option("--mem", size)
    }

    /// This kernel command line.
    #[must_use]
    pub fn cmdline(self, text: &str) -> Self {
        self.option("--cmdline", text)
    }

    /// These parameters for the kernel besides the usual ones.
    #[must_use]
    pub fn parameters(self, parameters: &str) -> Self {
        self.cmdline(&format!("{USUAL_CMDLINE} {parameters}"))
    }

    /// Jobs of `guest-tool` that run before the agent does, so that a template is frozen with them.
    #[must_use]
    pub fn jobs(self, jobs: &[&str]) -> Self {
        self.jobs_with("", jobs)
    }

    /// The same, with further parameters for the kernel.
    #[must_use]
    pub fn jobs_with(self, parameters: &str, jobs: &[&str]) -> Self {
        let jobs = jobs.join(" / ");
        self.parameters(&format!(
            "{parameters} rdinit=/bin/guest-tool -- init {jobs}"
        ))
    }

    /// Any other option with a value.
    #[must_use]
    pub fn option(mut self, name: &'static str, value: &str) -> Self {
        self.options.push((name, value.to_owned()));
        self
    }

    /// Any option without a value.
    #[must_use]
    pub fn flag(mut self, name: &'static str) -> Self {
        self.flags.push(name);
        self
    }

    /// What `uname -r` begins with in this guest.
    #[must_use]
    pub fn release(&self) -> &'static str {
        if self.package.contains("6.12") || self.package == "hooks" {
            "6.12."
        } else {
            "6.1."
        }
    }

    /// The kernel's file.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.file(self.image)
    }

    /// The initial RAM disk, with the agent, busybox and `guest-tool`.
    #[must_use]
    pub fn initrd(&self) -> PathBuf {
        self.file("initrd.img")
    }

    /// Its memory in MiB, unless [`memory`](Self::memory) says otherwise.
    pub const MEBIBYTES: u32 = 256;

    /// The usual command line, for another virtual machine monitor.
    #[must_use]
    pub fn command_line() -> String {
        USUAL_CMDLINE.replace("pci=off ", "")
    }

    /// What `guest build` has made.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.file(".")
    }

    /// The options.
    #[must_use]
    pub fn args(&self) -> Vec<String> {
        let files = if self.has_root_disk {
            vec![("--guest", self.directory())]
        } else {
            vec![("--kernel", self.kernel()), ("--initrd", self.initrd())]
        };
        let files = files.into_iter();
        let files: Vec<_> = files
            .map(|(name, path)| (name, path.to_str().unwrap().to_owned()))
            .collect();
        let timeout = ("--timeout", BOOT_SECONDS.to_owned());
        let all = files.iter().chain(&self.options).chain([&timeout]);
        all.flat_map(|(name, value)| [(*name).to_owned(), value.clone()])
            .chain(self.flags.iter().map(|flag| (*flag).to_owned()))
            .collect()
    }

    /// A template name that stands for these options.
    #[must_use]
    pub fn template_name(&self) -> String {
        let words = std::iter::once(self.package)
            .chain([self.image])
            .chain(self.options.iter().map(|(_, value)| value.as_str()))
            .chain(self.flags.iter().copied());
        let name = words.collect::<Vec<_>>().join("-");
        let name = name.trim_start_matches("linux-image-");
        let plain = name.replace(
            |c: char| !c.is_ascii_alphanumeric() && c != '.' && c != '-',
            "_",
        );
        if plain.len() <= NAME_BYTES {
            return plain;
        }
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        format!("{}-{:016x}", &plain[..NAME_BYTES - 17], hasher.finish())
    }

    #[track_caller]
    fn file(&self, name: &str) -> PathBuf {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("../target/guests")
            .join(self.package)
            .join(name);
        path.canonicalize().unwrap_or_else(|error| {
            panic!(
                "there is no {}: {error}; run 'make test', or tests/prepare-guests",
                path.display()
            )
        })
    }
}
