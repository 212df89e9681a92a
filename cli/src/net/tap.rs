//! Connecting a VM to a tap interface of the host.

use std::fs::File;
use std::io;
use std::sync::Arc;

use anyhow::Context;
use netlink::Netlink;
use netlink::links::{Change, Link};
use rustix::io::Errno;
use vmm::open_tap;

use super::{GuestNetwork, Network};
use crate::error::{FAILURE, coded};

/// Opens the interface, or makes it; one that was made goes with the VM's process, however that ends.
pub(super) fn connect(name: &str, mut guest: GuestNetwork) -> anyhow::Result<Network> {
    let tap = open(name)?;
    let mut netlink = Netlink::open().context("Cannot ask the kernel for its interfaces")?;
    let link = bring_up(&mut netlink, name)?;
    guest.mtu = link.mtu;
    Ok(Network {
        tap: Arc::new(tap),
        guest,
        _redirect: None,
    })
}

/// Opens a tap interface of the network namespace that the thread is in.
pub(super) fn open(name: &str) -> anyhow::Result<File> {
    open_tap(name).map_err(|error| coded(FAILURE, refusal(name, &error)))
}

/// Sets an interface up.
pub(super) fn bring_up(netlink: &mut Netlink, name: &str) -> anyhow::Result<Link> {
    let mut set_up = || {
        let link = netlink.link(name)?;
        let up = Change {
            up: Some(true),
            ..Change::default()
        };
        netlink.change(link.index, &up).map(|()| link)
    };
    set_up().with_context(|| format!("Cannot set interface {name} up"))
}

fn refusal(name: &str, error: &io::Error) -> String {
    let why = match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::BUSY) => "another VM or program uses it; choose another name",
        Some(Errno::INVAL) => {
            "there is an interface of that name which is no tap of one queue; choose another name"
        }
        Some(Errno::PERM) => "it takes CAP_NET_ADMIN; run as root, or name a tap that is yours",
        Some(Errno::NOENT) => "there is no /dev/net/tun; load the kernel's module tun",
        _ => return format!("Cannot open tap interface {name}: {error}"),
    };
    format!("Cannot open tap interface {name}: {why}")
}
