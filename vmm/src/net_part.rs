//! The network device of a machine: new, saved, and in a clone with an address of its own.

use crate::config::NetConfig;
use crate::kvm::KvmVm;
use crate::layout::VirtioSlot;
use crate::platform::PlatformError;
use crate::virtio_part::{VirtioPart, read_transport};
use devices::virtio::mmio::SharedMemory;
use devices::virtio::net::{FramePort, NET_STATE_VERSION, Net, NetError, NetState, TapPort};
use devices::virtio::state::TransportState;
use snapshot::{StateError, StateFile, StateWriter, WriteError};

const TRANSPORT_SECTION: &str = "net-transport";
const DEVICE_SECTION: &str = "net-device";

/// The saved device.
#[derive(Debug)]
pub(crate) struct SavedNet {
    transport: TransportState,
    device: NetState,
}

impl SavedNet {
    /// Reads the sections; `None` in a machine without a network device.
    pub(crate) fn read(file: &StateFile) -> Result<Option<Self>, StateError> {
        let Some(transport) = read_transport(file, TRANSPORT_SECTION)? else {
            return Ok(None);
        };
        let device = file.section(DEVICE_SECTION, NET_STATE_VERSION..=NET_STATE_VERSION)?;
        Ok(Some(Self { transport, device }))
    }
}

/// The device as after power-on.
pub(crate) fn new(
    vm: &KvmVm,
    memory: &SharedMemory,
    config: &NetConfig,
) -> Result<VirtioPart<Net>, PlatformError> {
    let net = Net::new(config.mac, port(config)?)?;
    VirtioPart::new(vm, memory, VirtioSlot::Net, net, None)
}

/// The template's device, in a clone. What is different from the template is told to the driver: the
/// clone's own address and link, or that the link of a machine that had one is gone.
pub(crate) fn restore(
    vm: &KvmVm,
    memory: &SharedMemory,
    config: Option<&NetConfig>,
    saved: Option<&SavedNet>,
) -> Result<Option<VirtioPart<Net>>, PlatformError> {
    let Some(saved) = saved else {
        return config.map_or(Ok(None), |_| Err(PlatformError::NoNet));
    };
    let net = Net::restore(&saved.device)?;
    let part = VirtioPart::new(vm, memory, VirtioSlot::Net, net, Some(&saved.transport))?;
    let port = config.map(port).transpose()?.flatten();
    let changed = port.is_some() || saved.device.link_up;
    if changed {
        part.lock().change_config(|net| match (config, port) {
            (Some(config), Some(port)) => net.connect(config.mac, port),
            _ => Ok(()),
        })?;
    }
    Ok(Some(part))
}

/// Adds the device to a state file.
pub(crate) fn save(part: &VirtioPart<Net>, writer: &mut StateWriter) -> Result<(), WriteError> {
    part.save(writer, TRANSPORT_SECTION)?;
    let state = part.lock().device().save();
    writer.section(DEVICE_SECTION, NET_STATE_VERSION, &state)
}

fn port(config: &NetConfig) -> Result<Option<Box<dyn FramePort>>, NetError> {
    let Some(tap) = &config.tap else {
        return Ok(None);
    };
    let tap = tap.try_clone().and_then(TapPort::new);
    Ok(Some(Box::new(tap.map_err(NetError::Port)?)))
}
