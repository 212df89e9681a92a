//! `minivmm template inspect`: what is known about a template.

use clap::Args;
use serde::Serialize;
use snapshot::manifest::LayerRecord;
use snapshot::{DiskRecord, Family, Manifest, TemplateName};

use crate::args::Context;
use crate::error::{Outcome, SUCCESS};
use crate::output;

const EXAMPLES: &str = "\
EXAMPLES:
  What a template was made of:
    minivmm template inspect base
  Its kernel's digest, for a program:
    minivmm template inspect base --json | jq -r .guest.kernel.sha256";

/// Show what a template is and what it was made of.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct InspectArgs {
    /// The template
    #[arg(value_name = "NAME")]
    name: TemplateName,
    /// Print the whole manifest and the layers as JSON
    #[arg(long)]
    json: bool,
}

impl InspectArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Outcome {
        let store = context.open_store()?;
        let manifest = store.inspect(&self.name)?;
        let family = store.family(&self.name)?;
        if self.json {
            output::json(&Inspected::of(&manifest, &family))?;
        } else {
            print(&manifest, &family)?;
        }
        Ok(SUCCESS)
    }
}

/// The manifest, and what follows from it and from the other templates.
#[derive(Debug, Serialize)]
struct Inspected<'a> {
    #[serde(flatten)]
    manifest: &'a Manifest,
    allocated_bytes: u64,
    shared_bytes: u64,
    layers: usize,
    /// The templates that need its memory file.
    children: Vec<&'a str>,
    /// What stays on the disk for them when it is deleted.
    kept_bytes: u64,
}

impl<'a> Inspected<'a> {
    fn of(manifest: &'a Manifest, family: &'a Family) -> Self {
        Self {
            manifest,
            allocated_bytes: manifest.files.memory.allocated,
            shared_bytes: manifest.files.shared_bytes(),
            layers: manifest.files.layer_count(),
            children: family.children.iter().map(TemplateName::as_str).collect(),
            kept_bytes: family.kept_bytes,
        }
    }
}

fn print(manifest: &Manifest, family: &Family) -> anyhow::Result<()> {
    let guest = &manifest.spec.guest;
    let host = &manifest.spec.host;
    let initrd = guest.initrd.as_ref();
    let initrd = initrd.map_or_else(|| "none".to_owned(), |file| file.path.display().to_string());
    let rows = [
        ("Name", manifest.name.to_string()),
        ("UUID", manifest.uuid.to_string()),
        ("Created", manifest.created.to_string()),
        (
            "Made by",
            format!(
                "minivmm {}, ABI {}",
                manifest.spec.minivmm, manifest.spec.abi
            ),
        ),
        (
            "vCPUs",
            format!("{}, at most {}", guest.cpus, guest.max_cpus),
        ),
        (
            "Memory",
            format!(
                "{}, at most {}",
                output::size(guest.memory_bytes),
                output::size(guest.max_memory_bytes)
            ),
        ),
        ("Devices", devices(&guest.devices)),
        ("On disk", output::size(manifest.files.memory.allocated)),
        ("Shared", shared(manifest)),
        ("Needed by", needed_by(family)),
        ("Disks", disks(manifest)),
        ("Kernel", guest.kernel.path.display().to_string()),
        ("Initrd", initrd),
        ("Command line", guest.cmdline.clone()),
        ("Host", format!("{}, Linux {}", host.cpu_model, host.kernel)),
    ];
    rows.iter()
        .try_for_each(|(name, value)| output::line(format!("{name:<14}{value}")))
}

/// What not every machine has.
fn devices(names: &[String]) -> String {
    if names.is_empty() {
        return "no optional ones".to_owned();
    }
    names.join(", ")
}

/// The layers below its own, with the templates that they were made for.
fn shared(manifest: &Manifest) -> String {
    let layer = |layer: &LayerRecord| {
        format!(
            "{} of {}",
            output::size(layer.file.allocated),
            layer.template
        )
    };
    let below: Vec<_> = manifest.files.below().iter().map(layer).collect();
    if below.is_empty() {
        return "nothing".to_owned();
    }
    let all = output::size(manifest.files.shared_bytes());
    format!("{all} in {} layers: {}", below.len(), below.join(", "))
}

/// The disks, in the order of their slots.
fn disks(manifest: &Manifest) -> String {
    let disk = |disk: &DiskRecord| match &disk.content {
        None => "an empty slot".to_owned(),
        Some(content) => format!(
            "{}{}, {} on disk",
            output::size(content.size),
            if disk.read_only { " read-only" } else { "" },
            output::size(content.allocated)
        ),
    };
    let disks: Vec<_> = manifest.files.disks.iter().map(disk).collect();
    if disks.is_empty() {
        return "none".to_owned();
    }
    disks.join("; ")
}

fn needed_by(family: &Family) -> String {
    let names: Vec<_> = family.children.iter().map(TemplateName::as_str).collect();
    if names.is_empty() {
        return "no other template".to_owned();
    }
    let kept = output::size(family.kept_bytes);
    format!(
        "{}; {kept} stay for that when it is deleted",
        names.join(", ")
    )
}
