//! The commands, one file each.

pub mod completions;
pub mod console;
pub mod exec;
pub mod guest;
pub mod logs;
pub mod man;
pub mod pause;
pub mod ps;
pub mod resize;
pub mod restore;
pub mod resume;
pub mod rm;
pub mod run;
pub mod snapshot;
pub mod stop;
pub mod template;
pub mod wait;

use crate::error::{FAILURE, Outcome, SUCCESS, describe};
use crate::id::VmId;
use crate::output;

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
