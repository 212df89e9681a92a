//! Picks kernel modules with everything that they depend on.
//!
//! A package has no `modules.dep` (it is made at installation), so the dependencies come from each
//! module's own `.modinfo`, and what needs no module from `modules.builtin`.

use std::collections::{BTreeMap, BTreeSet};

use crate::elf;
use crate::error::Error;
use crate::source::KernelSource;

/// What the VMM's devices need: the transport, vsock, memory hot-add and its return, entropy,
/// network and the panic notifier.
pub const DEFAULT_MODULES: [&str; 7] = [
    "virtio_mmio",
    "vmw_vsock_virtio_transport",
    "virtio_mem",
    "virtio_rng",
    "virtio_balloon",
    "virtio_net",
    "pvpanic_mmio",
];

/// What disks need. A kernel without them makes a guest without disks.
pub const DISK_MODULES: [&str; 3] = ["virtio_blk", "crc32c_generic", "ext4"];

/// A module as the guest gets it, decompressed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Module {
    /// Its name, with underscores.
    pub name: String,
    /// Its path below `/lib/modules/VERSION`.
    pub file: String,
    /// The ELF file.
    pub data: Vec<u8>,
}

/// What a module says about itself.
struct Facts {
    depends: Vec<String>,
    /// Wanted before it where they exist.
    soft: Vec<String>,
    version: Option<String>,
}

/// The kernel takes dashes and underscores in module names for the same.
pub fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The default modules, those for disks, and the others that were asked for, each once.
pub fn wanted(extra: &[String]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in DEFAULT_MODULES
        .into_iter()
        .chain(DISK_MODULES)
        .chain(extra.iter().map(String::as_str))
    {
        let name = canonical(name);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Leaves out modules for disks that nobody asked for and the kernel does not have.
pub fn without_missing(
    wanted: Vec<String>,
    extra: &[String],
    kernel: &KernelSource,
) -> Vec<String> {
    let is_optional = |name: &String| {
        DISK_MODULES.contains(&name.as_str()) && !extra.iter().any(|e| canonical(e) == *name)
    };
    let mut wanted = wanted;
    wanted.retain(|name| !is_optional(name) || kernel.has_module(name));
    wanted
}

/// The wanted modules and all that they need, in loading order. What is built in is left out.
pub fn resolve(wanted: &[String], kernel: &mut KernelSource) -> Result<Vec<Module>, Error> {
    let mut found: BTreeMap<String, (Module, Vec<String>)> = BTreeMap::new();
    let mut missing: BTreeMap<String, Option<String>> =
        wanted.iter().map(|name| (name.clone(), None)).collect();
    while !missing.is_empty() {
        missing.retain(|name, _| !kernel.builtin.contains(name) && !found.contains_key(name));
        let names: BTreeSet<&str> = missing.keys().map(String::as_str).collect();
        let mut loaded = kernel.load(&names)?;
        let mut next = BTreeMap::new();
        for (name, needed_by) in missing {
            let module = loaded
                .remove(&name)
                .ok_or_else(|| missing_module(&name, needed_by, kernel))?;
            let facts = facts(&module, &kernel.version)?;
            let soft = facts
                .soft
                .into_iter()
                .filter(|name| kernel.has_module(name));
            let depends: Vec<String> = facts.depends.into_iter().chain(soft).collect();
            for dependency in &depends {
                next.insert(dependency.clone(), Some(name.clone()));
            }
            found.insert(name, (module, depends));
        }
        missing = next;
    }
    Ok(in_loading_order(wanted, found))
}

fn missing_module(name: &str, needed_by: Option<String>, kernel: &KernelSource) -> Error {
    Error::MissingModule {
        module: name.to_owned(),
        needed_by,
        version: kernel.version.clone(),
        builtin: kernel.builtin.len(),
        available: kernel.module_count(),
        place: kernel.modules_place(),
    }
}

fn facts(module: &Module, kernel_version: &str) -> Result<Facts, Error> {
    let problem = |problem| Error::Module {
        name: module.file.clone(),
        problem,
    };
    let info = elf::module_info(&module.data).map_err(problem)?;
    let mut facts = Facts {
        depends: Vec::new(),
        soft: Vec::new(),
        version: None,
    };
    for (key, value) in info {
        match key.as_str() {
            "depends" => facts.depends.extend(names(&value, ',')),
            "softdep" => {
                let before = value
                    .split("pre:")
                    .nth(1)
                    .and_then(|rest| rest.split("post:").next());
                facts.soft.extend(names(before.unwrap_or_default(), ' '));
            }
            "vermagic" => facts.version = value.split(' ').next().map(str::to_owned),
            _ => {}
        }
    }
    match &facts.version {
        Some(version) if version != kernel_version => Err(problem(format!(
            "is for kernel {version}, expected {kernel_version}"
        ))),
        _ => Ok(facts),
    }
}

fn names(list: &str, separator: char) -> impl Iterator<Item = String> {
    list.split(separator)
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(canonical)
}

fn in_loading_order(
    wanted: &[String],
    mut found: BTreeMap<String, (Module, Vec<String>)>,
) -> Vec<Module> {
    let mut order = Vec::new();
    for name in wanted {
        take_with_dependencies(name, &mut found, &mut order);
    }
    order
}

/// A module is taken out before its dependencies are looked at, so that a circle ends.
fn take_with_dependencies(
    name: &str,
    found: &mut BTreeMap<String, (Module, Vec<String>)>,
    order: &mut Vec<Module>,
) {
    if let Some((module, depends)) = found.remove(name) {
        for dependency in depends {
            take_with_dependencies(&dependency, found, order);
        }
        order.push(module);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_with_dashes() {
        let extra = ["pvpanic-mmio".to_owned(), "xfs".to_owned()];
        let wanted = wanted(&extra);
        let defaults = DEFAULT_MODULES.len() + DISK_MODULES.len();
        assert_eq!(wanted.len(), defaults + 1);
        assert_eq!(wanted.last().unwrap(), "xfs");
    }

    #[test]
    fn facts_are_taken_from_the_module() {
        let data = elf::tests::module(&[
            "depends=a-b,c",
            "softdep=pre: d e post: f",
            "vermagic=6.1 SMP mod_unload",
        ]);
        let module = Module {
            name: "x".to_owned(),
            file: "kernel/x.ko".to_owned(),
            data,
        };
        let facts = facts(&module, "6.1").unwrap();
        assert_eq!(facts.depends, ["a_b", "c"]);
        assert_eq!(facts.soft, ["d", "e"]);
    }

    #[test]
    fn module_of_another_kernel_is_refused() {
        let data = elf::tests::module(&["vermagic=6.2 SMP"]);
        let module = Module {
            name: "x".to_owned(),
            file: "kernel/x.ko".to_owned(),
            data,
        };
        let error = facts(&module, "6.1").err().unwrap().to_string();
        assert_eq!(error, "Module kernel/x.ko: is for kernel 6.2, expected 6.1");
    }

    #[test]
    fn dependencies_come_first_and_circles_end() {
        let module = |name: &str, depends: &[&str]| {
            let depends = depends.iter().map(|&name| name.to_owned()).collect();
            let (name, file, data) = (name.to_owned(), String::new(), Vec::new());
            (name.clone(), (Module { name, file, data }, depends))
        };
        let found = [
            module("a", &["b", "c"]),
            module("b", &["d"]),
            module("c", &["d", "a"]),
            module("d", &[]),
        ];
        let order = in_loading_order(&["a".to_owned()], found.into_iter().collect());
        let names: Vec<_> = order.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["d", "b", "c", "a"]);
    }
}
