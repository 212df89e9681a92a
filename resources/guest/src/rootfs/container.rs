//! Images of layers: OCI image layouts (OCI image specification 1.1) and archives of `docker save`.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::ImageConfig;
use super::layer::Layer;
use crate::error::Error;
use crate::manifest::hex;

/// The file that makes a directory an OCI image layout.
pub const OCI_LAYOUT: &str = "oci-layout";
/// What an OCI image layout holds.
pub const OCI_INDEX: &str = "index.json";
/// What an archive of `docker save` holds.
pub const DOCKER_MANIFEST: &str = "manifest.json";

const REFERENCE: &str = "org.opencontainers.image.ref.name";
/// Indices within indices; an image for several platforms has two.
const MOST_INDICES: u32 = 4;
/// The largest JSON file that is taken for one.
const MOST_JSON_BYTES: u64 = 16 << 20;

/// Which of several images to take.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// Its name or tag.
    pub tag: Option<String>,
}

/// An image source with its files.
#[derive(Debug)]
pub struct Container {
    /// As the user named it.
    given: PathBuf,
    /// Where its files are.
    files: PathBuf,
    candidates: Vec<Candidate>,
    kind: &'static str,
}

/// An image that fits this machine.
#[derive(Debug)]
struct Candidate {
    names: Vec<String>,
    config: String,
    /// Relative to the files; OCI's are named by digest.
    layers: Vec<String>,
    /// Digest that the configuration must have, when its name is not one.
    digest: Option<String>,
}

/// The image that was chosen.
#[derive(Debug)]
pub struct Image {
    /// Digest of its configuration.
    pub digest: String,
    /// The lowest first.
    pub layers: Vec<Layer>,
    /// How it wants its program to be run.
    pub config: ImageConfig,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct ConfigFile {
    architecture: String,
    os: String,
    #[serde(default)]
    config: Option<RunConfig>,
    rootfs: LayerIds,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RunConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
}

impl RunConfig {
    /// What can be given to a program. A variable without a value is none.
    fn checked(self) -> Result<ImageConfig, String> {
        let mut config = ImageConfig {
            entrypoint: self.entrypoint.unwrap_or_default(),
            cmd: self.cmd.unwrap_or_default(),
            env: self.env.unwrap_or_default(),
            working_dir: self.working_dir.unwrap_or_default(),
            user: self.user.unwrap_or_default(),
        };
        config.env.retain(|variable| variable.contains('='));
        let lists = [&config.entrypoint, &config.cmd, &config.env];
        let single = [&config.working_dir, &config.user];
        let mut all = lists.into_iter().flatten().chain(single);
        let with_nul = all.find(|text| text.contains('\0')).cloned();
        drop(all);
        match with_nul {
            None => Ok(config),
            Some(text) => Err(format!("its configuration has a NUL character in {text:?}")),
        }
    }
}

#[derive(Deserialize)]
struct LayerIds {
    diff_ids: Vec<String>,
}

impl Container {
    /// An OCI image layout in the directory `files`, which the user gave as `given`.
    pub fn open_oci(given: &Path, files: &Path) -> Result<Self, Error> {
        let mut container = Self {
            given: given.to_owned(),
            files: files.to_owned(),
            candidates: Vec::new(),
            kind: "oci",
        };
        let index: Index = container.json(OCI_INDEX, None)?;
        container.collect(index, &[], MOST_INDICES)?;
        Ok(container)
    }

    /// An archive of `docker save` that was unpacked to `files`.
    pub fn open_docker(given: &Path, files: &Path) -> Result<Self, Error> {
        let mut container = Self {
            given: given.to_owned(),
            files: files.to_owned(),
            candidates: Vec::new(),
            kind: "docker",
        };
        let images: Vec<DockerImage> = container.json(DOCKER_MANIFEST, None)?;
        let candidates = images.into_iter().map(|image| Candidate {
            names: image.repo_tags.unwrap_or_default(),
            config: image.config,
            layers: image.layers,
            digest: None,
        });
        container.candidates = candidates.collect();
        Ok(container)
    }

    /// For the guest's manifest.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// The one image that fits, with its configuration read and checked.
    pub fn choose(&self, choice: &Choice) -> Result<Image, Error> {
        let fits = |candidate: &&Candidate| {
            let wanted = choice.tag.as_ref();
            wanted.is_none_or(|tag| candidate.names.iter().any(|name| is_named(name, tag)))
        };
        let fitting: Vec<_> = self.candidates.iter().filter(fits).collect();
        match fitting.as_slice() {
            [one] => self.read(one),
            [] => Err(self.problem(match &choice.tag {
                Some(tag) => format!(
                    "no image for linux/amd64 is named {tag}; there are {}",
                    self.names()
                ),
                None => "it holds no image for linux/amd64".to_owned(),
            })),
            _ => Err(self.problem(format!(
                "it holds several images; name one of {} with --image-tag",
                self.names()
            ))),
        }
    }

    fn collect(&mut self, index: Index, names: &[String], depth: u32) -> Result<(), Error> {
        if depth == 0 {
            return Err(self.problem("its indices are nested too deeply".to_owned()));
        }
        for descriptor in index.manifests {
            if !descriptor.platform.as_ref().is_none_or(Platform::is_ours) {
                continue;
            }
            let own = descriptor.annotations.get(REFERENCE).cloned();
            let names: Vec<_> = names.iter().cloned().chain(own).collect();
            let digest = self.digest(&descriptor.digest)?;
            let blob = blob(&digest);
            if descriptor.media_type.contains("index")
                || descriptor.media_type.contains("manifest.list")
            {
                let inner = self.json(&blob, Some(&digest))?;
                self.collect(inner, &names, depth - 1)?;
                continue;
            }
            let manifest: Manifest = self.json(&blob, Some(&digest))?;
            let config = self.digest(&manifest.config.digest)?;
            let layers = manifest.layers.iter();
            let layers =
                layers.map(|layer| self.digest(&layer.digest).map(|digest| self::blob(&digest)));
            self.candidates.push(Candidate {
                names,
                config: self::blob(&config),
                layers: layers.collect::<Result<_, _>>()?,
                digest: Some(config),
            });
        }
        Ok(())
    }

    fn read(&self, candidate: &Candidate) -> Result<Image, Error> {
        let bytes = self.bytes(&candidate.config, candidate.digest.as_deref())?;
        let file: ConfigFile = self.parse(&candidate.config, &bytes)?;
        if (file.os.as_str(), file.architecture.as_str()) != ("linux", "amd64") {
            return Err(self.problem(format!(
                "the image is for {}/{}, expected linux/amd64",
                file.os, file.architecture
            )));
        }
        let (found, expected) = (candidate.layers.len(), file.rootfs.diff_ids.len());
        if found != expected {
            return Err(self.problem(format!(
                "it has {found} layers, its configuration names {expected}"
            )));
        }
        let layers = candidate.layers.iter().zip(&file.rootfs.diff_ids);
        let layers = layers.map(|(layer, diff_id)| {
            Ok(Layer {
                path: self.real_path(layer)?,
                diff_id: self.digest(diff_id)?,
            })
        });
        let config = file.config.unwrap_or_default().checked();
        let config = config.map_err(|problem| self.problem(problem))?;
        Ok(Image {
            digest: format!("sha256:{}", hex(&Sha256::digest(&bytes))),
            layers: layers.collect::<Result<_, Error>>()?,
            config,
        })
    }

    fn json<T: DeserializeOwned>(&self, name: &str, digest: Option<&str>) -> Result<T, Error> {
        self.parse(name, &self.bytes(name, digest)?)
    }

    fn parse<T: DeserializeOwned>(&self, name: &str, bytes: &[u8]) -> Result<T, Error> {
        serde_json::from_slice(bytes).map_err(|error| self.problem(format!("its {name}: {error}")))
    }

    fn bytes(&self, name: &str, digest: Option<&str>) -> Result<Vec<u8>, Error> {
        let read = |path: &Path| {
            let mut bytes = Vec::new();
            File::open(path)?
                .take(MOST_JSON_BYTES)
                .read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let path = self.real_path(name)?;
        let bytes = read(&path).map_err(Error::file("read", &path))?;
        let found = hex(&Sha256::digest(&bytes));
        match digest {
            Some(expected) if expected != found => Err(self.problem(format!(
                "its {name} has the digest sha256:{found}, expected sha256:{expected}"
            ))),
            _ => Ok(bytes),
        }
    }

    /// A file of the image: neither a name nor a link leads to any other.
    fn real_path(&self, name: &str) -> Result<PathBuf, Error> {
        let opened = openat2(
            CWD,
            &self.files,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::empty(),
        )
        .and_then(|files| {
            let within = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
            openat2(
                &files,
                name,
                OFlags::PATH | OFlags::CLOEXEC,
                Mode::empty(),
                within,
            )
        });
        match opened {
            Ok(_) => Ok(self.files.join(name)),
            Err(errno) => Err(self.problem(format!("its {name}: {}", io::Error::from(errno)))),
        }
    }

    /// The hexadecimal digits of a `sha256:` digest.
    fn digest(&self, text: &str) -> Result<String, Error> {
        let digits = text.strip_prefix("sha256:").filter(|digits| {
            digits.len() == 64
                && digits
                    .bytes()
                    .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        });
        let digits =
            digits.ok_or_else(|| self.problem(format!("digest {text:?}, expected sha256:")))?;
        Ok(digits.to_owned())
    }

    fn names(&self) -> String {
        let names: Vec<_> = self
            .candidates
            .iter()
            .flat_map(|one| one.names.iter().cloned())
            .collect();
        if names.is_empty() {
            "images without names".to_owned()
        } else {
            names.join(", ")
        }
    }

    fn problem(&self, problem: String) -> Error {
        Error::RootFs {
            path: self.given.clone(),
            problem,
        }
    }
}

impl Platform {
    fn is_ours(&self) -> bool {
        (self.os.as_str(), self.architecture.as_str()) == ("linux", "amd64")
    }
}

fn blob(digest: &str) -> String {
    format!("blobs/sha256/{digest}")
}

/// `alpine:3.20` is named by its whole name and by its tag.
fn is_named(name: &str, wanted: &str) -> bool {
    name == wanted || name.rsplit_once(':').is_some_and(|(_, tag)| tag == wanted)
}
