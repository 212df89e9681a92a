//! The process of one VM, and the command that starts it.
//!
//! | Module | Side | What it does |
//! |---|---|---|
//! | [`process`] | command | starts the process |
//! | [`launch`] | command | shows progress, waits for "ready", or is the console until the end |
//! | [`early`] | both | a VM process that is forked before the command has read its arguments |
//! | [`taking`] | command | asks a pool for a clone |
//! | [`fork`] | both | the fork itself, and becoming a daemon |
//! | [`link`] | both | the socket between the two: messages one way, its end the other way |
//! | [`plan`] | both | what to start |
//! | [`start`] | VM process | from its first line to its last: builds the machine, ends in order |
//! | [`cloning`] | VM process | what is particular to clones: their template, and how they come to run |
//! | [`premises`] | VM process | the VM's directory with its log, record and sockets |
//! | [`session`] | VM process | the poll loop: serves the machine from its first instruction to its end |
//! | [`bring_up`], [`becoming_ready`] | VM process | from running vCPUs to an agent that has answered, and to a VM that is ready |
//! | [`console`] | VM process | `console.sock` and `console.log` |
//! | [`disks`] | VM process | the user's disks, the template's, and overlays |
//! | [`snapshot`], [`snapshotting`] | VM process | makes a template of a machine in use, which goes on |
//! | [`resizing`], [`stopping`] | VM process | what else may be asked of a machine in use |
//! | [`memory_asked`] | VM process | what the guest does with its memory |
//! | [`freeze`] | VM process | makes a machine that is up a template |
//! | [`template_watch`] | VM process | whether a clone's template stays as it was |
//! | [`tuning`] | VM process | what the first clone of a template does for later ones |

mod becoming_ready;
mod bring_up;
pub mod cloning;
mod console;
mod disks;
pub mod early;
pub mod fork;
mod freeze;
pub mod launch;
pub mod link;
mod memory_asked;
pub mod plan;
pub mod premises;
mod process;
mod resizing;
mod session;
pub mod sizing;
mod snapshot;
mod snapshotting;
mod start;
mod stopping;
mod taking;
mod template_watch;
mod tuning;
