//! The disks of a machine: virtio-blk devices in slots of their own.

use crate::config::DiskConfig;
use crate::event_loop::Subscriber;
use crate::kvm::KvmVm;
use crate::layout::{MAX_DISKS, VirtioSlot};
use crate::platform::PlatformError;
use crate::virtio_part::VirtioPart;
use devices::bus::{Bus, Overlap};
use devices::virtio::blk::{BLK_STATE_VERSION, Blk, BlkState, Unsettled};
use devices::virtio::mmio::SharedMemory;
use devices::virtio::state::{TRANSPORT_STATE_VERSION, TransportState};
use snapshot::{StateError, StateFile, StateWriter, WriteError};
use std::convert::Infallible;
use std::time::Duration;

/// How long the host's storage may take to finish what is under way at a pause.
const SETTLE_DEADLINE: Duration = Duration::from_secs(20);

/// Why a machine cannot have these disks.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// There are not so many slots.
    #[error("{found} disks are more than the {MAX_DISKS} that a machine can have")]
    TooMany {
        /// Disks.
        found: usize,
    },
    /// Not one for each of the template's.
    #[error("Clone is given {found} disks, the template's guest has {expected}")]
    Count {
        /// Disks of the clone.
        found: usize,
        /// Disks of the state.
        expected: usize,
    },
}

/// The saved disks, in the order of their slots.
#[derive(Debug, Default)]
pub(crate) struct DisksState(Vec<(TransportState, BlkState)>);

impl DisksState {
    pub(crate) fn read(file: &StateFile) -> Result<Self, StateError> {
        let mut disks = Vec::new();
        for number in 0..MAX_DISKS {
            let (transport, device) = sections(number);
            if !file.has(&device) {
                break;
            }
            disks.push((
                file.section(
                    &transport,
                    TRANSPORT_STATE_VERSION..=TRANSPORT_STATE_VERSION,
                )?,
                file.section(&device, BLK_STATE_VERSION..=BLK_STATE_VERSION)?,
            ));
        }
        Ok(Self(disks))
    }
}

/// All disks, in the order of their slots.
#[derive(Debug)]
pub(crate) struct Disks(Vec<VirtioPart<Blk>>);

impl Disks {
    pub(crate) fn new(
        vm: &KvmVm,
        memory: &SharedMemory,
        configs: &[DiskConfig],
    ) -> Result<Self, PlatformError> {
        let found = configs.len();
        if found > usize::from(MAX_DISKS) {
            return Err(DiskError::TooMany { found }.into());
        }
        let make = |(number, config): (u8, &DiskConfig)| {
            let disk = Blk::new(config.image.clone(), &id(number), config.read_only)?;
            VirtioPart::new(vm, memory, VirtioSlot::Disk(number), disk, None)
        };
        let disks = (0..).zip(configs).map(make);
        disks.collect::<Result<_, PlatformError>>().map(Self)
    }

    /// The disks of a clone. A slot that was empty may have got one: its driver is told.
    pub(crate) fn restore(
        vm: &KvmVm,
        memory: &SharedMemory,
        configs: &[DiskConfig],
        DisksState(states): &DisksState,
    ) -> Result<Self, PlatformError> {
        let (found, expected) = (configs.len(), states.len());
        if found != expected {
            return Err(DiskError::Count { found, expected }.into());
        }
        let mut disks = Vec::new();
        for ((number, config), (transport, state)) in (0..).zip(configs).zip(states) {
            let image = config.image.clone();
            let is_new = image.length() != state.length;
            let disk = Blk::restore(image, &id(number), config.read_only, state)?;
            let slot = VirtioSlot::Disk(number);
            let disk = VirtioPart::new(vm, memory, slot, disk, Some(transport))?;
            if is_new {
                let Ok(()) = disk.lock().change_config(|_| Ok::<(), Infallible>(()));
            }
            disks.push(disk);
        }
        Ok(Self(disks))
    }

    pub(crate) fn save(&self, writer: &mut StateWriter) -> Result<(), WriteError> {
        for (number, disk) in (0..).zip(&self.0) {
            let disk = disk.lock();
            let (transport, device) = sections(number);
            writer.section(&transport, TRANSPORT_STATE_VERSION, &disk.save())?;
            writer.section(&device, BLK_STATE_VERSION, &disk.device().save())?;
        }
        Ok(())
    }

    /// Waits until the host has finished what the guest asked for.
    pub(crate) fn settle(&self) -> Result<(), Unsettled> {
        for disk in &self.0 {
            let mut disk = disk.lock();
            disk.with_backend(|device, rings| device.settle(rings, SETTLE_DEADLINE));
            disk.device().check_settled()?;
        }
        Ok(())
    }

    pub(crate) fn kick(&self) {
        self.0.iter().for_each(|disk| disk.lock().kick());
    }

    /// What is on them, in the order of their slots. Does not change while the machine is paused.
    pub(crate) fn configs(&self) -> Vec<DiskConfig> {
        let config = |disk: &VirtioPart<Blk>| {
            let disk = disk.lock();
            DiskConfig {
                image: disk.device().image().clone(),
                read_only: disk.device().is_read_only(),
            }
        };
        self.0.iter().map(config).collect()
    }

    pub(crate) fn subscribers(&self) -> impl Iterator<Item = Subscriber> {
        self.0.iter().map(VirtioPart::subscriber)
    }

    pub(crate) fn insert(&self, mmio: &mut Bus) -> Result<(), Overlap> {
        self.0.iter().try_for_each(|disk| disk.connect(mmio))
    }
}

/// What the guest finds as the disk's serial number.
fn id(number: u8) -> String {
    format!("disk-{number}")
}

/// The sections of a disk in a state file: its transport and its device.
fn sections(number: u8) -> (String, String) {
    (
        format!("disk-{number}-transport"),
        format!("disk-{number}-device"),
    )
}
