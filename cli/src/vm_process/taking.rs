//! The command's side of a pool: asks for one of its clones.

use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;

use super::link::CommandEnd;
use super::plan::RestorePlan;
use crate::args::Context;
use crate::json_lines;
use crate::pool::place::Place;
use crate::pool::request::{Request, VERSION};

/// A pool has no clone for us.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotTaken(pub String);

/// Asks the pool of the plan's template. The answer comes over the link: a process that takes the request, or
/// that there is none.
///
/// # Errors
/// There is no pool.
pub fn ask(context: &Context, plan: &RestorePlan, remove: bool) -> anyhow::Result<CommandEnd> {
    let request = Request {
        version: VERSION,
        plan: plan.clone(),
        remove,
        verbosity: context.verbosity,
        began_at: Some(context.timeline.began_at()),
    };
    let socket = Place::of(&context.state, &plan.template).socket();
    let connect = || -> io::Result<UnixStream> {
        let stream = UnixStream::connect(&socket)?;
        json_lines::send(&stream, &request)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    };
    let stream = connect().map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            let name = &plan.template;
            let hint = format!("'minivmm pool {name}' starts one");
            NotTaken(format!("template {name} has no pool; {hint}"))
        }
        _ => NotTaken(format!("the pool at {}: {error}", socket.display())),
    })?;
    Ok(CommandEnd::of(stream))
}
