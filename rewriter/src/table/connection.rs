//! One connection: a plain record of fixed size (patent: "a pair of pairs of addresses").

use control_protocol::Protocol;

use super::{AggregateId, Latency, Tick};
use crate::packet::{Differences, Endpoint, Flow, Translation};

/// The pair that the client knows. Its own type, so that it can't stand where the other is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientSide {
    /// Who opened the connection.
    pub client: Endpoint,
    /// Whom the client thinks it talks to.
    pub service: Endpoint,
}

/// The pair that the mirror knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MirrorSide {
    /// The rewriter's own address and port.
    pub proxy: Endpoint,
    /// Who really answers.
    pub mirror: Endpoint,
}

impl ClientSide {
    /// What the client sends.
    pub fn flow(&self, protocol: Protocol) -> Flow {
        Flow {
            protocol,
            source: self.client,
            destination: self.service,
        }
    }
}

impl MirrorSide {
    /// What the mirror sends.
    pub fn flow(&self, protocol: Protocol) -> Flow {
        Flow {
            protocol,
            source: self.mirror,
            destination: self.proxy,
        }
    }
}

/// Which way a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the mirror.
    Forward,
    /// From the mirror to the client.
    Reverse,
}

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// TCP: a SYN has passed, its handshake isn't complete.
    Opening,
    /// TCP: the handshake is complete.
    Established,
    /// TCP: one end has sent a FIN.
    Closing,
    /// TCP: both ends have sent a FIN, or one a reset.
    Closed,
    /// TCP: reset by a redirect. Whatever still comes from either end is answered with a reset.
    Reset,
    /// UDP or echo: there is traffic.
    Active,
}

/// What has been seen of one end of a TCP connection. Numbers are those that the client sends and is
/// sent: a mirror that the connection was spliced to has others ([`Connection::is_spliced`]).
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpProgress {
    /// The sequence number after the last byte that it sent.
    pub sent: u32,
    /// Its last acknowledgement number: what it expects next. Means something only with
    /// [`TcpProgress::ACKNOWLEDGED`].
    pub acknowledged: u32,
    /// The sequence number of its first byte of data.
    pub start: u32,
    /// The value of its latest timestamp, with [`TcpProgress::TIMESTAMPS`].
    pub timestamp: u32,
    /// The window that it announced last, unscaled.
    pub window: u16,
    /// The maximum segment size that its SYN announced, in bytes; 0: none.
    pub segment_size: u16,
    /// Segments of it that brought nothing new, as far as can be counted here.
    pub retransmissions: u16,
    /// By how many bits its windows are shifted, with [`TcpProgress::SCALE`].
    scale: u8,
    flags: u8,
}

impl TcpProgress {
    /// Flag: it has sent a SYN.
    pub const BEGUN: u8 = 0x01;
    /// Flag: it has sent a FIN.
    pub const FINISHED: u8 = 0x02;
    /// Flag: it has sent an acknowledgement.
    pub const ACKNOWLEDGED: u8 = 0x04;
    /// Flag: it has sent a reset that can be believed.
    pub const RESET: u8 = 0x08;
    /// Flag: its SYN permitted selective acknowledgements.
    pub const SACK: u8 = 0x10;
    /// Flag: its SYN had timestamps.
    pub const TIMESTAMPS: u8 = 0x20;
    const SCALE: u8 = 0x40;
    /// Flag of the client: of what it has last asked, as far as that began where the mirror had acknowledged
    /// all, the mirror has acknowledged some; or it can't be told.
    pub const HEARD: u8 = 0x80;

    /// Whether all the flags in `mask` are set.
    pub fn has(&self, mask: u8) -> bool {
        self.flags & mask == mask
    }

    /// Sets or clears the flags in `mask`.
    pub fn set(&mut self, mask: u8, is_set: bool) {
        if is_set {
            self.flags |= mask;
        } else {
            self.flags &= !mask;
        }
    }

    /// By how many bits its SYN said that its windows are shifted; none: it said nothing of it.
    pub fn window_scale(&self) -> Option<u8> {
        self.has(Self::SCALE).then_some(self.scale)
    }

    /// Notes what its SYN said of its windows.
    pub fn set_window_scale(&mut self, scale: Option<u8>) {
        self.set(Self::SCALE, scale.is_some());
        self.scale = scale.unwrap_or(0);
    }
}

/// What a TCP connection is used for, as far as its first bytes tell: whether a server that hasn't
/// heard it from the beginning can go on with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Talk {
    /// Nothing has been said yet.
    #[default]
    Silent,
    /// Something has been said, but not all of it was seen.
    Unseen,
    /// The client spoke first, and in no protocol that is known to keep state.
    Plain,
    /// TLS: keys.
    Tls,
    /// HTTP/2: compression tables, settings, streams.
    Http2,
    /// An HTTP connection that was turned into something else (a WebSocket).
    Upgraded,
    /// The client, or a proxy before it, has said whose connection it is.
    ProxyHeader,
    /// SSH: keys.
    Ssh,
    /// The server spoke first, and would again: SMTP, FTP, MySQL and others.
    ServerFirst,
}

/// What is measured of a connection while its packets pass.
///
/// Moments are on the engine's clock in units of 1,024 ns, and go round after 73 minutes: what takes
/// longer is taken for that much shorter.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timing {
    /// TCP: the acknowledgement number that ends the round trip that is being timed.
    pub sample_end: u32,
    /// TCP: when that round trip began.
    pub sample_began: u32,
    /// When the client last sent something new.
    pub asked: u32,
    /// TCP: from the SYN to the mirror's answer.
    pub mirror_handshake: Option<Latency>,
    /// TCP: from the mirror's SYN to the client's acknowledgement.
    pub client_handshake: Option<Latency>,
    /// TCP: the round trip to the mirror and back, a running average.
    pub mirror_rtt: Option<Latency>,
    /// TCP: the round trip to the client and back, a running average.
    pub client_rtt: Option<Latency>,
    /// The last time from what the client asked to the first of what the mirror answered.
    pub first_byte: Option<Latency>,
    /// TCP: which way what is being timed went; none: nothing is being timed.
    pub sampled: Option<Direction>,
    /// ICMP errors about its packets, as far as can be counted here.
    pub icmp_errors: u8,
}

impl Timing {
    /// Nanoseconds in a unit, as a power of two.
    pub const SHIFT: u32 = 10;
}

/// Packets and bytes in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TrafficCount {
    /// Packets; a super-packet counts as one.
    pub packets: u64,
    /// Bytes, IP headers included.
    pub bytes: u64,
}

impl TrafficCount {
    /// Counts one packet of `bytes` bytes.
    pub fn add(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes as u64;
    }
}

/// One connection.
///
/// In the order that is written, so that `Connection::touch` can know its way about.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Connection {
    /// What the mirror sent.
    pub reverse_traffic: TrafficCount,
    client_side: ClientSide,
    mirror_side: MirrorSide,
    /// Of the way from the client side to the mirror side.
    differences: Differences,
    protocol: Protocol,
    /// How far it has come.
    pub state: State,
    /// TCP: what it is used for.
    pub talk: Talk,
    /// The connections that it is counted among: those of its diversion, its mirror and its client's
    /// prefix.
    pub aggregate: AggregateId,
    /// When a packet of it was last seen.
    pub last_activity: Tick,
    /// When it began.
    pub opened: Tick,
    /// Which way new data has gone last.
    pub last_data: Option<Direction>,
    /// TCP: a redirect waits for a chance to splice it, or is doing so.
    pub is_moving: bool,
    /// TCP: it was spliced, so that its mirror has numbers of its own.
    pub is_spliced: bool,
    /// TCP: what has been seen of the client.
    pub client: TcpProgress,
    /// TCP: what has been seen of the mirror.
    pub mirror: TcpProgress,
    /// What is measured of it.
    pub timing: Timing,
    /// What the client sent.
    pub forward_traffic: TrafficCount,
}

const _: () = assert!(
    size_of::<Option<Connection>>() == 200,
    "see ARCHITECTURE.md on memory"
);

impl Direction {
    /// The other way.
    pub fn turned(self) -> Self {
        match self {
            Self::Forward => Self::Reverse,
            Self::Reverse => Self::Forward,
        }
    }
}

impl Connection {
    /// A connection of which nothing has been seen yet.
    pub fn new(
        protocol: Protocol,
        client_side: ClientSide,
        mirror_side: MirrorSide,
        aggregate: AggregateId,
        now: Tick,
    ) -> Self {
        Self {
            client_side,
            mirror_side,
            differences: differences(&client_side, &mirror_side),
            protocol,
            aggregate,
            state: if protocol == Protocol::Tcp {
                State::Opening
            } else {
                State::Active
            },
            last_activity: now,
            opened: now,
            talk: Talk::default(),
            last_data: None,
            is_moving: false,
            is_spliced: false,
            client: TcpProgress::default(),
            mirror: TcpProgress::default(),
            timing: Timing::default(),
            forward_traffic: TrafficCount::default(),
            reverse_traffic: TrafficCount::default(),
        }
    }

    /// The pair that the client knows.
    pub fn client_side(&self) -> &ClientSide {
        &self.client_side
    }

    /// The pair that the mirror knows.
    pub fn mirror_side(&self) -> &MirrorSide {
        &self.mirror_side
    }

    /// Its protocol.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// What its packets look like that go this way, as they come.
    pub fn flow(&self, direction: Direction) -> Flow {
        match direction {
            Direction::Forward => self.client_side.flow(self.protocol),
            Direction::Reverse => self.mirror_side.flow(self.protocol),
        }
    }

    /// Whether [`Connection::flow`] is this one.
    pub fn has_flow(&self, direction: Direction, flow: &Flow) -> bool {
        let (source, destination) = match direction {
            Direction::Forward => (&self.client_side.client, &self.client_side.service),
            Direction::Reverse => (&self.mirror_side.mirror, &self.mirror_side.proxy),
        };
        *source == flow.source && *destination == flow.destination && self.protocol == flow.protocol
    }

    /// What is written into a packet that goes this way.
    pub fn translation(&self, direction: Direction) -> Translation {
        match direction {
            Direction::Forward => Translation {
                source: self.mirror_side.proxy,
                destination: self.mirror_side.mirror,
                differences: self.differences,
            },
            Direction::Reverse => Translation {
                source: self.client_side.service,
                destination: self.client_side.client,
                differences: self.differences.reversed(),
            },
        }
    }

    /// Reads a bit of each of its cache lines, so that all are in the cache. The number means nothing.
    pub(super) fn touch(&self) -> u64 {
        // From the first field to the last, less than 64 bytes apart.
        self.reverse_traffic.packets
            ^ u64::from(self.client_side.service.port)
            ^ u64::from(self.mirror_side.mirror.port)
            ^ u64::from(self.client.sent)
            ^ u64::from(self.timing.asked)
            ^ self.forward_traffic.packets
            ^ self.forward_traffic.bytes
    }

    pub(super) fn set_mirror_side(&mut self, mirror_side: MirrorSide) {
        self.differences = differences(&self.client_side, &mirror_side);
        self.mirror_side = mirror_side;
        // What has been measured so far was another mirror's.
        self.timing.sampled = None;
        self.timing.mirror_handshake = None;
        self.timing.mirror_rtt = None;
    }
}

fn differences(client_side: &ClientSide, mirror_side: &MirrorSide) -> Differences {
    Differences::between(
        (client_side.client, client_side.service),
        (mirror_side.proxy, mirror_side.mirror),
    )
}
