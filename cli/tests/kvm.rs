//! Hosts without a usable `/dev/kvm`: one line with the remedy, and nothing left behind.

mod support;

use std::process::Command;

use support::{Ended, Sandbox};

/// Runs the program in a mount namespace that `script` has changed. `None` where this user may
/// not make one.
#[expect(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]
fn run_where(sandbox: &Sandbox, script: &str, user: &str, args: &[&str]) -> Option<Ended> {
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec", script]);
        command
    };
    if !unshare("mount -t tmpfs none /mnt")
        .status()
        .is_ok_and(|status| status.success())
    {
        eprintln!("SKIPPED: mount namespaces are not allowed here");
        return None;
    }
    let run = format!("{script}\nexec setpriv --reuid {user} --clear-groups \"$@\"");
    let program = sandbox.command(args);
    let mut command = unshare(&run);
    command
        .arg("sh")
        .arg(program.get_program())
        .args(program.get_args());
    for (name, value) in program.get_envs() {
        command.env(name, value.unwrap());
    }
    Some(Ended::from(command.output().unwrap()))
}

#[test]
fn a_host_without_kvm_is_told_what_to_load() {
    let sandbox = Sandbox::new();
    let kernel = sandbox.file("k", b"kernel");
    let without_kvm = "mount -t tmpfs none /mnt; touch /mnt/null
        mount --bind /dev/null /mnt/null; mount --move /mnt /dev";
    for args in [
        &["run", "--kernel", &kernel][..],
        &["template", "create", "t", "--kernel", &kernel],
    ] {
        let Some(ended) = run_where(&sandbox, without_kvm, "0", args) else {
            return;
        };
        ended.assert_failed(1, &["/dev/kvm does not exist", "kvm_intel or kvm_amd"]);
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
        sandbox.assert_empty();
    }
}

#[test]
fn a_user_who_may_not_use_kvm_is_told_how_to() {
    use std::os::unix::fs::{PermissionsExt, chown};
    let sandbox = Sandbox::new();
    let kernel = sandbox.file("k", b"kernel");
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(sandbox.root(), mode).unwrap();
    chown(sandbox.root(), Some(65_534), None).unwrap_or_default();
    let forbidden = format!(
        "f={}/forbidden; touch $f; chmod 600 $f; chown 0 $f; mount --bind $f /dev/kvm",
        sandbox.root().display()
    );
    let Some(ended) = run_where(&sandbox, &forbidden, "65534", &["run", "--kernel", &kernel])
    else {
        return;
    };
    ended.assert_failed(1, &["/dev/kvm may not be opened by this user", "group kvm"]);
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    sandbox.assert_empty();
}
