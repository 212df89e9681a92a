//! The requests of a disk that are being carried out.

use super::MAX_JOBS;
use super::engine::Engine;
use super::image::Image;
use super::job::{Job, Origin};
use super::ready::Ready;
use super::request::Status;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a driver is told about a request.
#[derive(Debug)]
pub(super) struct Answer {
    pub origin: Origin,
    pub status: Status,
    /// Bytes of data that were written to its buffers.
    pub written: u64,
}

impl Answer {
    pub(super) fn failed(origin: Origin, status: Status) -> Self {
        Self {
            origin,
            status,
            written: 0,
        }
    }
}

/// The jobs and what carries them out.
#[derive(Debug)]
pub(super) struct Jobs {
    /// Made by the first request. Dropped first: it waits for what uses the jobs' buffers.
    engine: Option<Engine>,
    image: Image,
    running: HashMap<u64, Job>,
    /// Jobs that change what a running one changes.
    waiting: VecDeque<Job>,
    next_token: u64,
    ready: Arc<Ready>,
    /// A host that fails again and again must not fill the log.
    last_failure: Option<io::ErrorKind>,
}

impl Jobs {
    pub(super) fn new(image: Image, ready: Arc<Ready>) -> Self {
        Self {
            engine: None,
            image,
            running: HashMap::new(),
            waiting: VecDeque::new(),
            next_token: 0,
            ready,
            last_failure: None,
        }
    }

    pub(super) fn image(&self) -> &Image {
        &self.image
    }

    pub(super) fn ready(&self) -> &Ready {
        &self.ready
    }

    pub(super) fn count(&self) -> usize {
        self.running.len() + self.waiting.len()
    }

    /// Begins a job, or lets it wait; the answer when it is done at once.
    pub(super) fn add(&mut self, job: Job) -> Option<Answer> {
        let others = self.running.values().chain(&self.waiting);
        if others
            .into_iter()
            .any(|other| job.collides(other, &self.image))
        {
            self.waiting.push_back(job);
            return None;
        }
        self.start(job)
    }

    /// Hands everything that was begun to the kernel.
    pub(super) fn submit(&mut self) {
        if let Some(Err(error)) = self.engine.as_mut().map(Engine::submit) {
            tracing::debug!(%error, "Disk's io_uring takes nothing now");
            self.remind();
        }
    }

    /// Makes [`Self::ready`] readable.
    pub(super) fn remind(&self) {
        self.ready.raise();
    }

    /// Goes on with the jobs whose operations have ended; what has ended for good.
    pub(super) fn finish_some(&mut self) -> Vec<Answer> {
        self.ready.clear();
        let Some(engine) = &mut self.engine else {
            return Vec::new();
        };
        let mut answers = Vec::new();
        for (token, result) in engine.completed() {
            let Some(mut job) = self.running.remove(&token) else {
                continue;
            };
            let answer = match job.advance(result, &mut self.image) {
                Ok(()) => self.next(token, job),
                Err(error) => Some(self.failed(&job, &error)),
            };
            answers.extend(answer);
        }
        self.start_waiting(&mut answers);
        self.submit();
        answers
    }

    /// Waits until all jobs have ended, or the deadline has passed.
    pub(super) fn finish_all(&mut self, deadline: Duration) -> Vec<Answer> {
        let end = Instant::now() + deadline;
        let mut answers = self.finish_some();
        while self.count() > 0 {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.ready.wait(left);
            answers.extend(self.finish_some());
        }
        answers
    }

    fn start(&mut self, mut job: Job) -> Option<Answer> {
        job.plan(&self.image);
        let token = self.next_token;
        self.next_token += 1;
        self.next(token, job)
    }

    /// Begins the job's next operation; the answer when there is none.
    fn next(&mut self, token: u64, mut job: Job) -> Option<Answer> {
        let Some(operation) = job.operation() else {
            return Some(Answer {
                origin: job.origin,
                status: Status::Ok,
                written: job.bytes_for_guest(),
            });
        };
        let engine = match &mut self.engine {
            Some(engine) => engine,
            None => {
                let depth = u32::try_from(MAX_JOBS).unwrap_or(u32::MAX);
                match Engine::start(depth, &self.ready) {
                    Ok(engine) => self.engine.insert(engine),
                    Err(error) => return Some(self.failed(&job, &error)),
                }
            }
        };
        // SAFETY: the job owns the file, its own memory and the mapping of the guest's buffers. It
        // is kept in `running` until the engine has told of the token, and dropped after the engine.
        // The guest may change its buffers at any time; nothing here relies on their content.
        unsafe { engine.push(token, operation) };
        self.running.insert(token, job);
        None
    }

    /// Begins the jobs that nothing holds up any more, in their order.
    fn start_waiting(&mut self, answers: &mut Vec<Answer>) {
        for job in std::mem::take(&mut self.waiting) {
            answers.extend(self.add(job));
        }
    }

    fn failed(&mut self, job: &Job, error: &io::Error) -> Answer {
        let request = job.name();
        if self.last_failure.replace(error.kind()) == Some(error.kind()) {
            tracing::debug!(%error, request, "Disk cannot do what the guest asks for");
        } else {
            tracing::error!(%error, request, "Disk cannot do what the guest asks for");
        }
        let is_unknown = error.raw_os_error() == Some(libc::EOPNOTSUPP);
        let status = if is_unknown && job.is_optional() {
            Status::Unsupported
        } else {
            Status::IoError
        };
        Answer::failed(job.origin, status)
    }
}

#[cfg(test)]
impl Jobs {
    /// As on a host without io_uring.
    pub(super) fn use_thread(&mut self) {
        self.engine = Some(Engine::start_worker(&self.ready).unwrap());
    }

    pub(super) fn has_engine(&self) -> bool {
        self.engine.is_some()
    }
}
