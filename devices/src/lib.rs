//! What the guest sees: buses, the virtio-mmio transport and its devices, the serial console and
//! the small platform devices that ACPI tells the guest about.
//!
//! Nothing in this crate knows KVM. A device raises interrupts through an [`irq::IrqLine`] and
//! hears doorbells through eventfds that somebody else connects, so that every device can be
//! driven by a unit test.
//!
//! | module | guest's view |
//! |---|---|
//! | [`bus`] | port I/O and MMIO address decoding |
//! | [`virtio`] | the virtio-mmio transport and the devices behind it |
//! | [`serial`], [`console`] | a 16550A UART and where its bytes go |
//! | [`power`] | ACPI sleep and reset registers, the keyboard controller's reset line |
//! | [`pvpanic`] | the register a panicking guest writes to |
//! | [`cpu_hotplug`] | which CPUs are there, and which the guest is to take or give up |
//! | [`ged`] | the generic event device: one interrupt for all ACPI events |
//! | [`vmgenid`] | the VM generation id |

pub mod bus;
pub mod console;
pub mod cpu_hotplug;
pub mod ged;
pub mod irq;
pub mod power;
pub mod pvpanic;
pub mod serial;
pub mod virtio;
pub mod vmgenid;

/// Begins a thread of a VM process. The usual stack of 2 MiB would be one huge page, which is filled with zeros when
/// the thread begins and is private memory of the VM for as long as that lives.
pub fn thread(name: impl Into<String>) -> std::thread::Builder {
    const STACK: usize = 512 << 10;
    std::thread::Builder::new()
        .name(name.into())
        .stack_size(STACK)
}
