//! The edge to KVM: every ioctl of the program is made in this module.

pub mod compat;
pub mod cpuid;
pub mod detour;
pub mod early_vm;
pub mod error;
pub mod irqchip;
pub mod msrs;
pub mod tsc;
pub mod vcpu_state;
pub mod vm;

pub use early_vm::EarlyVm;
pub use error::KvmError;
pub use vm::{BareVm, KvmVm, open_kvm};
