//! Keeps `src/generated` in step with the `.proto` files.
//!
//! `MINIVMM_UPDATE_GENERATED=1 cargo test -p proto --test generated` writes the files anew.

#![expect(
    clippy::unwrap_used,
    reason = "a test helper may panic as its test may"
)]

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn generate(crate_dir: &Path, out_dir: &Path) {
    let proto_dir = crate_dir.join("proto");
    Codegen::new()
        .out_dir(out_dir)
        .include(&proto_dir)
        .inputs(["agent.proto", "guest.proto", "health.proto"].map(|name| proto_dir.join(name)))
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .customize(Customize {
            gen_mod: false,
            ..Default::default()
        })
        .run()
        .unwrap();
}

fn rust_files(dir: &Path) -> Vec<(OsString, PathBuf)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name(), entry.path()))
        .filter(|(name, _)| name != "mod.rs")
        .collect();
    files.sort();
    files
}

#[test]
fn generated_code_matches_the_proto_files() {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let checked_in = crate_dir.join("src/generated");
    let fresh = tempfile::tempdir().unwrap();
    generate(crate_dir, fresh.path());

    if std::env::var_os("MINIVMM_UPDATE_GENERATED").is_some() {
        for (name, path) in rust_files(fresh.path()) {
            fs::copy(path, checked_in.join(name)).unwrap();
        }
    }

    let names = |dir| {
        rust_files(dir)
            .into_iter()
            .map(|(name, _)| name)
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&checked_in), names(fresh.path()));
    for (name, path) in rust_files(fresh.path()) {
        let same = fs::read(checked_in.join(&name)).unwrap() == fs::read(path).unwrap();
        assert!(same, "src/generated/{} is out of date", name.display());
    }
}
