//! End-to-end tests of minivmm: the release build, stock kernels, real KVM.
//!
//! A test makes a [`Host`], starts VMs of a [`Guest`] on it, and is done; that nothing is left behind
//! is checked when the host goes away:
//!
//! ```no_run
//! use minivmm_tests::{Guest, Host};
//!
//! let host = Host::new();
//! let vm = host.run(&Guest::debian_6_1().cpus(2));
//! assert_eq!(vm.sh("nproc").ok().text(), "2\n");
//! vm.sh("poweroff -f");
//! vm.minivmm(["wait"]).fails(0);
//! ```
//!
//! | Module | What is in it |
//! |---|---|
//! | [`guest`] | the guests that `tests/prepare-guests` has made, and the machines they are booted on |
//! | [`host`] | a state directory and a store for one test, and all ways to run the program there |
//! | [`clock`] | a guest's time compared with this host's |
//! | [`hybrid`] | streams between a guest and this host's programs |
//! | [`vm`] | one running VM |
//! | `pools` | the pool of a host |
//! | [`process`] | a program that runs, and how it ended; every wait has a deadline |
//! | [`random`] | random numbers that can be had again, and how often a long test does something |
//! | [`pattern`] | bytes of which none can be lost, doubled or moved unseen |
//! | [`random_notes`] | random numbers that a process reads in clones |
//! | [`sector`] | sectors of a disk that tell where and when they were written |
//! | [`smaps`] | what the kernel says of a process's memory |
//! | [`watch`] | waiting for what happens outside the test |
//! | [`tiny`] | guests of a few instructions, which need no kernel |
//! | [`terminal`] | a program that runs on a terminal of its own |
//! | [`leftovers`] | what must not be there after a test |
//! | [`scratch`] | the directory of the test binary, which goes away however that ends |

#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed, with the line that says why"
)]

mod captured;
pub mod clock;
pub mod guest;
pub mod host;
pub mod hybrid;
mod kept_templates;
pub mod leftovers;
pub mod pattern;
mod pools;
pub mod process;
pub mod random;
pub mod random_notes;
pub mod scratch;
pub mod sector;
pub mod smaps;
pub mod terminal;
pub mod tiny;
pub mod vm;
pub mod watch;

pub use guest::Guest;
pub use host::Host;
pub use process::{Ended, Running};
pub use terminal::Terminal;
pub use vm::Vm;
pub use watch::{LIMIT, until};
