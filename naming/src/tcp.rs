//! TCP: for clients whose answer doesn't fit a datagram, and those who want to be sure. One task a client;
//! messages stand behind their length in two bytes (RFC 7766).
//!
//! A client may ask several things before the first is answered, and gets each answer as it comes. What it can
//! cost the others is bounded: the number of clients, the queries that one of them has under way, and the time
//! that each step may take.

mod upstreams;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::warn;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

pub use upstreams::Upstreams;

use crate::answer::{Asked, Follow, Outcome, Transport, failure};
use crate::counters::Count;
use crate::worker::{Shared, moment};

/// Queries that one client may have under way.
const MAX_PIPELINED: usize = 32;

/// For a message, from its first byte to its last, in either direction.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// How TCP clients are served.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The most clients at a time; the next one is closed at once.
    pub max_clients: usize,
    /// How long a client may be silent.
    pub idle_timeout: Duration,
}

/// Serves the clients of one listener for ever. `places` has a permit for each client that there may be.
pub async fn serve(
    listener: TcpListener,
    places: Arc<Semaphore>,
    limits: Limits,
    shared: Arc<Shared>,
    upstreams: Arc<Upstreams>,
) {
    loop {
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely; some client will end.
                warn!("can't accept a TCP client: {error}");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            continue;
        };
        let (shared, upstreams) = (Arc::clone(&shared), Arc::clone(&upstreams));
        tokio::spawn(async move {
            // A client that breaks off needs nothing more.
            let _ = converse(stream, client, limits, shared, upstreams).await;
            drop(place);
        });
    }
}

/// Answers one client until it closes, or is silent for too long.
async fn converse(
    stream: TcpStream,
    client: SocketAddr,
    limits: Limits,
    shared: Arc<Shared>,
    upstreams: Arc<Upstreams>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut reader, writer) = stream.into_split();
    let writer = Arc::new(Mutex::new(writer));
    let mut passed: JoinSet<io::Result<()>> = JoinSet::new();
    loop {
        while let Some(ended) = passed.try_join_next() {
            // An answer that can't be sent means that no other can.
            ended.map_err(io::Error::other)??;
        }
        if passed.len() >= MAX_PIPELINED
            && let Some(ended) = passed.join_next().await
        {
            ended.map_err(io::Error::other)??;
        }
        let query = match timeout(limits.idle_timeout, reader.readable()).await {
            Ok(ready) => {
                ready?;
                read_message(&mut reader).await?
            }
            // Silent, but perhaps only because it waits.
            Err(_) if !passed.is_empty() => continue,
            Err(_) => return Ok(()),
        };
        let Some(query) = query else { break };
        let mut answer = Vec::new();
        let asked = Asked {
            message: &query,
            client,
            transport: Transport::Tcp,
        };
        let moment = moment(Instant::now(), rand::random());
        let table = shared.table.load_full();
        let outcome = shared
            .rules
            .handle(&asked, &table, moment, None, &mut answer);
        let Some(counters) = shared.counters.last() else {
            return Ok(());
        };
        let count = Count::from(&outcome);
        counters.count(count);
        shared.log(counters, &asked, count);
        let follow = match outcome {
            Outcome::Answered(_) => {
                write_answer(&writer, &answer).await?;
                continue;
            }
            // There is no telling what such a client would say next.
            Outcome::Dropped(_) => return Ok(()),
            Outcome::Pass => None,
            Outcome::Follow(follow) => Some(follow),
        };
        let (writer, upstreams) = (Arc::clone(&writer), Arc::clone(&upstreams));
        let shared = Arc::clone(&shared);
        passed.spawn(async move {
            let answer = pass(&query, follow.as_deref(), &shared, &upstreams).await;
            write_answer(&writer, &answer).await
        });
    }
    // It will say no more, but may still listen.
    while let Some(ended) = passed.join_next().await {
        ended.map_err(io::Error::other)??;
    }
    Ok(())
}

/// The DNS's answer to a query, or the part of it that an alias needs.
async fn pass(
    query: &[u8],
    follow: Option<&Follow>,
    shared: &Shared,
    upstreams: &Upstreams,
) -> Vec<u8> {
    let counters = shared.counters.last();
    let passed = follow.map_or(query, |follow| &follow.query);
    let answer = upstreams.ask(passed, counters).await;
    if let Some(counters) = counters {
        let is_answered = answer.is_some();
        counters.count(if is_answered {
            Count::Returned
        } else {
            Count::Unanswered
        });
    }
    let mut joined = Vec::new();
    match (follow, answer) {
        (None, Some(answer)) => return answer,
        (None, None) => failure(query, &mut joined),
        (Some(follow), Some(answer)) => follow.join(&answer, &mut joined),
        (Some(follow), None) => follow.fail(&mut joined),
    }
    joined
}

/// The next message; `None`: the other end has finished.
async fn read_message(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let read = async {
        let length = match reader.read_u16().await {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut message = vec![0; length.into()];
        reader.read_exact(&mut message).await?;
        Ok(Some(message))
    };
    timeout(MESSAGE_TIMEOUT, read)
        .await
        .map_err(|_| io::ErrorKind::TimedOut)?
}

async fn write_message(writer: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    // In one piece, so that it leaves in one segment.
    let framed = [&length.to_be_bytes(), message].concat();
    timeout(MESSAGE_TIMEOUT, writer.write_all(&framed))
        .await
        .map_err(|_| io::ErrorKind::TimedOut)?
}

async fn write_answer(writer: &Mutex<OwnedWriteHalf>, answer: &[u8]) -> io::Result<()> {
    write_message(&mut *writer.lock().await, answer).await
}
