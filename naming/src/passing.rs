//! The queries that were passed on to the DNS: who waits for their answers, to whom they were sent, and what
//! becomes of those that aren't answered. No sockets and no clock: the caller sends and receives, and tells
//! the time.
//!
//! A *flight* is one query from its coming to its answer. It is sent with an id of our own over a *lane*, a
//! socket with a random port, and if no answer comes in time again over another one, to the next upstream.
//! An answer that comes late counts as long as the flight lasts. To be taken for an answer, a message must
//! come in on a lane that the flight was sent by, with its id and its question (RFC 5452); the lane's
//! socket is connected, so it comes from the upstream's address.
//!
//! An upstream that lets three queries in a row go unanswered is *down*: it gets one query every few
//! seconds, until it answers one. Which of the others takes its place is told by their order.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use dns_question::{Header, Question};
use rand::Rng;

/// The most upstreams that there can be.
pub const MAX_UPSTREAMS: usize = 16;

/// How many times a flight is sent at most.
const MAX_ATTEMPTS: usize = 4;

/// How many queries in a row an upstream may leave unanswered.
const MAX_SILENCES: u32 = 3;

/// How long an upstream that is down isn't asked.
const DOWN_TIME: Duration = Duration::from_secs(3);

/// How often an id is drawn before a lane counts as full.
const MAX_DRAWS: usize = 16;

/// A socket that queries leave by, by the caller's number, which is never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LaneId(pub u64);

/// An upstream, by its place in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UpstreamId(pub usize);

/// How queries are passed on.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How many upstreams there are; from 1 to [`MAX_UPSTREAMS`].
    pub upstreams: usize,
    /// How long an answer is waited for before the query is sent again.
    pub timeout: Duration,
    /// The most flights at a time.
    pub max_flights: usize,
}

/// A flight under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlightId {
    slot: u32,
    generation: u32,
}

/// Why a query can't be passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// Why a message is no answer to any flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stray {
    /// It is no answer, or hardly a message.
    NotAnAnswer,
    /// No flight went out by this lane with this id; or it has been answered or given up.
    UnknownId,
    /// The flight with this id asked for something else.
    OtherQuestion,
}

/// A flight that has ended.
#[derive(Debug)]
pub struct Landed<W> {
    /// Who waits for it.
    pub waiting: W,
    /// The query as it came from the client.
    pub query: Vec<u8>,
}

/// What an answer was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answered {
    /// Who gave it.
    pub upstream: UpstreamId,
    /// How long it took, from when the query was last sent to that lane.
    pub latency: Duration,
}

/// What becomes of a flight whose time is up.
#[derive(Debug)]
pub enum Overdue<W> {
    /// It is to be sent once more.
    Again(FlightId),
    /// It has been sent often enough.
    GivenUp(Landed<W>),
}

/// All flights; `W` is whatever tells who waits.
#[derive(Debug)]
pub struct Passing<W> {
    limits: Limits,
    upstreams: Vec<Upstream>,
    slots: Vec<Slot<W>>,
    free: Vec<u32>,
    by_tag: HashMap<Tag, u32, ahash::RandomState>,
    /// How many attempts each lane still waits for.
    lanes: HashMap<LaneId, usize, ahash::RandomState>,
    /// When each attempt is overdue, in this order, as all have the same time.
    deadlines: VecDeque<(Instant, FlightId)>,
    /// Flights that are to be looked at before their time.
    hurried: VecDeque<FlightId>,
    flights: usize,
}

/// What tells an attempt among all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Tag {
    lane: LaneId,
    id: u16,
}

#[derive(Debug, Default)]
struct Upstream {
    silences: u32,
    down_until: Option<Instant>,
}

#[derive(Debug)]
struct Slot<W> {
    generation: u32,
    flight: Option<Flight<W>>,
}

#[derive(Debug)]
struct Flight<W> {
    waiting: W,
    query: Vec<u8>,
    attempts: Vec<Attempt>,
    /// How often it was tried, also where it couldn't be sent.
    tries: usize,
    /// The upstream that is to be asked next.
    upstream: UpstreamId,
}

#[derive(Debug, Clone, Copy)]
struct Attempt {
    tag: Tag,
    upstream: UpstreamId,
    sent: Instant,
}

impl<W> Passing<W> {
    /// Nothing is under way yet.
    pub fn new(limits: Limits) -> Self {
        let upstreams = limits.upstreams.clamp(1, MAX_UPSTREAMS);
        Self {
            limits,
            upstreams: (0..upstreams).map(|_| Upstream::default()).collect(),
            slots: Vec::new(),
            free: Vec::new(),
            by_tag: HashMap::default(),
            lanes: HashMap::default(),
            deadlines: VecDeque::new(),
            hurried: VecDeque::new(),
            flights: 0,
        }
    }

    /// How many flights are under way.
    pub fn flights(&self) -> usize {
        self.flights
    }

    /// Begins a flight for a query with a question, and says whom to send it to.
    ///
    /// # Errors
    /// As many as there may be are under way.
    pub fn begin(
        &mut self,
        query: Vec<u8>,
        waiting: W,
        now: Instant,
    ) -> Result<(FlightId, UpstreamId), Full> {
        if self.flights >= self.limits.max_flights {
            return Err(Full);
        }
        let upstream = self.choose(&[], now);
        let flight = Flight {
            waiting,
            query,
            attempts: Vec::with_capacity(1),
            tries: 0,
            upstream,
        };
        self.flights += 1;
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(Slot {
                    generation: 0,
                    flight: None,
                });
                // At most `max_flights`, which fits.
                (self.slots.len() - 1) as u32
            }
        };
        let place = &mut self.slots[slot as usize];
        place.flight = Some(flight);
        let generation = place.generation;
        Ok((FlightId { slot, generation }, upstream))
    }

    /// Sends a flight by a lane: appends the message to `out`, with a random id. Without a lane, or where
    /// the lane has no id left, the attempt counts as one that wasn't answered.
    pub fn send(
        &mut self,
        id: FlightId,
        lane: Option<LaneId>,
        now: Instant,
        random: &mut impl Rng,
        out: &mut Vec<u8>,
    ) {
        let Some(flight) = flight_mut(&mut self.slots, id) else {
            return;
        };
        flight.tries += 1;
        let tag = lane.and_then(|lane| {
            (0..MAX_DRAWS)
                .map(|_| Tag {
                    lane,
                    id: random.random(),
                })
                .find(|tag| !self.by_tag.contains_key(tag))
        });
        let Some(tag) = tag else {
            self.hurried.push_back(id);
            return;
        };
        self.by_tag.insert(tag, id.slot);
        *self.lanes.entry(tag.lane).or_default() += 1;
        flight.attempts.push(Attempt {
            tag,
            upstream: flight.upstream,
            sent: now,
        });
        out.extend(tag.id.to_be_bytes());
        out.extend(flight.query.get(2..).unwrap_or_default());
        self.deadlines.push_back((now + self.limits.timeout, id));
    }

    /// Ends the flight that a message answers. The message is the answer as it stands, but for the id, which
    /// is the first two bytes of the query.
    ///
    /// # Errors
    /// It answers none.
    pub fn answer(
        &mut self,
        lane: LaneId,
        message: &[u8],
        now: Instant,
    ) -> Result<(Landed<W>, Answered), Stray> {
        let header = Header::read(message)
            .filter(Header::is_answer)
            .ok_or(Stray::NotAnAnswer)?;
        let tag = Tag {
            lane,
            id: header.id(),
        };
        let slot = *self.by_tag.get(&tag).ok_or(Stray::UnknownId)?;
        let place = self.slots.get_mut(slot as usize);
        let Some(Slot {
            flight: Some(flight),
            generation,
        }) = place
        else {
            return Err(Stray::UnknownId);
        };
        if !fits(&flight.query, header, message) {
            return Err(Stray::OtherQuestion);
        }
        let attempt = flight.attempts.iter().find(|attempt| attempt.tag == tag);
        let attempt = *attempt.ok_or(Stray::UnknownId)?;
        let id = FlightId {
            slot,
            generation: *generation,
        };
        if let Some(upstream) = self.upstreams.get_mut(attempt.upstream.0) {
            *upstream = Upstream::default();
        }
        let landed = self.end(id).ok_or(Stray::UnknownId)?;
        let answered = Answered {
            upstream: attempt.upstream,
            latency: now.saturating_duration_since(attempt.sent),
        };
        Ok((landed, answered))
    }

    /// Nobody listens at the far end of a lane: what went out by it last needn't wait.
    pub fn lane_is_refused(&mut self, lane: LaneId) {
        for (slot, place) in (0..).zip(&self.slots) {
            let last = place
                .flight
                .as_ref()
                .and_then(|flight| flight.attempts.last());
            if last.is_some_and(|attempt| attempt.tag.lane == lane) {
                self.hurried.push_back(FlightId {
                    slot,
                    generation: place.generation,
                });
            }
        }
    }

    /// The next flight whose time is up. To be called until there is none.
    pub fn overdue(&mut self, now: Instant) -> Option<Overdue<W>> {
        loop {
            let id = match self.hurried.pop_front() {
                Some(id) => id,
                None => {
                    let (deadline, id) = *self.deadlines.front()?;
                    let flight = flight_mut(&mut self.slots, id);
                    let last = flight.and_then(|flight| flight.attempts.last().copied());
                    if last.is_some() && deadline > now {
                        return None;
                    }
                    self.deadlines.pop_front();
                    // Answered, or sent again before its time was up.
                    if last.is_none_or(|attempt| attempt.sent + self.limits.timeout > deadline) {
                        continue;
                    }
                    id
                }
            };
            let Some(flight) = flight_mut(&mut self.slots, id) else {
                continue;
            };
            let asked: Vec<UpstreamId> = flight
                .attempts
                .iter()
                .map(|attempt| attempt.upstream)
                .collect();
            let (tries, upstream) = (flight.tries, flight.upstream);
            self.silent(upstream, now);
            // Each upstream once, but even a single one twice.
            if tries >= self.upstreams.len().clamp(2, MAX_ATTEMPTS) {
                match self.end(id) {
                    Some(landed) => return Some(Overdue::GivenUp(landed)),
                    None => continue,
                }
            }
            let next = self.choose(&asked, now);
            if let Some(flight) = flight_mut(&mut self.slots, id) {
                flight.upstream = next;
            }
            return Some(Overdue::Again(id));
        }
    }

    /// When [`Passing::overdue`] may have something; `None`: nothing is under way.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.front().map(|(deadline, _)| *deadline)
    }

    /// Whether nothing that went out by this lane is still waited for.
    pub fn is_lane_idle(&self, lane: LaneId) -> bool {
        !self.lanes.contains_key(&lane)
    }

    /// Whom a flight is to be sent to.
    pub fn upstream(&self, id: FlightId) -> Option<UpstreamId> {
        let place = self.slots.get(id.slot as usize)?;
        (place.generation == id.generation).then_some(place.flight.as_ref()?.upstream)
    }

    /// Whether an upstream is taken for down.
    pub fn is_down(&self, upstream: UpstreamId) -> bool {
        self.upstreams
            .get(upstream.0)
            .is_some_and(|upstream| upstream.down_until.is_some())
    }

    /// The first upstream that isn't down, other than those that were asked already; if there is none, the
    /// one that was asked least or is down for the shortest time.
    fn choose(&mut self, asked: &[UpstreamId], now: Instant) -> UpstreamId {
        let times_asked = |number: usize| asked.iter().filter(|asked| asked.0 == number).count();
        let best = self
            .upstreams
            .iter()
            .enumerate()
            .min_by_key(|(number, upstream)| {
                let down_for = upstream
                    .down_until
                    .map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
                (!down_for.is_zero(), times_asked(*number), down_for)
            })
            .map_or(0, |(number, _)| number);
        // Whoever was down gets this one query, and no other until it is answered or time has passed.
        if let Some(Upstream {
            down_until: Some(until),
            ..
        }) = self.upstreams.get_mut(best)
        {
            *until = (*until).max(now + DOWN_TIME);
        }
        UpstreamId(best)
    }

    /// A query to this upstream has not been answered.
    fn silent(&mut self, upstream: UpstreamId, now: Instant) {
        if let Some(upstream) = self.upstreams.get_mut(upstream.0) {
            upstream.silences = upstream.silences.saturating_add(1);
            if upstream.silences >= MAX_SILENCES && upstream.down_until.is_none() {
                upstream.down_until = Some(now + DOWN_TIME);
            }
        }
    }

    fn end(&mut self, id: FlightId) -> Option<Landed<W>> {
        let place = self.slots.get_mut(id.slot as usize)?;
        if place.generation != id.generation {
            return None;
        }
        let flight = place.flight.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(id.slot);
        self.flights -= 1;
        for attempt in &flight.attempts {
            self.by_tag.remove(&attempt.tag);
            if let Some(waiting) = self.lanes.get_mut(&attempt.tag.lane) {
                *waiting -= 1;
                if *waiting == 0 {
                    self.lanes.remove(&attempt.tag.lane);
                }
            }
        }
        Some(Landed {
            waiting: flight.waiting,
            query: flight.query,
        })
    }
}

/// The flight with this id, if it is still under way.
fn flight_mut<W>(slots: &mut [Slot<W>], id: FlightId) -> Option<&mut Flight<W>> {
    slots
        .get_mut(id.slot as usize)
        .filter(|place| place.generation == id.generation)?
        .flight
        .as_mut()
}

/// Whether an answer is one to this query: its question is the same. A server that can't even read a
/// question needn't repeat it.
pub(crate) fn fits(query: &[u8], header: Header<'_>, message: &[u8]) -> bool {
    if header.questions() == 0 {
        return header.response_code() != 0 && header.answers() == 0;
    }
    match (Question::read(query), Question::read(message)) {
        (Ok(asked), Ok(answered)) => header.questions() == 1 && asked.is_same(&answered),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    /// Two upstreams that are never there unless told so.
    struct Story {
        passing: Passing<&'static str>,
        random: StdRng,
        now: Instant,
    }

    const TIMEOUT: Duration = Duration::from_secs(1);

    impl Story {
        fn new(upstreams: usize, max_flights: usize) -> Self {
            Self {
                passing: Passing::new(Limits {
                    upstreams,
                    timeout: TIMEOUT,
                    max_flights,
                }),
                random: StdRng::seed_from_u64(7),
                now: Instant::now(),
            }
        }

        /// Begins a flight and sends it by the upstream's lane; gives what goes out.
        fn begin(
            &mut self,
            waiting: &'static str,
            query: &[u8],
        ) -> (FlightId, UpstreamId, Vec<u8>) {
            let (id, upstream) = self
                .passing
                .begin(query.to_vec(), waiting, self.now)
                .unwrap();
            (id, upstream, self.send(id, upstream))
        }

        fn send(&mut self, id: FlightId, upstream: UpstreamId) -> Vec<u8> {
            let mut out = Vec::new();
            let lane = Some(lane(upstream));
            self.passing
                .send(id, lane, self.now, &mut self.random, &mut out);
            out
        }

        fn answer(&mut self, upstream: usize, message: &[u8]) -> Result<&'static str, Stray> {
            let lane = lane(UpstreamId(upstream));
            let (landed, answered) = self.passing.answer(lane, message, self.now)?;
            assert_eq!(answered.upstream, UpstreamId(upstream));
            Ok(landed.waiting)
        }

        /// Lets the time pass, and sends again what is to be sent again.
        fn wait(&mut self, time: Duration) -> Vec<Result<(UpstreamId, Vec<u8>), &'static str>> {
            self.now += time;
            let mut happened = Vec::new();
            while let Some(overdue) = self.passing.overdue(self.now) {
                happened.push(match overdue {
                    Overdue::Again(id) => {
                        let upstream = self.passing.upstream(id).unwrap();
                        Ok((upstream, self.send(id, upstream)))
                    }
                    Overdue::GivenUp(landed) => Err(landed.waiting),
                });
            }
            happened
        }
    }

    fn lane(upstream: UpstreamId) -> LaneId {
        LaneId(100 + upstream.0 as u64)
    }

    fn query(name: &str) -> Vec<u8> {
        let name = dns_question::WireName::from_text(name).unwrap();
        let header = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        [&header, name.as_bytes(), &[0, 1, 0, 1]].concat()
    }

    fn answer_to(sent: &[u8]) -> Vec<u8> {
        let mut answer = sent.to_vec();
        answer[2] |= 0x80;
        answer
    }

    #[test]
    fn an_answer_finds_who_waits_for_it() {
        let mut story = Story::new(1, 10);
        let (_, upstream, a) = story.begin("a", &query("a.test"));
        assert_eq!(upstream, UpstreamId(0));
        let (_, _, b) = story.begin("b", &query("b.test"));
        assert_eq!(a[2..], query("a.test")[2..], "only the id is another");
        assert_ne!(a[..2], b[..2]);
        assert_eq!(story.answer(0, &answer_to(&b)), Ok("b"));
        assert_eq!(
            story.answer(0, &answer_to(&b)),
            Err(Stray::UnknownId),
            "only once"
        );
        assert_eq!(story.answer(0, &answer_to(&a)), Ok("a"));
        assert_eq!(story.passing.flights(), 0);
        assert!(story.wait(TIMEOUT).is_empty());
        assert_eq!(story.passing.next_deadline(), None);
        assert!(story.passing.is_lane_idle(lane(UpstreamId(0))));
    }

    #[test]
    fn a_forgery_changes_nothing() {
        let mut story = Story::new(2, 10);
        let (_, _, sent) = story.begin("a", &query("a.test"));
        assert_eq!(story.answer(0, &sent), Err(Stray::NotAnAnswer), "a query");
        assert_eq!(story.answer(0, &[]), Err(Stray::NotAnAnswer));
        let mut forged = answer_to(&sent);
        forged[0] ^= 1;
        assert_eq!(story.answer(0, &forged), Err(Stray::UnknownId));
        assert_eq!(
            story.answer(1, &answer_to(&sent)),
            Err(Stray::UnknownId),
            "another lane"
        );
        let mut other = answer_to(&query("b.test"));
        other[..2].copy_from_slice(&sent[..2]);
        assert_eq!(story.answer(0, &other), Err(Stray::OtherQuestion));
        let mut empty = answer_to(&sent)[..12].to_vec();
        empty[5] = 0;
        assert_eq!(
            story.answer(0, &empty),
            Err(Stray::OtherQuestion),
            "without a question"
        );
        // A server that can't read the question says so without it.
        empty[3] = 1;
        assert_eq!(story.answer(0, &empty), Ok("a"));
        // Upper and lower case are the same.
        let (_, _, sent) = story.begin("b", &query("b.test"));
        let mut upper = answer_to(&sent);
        upper[12..].make_ascii_uppercase();
        assert_eq!(story.answer(0, &upper), Ok("b"));
    }

    #[test]
    fn a_silent_upstream_is_replaced_and_tried_again_later() {
        let mut story = Story::new(2, 10);
        let mut first = Vec::new();
        for waiting in ["a", "b", "c"] {
            let (_, upstream, sent) = story.begin(waiting, &query("x.test"));
            assert_eq!(upstream, UpstreamId(0));
            first.push(sent);
        }
        let again = story.wait(TIMEOUT);
        assert_eq!(again.len(), 3);
        for sent in again {
            let (upstream, sent) = sent.unwrap();
            assert_eq!(upstream, UpstreamId(1));
            assert!(story.answer(1, &answer_to(&sent)).is_ok());
        }
        assert_eq!(
            story.answer(0, &answer_to(&first[0])),
            Err(Stray::UnknownId),
            "too late"
        );
        assert!(story.passing.is_down(UpstreamId(0)));
        let (_, upstream, sent) = story.begin("d", &query("x.test"));
        assert_eq!(upstream, UpstreamId(1));
        story.answer(1, &answer_to(&sent)).unwrap();

        // After a while it gets one query, and no second before that is answered.
        story.wait(DOWN_TIME);
        let (_, upstream, sent) = story.begin("e", &query("x.test"));
        assert_eq!(upstream, UpstreamId(0));
        let (_, upstream, _) = story.begin("f", &query("x.test"));
        assert_eq!(upstream, UpstreamId(1));
        story.answer(0, &answer_to(&sent)).unwrap();
        assert!(!story.passing.is_down(UpstreamId(0)));
        let (_, upstream, _) = story.begin("g", &query("x.test"));
        assert_eq!(upstream, UpstreamId(0));
    }

    #[test]
    fn a_late_answer_counts_as_long_as_someone_waits() {
        let mut story = Story::new(1, 10);
        let (_, _, first) = story.begin("a", &query("a.test"));
        let again = story.wait(TIMEOUT);
        let (_, second) = again[0].as_ref().unwrap();
        assert_ne!(first[..2], second[..2], "another id");
        story.wait(TIMEOUT / 2);
        assert_eq!(story.answer(0, &answer_to(&first)), Ok("a"));
        assert_eq!(story.answer(0, &answer_to(second)), Err(Stray::UnknownId));
        assert!(story.wait(TIMEOUT).is_empty());
    }

    #[test]
    fn a_query_fails_in_the_end() {
        for (upstreams, tries) in [(1, 2), (2, 2), (3, 3), (16, 4)] {
            let mut story = Story::new(upstreams, 10);
            story.begin("a", &query("a.test"));
            let mut asked = vec![UpstreamId(0)];
            for _ in 1..tries {
                let [Ok((upstream, _))] = &story.wait(TIMEOUT)[..] else {
                    panic!("{tries}")
                };
                asked.push(*upstream);
            }
            let [Err("a")] = &story.wait(TIMEOUT)[..] else {
                panic!("{tries}")
            };
            assert_eq!(story.passing.flights(), 0);
            asked.dedup();
            assert_eq!(asked.len(), tries.min(upstreams), "each upstream once");
        }
    }

    #[test]
    fn nobody_waits_where_nobody_listens() {
        let mut story = Story::new(2, 10);
        story.begin("a", &query("a.test"));
        story.passing.lane_is_refused(lane(UpstreamId(0)));
        let again = story.wait(Duration::ZERO);
        let [Ok((UpstreamId(1), sent))] = &again[..] else {
            panic!("{again:?}")
        };
        assert_eq!(story.answer(1, &answer_to(sent)), Ok("a"));
        // A lane that can't be opened is the same.
        let (id, _) = story
            .passing
            .begin(query("b.test"), "b", story.now)
            .unwrap();
        story
            .passing
            .send(id, None, story.now, &mut story.random, &mut Vec::new());
        assert!(matches!(&story.wait(Duration::ZERO)[..], [Ok(_)]));
    }

    #[test]
    fn there_are_only_so_many() {
        let mut story = Story::new(1, 2);
        let (_, _, sent) = story.begin("a", &query("a.test"));
        story.begin("b", &query("b.test"));
        assert!(
            story
                .passing
                .begin(query("c.test"), "c", story.now)
                .is_err()
        );
        story.answer(0, &answer_to(&sent)).unwrap();
        story.begin("c", &query("c.test"));
        // Thousands later, nothing has piled up.
        for _ in 0..5000 {
            story.wait(TIMEOUT * 2);
            story.wait(TIMEOUT * 2);
            story.begin("d", &query("d.test"));
        }
        assert!(story.passing.slots.len() <= 2 && story.passing.deadlines.len() <= 4);
        assert!(story.passing.by_tag.len() <= 4 && story.passing.lanes.len() <= 1);
    }
}
