//! Requests and answers on the guest-request queue (virtio 1.2, section 5.15.6).

use super::blocks::Occupancy;
use crate::virtio::rings::{Chain, RingError};
use std::io::{self, Write};
use virtio_queue::{Reader, Writer};
use vm_memory::{GuestMemoryMmap, Le16, Le64};

/// Bytes of a request.
const REQUEST_LENGTH: usize = 24;
/// Bytes of an answer.
pub(super) const ANSWER_LENGTH: u16 = 10;
/// Padding behind the type of a request or an answer.
type Padding = [u8; 6];

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

/// Why a chain is not a request.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// A driver must not make a chain longer than the queue.
    #[error("Descriptor chain has more than {limit} buffers")]
    TooManyBuffers {
        /// Size of the queue.
        limit: u16,
    },
    /// The descriptors do not describe guest memory.
    #[error("Descriptor chain cannot be followed")]
    Chain(#[source] RingError),
    /// Not enough to read.
    #[error("Request of {found} bytes, expected {REQUEST_LENGTH}")]
    Short {
        /// Bytes in the readable part of the chain.
        found: usize,
    },
    /// Not enough to write to.
    #[error("Room for an answer of {found} bytes, expected {ANSWER_LENGTH}")]
    NoRoom {
        /// Bytes in the writable part of the chain.
        found: usize,
    },
    /// Memory that was there a moment ago cannot be read or written.
    #[error("Buffer is inaccessible")]
    Access(#[from] io::Error),
    /// No such request.
    #[error("Unknown request type {found}")]
    UnknownType {
        /// The type.
        found: u16,
    },
}

/// Blocks as the driver names them: any numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    /// Guest physical address of the first one.
    pub address: u64,
    /// How many.
    pub blocks: u16,
}

/// What the driver wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Plug(Claim),
    Unplug(Claim),
    UnplugAll,
    State(Claim),
}

/// What it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    State(Occupancy),
    /// Not now: more than is requested.
    Refused,
    /// Not now: the host cannot.
    Busy,
    Error,
}

impl Request {
    /// Reads the request in a chain; what follows its 24 bytes is ignored.
    pub(super) fn read(memory: &GuestMemoryMmap, chain: Chain<'_>) -> Result<Self, RequestError> {
        let mut reader: Reader<'_> = chain.reader(memory).map_err(RequestError::Chain)?;
        let found = reader.available_bytes();
        if found < REQUEST_LENGTH {
            return Err(RequestError::Short { found });
        }
        let kind: Le16 = reader.read_obj()?;
        reader.read_obj::<Padding>()?;
        let address: Le64 = reader.read_obj()?;
        let blocks: Le16 = reader.read_obj()?;
        let claim = Claim {
            address: address.into(),
            blocks: blocks.into(),
        };
        match kind.into() {
            PLUG => Ok(Self::Plug(claim)),
            UNPLUG => Ok(Self::Unplug(claim)),
            UNPLUG_ALL => Ok(Self::UnplugAll),
            STATE => Ok(Self::State(claim)),
            found => Err(RequestError::UnknownType { found }),
        }
    }
}

impl Answer {
    fn bytes(self) -> [u8; ANSWER_LENGTH as usize] {
        let (kind, state) = match self {
            Self::Done | Self::State(Occupancy::Plugged) => (0, 0),
            Self::State(Occupancy::Unplugged) => (0, 1),
            Self::State(Occupancy::Mixed) => (0, 2),
            Self::Refused => (1, 0),
            Self::Busy => (2, 0),
            Self::Error => (3, 0),
        };
        [kind, 0, 0, 0, 0, 0, 0, 0, state, 0]
    }
}

/// Room for an answer in the writable part of a chain.
pub(super) struct AnswerRoom<'a>(Writer<'a>);

impl<'a> AnswerRoom<'a> {
    /// Looks at a chain of at most `limit` buffers.
    pub(super) fn find(
        memory: &'a GuestMemoryMmap,
        chain: Chain<'a>,
        limit: u16,
    ) -> Result<Self, RequestError> {
        // The ring has no longer chains, but an indirect table could have 65535 of them.
        if chain.clone().nth(limit.into()).is_some() {
            return Err(RequestError::TooManyBuffers { limit });
        }
        let writer: Writer<'_> = chain.writer(memory).map_err(RequestError::Chain)?;
        let found = writer.available_bytes();
        if found < ANSWER_LENGTH.into() {
            return Err(RequestError::NoRoom { found });
        }
        Ok(Self(writer))
    }

    /// Writes the answer.
    pub(super) fn fill(mut self, answer: Answer) -> Result<(), RequestError> {
        self.0.write_all(&answer.bytes())?;
        Ok(())
    }
}
