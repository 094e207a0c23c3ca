//! ICMP errors: whose they are, and who is told (RFC 5508, section 4).
//!
//! An error goes to the sender of the packet that it quotes. One that comes to a proxy address is
//! about a packet from a proxy to a mirror: a *reverse* error, for the client. One that comes to a
//! service is about a packet from the service to a client: a *forward* error, for the mirror. Either
//! way the quoted packet names the connection, and by it the owner.
//!
//! Whoever gets the error sees in it only what it knows. A client may see routers behind the rewriter,
//! as it would on a path to the service, but the mirror and the proxies show as the service. A
//! mirror sees the proxy in place of the client and of every router on the way to it (RFC 5508,
//! REQ-5 c).
//!
//! An error changes nothing in the table, but for being counted: it neither refreshes a connection nor
//! ends it (RFC 5508, REQ-6; RFC 4787, REQ-12; RFC 5382, REQ-10).

use super::{DropReason, Engine, Verdict};
use crate::packet::{Flow, Packet, Quote, Transport};
use crate::table::{ClientSide, Connection, Direction, MirrorSide, Slot, State, TcpProgress};

/// How far behind the newest byte sent a quoted one may be: the largest window there is (RFC 7323,
/// section 2.3).
const LARGEST_WINDOW: u32 = 1 << 30;

impl Engine {
    /// Decides on an ICMP error to a proxy address.
    pub(super) fn decide_reverse_error(&mut self, packet: &mut Packet<'_>) -> Verdict {
        let unsolicited = Verdict::Dropped(DropReason::UnsolicitedIcmpError);
        let Some(quoted) = Quoted::of(packet, Direction::Forward) else {
            return unsolicited;
        };
        let owner = self.ownership.of_proxy_port(quoted.flow.source.port);
        if owner != self.worker {
            return Verdict::HandOver { owner };
        }
        let Some((slot, connection)) = self.sender_of(&quoted, Direction::Forward) else {
            return unsolicited;
        };
        if let Some(reason) = quoted.refusal(connection, &connection.client) {
            return Verdict::Dropped(reason);
        }
        let ClientSide { client, service } = *connection.client_side();
        let mirror = connection.mirror_side().mirror;
        let sender = packet.source();
        let source = if sender == mirror.address || self.pool.contains(sender) {
            service.address
        } else {
            sender
        };
        let translation = connection.translation(Direction::Reverse).turned();
        // The client's own numbers, which the mirror has been sent as they are.
        packet.translate_error(source, client.address, &translation, 0);
        self.count_icmp_error(slot);
        Verdict::Translated(Direction::Reverse)
    }

    /// Decides on an ICMP error to any other address. One that is about no connection may be about
    /// a packet of the service's own, on a connection that began before the diversion: it passes.
    pub(super) fn decide_forward_error(&mut self, packet: &mut Packet<'_>) -> Verdict {
        if !self.diversions.concern(packet.destination()) {
            return Verdict::Passed;
        }
        let Some(quoted) = Quoted::of(packet, Direction::Reverse) else {
            return Verdict::Passed;
        };
        let owner = self.ownership.of_client(quoted.flow.destination);
        if owner != self.worker {
            return Verdict::HandOver { owner };
        }
        let Some((slot, connection)) = self.sender_of(&quoted, Direction::Reverse) else {
            return Verdict::Passed;
        };
        if let Some(reason) = quoted.refusal(connection, &connection.mirror) {
            return Verdict::Dropped(reason);
        }
        let MirrorSide { proxy, mirror } = *connection.mirror_side();
        let translation = connection.translation(Direction::Forward).turned();
        let numbers = self.splices.joined(slot).forward;
        packet.translate_error(
            proxy.address,
            mirror.address,
            &translation,
            numbers.acknowledgement,
        );
        self.count_icmp_error(slot);
        Verdict::Translated(Direction::Forward)
    }

    fn count_icmp_error(&mut self, slot: Slot) {
        if let Some(connection) = self.connections.get_mut(slot) {
            let timing = &mut connection.timing;
            timing.icmp_errors = timing.icmp_errors.saturating_add(1);
            if let Some(totals) = self.aggregates.totals_mut(connection.aggregate) {
                totals.icmp_errors += 1;
            }
        }
    }

    /// The connection that sent the quoted packet in this direction, after its translation.
    fn sender_of(&self, quoted: &Quoted, direction: Direction) -> Option<(Slot, &Connection)> {
        let (slot, answers) = self.connections.find(&quoted.flow.turned())?;
        let connection = self.connections.get(slot)?;
        (answers != direction).then_some((slot, connection))
    }
}

/// The quoted packet of an error, as the table knows it.
struct Quoted {
    flow: Flow,
    /// Of a TCP segment.
    sequence: Option<u32>,
}

impl Quoted {
    /// The packet that `error` quotes, if a translated packet that went in this direction can look
    /// like it, and if the error was sent to that packet's sender.
    fn of(error: &Packet<'_>, direction: Direction) -> Option<Self> {
        let quote: Quote = error.quote()?;
        if quote.source() != error.destination() {
            return None;
        }
        let sequence = match (quote.transport(), direction) {
            (Transport::Tcp(segment), _) => Some(segment.sequence),
            (Transport::Udp { .. }, _)
            | (Transport::EchoRequest { .. }, Direction::Forward)
            | (Transport::EchoReply { .. }, Direction::Reverse) => None,
            _ => return None,
        };
        Some(Self {
            flow: quote.flow()?,
            sequence,
        })
    }

    /// Why an error about this packet of the connection isn't believed. `sender`: what has been seen
    /// of the end that is said to have sent it.
    ///
    /// An attacker who guesses the addresses and ports must guess a sequence number as well (RFC
    /// 5927, section 4.1). Of an end whose SYN hasn't been seen no number is known.
    fn refusal(&self, connection: &Connection, sender: &TcpProgress) -> Option<DropReason> {
        if connection.state == State::Reset {
            return Some(DropReason::ConnectionWasReset);
        }
        let sequence = self.sequence?;
        let is_plausible =
            !sender.has(TcpProgress::BEGUN) || sender.sent.wrapping_sub(sequence) <= LARGEST_WINDOW;
        (!is_plausible).then_some(DropReason::ImplausibleIcmpError)
    }
}
