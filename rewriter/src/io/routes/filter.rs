//! Traffic filters as netlink messages: how packets reach the TUN past the kernel's forwarding.
//!
//! A `u32` filter compares words of the packet, counted from its IP header's first byte, with
//! masked values; `mirred` puts what matches on the TUN's transmit queue, without the link-layer
//! header. The kernel completes checksums and cuts super-packets first, if the TUN can't take them
//! (as with every transmission: `validate_xmit_skb` in `net/core/dev.c`). Sources:
//! `include/uapi/linux/pkt_cls.h`, `net/sched/cls_u32.c`, `net/sched/act_mirred.c`.

use ipnet::IpNet;
use nix::libc;
use rtnetlink::packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption,
    TcActionType, TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror,
    TcMirrorActionType, TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

use super::step::{Family, Filter, Match};

/// Bytes from an IP header's first to its addresses (RFC 791, section 3.1; RFC 8200, section 3).
mod field {
    pub const SOURCE_V4: i32 = 12;
    pub const DESTINATION_V4: i32 = 16;
    pub const SOURCE_V6: i32 = 8;
    pub const DESTINATION_V6: i32 = 24;
}

/// The handle of `clsact` and `ingress`, of which an interface can have only one.
const HOOK: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0,
};
/// Where filters on packets that come in are attached; for `clsact` and `ingress` alike.
const INGRESS: TcHandle = TcHandle {
    major: 0xffff,
    minor: TcHandle::MIN_INGRESS,
};
const EGRESS: TcHandle = TcHandle {
    major: 0xffff,
    minor: TcHandle::MIN_EGRESS,
};

/// What a dump shows of a filter.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A `u32` filter's table or the like: no filter of its own.
    Frame,
    /// It redirects to the interface of this index; 0, if that is gone.
    Redirect(u32),
    /// It has no action, as [`Match::Pass`].
    Pass,
    /// Nothing that Shunt makes.
    Foreign,
}

/// The queueing discipline that filters hang on.
pub(super) fn hook_message(interface: u32) -> TcMessage {
    let mut message = about(interface);
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = HOOK;
    message
        .attributes
        .push(TcAttribute::Kind("clsact".to_owned()));
    message
}

/// The interface, if this is a queueing discipline that filters can hang on.
pub(super) fn hooked_interface(qdisc: &TcMessage) -> Option<u32> {
    let is_hook = qdisc.header.parent == TcHandle::CLSACT;
    is_hook.then(|| qdisc.header.index.cast_unsigned())
}

/// Asks for the filters on packets that come in.
pub(super) fn ingress_question(interface: u32) -> TcMessage {
    let mut message = about(interface);
    message.header.parent = INGRESS;
    message
}

/// Asks for the filters on packets that go out.
pub(super) fn egress_question(interface: u32) -> TcMessage {
    let mut message = about(interface);
    message.header.parent = EGRESS;
    message
}

/// All filters of one preference on packets that come in.
pub(super) fn key_message(interface: u32, preference: u16) -> TcMessage {
    let mut message = ingress_question(interface);
    message.header.info = u32::from(TcHandle {
        major: preference,
        minor: 0,
    });
    message
}

/// A filter to be made.
pub(super) fn message(filter: &Filter, tun_index: u32) -> TcMessage {
    let ether_type = match filter.what.family() {
        Family::V4 => libc::ETH_P_IP,
        Family::V6 => libc::ETH_P_IPV6,
    } as u16;
    let mut message = key_message(filter.interface.index, filter.preference);
    message.header.info |= u32::from(ether_type.to_be());

    let keys = match &filter.what {
        Match::To(address) => keys(IpNet::from(*address), Side::Destination),
        Match::Pass(net) => keys(*net, Side::Destination),
        Match::From(net) => keys(*net, Side::Source),
    };
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = keys.len() as u8;
    selector.keys = keys;
    let mut options = Vec::new();
    if let Match::Pass(_) = filter.what {
        let (major, minor) = Filter::PASS_CLASS;
        options.push(TcFilterU32Option::ClassId(TcHandle { major, minor }));
    } else {
        options.push(TcFilterU32Option::Action(vec![redirect(tun_index)]));
    }
    options.push(TcFilterU32Option::Selector(selector));
    message.attributes = vec![
        TcAttribute::Kind(TcFilterU32::KIND.to_owned()),
        TcAttribute::Options(options.into_iter().map(TcOption::U32).collect()),
    ];
    message
}

/// The preference of a dumped filter, and what it is.
pub(super) fn recognise(message: &TcMessage) -> (u16, Found) {
    let preference = TcHandle::from(message.header.info).major;
    let is_u32 =
        |a: &TcAttribute| matches!(a, TcAttribute::Kind(kind) if kind == TcFilterU32::KIND);
    if !message.attributes.iter().any(is_u32) {
        return (preference, Found::Foreign);
    }
    let options = message
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        });
    let (major, minor) = Filter::PASS_CLASS;
    let pass_class = TcHandle { major, minor };
    let (mut selects, mut passes, mut actions) = (false, false, Vec::new());
    for option in options.flatten() {
        match option {
            TcOption::U32(TcFilterU32Option::Selector(_)) => selects = true,
            TcOption::U32(TcFilterU32Option::ClassId(class)) => passes = *class == pass_class,
            TcOption::U32(TcFilterU32Option::Action(some)) => actions.extend(some),
            _ => {}
        }
    }
    let found = match (selects, actions.as_slice()) {
        (false, _) => Found::Frame,
        (true, []) if passes => Found::Pass,
        (true, [action]) => redirect_target(action).map_or(Found::Foreign, Found::Redirect),
        (true, _) => Found::Foreign,
    };
    (preference, found)
}

#[derive(Clone, Copy)]
enum Side {
    Source,
    Destination,
}

/// The words to compare, as `tc` makes them: an IPv6 prefix takes as many as it reaches into.
fn keys(net: IpNet, side: Side) -> Vec<TcU32Key> {
    match net {
        IpNet::V4(net) => {
            let at = match side {
                Side::Source => field::SOURCE_V4,
                Side::Destination => field::DESTINATION_V4,
            };
            vec![key(net.network().to_bits(), net.netmask().to_bits(), at)]
        }
        IpNet::V6(net) => {
            let at = match side {
                Side::Source => field::SOURCE_V6,
                Side::Destination => field::DESTINATION_V6,
            };
            // The word that holds the most significant bits first.
            let word = |bits: u128, i: i32| (bits >> (96 - 32 * i)) as u32;
            let (value, mask) = (net.network().to_bits(), net.netmask().to_bits());
            let words = i32::from(net.prefix_len().div_ceil(32));
            (0..words)
                .map(|i| key(word(value, i), word(mask, i), at + 4 * i))
                .collect()
        }
    }
}

fn key(value: u32, mask: u32, offset: i32) -> TcU32Key {
    let mut key = TcU32Key::default();
    (key.val, key.mask, key.off) = (value, mask, offset);
    key
}

fn redirect(tun_index: u32) -> TcAction {
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = tun_index;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(
            mirror,
        ))]),
    ];
    action
}

fn redirect_target(action: &TcAction) -> Option<u32> {
    let options = action
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            TcActionAttribute::Options(options) => Some(options),
            _ => None,
        });
    options.flatten().find_map(|option| match option {
        TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))
            if mirror.eaction == TcMirrorActionType::EgressRedir =>
        {
            Some(mirror.ifindex)
        }
        _ => None,
    })
}

fn about(interface: u32) -> TcMessage {
    TcMessage::with_index(interface.cast_signed())
}
