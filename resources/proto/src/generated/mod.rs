//! Generated from `proto/*.proto`; see `tests/generated.rs` for the command.
#![allow(
    missing_docs,
    missing_debug_implementations,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    reason = "the generator's style is not ours to choose"
)]

pub mod agent;
pub mod agent_ttrpc;
pub mod guest;
pub mod guest_ttrpc;
pub mod health;
pub mod health_ttrpc;
