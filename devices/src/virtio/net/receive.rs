//! Frames to the guest.

use super::port::FramePort;
use super::transmit::is_gone;
use super::{FRAMES_PER_TURN, HEADER_LENGTH, LONGEST_FRAME, QUEUE_SIZE, RECEIVE_QUEUE};
use crate::virtio::device::DeviceError;
use crate::virtio::rings::{Chain, RingError, Rings};
use std::io::{ErrorKind, Write};
use std::ops::Range;

/// Where the header has the number of buffers that a frame takes.
const BUFFER_COUNT: Range<usize> = 10..12;

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// The port tells when there are more frames.
    MoreLater,
    /// A frame waits for buffers of the guest; a doorbell comes with them.
    NoBuffers,
    /// The interface was removed.
    PortGone,
}

/// The frame that is on its way into the guest.
#[derive(Debug)]
pub(super) struct Incoming {
    /// Room for the longest frame once there was one; a card without traffic takes no memory.
    frame: Vec<u8>,
    /// Bytes of the frame that waits for buffers.
    waiting: Option<usize>,
    /// A frame may be spread over several buffers.
    mergeable: bool,
}

impl Incoming {
    pub(super) fn new() -> Self {
        Self {
            frame: Vec::new(),
            waiting: None,
            mergeable: false,
        }
    }

    pub(super) fn set_mergeable(&mut self, mergeable: bool) {
        self.mergeable = mergeable;
    }

    /// Brings frames to the guest, as many as a turn allows.
    pub(super) fn receive(
        &mut self,
        port: &mut dyn FramePort,
        rings: &mut Rings<'_>,
    ) -> Result<Progress, DeviceError> {
        let mut delivered = Delivered::default();
        let mut progress = Progress::MoreLater;
        for _ in 0..FRAMES_PER_TURN {
            let length = match self.next_frame(port) {
                Next::Frame(length) => length,
                Next::None => break,
                Next::PortGone => {
                    progress = Progress::PortGone;
                    break;
                }
            };
            if !self.deliver(length, rings, &mut delivered)? {
                self.waiting = Some(length);
                progress = Progress::NoBuffers;
                break;
            }
        }
        delivered.signal(rings)?;
        Ok(progress)
    }

    /// The frame that waits, or the port's next.
    fn next_frame(&mut self, port: &mut dyn FramePort) -> Next {
        if let Some(length) = self.waiting.take() {
            return Next::Frame(length);
        }
        self.frame.resize(LONGEST_FRAME, 0);
        match port.receive(&mut self.frame) {
            // An interface that is down has nothing; neither has one whose frame is none.
            Ok(length) if length <= HEADER_LENGTH => Next::None,
            Ok(length) => Next::Frame(length),
            Err(error) if is_gone(&error) => Next::PortGone,
            Err(error) => {
                if error.kind() != ErrorKind::WouldBlock {
                    tracing::debug!(%error, "Tap interface gives no frame");
                }
                Next::None
            }
        }
    }

    /// Puts the frame into the guest's buffers; false when there are not enough.
    fn deliver(
        &mut self,
        length: usize,
        rings: &mut Rings<'_>,
        delivered: &mut Delivered,
    ) -> Result<bool, DeviceError> {
        let Some(chains) = self.take_buffers(length, rings)? else {
            return Ok(false);
        };
        let count = u16::try_from(chains.len()).unwrap_or(QUEUE_SIZE);
        let mut rest = self.frame.get_mut(..length).unwrap_or_default();
        if let Some(field) = rest.get_mut(BUFFER_COUNT) {
            field.copy_from_slice(&count.to_le_bytes());
        }
        let mut used = Vec::with_capacity(chains.len());
        for (chain, room) in chains {
            let head = chain.head_index();
            let (part, after) = rest.split_at_mut(room.min(rest.len()));
            let mut writer = chain.writer(rings.memory()).map_err(broken)?;
            writer.write_all(part).map_err(DeviceError::Backend)?;
            used.push((head, u32::try_from(part.len()).unwrap_or(0)));
            rest = after;
        }
        rings.add_used_together(RECEIVE_QUEUE, &used)?;
        delivered.note(used.len());
        Ok(true)
    }

    /// Takes buffers with room for a frame; none when there are not enough, after asking for a
    /// doorbell. A driver without mergeable buffers has to have room for any frame in each.
    fn take_buffers<'a>(
        &self,
        length: usize,
        rings: &mut Rings<'a>,
    ) -> Result<Option<Vec<(Chain<'a>, usize)>>, DeviceError> {
        let mut chains = Vec::new();
        let mut room = 0;
        // A driver that adds buffers while it is looked at has an end as well.
        for _ in 0..2 * QUEUE_SIZE {
            if room >= length {
                return Ok(Some(chains));
            }
            let Some(chain) = rings.pop(RECEIVE_QUEUE)? else {
                if rings.enable_doorbell(RECEIVE_QUEUE)? {
                    continue;
                }
                chains.iter().for_each(|_| rings.push_back(RECEIVE_QUEUE));
                return Ok(None);
            };
            let memory = rings.memory();
            let here = chain.clone().writer(memory).map_err(broken)?;
            let here = here.available_bytes();
            let fits = self.mergeable || here >= length;
            // An empty buffer can never be filled, and there would be no end of them.
            if here == 0 || !fits || chains.len() >= usize::from(QUEUE_SIZE) {
                return Err(broken(RingError::InvalidChain));
            }
            room += here;
            chains.push((chain, here));
        }
        Err(broken(RingError::InvalidChain))
    }
}

/// What [`Incoming::next_frame`] found.
enum Next {
    Frame(usize),
    None,
    PortGone,
}

/// What a turn has brought, for one interrupt at its end.
#[derive(Debug, Default)]
struct Delivered {
    any: bool,
    spread: bool,
}

impl Delivered {
    fn note(&mut self, buffers: usize) {
        self.any = true;
        self.spread |= buffers > 1;
    }

    /// The queue cannot tell whether the driver waits for one of several buffers that came at once.
    fn signal(&self, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        if self.any {
            rings.signal_used(RECEIVE_QUEUE)?;
        }
        if self.spread {
            rings.signal_used_anyhow();
        }
        Ok(())
    }
}

fn broken(source: RingError) -> DeviceError {
    DeviceError::Ring {
        queue: RECEIVE_QUEUE,
        source,
    }
}
