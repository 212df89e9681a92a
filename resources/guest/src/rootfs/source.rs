//! What the user has given, found by its content and not by its name.

use std::fs;
use std::path::{Path, PathBuf};

use tar::Archive;

use super::container::{Container, DOCKER_MANIFEST, OCI_INDEX, OCI_LAYOUT};
use super::layer;
use super::tree_dir::TreeDir;
use crate::error::Error;

/// A root file system, packed in one way or another.
#[derive(Debug)]
pub enum Source {
    /// The root file system itself.
    Directory(PathBuf),
    /// The same in a tar, compressed or not.
    Tar(PathBuf),
    /// An image of layers.
    Container(Container),
}

impl Source {
    /// Looks at `path`. An image that is an archive is unpacked below `scratch`.
    pub fn open(path: &Path, scratch: &Path) -> Result<Self, Error> {
        let metadata = fs::metadata(path).map_err(Error::file("read", path))?;
        if metadata.is_dir() {
            return if path.join(OCI_LAYOUT).is_file() {
                Container::open_oci(path, path).map(Self::Container)
            } else {
                check_directory(path)?;
                Ok(Self::Directory(path.to_owned()))
            };
        }
        if !metadata.is_file() {
            return Err(not_an_image(path, "neither a file nor a directory"));
        }
        match Packed::of(path)? {
            Packed::RootFs => Ok(Self::Tar(path.to_owned())),
            Packed::Oci => {
                let unpacked = unpack(path, scratch)?;
                Container::open_oci(path, &unpacked).map(Self::Container)
            }
            Packed::Docker => {
                let unpacked = unpack(path, scratch)?;
                Container::open_docker(path, &unpacked).map(Self::Container)
            }
        }
    }

    /// For the guest's manifest.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Directory(_) => "directory",
            Self::Tar(_) => "tar",
            Self::Container(container) => container.kind(),
        }
    }
}

/// What a tar holds.
enum Packed {
    RootFs,
    Oci,
    Docker,
}

impl Packed {
    fn of(path: &Path) -> Result<Self, Error> {
        let mut archive = Archive::new(layer::open(path)?);
        let (mut layout, mut index, mut manifest, mut entries) = (false, false, false, 0_u64);
        let damaged =
            |error: std::io::Error| not_an_image(path, &format!("no whole tar ({error})"));
        for entry in archive.entries().map_err(damaged)? {
            let entry = entry.map_err(damaged)?;
            let name = entry.path().map_err(damaged)?;
            let name = name.strip_prefix(".").unwrap_or(&name);
            layout |= name == Path::new(OCI_LAYOUT);
            index |= name == Path::new(OCI_INDEX);
            manifest |= name == Path::new(DOCKER_MANIFEST);
            entries += 1;
        }
        match (layout && index, manifest, entries) {
            (_, _, 0) => Err(not_an_image(path, "empty")),
            (true, _, _) => Ok(Self::Oci),
            (false, true, _) => Ok(Self::Docker),
            (false, false, _) => Ok(Self::RootFs),
        }
    }
}

fn unpack(path: &Path, scratch: &Path) -> Result<PathBuf, Error> {
    let directory = TreeDir::create(&scratch.join("image"))?;
    layer::apply(path, &directory)?;
    Ok(directory.path().to_owned())
}

/// A directory without programs is a mistake: the wrong one, or an image that was unpacked by hand.
fn check_directory(path: &Path) -> Result<(), Error> {
    let expected = ["bin", "usr", "sbin"];
    if expected.iter().any(|name| path.join(name).is_dir()) {
        return Ok(());
    }
    Err(not_an_image(path, "a directory without bin, sbin and usr"))
}

fn not_an_image(path: &Path, found: &str) -> Error {
    Error::RootFs {
        path: path.to_owned(),
        problem: format!(
            "it is {found}; expected the directory of a root file system, a tar of one, an OCI image \
             layout (directory or tar) or an archive of 'docker save'"
        ),
    }
}
