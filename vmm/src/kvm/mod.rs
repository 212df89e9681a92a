//! The edge to KVM: every ioctl of the program is made in this module.

pub mod compat;
pub mod cpuid;
pub mod error;
pub mod irqchip;
pub mod msrs;
pub mod tsc;
pub mod vcpu_state;
pub mod vm;

pub use error::KvmError;
pub use vm::{KvmVm, open_kvm};
