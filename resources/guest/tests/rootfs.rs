//! Root file systems from directories, tars and images. They need root, as the program does.

#![expect(
    clippy::unwrap_used,
    reason = "a test helper may panic as its test may"
)]

mod fake;
mod images;
mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use guest::{Choice, RootOptions};
use images::{Docker, LayerTar, Oci};
use support::{failure, options, run};

/// A guest that is made from an image.
struct Made {
    _directory: tempfile::TempDir,
    disk: PathBuf,
    manifest: guest::GuestManifest,
}

fn with_image(directory: &Path, image: &Path, tag: Option<&str>) -> guest::BuildOptions {
    let kernel = directory.join("linux-image.deb");
    fs::write(&kernel, fake::package()).unwrap();
    let mut options = options(&kernel, &directory.join("guest"));
    options.root = Some(RootOptions {
        image: image.to_owned(),
        choice: Choice {
            tag: tag.map(str::to_owned),
        },
        free_bytes: 8 << 20,
    });
    options
}

fn make(image: impl FnOnce(&Path) -> PathBuf, tag: Option<&str>) -> Made {
    let directory = tempfile::tempdir().unwrap();
    let image = image(directory.path());
    let guest = run(&with_image(directory.path(), &image, tag)).unwrap();
    Made {
        disk: guest.root.unwrap(),
        manifest: guest.manifest,
        _directory: directory,
    }
}

fn refusal(image: impl FnOnce(&Path) -> PathBuf, tag: Option<&str>) -> String {
    let directory = tempfile::tempdir().unwrap();
    let image = image(directory.path());
    fs::write(directory.path().join("linux-image.deb"), "").unwrap();
    failure(&with_image(directory.path(), &image, tag))
}

impl Made {
    /// What debugfs prints.
    fn debugfs(&self, request: &str) -> String {
        let output = Command::new("/usr/sbin/debugfs")
            .args(["-R", request])
            .arg(&self.disk)
            .output()
            .unwrap();
        assert!(output.status.success(), "{request}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn content(&self, path: &str) -> String {
        self.debugfs(&format!("cat {path}"))
    }

    fn stat(&self, path: &str) -> String {
        self.debugfs(&format!("stat {path}"))
    }

    fn names(&self, directory: &str) -> Vec<String> {
        let listing = self.debugfs(&format!("ls -p {directory}"));
        let name = |line: &str| line.split('/').nth(5).map(str::to_owned);
        let names = listing.lines().filter_map(name);
        let mut names: Vec<_> = names.filter(|name| name != "." && name != "..").collect();
        names.sort();
        names
    }

    fn check(&self) {
        let checked = Command::new("/usr/sbin/e2fsck")
            .args(["-f", "-n"])
            .arg(&self.disk)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(checked.status.success(), "{said}");
    }
}

/// Programs, links, devices, owners and modes.
fn base() -> LayerTar {
    LayerTar::default()
        .directory("bin", 0o755)
        .file("bin/sh", 0o4755, 0, "shell")
        .file("etc/passwd", 0o644, 0, "root")
        .file("home/me/notes", 0o600, 1000, "private")
        .hard_link("bin/ash", "bin/sh")
        .symlink("run", "/var/run")
        .device("dev/null", 1, 3)
}

fn is_base(made: &Made) {
    made.check();
    assert_eq!(made.content("/bin/ash"), "shell");
    assert_eq!(made.content("/home/me/notes"), "private");
    let stat = made.stat("/bin/sh");
    assert!(stat.contains("Mode:  04755"), "{stat}");
    assert!(stat.contains("Links: 2"), "{stat}");
    let stat = made.stat("/home/me/notes");
    assert!(stat.contains("Mode:  0600"), "{stat}");
    assert!(stat.contains("User:  1000"), "{stat}");
    let stat = made.stat("/dev/null");
    assert!(stat.contains("Type: character special"), "{stat}");
    let stat = made.stat("/run");
    assert!(stat.contains("\"/var/run\""), "{stat}");
}

#[test]
fn tar_keeps_what_it_describes() {
    let write = |directory: &Path| base().write(directory, "root.tar");
    let made = make(write, None);
    is_base(&made);
    assert_eq!(made.manifest.image.unwrap().kind, "tar");
    let made = make(|directory| base().write_gzip(directory, "root.tar"), None);
    is_base(&made);
}

#[test]
fn directory_is_taken_as_it_is() {
    let fill = |directory: &Path| {
        let root = directory.join("root");
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::write(root.join("bin/sh"), "shell").unwrap();
        symlink("sh", root.join("bin/ash")).unwrap();
        root
    };
    let made = make(fill, None);
    made.check();
    assert_eq!(made.content("/bin/sh"), "shell");
    assert_eq!(made.names("/bin"), ["ash", "sh"]);
}

#[test]
fn layers_hide_and_replace_what_is_below() {
    let second = LayerTar::default()
        .file("etc/.wh.passwd", 0o644, 0, "")
        .file("etc/group", 0o644, 0, "wheel")
        .file("home/.wh..wh..opq", 0o644, 0, "")
        .file("home/you", 0o644, 0, "file")
        // A directory becomes a file.
        .file("bin", 0o644, 0, "no more");
    let image = Oci::default().image("latest", "amd64", &[base(), second]);
    let made = make(|directory| image.write(directory), None);
    made.check();
    assert_eq!(made.names("/etc"), ["group"]);
    assert_eq!(made.names("/home"), ["you"]);
    assert_eq!(made.content("/bin"), "no more");
}

#[test]
fn images_of_every_packing_are_the_same() {
    let layers = [base(), LayerTar::default().file("a", 0o644, 0, "b")];
    let oci = Oci::default().image("v1", "amd64", &layers);
    let docker = Docker::default().image("thing:v1", &layers);
    let mut all = vec![
        make(|directory| oci.write(directory), None),
        make(|directory| oci.write_tar(directory), None),
        make(|directory| docker.write_tar(directory), None),
    ];
    for made in &all {
        is_base(made);
        assert_eq!(made.content("/a"), "b");
        let image = made.manifest.image.as_ref().unwrap();
        assert_eq!(image.config.entrypoint, ["/bin/sh"]);
        assert_eq!(image.config.cmd, ["-c", "true"]);
        assert_eq!(image.config.env, ["PATH=/bin", "A=b c"]);
        assert_eq!(image.config.working_dir, "/home/me");
        assert_eq!(image.config.user, "1000:100");
        assert!(image.digest.as_ref().unwrap().starts_with("sha256:"));
    }
    let kinds = all
        .iter_mut()
        .map(|made| made.manifest.image.take().unwrap().kind);
    assert_eq!(kinds.collect::<Vec<_>>(), ["oci", "oci", "docker"]);
}

#[test]
fn one_of_several_is_chosen() {
    let image = |text| [base(), LayerTar::default().file("which", 0o644, 0, text)];
    let oci = Oci::default()
        .image("v1", "amd64", &image("one"))
        .image("v2", "amd64", &image("two"))
        .image("v2", "arm64", &image("other"));
    let made = make(|directory| oci.write(directory), Some("v2"));
    assert_eq!(made.content("/which"), "two");
    let text = refusal(|directory| oci.write(directory), None);
    assert!(
        text.contains("several images; name one of v1, v2 with --image-tag"),
        "{text}"
    );
    let text = refusal(|directory| oci.write(directory), Some("v3"));
    assert!(text.contains("named v3; there are v1, v2"), "{text}");
    let foreign = Oci::default().image("v1", "arm64", &image("one"));
    let text = refusal(|directory| foreign.write(directory), None);
    assert!(text.contains("no image for linux/amd64"), "{text}");
}

#[test]
fn nothing_is_written_outside() {
    let victims = tempfile::tempdir().unwrap();
    let victim = victims.path().join("victim");
    fs::write(&victim, "untouched").unwrap();
    let upwards = format!("../../../../../../../..{}", victim.display());
    // A link out, and a file through it; the same with a hard link.
    let through_link = base()
        .symlink("out", victims.path().to_str().unwrap())
        .file("out/victim", 0o644, 0, "changed");
    let through_hard_link = base()
        .hard_link("mine", &upwards)
        .file("mine", 0o644, 0, "changed");
    let by_name = base().raw_file(&upwards, "changed");
    let whiteout = base()
        .symlink("out", victims.path().to_str().unwrap())
        .file("out/.wh.victim", 0o644, 0, "");
    for (name, layer) in [
        ("link", through_link),
        ("hard link", through_hard_link),
        ("name", by_name),
        ("whiteout", whiteout),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let image = layer.write(directory.path(), "root.tar");
        let built = run(&with_image(directory.path(), &image, None));
        let content = fs::read_to_string(&victim).unwrap();
        assert_eq!(
            content,
            "untouched",
            "{name}: {:?}",
            built.map(|guest| guest.root)
        );
    }
}

#[test]
fn damage_is_named() {
    let image = || Oci::default().image("v1", "amd64", &[base()]);
    let text = refusal(
        |directory| image().with_damaged_layer().write(directory),
        None,
    );
    assert!(text.contains("has the digest sha256:"), "{text}");
    let text = refusal(
        |directory| image().with_damaged_config().write(directory),
        None,
    );
    assert!(text.contains("has the digest sha256:"), "{text}");
    let text = refusal(|directory| image().without_layers().write(directory), None);
    assert!(text.contains("its blobs/sha256/"), "{text}");

    let cut = |directory: &Path| {
        let path = base().write(directory, "root.tar");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..700]).unwrap();
        path
    };
    let text = refusal(cut, None);
    assert!(text.contains("no whole tar"), "{text}");
    let other = |directory: &Path| {
        let path = directory.join("photo.jpg");
        fs::write(&path, [0xff; 2000]).unwrap();
        path
    };
    let text = refusal(other, None);
    assert!(text.contains("no whole tar"), "{text}");
    assert!(text.contains("docker save"), "{text}");
    let empty = |directory: &Path| {
        let path = directory.join("root");
        fs::create_dir(&path).unwrap();
        path
    };
    let text = refusal(empty, None);
    assert!(text.contains("a directory without bin"), "{text}");
    let text = refusal(|directory| directory.join("missing"), None);
    assert!(text.contains("Cannot read"), "{text}");
}
