//! `minivmm guest build`: makes a bootable guest from a distribution's kernel.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use guest::{BuildOptions, BuiltGuest, Choice, RootOptions, Step};
use serde::Serialize;
use vmm::MemorySize;

use crate::args::Context;
use crate::background::Background;
use crate::error::{Outcome, SUCCESS};
use crate::{output, poll};

const EXAMPLES: &str = "\
EXAMPLES:
  A guest from a Debian package, with busybox for a shell:
    apt-get download linux-image-6.1.0-56-cloud-amd64
    minivmm guest build --kernel linux-image-*.deb --busybox /usr/bin/busybox -o guest
  With files of your own, such as programs in etc/minivmm/on-clone.d, which run in every clone:
    minivmm guest build --kernel linux-image-*.deb --overlay my-files -o guest
  With a root file system on a disk, from an image, a tar or a directory (as root):
    docker save alpine:3.20 -o alpine.tar
    minivmm guest build --kernel linux-image-*.deb --image alpine.tar -o guest";

/// The agent's file name, which is looked for beside this program.
const AGENT_NAME: &str = "minivmm-agent";
/// How often the user's view of the build is brought up to date.
const REFRESH: Duration = Duration::from_millis(200);

/// Make guests to boot.
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub enum GuestCommand {
    Build(BuildArgs),
}

/// Make a bootable guest from a distribution's kernel: the kernel, and an initial RAM disk with
/// the modules it needs here and the agent.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct BuildArgs {
    /// Debian linux-image package, bzImage, or /lib/modules/VERSION directory
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Modules of a bzImage, when they are not found beside it
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
    /// Directory to make, or to replace when there is a guest in it
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// The agent's program [default: minivmm-agent beside this program]
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Static busybox to put in with all of its commands
    #[arg(long, value_name = "FILE")]
    busybox: Option<PathBuf>,
    /// Directory whose content is laid over the root file system
    #[arg(long, value_name = "DIR")]
    overlay: Option<PathBuf>,
    /// Module to load besides those for the VM's devices; may be repeated
    #[arg(long = "module", value_name = "NAME")]
    extra_modules: Vec<String>,
    /// What to make a disk with the root file system from: a directory, a tar, an OCI image layout
    /// (directory or tar) or an archive of 'docker save'
    #[arg(long, value_name = "PATH")]
    image: Option<PathBuf>,
    /// Which of several images to take
    #[arg(long, value_name = "NAME", requires = "image")]
    image_tag: Option<String>,
    /// Room on the disk beyond what is in the image
    #[arg(long, value_name = "SIZE", requires = "image", default_value = "512M")]
    free: MemorySize,
    /// Print what was made as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Built<'a> {
    directory: &'a Path,
    vmlinuz: &'a Path,
    vmlinux: &'a Path,
    initrd: &'a Path,
    #[serde(skip_serializing_if = "Option::is_none")]
    root: Option<&'a Path>,
    manifest: &'a guest::GuestManifest,
}

impl GuestCommand {
    /// Runs the command.
    pub fn run(self, context: &mut Context) -> Outcome {
        let Self::Build(args) = self;
        args.run(context)
    }
}

impl BuildArgs {
    fn run(self, context: &mut Context) -> Outcome {
        let json = self.json;
        let guest = build(self.options()?, context)?;
        if json {
            output::json(&Built {
                directory: &guest.directory,
                vmlinuz: &guest.vmlinuz,
                vmlinux: &guest.vmlinux,
                initrd: &guest.initrd,
                root: guest.root.as_deref(),
                manifest: &guest.manifest,
            })?;
        } else {
            let always = [&guest.vmlinuz, &guest.vmlinux, &guest.initrd];
            for file in always.into_iter().chain(&guest.root) {
                output::line(file.display())?;
            }
        }
        Ok(SUCCESS)
    }

    fn options(self) -> anyhow::Result<BuildOptions> {
        Ok(BuildOptions {
            kernel: self.kernel,
            modules: self.modules,
            agent: match self.agent {
                Some(agent) => agent,
                None => agent_beside_this_program()?,
            },
            busybox: self.busybox,
            overlay: self.overlay,
            extra_modules: self.extra_modules,
            root: self.image.map(|image| RootOptions {
                image,
                choice: Choice {
                    tag: self.image_tag,
                },
                free_bytes: self.free.bytes(),
            }),
            output: self.output,
        })
    }
}

fn agent_beside_this_program() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("Cannot tell where this program is")?;
    let agent = program.with_file_name(AGENT_NAME);
    if !agent.is_file() {
        bail!(
            "There is no agent at {}; give its program with --agent",
            agent.display()
        );
    }
    Ok(agent)
}

fn build(options: BuildOptions, context: &mut Context) -> anyhow::Result<BuiltGuest> {
    let (steps, begun) = mpsc::channel();
    let work = Background::start("build", move || {
        // Without a listener there is nobody to show a step to.
        guest::build(&options, &mut |step| steps.send(step).unwrap_or_default())
    })
    .context("Cannot start a thread")?;
    let guest = loop {
        poll::readable(&work, Some(Instant::now() + REFRESH)).context("Cannot wait")?;
        if let Some(step) = begun.try_iter().last() {
            context.progress.step(describe(&step));
        }
        context.progress.refresh();
        if let Some(guest) = work.take() {
            break guest;
        }
    };
    context.progress.finish();
    Ok(guest?)
}

fn describe(step: &Step) -> String {
    match step {
        Step::ReadKernel(path) => format!("Reading {}", path.display()),
        Step::ExtractKernel(version) => format!("Decompressing the kernel {version}"),
        Step::WriteInitramfs(modules) => format!("Writing an initramfs with {modules} modules"),
        Step::ReadImage(path) => format!("Reading {}", path.display()),
        Step::UnpackLayer(number, count) => format!("Unpacking layer {number} of {count}"),
        Step::MakeFileSystem => "Making the root file system".to_owned(),
        Step::Publish(path) => format!("Writing {}", path.display()),
    }
}
