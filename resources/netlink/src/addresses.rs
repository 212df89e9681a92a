//! IP addresses and default routes of a link.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use crate::{Message, Netlink};

/// RT_TABLE_MAIN of include/uapi/linux/rtnetlink.h.
const MAIN_TABLE: u8 = 254;

impl Netlink {
    /// The addresses of a link that reach beyond it: no link-local ones.
    ///
    /// # Errors
    /// The kernel's.
    pub fn addresses(&mut self, link: u32) -> io::Result<Vec<IpNet>> {
        let all = self.address_messages(link)?;
        let global = |message: &&AddressMessage| message.header.scope == AddressScope::Universe;
        Ok(all.iter().filter(global).filter_map(network).collect())
    }

    /// Takes all addresses of a link away, and with them the routes by way of it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn flush_addresses(&mut self, link: u32) -> io::Result<()> {
        for message in self.address_messages(link)? {
            match self.request(Message::DelAddress(message), 0) {
                // A secondary one has gone with its primary.
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
                result => result?,
            }
        }
        Ok(())
    }

    /// Gives a link an address, without a search for others that have it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_address(&mut self, link: u32, address: IpNet) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address.addr());
        message.header.prefix_len = address.prefix_len();
        message.header.index = link;
        message.attributes = vec![
            AddressAttribute::Local(address.addr()),
            AddressAttribute::Address(address.addr()),
        ];
        match address {
            IpNet::V4(address) => {
                let broadcast = AddressAttribute::Broadcast(address.broadcast());
                message.attributes.push(broadcast);
            }
            IpNet::V6(_) => {
                message.header.flags = AddressHeaderFlags::Nodad;
                let flags = AddressAttribute::Flags(AddressFlags::Nodad);
                message.attributes.push(flags);
            }
        }
        self.request(Message::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// The gateways of the default routes by way of a link.
    ///
    /// # Errors
    /// The kernel's.
    pub fn gateways(&mut self, link: u32) -> io::Result<Vec<IpAddr>> {
        let mut found = Vec::new();
        for message in self.dump(Message::GetRoute(RouteMessage::default()))? {
            if let Message::NewRoute(route) = message
                && let Some(gateway) = default_gateway(&route, link)
            {
                found.push(gateway);
            }
        }
        Ok(found)
    }

    /// Makes a gateway that of the default route; it may lie outside of the link's own networks.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_gateway(&mut self, link: u32, gateway: IpAddr) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(gateway);
        message.header.table = MAIN_TABLE;
        message.header.protocol = RouteProtocol::Boot;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.header.flags = RouteFlags::Onlink;
        let address = match gateway {
            IpAddr::V4(address) => RouteAddress::Inet(address),
            IpAddr::V6(address) => RouteAddress::Inet6(address),
        };
        message.attributes = vec![RouteAttribute::Gateway(address), RouteAttribute::Oif(link)];
        self.request(Message::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    fn address_messages(&mut self, link: u32) -> io::Result<Vec<AddressMessage>> {
        let list = self.dump(Message::GetAddress(AddressMessage::default()))?;
        let of_link = |message| match message {
            Message::NewAddress(message) if message.header.index == link => Some(message),
            _ => None,
        };
        Ok(list.into_iter().filter_map(of_link).collect())
    }
}

/// IFA_LOCAL is the address itself where there is one; IFA_ADDRESS may be the peer's then.
fn network(message: &AddressMessage) -> Option<IpNet> {
    let attributes = message.attributes.iter();
    let local = attributes.clone().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or_else(|| {
        attributes.clone().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    IpNet::new(address, message.header.prefix_len).ok()
}

fn default_gateway(route: &RouteMessage, link: u32) -> Option<IpAddr> {
    let header = &route.header;
    let is_default = header.destination_prefix_length == 0
        && header.table == MAIN_TABLE
        && header.kind == RouteType::Unicast;
    let by_link = route.attributes.contains(&RouteAttribute::Oif(link));
    if !is_default || !by_link {
        return None;
    }
    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
            RouteAttribute::Gateway(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
            _ => None,
        })
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
