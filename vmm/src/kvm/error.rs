//! What can go wrong at the edge to KVM.

use std::io;

/// A KVM call failed, or KVM on this host cannot do what a machine needs.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// There is no KVM.
    #[error(
        "/dev/kvm does not exist; load the kvm_intel or kvm_amd module, and enable virtualisation in the firmware"
    )]
    Missing(#[source] io::Error),
    /// KVM is there for others.
    #[error(
        "/dev/kvm may not be opened by this user; add the user to the group kvm, or run as root"
    )]
    Permission(#[source] io::Error),
    /// KVM cannot be opened for another reason.
    #[error("Cannot open /dev/kvm")]
    Open(#[source] io::Error),
    /// A kernel from before 2007, or no KVM device at all.
    #[error("/dev/kvm speaks API version {0}, expected 12")]
    ApiVersion(i32),
    /// KVM lacks something essential.
    #[error("KVM on this host does not offer {0}")]
    Capability(&'static str),
    /// An ioctl failed.
    #[error("{call} failed")]
    Call {
        /// Name of the call in the KVM API documentation.
        call: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// KVM set or read fewer MSRs than asked and stopped at one.
    #[error("{call} stopped at MSR {index:#x}, {done} of {asked} done")]
    Msr {
        /// Name of the call in the KVM API documentation.
        call: &'static str,
        /// The MSR that KVM refuses.
        index: u32,
        /// MSRs done before it.
        done: usize,
        /// MSRs asked for.
        asked: usize,
    },
    /// A list of ours does not fit a KVM structure.
    #[error("{0} entries are too many for {1}")]
    TooMany(usize, &'static str),
    /// A saved extended state has another size than KVM uses.
    #[error("Saved XSAVE area has {found} bytes, this host's KVM wants {expected}")]
    XsaveSize {
        /// Bytes in the state.
        found: usize,
        /// Bytes KVM reads.
        expected: usize,
    },
}

impl KvmError {
    /// Wraps the errno of `call`.
    pub(crate) fn call(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |errno| Self::Call {
            call,
            source: errno.into(),
        }
    }
}
