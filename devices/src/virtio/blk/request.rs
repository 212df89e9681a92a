//! Requests in virtqueue buffers (virtio 1.2, section 5.2.6). All of it is hostile input.

use super::engine::Buffer;
use super::image::SECTOR;
use super::{MAX_REQUEST_BYTES, MAX_SEGMENTS, QUEUE_SIZE};
use crate::virtio::rings::Chain;
use std::collections::VecDeque;
use std::ops::Range;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const HEADER_BYTES: u64 = 16;
/// Bytes of the answer to a request for the disk's id.
pub(super) const ID_BYTES: usize = 20;
/// Bytes of a discard or write-zeroes segment.
const SEGMENT_BYTES: usize = 16;
/// Flag of a write-zeroes segment: the space may be given back.
const UNMAP: u32 = 1;

/// What the driver is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// A chain with room for an answer.
#[derive(Debug)]
pub(super) struct Request {
    /// Where the answer goes.
    pub status: GuestAddress,
    /// What to do, or why it cannot be.
    pub work: Result<Work, Status>,
}

/// What the driver wants. Ranges are bytes of the disk, within its length.
#[derive(Debug)]
pub(super) enum Work {
    Read(Range<u64>, VecDeque<Buffer>),
    Write(Range<u64>, VecDeque<Buffer>),
    Flush,
    /// Where the id is to be written.
    Id(Piece),
    Discard(Vec<Range<u64>>),
    WriteZeroes(Vec<Zeroes>),
}

/// What is to read as zeroes.
#[derive(Debug, Clone)]
pub(super) struct Zeroes {
    pub bytes: Range<u64>,
    pub may_unmap: bool,
}

/// A part of guest memory as the driver names it: not looked at yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub address: GuestAddress,
    pub length: u64,
}

/// The limits of the disk that a request is for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub length: u64,
    pub read_only: bool,
}

impl Request {
    /// Reads the request in a chain; `None` when there is no room for an answer.
    pub(super) fn read(memory: &GuestMemoryMmap, chain: Chain<'_>, limits: Limits) -> Option<Self> {
        // The ring has no longer chains, but an indirect table could have 65535 buffers.
        if chain.clone().nth(QUEUE_SIZE.into()).is_some() {
            return None;
        }
        let mut readable = Pieces::default();
        let mut writable = Pieces::default();
        for descriptor in chain {
            let side = if descriptor.is_write_only() {
                &mut writable
            } else {
                &mut readable
            };
            side.push(descriptor.addr(), descriptor.len().into());
        }
        let status = writable.take_last_byte()?;
        if !memory.address_in_range(status) {
            return None;
        }
        let work = parse(memory, readable, writable, limits);
        Some(Self { status, work })
    }
}

fn parse(
    memory: &GuestMemoryMmap,
    mut readable: Pieces,
    writable: Pieces,
    limits: Limits,
) -> Result<Work, Status> {
    let header = readable.take(HEADER_BYTES).ok_or(Status::IoError)?;
    let header: [u8; 16] = copy(memory, &header)?
        .try_into()
        .map_err(|_| Status::IoError)?;
    let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    let sector = u64::from_le_bytes(header[8..].try_into().map_err(|_| Status::IoError)?);
    match kind {
        READ => {
            let bytes = limits.data(sector, writable.length)?;
            Ok(Work::Read(bytes, writable.buffers(memory)?))
        }
        WRITE => {
            limits.check_writable()?;
            let bytes = limits.data(sector, readable.length)?;
            Ok(Work::Write(bytes, readable.buffers(memory)?))
        }
        FLUSH => Ok(Work::Flush),
        GET_ID => {
            let room = writable.list.front().copied();
            let fits = |piece: &Piece| piece.length >= ID_BYTES as u64;
            room.filter(fits).map(Work::Id).ok_or(Status::IoError)
        }
        DISCARD => {
            limits.check_writable()?;
            let segments = segments(memory, &readable, limits)?;
            if segments.iter().any(|segment| segment.may_unmap) {
                return Err(Status::Unsupported);
            }
            let ranges = segments.into_iter().map(|segment| segment.bytes);
            Ok(Work::Discard(ranges.collect()))
        }
        WRITE_ZEROES => {
            limits.check_writable()?;
            segments(memory, &readable, limits).map(Work::WriteZeroes)
        }
        _ => Err(Status::Unsupported),
    }
}

impl Limits {
    fn check_writable(self) -> Result<(), Status> {
        if self.read_only {
            Err(Status::IoError)
        } else {
            Ok(())
        }
    }

    fn data(self, sector: u64, length: u64) -> Result<Range<u64>, Status> {
        if length > MAX_REQUEST_BYTES || !length.is_multiple_of(SECTOR) {
            return Err(Status::IoError);
        }
        self.bytes(sector, length / SECTOR)
    }

    fn bytes(self, sector: u64, sectors: u64) -> Result<Range<u64>, Status> {
        let start = sector.checked_mul(SECTOR).ok_or(Status::IoError)?;
        let length = sectors.checked_mul(SECTOR).ok_or(Status::IoError)?;
        let end = start.checked_add(length).ok_or(Status::IoError)?;
        if length == 0 || end > self.length {
            return Err(Status::IoError);
        }
        Ok(start..end)
    }
}

/// The segments of a discard or write-zeroes request.
fn segments(
    memory: &GuestMemoryMmap,
    readable: &Pieces,
    limits: Limits,
) -> Result<Vec<Zeroes>, Status> {
    let most = usize::from(MAX_SEGMENTS) * SEGMENT_BYTES;
    let length = usize::try_from(readable.length).unwrap_or(usize::MAX);
    if length == 0 || length > most || !length.is_multiple_of(SEGMENT_BYTES) {
        return Err(Status::IoError);
    }
    let bytes = copy(memory, &readable.list)?;
    let read = |segment: &[u8]| {
        let field = |at: usize| {
            let bytes = segment.get(at..at + 4).and_then(|b| b.try_into().ok());
            bytes.map(u32::from_le_bytes).ok_or(Status::IoError)
        };
        let sector = u64::from(field(0)?) | u64::from(field(4)?) << 32;
        let flags = field(12)?;
        if flags & !UNMAP != 0 {
            return Err(Status::Unsupported);
        }
        Ok(Zeroes {
            bytes: limits.bytes(sector, field(8)?.into())?,
            may_unmap: flags & UNMAP != 0,
        })
    };
    bytes.chunks(SEGMENT_BYTES).map(read).collect()
}

/// One side of a chain.
#[derive(Debug, Default)]
struct Pieces {
    list: VecDeque<Piece>,
    length: u64,
}

impl Pieces {
    /// At most [`QUEUE_SIZE`] lengths of 32 bits: their sum fits.
    fn push(&mut self, address: GuestAddress, length: u64) {
        if length > 0 {
            self.length += length;
            self.list.push_back(Piece { address, length });
        }
    }

    fn take(&mut self, length: u64) -> Option<VecDeque<Piece>> {
        let mut taken = VecDeque::new();
        let mut missing = length;
        while missing > 0 {
            let piece = self.list.pop_front()?;
            let part = piece.length.min(missing);
            taken.push_back(Piece {
                length: part,
                ..piece
            });
            if part < piece.length {
                self.list.push_front(Piece {
                    address: piece.address.checked_add(part)?,
                    length: piece.length - part,
                });
            }
            missing -= part;
            self.length -= part;
        }
        Some(taken)
    }

    fn take_last_byte(&mut self) -> Option<GuestAddress> {
        let piece = self.list.pop_back()?;
        let length = piece.length - 1;
        self.length -= 1;
        if length > 0 {
            self.list.push_back(Piece { length, ..piece });
        }
        piece.address.checked_add(length)
    }

    /// The host's view of all pieces. They stay valid for as long as `memory` or a clone of it.
    fn buffers(self, memory: &GuestMemoryMmap) -> Result<VecDeque<Buffer>, Status> {
        let mut buffers = VecDeque::new();
        for piece in self.list {
            let length = usize::try_from(piece.length).map_err(|_| Status::IoError)?;
            for slice in GuestMemoryBackend::get_slices(memory, piece.address, length) {
                let slice = slice.map_err(|_| Status::IoError)?;
                let start = slice.ptr_guard_mut().as_ptr();
                buffers.push_back(Buffer::new(start, slice.len()));
            }
        }
        Ok(buffers)
    }
}

/// Copies a few bytes out of guest memory.
fn copy(memory: &GuestMemoryMmap, pieces: &VecDeque<Piece>) -> Result<Vec<u8>, Status> {
    let mut bytes = Vec::new();
    for piece in pieces {
        let length = usize::try_from(piece.length).map_err(|_| Status::IoError)?;
        let start = bytes.len();
        bytes.resize(start + length, 0);
        memory
            .read_slice(&mut bytes[start..], piece.address)
            .map_err(|_| Status::IoError)?;
    }
    Ok(bytes)
}
