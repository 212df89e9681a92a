//! `minivmm template flatten`: gives a snapshot a memory file of its own.

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use snapshot::TemplateName;

use crate::args::Context;
use crate::background::Background;
use crate::error::{Outcome, SUCCESS};
use crate::output;

const EXAMPLES: &str = "\
EXAMPLES:
  Make a snapshot independent of the template that it comes from, and remove that:
    minivmm template flatten web-warm
    minivmm template delete base

A flat template takes more room on the disk: what it shared is copied, unless the file system can share it in
another way. The files it shared stay for as long as another template needs them, also one that was made from
it before. Its clones start a little faster. A template with 8 layers is as deep as one can be; flattened,
it can be the first of 8 again.";

/// Give a template whose memory is in layers one file with all of it.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct FlattenArgs {
    /// The template; none of its clones may run
    #[arg(value_name = "NAME")]
    name: TemplateName,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Flat {
    name: String,
    /// Layers there were; with one there was nothing to do.
    layers_before: usize,
    /// Bytes that the template takes on disk now.
    allocated_bytes: u64,
}

impl FlattenArgs {
    /// Runs the command.
    pub fn run(self, context: &mut Context) -> Outcome {
        let store = context.open_store()?;
        let name = self.name.clone();
        let work = Background::start("flatten", move || store.flatten(&name))
            .context("Cannot start a thread")?;
        context.progress.step(format!("Flattening {}", self.name));
        let flattened = context.progress.wait_for(&work);
        let flattened = flattened.context("Cannot wait for the end")??;
        let flat = Flat {
            name: self.name.to_string(),
            layers_before: flattened.layers,
            allocated_bytes: flattened.manifest.files.memory.allocated,
        };
        if self.json {
            output::json(&flat)?;
            return Ok(SUCCESS);
        }
        output::line(&flat.name)?;
        let size = output::size(flat.allocated_bytes);
        context.progress.notice(if flat.layers_before == 1 {
            format!("it was flat already; {size} on disk")
        } else {
            format!("{} layers became one; {size} on disk", flat.layers_before)
        });
        Ok(SUCCESS)
    }
}
