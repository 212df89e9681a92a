//! What can go wrong on the host: killed processes, full disks, too few descriptors, signals, two
//! commands at once, a template that changes under its clones.
//!
//! The guests are a few instructions long, so that a VM takes milliseconds and runs on any
//! `/dev/kvm`. What is left behind is looked for after every fault. Moments are random: the seed is
//! printed, `MINIVMM_SEED` repeats it, and `MINIVMM_ROUNDS` makes a soak of it.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod bench;
mod descriptors;
mod disk_full;
mod kill;
mod leaks;
mod long_copies;
mod pools;
mod races;
mod signals;
mod template_changes;
