//! Operations on a thread of their own, for hosts that allow no io_uring.

use super::super::ready::Ready;
use super::{Action, Completion, Operation};
use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// The thread and what it has done.
#[derive(Debug)]
pub(in super::super) struct Worker {
    /// Its end is the thread's end.
    orders: Option<Sender<(u64, Operation)>>,
    done: Arc<Mutex<Vec<Completion>>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub(super) fn spawn(ready: Arc<Ready>) -> io::Result<Self> {
        let (orders, received) = mpsc::channel();
        let done = Arc::new(Mutex::new(Vec::new()));
        let theirs = done.clone();
        let thread = crate::thread("disk").spawn(move || work(&received, &theirs, &ready))?;
        Ok(Self {
            orders: Some(orders),
            done,
            thread: Some(thread),
        })
    }

    /// # Safety
    /// See [`super::Engine::push`].
    pub(super) unsafe fn push(&mut self, token: u64, operation: Operation) {
        let sent = self
            .orders
            .as_ref()
            .map(|orders| orders.send((token, operation)));
        if !matches!(sent, Some(Ok(()))) {
            let gone = io::Error::other("the disk's thread is gone");
            lock(&self.done).push((token, Err(gone)));
        }
    }

    pub(super) fn completed(&mut self) -> Vec<Completion> {
        std::mem::take(&mut *lock(&self.done))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("Disk's thread panicked");
        }
    }
}

fn work(orders: &Receiver<(u64, Operation)>, done: &Mutex<Vec<Completion>>, ready: &Ready) {
    while let Ok((token, operation)) = orders.recv() {
        let result = loop {
            match carry_out(&operation) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        lock(done).push((token, result));
        ready.raise();
    }
}

fn carry_out(operation: &Operation) -> io::Result<usize> {
    let file = operation.file;
    let offset = signed(operation.offset)?;
    let result = match &operation.action {
        // SAFETY: file and buffers are valid, as promised to `push`; a `Buffer` is an `iovec`.
        Action::Read(buffers) => unsafe {
            libc::preadv(file, buffers.as_ptr().cast(), count(buffers), offset)
        },
        // SAFETY: as above.
        Action::Write(buffers) => unsafe {
            libc::pwritev(file, buffers.as_ptr().cast(), count(buffers), offset)
        },
        Action::Allocate(mode, length) => {
            let length = signed(*length)?;
            // SAFETY: no memory is involved.
            isize::try_from(unsafe { libc::fallocate(file, *mode, offset, length) }).unwrap_or(-1)
        }
        Action::Sync => {
            // SAFETY: no memory is involved.
            isize::try_from(unsafe { libc::fdatasync(file) }).unwrap_or(-1)
        }
    };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn signed(value: u64) -> io::Result<i64> {
    i64::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn count<T>(list: &[T]) -> i32 {
    i32::try_from(list.len()).unwrap_or(i32::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
