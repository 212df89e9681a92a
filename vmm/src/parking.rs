//! Telling a thread to run, to park or to end, and knowing when it has done so.
//!
//! Used for vCPU threads and for the event loop. The thread calls [`Parking::next`] when it is
//! ready for an order; its owner calls [`Parking::order`] and waits for the answer
//! with a deadline.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a thread has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Wait in [`Parking::next`].
    Park,
    /// Work until [`Parking::has_new_order`].
    Run,
    /// Return from the thread's function.
    End,
}

#[derive(Debug)]
struct State {
    order: Order,
    /// The thread is in [`Parking::next`], or has ended: it touches nothing of the machine.
    parked: bool,
}

/// The meeting point of one thread and its owner.
#[derive(Debug)]
pub struct Parking {
    state: Mutex<State>,
    changed: Condvar,
    /// Mirrors `order != Run`, for a look without the lock.
    interrupted: AtomicBool,
}

/// The thread did not answer in time.
#[derive(Debug, thiserror::Error)]
#[error("Thread did not stop within {0:?}")]
pub struct NotParked(Duration);

impl Parking {
    /// For a thread that starts parked.
    #[must_use]
    pub fn new() -> Self {
        let state = State {
            order: Order::Park,
            parked: false,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            interrupted: AtomicBool::new(true),
        }
    }

    /// The thread's side: reports that it is parked, and waits for the order to run or to end.
    pub fn next(&self) -> Order {
        let mut state = self.lock();
        state.parked = true;
        self.changed.notify_all();
        while state.order == Order::Park {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.parked = state.order == Order::End;
        state.order
    }

    /// The thread's side: true when it should come back to [`Self::next`].
    #[must_use]
    pub fn has_new_order(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }

    /// The thread's side: it cannot go on and parks by itself. An order to end still counts.
    pub fn park_self(&self) {
        let mut state = self.lock();
        if state.order == Order::Run {
            state.order = Order::Park;
            self.interrupted.store(true, Ordering::SeqCst);
        }
    }

    /// The owner's side: gives an order. A thread that is inside a system call has to be woken by
    /// other means afterwards.
    pub fn order(&self, order: Order) {
        let mut state = self.lock();
        state.order = order;
        self.interrupted
            .store(order != Order::Run, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// The owner's side: waits until the thread is parked.
    ///
    /// # Errors
    /// The deadline passed.
    pub fn wait_parked(&self, deadline: Duration) -> Result<(), NotParked> {
        let running = |state: &mut State| !state.parked;
        let result = self
            .changed
            .wait_timeout_while(self.lock(), deadline, running);
        let (_state, timeout) = result.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            Err(NotParked(deadline))
        } else {
            Ok(())
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Parking {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    const DEADLINE: Duration = Duration::from_secs(10);

    #[test]
    fn thread_parks_runs_and_ends_as_ordered() {
        let parking = Arc::new(Parking::new());
        let work = Arc::new(AtomicU64::new(0));
        let (theirs, counter) = (parking.clone(), work.clone());
        let thread = std::thread::spawn(move || {
            while theirs.next() == Order::Run {
                while !theirs.has_new_order() {
                    counter.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        for _ in 0..1000 {
            parking.order(Order::Run);
            parking.order(Order::Park);
            parking.wait_parked(DEADLINE).unwrap();
            let before = work.load(Ordering::SeqCst);
            std::thread::yield_now();
            assert_eq!(work.load(Ordering::SeqCst), before);
        }
        parking.order(Order::End);
        thread.join().unwrap();
    }

    #[test]
    fn silent_thread_is_an_error() {
        let parking = Parking::new();
        let error = parking.wait_parked(Duration::from_millis(1)).unwrap_err();
        assert!(error.to_string().contains("did not stop"));
    }
}
