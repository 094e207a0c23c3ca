//! The server on the control socket: a task for each client, a line for each request.
//!
//! What a client can cost the others is bounded: its line in bytes ([`MAX_LINE`]) and, once begun, in
//! time; the time that it takes to read an answer; and the number of clients.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use control_protocol::{Answer, ErrorCode, MAX_LINE, Method, Request, Watch, read_request};
use log::{debug, warn};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::select;
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

/// Clients at a time; more are told so and closed.
const MAX_CLIENTS: usize = 64;
/// For a line, from its first byte to its last.
const LINE_TIMEOUT: Duration = Duration::from_secs(30);
/// For a client to take an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two updates for a client who watches.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// What answers the requests: a daemon's control plane.
pub trait Handler: Send + Sync + 'static {
    /// What one client who watches has been told so far.
    type Updates: Send;

    /// Carries out a request. Requests of several clients come at the same time.
    fn answer(&self, request: Request) -> impl Future<Output = Answer> + Send;

    /// Begins to tell a client, from its request with the number `id` on.
    ///
    /// # Errors
    /// The answer, to a daemon that has nothing to be watched.
    fn watch(&self, id: u64, params: Watch) -> Result<Self::Updates, Answer>;

    /// What is new since the last of these updates. The first is asked for at once, the others about
    /// once a second.
    fn next_update(
        &self,
        id: u64,
        updates: &mut Self::Updates,
    ) -> impl Future<Output = Answer> + Send;
}

/// Serves clients for ever.
pub async fn serve(listener: UnixListener, handler: Arc<impl Handler>) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely; some client will end.
                warn!("can't accept a control client: {error}");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let handler = Arc::clone(&handler);
        match Arc::clone(&places).try_acquire_owned() {
            Ok(place) => {
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, &*handler).await {
                        debug!("control client: {error}");
                    }
                    drop(place);
                });
            }
            Err(_) => {
                let message = format!("there are {MAX_CLIENTS} clients already; try again later");
                let answer = Answer::error(None, ErrorCode::Refused, message);
                // The answer fits the socket's buffer, so this doesn't wait; a client that has gone
                // needs none.
                let _ = stream.try_write(answer.to_line().as_bytes());
            }
        }
    }
}

/// Answers one client until it closes.
async fn converse(stream: UnixStream, handler: &impl Handler) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let end = read_line(&mut reader, &mut line).await?;
        let answer = match end {
            LineEnd::Closed if line.is_empty() => return Ok(()),
            LineEnd::Closed => Answer::error(
                None,
                ErrorCode::Malformed,
                "the last line has no end (\\n), so it was not carried out",
            ),
            LineEnd::Whole | LineEnd::TooLong => match read_request(&line) {
                Ok(Request {
                    id,
                    method: Method::Watch(params),
                }) => match handler.watch(id, params) {
                    Ok(updates) => {
                        return watch(id, updates, &mut reader, &mut writer, handler).await;
                    }
                    Err(answer) => answer,
                },
                Ok(request) => handler.answer(request).await,
                Err(answer) => answer,
            },
        };
        send(&mut writer, &answer).await?;
        if end != LineEnd::Whole {
            return Ok(());
        }
    }
}

/// Sends a client an update a second until it closes, or reads none for a while. One that is slow gets
/// fewer.
async fn watch<H: Handler>(
    id: u64,
    mut updates: H::Updates,
    reader: &mut (impl AsyncBufRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    handler: &H,
) -> io::Result<()> {
    let mut interval = interval(WATCH_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        select! {
            _ = interval.tick() => {
                let answer = handler.next_update(id, &mut updates).await;
                send(writer, &answer).await?;
            }
            read = reader.fill_buf() => {
                if !read?.is_empty() {
                    let message = "no request can follow `watch` on the same connection";
                    let answer = Answer::error(None, ErrorCode::Refused, message);
                    send(writer, &answer).await?;
                }
                return Ok(());
            }
        }
    }
}

/// How a line ended. Nothing can follow any but a whole one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LineEnd {
    /// With `\n`.
    Whole,
    /// Not at [`MAX_LINE`]; one byte more than that has been read.
    TooLong,
    /// Because the client has closed.
    Closed,
}

/// Reads a line without its end.
async fn read_line(
    reader: &mut (impl AsyncBufRead + Unpin),
    line: &mut Vec<u8>,
) -> io::Result<LineEnd> {
    // A client may be silent between two requests as long as it likes.
    reader.fill_buf().await?;
    timeout(LINE_TIMEOUT, async {
        loop {
            let buffered = reader.fill_buf().await?;
            if buffered.is_empty() {
                return Ok(LineEnd::Closed);
            }
            let room = MAX_LINE + 1 - line.len();
            let end = buffered.iter().position(|byte| *byte == b'\n');
            let taken = end.unwrap_or(buffered.len()).min(room);
            line.extend_from_slice(&buffered[..taken]);
            let has_ended = end == Some(taken);
            reader.consume(taken + usize::from(has_ended));
            if line.len() > MAX_LINE {
                return Ok(LineEnd::TooLong);
            }
            if has_ended {
                return Ok(LineEnd::Whole);
            }
        }
    })
    .await
    .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "a line was never finished"))?
}

async fn send(writer: &mut (impl AsyncWrite + Unpin), answer: &Answer) -> io::Result<()> {
    timeout(
        ANSWER_TIMEOUT,
        writer.write_all(answer.to_line().as_bytes()),
    )
    .await
    .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "an answer was never read"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with the method's name, and has nothing to be watched.
    struct Names;

    impl Handler for Names {
        type Updates = ();

        async fn answer(&self, request: Request) -> Answer {
            Answer::ok(request.id, &request.method.name())
        }

        fn watch(&self, id: u64, _params: Watch) -> Result<(), Answer> {
            let message = "there is nothing to be watched here";
            Err(Answer::error(Some(id), ErrorCode::UnknownMethod, message))
        }

        async fn next_update(&self, id: u64, (): &mut ()) -> Answer {
            Answer::error(Some(id), ErrorCode::Internal, "never asked for")
        }
    }

    #[tokio::test]
    async fn a_handler_may_have_nothing_to_be_watched() {
        let (client, server) = UnixStream::pair().unwrap();
        tokio::spawn(async move { converse(server, &Names).await });
        let (reader, mut writer) = client.into_split();
        let mut answers = BufReader::new(reader).lines();
        for (asked, answer) in [
            ("list", r#""result":"list""#),
            (
                "watch",
                r#""error":{"code":"unknown_method","message":"there is nothing to be watched here"}"#,
            ),
            ("version", r#""result":"version""#),
        ] {
            let request = format!("{{\"v\":1,\"id\":7,\"method\":\"{asked}\"}}\n");
            writer.write_all(request.as_bytes()).await.unwrap();
            assert_eq!(
                answers.next_line().await.unwrap().unwrap(),
                format!("{{\"v\":1,\"id\":7,{answer}}}")
            );
        }
    }

    async fn lines(input: &[u8]) -> Vec<(usize, LineEnd)> {
        let mut reader = BufReader::with_capacity(1000, input);
        let mut lines = Vec::new();
        loop {
            let mut line = Vec::new();
            let end = read_line(&mut reader, &mut line).await.unwrap();
            lines.push((line.len(), end));
            if end != LineEnd::Whole {
                return lines;
            }
        }
    }

    #[tokio::test]
    async fn lines_are_cut_at_their_ends_and_at_the_limit() {
        use LineEnd::{Closed, TooLong, Whole};
        assert_eq!(lines(b"").await, [(0, Closed)]);
        assert_eq!(
            lines(b"abc\nde\n").await,
            [(3, Whole), (2, Whole), (0, Closed)]
        );
        assert_eq!(lines(b"half").await, [(4, Closed)]);
        let longest = [vec![b'x'; MAX_LINE], b"\n".to_vec()].concat();
        assert_eq!(lines(&longest).await[0], (MAX_LINE, Whole));
        assert_eq!(
            lines(&vec![b'x'; 2 * MAX_LINE]).await,
            [(MAX_LINE + 1, TooLong)]
        );
    }
}
