//! Why a call to the agent failed.

use std::io;
use std::time::Duration;

use ttrpc::Code;

/// Why a call to the agent failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No complete answer came in time.
    #[error("Agent did not answer {method} within {} ms", timeout.as_millis())]
    Timeout {
        /// The call.
        method: &'static str,
        /// How long it was given.
        timeout: Duration,
    },
    /// The agent or its guest has gone away, or an earlier call on this connection failed.
    #[error("Connection to the agent closed during {method}")]
    Closed {
        /// The call.
        method: &'static str,
    },
    /// The socket reported an error.
    #[error("Connection to the agent failed during {method}")]
    Io {
        /// The call.
        method: &'static str,
        /// What the socket reported.
        source: io::Error,
    },
    /// The answer is not what the interface promises.
    #[error("Agent gave a malformed answer to {method}: {reason}")]
    Malformed {
        /// The call.
        method: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The agent refused or failed.
    #[error("Agent refused {method}: {message}")]
    Refused {
        /// The call.
        method: &'static str,
        /// The kind of refusal. `Exec` uses `NOT_FOUND` and `PERMISSION_DENIED`.
        code: Code,
        /// The agent's words.
        message: String,
    },
}
