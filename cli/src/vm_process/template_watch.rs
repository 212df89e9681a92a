//! Whether a clone's template stays as it was: the clone goes on reading its memory files for as long
//! as it lives, and what somebody else writes there is what its guest finds.
//!
//! The kernel tells about writes, holes and changes of length as they happen. What is stored through
//! a shared mapping it does not tell, nor what another host does to a network file system; the file's
//! modification time tells of the former, and is looked at whenever somebody asks for the VM's state.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use snapshot::Template;

/// What was done to a memory file.
#[derive(Debug, PartialEq, Eq)]
pub struct Damage {
    /// In words, with the path.
    pub text: String,
    /// Memory of the clone is gone: it cannot go on.
    pub is_lost: bool,
}

/// Watches the memory files of a template.
#[derive(Debug)]
pub struct TemplateWatch {
    template: Arc<Template>,
    /// Nothing when the user has no watches left: then only the modification time tells.
    events: Option<OwnedFd>,
    /// What the memory files had when they were opened, in bytes.
    lengths: Vec<u64>,
    is_damaged: bool,
}

impl TemplateWatch {
    /// Watches from now on.
    pub fn of(template: Arc<Template>) -> Self {
        let events = watch(&template)
            .inspect_err(|error| {
                tracing::warn!(%error, "Changes to the template are noticed late (fs.inotify)");
            })
            .ok();
        let layers = template.memory().files().iter();
        let lengths = layers.map(|layer| layer.file.metadata().map_or(0, |file| file.len()));
        Self {
            lengths: lengths.collect(),
            template,
            events,
            is_damaged: false,
        }
    }

    /// What to poll for reading.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.events.as_ref().map(AsFd::as_fd)
    }

    /// Says what was done to a memory file: once, or again when it was cut short later.
    pub fn find_damage(&mut self) -> Option<Damage> {
        let touched = self.was_written() | self.looks_touched();
        let was_damaged = self.is_damaged;
        self.is_damaged |= touched;
        if !touched {
            return None;
        }
        let damage = self.describe();
        (damage.is_lost || !was_damaged).then_some(damage)
    }

    fn describe(&self) -> Damage {
        let layers = self.template.memory().files().iter();
        let mut found = layers.zip(&self.lengths).filter_map(|(layer, &expected)| {
            let found = layer.file.metadata().ok()?.len();
            (found != expected).then_some((layer, found, expected))
        });
        match found.next() {
            Some((layer, found, expected)) => Damage {
                text: format!(
                    "{} has {found} bytes, expected {expected}; it was changed while a clone ran",
                    layer.path.display()
                ),
                is_lost: found < expected,
            },
            None => Damage {
                text: format!(
                    "the memory in {} was changed while a clone ran",
                    self.template.path().display()
                ),
                is_lost: false,
            },
        }
    }

    /// Takes the events. A file that was opened for writing and closed may be as it was.
    fn was_written(&self) -> bool {
        let Some(events) = &self.events else {
            return false;
        };
        let mut buffer = [MaybeUninit::uninit(); 1024];
        let mut reader = inotify::Reader::new(events, &mut buffer);
        let mut written = false;
        while let Ok(event) = reader.next() {
            written |= event.events().contains(ReadFlags::MODIFY);
        }
        written
    }

    fn looks_touched(&self) -> bool {
        // One that cannot be inspected now could be when it was opened.
        !self.template.is_memory_untouched().unwrap_or(false)
    }
}

fn watch(template: &Template) -> rustix::io::Result<OwnedFd> {
    let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    for layer in template.memory().files() {
        // The file that is open, whatever its path leads to by now.
        let file = format!("/proc/self/fd/{}", layer.file.as_raw_fd());
        inotify::add_watch(&events, file, WatchFlags::MODIFY | WatchFlags::CLOSE_WRITE)?;
    }
    Ok(events)
}
