//! Virtio-blk: disks (virtio 1.2, section 5.2).
//!
//! A request becomes a job of one or more operations on files, which an io_uring or a thread
//! carries out while the event loop goes on; its completion comes back through the back end's
//! descriptor. Before the machine counts as paused, [`Blk::settle`] waits until no job is left, so
//! the saved state of a disk has no request in it.
//!
//! | file | job |
//! |---|---|
//! | `config` | features and configuration space |
//! | `request` | the driver's requests in virtqueue buffers |
//! | `image`, `clusters` | where the bytes of the disk are: one file, or an overlay above another |
//! | `job` | a request as a list of operations |
//! | `jobs` | all requests that are being carried out |
//! | `engine` | operations through io_uring, or on a thread |
//! | `state` | what a clone has to know |

mod clusters;
mod config;
mod engine;
mod image;
mod job;
mod jobs;
mod ready;
mod request;
mod state;
#[cfg(test)]
mod tests;

pub use clusters::CLUSTER;
pub use image::{Image, SECTOR};
pub use state::{BLK_STATE_VERSION, BlkState, BlkStateError};

use super::device::{DeviceError, DeviceKind, VirtioDevice};
use super::rings::Rings;
use job::{Job, Origin};
use jobs::{Answer, Jobs};
use ready::Ready;
use request::{ID_BYTES, Limits, Piece, Request, Status, Work};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;
use vm_memory::{Bytes, GuestMemoryMmap};

const QUEUE_SIZE: u16 = 128;
const QUEUES: u16 = 2;
/// Requests in work at once: as many as an honest driver can have.
const MAX_JOBS: usize = QUEUE_SIZE as usize * QUEUES as usize;
/// Buffers with data in a request: the rest of the queue is for header and status.
const MAX_DATA_BUFFERS: u16 = QUEUE_SIZE - 2;
/// Bytes in one of them.
const MAX_BUFFER_BYTES: u32 = 512 << 10;
/// Bytes of data in a request.
const MAX_REQUEST_BYTES: u64 = MAX_DATA_BUFFERS as u64 * MAX_BUFFER_BYTES as u64;
/// Segments in a discard or write-zeroes request.
const MAX_SEGMENTS: u16 = 16;
/// How long a reset waits for what is under way.
const RESET_DEADLINE: Duration = Duration::from_secs(20);

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub enum BlkError {
    /// No descriptors left, most likely.
    #[error("Cannot prepare a disk")]
    Prepare(#[source] io::Error),
    /// The state does not fit the disk.
    #[error(transparent)]
    State(#[from] BlkStateError),
}

/// What is under way does not end.
#[derive(Debug, thiserror::Error)]
#[error("Disk {id} has {count} requests that the host does not finish")]
pub struct Unsettled {
    id: String,
    count: usize,
}

/// A disk. See the module's documentation.
#[derive(Debug)]
pub struct Blk {
    jobs: Jobs,
    id: String,
    /// What the driver was told; a disk in a slot that was empty may refuse writes all the same.
    is_read_only: bool,
    refuses_writes: bool,
    /// Queues with requests that nothing else reminds us of.
    left: [bool; QUEUES as usize],
    /// The driver uses the device and has not broken it.
    active: bool,
    epoch: u64,
}

impl Blk {
    /// A disk with an id of at most 20 bytes that the guest can ask for.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn new(image: Image, id: &str, read_only: bool) -> Result<Self, BlkError> {
        let ready = Ready::new().map_err(BlkError::Prepare)?;
        Ok(Self {
            jobs: Jobs::new(image, Arc::new(ready)),
            id: id.to_owned(),
            is_read_only: read_only,
            refuses_writes: read_only,
            left: [false; QUEUES as usize],
            active: false,
            epoch: 0,
        })
    }

    /// The disk of a clone. Its driver hears of a disk in a slot that was empty when its owner calls
    /// [`super::mmio::MmioTransport::change_config`].
    ///
    /// # Errors
    /// As [`Self::new`], or the image is another one than the guest knows.
    pub fn restore(
        image: Image,
        id: &str,
        read_only: bool,
        state: &BlkState,
    ) -> Result<Self, BlkError> {
        state.check(image.length())?;
        let mut disk = Self::new(image, id, state.read_only)?;
        disk.refuses_writes |= read_only;
        Ok(disk)
    }

    /// What a clone has to know. Nothing must be under way.
    #[must_use]
    pub fn save(&self) -> BlkState {
        BlkState {
            length: self.image().length(),
            read_only: self.is_read_only,
        }
    }

    /// The driver was told that it cannot write.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    /// The content.
    #[must_use]
    pub fn image(&self) -> &Image {
        self.jobs.image()
    }

    /// Waits until nothing is under way, at most as long as `deadline`; [`Self::check_settled`] tells
    /// whether that is so. What is in the queues stays there.
    ///
    /// # Errors
    /// The driver has broken its rings.
    pub fn settle(&mut self, rings: &mut Rings<'_>, deadline: Duration) -> Result<(), DeviceError> {
        let answers = self.jobs.finish_all(deadline);
        let result = self.answer(answers, rings);
        self.active &= result.is_ok();
        result
    }

    /// Checks that nothing is under way: neither guest memory nor the image changes by itself.
    ///
    /// # Errors
    /// The host has not finished something.
    pub fn check_settled(&self) -> Result<(), Unsettled> {
        match self.jobs.count() {
            0 => Ok(()),
            count => Err(Unsettled {
                id: self.id.clone(),
                count,
            }),
        }
    }

    /// Takes requests from a queue for as long as there is room. A driver that breaks it is left
    /// alone until it resets the device.
    fn serve(&mut self, queue: u16, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        if !self.active {
            return Ok(());
        }
        let result = self.take_requests(queue, rings);
        self.active = result.is_ok();
        self.jobs.submit();
        result
    }

    fn take_requests(&mut self, queue: u16, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        let mut answered = false;
        let mut left = true;
        for _ in 0..=QUEUE_SIZE {
            if self.jobs.count() >= MAX_JOBS {
                break;
            }
            let Some(chain) = rings.pop(queue)? else {
                if rings.enable_doorbell(queue)? {
                    continue;
                }
                left = false;
                break;
            };
            let head = chain.head_index();
            let request = Request::read(rings.memory(), chain, self.limits());
            answered |= self.begin(queue, head, request, rings)?;
        }
        if answered {
            rings.signal_used(queue)?;
        }
        if let Some(flag) = self.left.get_mut(usize::from(queue)) {
            *flag = left;
        }
        if left {
            self.jobs.remind();
        }
        Ok(())
    }

    /// Begins what a chain asks for; true when it was answered at once.
    fn begin(
        &mut self,
        queue: u16,
        head: u16,
        request: Option<Request>,
        rings: &mut Rings<'_>,
    ) -> Result<bool, DeviceError> {
        let Some(request) = request else {
            tracing::debug!(disk = self.id, "Request without room for an answer");
            rings.add_used(queue, head, 0)?;
            return Ok(true);
        };
        let origin = Origin {
            queue,
            head,
            status: request.status,
            epoch: self.epoch,
        };
        let answer = match request.work {
            Ok(Work::Id(room)) => self.answer_id(origin, room, rings.memory()),
            Ok(work) => {
                let job = Job::new(origin, rings.memory().clone(), work);
                match self.jobs.add(job) {
                    None => return Ok(false),
                    Some(answer) => answer,
                }
            }
            Err(status) => Answer::failed(origin, status),
        };
        put(&answer, rings)?;
        Ok(true)
    }

    fn answer_id(&self, origin: Origin, room: Piece, memory: &GuestMemoryMmap) -> Answer {
        let mut bytes = [0; ID_BYTES];
        for (byte, value) in bytes.iter_mut().zip(self.id.bytes()) {
            *byte = value;
        }
        match memory.write_slice(&bytes, room.address) {
            Ok(()) => Answer {
                origin,
                status: Status::Ok,
                written: ID_BYTES as u64,
            },
            Err(_) => Answer::failed(origin, Status::IoError),
        }
    }

    /// Returns chains to a driver that still waits for them.
    fn answer(&mut self, answers: Vec<Answer>, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        if !self.active {
            return Ok(());
        }
        let mut used = [false; QUEUES as usize];
        for answer in answers {
            let origin = answer.origin;
            if origin.epoch == self.epoch {
                put(&answer, rings)?;
                if let Some(flag) = used.get_mut(usize::from(origin.queue)) {
                    *flag = true;
                }
            }
        }
        for (queue, _) in (0..).zip(used).filter(|(_, used)| *used) {
            rings.signal_used(queue)?;
        }
        Ok(())
    }

    fn limits(&self) -> Limits {
        Limits {
            length: self.image().length(),
            read_only: self.refuses_writes,
        }
    }

    fn after_completions(
        &mut self,
        answers: Vec<Answer>,
        rings: &mut Rings<'_>,
    ) -> Result<(), DeviceError> {
        self.answer(answers, rings)?;
        for queue in 0..QUEUES {
            if self.left.get(usize::from(queue)) == Some(&true) && self.jobs.count() < MAX_JOBS {
                self.serve(queue, rings)?;
            }
        }
        Ok(())
    }
}

fn put(answer: &Answer, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
    let Answer {
        origin,
        status,
        written,
    } = answer;
    // It was in guest memory when the request came, and guest memory only grows.
    let told = rings.memory().write_obj(*status as u8, origin.status);
    let written = if told.is_ok() { written + 1 } else { 0 };
    let written = u32::try_from(written).unwrap_or(u32::MAX);
    rings.add_used(origin.queue, origin.head, written)
}

impl VirtioDevice for Blk {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn features(&self) -> u64 {
        config::features(self.is_read_only)
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE; QUEUES as usize]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = config::space(self.image().length());
        let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
        for (byte, value) in data.iter_mut().zip(space.into_iter().skip(skipped)) {
            *byte = value;
        }
    }

    /// The doorbell comes for whatever is in the queues.
    fn activate(&mut self, _features: u64, _rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        self.active = true;
        Ok(())
    }

    fn queue_notified(&mut self, queue: u16, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        self.serve(queue, rings)
    }

    fn backend_fd(&self) -> Option<RawFd> {
        Some(self.jobs.ready().as_raw_fd())
    }

    fn backend_ready(&mut self, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        let answers = self.jobs.finish_some();
        let result = self.after_completions(answers, rings);
        self.active &= result.is_ok();
        result
    }

    /// Waits for what is under way, as it may still write to the driver's buffers.
    fn reset(&mut self) {
        self.active = false;
        self.epoch += 1;
        self.left = [false; QUEUES as usize];
        drop(self.jobs.finish_all(RESET_DEADLINE));
        if self.jobs.count() > 0 {
            tracing::error!(disk = self.id, "Requests are under way after a reset");
        }
    }
}
