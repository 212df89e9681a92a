//! Bytes of finished connections that their host programs have not read yet.
//!
//! The guest closed its socket and was released; what it sent before still has to arrive.

use super::host_end::HostEnd;
use super::poller::Token;
use std::collections::HashMap;

/// Host sockets that are closed once their last bytes are written.
#[derive(Debug, Default)]
pub(super) struct Remainders(HashMap<Token, HostEnd>);

impl Remainders {
    /// Keeps a socket that owes bytes and is watched for room to write.
    pub(super) fn insert(&mut self, token: Token, host: HostEnd) {
        self.0.insert(token, host);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The socket has news.
    pub(super) fn host_event(&mut self, token: Token, hung_up: bool) {
        let Some(host) = self.0.get_mut(&token) else {
            return;
        };
        let written = host.flush();
        tracing::trace!(written, "Bytes of a finished vsock connection");
        if hung_up || !host.owes_bytes() {
            self.0.remove(&token);
        }
    }
}
