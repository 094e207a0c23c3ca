//! The sockets that queries are passed on by. Each is connected to one upstream, from a random port, so that
//! the kernel lets in nothing else and tells when nobody listens there.
//!
//! Whoever wants to forge an answer must guess port and id (RFC 5452). A few sockets are open for each
//! upstream, one of which is picked at random for each batch; after so many queries, or so long, another
//! takes its place.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket};
use rand::Rng;

use super::{Outbox, listener};
use crate::passing::{LaneId, UpstreamId};

/// Sockets that are open for each upstream.
const POOL: usize = 8;

/// Queries after which a socket is replaced.
const MAX_USES: u32 = 512;

/// Time after which a socket is replaced.
const MAX_AGE: Duration = Duration::from_secs(10);

/// How often a free port is looked for before the kernel is left to choose one.
const MAX_DRAWS: usize = 8;

/// One socket.
#[derive(Debug)]
pub struct Lane {
    /// Its number.
    pub id: LaneId,
    /// Whom it is connected to.
    pub upstream: UpstreamId,
    socket: OwnedFd,
    opened: Instant,
    uses: u32,
    /// What is to go.
    pub outbox: Outbox,
}

impl AsFd for Lane {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Lane {
    /// Sends what is to go. What can't be sent counts as lost on its way.
    pub fn send(&mut self) {
        self.outbox.send(self.socket.as_fd());
    }
}

/// All sockets of one worker.
#[derive(Debug)]
pub struct Lanes {
    upstreams: Vec<SocketAddr>,
    lanes: HashMap<LaneId, Lane>,
    /// Those that are in use, by upstream. The others only wait for answers.
    pools: Vec<Vec<LaneId>>,
    /// The one that was picked for this batch, by upstream.
    picked: Vec<Option<LaneId>>,
    opened: u64,
}

impl Lanes {
    /// None is open yet.
    pub fn new(upstreams: Vec<SocketAddr>) -> Self {
        Self {
            lanes: HashMap::new(),
            pools: vec![Vec::new(); upstreams.len()],
            picked: vec![None; upstreams.len()],
            opened: 0,
            upstreams,
        }
    }

    /// The lane with this number, if it is still open.
    pub fn get_mut(&mut self, id: LaneId) -> Option<&mut Lane> {
        self.lanes.get_mut(&id)
    }

    /// A lane to an upstream, the same one until [`Lanes::send`]; `open` is called with one that was opened.
    ///
    /// # Errors
    /// There are no descriptors left, no way to the upstream, or what `open` says.
    pub fn pick(
        &mut self,
        upstream: UpstreamId,
        now: Instant,
        random: &mut impl Rng,
        open: impl FnOnce(&Lane) -> io::Result<()>,
    ) -> io::Result<&mut Lane> {
        let place = upstream.0;
        if self.picked[place].is_none() {
            let pool = &mut self.pools[place];
            let number = random.random_range(0..POOL);
            let lanes = &self.lanes;
            let is_fresh = |id: &LaneId| {
                lanes.get(id).is_some_and(|lane| {
                    lane.uses < MAX_USES && now.saturating_duration_since(lane.opened) < MAX_AGE
                })
            };
            let id = match pool.get(number).copied().filter(is_fresh) {
                Some(id) => id,
                None => {
                    let socket = connected(self.upstreams[place], random)?;
                    let id = LaneId(self.opened);
                    self.opened += 1;
                    let lane = Lane {
                        id,
                        upstream,
                        socket,
                        opened: now,
                        uses: 0,
                        outbox: Outbox::default(),
                    };
                    open(&lane)?;
                    self.lanes.insert(id, lane);
                    match pool.get_mut(number) {
                        Some(old) => *old = id,
                        None => pool.push(id),
                    }
                    id
                }
            };
            self.picked[place] = Some(id);
        }
        let lane = self.picked[place].and_then(|id| self.lanes.get_mut(&id));
        let lane = lane.ok_or(io::ErrorKind::NotConnected)?;
        lane.uses += 1;
        Ok(lane)
    }

    /// Sends what waits in all lanes.
    pub fn send(&mut self) {
        for picked in &mut self.picked {
            if let Some(lane) = picked.take().and_then(|id| self.lanes.get_mut(&id)) {
                lane.send();
            }
        }
    }

    /// Uses a lane no more.
    pub fn retire(&mut self, id: LaneId) {
        for pool in &mut self.pools {
            pool.retain(|lane| *lane != id);
        }
        for picked in &mut self.picked {
            picked.take_if(|lane| *lane == id);
        }
    }

    /// Closes the lanes that are no longer used and that nobody waits at.
    pub fn close_idle(&mut self, is_idle: impl Fn(LaneId) -> bool) {
        let pools = &self.pools;
        self.lanes
            .retain(|id, _| pools.iter().any(|pool| pool.contains(id)) || !is_idle(*id));
    }
}

/// A socket that is connected to `to`, from a random port.
fn connected(to: SocketAddr, random: &mut impl Rng) -> io::Result<OwnedFd> {
    let (family, any) = match to {
        SocketAddr::V4(_) => (AddressFamily::Inet, Ipv4Addr::UNSPECIFIED.into()),
        SocketAddr::V6(_) => (AddressFamily::Inet6, Ipv6Addr::UNSPECIFIED.into()),
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, SockType::Datagram, flags, None)?;
    listener::enlarge(&socket);
    let mut bound = Err(Errno::EADDRINUSE);
    for draw in 0..=MAX_DRAWS {
        let port = if draw < MAX_DRAWS {
            random.random_range(1024..=u16::MAX)
        } else {
            0
        };
        bound = bind(
            socket.as_raw_fd(),
            &SockaddrStorage::from(SocketAddr::new(any, port)),
        );
        if bound != Err(Errno::EADDRINUSE) && bound != Err(Errno::EACCES) {
            break;
        }
    }
    bound?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(socket)
}
