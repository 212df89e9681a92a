//! What hostile guests, host programs and files do to minivmm: the bodies of the fuzz targets.
//!
//! A target is a function of any bytes. It panics when it finds a fault: a panic of the code that
//! it calls, or a promise that was not kept. `tests/replay.rs` runs each over its corpus and over
//! inputs that proptest makes; the crate in `tests/fuzz` runs them under libFuzzer.
//!
//! | target | what is hostile |
//! |---|---|
//! | [`virtqueues`] | rings, descriptors and memory of the socket and the memory device |
//! | [`queues`] | the same of disks, network cards, entropy and balloon devices |
//! | [`packets`] | vsock packets, and the handshake of host programs |
//! | [`registers`] | accesses to every register window |
//! | [`device_states`] | saved devices with a right checksum |
//! | [`machines`] | a whole saved machine with a right checksum; needs KVM |
//! | [`template_files`] | state file, digests, map of layers and manifest |
//! | [`answers`] | what the guest's agent answers |
//! | [`archives`] | tar streams of files from the guest |
//! | [`kernels`] | kernels, initial RAM disks and packages |

pub mod answers;
pub mod archives;
pub mod device_states;
pub mod driver;
pub mod edits;
pub mod host;
pub mod input;
pub mod kernels;
pub mod machine;
pub mod machines;
pub mod optional;
pub mod packets;
pub mod queues;
pub mod registers;
pub mod template_files;
pub mod virtqueues;

/// A target: its name and its body.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 10] = [
    ("virtqueues", virtqueues::run),
    ("queues", queues::run),
    ("packets", packets::run),
    ("registers", registers::run),
    ("device_states", device_states::run),
    ("machines", machines::run),
    ("template_files", template_files::run),
    ("answers", answers::run),
    ("archives", archives::run),
    ("kernels", kernels::run),
];
