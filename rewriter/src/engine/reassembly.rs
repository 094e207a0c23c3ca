//! Puts datagrams together from their fragments (RFC 791, section 3.2; RFC 8200, section 4.5).
//!
//! Goal: a fragment without ports can't be translated, the whole datagram can. Fragments may come in
//! any order, several datagrams at a time, and some twice.
//!
//! A datagram of which something is missing costs memory, and anyone can send such fragments. So
//! everything has a limit, and what it costs is in proportion to what was received:
//! - the pieces are kept as they came, and only joined when all are there;
//! - a piece finds its place among the others in logarithmic time, whatever their order;
//! - beyond [`Limits`], the datagrams that have waited longest are given up: under a flood, what
//!   arrives completes if its fragments arrive close together, as those of an honest sender do;
//! - what is incomplete after [`TIMEOUT_V4`] or [`TIMEOUT_V6`] is given up.
//!
//! Fragments that overlap are an attack or a defect: the whole datagram is dropped, and what comes of
//! it later too (RFC 5722; for IPv4 Linux does the same). An exact copy of a piece is just ignored
//! (RFC 8200, section 4.5).
//!
//! No ICMP "time exceeded" is sent when a datagram is given up: that is for its destination to do.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use ahash::RandomState;

use super::{DropReason, Time};
use crate::packet::{Address, BadFragment, Datagram, Fragment};

/// How long an IPv4 datagram may be incomplete: as Linux has it, within RFC 791's 15 s and RFC
/// 1122's 60 s to 120 s.
pub const TIMEOUT_V4: Duration = Duration::from_secs(30);
/// How long an IPv6 datagram may be incomplete (RFC 8200, section 4.5).
pub const TIMEOUT_V6: Duration = Duration::from_secs(60);

/// What a datagram costs beside its pieces, in bytes; about.
const DATAGRAM_COST: usize = 400;
/// What a piece costs beside its bytes; about.
const PIECE_COST: usize = 64;

/// The value of the two ECN bits that says "not capable" (RFC 3168, section 5).
const NOT_CAPABLE: u8 = 1;
const CONGESTION_EXPERIENCED: u8 = 1 << 0b11;

/// How much a reassembler keeps at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory for incomplete datagrams, in bytes.
    pub bytes: usize,
    /// Incomplete datagrams.
    pub datagrams: usize,
    /// Fragments of one datagram. A datagram of 64 KiB over the smallest MTU that IPv4 allows, 68
    /// bytes, comes in 1,365.
    pub fragments: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 4 << 20,
            datagrams: 8192,
            fragments: 1500,
        }
    }
}

/// What all fragments of a datagram have in common. An IPv6 one is told from others by addresses and
/// identification alone; its `protocol` is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    source: Address,
    destination: Address,
    identification: u32,
    protocol: u8,
}

/// A datagram of which something is missing.
#[derive(Debug)]
struct Incomplete {
    /// Its number in the order of arrival.
    serial: u64,
    begun: Time,
    /// By offset; they don't overlap.
    pieces: BTreeMap<usize, Box<[u8]>>,
    /// The headers of the first fragment, made fit for the whole.
    headers: Option<Vec<u8>>,
    /// Bytes in all pieces.
    received: usize,
    /// Where the farthest piece ends.
    farthest: usize,
    /// Where the datagram ends, once its last fragment is here.
    end: Option<usize>,
    /// The length of the largest fragment in bytes, headers included.
    largest: usize,
    /// The ECN values seen, each as a bit.
    ecn: u8,
    /// Why nothing can become of it; its pieces are gone then.
    spoiled: Option<DropReason>,
}

impl Incomplete {
    fn new(serial: u64, begun: Time) -> Self {
        Self {
            serial,
            begun,
            pieces: BTreeMap::new(),
            headers: None,
            received: 0,
            farthest: 0,
            end: None,
            largest: 0,
            ecn: 0,
            spoiled: None,
        }
    }

    /// Memory in bytes; about.
    fn cost(&self) -> usize {
        DATAGRAM_COST + self.received + self.pieces.len() * PIECE_COST
    }

    /// Takes a piece in, or finds that it spoils the datagram.
    fn add(&mut self, fragment: &Fragment<'_>, limits: &Limits) -> Result<(), DropReason> {
        let (start, end) = (fragment.offset, fragment.end());
        let ends_agree = match (self.end, fragment.more) {
            (None, true) => true,
            (None, false) => self.farthest <= end,
            (Some(known), true) => end < known,
            (Some(known), false) => end == known,
        };
        if !ends_agree {
            return Err(DropReason::FragmentOverlap);
        }
        let before = self.pieces.range(..end).next_back();
        if let Some((&other, piece)) = before
            && other + piece.len() > start
        {
            let is_copy = other == start && **piece == *fragment.payload;
            return if is_copy {
                Ok(())
            } else {
                Err(DropReason::FragmentOverlap)
            };
        }
        if self.pieces.len() >= limits.fragments {
            return Err(DropReason::FragmentTooMany);
        }
        let ecn = self.ecn | 1 << fragment.ecn;
        // RFC 3168, section 5.3: neither value would be true of the whole.
        if ecn & CONGESTION_EXPERIENCED != 0 && ecn & NOT_CAPABLE != 0 {
            return Err(DropReason::FragmentMixedEcn);
        }
        self.ecn = ecn;
        if start == 0 {
            self.headers = Some(fragment.whole_headers());
        }
        if !fragment.more {
            self.end = Some(end);
        }
        self.farthest = self.farthest.max(end);
        self.largest = self.largest.max(fragment.length);
        self.received += fragment.payload.len();
        self.pieces.insert(start, fragment.payload.into());
        Ok(())
    }

    /// As pieces don't overlap, enough bytes means all of them.
    fn is_complete(&self) -> bool {
        self.end == Some(self.received)
    }

    fn spoil(&mut self, reason: DropReason) {
        self.pieces = BTreeMap::new();
        self.headers = None;
        self.received = 0;
        self.spoiled = Some(reason);
    }

    fn assemble(self, identification: u32) -> Result<Datagram, BadFragment> {
        let headers = self.headers.ok_or(BadFragment::Length)?;
        Datagram::assemble(
            &headers,
            identification,
            self.pieces.values().map(|piece| &**piece),
            self.received,
            self.ecn,
            self.largest,
        )
    }
}

/// Incomplete datagrams of one family in the order of their arrival, which is that of their
/// deadlines.
#[derive(Debug)]
struct Queue {
    waiting: BTreeMap<u64, Key>,
    timeout: Duration,
}

/// The incomplete datagrams of one worker.
#[derive(Debug)]
pub(super) struct Reassembler {
    limits: Limits,
    datagrams: HashMap<Key, Incomplete, RandomState>,
    /// Of IPv4 and of IPv6.
    queues: [Queue; 2],
    arrived: u64,
    bytes: usize,
}

impl Reassembler {
    pub(super) fn new(limits: Limits) -> Self {
        let queue = |timeout| Queue {
            waiting: BTreeMap::new(),
            timeout,
        };
        Self {
            limits,
            datagrams: HashMap::default(),
            queues: [queue(TIMEOUT_V4), queue(TIMEOUT_V6)],
            arrived: 0,
            bytes: 0,
        }
    }

    /// Takes a fragment. Returns the datagram if nothing is missing any more. What was given up to
    /// make room is added to `evicted`, in datagrams.
    pub(super) fn insert(
        &mut self,
        source: Address,
        destination: Address,
        fragment: &Fragment<'_>,
        now: Time,
        evicted: &mut u64,
    ) -> Result<Option<Datagram>, DropReason> {
        let v4 = source.is_v4();
        let key = Key {
            source,
            destination,
            identification: fragment.identification,
            protocol: if v4 { fragment.protocol } else { 0 },
        };
        let incomplete = self.datagrams.entry(key).or_insert_with(|| {
            let serial = self.arrived;
            self.arrived += 1;
            self.queues[usize::from(!v4)].waiting.insert(serial, key);
            self.bytes += DATAGRAM_COST;
            Incomplete::new(serial, now)
        });
        if let Some(reason) = incomplete.spoiled {
            return Err(reason);
        }
        let before = incomplete.cost();
        let added = incomplete.add(fragment, &self.limits);
        if let Err(reason) = added {
            incomplete.spoil(reason);
        }
        let is_complete = incomplete.is_complete();
        self.bytes = self.bytes - before + incomplete.cost();
        added?;
        if is_complete {
            let datagram = self
                .remove(&key)
                .map(|all| all.assemble(key.identification));
            return datagram.transpose().map_err(DropReason::from);
        }
        *evicted += self.make_room();
        Ok(None)
    }

    /// Gives up what has been incomplete for too long; how many datagrams that was. Those that were
    /// dropped before don't count again.
    pub(super) fn expire(&mut self, now: Time) -> u64 {
        let mut expired = 0;
        for family in 0..self.queues.len() {
            while let Some(key) = self.due(family, now) {
                expired += self.give_up(&key);
            }
        }
        expired
    }

    /// When [`Reassembler::expire`] next has something to do.
    pub(super) fn next_due(&self) -> Option<Time> {
        self.queues
            .iter()
            .filter_map(|queue| self.first_due(queue))
            .min()
    }

    /// How many datagrams are incomplete, dropped ones included whose other fragments may still come.
    pub(super) fn datagrams(&self) -> usize {
        self.datagrams.len()
    }

    /// The memory that incomplete datagrams take, in bytes; about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn first_due(&self, queue: &Queue) -> Option<Time> {
        let (_, key) = queue.waiting.first_key_value()?;
        Some(self.datagrams.get(key)?.begun.after(queue.timeout))
    }

    fn due(&self, family: usize, now: Time) -> Option<Key> {
        let queue = &self.queues[family];
        self.first_due(queue).filter(|due| *due <= now)?;
        queue.waiting.first_key_value().map(|(_, key)| *key)
    }

    /// Gives up the oldest until the rest is within the limits; how many.
    fn make_room(&mut self) -> u64 {
        let mut evicted = 0;
        while self.bytes > self.limits.bytes || self.datagrams.len() > self.limits.datagrams {
            let oldest = self
                .queues
                .iter()
                .filter_map(|queue| queue.waiting.first_key_value())
                .min_by_key(|(serial, _)| **serial)
                .map(|(_, key)| *key);
            let Some(key) = oldest else {
                break;
            };
            evicted += self.give_up(&key);
        }
        evicted
    }

    /// Removes an incomplete datagram: 1 if that is what drops it, 0 if it had been dropped before.
    fn give_up(&mut self, key: &Key) -> u64 {
        let was_good = self.remove(key).is_some_and(|gone| gone.spoiled.is_none());
        u64::from(was_good)
    }

    fn remove(&mut self, key: &Key) -> Option<Incomplete> {
        let incomplete = self.datagrams.remove(key)?;
        let family = usize::from(!key.source.is_v4());
        self.queues[family].waiting.remove(&incomplete.serial);
        self.bytes -= incomplete.cost();
        Some(incomplete)
    }
}
