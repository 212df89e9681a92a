//! The store from outside, as several processes and unkind file systems see it.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot set up what it tests has failed"
)]

mod child;
mod crash;
mod damage;
mod disk_full;
mod disks;
mod families;
mod fixtures;
mod flatten;
mod layers;
mod layers_damage;
mod life;
mod permissions;
mod support;
