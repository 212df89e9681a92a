//! The options that describe a machine to boot.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use guest::BuiltGuest;
use vmm::{MAX_VCPUS, MemorySize, VcpuCounts};

use crate::disk_args::{DiskArgs, DiskSpec};
use crate::error::usage;

/// What the kernel is told when the user says nothing: where the console is, and to be quiet on
/// it, because each character leaves the guest; not to linger after a panic; not to search for a PCI
/// bus and three more serial ports, which are not there; and not to patch its locks away while it has
/// one CPU, because patching them back takes longer than all else when a second one comes.
const DEFAULT_CMDLINE: &str =
    "console=ttyS0 quiet panic=-1 pci=off 8250.nr_uarts=1 noreplace-smp psi=0";
const DEFAULT_CPUS: u8 = 1;
const DEFAULT_MEMORY: &str = "256M";
/// Each possible CPU costs the guest some 200 KiB.
const DEFAULT_MAX_CPUS: u8 = 32;
const DEFAULT_MAX_MEMORY: &str = "4G";
const DEFAULT_GROWTH: u64 = 4;
/// How the agent is told of the disk with the root file system.
const ROOT_PARAMETER: &str = "minivmm.root=";
const FIRST_DISK: &str = "/dev/vda";
/// The network device's name in a template's manifest.
pub const NETWORK: &str = "net";
/// The kernel's own limit without the terminating NUL.
const MAX_CMDLINE_BYTES: usize = 2047;

/// A machine to boot.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Machine")]
pub struct MachineArgs {
    /// Guest that 'guest build' has made: its kernel, its initrd, and the disk with its root file system if
    /// it has one. 'run' does not write to that disk: what the guest changes goes with the VM
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kernel", "initrd"])]
    pub guest: Option<PathBuf>,
    /// Kernel: bzImage or ELF vmlinux
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk, with the agent in it
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line [default: "console=ttyS0 quiet panic=-1 pci=off 8250.nr_uarts=1 noreplace-smp psi=0"]
    #[arg(long, value_name = "TEXT", value_parser = cmdline, allow_hyphen_values = true)]
    pub cmdline: Option<String>,
    /// vCPUs [default: 1, or the template's]
    #[arg(long, value_name = "N", value_parser = cpus, allow_hyphen_values = true)]
    pub cpus: Option<u8>,
    /// Memory with its unit, for example 512M or 2G [default: 256M, or the template's]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub mem: Option<MemorySize>,
    /// vCPUs that the machine can grow to [default: 32, or as --cpus when that is more]
    #[arg(long, value_name = "N", value_parser = cpus, allow_hyphen_values = true)]
    pub max_cpus: Option<u8>,
    /// Memory that the machine can grow to [default: four times --mem, at least 4G]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub max_mem: Option<MemorySize>,
    #[command(flatten)]
    pub disk_args: DiskArgs,
    /// Give the guest an entropy device (virtio-rng, /dev/hwrng)
    #[arg(long)]
    pub rng: bool,
    /// Have the guest give back memory that it does not use, and tell of it in 'stats' (virtio-balloon)
    #[arg(long)]
    pub balloon: bool,
}

/// A machine to boot, every choice made and checked.
#[derive(Clone, Debug)]
pub struct MachineSpec {
    /// vCPUs.
    pub cpus: VcpuCounts,
    /// RAM.
    pub memory: MemorySize,
    /// RAM the machine can grow to.
    pub max_memory: MemorySize,
    /// Kernel, as an absolute path.
    pub kernel: PathBuf,
    /// Initial RAM disk, as an absolute path.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// Disks, with absolute paths.
    pub disks: Vec<DiskSpec>,
    /// Empty disk slots behind them.
    pub disk_slots: u8,
    /// There is an entropy device.
    pub rng: bool,
    /// There is a balloon device.
    pub balloon: bool,
    /// There is a network device.
    pub network: bool,
}

impl MachineSpec {
    /// The names of the devices that not every machine has.
    pub fn devices(&self) -> Vec<String> {
        let names = [
            ("rng", self.rng),
            ("balloon", self.balloon),
            (NETWORK, self.network),
        ];
        let present = names.iter().filter(|(_, present)| *present);
        present.map(|(name, _)| (*name).to_owned()).collect()
    }
}

impl MachineArgs {
    /// Fills in the defaults and checks what belongs together.
    ///
    /// # Errors
    /// There is no kernel or no guest, or a maximum is less than what the machine starts with.
    pub fn resolve(mut self) -> anyhow::Result<MachineSpec> {
        let mut cmdline = match self.cmdline.take() {
            Some(cmdline) => cmdline,
            None => DEFAULT_CMDLINE.to_owned(),
        };
        if let Some(directory) = self.guest.take() {
            self.take_guest(&BuiltGuest::open(&directory)?, &mut cmdline);
        }
        let kernel = self.kernel.ok_or_else(|| {
            usage(
                "--guest DIR or --kernel FILE is required; 'minivmm guest build' makes a guest of a \
                 distribution's kernel",
            )
        })?;
        let boot = self.cpus.unwrap_or(DEFAULT_CPUS);
        let cpus = VcpuCounts::new(boot, self.max_cpus.unwrap_or(DEFAULT_MAX_CPUS.max(boot)))
            .map_err(|error| usage(error.to_string()))?;
        let memory = match self.mem {
            Some(memory) => memory,
            None => DEFAULT_MEMORY.parse()?,
        };
        let max_memory = match self.max_mem {
            Some(max_memory) => max_memory,
            None => default_max_memory(memory)?,
        };
        if max_memory < memory {
            return Err(usage(format!(
                "{memory} of memory (--mem) are more than the maximum of {max_memory} (--max-mem)"
            )));
        }
        self.disk_args.check()?;
        let disks = self.disk_args.disks.into_iter().map(DiskSpec::absolute);
        let absolute = |path: PathBuf| {
            std::path::absolute(&path).with_context(|| format!("Cannot use {}", path.display()))
        };
        Ok(MachineSpec {
            cpus,
            memory,
            max_memory,
            kernel: absolute(kernel)?,
            initrd: self.initrd.map(absolute).transpose()?,
            disks: disks.collect::<anyhow::Result<_>>()?,
            disk_slots: self.disk_args.disk_slots.unwrap_or(0),
            cmdline,
            rng: self.rng,
            balloon: self.balloon,
            network: false,
        })
    }

    /// Its disk is the first, and the agent makes it the root.
    fn take_guest(&mut self, guest: &BuiltGuest, cmdline: &mut String) {
        self.kernel = Some(guest.vmlinux.clone());
        self.initrd = Some(guest.initrd.clone());
        let Some(root) = &guest.root else {
            return;
        };
        self.disk_args.disks.insert(0, DiskSpec::temporary(root));
        if !cmdline.contains(ROOT_PARAMETER) {
            // What is behind "--" is for init.
            let parameter = format!("{ROOT_PARAMETER}{FIRST_DISK} ");
            cmdline.insert_str(0, &parameter);
        }
    }
}

/// Address space only, so there can be plenty of it.
fn default_max_memory(memory: MemorySize) -> anyhow::Result<MemorySize> {
    let least: MemorySize = DEFAULT_MAX_MEMORY.parse()?;
    let most = MemorySize::from_bytes(memory.bytes().saturating_mul(DEFAULT_GROWTH));
    Ok(most.unwrap_or(memory).max(least))
}

/// Parses a number of vCPUs.
///
/// # Errors
/// Not a number that a machine can have.
pub fn cpus(text: &str) -> Result<u8, String> {
    match text.parse::<u8>() {
        Ok(count) if (1..=MAX_VCPUS).contains(&count) => Ok(count),
        _ => Err(format!(
            "expected a whole number of vCPUs, 1 to {MAX_VCPUS}"
        )),
    }
}

fn cmdline(text: &str) -> Result<String, String> {
    if let Some(bad) = text.chars().find(|c| !matches!(c, ' '..='~')) {
        return Err(format!(
            "{bad:?} is not allowed, expected printable ASCII characters"
        ));
    }
    if text.len() > MAX_CMDLINE_BYTES {
        return Err(format!(
            "{} bytes are too long, the kernel takes {MAX_CMDLINE_BYTES}",
            text.len()
        ));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        machine: MachineArgs,
    }

    fn parse(args: &[&str]) -> Result<MachineArgs, String> {
        let args = std::iter::once("minivmm").chain(args.iter().copied());
        match Program::try_parse_from(args) {
            Ok(program) => Ok(program.machine),
            Err(error) => {
                assert_eq!(error.exit_code(), 2);
                Err(error.to_string())
            }
        }
    }

    #[test]
    fn defaults_are_filled_in() {
        let spec = parse(&["--kernel", "/k"]).unwrap().resolve().unwrap();
        assert_eq!((spec.cpus.boot(), spec.cpus.max()), (1, 32));
        assert_eq!(spec.memory.to_string(), "256M");
        assert_eq!(spec.max_memory.to_string(), "4G");
        assert_eq!(spec.cmdline, DEFAULT_CMDLINE);
    }

    #[test]
    fn a_kernel_is_required() {
        let error = parse(&[]).unwrap().resolve().unwrap_err();
        assert!(error.to_string().contains("--kernel FILE is required"));
        assert_eq!(crate::error::exit_code(&error), crate::error::USAGE);
    }

    #[test]
    fn sizes_are_refused_by_rule() {
        for text in [
            "0",
            "1",
            "512",
            "4097",
            "127M",
            "100001K",
            "1 G",
            "1.5G",
            "-1",
            "1e3",
            "18446744073709551615",
            "16E",
            "",
            "1K",
            "17T",
        ] {
            let error = parse(&["--mem", text]).unwrap_err();
            assert!(error.contains("--mem"), "{text:?}: {error}");
        }
        for text in ["1GiB", "1g", "256M", "65536K"] {
            assert!(parse(&["--mem", text]).unwrap().mem.is_some(), "{text:?}");
        }
    }

    #[test]
    fn cpus_are_refused_outside_the_range() {
        for text in ["0", "-1", "255", "9999", "1.5", "two", ""] {
            let error = parse(&["--cpus", text]).unwrap_err();
            assert!(error.contains("1 to 254"), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_maximum_below_the_start_is_refused() {
        for (args, option) in [
            (["--cpus", "4", "--max-cpus", "2"], "--max-cpus"),
            (["--mem", "1G", "--max-mem", "512M"], "--max-mem"),
        ] {
            let all = [&["--kernel", "/k"], &args[..]].concat();
            let error = parse(&all).unwrap().resolve().unwrap_err();
            assert!(error.to_string().contains(option), "{error}");
            assert_eq!(crate::error::exit_code(&error), crate::error::USAGE);
        }
    }

    #[test]
    fn command_lines_are_printable_and_short_enough() {
        let given = "console=ttyS0 init=/init -- a --b -- c";
        let parsed = parse(&["--cmdline", given]).unwrap();
        assert_eq!(parsed.cmdline.as_deref(), Some(given));
        let long = "x".repeat(2048);
        for (text, reason) in [("a\nb", "'\\n'"), ("é", "'é'"), (long.as_str(), "2047")] {
            let error = parse(&["--cmdline", text]).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
