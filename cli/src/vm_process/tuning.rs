//! What the first clone of a template does for later ones, in a thread of its own.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use snapshot::{Template, WorkingSet};
use vmm::huge_pages;

use crate::background::Background;
use crate::error::describe;
use crate::poll;

/// How long the end of the VM may wait for it.
const ENDING: Duration = Duration::from_secs(1);

/// The thread. A VM that ends lets it finish: otherwise VMs with short lives would begin it again and again.
#[derive(Debug)]
pub struct Tuning(Background<()>);

impl Tuning {
    /// Begins, with what this clone has written until it was ready.
    ///
    /// # Errors
    /// No descriptors or threads left.
    pub fn begin(template: Arc<Template>, written: WorkingSet) -> io::Result<Self> {
        Background::start("tuning", move || tune(&template, &written)).map(Self)
    }
}

impl Drop for Tuning {
    fn drop(&mut self) {
        match poll::readable(&self.0, Some(Instant::now() + ENDING)) {
            Ok(true) => {}
            Ok(false) | Err(_) => tracing::debug!("The template is left as it is"),
        }
    }
}

/// The file comes last: where this is cut off, another clone does it again.
fn tune(template: &Template, written: &WorkingSet) {
    let gathered = huge_pages::gather(template.memory(), written).map_err(anyhow::Error::new);
    let recorded = gathered.and_then(|()| Ok(template.record_working_set(written)?));
    if let Err(error) = recorded {
        tracing::debug!("Later clones take longer: {}", describe(&error));
    }
}
