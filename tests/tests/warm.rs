//! Templates in which a program runs, and so in each of their clones.

use minivmm_tests::{Ended, Guest, Host};

fn create(host: &Host, name: &str, warm: &[&str]) -> Ended {
    let guest = Guest::debian_6_1();
    let args = ["template", "create", name].map(str::to_owned).into_iter();
    let warm = warm.iter().map(|&word| word.to_owned());
    host.minivmm(args.chain(guest.args()).chain(warm))
}

#[test]
fn a_server_of_the_template_runs_in_every_clone() {
    let host = Host::new();
    // It tells for each connection how many it has had, and the host name.
    let server = "echo starting; n=0; while :; do n=$((n + 1)); \
                  echo $n $(hostname) | nc -l -p 8080 >/dev/null; done";
    // A client that has nothing to say at all may be gone before the server has told.
    let probe = "exec:sleep 1 | nc 127.0.0.1 8080 | grep -q '^1 '";
    create(
        &host,
        "web",
        &["--warm", server, "--ready", probe, "--ready-timeout", "120"],
    )
    .ok();
    for _ in 0..2 {
        let vm = host.restore("web");
        // Between two connections the server's shell starts the next nc.
        let answer = vm.sh("until sleep 1 | nc 127.0.0.1 8080; do usleep 20000; done");
        // The host name was asked for before the clone had its own.
        assert!(answer.ok().text().starts_with("2 "), "{}", answer.report());
        vm.exec(["cat", "/run/minivmm/warm.log"])
            .ok()
            .prints("starting");
    }
}

#[test]
fn a_command_is_run_to_its_end_or_until_it_says_that_it_is_ready() {
    let host = Host::new();
    create(&host, "done", &["--warm", "echo $((6 * 7)) >/answer"]).ok();
    let vm = host.restore("done");
    assert_eq!(vm.exec(["cat", "/answer"]).ok().text(), "42\n");

    let warm = "sleep 1; echo ready: 7; exec sleep 100000";
    create(
        &host,
        "says",
        &["--warm", warm, "--ready", "output:^ready: [0-9]"],
    )
    .ok();
    let vm = host.restore("says");
    vm.exec(["pidof", "sleep"]).ok();
}

#[test]
fn what_does_not_get_warm_leaves_nothing_and_says_why() {
    let host = Host::new();
    create(
        &host,
        "no",
        &["--warm", "echo loading; echo broken >&2; exit 3"],
    )
    .fails(1)
    .says("The warm command ended with code 3; its output ends with:\nloading\nbroken");
    create(
        &host,
        "no",
        &[
            "--warm",
            "exec sleep 1000",
            "--ready",
            "port:81",
            "--ready-timeout",
            "1",
        ],
    )
    .fails(1)
    .says("not ready within 1 s: nothing listened on port 81; it printed nothing");
    host.assert_no_vms();
    host.assert_no_templates();
}
