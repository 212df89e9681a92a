//! Makes the root file system of a guest from what people have: a directory, a tar, an OCI image.
//!
//! | file | job |
//! |---|---|
//! | `source` | what the user has given, found by its content |
//! | `container` | OCI image layouts and archives of `docker save`: layers and configuration |
//! | `layer` | unpacking a layer over those below it |
//! | `tree_dir` | the directory they are unpacked to, out of which no name leads |
//! | `ext4` | the file system |
//!
//! Layers are foreign input. Whatever names, links and digests they hold: nothing is written outside the
//! scratch directory, and what is not understood is an error that names the entry.

mod container;
mod ext4;
mod layer;
mod source;
mod tree_dir;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Step;
use crate::error::Error;
use crate::publish::Staging;
use source::Source;
use tree_dir::TreeDir;

pub use container::Choice;

/// What to make the root file system from.
#[derive(Clone, Debug)]
pub struct RootOptions {
    /// A directory, a tar, an OCI image layout (directory or tar), or an archive of `docker save`.
    pub image: std::path::PathBuf,
    /// Which of several images to take.
    pub choice: Choice,
    /// Room beyond the content, in bytes.
    pub free_bytes: u64,
}

/// How an image wants its program to be run. Empty where it does not say.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct ImageConfig {
    /// The program and its first arguments.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// What follows them when the user says nothing else.
    #[serde(default)]
    pub cmd: Vec<String>,
    /// `NAME=VALUE`.
    #[serde(default)]
    pub env: Vec<String>,
    /// Working directory.
    #[serde(default)]
    pub working_dir: String,
    /// Name or number, and after a colon the group's.
    #[serde(default)]
    pub user: String,
}

impl ImageConfig {
    /// As the agent reads it: records `KEY=VALUE` that each end with a NUL, which none of these holds.
    pub(crate) fn to_records(&self) -> Vec<u8> {
        let argv = self.entrypoint.iter().chain(&self.cmd).map(|v| ("arg", v));
        let env = self.env.iter().map(|v| ("env", v));
        let rest = [("cwd", &self.working_dir), ("user", &self.user)];
        let said = rest.into_iter().filter(|(_, value)| !value.is_empty());
        let mut records = Vec::new();
        for (key, value) in argv.chain(env).chain(said) {
            records.extend(format!("{key}={value}\0").into_bytes());
        }
        records
    }
}

/// A root file system that was made.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ImageRecord {
    /// What it was made from: `directory`, `tar`, `oci` or `docker`.
    pub kind: String,
    /// Its path as it was given.
    pub path: String,
    /// Digest of the image's configuration; none without one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub digest: Option<String>,
    /// How it wants its program to be run.
    pub config: ImageConfig,
}

/// Makes the file system as `name` in the staging directory.
pub fn make(
    options: &RootOptions,
    staging: &Staging,
    name: &str,
    progress: &mut dyn FnMut(Step),
) -> Result<ImageRecord, Error> {
    check_user(&options.image)?;
    progress(Step::ReadImage(options.image.clone()));
    let scratch = staging.scratch()?;
    let source = Source::open(&options.image, scratch.path())?;
    let kind = source.kind();
    let (root, digest, config) = match source {
        Source::Directory(path) => (path, None, ImageConfig::default()),
        Source::Tar(path) => {
            let root = TreeDir::create(&scratch.path().join("root"))?;
            layer::apply(&path, &root)?;
            (root.path().to_owned(), None, ImageConfig::default())
        }
        Source::Container(container) => {
            let image = container.choose(&options.choice)?;
            let root = TreeDir::create(&scratch.path().join("root"))?;
            let count = image.layers.len();
            for (number, layer) in (1..).zip(&image.layers) {
                progress(Step::UnpackLayer(number, count));
                layer::apply_verified(layer, &root)?;
            }
            (root.path().to_owned(), Some(image.digest), image.config)
        }
    };
    progress(Step::MakeFileSystem);
    ext4::make(&root, &staging.path(name), options.free_bytes)?;
    staging.sync(name)?;
    Ok(ImageRecord {
        kind: kind.to_owned(),
        path: options.image.display().to_string(),
        digest,
        config,
    })
}

/// Only root may give files to their owners.
fn check_user(image: &Path) -> Result<(), Error> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Error::RootFs {
        path: image.to_owned(),
        problem: "its files keep their owners, which only root may do; run this command as root"
            .to_owned(),
    })
}
