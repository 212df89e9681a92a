//! What can be asked for, and what not.

use super::*;
use clap::Parser;

#[derive(Debug, Parser)]
struct Program {
    #[command(flatten)]
    net: NetArgs,
}

fn parse(args: &[&str]) -> Result<NetArgs, String> {
    let args = std::iter::once("minivmm").chain(args.iter().copied());
    let parsed = Program::try_parse_from(args);
    parsed
        .map(|program| program.net)
        .map_err(|error| error.to_string())
}

#[test]
fn modes_are_read() {
    let place = |text| parse(&["--net", text]).unwrap().net.unwrap();
    assert_eq!(place("none"), Mode::None);
    assert_eq!(place("tap=vm-1.a"), Mode::Tap("vm-1.a".to_owned()));
    assert_eq!(
        place("netns=/run/netns/a"),
        Mode::Namespace("/run/netns/a".into())
    );
}

#[test]
fn wrong_values_are_refused() {
    for (args, words) in [
        (&["--net", ""][..], "expected none, tap=NAME or netns=PATH"),
        (&["--net", "bridge"], "expected none"),
        (&["--net", "tap"], "expected none"),
        (&["--net", "netns="], "expected none"),
        (&["--net", "tap="], "name of an interface"),
        (&["--net", "tap=a/b"], "name of an interface"),
        (&["--net", "tap=t%d"], "name of an interface"),
        (&["--net", "tap=sixteen-letters-"], "name of an interface"),
        (&["--net", "tap=a", "--ip", "10.0.0.2"], "with its prefix"),
        (
            &["--net", "tap=a", "--ip", "10.0.0.2/33"],
            "with its prefix",
        ),
        (
            &["--net", "tap=a", "--ip", "127.0.0.1/8"],
            "cannot be the address",
        ),
        (
            &["--net", "tap=a", "--ip", "0.0.0.0/0"],
            "cannot be the address",
        ),
        (
            &["--net", "tap=a", "--mac", "01:00:00:00:00:00"],
            "of one card",
        ),
        (
            &["--net", "tap=a", "--mac", "02:0:00:00:00:00"],
            "of one card",
        ),
        (
            &["--net", "tap=a", "--mac", "02:00:00:00:00"],
            "of one card",
        ),
        (&["--ip", "10.0.0.2/24"], "--net"),
        (&["--net", "tap=a", "--gateway", "10.0.0.1"], "--ip"),
    ] {
        let error = parse(args).unwrap_err();
        assert!(error.contains(words), "{args:?}: {error}");
    }
}

#[test]
fn contradictions_are_refused() {
    for (args, agent, words) in [
        (
            &["--net", "none", "--ip", "10.0.0.2/24"][..],
            true,
            "need a network",
        ),
        (
            &["--net", "netns=/n", "--ip", "10.0.0.2/24"],
            true,
            "from the namespace",
        ),
        (&["--net", "netns=/n"], false, "--no-agent"),
        (
            &["--net", "tap=a", "--ip", "10.0.0.2/24"],
            false,
            "--no-agent",
        ),
        (
            &[
                "--net",
                "tap=a",
                "--ip",
                "10.0.0.2/24",
                "--gateway",
                "10.0.1.1",
            ],
            true,
            "in no network",
        ),
    ] {
        let error = parse(args).unwrap().resolve(agent).unwrap_err();
        assert!(error.to_string().contains(words), "{args:?}: {error}");
        assert_eq!(crate::error::exit_code(&error), crate::error::USAGE);
    }
}

#[test]
fn every_vm_gets_an_address_of_its_own() {
    let mac = || {
        let plan = parse(&["--net", "tap=a"]).unwrap().resolve(true).unwrap();
        plan.unwrap().guest.mac
    };
    assert_ne!(mac(), mac());
    assert!(parse(&[]).unwrap().resolve(true).unwrap().is_none());
    let given = parse(&["--net", "tap=a", "--mac", "02:00:00:00:00:AB"]).unwrap();
    assert_eq!(
        given.resolve(true).unwrap().unwrap().guest.mac.to_string(),
        "02:00:00:00:00:ab"
    );
}
