//! Target `machines`: a whole saved machine, with a right checksum and senseless values, restored
//! on this host's KVM as a pool does it. Its vCPUs run nothing of the guest's. Needs `/dev/kvm`.

use crate::edits::{Edit, Sections};
use crate::input::actions;
use crate::kernels::tiny_kernel;
use crate::machine::must;
use snapshot::{MemoryLayers, StateFile, WorkingSet};
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use vmm::{
    BootConfig, CloneConfig, EarlyVm, GenerationId, MacAddress, Machine, MemoryBacking, MemorySize,
    NetConfig, PreparedClone, VcpuCounts, VsockConfig,
};

const MEMORY_MIB: u64 = 32;
const MAX_MEMORY_MIB: u64 = 64;

static SAVED: OnceLock<Sections> = OnceLock::new();

/// Restores a machine from the state that the edits in `bytes` make.
pub fn run(bytes: &[u8]) {
    let directory = must(tempfile::tempdir());
    let mut sections = SAVED.get_or_init(|| saved(directory.path())).clone();
    for edit in actions::<Edit<'_>>(bytes) {
        sections.edit(&edit);
    }
    let memory = must(tempfile::tempfile());
    must(memory.set_len(MEMORY_MIB << 20));
    match restore(&sections, memory, directory.path()) {
        Ok(mut machine) => drop(must(machine.freeze())),
        Err(refusal) => assert!(
            !bytes.is_empty(),
            "the machine as it was saved: {refusal:?}"
        ),
    }
}

fn restore(sections: &Sections, memory: File, directory: &Path) -> Result<Machine, vmm::Error> {
    let state = must(StateFile::parse(sections.file(), Path::new("state")));
    let config = CloneConfig {
        vsock: vsock(directory),
        generation: GenerationId::new([7; 16]),
        disks: Vec::new(),
        net: None,
    };
    let memory = must(MemoryLayers::plain(memory, Path::new("memory")));
    let some = |length: u64| vec![0..0x1000, 0x10_0000..0x10_0000 + length];
    let set = WorkingSet::new(some(64 << 10), some(1 << 20));
    let prepared = PreparedClone::new(&state, &Arc::new(memory), &set, EarlyVm::begin())?;
    prepared.map_ahead(&set)?.into_machine(&config)
}

/// A machine that was booted and never ran.
fn saved(directory: &Path) -> Sections {
    let kernel = directory.join("kernel");
    must(std::fs::write(&kernel, tiny_kernel()));
    let config = BootConfig {
        cpus: must(VcpuCounts::new(2, 4)),
        memory: must(MemorySize::from_mib(MEMORY_MIB)),
        max_memory: must(MemorySize::from_mib(MAX_MEMORY_MIB)),
        kernel,
        initrd: None,
        cmdline: String::new(),
        vsock: vsock(directory),
        disks: Vec::new(),
        rng: true,
        balloon: true,
        net: Some(NetConfig {
            mac: MacAddress([2, 0, 0, 0, 0, 1]),
            tap: None,
        }),
    };
    let mut machine = must(Machine::boot(&config, MemoryBacking::Anonymous));
    Sections::of(&must(machine.freeze()).state)
}

fn vsock(directory: &Path) -> VsockConfig {
    VsockConfig {
        cid: 3,
        socket: directory.join("v"),
    }
}
