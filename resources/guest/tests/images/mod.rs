//! Layers and images that are made up.

#![allow(dead_code, reason = "each test file uses its own part of it")]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::fake;

/// A layer, or a root file system.
#[derive(Clone, Default)]
pub struct LayerTar(Vec<Entry>);

#[derive(Clone)]
struct Entry {
    header: Header,
    path: String,
    link: Option<String>,
    content: Vec<u8>,
    is_raw: bool,
}

impl LayerTar {
    fn entry(mut self, kind: EntryType, path: &str, mode: u32) -> Self {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(1_000_000_000);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        self.0.push(Entry {
            header,
            path: path.to_owned(),
            link: None,
            content: Vec::new(),
            is_raw: false,
        });
        self
    }

    fn last(&mut self) -> &mut Entry {
        self.0.last_mut().unwrap()
    }

    pub fn directory(self, path: &str, mode: u32) -> Self {
        self.entry(EntryType::Directory, path, mode)
    }

    pub fn file(self, path: &str, mode: u32, owner: u64, content: &str) -> Self {
        let mut layer = self.entry(EntryType::Regular, path, mode);
        let entry = layer.last();
        entry.header.set_uid(owner);
        entry.header.set_size(content.len() as u64);
        entry.content = content.into();
        layer
    }

    /// With a name that the tar crate refuses to write.
    pub fn raw_file(self, path: &str, content: &str) -> Self {
        let mut layer = self.file(path, 0o644, 0, content);
        layer.last().is_raw = true;
        layer
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        let mut layer = self.entry(EntryType::Symlink, path, 0o777);
        layer.last().link = Some(target.to_owned());
        layer
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        let mut layer = self.entry(EntryType::Link, path, 0o644);
        layer.last().link = Some(target.to_owned());
        layer
    }

    pub fn device(self, path: &str, major: u32, minor: u32) -> Self {
        let mut layer = self.entry(EntryType::Char, path, 0o666);
        let header = &mut layer.last().header;
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        layer
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for entry in &self.0 {
            let mut header = entry.header.clone();
            if let Some(link) = &entry.link {
                header.set_link_name_literal(link).unwrap();
            }
            if entry.is_raw {
                let name = &mut header.as_ustar_mut().unwrap().name;
                name[..entry.path.len()].copy_from_slice(entry.path.as_bytes());
            } else {
                header.set_path(&entry.path).unwrap();
            }
            header.set_cksum();
            builder.append(&header, entry.content.as_slice()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    pub fn write(&self, directory: &Path, name: &str) -> PathBuf {
        let path = directory.join(name);
        fs::write(&path, self.bytes()).unwrap();
        path
    }

    pub fn write_gzip(&self, directory: &Path, name: &str) -> PathBuf {
        let path = directory.join(name);
        fs::write(&path, fake::gzip(&self.bytes())).unwrap();
        path
    }
}

pub fn digest(bytes: &[u8]) -> String {
    let digits: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{digits}")
}

fn config(architecture: &str, layers: &[LayerTar]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| digest(&layer.bytes())).collect();
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Entrypoint": ["/bin/sh"],
            "Cmd": ["-c", "true"],
            "Env": ["PATH=/bin", "A=b c"],
            "WorkingDir": "/home/me",
            "User": "1000:100",
        },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    serde_json::to_vec(&config).unwrap()
}

/// An OCI image layout.
#[derive(Default)]
pub struct Oci {
    blobs: Vec<(String, Vec<u8>)>,
    manifests: Vec<Value>,
    layers: Vec<String>,
    configs: Vec<String>,
}

impl Oci {
    fn blob(&mut self, bytes: Vec<u8>) -> String {
        let digest = digest(&bytes);
        self.blobs.push((digest.clone(), bytes));
        digest
    }

    /// Adds an image; its layers are compressed.
    pub fn image(mut self, tag: &str, architecture: &str, layers: &[LayerTar]) -> Self {
        let config = self.blob(config(architecture, layers));
        self.configs.push(config.clone());
        let mut descriptors = Vec::new();
        for layer in layers {
            let digest = self.blob(fake::gzip(&layer.bytes()));
            self.layers.push(digest.clone());
            descriptors.push(json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": digest,
                "size": 0,
            }));
        }
        let manifest = json!({
            "schemaVersion": 2,
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 0 },
            "layers": descriptors,
        });
        let manifest = self.blob(serde_json::to_vec(&manifest).unwrap());
        // As an index for several platforms, beside what proves where the image is from.
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": manifest, "size": 0,
                "platform": { "architecture": architecture, "os": "linux" },
            }, {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": manifest, "size": 0,
                "platform": { "architecture": "unknown", "os": "unknown" },
            }],
        });
        let index = self.blob(serde_json::to_vec(&index).unwrap());
        self.manifests.push(json!({
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "digest": index, "size": 0,
            "annotations": { "org.opencontainers.image.ref.name": tag },
        }));
        self
    }

    fn damage(mut self, digests: &[String]) -> Self {
        for (digest, bytes) in &mut self.blobs {
            if digests.contains(digest) {
                // Another layer or configuration, whole in itself.
                *bytes = fake::gzip(&LayerTar::default().file("other", 0o644, 0, "").bytes());
            }
        }
        self
    }

    pub fn with_damaged_layer(self) -> Self {
        let layers = self.layers.clone();
        self.damage(&layers)
    }

    pub fn with_damaged_config(self) -> Self {
        let configs = self.configs.clone();
        self.damage(&configs)
    }

    pub fn without_layers(mut self) -> Self {
        let layers = self.layers.clone();
        self.blobs.retain(|(digest, _)| !layers.contains(digest));
        self
    }

    fn files(&self) -> Vec<(String, Vec<u8>)> {
        let index = json!({ "schemaVersion": 2, "manifests": self.manifests });
        let mut files = vec![
            (
                "oci-layout".to_owned(),
                br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
            ),
            ("index.json".to_owned(), serde_json::to_vec(&index).unwrap()),
        ];
        for (digest, bytes) in &self.blobs {
            files.push((format!("blobs/{}", digest.replace(':', "/")), bytes.clone()));
        }
        files
    }

    pub fn write(&self, directory: &Path) -> PathBuf {
        let layout = directory.join("layout");
        fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
        for (name, bytes) in self.files() {
            fs::write(layout.join(name), bytes).unwrap();
        }
        layout
    }

    pub fn write_tar(&self, directory: &Path) -> PathBuf {
        let path = directory.join("layout.tar");
        fs::write(&path, fake::tar(&self.files())).unwrap();
        path
    }
}

/// An archive of `docker save`.
#[derive(Default)]
pub struct Docker {
    files: Vec<(String, Vec<u8>)>,
    images: Vec<Value>,
}

impl Docker {
    pub fn image(mut self, tag: &str, layers: &[LayerTar]) -> Self {
        let config_name = format!("config-{}.json", self.images.len());
        self.files
            .push((config_name.clone(), config("amd64", layers)));
        let mut names = Vec::new();
        for layer in layers {
            let name = format!("{}/layer.tar", self.files.len());
            self.files.push((name.clone(), layer.bytes()));
            names.push(name);
        }
        self.images
            .push(json!({ "Config": config_name, "RepoTags": [tag], "Layers": names }));
        self
    }

    pub fn write_tar(&self, directory: &Path) -> PathBuf {
        let manifest = serde_json::to_vec(&self.images).unwrap();
        let mut files = self.files.clone();
        files.push(("manifest.json".to_owned(), manifest));
        let path = directory.join("docker.tar");
        fs::write(&path, fake::tar(&files)).unwrap();
        path
    }
}
