//! Networks and entropy: clones talk to each other and to the host, each with addresses of its own, and
//! nothing of them is left on the host.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed, with the line that says why"
)]

use std::process::Command;

use minivmm_tests::{Guest, Host, Running, Vm};
use rustix::process::{Signal, kill_process};

/// Sent each way between two clones that are paused and saved meanwhile.
const DISTURBED_BYTES: u64 = 4 << 20;
/// The same when nothing disturbs them.
const BULK_BYTES: u64 = 4 << 20;
/// As many segments as a frame of 64 KiB has. Where a frame takes milliseconds, as in the lab, TCP would take
/// the network for a slow one and make frames of two.
const LONG_FRAMES: &str = "echo 44 >/proc/sys/net/ipv4/tcp_min_tso_segs";

/// A template whose clones can be given a network.
fn template(host: &Host) -> String {
    let guest = Guest::debian_6_12().memory("128M");
    host.template(&guest.flag("--net").flag("--rng"))
}

/// Runs a program of the host's, which must succeed; what it prints.
#[track_caller]
fn on_host(words: &str) -> String {
    let mut words = words.split(' ');
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A network namespace of one test.
struct Namespace(&'static str);

impl Namespace {
    fn new(name: &'static str) -> Self {
        on_host(&format!("ip netns add {name}"));
        let namespace = Self(name);
        namespace.ip("link set lo up");
        namespace
    }

    #[track_caller]
    fn ip(&self, words: &str) -> String {
        on_host(&format!("ip -n {} {words}", self.0))
    }

    fn path(&self) -> String {
        format!("netns=/run/netns/{}", self.0)
    }

    /// Restores a clone by a program that runs in the namespace.
    #[track_caller]
    fn restore<'h>(&self, host: &'h Host, template: &str, options: &[&str]) -> Vm<'h> {
        let id = host.new_id();
        let program = host.command(["restore", template, "--json", "--id", &id]);
        let mut command = host.foreign_command("ip");
        command
            .args(["netns", "exec", self.0])
            .arg(program.get_program())
            .args(program.get_args())
            .args(["--timeout", "120"])
            .args(options);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        host.attach(serde_json::from_slice(&output.stdout).unwrap())
    }
}

/// A bridge in a namespace of its own, with these taps.
fn bridge(name: &'static str, taps: &[&str]) -> Namespace {
    let namespace = Namespace::new(name);
    namespace.ip("link add br0 type bridge");
    namespace.ip("link set br0 up");
    for tap in taps {
        namespace.ip(&format!("tuntap add dev {tap} mode tap"));
        namespace.ip(&format!("link set {tap} master br0"));
    }
    namespace
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let deleted = Command::new("ip").args(["netns", "del", self.0]).status();
        assert!(deleted.is_ok() || std::thread::panicking());
    }
}

/// Bytes both ways at once over a TCP connection of two guests, of which every one is compared.
struct Exchange([Running; 2]);

impl Exchange {
    #[track_caller]
    fn start(from: &Vm, to: &Vm, address: &str, bytes: u64) -> Self {
        let bytes = bytes.to_string();
        let listener = to.start_exec(["guest-tool", "exchange-listen", "5000", &bytes]);
        listener.until_stdout("ready");
        let address = format!("{address}:5000");
        let connector = from.start_exec(["guest-tool", "exchange", &address, &bytes]);
        Self([connector, listener])
    }

    fn is_running(&mut self) -> bool {
        self.0[0].is_running()
    }

    /// Prints the rate.
    #[track_caller]
    fn wait(self) {
        let [connector, listener] = self.0.map(Running::wait);
        println!("{}", connector.ok().text().trim());
        listener.ok().prints("MiB each way");
    }
}

fn sh(vm: &Vm, script: &str) -> String {
    vm.sh(script).ok().text().trim().to_owned()
}

fn mac(vm: &Vm) -> String {
    sh(vm, "cat /sys/class/net/eth0/address")
}

#[test]
fn clones_talk_through_a_bridge_while_they_are_paused_and_saved() {
    let host = Host::with_shared_templates();
    let template = template(&host);
    let namespace = bridge("mv-bridge", &["tap-a", "tap-b", "tap-c"]);
    let restore = |template: &str, tap: &str, ip: &str| {
        let net = format!("tap={tap}");
        namespace.restore(&host, template, &["--net", &net, "--ip", ip])
    };
    let a = restore(&template, "tap-a", "10.0.0.1/24");
    let b = restore(&template, "tap-b", "10.0.0.2/24");
    assert_ne!(mac(&a), mac(&b));
    assert_eq!(mac(&a), a.ready()["network"]["mac"].as_str().unwrap());

    let mut exchange = Exchange::start(&a, &b, "10.0.0.2", DISTURBED_BYTES);
    for _ in 0..3 {
        a.minivmm(["pause"]).ok();
        b.minivmm(["pause"]).ok();
        a.minivmm(["resume"]).ok();
        b.minivmm(["resume"]).ok();
    }
    let saved = "net-snapshot";
    assert!(exchange.is_running(), "there is traffic to be disturbed");
    host.minivmm(["snapshot", a.id(), saved]).ok();
    exchange.wait();
    for vm in [&a, &b] {
        sh(vm, LONG_FRAMES);
    }
    Exchange::start(&a, &b, "10.0.0.2", BULK_BYTES).wait();

    // A clone of a machine that was in the network is another machine in it, and tells the others.
    namespace.ip("addr add 10.0.0.254/24 dev br0");
    let stale = "02:00:00:00:00:fe";
    namespace.ip(&format!(
        "neigh replace 10.0.0.3 lladdr {stale} nud stale dev br0"
    ));
    let c = restore(saved, "tap-c", "10.0.0.3/24");
    assert!(namespace.ip("neigh show 10.0.0.3").contains(&mac(&c)));
    assert_ne!(mac(&c), mac(&a));
    sh(&c, "ping -c 1 -W 5 10.0.0.2");
    sh(&b, "ping -c 1 -W 5 10.0.0.3");
    sh(&b, "ping -c 1 -W 5 10.0.0.1");
    assert!(!sh(&c, "ip addr show eth0").contains("10.0.0.1/"));
    let alone = host.restore(saved);
    assert_eq!(sh(&alone, "cat /sys/class/net/eth0/carrier"), "0");
    host.remove_vms();
    host.minivmm(["template", "delete", saved]).ok();
}

#[test]
fn a_clone_takes_over_the_interface_of_a_namespace() {
    let host = Host::with_shared_templates();
    let template = template(&host);
    let pod = Namespace::new("mv-pod");
    on_host("ip link add mv-host type veth peer name eth0 netns mv-pod");
    on_host("ip addr add 10.1.0.1/24 dev mv-host");
    on_host("ip link set mv-host mtu 1400 up");
    pod.ip("link set eth0 mtu 1400 up");
    pod.ip("addr add 10.1.0.2/24 dev eth0");
    pod.ip("route add default via 10.1.0.1");
    let restore = || host.restore_with(&template, ["--net", &pod.path()]);

    let first = restore();
    let eth0 = pod.ip("-o link show eth0");
    assert!(eth0.contains(&mac(&first)), "{eth0}");
    assert_eq!(sh(&first, "cat /sys/class/net/eth0/mtu"), "1400");
    assert!(sh(&first, "ip route").contains("default via 10.1.0.1"));
    sh(&first, "ping -c 1 -W 5 10.1.0.1");
    let second = host.minivmm(["restore", &template, "--net", &pod.path()]);
    second.fails(1).says("another VM or program uses it");

    // A VM that is killed leaves no tap, and its successor gets the interface.
    kill_process(first.pid(), Signal::KILL).unwrap();
    first.until_process_ends();
    assert!(!pod.ip("-o link").contains("minivmm0"));
    let next = restore();
    sh(&next, "ping -c 1 -W 5 10.1.0.1");
    host.remove_vms();
    let rules = on_host("ip netns exec mv-pod tc qdisc show dev eth0");
    assert!(!rules.contains("ingress"), "{rules}");
    on_host("busybox ping -c 1 -W 5 10.1.0.2");
}

#[test]
fn a_clone_without_a_network_has_no_link_and_random_numbers_of_its_own() {
    let host = Host::with_shared_templates();
    let template = template(&host);
    let clones = [host.restore(&template), host.restore(&template)];
    let numbers = clones
        .each_ref()
        .map(|vm| sh(vm, "head -c 64 /dev/hwrng | od -An -tx1"));
    assert_ne!(numbers[0], numbers[1]);
    let vm = &clones[0];
    assert_eq!(
        sh(vm, "ip link set eth0 up; cat /sys/class/net/eth0/carrier"),
        "0"
    );
}

#[test]
fn a_guest_that_is_booted_has_its_network() {
    let host = Host::new();
    let guest = Guest::debian_6_1().memory("128M");
    let guest = guest.option("--net", "tap=mv-boot");
    let vm = host.run(&guest.option("--ip", "10.2.0.2/24"));
    on_host("ip addr add 10.2.0.1/24 dev mv-boot");
    on_host("busybox ping -c 1 -W 5 10.2.0.2");
    sh(&vm, "ping -c 1 -W 5 10.2.0.1");
    host.remove_vms();
    assert!(!on_host("ip -o link").contains("mv-boot"));
}

#[test]
fn networks_that_cannot_be_used_are_refused_and_leave_nothing() {
    let host = Host::with_shared_templates();
    let template = template(&host);
    let plain = host.template(&Guest::debian_6_12().memory("128M"));
    let refused = |template: &str, net: &str, words: &str| {
        let ended = host.minivmm(["restore", template, "--net", net]);
        ended.fails(1).says(words);
    };
    refused(&plain, "tap=mv-t0", "has no network device");
    refused(&template, "tap=lo", "no tap of one queue");
    refused(
        &template,
        "netns=/run/netns/mv-none",
        "Cannot open network namespace",
    );
    refused(&template, "netns=/etc/passwd", "a file that is a namespace");
    refused(&template, "netns=/proc/self/ns/net", "It has no eth0");

    let vm = host.restore_with(&template, ["--net", "tap=mv-t0"]);
    assert!(on_host("ip -o link").contains("mv-t0"));
    refused(&template, "tap=mv-t0", "another VM or program uses it");
    kill_process(vm.pid(), Signal::KILL).unwrap();
    vm.until_process_ends();
    assert!(!on_host("ip -o link").contains("mv-t0"));
}
