//! The commands, one file each.

pub mod completions;
pub mod console;
pub mod cp;
pub mod exec;
pub mod guest;
pub mod logs;
pub mod man;
pub mod pause;
pub mod pool;
pub mod port_forward;
pub mod ps;
pub mod resize;
pub mod restore;
pub mod resume;
pub mod rm;
pub mod run;
pub mod snapshot;
pub mod stats;
pub mod stop;
pub mod template;
pub mod wait;

use std::path::PathBuf;

use anyhow::{Context as _, bail};

use crate::args::Context;
use crate::error::{FAILURE, Outcome, SUCCESS, describe};
use crate::id::VmId;
use crate::output;
use crate::state::record::State;

/// The socket that leads to the guest's vsock ports, of a VM that can answer.
///
/// # Errors
/// There is no such VM, or it is paused or only being started.
fn vsock_of(context: &Context, id: &VmId) -> anyhow::Result<PathBuf> {
    let vm = context.state.find_running(id)?;
    let record = vm
        .record
        .with_context(|| format!("VM {id} is only just being started"))?;
    if record.state == State::Paused {
        bail!("VM {id} is paused; 'minivmm resume {id}' lets it go on");
    }
    Ok(vm.dir.vsock_socket())
}

/// Does `action` with each VM and prints the ids it was done with. One that fails does not keep
/// the others from being tried.
fn for_each_vm(ids: &[VmId], action: impl Fn(&VmId) -> anyhow::Result<()>) -> Outcome {
    let mut code = SUCCESS;
    for id in ids {
        match action(id) {
            Ok(()) => output::line(id)?,
            Err(error) => {
                output::complain(format!("error: {}", describe(&error)));
                code = FAILURE;
            }
        }
    }
    Ok(code)
}
