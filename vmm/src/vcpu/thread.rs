//! The one thread of a vCPU.

use super::{VcpuError, VcpuId};
use std::sync::mpsc;
use std::thread::JoinHandle;

/// A thread that does what it is given, one after the other, and ends when nothing more can come.
#[derive(Debug)]
pub(super) struct VcpuThread {
    work: mpsc::Sender<Box<dyn FnOnce() + Send>>,
    handle: JoinHandle<()>,
}

impl VcpuThread {
    /// Starts it.
    ///
    /// # Errors
    /// The host gives no thread.
    pub(super) fn start(id: VcpuId) -> Result<Self, VcpuError> {
        let (work, given) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let handle = devices::thread(format!("vcpu{}", id.0))
            .spawn(move || given.into_iter().for_each(|work| work()))
            .map_err(|source| VcpuError::Spawn { id, source })?;
        Ok(Self { work, handle })
    }

    /// What `work` returns in the thread; nothing when it panics.
    pub(super) fn call<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Option<R> {
        let (result, returned) = mpsc::channel();
        self.give(move || {
            // Whoever called is there until the answer.
            result.send(work()).unwrap_or_default();
        });
        returned.recv().ok()
    }

    /// Gives it the last thing that it does.
    pub(super) fn finish_with(self, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
        self.give(work);
        self.handle
    }

    /// A thread that has panicked has no more use for it; its end is noticed by who waits for it.
    fn give(&self, work: impl FnOnce() + Send + 'static) {
        self.work.send(Box::new(work)).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::{ThreadId, current};

    #[test]
    fn everything_is_done_by_the_same_thread_in_order() {
        let thread = VcpuThread::start(VcpuId(3)).unwrap();
        let first: ThreadId = thread.call(|| current().id()).unwrap();
        assert_ne!(first, current().id());
        let (told, heard) = mpsc::channel();
        let handle = thread.finish_with(move || {
            let here = current();
            told.send((here.id(), here.name().map(str::to_owned)))
                .unwrap();
        });
        handle.join().unwrap();
        assert_eq!(heard.recv().unwrap(), (first, Some("vcpu3".to_owned())));
    }

    #[test]
    fn a_panic_is_no_answer() {
        let thread = VcpuThread::start(VcpuId(0)).unwrap();
        let answer: Option<()> = thread.call(|| panic!("on purpose"));
        assert!(answer.is_none());
        assert!(thread.call(|| 1).is_none());
    }
}
