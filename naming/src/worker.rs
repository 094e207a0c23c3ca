//! The loop of one worker: it has a socket at each of the server's addresses, sockets towards the
//! upstreams, and the flights of the queries that came to it. Nothing is shared with other workers but
//! the table, which is read, and counters.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use dns_question::{Header, Question};
use ipnet::IpNet;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::answer::{Asked, Follow, Moment, Outcome, Rules, Transport, failure};
use crate::counters::{Count, Counters};
use crate::limit::RateLimit;
use crate::passing::{FlightId, Landed, LaneId, Limits, Overdue, Passing, UpstreamId};
use crate::query_log::{self, QueryLog};
use crate::table::Table;
use crate::udp::{Bound, Inbox, Lanes, Listener, Local};

/// Bytes of the longest answer that an upstream may give.
const MAX_ANSWER: usize = 65_535;

/// How often sockets that are no longer needed are looked for.
const TIDY_INTERVAL: Duration = Duration::from_secs(1);

/// What lets a worker be told from its sockets' numbers in epoll: the first lane's number.
const FIRST_LANE: u64 = 1 << 32;
/// The number of the descriptor that ends a worker.
const STOP: u64 = u64::MAX;

/// What all workers share.
#[derive(Debug)]
pub struct Shared {
    /// The listed names.
    pub table: ArcSwap<Table>,
    /// How queries are answered.
    pub rules: Rules,
    /// Whom queries are passed to.
    pub upstreams: Vec<SocketAddr>,
    /// The most answers a second for each prefix of clients, of all workers together; none: no limit.
    pub rate_limit: Option<u32>,
    /// Whom the rate limit doesn't concern.
    pub rate_limit_exempt: Vec<IpNet>,
    /// Where queries are written down.
    pub query_log: Option<QueryLog>,
    /// What each worker counts, and last what is counted over TCP.
    pub counters: Vec<Counters>,
}

impl Shared {
    /// Writes a query down, if queries are.
    pub fn log(&self, counters: &Counters, asked: &Asked<'_>, done: Count) {
        let Some(log) = &self.query_log else {
            return;
        };
        let end = Question::read(asked.message).map_or(0, |question| question.end());
        let is_put = log.put(query_log::Entry {
            at: SystemTime::now(),
            client: asked.client,
            transport: asked.transport,
            query: asked
                .message
                .get(..end.max(Header::LENGTH))
                .unwrap_or(asked.message)
                .into(),
            done,
        });
        if !is_put {
            counters.count(Count::Unlogged);
        }
    }
}

/// What there is to a query at this moment.
pub fn moment(now: Instant, random: u64) -> Moment {
    // Before 1970 cookies would fail, and nothing else.
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Moment {
        now,
        seconds: since_1970.map_or(0, |time| time.as_secs() as u32),
        random,
    }
}

/// Workers that run.
#[derive(Debug)]
pub struct Workers {
    stop: Arc<Stop>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

#[derive(Debug)]
struct Stop {
    is_wanted: AtomicBool,
    /// Readable once the workers are to end.
    bell: EventFd,
}

/// Who waits for an answer of the DNS.
#[derive(Debug)]
struct Waiting {
    listener: usize,
    client: SocketAddr,
    local: Option<Local>,
    /// Only a part of the answer is waited for.
    follow: Option<Box<Follow>>,
}

impl Workers {
    /// Starts a thread for each of the lists of listeners.
    ///
    /// # Errors
    /// The system has no descriptors or threads left.
    pub fn start(
        listeners: Vec<Vec<Bound>>,
        shared: &Arc<Shared>,
        limits: Limits,
    ) -> io::Result<Self> {
        let bell =
            EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let stop = Arc::new(Stop {
            is_wanted: AtomicBool::new(false),
            bell,
        });
        let mut workers = Self {
            stop,
            threads: Vec::new(),
        };
        for (number, listeners) in listeners.into_iter().enumerate() {
            let (shared, stop) = (Arc::clone(shared), Arc::clone(&workers.stop));
            let limits = (number, limits);
            let thread = thread::Builder::new()
                .name(format!("worker {number}"))
                .spawn(move || Worker::new(listeners, shared, limits, stop)?.run());
            match thread {
                Ok(thread) => workers.threads.push(thread),
                Err(error) => {
                    workers.stop();
                    return Err(error);
                }
            }
        }
        Ok(workers)
    }

    /// Whether one has ended by itself, which none should.
    pub fn has_ended(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Ends all, and gives the first error that any of them had.
    pub fn stop(self) -> Option<io::Error> {
        self.stop.is_wanted.store(true, Ordering::Release);
        // A full counter rings as well.
        let _ = self.stop.bell.write(1);
        let ends = self.threads.into_iter().map(JoinHandle::join);
        ends.filter_map(|end| match end {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(_) => Some(io::Error::other("a worker has panicked")),
        })
        .next()
    }
}

struct Worker {
    number: usize,
    limit: Option<RateLimit>,
    listeners: Vec<Listener>,
    lanes: Lanes,
    /// What has come from upstreams.
    answers: Inbox<()>,
    passing: Passing<Waiting>,
    shared: Arc<Shared>,
    random: StdRng,
    epoll: Epoll,
    stop: Arc<Stop>,
}

impl Worker {
    fn new(
        listeners: Vec<Bound>,
        shared: Arc<Shared>,
        (number, limits): (usize, Limits),
        stop: Arc<Stop>,
    ) -> io::Result<Self> {
        let listeners: Vec<Listener> = listeners.into_iter().map(Listener::from).collect();
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for (number, listener) in (0..).zip(&listeners) {
            epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, number))?;
        }
        epoll.add(
            stop.bell.as_fd(),
            EpollEvent::new(EpollFlags::EPOLLIN, STOP),
        )?;
        let workers = shared.counters.len().saturating_sub(1).max(1) as u32;
        let limit = shared.rate_limit.map(|limit| {
            RateLimit::new(
                limit.div_ceil(workers),
                shared.rate_limit_exempt.clone(),
                Instant::now(),
            )
        });
        Ok(Self {
            number,
            limit,
            listeners,
            lanes: Lanes::new(shared.upstreams.clone()),
            answers: Inbox::new(MAX_ANSWER, false),
            passing: Passing::new(limits),
            shared,
            random: StdRng::from_os_rng(),
            epoll,
            stop,
        })
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        let mut tidied = Instant::now();
        while !self.stop.is_wanted.load(Ordering::Acquire) {
            let ready = match self.epoll.wait(&mut events, self.patience()) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => 0,
                Err(errno) => return Err(errno.into()),
            };
            let now = Instant::now();
            for event in &events[..ready] {
                match event.data() {
                    STOP => return Ok(()),
                    number @ FIRST_LANE.. => self.receive_answers(LaneId(number - FIRST_LANE), now),
                    number => self.receive_queries(number as usize, now),
                }
            }
            self.look_after_overdue(now);
            self.lanes.send();
            let counters = &self.shared.counters[self.number];
            for listener in &mut self.listeners {
                let unsent = listener.send();
                if unsent > 0 {
                    counters.add(Count::Unsent, unsent);
                }
            }
            if now.saturating_duration_since(tidied) >= TIDY_INTERVAL {
                tidied = now;
                let passing = &self.passing;
                self.lanes.close_idle(|lane| passing.is_lane_idle(lane));
            }
        }
        Ok(())
    }

    /// How long to sleep when nothing comes.
    fn patience(&self) -> EpollTimeout {
        let Some(deadline) = self.passing.next_deadline() else {
            return EpollTimeout::NONE;
        };
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, or the last part of a millisecond would be spent looking again and again.
        let milliseconds = left.as_millis().saturating_add(1);
        EpollTimeout::try_from(milliseconds).unwrap_or(EpollTimeout::MAX)
    }

    fn receive_queries(&mut self, number: usize, now: Instant) {
        let Some(listener) = self.listeners.get_mut(number) else {
            return;
        };
        if !listener.receive() {
            return;
        }
        let table = self.shared.table.load();
        let counters = &self.shared.counters[self.number];
        let mut moment = moment(now, 0);
        let Listener { inbox, outbox, .. } = listener;
        for (received, message) in inbox.datagrams() {
            let Some(client) = received.from() else {
                continue;
            };
            let asked = Asked {
                message,
                client,
                transport: Transport::Udp,
            };
            moment.random = self.random.random();
            let outcome = outbox.put(Some(client), received.local, |out| {
                let rules = &self.shared.rules;
                rules.handle(&asked, &table, moment, self.limit.as_mut(), out)
            });
            let count = Count::from(&outcome);
            counters.count(count);
            self.shared.log(counters, &asked, count);
            let follow = match outcome {
                Outcome::Answered(_) | Outcome::Dropped(_) => continue,
                Outcome::Pass => None,
                Outcome::Follow(follow) => Some(follow),
            };
            let passed = match &follow {
                Some(follow) => follow.query.clone(),
                None => message.to_vec(),
            };
            let waiting = Waiting {
                listener: number,
                client,
                local: received.local,
                follow,
            };
            match self.passing.begin(passed, waiting, now) {
                Ok((flight, upstream)) => send(
                    &mut self.lanes,
                    &mut self.passing,
                    &self.epoll,
                    &mut self.random,
                    (flight, upstream),
                    now,
                ),
                Err(_) => {
                    counters.count(Count::Overloaded);
                    outbox.put(Some(client), received.local, |out| failure(message, out));
                }
            }
        }
    }

    fn receive_answers(&mut self, id: LaneId, now: Instant) {
        let Some(lane) = self.lanes.get_mut(id) else {
            return;
        };
        match self.answers.receive(lane.as_fd()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => {
                self.lanes.retire(id);
                self.passing.lane_is_refused(id);
                return;
            }
        }
        let counters = &self.shared.counters[self.number];
        for (_, message) in self.answers.datagrams() {
            let (landed, answered) = match self.passing.answer(id, message, now) {
                Ok(landed) => landed,
                Err(stray) => {
                    counters.count(stray);
                    continue;
                }
            };
            counters.count(Count::Returned);
            counters.measure(answered.upstream, answered.latency);
            let Landed { waiting, query } = landed;
            let Some(listener) = self.listeners.get_mut(waiting.listener) else {
                continue;
            };
            let write = |out: &mut Vec<u8>| match &waiting.follow {
                Some(follow) => follow.join(message, out),
                None => {
                    // The answer as it came, with the client's id.
                    out.extend_from_slice(query.get(..2).unwrap_or_default());
                    out.extend_from_slice(message.get(2..).unwrap_or_default());
                }
            };
            listener
                .outbox
                .put(Some(waiting.client), waiting.local, write);
        }
    }

    fn look_after_overdue(&mut self, now: Instant) {
        let counters = &self.shared.counters[self.number];
        while let Some(overdue) = self.passing.overdue(now) {
            match overdue {
                Overdue::Again(flight) => {
                    let Some(upstream) = self.passing.upstream(flight) else {
                        continue;
                    };
                    counters.count(Count::Repeated);
                    send(
                        &mut self.lanes,
                        &mut self.passing,
                        &self.epoll,
                        &mut self.random,
                        (flight, upstream),
                        now,
                    );
                }
                Overdue::GivenUp(Landed { waiting, query }) => {
                    counters.count(Count::Unanswered);
                    let Some(listener) = self.listeners.get_mut(waiting.listener) else {
                        continue;
                    };
                    let write = |out: &mut Vec<u8>| match &waiting.follow {
                        Some(follow) => follow.fail(out),
                        None => failure(&query, out),
                    };
                    listener
                        .outbox
                        .put(Some(waiting.client), waiting.local, write);
                }
            }
        }
    }
}

/// Puts a flight into the outbox of a lane to this upstream.
fn send(
    lanes: &mut Lanes,
    passing: &mut Passing<Waiting>,
    epoll: &Epoll,
    random: &mut StdRng,
    (flight, upstream): (FlightId, UpstreamId),
    now: Instant,
) {
    let watch = |lane: &crate::udp::Lane| {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, FIRST_LANE + lane.id.0);
        Ok(epoll.add(lane, event)?)
    };
    match lanes.pick(upstream, now, random, watch) {
        Ok(lane) => {
            let id = lane.id;
            lane.outbox.put(None, None, |out| {
                passing.send(flight, Some(id), now, random, out)
            });
        }
        // Counts as an attempt without an answer.
        Err(_) => passing.send(flight, None, now, random, &mut Vec::new()),
    }
}
