//! What the tests of the checks share: asking once, and servers that behave oddly.

#![allow(clippy::unwrap_used, reason = "in a test, that is how to fail")]
#![allow(dead_code, reason = "no test uses all of it")]

pub mod programs;

use std::net::SocketAddr;
use std::time::Duration;

use monitor::check::{CheckConfig, Checks, Finding, Report, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// How long anything may take that ought to be immediate; the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The check that `text` configures.
#[track_caller]
pub fn config(text: &str) -> CheckConfig {
    toml::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// What is wrong with the check that `text` configures.
#[track_caller]
pub fn refusal(text: &str) -> String {
    match toml::from_str::<CheckConfig>(text) {
        Ok(config) => panic!("accepted: {config:?}"),
        Err(error) => error.message().to_owned(),
    }
}

/// A mirror with number 0, called "one".
pub fn target(address: SocketAddr, checks: Vec<CheckConfig>) -> Target {
    Target {
        mirror: 0,
        name: "one".to_owned(),
        address,
        checks,
    }
}

/// What the check that `text` configures finds of the mirror at `address`. Without a timeout of its own
/// it has long, because the machine may be busy.
pub async fn find(address: SocketAddr, text: &str) -> Finding {
    let (sender, mut reports) = mpsc::channel(10);
    let mut config = config(text);
    // The first comes at once, because we ask for it, and then none for long.
    config.interval = Duration::from_hours(24);
    config.fall = 1;
    if !text.contains("timeout") {
        config.timeout = PATIENCE;
    }
    let limit = config.timeout;
    let checks = Checks::start(vec![target(address, vec![config])], sender).unwrap();
    checks.hurry(0, limit);
    next(&mut reports).await.finding
}

/// The next report.
pub async fn next(reports: &mut mpsc::Receiver<Report>) -> Report {
    timeout(PATIENCE, reports.recv()).await.unwrap().unwrap()
}

/// A server on loopback that treats each connection by `serve`.
pub async fn server<F, S>(serve: S) -> SocketAddr
where
    S: Fn(TcpStream) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// A server that answers each connection, as soon as it has received `until`, with `bytes`, and closes.
pub async fn answers(until: &'static str, bytes: impl Into<Vec<u8>>) -> SocketAddr {
    let bytes = bytes.into();
    server(move |mut stream| {
        let bytes = bytes.clone();
        async move {
            receive(&mut stream, until).await;
            let _ = stream.write_all(&bytes).await;
        }
    })
    .await
}

/// Reads until `until` has come; whether it has.
pub async fn receive(stream: &mut TcpStream, until: &str) -> bool {
    let mut received = Vec::new();
    while !String::from_utf8_lossy(&received).contains(until) {
        match stream.read_buf(&mut received).await {
            Ok(count) if count > 0 => {}
            _ => return false,
        }
    }
    true
}

/// A server that accepts and never says anything.
pub async fn silent() -> SocketAddr {
    server(|stream| async move {
        let _stream = stream;
        std::future::pending::<()>().await;
    })
    .await
}

/// An address where nobody listens.
pub async fn closed() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}
