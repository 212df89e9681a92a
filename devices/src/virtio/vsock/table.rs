//! The connections of a device, found by their host socket or by their ports.

use super::connection::Connection;
use super::packet::Ports;
use super::poller::Token;
use std::collections::HashMap;
use std::time::Instant;

/// A connection and what the muxer keeps about it.
#[derive(Debug)]
pub(super) struct Entry {
    pub connection: Connection,
    /// It is in the queue of those that have a packet for the guest.
    pub is_ready: bool,
    /// Its socket is watched for room to write.
    pub is_watched_writable: bool,
    /// When to stop waiting for the guest's RST.
    pub deadline: Option<Instant>,
}

/// All connections.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: HashMap<Token, Entry>,
    tokens: HashMap<Ports, Token>,
}

impl Table {
    pub(super) fn insert(&mut self, token: Token, connection: Connection) {
        self.tokens.insert(connection.ports(), token);
        let entry = Entry {
            connection,
            is_ready: false,
            is_watched_writable: false,
            deadline: None,
        };
        self.entries.insert(token, entry);
    }

    pub(super) fn remove(&mut self, token: Token) -> Option<Entry> {
        let entry = self.entries.remove(&token)?;
        self.tokens.remove(&entry.connection.ports());
        Some(entry)
    }

    pub(super) fn get_mut(&mut self, token: Token) -> Option<&mut Entry> {
        self.entries.get_mut(&token)
    }

    pub(super) fn find(&self, ports: Ports) -> Option<Token> {
        self.tokens.get(&ports).copied()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The connections that the guest has heard of.
    pub(super) fn known_to_guest(&self) -> Vec<Token> {
        let known = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.connection.is_known_to_guest());
        known.map(|(token, _)| *token).collect()
    }
}
