//! One connection of the pool: it is kept alive from request to request, and replaced when it breaks.
//!
//! A server may close a connection on which nothing is asked, and a client opens another (RFC 9112, sections
//! 9.3.1 and 9.5): no request fails by that. One that has been written may have been carried out, so what
//! becomes of it counts.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Body, Bytes};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::HOST;
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use rand::rngs::SmallRng;
use scenarios::load::Ending;
use scenarios::timer::Timer;
use tokio::net::TcpSocket;
use tokio::task::spawn_local;
use tokio::time::timeout_at;

use crate::pace::Pace;
use crate::tally::Tally;

/// The longest answer that is read, in bytes.
const LONGEST_ANSWER: usize = 16 << 20;
/// How often in a row a connection may be closed before the first request is sent on it.
const CLOSED_AT_ONCE: usize = 3;

/// What all connections have in common.
#[derive(Debug)]
pub struct Plan {
    /// Whom to ask.
    pub to: SocketAddr,
    /// For what.
    pub path: Uri,
    /// How long a request may take, opening a connection included.
    pub timeout: Duration,
    /// How long to wait after a failure.
    pub retry: Duration,
    /// After how many requests a connection is closed and another opened.
    pub requests_per_connection: Option<u64>,
}

/// One connection of the pool, and those that replace it.
pub struct Connection {
    pub plan: Rc<Plan>,
    pub number: usize,
    pub source: Option<IpAddr>,
    pub pace: Pace,
    pub tally: Rc<RefCell<Tally>>,
    pub random: SmallRng,
}

/// An open connection.
struct Open {
    sender: SendRequest<Empty<Bytes>>,
    requests: u64,
}

/// What one attempt to ask came to.
enum Attempt {
    /// It is over. The connection is to be kept if it is given back.
    Ended(Ending, String, Option<Open>),
    /// The connection had been closed before; nothing was sent.
    NothingSent,
}

impl Connection {
    /// Asks until there is nothing more to ask.
    ///
    /// # Errors
    /// This machine has no descriptors left. What goes wrong with the server is counted, and no error.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut timer = Timer::new()?;
        let mut open = None;
        while let Some(moment) = self.pace.next(&mut timer, &mut self.random).await? {
            let deadline = moment + self.plan.timeout;
            if Instant::now() >= deadline {
                // It had its time while no connection was free, and nothing is wrong with this one.
                self.note(moment, Ending::NotSent, "")?;
                continue;
            }
            let (ending, server, kept) = self.ask(open.take(), deadline).await;
            open = kept;
            self.note(moment, ending, &server)?;
            if ending != Ending::Answered {
                timer.wait(self.plan.retry).await?;
            }
        }
        Ok(())
    }

    fn note(&self, moment: Instant, ending: Ending, server: &str) -> anyhow::Result<()> {
        let mut tally = self.tally.borrow_mut();
        tally
            .note(moment, ending, server, self.number, self.source)
            .context("can't write the log")
    }

    /// Sends a request on an open connection, or on a new one, and hears the answer.
    async fn ask(
        &self,
        mut open: Option<Open>,
        deadline: Instant,
    ) -> (Ending, String, Option<Open>) {
        let limit = self.plan.requests_per_connection;
        if open
            .as_ref()
            .is_some_and(|open| limit.is_some_and(|limit| open.requests >= limit))
        {
            open = None;
        }
        for _ in 0..CLOSED_AT_ONCE {
            let connection = match open.take() {
                Some(connection) => connection,
                None => match timeout_at(deadline.into(), self.open()).await {
                    Ok(Ok(connection)) => connection,
                    Ok(Err(_)) | Err(_) => break,
                },
            };
            match self.attempt(connection, deadline).await {
                Attempt::Ended(ending, server, kept) => return (ending, server, kept),
                Attempt::NothingSent => self.tally.borrow_mut().closed_idle += 1,
            }
        }
        (Ending::NoConnection, String::new(), None)
    }

    async fn open(&self) -> anyhow::Result<Open> {
        let to = self.plan.to;
        let socket = match to {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if let Some(source) = self.source {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        let stream = socket.connect(to).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // It ends when its sender is dropped, or when the server closes it.
        spawn_local(connection);
        self.tally.borrow_mut().opened += 1;
        Ok(Open {
            sender,
            requests: 0,
        })
    }

    async fn attempt(&self, mut open: Open, deadline: Instant) -> Attempt {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = self.plan.path.clone();
        // An address is always a valid header.
        if let Ok(host) = self.plan.to.to_string().parse() {
            request.headers_mut().insert(HOST, host);
        }
        open.requests += 1;
        let answer = async {
            open.sender.ready().await.ok()?;
            match open.sender.try_send_request(request).await {
                Ok(response) => {
                    let status = response.status();
                    let body = first_line(response.into_body()).await;
                    Some(body.map(|line| (status, line)))
                }
                // Whoever gets the request back knows that it wasn't sent.
                Err(mut error) => match error.take_message() {
                    Some(_) => None,
                    None => Some(Err(Broken)),
                },
            }
        };
        match timeout_at(deadline.into(), answer).await {
            Err(_) => Attempt::Ended(Ending::Timeout, String::new(), None),
            Ok(None) => Attempt::NothingSent,
            Ok(Some(Err(Broken))) => Attempt::Ended(Ending::InFlight, String::new(), None),
            Ok(Some(Ok((status, line)))) => {
                let bad = status.is_client_error() || status.is_server_error();
                let ending = if bad {
                    Ending::BadStatus
                } else {
                    Ending::Answered
                };
                Attempt::Ended(ending, line, Some(open))
            }
        }
    }
}

/// The connection broke before an answer was whole.
#[derive(Debug)]
struct Broken;

/// Reads an answer's body to its end, and gives the first line.
async fn first_line(body: impl Body<Data = Bytes, Error = hyper::Error>) -> Result<String, Broken> {
    let whole = Limited::new(body, LONGEST_ANSWER).collect().await;
    let bytes = whole.map_err(|_| Broken)?.to_bytes();
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or(&[]);
    Ok(String::from_utf8_lossy(line).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::SeedableRng;
    use scenarios::load::Summary;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::LocalSet;

    use super::*;
    use crate::pace::Thinking;

    const GOOD: &str = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nmirror 1\n";
    const BAD: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbad\n";
    const HALF: &str = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nmirr";

    /// What a server does with each request.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Server {
        /// Answers so, and stays open.
        Says(&'static str),
        /// Answers so, and closes the connection without having said that it would.
        SaysAndCloses(&'static str),
        /// Hears a request, and closes.
        Closes,
        /// Says nothing.
        IsSilent,
        /// Closes at once, before anything is asked.
        Hates,
    }

    async fn serve(server: Server, mut stream: TcpStream) -> std::io::Result<()> {
        let mut buffer = [0; 4096];
        if server == Server::Hates {
            return stream.shutdown().await;
        }
        while stream.read(&mut buffer).await? > 0 {
            match server {
                Server::Says(text) => stream.write_all(text.as_bytes()).await?,
                Server::SaysAndCloses(text) => {
                    stream.write_all(text.as_bytes()).await?;
                    break;
                }
                Server::Closes | Server::Hates => break,
                Server::IsSilent => {}
            }
        }
        Ok(())
    }

    /// One connection, asking such a server for a fifth of a second with pauses of 5 ms.
    async fn ask(server: Option<Server>) -> Summary {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let tally = Rc::new(RefCell::new(Tally::new(None).unwrap()));
        let plan = Plan {
            to,
            path: Uri::from_static("/"),
            timeout: Duration::from_millis(60),
            retry: Duration::from_millis(5),
            requests_per_connection: None,
        };
        let end = Instant::now() + Duration::from_millis(200);
        let connection = Connection {
            plan: Rc::new(plan),
            number: 0,
            source: Some(IpAddr::from([127, 0, 0, 3])),
            pace: Pace::Closed(Rc::new(Thinking::new(Duration::from_millis(5), end))),
            tally: tally.clone(),
            random: SmallRng::seed_from_u64(1),
        };
        let tasks = LocalSet::new();
        match server {
            Some(server) => {
                tasks.spawn_local(async move {
                    while let Ok((stream, from)) = listener.accept().await {
                        assert_eq!(from.ip(), IpAddr::from([127, 0, 0, 3]));
                        spawn_local(serve(server, stream));
                    }
                });
            }
            None => drop(listener),
        }
        tasks.run_until(connection.run()).await.unwrap();
        drop(tasks);
        Rc::into_inner(tally)
            .unwrap()
            .into_inner()
            .finish(1)
            .unwrap()
    }

    /// All requests ended in one way, and there were some.
    #[track_caller]
    fn assert_all(summary: &Summary, ending: Ending) {
        assert!(summary.requests > 1, "{summary:?}");
        if ending == Ending::Answered {
            assert_eq!(summary.failed, 0, "{summary:?}");
        } else {
            let only = BTreeMap::from([(ending, summary.requests)]);
            assert_eq!(summary.failures, only, "{summary:?}");
        }
    }

    #[tokio::test]
    async fn a_good_server_is_asked_on_one_connection() {
        let summary = ask(Some(Server::Says(GOOD))).await;
        assert_all(&summary, Ending::Answered);
        assert_eq!((summary.opened, summary.closed_idle), (1, 0));
        assert_eq!(summary.servers["mirror 1"], summary.answered);
    }

    #[tokio::test]
    async fn a_connection_that_was_closed_while_nothing_was_asked_fails_nothing() {
        let summary = ask(Some(Server::SaysAndCloses(GOOD))).await;
        assert_all(&summary, Ending::Answered);
        assert_eq!(summary.opened, summary.answered, "{summary:?}");
        assert_eq!(summary.closed_idle, summary.answered - 1, "{summary:?}");
    }

    #[tokio::test]
    async fn a_request_without_a_whole_answer_has_failed() {
        for server in [Server::Closes, Server::SaysAndCloses(HALF)] {
            let summary = ask(Some(server)).await;
            assert_all(&summary, Ending::InFlight);
            assert_eq!(summary.opened, summary.requests, "{summary:?}");
        }
    }

    #[tokio::test]
    async fn an_answer_may_say_that_it_failed_and_keep_its_connection() {
        let summary = ask(Some(Server::Says(BAD))).await;
        assert_all(&summary, Ending::BadStatus);
        assert_eq!(summary.opened, 1);
        assert!(summary.servers.is_empty());
    }

    #[tokio::test]
    async fn who_is_silent_or_half_silent_runs_out_of_time() {
        for server in [Server::IsSilent, Server::Says(HALF)] {
            let summary = ask(Some(server)).await;
            assert_all(&summary, Ending::Timeout);
            assert_eq!(summary.opened, summary.requests, "{summary:?}");
        }
    }

    #[tokio::test]
    async fn nobody_there() {
        let summary = ask(None).await;
        assert_all(&summary, Ending::NoConnection);
        assert_eq!(summary.opened, 0);
        // One that closes whatever is opened isn't asked for ever.
        let summary = ask(Some(Server::Hates)).await;
        assert!(summary.failed > 1 && summary.answered == 0, "{summary:?}");
        assert!(summary.opened <= summary.requests * CLOSED_AT_ONCE as u64);
    }
}
