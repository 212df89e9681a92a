//! Pools: clones of a template that are made ahead of time and wait for somebody to want one.
//!
//! | Module | Process | What it does |
//! |---|---|---|
//! | [`place`] | all | the files of a pool in the state directory, and who owns them |
//! | [`request`] | all | what is asked of a pool, and how its processes talk |
//! | [`keeper`] | pool | makes members, replaces those that are taken or have died |
//! | [`refill`] | pool | when the next member is made |
//! | [`member`] | member | makes a clone up to its first instruction, and waits |
//!
//! All members wait at one socket. The kernel gives a caller to one of them, which serves it from then on as
//! the VM process that a command would have forked: the pool's own process has no part in it. A member has
//! no directory, no identity and no clock that runs until it is taken.

pub mod keeper;
pub mod member;
pub mod place;
pub mod refill;
pub mod request;
