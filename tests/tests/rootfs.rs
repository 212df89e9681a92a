//! Root file systems on disks: a Debian and an OCI image boot, become templates, and their clones do not
//! see what the others write.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed, with the line that says why"
)]

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use minivmm_tests::{Guest, Host, Vm};

const CLONES: usize = 10;

/// Fills a database with as many rows as its owner's number tells, and sums them up.
fn database_script(number: usize) -> String {
    let rows = 100 + number;
    format!(
        "sqlite3 /var/lib/test.db 'create table t(n); with recursive c(n) as (select 1 union all \
         select n+1 from c where n<{rows}) insert into t select n from c;' && sync"
    )
}

fn sum_of(number: usize) -> usize {
    (1..=100 + number).sum()
}

fn modified(path: &Path) -> (i64, i64) {
    let meta = path.metadata().unwrap();
    (meta.mtime(), meta.mtime_nsec())
}

/// The root is the disk, and nothing of the initramfs is left in its place.
#[track_caller]
fn root_is_the_disk(vm: &Vm<'_>) {
    let mounts = vm.exec(["cat", "/proc/mounts"]).ok().text();
    assert!(mounts.contains("/dev/vda / ext4 rw"), "{mounts}");
    assert!(!vm.exec(["ls", "/"]).ok().text().contains("minivmm-root"));
}

#[test]
fn ten_clones_of_a_debian_with_a_database_do_not_see_each_other() {
    let host = Host::new();
    let guest = Guest::debian_root();
    let disk = guest.directory().join("rootfs.ext4");
    let before = modified(&disk);
    let vm = host.run(&guest);
    root_is_the_disk(&vm);
    vm.exec(["cat", "/etc/os-release"]).ok().prints("bookworm");
    vm.sh("echo first >/etc/generation && sync").ok();
    vm.sh("python3 -m test -q test_bisect test_heapq >/tmp/log 2>&1 || cat /tmp/log >&2")
        .ok();
    vm.sh("tail -n 1 /tmp/log").ok().prints("SUCCESS");
    host.minivmm(["snapshot", vm.id(), "debian"]).ok();
    vm.sh("echo second >/etc/generation && sync").ok();

    let clones: Vec<_> = (0..CLONES).map(|_| host.restore("debian")).collect();
    for (number, clone) in clones.iter().enumerate() {
        clone.sh(&database_script(number)).ok();
    }
    for (number, clone) in clones.iter().enumerate() {
        let read = "cat /etc/generation; echo 3 >/proc/sys/vm/drop_caches; \
                    sqlite3 /var/lib/test.db 'pragma integrity_check; select sum(n) from t'";
        let found = clone.sh(read).ok().text();
        assert_eq!(found, format!("first\nok\n{}\n", sum_of(number)));
        clone.minivmm(["rm", "--force"]).ok();
    }
    vm.sh("cat /etc/generation; ls /var/lib/test.db")
        .fails(2)
        .prints("second");
    host.minivmm(["template", "verify", "debian"]).ok();
    assert_eq!(
        modified(&disk),
        before,
        "the guest's own disk is not written to"
    );
}

#[test]
fn an_oci_image_runs_its_program_as_it_is_configured() {
    let host = Host::new();
    let guest = Guest::oci_root();
    host.create_template("oci", &guest);
    let vm = host.restore("oci");
    root_is_the_disk(&vm);

    vm.minivmm(["exec"])
        .ok()
        .prints("hello world, app in /srv\n");
    let told = vm.minivmm([
        "exec",
        "--env",
        "GREETING=bye",
        "--user",
        "root",
        "--workdir",
        "/",
    ]);
    told.ok().prints("bye world, root in /\n");
    vm.exec(["id", "-u"]).ok().prints("1000\n");
    vm.exec(["sh", "-c", "echo $HOME"])
        .ok()
        .prints("/home/app\n");
    // Layers: what the upper one takes away is not there, and files have their owners.
    vm.exec(["ls", "/srv"]).ok().prints("greet\n");

    // The copies are the agent's, not the image's user's.
    let file = host.file("copied", b"from the host");
    let copy = host.minivmm([
        "cp",
        file.to_str().unwrap(),
        &format!("{}:/srv/copied", vm.id()),
    ]);
    copy.ok();
    let as_root = ["exec", "--user", "root"];
    let read = ["cat", "/srv/copied"];
    let found = host.minivmm(as_root.into_iter().chain([vm.id(), "--"]).chain(read));
    found.ok().prints("from the host");
}

#[test]
fn a_stopped_guest_leaves_a_clean_file_system() {
    let host = Host::new();
    let guest = Guest::oci_root();
    let disk = host.root().join("files/root.ext4");
    std::fs::copy(guest.directory().join("rootfs.ext4"), &disk).unwrap();
    let plain = Guest::oci_root();
    let (kernel, initrd) = (plain.kernel(), plain.initrd());
    let boot = |id: &str| {
        let machine = [
            "--kernel",
            kernel.to_str().unwrap(),
            "--initrd",
            initrd.to_str().unwrap(),
        ];
        let cmdline = "console=ttyS0 quiet panic=-1 pci=off minivmm.root=/dev/vda";
        let disk = ["--disk", disk.to_str().unwrap(), "--cmdline", cmdline];
        let rest = ["--id", id, "--timeout", "300", "--json"];
        let words = ["run"].into_iter().chain(machine).chain(disk).chain(rest);
        host.attach(host.minivmm(words).ok().json())
    };
    let first = boot("first");
    first.minivmm(["exec", "--user", "root"]).ok();
    let write = [
        "exec",
        "--user",
        "root",
        "first",
        "--",
        "sh",
        "-c",
        "echo kept >/kept",
    ];
    host.minivmm(write).ok();
    first.minivmm(["stop"]).ok();
    first.until_process_ends();
    assert!(is_clean(&disk), "the journal has nothing to do");

    let second = boot("second");
    second.exec(["cat", "/kept"]).ok().prints("kept");
}

/// Whether an ext4 file system needs no recovery: `s_feature_incompat` of its superblock, kernel's
/// Documentation/filesystems/ext4/super.rst.
fn is_clean(disk: &Path) -> bool {
    const NEEDS_RECOVERY: u8 = 4;
    let bytes = std::fs::read(disk).unwrap();
    let superblock = &bytes[1024..2048];
    assert_eq!(superblock[0x38..0x3a], [0x53, 0xef], "magic");
    superblock[0x60] & NEEDS_RECOVERY == 0
}

#[test]
fn what_cannot_be_the_root_is_told() {
    let host = Host::new();
    let missing = host.minivmm(["run", "--guest", "/nowhere"]);
    missing
        .fails(1)
        .says("/nowhere is no guest")
        .says("guest build");
    let both = host.minivmm(["run", "--guest", "/nowhere", "--kernel", "/k"]);
    both.fails(2).says("--kernel");

    let plain = Guest::debian_6_1().parameters("minivmm.root=/dev/vda");
    let args = ["run", "--id", "rootless"].map(str::to_owned);
    let refused = host.minivmm(args.into_iter().chain(plain.args()));
    refused.fails(12).says("There is no disk /dev/vda");

    let empty = host.file("empty.img", b"");
    std::fs::File::options()
        .write(true)
        .open(&empty)
        .unwrap()
        .set_len(8 << 20)
        .unwrap();
    let args = ["run", "--id", "blank"].map(str::to_owned);
    let disk = ["--disk".to_owned(), empty.to_str().unwrap().to_owned()];
    let refused = host.minivmm(args.into_iter().chain(plain.args()).chain(disk));
    refused
        .fails(12)
        .says("Cannot mount the root file system on /dev/vda");
}
