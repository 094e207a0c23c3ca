//! Fragments through the engine: together, translated, apart again.
//!
//! As the kernel's own `nf_defrag` does it: fragments that concern us are held back until the datagram
//! is whole, which then is translated like any packet, and cut again into fragments that are no longer
//! than those it came in. So whatever path it came by, or was cut for, stays good for it, and "don't
//! fragment" keeps its meaning.
//!
//! The fragments of a datagram meet at one worker, [`Ownership::of_fragments`]; all of them know its
//! addresses and identification, but only the first its ports. The whole datagram then goes to the
//! worker that owns its connection ([`Engine::poll_hand_over`]), which may be a third one.
//!
//! [`Ownership::of_fragments`]: super::Ownership::of_fragments

use super::{DropReason, Engine, Time, Verdict};
use crate::packet::{BadFragment, Datagram, GsoType, Packet, Transport, VnetHeader};

impl From<BadFragment> for DropReason {
    fn from(bad: BadFragment) -> Self {
        match bad {
            BadFragment::HeaderChecksum | BadFragment::Length => Self::BadFragment,
            BadFragment::Tiny => Self::FragmentTiny,
            BadFragment::TooLong => Self::FragmentTooLong,
        }
    }
}

impl Engine {
    /// The next whole datagram that another worker owns, and which: to be given to that worker's
    /// [`Engine::handle_datagram`].
    pub fn poll_hand_over(&mut self) -> Option<(u16, Datagram)> {
        self.hand_overs.pop_front()
    }

    /// Decides on a datagram that was put together here or by another worker. What becomes of it is
    /// asked for with [`Engine::poll_transmit`] and [`Engine::poll_hand_over`].
    pub fn handle_datagram(&mut self, mut datagram: Datagram, now: Time) {
        let mut offload = VnetHeader::default();
        let length = datagram.length();
        let mut identification = None;
        let verdict = match Packet::parse(datagram.bytes_mut()) {
            // Fragments of fragments: no sender makes them, and one level is enough for an attacker.
            Ok(packet) if packet.transport() == Transport::Fragment => {
                Verdict::Dropped(DropReason::BadFragment)
            }
            Ok(mut packet) => {
                let verdict = self.decide(&mut packet, &offload, now);
                match verdict {
                    Verdict::Translated(_) => {
                        identification = Some(self.new_identification(&packet));
                        self.prepare_to_leave(&mut packet, &mut offload, verdict)
                    }
                    Verdict::Passed => self.prepare_to_leave(&mut packet, &mut offload, verdict),
                    Verdict::Dropped(_) | Verdict::HandOver { .. } | Verdict::Held => verdict,
                }
            }
            Err(malformed) => Verdict::Dropped(malformed.into()),
        };
        self.counters.count_datagram(verdict, length);
        match verdict {
            Verdict::Translated(_) | Verdict::Passed => {
                if let Some(identification) = identification {
                    datagram.set_identification(identification);
                }
                self.outbox.extend(datagram.cut().map(Into::into));
            }
            Verdict::HandOver { owner } => self.hand_overs.push_back((owner, datagram)),
            Verdict::Dropped(reason) => self.notify_of_drop(reason, datagram.bytes_mut(), now),
            Verdict::Held => {}
        }
    }

    /// How many datagrams wait for their missing fragments, and the memory that takes, in bytes.
    pub fn incomplete_datagrams(&self) -> (usize, usize) {
        (self.reassembler.datagrams(), self.reassembler.bytes())
    }

    /// Keeps a fragment that concerns us, at the worker where all of its datagram meet.
    pub(super) fn hold(&mut self, packet: &Packet<'_>, offload: &VnetHeader, now: Time) -> Verdict {
        // What the kernel left undone can't be done on a part.
        if offload.gso() != GsoType::None || offload.needs_csum() {
            return Verdict::Dropped(DropReason::UnknownOffload);
        }
        let fragment = match packet.fragment() {
            Ok(fragment) => fragment,
            Err(bad) => return Verdict::Dropped(bad.into()),
        };
        let (source, destination) = (packet.source(), packet.destination());
        let owner = self
            .ownership
            .of_fragments(source, destination, fragment.identification);
        if owner != self.worker {
            return Verdict::HandOver { owner };
        }
        let mut evicted = 0;
        let whole = self
            .reassembler
            .insert(source, destination, &fragment, now, &mut evicted);
        self.counters
            .count_datagrams_dropped(DropReason::FragmentEvicted, evicted);
        match whole {
            Ok(None) => Verdict::Held,
            Ok(Some(datagram)) => {
                self.counters.reassembled += 1;
                self.handle_datagram(datagram, now);
                Verdict::Held
            }
            Err(reason) => Verdict::Dropped(reason),
        }
    }

    /// Gives up datagrams that have been incomplete for too long.
    pub(super) fn expire_fragments(&mut self, now: Time) {
        let expired = self.reassembler.expire(now);
        self.counters
            .count_datagrams_dropped(DropReason::FragmentExpired, expired);
    }

    /// Gives a translated packet an identification of its own, if a router may yet cut it.
    ///
    /// A super-packet is left alone: the kernel numbers its segments from the one in the header on,
    /// so it would need as many numbers in a row as it has segments, and ours aren't in a row.
    pub(super) fn renew_identification(&mut self, packet: &mut Packet<'_>, offload: &VnetHeader) {
        if packet.may_be_fragmented() && offload.gso() == GsoType::None {
            let identification = self.new_identification(packet);
            // An IPv4 one is below 2^16.
            packet.set_identification(identification as u16);
        }
    }

    /// A new identification for a packet by its new addresses.
    fn new_identification(&mut self, packet: &Packet<'_>) -> u32 {
        let (addresses, protocol) = packet.identification_scope();
        if packet.source().is_v4() {
            self.identifications.next_v4(addresses, protocol).into()
        } else {
            self.identifications.next_v6(addresses)
        }
    }
}
