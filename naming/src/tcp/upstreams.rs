//! Passing a query on over TCP, as it came over TCP: over UDP the answer might not fit.

use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use dns_question::Header;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{read_message, write_message};
use crate::counters::Counters;
use crate::passing::{UpstreamId, fits};

/// Connections that are kept for the next query, for each upstream.
const MAX_IDLE: usize = 8;

/// How long one is kept. Servers close theirs after some ten seconds (RFC 7766, section 6.2.3).
const IDLE_TIME: Duration = Duration::from_secs(3);

/// How long an upstream that failed isn't asked first.
const DOWN_TIME: Duration = Duration::from_secs(3);

/// Whom to ask over TCP.
#[derive(Debug)]
pub struct Upstreams {
    upstreams: Vec<Upstream>,
    timeout: Duration,
}

#[derive(Debug)]
struct Upstream {
    address: SocketAddr,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    idle: Vec<(TcpStream, Instant)>,
    down_until: Option<Instant>,
}

impl Upstreams {
    /// Asks these, each of which may take as long as `timeout` to connect, and twice as long to answer, as over
    /// UDP.
    pub fn new(addresses: &[SocketAddr], timeout: Duration) -> Self {
        let upstreams = addresses.iter().map(|address| Upstream {
            address: *address,
            state: Mutex::default(),
        });
        Self {
            upstreams: upstreams.collect(),
            timeout,
        }
    }

    /// The answer to a query as the first upstream that answers gives it, but with the query's id. `None`: none
    /// does.
    pub async fn ask(&self, query: &[u8], counters: Option<&Counters>) -> Option<Vec<u8>> {
        let now = Instant::now();
        let mut order: Vec<(UpstreamId, &Upstream)> = self
            .upstreams
            .iter()
            .enumerate()
            .map(|(number, upstream)| (UpstreamId(number), upstream))
            .collect();
        // Stable: those that are up stay in their order.
        order.sort_by_key(|(_, upstream)| {
            upstream.locked(|state| state.down_until.filter(|until| *until > now))
        });
        for (id, upstream) in order {
            let begun = Instant::now();
            let answer = upstream.ask(query, self.timeout).await.ok();
            upstream.locked(|state| {
                state.down_until = answer.is_none().then(|| Instant::now() + DOWN_TIME);
            });
            if answer.is_some() {
                if let Some(counters) = counters {
                    counters.measure(id, begun.elapsed());
                }
                return answer;
            }
        }
        None
    }
}

impl Upstream {
    async fn ask(&self, query: &[u8], patience: Duration) -> io::Result<Vec<u8>> {
        // One that says nothing says nothing on a new connection either.
        let exchange = async |stream: &mut TcpStream| {
            timeout(2 * patience, exchange(stream, query))
                .await
                .map_err(|_| io::ErrorKind::TimedOut)?
        };
        // A kept connection may have been closed by the other end: that isn't the upstream's failure.
        while let Some(mut stream) = self.locked(take_fresh) {
            match exchange(&mut stream).await {
                Ok(answer) => {
                    self.keep(stream);
                    return Ok(answer);
                }
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(error),
                Err(_) => {}
            }
        }
        let mut stream = timeout(patience, TcpStream::connect(self.address))
            .await
            .map_err(|_| io::ErrorKind::TimedOut)??;
        stream.set_nodelay(true)?;
        let answer = exchange(&mut stream).await?;
        self.keep(stream);
        Ok(answer)
    }

    fn keep(&self, stream: TcpStream) {
        self.locked(|state| {
            if state.idle.len() < MAX_IDLE {
                state.idle.push((stream, Instant::now()));
            }
        });
    }

    fn locked<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A kept connection that isn't too old.
fn take_fresh(state: &mut State) -> Option<TcpStream> {
    let now = Instant::now();
    state
        .idle
        .retain(|(_, since)| now.saturating_duration_since(*since) < IDLE_TIME);
    state.idle.pop().map(|(stream, _)| stream)
}

/// One query and its answer, which must be to its id and question.
async fn exchange(stream: &mut TcpStream, query: &[u8]) -> io::Result<Vec<u8>> {
    let (client_id, rest) = query
        .split_first_chunk::<2>()
        .ok_or(io::ErrorKind::InvalidInput)?;
    let id: [u8; 2] = rand::random();
    write_message(stream, &[&id, rest].concat()).await?;
    let mut answer = read_message(stream)
        .await?
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    let is_answer = Header::read(&answer).is_some_and(|header| {
        header.is_answer() && header.id().to_be_bytes() == id && fits(query, header, &answer)
    });
    match answer.first_chunk_mut::<2>() {
        Some(place) if is_answer => *place = *client_id,
        _ => return Err(io::ErrorKind::InvalidData.into()),
    }
    Ok(answer)
}
