//! Finds a kernel and its modules in what the user has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::decompress::{Format, read_all};
use crate::error::Error;
use crate::manifest::{SourceRecord, hex};
use crate::modules::{Module, canonical};
use crate::{deb, image};

/// How much of a file tells what it is.
const PROBE_BYTES: usize = 4096;
/// The extensions of module files.
const MODULE_EXTENSIONS: [&str; 4] = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"];
/// Modules whose names start like this are kept when a package is read for the first time: the
/// drivers for the VMM's devices are among them, and one reading is enough then.
const LIKELY_PREFIXES: [&str; 5] = ["virtio", "vsock", "vmw_vsock", "pvpanic", "failover"];

/// A kernel with its modules.
#[derive(Debug)]
pub struct KernelSource {
    /// Such as `6.1.0-56-cloud-amd64`.
    pub version: String,
    /// The bzImage.
    pub image: Vec<u8>,
    /// Where it comes from, for messages.
    pub image_name: String,
    /// What is compiled into the kernel.
    pub builtin: BTreeSet<String>,
    /// The files it all comes from.
    pub sources: Vec<SourceRecord>,
    modules: Modules,
}

/// Where the modules are.
#[derive(Debug)]
enum Modules {
    /// Below `/lib/modules/VERSION`, by name.
    Directory {
        root: PathBuf,
        files: BTreeMap<String, String>,
    },
    /// In a package; some have been read already.
    Package {
        package: PathBuf,
        files: BTreeMap<String, String>,
        kept: BTreeMap<String, Module>,
    },
}

impl KernelSource {
    /// Recognises what `kernel` is. `wanted` are the modules that will surely be asked for.
    pub fn open(kernel: &Path, modules: Option<&Path>, wanted: &[String]) -> Result<Self, Error> {
        if kernel.is_dir() {
            return Self::from_modules_directory(kernel);
        }
        let start = read_start(kernel)?;
        if deb::is_package(&start) {
            Self::from_package(kernel, wanted)
        } else if image::is_bzimage(&start) {
            Self::from_image(kernel, modules)
        } else {
            Err(Error::NotAKernel {
                path: kernel.to_owned(),
                found: describe(&start),
            })
        }
    }

    fn from_modules_directory(directory: &Path) -> Result<Self, Error> {
        let path = || directory.to_owned();
        let absolute = directory
            .canonicalize()
            .map_err(Error::file("open", directory))?;
        let version = absolute
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        let version = version
            .filter(|_| absolute.join("kernel").is_dir())
            .ok_or_else(|| Error::NotAKernel {
                path: path(),
                found: "a directory without kernel/",
            })?;
        let name = format!("vmlinuz-{version}");
        // The directory is ROOT/lib/modules/VERSION or ROOT/usr/lib/modules/VERSION.
        let roots = [absolute.ancestors().nth(3), absolute.ancestors().nth(4)];
        let mut searched = vec![absolute.join("vmlinuz")];
        searched.extend(
            roots
                .into_iter()
                .flatten()
                .map(|root| root.join("boot").join(&name)),
        );
        match searched.iter().find(|candidate| candidate.is_file()) {
            Some(image) => Self::from_image(image, Some(&absolute)),
            None => Err(Error::NoKernelBeside {
                path: path(),
                searched,
            }),
        }
    }

    fn from_image(path: &Path, modules: Option<&Path>) -> Result<Self, Error> {
        let image = fs::read(path).map_err(Error::file("read", path))?;
        let image_name = path.display().to_string();
        let version = image::version(&image, &image_name)?;
        let root = match modules {
            Some(root) => root.to_owned(),
            None => find_modules(path, &version)?,
        };
        let builtin = match fs::read_to_string(root.join("modules.builtin")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            result => result.map_err(Error::file("read", root.join("modules.builtin")))?,
        };
        let mut files = BTreeMap::new();
        index_directory(&root, "", &mut files)?;
        Ok(Self {
            sources: vec![source_record("kernel", path, &image)],
            version,
            image,
            image_name,
            builtin: builtin_names(&builtin),
            modules: Modules::Directory { root, files },
        })
    }

    fn from_package(package: &Path, wanted: &[String]) -> Result<Self, Error> {
        let mut content = PackageContent::default();
        let likely = |name: &str| {
            wanted.iter().any(|wanted| wanted == name)
                || LIKELY_PREFIXES
                    .iter()
                    .any(|prefix| name.starts_with(prefix))
        };
        deb::for_each_file(package, &mut |path, file| content.take(path, file, &likely))?;
        let (name, image) = content.image.ok_or_else(|| Error::NoKernelInPackage {
            path: package.to_owned(),
        })?;
        let image_name = format!("{name} in {}", package.display());
        let whole = fs::read(package).map_err(Error::file("read", package))?;
        Ok(Self {
            version: image::version(&image, &image_name)?,
            image,
            image_name,
            builtin: builtin_names(&content.builtin),
            sources: vec![source_record("kernel", package, &whole)],
            modules: Modules::Package {
                package: package.to_owned(),
                files: content.files,
                kept: content.kept,
            },
        })
    }

    /// Whether there is a file for the module.
    pub fn has_module(&self, name: &str) -> bool {
        self.files().contains_key(name)
    }

    /// How many modules there are.
    pub fn module_count(&self) -> usize {
        self.files().len()
    }

    /// Where they are, for messages.
    pub fn modules_place(&self) -> String {
        match &self.modules {
            Modules::Directory { root, .. } => root.display().to_string(),
            Modules::Package { package, .. } => package.display().to_string(),
        }
    }

    fn files(&self) -> &BTreeMap<String, String> {
        match &self.modules {
            Modules::Directory { files, .. } | Modules::Package { files, .. } => files,
        }
    }

    /// Reads those of the modules that there are.
    pub fn load(&mut self, names: &BTreeSet<&str>) -> Result<BTreeMap<String, Module>, Error> {
        match &mut self.modules {
            Modules::Directory { root, files } => {
                let mut modules = BTreeMap::new();
                for name in names {
                    let Some(file) = files.get(*name) else {
                        continue;
                    };
                    let path = root.join(file);
                    let data = fs::read(&path).map_err(Error::file("read", &path))?;
                    let module =
                        decompressed(name, file, data).map_err(Error::file("decompress", path))?;
                    modules.insert((*name).to_owned(), module);
                }
                Ok(modules)
            }
            Modules::Package {
                package,
                files,
                kept,
            } => {
                let there = |name: &&&str| files.contains_key(**name);
                if names
                    .iter()
                    .filter(there)
                    .any(|name| !kept.contains_key(*name))
                {
                    let mut content = PackageContent::default();
                    deb::for_each_file(package, &mut |path, file| {
                        content.take(path, file, &|name| names.contains(name))
                    })?;
                    kept.extend(content.kept);
                }
                let module = |name: &&str| Some(((*name).to_owned(), kept.get(*name)?.clone()));
                Ok(names.iter().filter_map(module).collect())
            }
        }
    }
}

/// What one reading of a package brings.
#[derive(Debug, Default)]
struct PackageContent {
    image: Option<(String, Vec<u8>)>,
    builtin: String,
    files: BTreeMap<String, String>,
    kept: BTreeMap<String, Module>,
}

impl PackageContent {
    fn take(
        &mut self,
        path: &str,
        file: &mut dyn Read,
        keep: &dyn Fn(&str) -> bool,
    ) -> io::Result<()> {
        let path = path.strip_prefix("usr/").unwrap_or(path);
        if path.starts_with("boot/vmlinuz-") {
            self.image = Some((path.to_owned(), read_all(file)?));
            return Ok(());
        }
        let below_version = path
            .strip_prefix("lib/modules/")
            .and_then(|rest| rest.split_once('/'));
        match below_version.map(|(_, file)| file) {
            Some("modules.builtin") => {
                let text = String::from_utf8(read_all(file)?);
                self.builtin = text.map_err(io::Error::other)?;
            }
            Some(relative) => {
                if let Some(name) = module_name(relative) {
                    if keep(&name) {
                        let module = decompressed(&name, relative, read_all(file)?)?;
                        self.kept.insert(name.clone(), module);
                    }
                    self.files.insert(name, relative.to_owned());
                }
            }
            None => {}
        }
        Ok(())
    }
}

fn read_start(path: &Path) -> Result<Vec<u8>, Error> {
    let mut start = Vec::new();
    let limit = u64::try_from(PROBE_BYTES).unwrap_or(u64::MAX);
    File::open(path)
        .and_then(|file| file.take(limit).read_to_end(&mut start))
        .map_err(Error::file("read", path))?;
    Ok(start)
}

fn describe(start: &[u8]) -> &'static str {
    if start.is_empty() {
        "an empty file"
    } else if image::is_arm64_image(start) {
        "a kernel for arm64"
    } else if start.starts_with(b"\x7fELF") {
        "an ELF file"
    } else if Format::detect(start).is_some() {
        "a compressed file"
    } else {
        "something else"
    }
}

fn find_modules(image: &Path, version: &str) -> Result<PathBuf, Error> {
    let absolute = image.canonicalize().map_err(Error::file("open", image))?;
    // The image is ROOT/boot/vmlinuz-VERSION, or lies in ROOT, or among its modules.
    let parents = absolute.ancestors().skip(1).take(2);
    let mut searched: Vec<PathBuf> = parents
        .flat_map(|root| ["lib/modules", "usr/lib/modules"].map(|below| root.join(below)))
        .map(|directory| directory.join(version))
        .collect();
    searched.extend(absolute.parent().map(Path::to_owned));
    let has_modules = |directory: &&PathBuf| directory.join("kernel").is_dir();
    match searched.iter().find(has_modules) {
        Some(found) => Ok(found.clone()),
        None => Err(Error::NoModulesBeside {
            path: image.to_owned(),
            version: version.to_owned(),
            searched,
        }),
    }
}

fn index_directory(
    root: &Path,
    below: &str,
    files: &mut BTreeMap<String, String>,
) -> Result<(), Error> {
    let directory = root.join(below);
    for entry in fs::read_dir(&directory).map_err(Error::file("list", &directory))? {
        let entry = entry.map_err(Error::file("list", &directory))?;
        let kind = entry
            .file_type()
            .map_err(Error::file("examine", entry.path()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if below.is_empty() {
            name
        } else {
            format!("{below}/{name}")
        };
        // `build` and `source` are links to elsewhere.
        if kind.is_dir() {
            index_directory(root, &path, files)?;
        } else if let Some(name) = module_name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// The name of the module in that file, if it is one.
fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let stem = MODULE_EXTENSIONS
        .iter()
        .find_map(|extension| file.strip_suffix(extension))?;
    Some(canonical(stem))
}

fn builtin_names(list: &str) -> BTreeSet<String> {
    list.lines().filter_map(module_name).collect()
}

/// A module for the guest, which then needs no decompression of its own.
fn decompressed(name: &str, file: &str, data: Vec<u8>) -> io::Result<Module> {
    let stem = file
        .find(".ko")
        .and_then(|end| file.get(..end))
        .unwrap_or(file);
    let data = match Format::detect(&data) {
        Some(format) => format.decompress(&data)?,
        None => data,
    };
    Ok(Module {
        name: name.to_owned(),
        file: format!("{stem}.ko"),
        data,
    })
}

fn source_record(role: &str, path: &Path, content: &[u8]) -> SourceRecord {
    SourceRecord {
        role: role.to_owned(),
        path: path.display().to_string(),
        sha256: hex(&Sha256::digest(content)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_names_come_from_file_names() {
        assert_eq!(
            module_name("kernel/a/virtio-rng.ko").as_deref(),
            Some("virtio_rng")
        );
        assert_eq!(module_name("kernel/a/x.ko.zst").as_deref(), Some("x"));
        assert_eq!(module_name("modules.order"), None);
        assert_eq!(module_name("kernel/x.ko.sig"), None);
    }

    #[test]
    fn files_are_described() {
        assert_eq!(describe(b""), "an empty file");
        assert_eq!(describe(b"\x7fELF\x02"), "an ELF file");
        assert_eq!(describe(&[0x1f, 0x8b, 8]), "a compressed file");
        assert_eq!(describe(b"hello"), "something else");
    }
}
