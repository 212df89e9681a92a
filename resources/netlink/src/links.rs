//! Links: finding, setting up and down, address, MTU, and sending what one receives out of another.

use std::io::{self, ErrorKind};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirrorOption, TcActionOption, TcActionType, TcAttribute,
    TcFilterMatchAllOption, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption,
};

use crate::{Message, Netlink};

/// ETH_P_ALL in the byte order of the network, where a filter has its protocol.
const ANY_PROTOCOL: u32 = 0x0003_u16.to_be() as u32;
const FILTER_PRIORITY: u32 = 1;

/// What is known about a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its address; empty when it has none.
    pub address: Vec<u8>,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// It is up and has a carrier.
    pub is_running: bool,
}

/// Changes of a link; what is `None` stays.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// Up or down.
    pub up: Option<bool>,
    /// Address.
    pub address: Option<[u8; 6]>,
    /// Largest packet in bytes.
    pub mtu: Option<u32>,
}

impl Netlink {
    /// All links.
    ///
    /// # Errors
    /// The kernel's.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let list = self.dump(Message::GetLink(LinkMessage::default()))?;
        Ok(list.into_iter().filter_map(Link::of).collect())
    }

    /// The link of a name.
    ///
    /// # Errors
    /// The kernel's, or `NotFound`.
    pub fn link(&mut self, name: &str) -> io::Result<Link> {
        let mut links = self.links()?.into_iter();
        let found = links.find(|link| link.name == name);
        found.ok_or_else(|| io::Error::new(ErrorKind::NotFound, format!("no interface {name}")))
    }

    /// Changes a link.
    ///
    /// # Errors
    /// The kernel's.
    pub fn change(&mut self, index: u32, change: &Change) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        if let Some(up) = change.up {
            message.header.change_mask = LinkFlags::Up;
            message.header.flags = if up {
                LinkFlags::Up
            } else {
                LinkFlags::empty()
            };
        }
        let address = change
            .address
            .map(|mac| LinkAttribute::Address(mac.to_vec()));
        message.attributes.extend(address);
        message
            .attributes
            .extend(change.mtu.map(LinkAttribute::Mtu));
        self.request(Message::SetLink(message), 0)
    }

    /// Sends all that link `from` receives out of link `to`, so that the stack above `from` sees none of
    /// it. Replaces what was set up before, such as for an interface that is gone.
    ///
    /// # Errors
    /// The kernel's.
    pub fn redirect(&mut self, from: u32, to: u32) -> io::Result<()> {
        self.stop_redirect(from)?;
        let new = NLM_F_CREATE | NLM_F_EXCL;
        self.request(Message::NewQueueDiscipline(ingress(from)), new)?;
        self.request(Message::NewTrafficFilter(filter(from, to)), new)
    }

    /// Undoes [`Self::redirect`]. Nothing to undo is no error.
    ///
    /// # Errors
    /// The kernel's.
    pub fn stop_redirect(&mut self, from: u32) -> io::Result<()> {
        match self.request(Message::DelQueueDiscipline(ingress(from)), 0) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput) => {
                Ok(())
            }
            result => result,
        }
    }
}

impl Link {
    /// The link of an answer or of news.
    #[must_use]
    pub fn of(message: Message) -> Option<Self> {
        let Message::NewLink(message) = message else {
            return None;
        };
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            address: Vec::new(),
            mtu: 0,
            is_running: message.header.flags.contains(LinkFlags::LowerUp)
                && message.header.flags.contains(LinkFlags::Running),
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(address) => link.address = address,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                _ => {}
            }
        }
        Some(link)
    }
}

fn of_link(index: u32) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = i32::try_from(index).unwrap_or(i32::MAX);
    message
}

fn ingress(link: u32) -> TcMessage {
    let mut message = of_link(link);
    message.header.parent = TcHandle::INGRESS;
    message.header.handle = handle(u16::MAX);
    message.attributes = vec![TcAttribute::Kind("ingress".to_owned())];
    message
}

fn filter(from: u32, to: u32) -> TcMessage {
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let options = vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))];
    let mut action = TcAction::default();
    action.tab = 1;
    action.attributes = vec![
        TcActionAttribute::Kind("mirred".to_owned()),
        TcActionAttribute::Options(options),
    ];
    let mut message = of_link(from);
    message.header.parent = handle(u16::MAX);
    message.header.info = FILTER_PRIORITY << 16 | ANY_PROTOCOL;
    let action = TcFilterMatchAllOption::Action(vec![action]);
    message.attributes = vec![
        TcAttribute::Kind("matchall".to_owned()),
        TcAttribute::Options(vec![TcOption::MatchAll(action)]),
    ];
    message
}

fn handle(major: u16) -> TcHandle {
    TcHandle { major, minor: 0 }
}
