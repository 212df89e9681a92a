//! What a program prints, as it comes.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex};

use crate::watch::LIMIT;

/// What a stream has brought so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Captured {
    shared: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    ended: bool,
}

impl Captured {
    /// Reads `stream` to its end in a thread of its own.
    pub(crate) fn of(stream: Option<impl Read + Send + 'static>) -> Self {
        let captured = Self::default();
        let writer = captured.clone();
        std::thread::spawn(move || writer.fill(stream));
        captured
    }

    fn fill(&self, mut stream: Option<impl Read>) {
        let mut buffer = vec![0; 64 * 1024];
        let mut read = move |buffer: &mut [u8]| match &mut stream {
            Some(stream) => stream.read(buffer),
            None => Ok(0),
        };
        loop {
            // A terminal whose programs are gone reports an error in place of the end.
            let count = read(&mut buffer).unwrap_or(0);
            let (state, changed) = &*self.shared;
            let mut state = state.lock().unwrap();
            state.bytes.extend_from_slice(&buffer[..count]);
            state.ended = count == 0;
            changed.notify_all();
            if count == 0 {
                return;
            }
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.shared.0.lock().unwrap().bytes.clone()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// Waits until `done` likes what has come; `false` when the stream ends or time runs out first.
    pub(crate) fn until(&self, done: impl Fn(&[u8]) -> bool) -> bool {
        let (state, changed) = &*self.shared;
        let state = changed
            .wait_timeout_while(state.lock().unwrap(), LIMIT, |state| {
                !state.ended && !done(&state.bytes)
            })
            .unwrap()
            .0;
        done(&state.bytes)
    }

    /// Waits until the stream ends, which it does soon after the program; `false` when it does not.
    pub(crate) fn until_end(&self) -> bool {
        let (state, changed) = &*self.shared;
        let state = changed
            .wait_timeout_while(state.lock().unwrap(), LIMIT / 6, |state| !state.ended)
            .unwrap()
            .0;
        state.ended
    }
}
