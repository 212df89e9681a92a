//! Input that can never work: the message, the exit code, and that nothing is left behind.

mod support;

use support::Sandbox;

const USAGE: i32 = 2;
const FAILURE: i32 = 1;

/// Runs a command line, split at spaces, that has to be a usage error.
#[track_caller]
fn assert_usage_error(line: &str, parts: &[&str]) {
    let sandbox = Sandbox::new();
    let args: Vec<_> = line.split(' ').collect();
    sandbox.run(&args).assert_failed(USAGE, parts);
    sandbox.assert_empty();
}

#[test]
fn wrong_values_name_their_option_and_what_is_expected() {
    let sandbox = Sandbox::new();
    let long = "x".repeat(300);
    for (option, value, part) in [
        ("--mem", "512", "unit"),
        ("--mem", "0", "unit"),
        ("--mem", "1K", "32M to 16T"),
        ("--mem", "-1", "unit"),
        ("--mem", "1.5G", "unit"),
        ("--mem", "1 G", "unit"),
        ("--mem", "", "unit"),
        ("--mem", "127M", "126M and 128M"),
        ("--cpus", "9999", "1 to 254"),
        ("--cpus", "0", "1 to 254"),
        ("--id", "a/b", "'/' is not allowed"),
        ("--id", "..", "begins with '.'"),
        ("--id", "a b", "' ' is not allowed"),
        ("--id", &long, "300 characters"),
        ("--id", "-x", "begins with '-'"),
        ("--id", "", "is empty"),
        ("--cmdline", "a\nb", "not allowed"),
        ("--timeout", "5s", "whole seconds"),
    ] {
        let ended = sandbox.run(&["run", "--kernel", "k", option, value]);
        ended.assert_failed(USAGE, &[option, part]);
    }
    sandbox.assert_empty();
}

#[test]
fn wrong_disks_are_named_with_what_is_expected() {
    let sandbox = Sandbox::new();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("odd"), [0; 513]).unwrap();
    std::fs::write(path("good"), [0; 512]).unwrap();
    let good = std::fs::File::open(path("good")).unwrap();
    good.lock().unwrap();
    for (disk, part) in [
        (path("none"), "does not exist"),
        (path(""), "is a directory"),
        (path("odd"), "513 bytes, expected a multiple of 512"),
        (path("good"), "in use by another VM"),
        (
            format!("{},readonly", path("good")),
            "in use by a VM that writes to it",
        ),
        ("/dev/zero".to_owned(), "no regular file"),
    ] {
        let ended = sandbox.run(&["run", "--kernel", "k", "--disk", &disk]);
        ended.assert_failed(FAILURE, &["Disk ", part]);
        let create = ["template", "create", "t", "--kernel", "k", "--disk", &disk];
        let ended = sandbox.run(&create);
        let part = part.replace("in use by another VM", "in use by a VM that writes to it");
        ended.assert_failed(FAILURE, &["Disk ", &part]);
    }
    sandbox.assert_empty();
    assert_usage_error("run --kernel k --disk a,ro", &["--disk", "PATH,readonly"]);
    assert_usage_error("run --kernel k --disk-slots 7", &["--disk-slots", "6"]);
    assert_usage_error("restore base --disk-slots 1", &["--disk-slots", "--create"]);
}

#[test]
fn wrong_command_lines_are_usage_errors() {
    assert_usage_error("run", &["--kernel FILE is required", "guest build"]);
    assert_usage_error("run --kernel k --cpus 4 --max-cpus 2", &["--max-cpus"]);
    assert_usage_error("run --kernel k --mem 1G --max-mem 512M", &["--max-mem"]);
    assert_usage_error("template create ../x --kernel k", &["contains '/'"]);
    assert_usage_error("template create x", &["--kernel FILE is required"]);
    assert_usage_error("restore ..", &["starts with '.'"]);
    assert_usage_error("restore base --kernel k", &["--kernel", "--create"]);
    assert_usage_error("restore base --create", &["--kernel FILE is required"]);
    assert_usage_error("exec -e =x vm -- true", &["NAME=VALUE"]);
    assert_usage_error("exec --env-file /no/such vm -- true", &["No such file"]);
    let create = "template create x --kernel k";
    assert_usage_error(&format!("{create} --ready port:80"), &["--warm"]);
    assert_usage_error(
        &format!("{create} --warm w --ready 80"),
        &["output:REGEX", "port:NUMBER"],
    );
    assert_usage_error("frobnicate", &["frobnicate"]);
    assert_usage_error("stop", &["<ID>"]);
}

#[test]
fn sockets_that_could_not_be_connected_to_are_refused() {
    let sandbox = Sandbox::new();
    let deep = sandbox.root().join("d".repeat(80));
    let deep = deep.to_str().unwrap();
    let kernel = sandbox.file("k", b"");
    for args in [
        vec!["run", "--kernel", &kernel],
        vec!["restore", "base"],
        vec!["template", "create", "base", "--kernel", &kernel],
    ] {
        let args = [&["--state-dir", deep], args.as_slice()].concat();
        sandbox
            .run(&args)
            .assert_failed(USAGE, &["107", "--state-dir"]);
        assert!(!std::path::Path::new(deep).exists());
    }
    sandbox.assert_empty();
}

#[test]
fn unknown_vms_are_named_with_a_next_step() {
    let sandbox = Sandbox::new();
    for command in ["pause", "resume", "stop", "rm", "wait", "logs", "console"] {
        let ended = sandbox.run(&[command, "ghost"]);
        ended.assert_failed(FAILURE, &["no VM ghost", "minivmm ps"]);
    }
    sandbox
        .run(&["exec", "ghost", "--", "true"])
        .assert_failed(125, &["no VM ghost"]);
    sandbox.assert_empty();
}

#[test]
fn unknown_templates_are_named() {
    let sandbox = Sandbox::new();
    for args in [
        &["restore", "ghost"][..],
        &["template", "inspect", "ghost"],
        &["template", "verify", "ghost"],
        &["template", "delete", "ghost"],
    ] {
        sandbox
            .run(args)
            .assert_failed(FAILURE, &["ghost does not exist"]);
    }
    sandbox.assert_empty();
}

#[test]
fn an_unusable_kernel_leaves_nothing_behind() {
    let sandbox = Sandbox::new();
    let empty = sandbox.file("empty", b"");
    let directory = sandbox.root().to_str().unwrap().to_owned();
    for (kernel, part) in [
        ("/nonexistent/k", "/nonexistent/k"),
        (&directory, &directory),
    ] {
        for args in [
            &["run", "--kernel", kernel][..],
            &["template", "create", "t", "--kernel", kernel],
        ] {
            sandbox.run(args).assert_failed(FAILURE, &[part]);
            sandbox.assert_empty();
        }
    }
    sandbox
        .run(&["run", "--kernel", &empty])
        .assert_failed(FAILURE, &[&empty]);
    sandbox.assert_empty();
}

#[test]
fn a_store_that_cannot_be_used_is_named() {
    let sandbox = Sandbox::new();
    let file = sandbox.file("file", b"");
    let ended = sandbox.run(&["--store", &file, "template", "list"]);
    ended.assert_failed(FAILURE, &[&file]);
    let ended = sandbox.run(&["--state-dir", &file, "ps"]);
    ended.assert_failed(FAILURE, &[&file]);
}
