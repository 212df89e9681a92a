//! PID 1: from the kernel's first process to an agent that answers.

mod loopback;
mod modules;
mod mounts;
mod root;

use std::fs;
use std::time::Duration;

use crate::error::Error;
use crate::exec::{debug_shell, image};
use crate::machine::uevent::Uevents;
use crate::machine::{Machine, host_names, hotplug, machine_id, memory, shutdown, vsock};
use crate::server::{Listeners, Server};
use crate::{VERSION, say};

/// How long the vsock device may take to appear after its modules are loaded.
const VSOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// Sets up the machine and serves; returns only on failure.
pub fn run() -> Result<(), Error> {
    mounts::mount_all()?;
    shutdown::ask_for_ctrl_alt_del();
    // Before the modules, so that no event of theirs is missed.
    let mut uevents = Uevents::open()?;
    modules::load_listed();
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    image::keep_for_later()?;
    root::enter(&command_line, &mut uevents)?;
    best_effort("bring up the loopback interface", loopback::bring_up());
    best_effort("set the host name", host_names::set_from_file());
    best_effort("make a machine id", machine_id::fill_empty());
    best_effort("keep an idle machine asleep", memory::compact_on_demand());
    // What the host adds later is then in use without a further step.
    hotplug::online_new_memory_automatically();

    let shell_wanted = has_flag(&command_line, "minivmm.debug_shell");
    if shell_wanted {
        debug_shell::start();
    }
    match serve(&mut uevents) {
        Err(error) if shell_wanted => {
            say(&format!("{error}; going on until the debug shell ends"));
            debug_shell::wait_until_it_ends();
            Err(error)
        }
        result => result,
    }
}

fn serve(uevents: &mut Uevents) -> Result<(), Error> {
    vsock::wait_for_device(uevents, VSOCK_TIMEOUT)?;
    let server = Server::new(Listeners::vsock()?, Some(Machine::open()?))?;
    vsock::announce_ready();
    say(&format!("{VERSION} ready"));
    server.run()
}

fn best_effort(what: &str, result: Result<(), Error>) {
    if let Err(error) = result {
        say(&format!("Could not {what}: {error}"));
    }
}

fn has_flag(command_line: &str, flag: &str) -> bool {
    command_line
        .split_ascii_whitespace()
        .any(|word| word == flag)
}

#[cfg(test)]
mod tests {
    use super::has_flag;

    #[test]
    fn flag_must_be_a_word_of_its_own() {
        assert!(has_flag(
            "console=ttyS0 minivmm.debug_shell\n",
            "minivmm.debug_shell"
        ));
        assert!(!has_flag(
            "minivmm.debug_shell=0 xminivmm.debug_shell",
            "minivmm.debug_shell"
        ));
    }
}
