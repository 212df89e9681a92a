//! Files that are copied into and out of a guest.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use minivmm_tests::{Ended, Guest, Host, Vm, until};
use rustix::process::Signal;

fn clone_on(host: &Host) -> Vm<'_> {
    host.restore(&host.template(&Guest::debian_6_1()))
}

fn path(host: &Host, name: &str) -> PathBuf {
    host.root().join("files").join(name)
}

#[track_caller]
fn cp(host: &Host, from: impl Into<String>, to: impl Into<String>) -> Ended {
    host.minivmm(["cp".to_owned(), from.into(), to.into()])
}

#[test]
fn a_tree_comes_back_as_it_went() {
    let host = Host::with_shared_templates();
    let vm = clone_on(&host);
    let tree = path(&host, "tree");
    fs::create_dir_all(tree.join("sub/empty")).unwrap();
    let large: Vec<u8> = (0..=250).cycle().take(3_000_000).collect();
    fs::write(tree.join("sub/large"), &large).unwrap();
    symlink("sub/large", tree.join("link")).unwrap();
    fs::set_permissions(tree.join("sub/large"), PermissionsExt::from_mode(0o640)).unwrap();

    let tree_text = tree.to_str().unwrap();
    cp(&host, tree_text, format!("{}:/srv", vm.id())).ok();
    vm.sh("cd /srv && test -d sub/empty && test $(stat -c %a sub/large) = 640 && readlink link")
        .ok()
        .prints("sub/large");
    let back = path(&host, "back");
    cp(&host, format!("{}:/srv/.", vm.id()), back.to_str().unwrap()).ok();
    assert!(fs::read(back.join("sub/large")).unwrap() == large);
    let [before, after] = [&tree, &back].map(|tree| fs::metadata(tree.join("sub/large")).unwrap());
    assert_eq!(
        (before.mtime(), before.mode()),
        (after.mtime(), after.mode())
    );
    assert_eq!(
        fs::read_link(back.join("link")).unwrap().to_str(),
        Some("sub/large")
    );
    cp(
        &host,
        format!("{}:/proc/version", vm.id()),
        back.to_str().unwrap(),
    )
    .ok();
    assert!(
        fs::read_to_string(back.join("version"))
            .unwrap()
            .starts_with("Linux")
    );
}

#[test]
fn a_full_disk_in_the_guest_is_named_and_leaves_what_was_there() {
    let host = Host::with_shared_templates();
    let vm = clone_on(&host);
    vm.sh("mkdir /small && mount -t tmpfs -o size=1m none /small && echo old >/small/file")
        .ok();
    let large = host.file("large", &vec![b'x'; 4_000_000]);
    cp(
        &host,
        large.to_str().unwrap(),
        format!("{}:/small/file", vm.id()),
    )
    .fails(1)
    .says("/small/file: No space left on device");
    let left = vm.sh("cat /small/file; ls -A /small");
    assert_eq!(left.ok().text(), "old\nfile\n");
    cp(
        &host,
        large.to_str().unwrap(),
        format!("{}:/no/dir/file", vm.id()),
    )
    .fails(1)
    .says("There is no directory /no/dir");
}

#[test]
fn a_copy_that_is_interrupted_leaves_nothing_half_made() {
    let host = Host::with_shared_templates();
    let vm = clone_on(&host);
    // Whoever writes the stream has stopped in the middle of a file.
    let packed = host.file("stream", b"");
    vm.sh("mkdir -p /mnt; head -c 3000000 /dev/zero >/tmp/zeros")
        .ok();
    let source = format!("{}:/tmp/zeros", vm.id());
    let output = fs::File::create(&packed).unwrap();
    let mut pack = host.command(["cp", &source, "-"]);
    minivmm_tests::Running::start_with_output(&mut pack, output)
        .wait()
        .ok();
    let stream = fs::read(&packed).unwrap();
    let mut copy = host.start(["cp", "-", &format!("{}:/mnt", vm.id())]);
    copy.type_in(&stream[..1_000_000]);
    until("the tool reads", || {
        vm.sh("ps | grep 'tool [u]npack'").code() == Some(0)
    });
    copy.signal(Signal::INT);
    assert_eq!(copy.wait().signal(), Some(2));
    until("the tool is gone", || {
        vm.sh("ps | grep 'tool [u]npack'").code() == Some(1)
    });
    assert_eq!(vm.sh("ls -A /mnt").ok().text(), "");
}
