//! The question that a peer's guest has to answer: the health check of its agent.

use std::os::unix::net::UnixStream;
use std::path::Path;

use minivmm_tests::{LIMIT, hybrid};
use proto::{AGENT_PORT, AgentClient};

/// Asks over a socket of the kind `CONNECT PORT`, at which the VMM listens already.
///
/// # Errors
/// There is no answer.
pub fn over_socket(socket: &Path) -> anyhow::Result<()> {
    over_stream(hybrid::try_connect(socket, AGENT_PORT)?)
}

/// Asks over a connection to the agent.
///
/// # Errors
/// There is no answer.
pub fn over_stream(stream: UnixStream) -> anyhow::Result<()> {
    Ok(AgentClient::new(stream).check(LIMIT)?)
}
