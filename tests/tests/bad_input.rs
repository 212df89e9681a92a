//! Input that cannot work, on real machines: the message, the exit code, and that nothing stays.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use minivmm_tests::{Guest, Host, Running};

/// A host with a store of its own, in which there is a copy of a template by this name.
fn host_with_copy(name: &str) -> (Host, PathBuf) {
    let shared = Host::with_shared_templates();
    let template = shared
        .store()
        .join("templates")
        .join(shared.template(&Guest::debian_6_1()));
    let host = Host::new();
    let templates = host.store().join("templates");
    fs::create_dir_all(&templates).unwrap();
    let mut cp = host.foreign_command("cp");
    cp.args(["-a", "--sparse=always"])
        .arg(template)
        .arg(templates.join(name));
    Running::start(&mut cp).wait().ok();
    let copy = templates.join(name);
    (host, copy)
}

fn make_writable(path: &Path) {
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
}

fn set_length(path: &Path, change: impl Fn(u64) -> u64) {
    make_writable(path);
    let file = File::options().write(true).open(path).unwrap();
    file.set_len(change(file.metadata().unwrap().len()))
        .unwrap();
}

#[test]
fn a_memory_file_of_another_length_is_refused() {
    let (host, template) = host_with_copy("base");
    let memory = template.join("memory");
    let length = memory.metadata().unwrap().len();
    for changed in [length - 4096, length - 4096 + 1, 0, length + 4096] {
        set_length(&memory, |_| changed);
        let ended = host.minivmm(["restore", "base"]);
        ended.fails(1).says(memory.to_str().unwrap());
        ended.says(&changed.to_string()).says(&length.to_string());
        host.assert_no_vms();
        host.minivmm(["template", "list"]).ok().prints("base");
    }
}

#[test]
fn a_memory_file_that_is_something_else_is_refused() {
    let (host, template) = host_with_copy("base");
    let memory = template.join("memory");
    let replacements: [fn(&Path) -> std::io::Result<()>; 4] = [
        |_| Ok(()),
        |path| fs::create_dir(path),
        |path| Ok(rustix::fs::mkfifoat(rustix::fs::CWD, path, 0o600.into())?),
        |path| std::os::unix::fs::symlink("/dev/zero", path),
    ];
    for replace in replacements {
        if memory.is_dir() {
            fs::remove_dir(&memory).unwrap();
        } else if memory.symlink_metadata().is_ok() {
            fs::remove_file(&memory).unwrap();
        }
        replace(&memory).unwrap();
        host.minivmm(["restore", "base"])
            .fails(1)
            .says(memory.to_str().unwrap());
        host.assert_no_vms();
    }
    fs::remove_file(&memory).unwrap();
}

#[test]
fn a_memory_file_with_other_content_is_refused() {
    let (host, template) = host_with_copy("base");
    let memory = template.join("memory");
    make_writable(&memory);
    let file = File::options().write(true).open(&memory).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"not what it was", 100 << 20).unwrap();
    let expected = memory.to_str().unwrap();
    host.minivmm(["restore", "base"])
        .fails(1)
        .says(expected)
        .says("changed");
    let verify = host.minivmm(["template", "verify", "base"]);
    assert!(verify.fails(1).text().contains(expected), "{verify:?}");
    host.assert_no_vms();
}

#[test]
fn a_damaged_state_file_is_refused() {
    let (host, template) = host_with_copy("base");
    let state = template.join("state");
    let whole = fs::read(&state).unwrap();
    make_writable(&state);
    let middle = whole.len() / 2;
    let mut flipped = whole.clone();
    flipped[middle] ^= 1;
    for damaged in [
        &[][..],
        &whole[..1],
        &whole[..middle],
        &flipped,
        &[0x55; 1 << 20],
    ] {
        fs::write(&state, damaged).unwrap();
        host.minivmm(["restore", "base"])
            .fails(1)
            .says(state.to_str().unwrap());
        host.assert_no_vms();
    }
    fs::write(&state, whole).unwrap();
    host.minivmm(["restore", "base", "--timeout", "120"]).ok();
}

#[test]
fn of_two_creates_of_a_name_one_wins() {
    let host = Host::new();
    let args = ["template", "create", "base"].map(str::to_owned);
    let args: Vec<_> = args.into_iter().chain(Guest::debian_6_1().args()).collect();
    let creates = [host.start(&args), host.start(&args)].map(Running::wait);
    let [first, second] = &creates;
    let (winner, loser) = if first.code() == Some(0) {
        (first, second)
    } else {
        (second, first)
    };
    winner.ok();
    loser.fails(1).says("base");

    // One more is refused before it boots anything, and does no harm.
    let late = host.minivmm(&args);
    late.fails(1)
        .says("Template base exists")
        .says("delete it first");
    host.assert_no_vms();
    host.minivmm(["template", "verify", "base"]).ok();
    host.restore("base").exec(["true"]).ok();
}

#[test]
fn a_template_is_not_deleted_while_clones_run() {
    let (host, template) = host_with_copy("base");
    let vm = host.restore("base");
    host.minivmm(["template", "delete", "base"])
        .fails(1)
        .says("in use by 1 clone");
    vm.sh("cat /bin/busybox >/dev/null && echo on")
        .ok()
        .prints("on");
    vm.minivmm(["stop", "--force"]).ok();
    host.minivmm(["template", "delete", "base"]).ok();
    assert!(!template.exists());
    host.assert_no_templates();
}

#[test]
fn nothing_can_be_read_by_others_whatever_the_umask() {
    let host = Host::new();
    let (program, args) = (host.command([""; 0]), Guest::debian_6_1().args());
    let script =
        "umask 0; \"$0\" template create base \"$@\" && \"$0\" restore base --id vm --timeout 120";
    let mut shell = host.foreign_command("sh");
    shell
        .args(["-c", script])
        .arg(program.get_program())
        .args(args);
    Running::start(&mut shell).wait().ok();
    host.minivmm(["exec", "vm", "--", "true"]).ok();
    let mut seen = 0;
    for root in [host.state(), host.store().to_owned()] {
        assert_private(&root, &mut seen);
    }
    assert!(seen > 10, "{seen} files");
}

fn assert_private(path: &Path, seen: &mut u32) {
    let metadata = path.symlink_metadata().unwrap();
    let mode = metadata.mode() & 0o7777;
    *seen += 1;
    if metadata.is_dir() {
        assert_eq!(mode, 0o700, "{}", path.display());
        for entry in fs::read_dir(path).unwrap() {
            assert_private(&entry.unwrap().path(), seen);
        }
    } else {
        assert!(
            [0o600, 0o400].contains(&mode),
            "{mode:o} {}",
            path.display()
        );
    }
}

#[test]
fn the_longest_socket_path_works_and_one_more_byte_is_refused() {
    const LONGEST: usize = 107;
    let (host, _template) = host_with_copy("base");
    let place = format!("{}/vms//vsock.sock_4294967295", host.state().display());
    let id = "x".repeat((LONGEST - place.len()).min(64));
    // Where the directory is short, the id alone cannot reach the limit.
    let padding = LONGEST - place.len() - id.len();
    let state = format!("{}{}", host.state().display(), "/.".repeat(padding / 2));
    let restore = [
        "--state-dir",
        &state,
        "restore",
        "base",
        "--timeout",
        "120",
        "--id",
        &id,
    ];
    host.minivmm(restore).ok();
    host.minivmm(["--state-dir", &state, "exec", &id, "--", "true"])
        .ok();
    host.minivmm(["rm", "-f", &id]).ok();

    let state = format!("{state}/../run");
    let restore = ["--state-dir", &state, "restore", "base", "--id", &id];
    host.minivmm(restore)
        .fails(2)
        .says("107")
        .says("--state-dir");
    host.assert_no_vms();
}

#[test]
fn a_kernel_of_another_kind_is_named_with_what_it_is() {
    let host = Host::new();
    let elf = fs::read(Guest::debian_6_1().kernel()).unwrap();
    let bzimage = fs::read(Guest::debian_6_1().bzimage().kernel()).unwrap();
    let mut foreign = elf[..4096].to_vec();
    foreign[18] = 183;
    let mut old = elf[..4096].to_vec();
    old[4] = 1;
    let gzip = [&[0x1f, 0x8b, 8, 0][..], &[0; 4096]].concat();
    let kinds: [(&str, &[u8], &str); 7] = [
        ("foreign", &foreign, "another architecture"),
        ("old", &old, "32-bit"),
        ("gzip", &gzip, "gzip"),
        ("cut-elf", &elf[..elf.len() / 2], "cut off"),
        ("cut-bzimage", &bzimage[..bzimage.len() / 2], "cut off"),
        ("text", b"#!/bin/sh\necho no kernel\n", "expected"),
        ("empty", b"", "empty"),
    ];
    for (name, content, part) in kinds {
        let kernel = host.file(name, content);
        let kernel = kernel.to_str().unwrap();
        for command in [
            &["run", "--kernel", kernel][..],
            &["template", "create", "t", "--kernel", kernel],
        ] {
            host.minivmm(command).fails(1).says(kernel).says(part);
            host.assert_no_vms();
            host.assert_no_templates();
        }
    }
}

#[test]
fn a_guest_with_too_little_memory_is_told_how_much() {
    let host = Host::new();
    let run = ["run"].map(str::to_owned);
    for small in [
        Guest::debian_6_1().memory("32M"),
        Guest::debian_6_1().bzimage().memory("64M"),
        Guest::debian_6_12().memory("64M"),
    ] {
        let ended = host.minivmm(run.iter().cloned().chain(small.args()));
        ended
            .fails(1)
            .says(small.kernel().to_str().unwrap())
            .says("--mem");
        host.assert_no_vms();
    }

    let initrd = host.file("initrd", b"");
    set_length(&initrd, |_| 300 << 20);
    let initrd = initrd.to_str().unwrap();
    let kernel = Guest::debian_6_1().kernel();
    let run = [
        "run",
        "--kernel",
        kernel.to_str().unwrap(),
        "--initrd",
        initrd,
    ];
    host.minivmm(run)
        .fails(1)
        .says(initrd)
        .says("314572800")
        .says("--mem");
    host.assert_no_vms();
}

#[test]
fn a_guest_without_an_agent_is_reported_with_what_it_last_said() {
    let host = Host::new();
    let kernel = Guest::debian_6_1().kernel();
    let kernel = kernel.to_str().unwrap();
    for command in [&["run"][..], &["template", "create", "t"]] {
        let options = ["--kernel", kernel, "--timeout", "300"];
        let ended = host.minivmm([command, &options].concat());
        // Without a module for the panic device, a panic is a reboot to the host.
        ended
            .fails(10)
            .says("guest rebooted")
            .says("Unable to mount root fs");
        host.assert_no_vms();
        host.assert_no_templates();
    }
}

#[test]
fn an_agent_that_does_not_answer_is_not_waited_for_for_ever() {
    let host = Host::new();
    let guest = Guest::debian_6_1().cmdline("console=ttyS0 rdinit=/bin/sleep -- 100000");
    let (kernel, initrd) = (guest.kernel(), guest.initrd());
    let ended = host.minivmm([
        "run",
        "--kernel",
        kernel.to_str().unwrap(),
        "--initrd",
        initrd.to_str().unwrap(),
        "--cmdline",
        "console=ttyS0 rdinit=/bin/sleep -- 100000",
        "--timeout",
        "2",
    ]);
    ended
        .fails(1)
        .says("agent did not answer within 2 s")
        .says("--timeout");
    host.assert_no_vms();
}

#[test]
fn the_longest_command_line_arrives_and_one_more_byte_is_refused() {
    let host = Host::new();
    let start = "console=ttyS0 panic=-1 x=";
    let longest = format!("{start}{}", "y".repeat(2047 - start.len()));
    let vm = host.run(&Guest::debian_6_1().cmdline(&longest));
    assert_eq!(
        vm.exec(["cat", "/proc/cmdline"]).ok().text(),
        format!("{longest}\n")
    );

    let run = ["run"].map(str::to_owned);
    let longer = Guest::debian_6_1().cmdline(&format!("{longest}z"));
    host.minivmm(run.into_iter().chain(longer.args()))
        .fails(2)
        .says("2048")
        .says("2047");
    assert_eq!(host.vms().len(), 1);
}

#[test]
fn a_clone_cannot_have_less_than_its_template() {
    let host = Host::with_shared_templates();
    let template = host.template(&Guest::debian_6_1().cpus(2));
    let less_memory = host.minivmm(["restore", &template, "--mem", "128M"]);
    less_memory
        .fails(1)
        .says("--mem")
        .says("256")
        .says("128")
        .says(&template);
    let fewer_cpus = host.minivmm(["restore", &template, "--cpus", "1"]);
    fewer_cpus.fails(1).says("--cpus").says("2").says(&template);
    host.assert_no_vms();
}

#[test]
fn a_restore_without_kvm_is_one_line_with_the_remedy() {
    let host = Host::with_shared_templates();
    let template = host.template(&Guest::debian_6_1());
    let forbidden = host.file("kvm", b"");
    fs::set_permissions(&forbidden, Permissions::from_mode(0o0)).unwrap();
    let script =
        "mount --bind \"$0\" /dev/kvm && exec setpriv --bounding-set -all --inh-caps -all \"$@\"";
    let mut unshare = host.foreign_command("unshare");
    unshare
        .args(["--mount", "--propagation", "private", "sh", "-c", script])
        .arg(&forbidden);
    unshare
        .arg(host.command([""; 0]).get_program())
        .args(["restore", &template]);
    let ended = Running::start(&mut unshare).wait();
    ended.fails(1).says("/dev/kvm");
    let errors = ended
        .stderr()
        .lines()
        .filter(|line| line.starts_with("error"))
        .count();
    assert_eq!(errors, 1, "{}", ended.report());
    host.assert_no_vms();
}
