//! Connecting a VM to the interface of a network namespace, as container run-times set it up.
//!
//! The interface stays as it is. What it receives is sent to a tap beside it before the namespace's own
//! stack sees it, and the other way round, by two rules of the kernel's traffic control; the guest takes over the
//! addresses. Unlike with a bridge nothing has to be taken from the interface and given back later: what has
//! to be undone is one rule, and the next VM of the namespace replaces it if this process was killed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use netlink::Netlink;
use netlink::links::Link;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::os::fd::AsFd;
use vmm::MacAddress;

use super::{GuestNetwork, Network, tap};
use crate::error::{FAILURE, coded};

/// The interface that container run-times give a namespace.
const INTERFACE: &str = "eth0";
/// One of a name in each namespace: a second VM cannot take it over by mistake.
const TAP: &str = "minivmm0";

/// What has to be undone in a namespace when its VM ends.
#[derive(Debug)]
pub(super) struct Redirect {
    namespace: File,
    path: PathBuf,
    interface: u32,
}

/// Connects to the interface of the namespace at `path`.
pub(super) fn connect(path: &Path) -> anyhow::Result<Network> {
    let namespace = File::open(path)
        .with_context(|| format!("Cannot open network namespace {}", path.display()))?;
    let (tap, guest, interface) = inside(&namespace, take_over)
        .with_context(|| format!("Cannot use network namespace {}", path.display()))?;
    Ok(Network {
        tap: Arc::new(tap),
        guest,
        _redirect: Some(Redirect {
            namespace,
            path: path.to_owned(),
            interface,
        }),
    })
}

fn take_over() -> anyhow::Result<(File, GuestNetwork, u32)> {
    let mut netlink = Netlink::open().context("Cannot ask the kernel for its interfaces")?;
    let links = netlink.links().context("Cannot list the interfaces")?;
    let link = links.iter().find(|link| link.name == INTERFACE);
    let link = link.ok_or_else(|| no_interface(&links))?.clone();
    let guest = describe(&mut netlink, &link)
        .with_context(|| format!("Cannot read the addresses of {INTERFACE}"))?;
    let tap = tap::open(TAP)?;
    let tap_link = tap::bring_up(&mut netlink, TAP)?;
    netlink
        .change(
            tap_link.index,
            &netlink::links::Change {
                mtu: Some(link.mtu),
                ..Default::default()
            },
        )
        .with_context(|| format!("Cannot set the MTU of {TAP}"))?;
    let redirected = netlink
        .redirect(link.index, tap_link.index)
        .and_then(|()| netlink.redirect(tap_link.index, link.index));
    if let Err(error) = redirected {
        // The rule for what the interface receives may stand already.
        netlink.stop_redirect(link.index).unwrap_or_default();
        return Err(error).context(
            "Cannot redirect traffic; the kernel needs sch_ingress, cls_matchall and act_mirred",
        );
    }
    Ok((tap, guest, link.index))
}

fn describe(netlink: &mut Netlink, link: &Link) -> anyhow::Result<GuestNetwork> {
    let mac = <[u8; 6]>::try_from(&link.address[..])
        .map_err(|_| anyhow!("{INTERFACE} is no Ethernet interface"))?;
    let addresses = netlink.addresses(link.index)?;
    let gateways = netlink.gateways(link.index)?;
    Ok(GuestNetwork::new(
        MacAddress(mac),
        addresses,
        gateways,
        link.mtu,
    ))
}

fn no_interface(links: &[Link]) -> anyhow::Error {
    let names: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
    coded(
        FAILURE,
        format!(
            "It has no {INTERFACE}, only {}; is it the right one?",
            names.join(", ")
        ),
    )
}

/// Runs `work` in a thread that has entered the namespace; no other thread changes its own.
fn inside<T: Send>(
    namespace: &File,
    work: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    std::thread::scope(|scope| {
        let enter_and_work = || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind)
                .context("It cannot be entered; it takes root, and a file that is a namespace")?;
            work()
        };
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, enter_and_work)
            .context("Cannot start a thread")?;
        let joined = thread.join();
        joined.unwrap_or_else(|_| Err(anyhow!("The thread in the namespace panicked")))
    })
}

impl Drop for Redirect {
    fn drop(&mut self) {
        let interface = self.interface;
        let undo = move || Ok(Netlink::open()?.stop_redirect(interface)?);
        if let Err(error) = inside(&self.namespace, undo) {
            let path = self.path.display();
            tracing::warn!("{INTERFACE} in {path} keeps its redirection: {error:#}");
        }
    }
}
