//! A small blocking client.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::SendTimeout;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket};
use nix::sys::time::TimeVal;

use crate::answer::{Answer, Failure};
use crate::line::{MAX_ANSWER_LINE, MAX_LINE};
use crate::method::{Call, Watch};
use crate::request::Request;
use crate::results::WatchResult;

/// How long a client waits unless told otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to the daemon that carries one request at a time.
///
/// After any error but [`ClientError::Refused`] the two ends may no longer agree on where they are:
/// connect anew.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    timeout: Duration,
    next_id: u64,
    /// What was received beyond the last answer.
    received: Vec<u8>,
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No socket has this path, or no process listens on it: the daemon isn't running, or listens
    /// elsewhere.
    #[error("nobody listens on {}", path.display())]
    NobodyListens {
        /// Where the client looked.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The socket, or a directory on the way to it, is closed to this user.
    #[error("no permission to connect to {}", path.display())]
    PermissionDenied {
        /// Where the client looked.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Connecting failed for another reason, such as a path longer than socket addresses can be.
    #[error("can't connect to {}", path.display())]
    Connect {
        /// Where the client looked.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The daemon answered that it has not done what was asked.
    #[error(transparent)]
    Refused(Failure),
    /// The daemon didn't accept the connection, take the request, or answer it in time. What was
    /// asked may or may not have been done.
    #[error("no answer within {} seconds", after.as_secs_f64())]
    Timeout {
        /// How long the client waited.
        after: Duration,
    },
    /// The daemon closed the connection without an answer; it may be ending.
    #[error("the daemon closed the connection without an answer")]
    Closed,
    /// One of the two ends broke the protocol; likely they are of different versions.
    #[error(transparent)]
    Protocol(#[from] ProtocolViolation),
    /// Sending or receiving failed.
    #[error("the connection to the daemon failed")]
    Io(#[from] io::Error),
}

/// How the protocol was broken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolViolation {
    /// The request was not sent, being longer than [`MAX_LINE`].
    #[error("the request has {bytes} bytes; the daemon takes at most {MAX_LINE}")]
    RequestTooLong {
        /// Its length with the line end.
        bytes: usize,
    },
    /// The answer did not end within [`MAX_ANSWER_LINE`] bytes.
    #[error("the answer is longer than {MAX_ANSWER_LINE} bytes")]
    AnswerTooLong,
    /// The answer is not one of this protocol's.
    #[error("the answer can't be read")]
    NotAnAnswer(#[source] serde_json::Error),
    /// The answer is to another request.
    #[error("the answer is to request {got:?}; expected {expected}")]
    OtherRequest {
        /// The number of the request that was sent.
        expected: u64,
        /// The number in the answer.
        got: Option<u64>,
    },
    /// The answer's result has not the form that the method's results have.
    #[error("the result of {method} has an unknown form")]
    NotTheResult {
        /// The method that was called.
        method: &'static str,
        /// What doesn't fit.
        source: serde_json::Error,
    },
}

impl Client {
    /// Connects to the daemon that listens on this socket, and will wait for it for
    /// [`DEFAULT_TIMEOUT`] at most.
    ///
    /// # Errors
    /// [`ClientError::NobodyListens`], [`ClientError::PermissionDenied`], [`ClientError::Connect`] or
    /// [`ClientError::Timeout`].
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, ClientError> {
        Self::connect_timeout(path, DEFAULT_TIMEOUT)
    }

    /// Connects as [`Client::connect`] does, and will wait for the daemon for `timeout` at most: once
    /// to be accepted, and then for each answer. Less than a microsecond counts as one, more than a
    /// year as a year.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect_timeout(path: impl AsRef<Path>, timeout: Duration) -> Result<Self, ClientError> {
        const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
        let timeout = timeout.clamp(Duration::from_micros(1), YEAR);
        let path = path.as_ref();
        let stream = open(path, timeout).map_err(|errno| {
            let (path, source) = (path.to_owned(), errno.into());
            match errno {
                Errno::ENOENT | Errno::ENOTDIR | Errno::ECONNREFUSED => {
                    ClientError::NobodyListens { path, source }
                }
                Errno::EACCES | Errno::EPERM => ClientError::PermissionDenied { path, source },
                Errno::EAGAIN => ClientError::Timeout { after: timeout },
                _ => ClientError::Connect { path, source },
            }
        })?;
        Ok(Self {
            stream,
            timeout,
            next_id: 1,
            received: Vec::new(),
        })
    }

    /// Asks the daemon to do something, and waits until it is done.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when the daemon answers that it has not done it. The other errors are
    /// those of the connection; [`ClientError::Protocol`] holds details.
    pub fn call<C: Call>(&mut self, params: C) -> Result<C::Result, ClientError> {
        let request = Request {
            id: self.next_id,
            method: params.into(),
        };
        self.next_id = self.next_id.wrapping_add(1);

        let line = request.to_line();
        if line.len() > MAX_LINE {
            return Err(ProtocolViolation::RequestTooLong { bytes: line.len() }.into());
        }
        let deadline = Instant::now() + self.timeout;
        let sent = self.send(line.as_bytes(), deadline);
        // A daemon that turns a client away may answer and close before it has read the request.
        let answer = match (sent, self.receive(deadline)) {
            (Ok(()), answer) | (Err(_), answer @ Ok(_)) => answer?,
            (Err(error), Err(_)) => return Err(error),
        };

        read_answer::<C>(&answer, request.id)
    }

    /// The next answer to a [`Watch`] that has been [called](Client::call), when it comes.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn next_update(&mut self) -> Result<WatchResult, ClientError> {
        let deadline = Instant::now() + self.timeout;
        let answer = self.receive(deadline)?;
        read_answer::<Watch>(&answer, self.next_id.wrapping_sub(1))
    }

    fn send(&mut self, mut line: &[u8], deadline: Instant) -> Result<(), ClientError> {
        while !line.is_empty() {
            self.stream.set_write_timeout(Some(self.left(deadline)?))?;
            match self.stream.write(line) {
                Ok(sent) => line = &line[sent..],
                Err(error) => self.unless_retried(error)?,
            }
        }
        Ok(())
    }

    /// The next line, without its end.
    fn receive(&mut self, deadline: Instant) -> Result<Vec<u8>, ClientError> {
        let mut chunk = vec![0; 64 << 10];
        let mut searched = 0;
        loop {
            if let Some(end) = self.received[searched..]
                .iter()
                .position(|byte| *byte == b'\n')
            {
                let end = searched + end;
                if end >= MAX_ANSWER_LINE {
                    return Err(ProtocolViolation::AnswerTooLong.into());
                }
                let rest = self.received.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.received, rest);
                line.truncate(end);
                return Ok(line);
            }
            searched = self.received.len();
            if searched >= MAX_ANSWER_LINE {
                return Err(ProtocolViolation::AnswerTooLong.into());
            }
            self.stream.set_read_timeout(Some(self.left(deadline)?))?;
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(ClientError::Closed),
                Ok(count) => self.received.extend_from_slice(&chunk[..count]),
                Err(error) => self.unless_retried(error)?,
            }
        }
    }

    /// Time until the deadline, which is not past.
    fn left(&self, deadline: Instant) -> Result<Duration, ClientError> {
        match deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(ClientError::Timeout {
                after: self.timeout,
            }),
            left => Ok(left),
        }
    }

    /// Nothing, if the operation is to be tried again; otherwise the client's error for this one.
    fn unless_retried(&self, error: io::Error) -> Result<(), ClientError> {
        match error.kind() {
            io::ErrorKind::Interrupted => Ok(()),
            io::ErrorKind::WouldBlock => Err(ClientError::Timeout {
                after: self.timeout,
            }),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Err(ClientError::Closed),
            _ => Err(ClientError::Io(error)),
        }
    }
}

/// The result in a line that answers request `id`.
fn read_answer<C: Call>(line: &[u8], id: u64) -> Result<C::Result, ClientError> {
    let answer = Answer::from_line(line).map_err(ProtocolViolation::NotAnAnswer)?;
    match answer.result() {
        // A failure without a number is about this request too, as no other is under way.
        Err(failure) if answer.id.is_none_or(|answered| answered == id) => {
            Err(ClientError::Refused(failure.clone()))
        }
        Ok(result) if answer.id == Some(id) => result.map_err(|source| {
            ProtocolViolation::NotTheResult {
                method: C::METHOD,
                source,
            }
            .into()
        }),
        _ => Err(ProtocolViolation::OtherRequest {
            expected: id,
            got: answer.id,
        }
        .into()),
    }
}

/// Connects as [`UnixStream::connect`] does, but waits only for so long for a place in the listener's
/// queue (unix(7): `connect` obeys `SO_SNDTIMEO`). `EAGAIN`: no place came free in time.
fn open(path: &Path, timeout: Duration) -> nix::Result<UnixStream> {
    let socket = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let seconds = timeout.as_secs().try_into().unwrap_or(i64::MAX);
    let limit = TimeVal::new(seconds, timeout.subsec_micros().into());
    setsockopt(&socket, SendTimeout, &limit)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;
    use std::thread::{self, JoinHandle};

    use crate::answer::ErrorCode;
    use crate::method::{Divert, List, Restore};
    use crate::request::read_request;
    use crate::results::{ListResult, RestoreResult};

    /// A daemon that takes one connection, and answers its requests line by line with these bytes;
    /// then it closes. Ends with the requests it has read.
    struct Daemon {
        directory: tempfile::TempDir,
        requests: JoinHandle<Vec<Request>>,
    }

    impl Daemon {
        fn answering(answers: Vec<Vec<u8>>) -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let listener = UnixListener::bind(directory.path().join("socket")).expect("a socket");
            let requests = thread::spawn(move || {
                let (stream, _) = listener.accept().expect("a client");
                let mut lines = BufReader::new(&stream).lines();
                let mut requests = Vec::new();
                for answer in answers {
                    let line = lines.next().expect("a request").expect("a line");
                    requests.push(read_request(line.as_bytes()).expect("a right request"));
                    (&stream).write_all(&answer).expect("the client reads");
                }
                requests
            });
            Self {
                directory,
                requests,
            }
        }

        fn client(&self) -> Client {
            let path = self.directory.path().join("socket");
            Client::connect_timeout(path, Duration::from_secs(10)).expect("the daemon listens")
        }

        fn requests(self) -> Vec<Request> {
            self.requests.join().expect("the daemon is content")
        }
    }

    fn violation<T: std::fmt::Debug>(result: Result<T, ClientError>) -> ProtocolViolation {
        match result.expect_err("a violation") {
            ClientError::Protocol(violation) => violation,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn calls_are_numbered_and_give_their_results() {
        let daemon = Daemon::answering(vec![
            b"{\"v\":1,\"id\":1,\"result\":{\"remaining\":3}}\n".to_vec(),
            b"{\"v\":1,\"id\":2,\"result\":{\"diversions\":[]}}\n".to_vec(),
        ]);
        let mut client = daemon.client();
        let restore = Restore {
            service: "10.1.0.1:80".parse().expect("a service"),
            from: None,
            automatic: false,
        };

        let result = client.call(restore.clone()).expect("an answer");
        let expected = RestoreResult {
            remaining: 3,
            held: false,
        };
        assert_eq!(result, expected);
        let result = client.call(List {}).expect("an answer");
        assert_eq!(
            result,
            ListResult {
                diversions: Vec::new(),
                holds: Vec::new(),
            }
        );

        assert_eq!(
            daemon.requests(),
            [
                Request {
                    id: 1,
                    method: restore.into()
                },
                Request {
                    id: 2,
                    method: List {}.into()
                }
            ]
        );
    }

    #[test]
    fn an_answer_may_come_in_pieces_and_with_the_next_one_at_its_heels() {
        let daemon = Daemon::answering(vec![
            b"{\"v\":1,\"id\":1,\"result\":{\"diversions\":[]}}\n{\"v\":1,\"id\":2,".to_vec(),
            b"\"result\":{\"diversions\":[]}}\n".to_vec(),
        ]);
        let mut client = daemon.client();
        client.call(List {}).expect("the first answer");
        client.call(List {}).expect("the second answer");
    }

    #[test]
    fn a_failure_is_handed_on_with_its_code() {
        for id in ["1", "null"] {
            let answer = format!(
                "{{\"v\":1,\"id\":{id},\"error\":{{\"code\":\"refused\",\"message\":\"no\"}}}}\n"
            );
            let daemon = Daemon::answering(vec![answer.into_bytes()]);
            match daemon.client().call(List {}) {
                Err(ClientError::Refused(failure)) => {
                    assert_eq!(failure.code, ErrorCode::Refused);
                    assert_eq!(failure.to_string(), "no (refused)");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_daemon_may_turn_a_client_away_before_it_reads() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).expect("a socket");
        let mut client = Client::connect(&path).expect("the daemon listens");
        let (mut stream, _) = listener.accept().expect("a client");
        let answer = Answer::error(None, ErrorCode::Refused, "you may not");
        stream
            .write_all(answer.to_line().as_bytes())
            .expect("there is room");
        drop(stream);

        match client.call(List {}) {
            Err(ClientError::Refused(failure)) => assert_eq!(failure.message, "you may not"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn answers_that_break_the_protocol_are_told_apart() {
        let answering = |answer: &str| {
            let daemon = Daemon::answering(vec![answer.as_bytes().to_vec()]);
            violation(daemon.client().call(List {}))
        };
        assert!(matches!(
            answering("hello\n"),
            ProtocolViolation::NotAnAnswer(_)
        ));
        assert!(matches!(
            answering("{\"v\":1,\"id\":9,\"result\":{}}\n"),
            ProtocolViolation::OtherRequest {
                expected: 1,
                got: Some(9)
            }
        ));
        assert!(matches!(
            answering("{\"v\":1,\"id\":null,\"result\":{\"diversions\":[]}}\n"),
            ProtocolViolation::OtherRequest {
                expected: 1,
                got: None
            }
        ));
        assert!(matches!(
            answering("{\"v\":1,\"id\":1,\"result\":{}}\n"),
            ProtocolViolation::NotTheResult { method: "list", .. }
        ));
    }

    #[test]
    fn an_endless_answer_is_given_up() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).expect("a socket");
        let mut client = Client::connect(&path).expect("the daemon listens");
        let talker = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let chunk = vec![b' '; 1 << 20];
            while stream.write_all(&chunk).is_ok() {}
        });
        assert!(matches!(
            violation(client.call(List {})),
            ProtocolViolation::AnswerTooLong
        ));
        drop(client);
        talker.join().expect("the daemon is content");
    }

    #[test]
    fn a_request_too_long_is_not_sent() {
        let mirror = "10.2.0.2:80".parse().expect("a mirror");
        let divert = Divert {
            service: "10.1.0.1:80".parse().expect("a service"),
            mirrors: vec![mirror; MAX_LINE / 10],
            from: None,
            peek: None,
            automatic: false,
        };
        let daemon = Daemon::answering(Vec::new());
        let result = daemon.client().call(divert);
        assert!(matches!(
            violation(result),
            ProtocolViolation::RequestTooLong { .. }
        ));
    }

    #[test]
    fn a_silent_daemon_is_given_up_in_time() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let _listener = UnixListener::bind(&path).expect("a socket");
        let timeout = Duration::from_millis(20);
        let mut client = Client::connect_timeout(&path, timeout).expect("the daemon listens");
        match client.call(List {}) {
            Err(error @ ClientError::Timeout { .. }) => {
                assert_eq!(error.to_string(), "no answer within 0.02 seconds");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_full_queue_is_given_up_in_time() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let _listener = UnixListener::bind(&path).expect("a socket");
        let mut queued = Vec::new();
        loop {
            match Client::connect_timeout(&path, Duration::from_millis(20)) {
                Ok(client) => queued.push(client),
                Err(error) => break assert!(matches!(error, ClientError::Timeout { .. })),
            }
            assert!(queued.len() < 100_000, "the queue has no end");
        }
    }

    #[test]
    fn a_daemon_that_ends_is_noticed() {
        let daemon = Daemon::answering(Vec::new());
        assert!(matches!(
            daemon.client().call(List {}),
            Err(ClientError::Closed)
        ));
    }

    #[test]
    fn an_absent_daemon_is_told_from_a_forbidden_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let sentence = format!("nobody listens on {}", path.display());

        let error = Client::connect(&path).expect_err("no such file");
        assert!(matches!(error, ClientError::NobodyListens { .. }));
        assert_eq!(error.to_string(), sentence);

        drop(UnixListener::bind(&path).expect("a socket"));
        let error = Client::connect(&path).expect_err("the listener is gone");
        assert_eq!(error.to_string(), sentence);

        let long = directory.path().join("x".repeat(200));
        let error = Client::connect(long).expect_err("too long");
        assert!(matches!(error, ClientError::Connect { .. }));

        let _listener = UnixListener::bind(directory.path().join("closed")).expect("a socket");
        let closed = directory.path().join("closed");
        let permissions = std::fs::Permissions::from_mode(0o000);
        std::fs::set_permissions(&closed, permissions).expect("our own file");
        // The superuser may connect all the same.
        if let Err(error) = Client::connect(&closed) {
            assert!(matches!(error, ClientError::PermissionDenied { .. }));
        }
    }
}
