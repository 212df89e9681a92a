//! A member of a pool: makes a clone up to its first instruction, waits for somebody who wants it, and is
//! that VM's process from then on.

use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};

use anyhow::Context;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use vmm::EarlyVm;

use super::request::{Request, Stock, Word};
use crate::error::{FAILURE, SUCCESS, describe};
use crate::json_lines;
use crate::state::StateDir;
use crate::timeline::Timeline;
use crate::usage::Usage;
use crate::vm_process::cloning::{self, Source};
use crate::vm_process::fork;
use crate::vm_process::link::{Message, VmEnd};
use crate::vm_process::premises::{Setup, fail};

/// What a member gets from its pool.
#[derive(Debug)]
pub struct Inheritance {
    /// What it has a clone of.
    pub stock: Stock,
    /// The running VMs.
    pub state: StateDir,
    /// Where callers come, to it and to the other members.
    pub listener: UnixListener,
    /// To the pool.
    pub pool: UnixStream,
}

/// Runs the member and returns its exit code.
pub fn run(inheritance: Inheritance) -> u8 {
    let keep = [inheritance.listener.as_fd(), inheritance.pool.as_fd()];
    if let Err(error) = fork::leave_command(&keep) {
        let error = anyhow::Error::new(error).context("Cannot leave the pool's session");
        return give_up(&inheritance.pool, &error);
    }
    tell(
        &inheritance.pool,
        &Word::Begun {
            pid: std::process::id(),
        },
    );
    match wait_for_request(&inheritance) {
        Ok(Some((source, request, link))) => serve(inheritance, source, request, link),
        Ok(None) => SUCCESS,
        Err(error) => give_up(&inheritance.pool, &error),
    }
}

/// The clone and who wants it; nothing when the pool ends.
fn wait_for_request(
    inheritance: &Inheritance,
) -> anyhow::Result<Option<(Source, Request, UnixStream)>> {
    let stock = &inheritance.stock;
    let source = Source::open(EarlyVm::begin(), &stock.store, &stock.template)?.prepare()?;
    let private_bytes = Usage::of(std::process::id())?.private_bytes;
    tell(&inheritance.pool, &Word::Ready { private_bytes });

    let waiting = Waiting::new(inheritance).context("Cannot wait for callers")?;
    while let Some(caller) = waiting.next_caller()? {
        match Request::read(&caller, stock) {
            Ok(Some(request)) => return Ok(Some((source, request, caller))),
            // Somebody else may still want it.
            Ok(None) => {}
            Err(error) => {
                fail(&VmEnd::of(caller), &error);
            }
        }
    }
    Ok(None)
}

/// Is the VM's process. The pool hears of it until the command has let the VM go.
fn serve(inheritance: Inheritance, source: Source, request: Request, caller: UnixStream) -> u8 {
    let Inheritance {
        stock: _,
        state,
        listener,
        pool,
    } = inheritance;
    // Held on, it would keep callers waiting after the end of the pool.
    drop(listener);
    tell(&pool, &Word::Taken);
    let link = VmEnd::of(caller).with(pool);
    link.send(&Message::Taken {
        pid: std::process::id(),
    });
    let mut timeline = request
        .began_at
        .map_or_else(Timeline::start, Timeline::continued);
    timeline.mark("taken from the pool");
    let setup = Setup {
        state,
        console: None,
        remove: request.remove,
        verbosity: request.verbosity,
        timeline,
    };
    cloning::restore_from(source, request.plan, setup, link)
}

fn give_up(pool: &UnixStream, error: &anyhow::Error) -> u8 {
    tell(
        pool,
        &Word::Failed {
            message: describe(error),
        },
    );
    FAILURE
}

/// A pool that is gone hears nothing: the member notices when it waits.
fn tell(pool: &UnixStream, word: &Word) {
    json_lines::send(pool, word).unwrap_or_default();
}

/// Waits for callers and for the end of the pool.
struct Waiting<'a> {
    epoll: std::os::fd::OwnedFd,
    inheritance: &'a Inheritance,
}

/// Which of the two is ready.
const CALLER: u64 = 0;
const POOL: u64 = 1;

impl<'a> Waiting<'a> {
    fn new(inheritance: &'a Inheritance) -> rustix::io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        // A caller wakes one member and not all of them.
        let exclusive = EventFlags::IN | EventFlags::EXCLUSIVE;
        let (caller, pool) = (EventData::new_u64(CALLER), EventData::new_u64(POOL));
        epoll::add(&epoll, &inheritance.listener, caller, exclusive)?;
        epoll::add(&epoll, &inheritance.pool, pool, EventFlags::IN)?;
        Ok(Self { epoll, inheritance })
    }

    /// The next caller; none when the pool ends.
    fn next_caller(&self) -> anyhow::Result<Option<UnixStream>> {
        loop {
            let mut events = [MaybeUninit::uninit(); 2];
            let (events, _) = match epoll::wait(&self.epoll, &mut events, None) {
                Err(Errno::INTR) => continue,
                events => events.context("Cannot wait for callers")?,
            };
            if events.iter().any(|event| event.data.u64() == POOL) {
                return Ok(None);
            }
            match self.inheritance.listener.accept() {
                Ok((caller, _)) => return Ok(Some(caller)),
                // Another member was faster, or the caller is gone.
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock
                            | std::io::ErrorKind::Interrupted
                            | std::io::ErrorKind::ConnectionAborted
                    ) => {}
                Err(error) => return Err(error).context("Cannot take a caller"),
            }
        }
    }
}
