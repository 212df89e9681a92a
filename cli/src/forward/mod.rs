//! Connections of this host that go on in a guest. Each has a thread of its own, so that none waits for
//! another's guest program.

mod relay;

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;
use proto::FORWARD_PORT;
use proto::forward::Target;

use crate::error::describe;
use crate::id::VmId;
use crate::output;
use crate::stream::{self, Opened};

/// Enough for a poll loop.
const STACK_BYTES: usize = 128 * 1024;
/// The VM's device has no more connections.
const MOST_CONNECTIONS: usize = 1000;

/// What all connections have in common.
#[derive(Debug)]
pub struct Forwarder {
    vm: Arc<Vm>,
}

#[derive(Debug)]
struct Vm {
    vsock: PathBuf,
    id: VmId,
    connections: AtomicUsize,
}

impl Forwarder {
    /// For the VM `id` with this vsock socket.
    pub fn new(vsock: &Path, id: &VmId) -> Self {
        let vm = Vm {
            vsock: vsock.to_owned(),
            id: id.clone(),
            connections: AtomicUsize::new(0),
        };
        Self { vm: Arc::new(vm) }
    }

    /// Takes one connection, if one is there, and lets it go on to `target` in the guest.
    ///
    /// # Errors
    /// The listener has failed.
    pub fn accept(&self, listener: &TcpListener, target: &Target) -> anyhow::Result<()> {
        let (client, from) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if is_passing(&error) => return Ok(()),
            Err(error) => return Err(error).context("Cannot take a connection"),
        };
        let (vm, target) = (Arc::clone(&self.vm), target.clone());
        if vm.connections.fetch_add(1, Ordering::Relaxed) >= MOST_CONNECTIONS {
            vm.connections.fetch_sub(1, Ordering::Relaxed);
            complain(
                from,
                format!("{MOST_CONNECTIONS} connections are there already"),
            );
            return Ok(());
        }
        let work = move || {
            if let Err(error) = vm.serve(&client, &target) {
                complain(from, describe(&error));
            }
            vm.connections.fetch_sub(1, Ordering::Relaxed);
        };
        let thread = std::thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(work);
        if let Err(error) = thread {
            self.vm.connections.fetch_sub(1, Ordering::Relaxed);
            complain(from, format!("cannot start a thread: {error}"));
        }
        Ok(())
    }
}

impl Vm {
    fn serve(&self, client: &TcpStream, target: &Target) -> anyhow::Result<()> {
        let id = &self.id;
        let opened = stream::open(&self.vsock, FORWARD_PORT, &target.to_string())
            .with_context(|| format!("No connection to {id}"))?;
        match opened {
            Opened::Stream(guest) => {
                client
                    .set_nodelay(true)
                    .context("Cannot use the connection")?;
                relay::run(client, &guest).context("Connection is broken")
            }
            Opened::Refused(reason) => Err(anyhow::anyhow!("{id} refused {target}: {reason}")),
        }
    }
}

/// The connection has gone, or there is none, or no room for one now.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted
    )
}

fn complain(from: SocketAddr, text: impl std::fmt::Display) {
    output::complain(format!("minivmm: {from}: {text}"));
}
