//! A request that is being carried out, one operation after the other.

use super::engine::{Action, Buffer, Operation};
use super::image::{Extent, Image};
use super::request::{Work, Zeroes};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// Most buffers of one system call (`IOV_MAX`).
const MAX_BUFFERS: usize = 1024;
const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// The chain that a job is for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    pub queue: u16,
    pub head: u16,
    pub status: GuestAddress,
    /// How many resets there were before; after another one nobody waits for the answer.
    pub epoch: u64,
}

/// A request in work.
#[derive(Debug)]
pub(super) struct Job {
    pub origin: Origin,
    /// Keeps the guest's buffers mapped.
    _memory: GuestMemoryMmap,
    work: Work,
    steps: VecDeque<Step>,
    /// A cluster on its way from below to the overlay.
    cluster: Vec<u8>,
}

/// One operation; a short one is repeated for the rest.
#[derive(Debug)]
struct Step {
    file: Arc<File>,
    bytes: Range<u64>,
    kind: StepKind,
    /// Bytes that were moved already.
    done: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StepKind {
    /// From the file to the guest.
    Read,
    /// From the guest to the file.
    Write,
    /// From below to the job's own memory.
    ReadCluster,
    /// From there to the overlay.
    WriteCluster,
    Allocate(i32),
    Sync,
}

impl Job {
    pub(super) fn new(origin: Origin, memory: GuestMemoryMmap, work: Work) -> Self {
        Self {
            origin,
            _memory: memory,
            work,
            steps: VecDeque::new(),
            cluster: Vec::new(),
        }
    }

    /// The bytes of the disk that it changes.
    pub(super) fn changes(&self) -> Vec<Range<u64>> {
        match &self.work {
            Work::Write(bytes, _) => vec![bytes.clone()],
            Work::Discard(ranges) => ranges.clone(),
            Work::WriteZeroes(list) => list.iter().map(|zeroes| zeroes.bytes.clone()).collect(),
            Work::Read(..) | Work::Flush | Work::Id(_) => Vec::new(),
        }
    }

    pub(super) fn collides(&self, other: &Self, image: &Image) -> bool {
        let theirs = other.changes();
        let collides = |one: &Range<u64>| theirs.iter().any(|other| image.collide(one, other));
        self.changes().iter().any(collides)
    }

    /// Decides on the operations; no job that collides is in work.
    pub(super) fn plan(&mut self, image: &Image) {
        let Some(file) = image.file() else {
            return;
        };
        let mut steps = VecDeque::new();
        match &self.work {
            Work::Read(bytes, _) => {
                let extents = image.extents(bytes.clone()).into_iter();
                let read = |extent: Extent| Step::new(&extent.file, extent.bytes, StepKind::Read);
                steps.extend(extents.map(read));
            }
            Work::Write(bytes, _) => change(image, file, bytes, StepKind::Write, &mut steps),
            Work::Discard(ranges) => {
                let punch = StepKind::Allocate(PUNCH_HOLE);
                for bytes in ranges {
                    change(image, file, bytes, punch, &mut steps);
                }
            }
            Work::WriteZeroes(list) => {
                for Zeroes { bytes, may_unmap } in list {
                    let mode = if *may_unmap { PUNCH_HOLE } else { ZERO_RANGE };
                    change(image, file, bytes, StepKind::Allocate(mode), &mut steps);
                }
            }
            Work::Flush => steps.push_back(Step::new(file, 0..0, StepKind::Sync)),
            Work::Id(_) => {}
        }
        self.steps = steps;
    }

    /// The operation that is due; `None` when all are done. Its buffers are the guest's or the
    /// job's own, and stay valid until the job is dropped.
    pub(super) fn operation(&mut self) -> Option<Operation> {
        let step = self.steps.front()?;
        let offset = step.bytes.start + step.done;
        let left = step.bytes.end - offset;
        let action = match step.kind {
            StepKind::Read => Action::Read(self.guest_buffers(left)),
            StepKind::Write => Action::Write(self.guest_buffers(left)),
            StepKind::ReadCluster => Action::Read(cluster_buffer(&mut self.cluster, step)),
            StepKind::WriteCluster => Action::Write(cluster_buffer(&mut self.cluster, step)),
            StepKind::Allocate(mode) => Action::Allocate(mode, left),
            StepKind::Sync => Action::Sync,
        };
        Some(Operation {
            file: step.file.as_raw_fd(),
            offset,
            action,
        })
    }

    /// The operation has ended: what it did becomes part of the image.
    ///
    /// # Errors
    /// The job cannot be finished.
    pub(super) fn advance(
        &mut self,
        result: io::Result<usize>,
        image: &mut Image,
    ) -> io::Result<()> {
        let moved = match result {
            Err(error) if is_passing(&error) => return Ok(()),
            other => other?,
        };
        let Some(step) = self.steps.front_mut() else {
            return Ok(());
        };
        if let StepKind::Allocate(_) | StepKind::Sync = step.kind {
            step.done = step.bytes.end - step.bytes.start;
        } else {
            if moved == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            step.done += moved as u64;
        }
        if let Work::Read(_, buffers) | Work::Write(_, buffers) = &mut self.work
            && let StepKind::Read | StepKind::Write = step.kind
        {
            skip(buffers, moved);
        }
        if step.bytes.start + step.done < step.bytes.end {
            return Ok(());
        }
        if let StepKind::Write | StepKind::WriteCluster | StepKind::Allocate(_) = step.kind {
            image.was_written(&step.bytes);
        }
        self.steps.pop_front();
        Ok(())
    }

    /// Bytes that a finished job has written to the guest's buffers.
    pub(super) fn bytes_for_guest(&self) -> u64 {
        match &self.work {
            Work::Read(bytes, _) => bytes.end - bytes.start,
            _ => 0,
        }
    }

    /// The driver can do without it.
    pub(super) fn is_optional(&self) -> bool {
        matches!(self.work, Work::Discard(_) | Work::WriteZeroes(_))
    }

    /// What the job does, for the log.
    pub(super) fn name(&self) -> &'static str {
        match self.work {
            Work::Read(..) => "read",
            Work::Write(..) => "write",
            Work::Flush => "flush",
            Work::Id(_) => "id",
            Work::Discard(_) => "discard",
            Work::WriteZeroes(_) => "write zeroes",
        }
    }

    fn guest_buffers(&self, length: u64) -> Vec<Buffer> {
        let (Work::Read(_, buffers) | Work::Write(_, buffers)) = &self.work else {
            return Vec::new();
        };
        let mut left = usize::try_from(length).unwrap_or(usize::MAX);
        let mut chosen = Vec::new();
        for buffer in buffers.iter().take(MAX_BUFFERS) {
            if left == 0 {
                break;
            }
            let part = buffer.limited(left);
            left -= part.length();
            chosen.push(part);
        }
        chosen
    }
}

impl Step {
    fn new(file: &Arc<File>, bytes: Range<u64>, kind: StepKind) -> Self {
        Self {
            file: file.clone(),
            bytes,
            kind,
            done: 0,
        }
    }
}

/// The operations that change `bytes`: what is cut at their ends is copied first.
fn change(
    image: &Image,
    file: &Arc<File>,
    bytes: &Range<u64>,
    kind: StepKind,
    steps: &mut VecDeque<Step>,
) {
    for Extent { file: base, bytes } in image.to_copy(bytes) {
        steps.push_back(Step::new(&base, bytes.clone(), StepKind::ReadCluster));
        steps.push_back(Step::new(file, bytes, StepKind::WriteCluster));
    }
    steps.push_back(Step::new(file, bytes.clone(), kind));
}

/// What is left of a step in the memory for a cluster, which is made by the first step that needs it.
fn cluster_buffer(memory: &mut Vec<u8>, step: &Step) -> Vec<Buffer> {
    let length = usize::try_from(step.bytes.end - step.bytes.start).unwrap_or(0);
    let done = usize::try_from(step.done).unwrap_or(usize::MAX);
    if memory.len() < length {
        memory.resize(length, 0);
    }
    let all = Buffer::new(memory.as_mut_ptr(), length);
    vec![all.behind(done)]
}

/// Drops the first `length` bytes.
fn skip(buffers: &mut VecDeque<Buffer>, mut length: usize) {
    while let Some(first) = buffers.pop_front() {
        if length < first.length() {
            buffers.push_front(first.behind(length));
            return;
        }
        length -= first.length();
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
    )
}
