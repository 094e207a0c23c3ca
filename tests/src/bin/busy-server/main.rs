//! A web server of set capacity, for scenarios and benches: it has so many workers, each of which takes a
//! request so long, and what comes while all are busy waits in one queue.
//!
//! It works by sleeping, so a machine can be several overloaded servers and hardly notice. HTTP/1.1 with
//! connections that stay open.
//!
//! - Any path: the server's title, once a worker has had its time. The headers `x-queued-us` and `x-served-us`
//!   say how many microseconds the request waited and was served. Who breaks off leaves the queue.
//! - `GET /health`: answered at once, 200 or, after `/set?health=bad`, 503.
//! - `GET /metrics`: how busy it is, for Prometheus.
//! - `POST /set?workers=4&service_ms=200&distribution=constant&health=bad&agent=drain`: changes what is named,
//!   from the next request on.
//! - The agent's port, if there is one, says a line to everyone who connects, as HAProxy's agent checks want it.

mod metrics;
mod queue;
mod service;

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use scenarios::timer::Timer;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{LocalSet, spawn_local};

use metrics::Metrics;
use queue::Queue;
use service::{Changes, Distribution, ServiceTime};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;
/// How long to wait when a connection can't be accepted, for want of descriptors, say.
const BREATHER: Duration = Duration::from_millis(10);

/// An HTTP server of set capacity, which sleeps for as long as a request is said to take.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where to listen, e.g. `[::]:80` for both families.
    #[arg(long)]
    listen: SocketAddr,
    /// What it answers with.
    #[arg(long, default_value = "busy-server")]
    title: String,
    /// How many requests are served at the same time; the others wait.
    #[arg(long, default_value_t = 4)]
    workers: usize,
    /// How long a request takes, in the mean.
    #[arg(long, default_value = "20ms", value_parser = service::mean)]
    service_time: Duration,
    /// How these times are spread.
    #[arg(long, value_enum, default_value = "exponential")]
    distribution: Distribution,
    /// A port, at the same address, where an agent says how the server is.
    #[arg(long)]
    agent: Option<u16>,
    /// What the agent says.
    #[arg(long, default_value = "up ready")]
    agent_text: String,
    /// Where its random times begin.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

struct Server {
    title: Bytes,
    queue: Queue,
    service_time: RefCell<ServiceTime>,
    random: RefCell<SmallRng>,
    healthy: RefCell<bool>,
    agent_text: RefCell<String>,
    metrics: Metrics,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let server = Rc::new(Server {
        title: Bytes::from(format!("{}\n", arguments.title)),
        queue: Queue::new(arguments.workers),
        service_time: RefCell::new(ServiceTime {
            mean: arguments.service_time,
            distribution: arguments.distribution,
        }),
        random: RefCell::new(SmallRng::seed_from_u64(arguments.seed)),
        healthy: RefCell::new(true),
        agent_text: RefCell::new(arguments.agent_text),
        metrics: Metrics::new(),
    });
    let tasks = LocalSet::new();
    if let Some(port) = arguments.agent {
        let listener = listen(SocketAddr::new(arguments.listen.ip(), port))?;
        let server = server.clone();
        tasks.spawn_local(async move {
            loop {
                let stream = accept(&listener).await;
                spawn_local(server.clone().say_how_it_is(stream));
            }
        });
    }
    let listener = listen(arguments.listen)?;
    tasks
        .run_until(async {
            loop {
                let stream = accept(&listener).await;
                spawn_local(server.clone().converse(stream));
            }
        })
        .await
}

fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bind = || {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bind().with_context(|| format!("can't listen at {address}"))
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(_) => tokio::time::sleep(BREATHER).await,
        }
    }
}

impl Server {
    /// All of one connection. That it breaks is the client's affair.
    async fn converse(self: Rc<Self>, stream: TcpStream) {
        // Without it small answers would just be slower.
        let _ = stream.set_nodelay(true);
        let respond = service_fn(|request| {
            let server = self.clone();
            async move { Ok::<_, Infallible>(server.respond(request).await) }
        });
        let _ = http1::Builder::new()
            .serve_connection(TokioIo::new(stream), respond)
            .await;
    }

    async fn say_how_it_is(self: Rc<Self>, mut stream: TcpStream) {
        let line = format!("{}\n", self.agent_text.borrow());
        // Who doesn't listen has left.
        let _ = stream.write_all(line.as_bytes()).await;
        let _ = stream.shutdown().await;
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/health") => {
                if *self.healthy.borrow() {
                    plain(StatusCode::OK, self.title.clone())
                } else {
                    plain(StatusCode::SERVICE_UNAVAILABLE, "set to be bad\n")
                }
            }
            (&Method::GET, "/metrics") => match self.metrics.page(self.queue.load()) {
                Ok(page) => {
                    let mut response = plain(StatusCode::OK, page);
                    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                    let kind = HeaderValue::from_static(kind);
                    response.headers_mut().insert(CONTENT_TYPE, kind);
                    response
                }
                Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            },
            (&Method::POST, "/set") => {
                match Changes::from_query(request.uri().query().unwrap_or_default()) {
                    Ok(changes) => {
                        self.change(changes);
                        plain(StatusCode::NO_CONTENT, "")
                    }
                    Err(sentence) => plain(StatusCode::BAD_REQUEST, sentence + "\n"),
                }
            }
            (_, "/set") => plain(StatusCode::METHOD_NOT_ALLOWED, "POST it\n"),
            _ => match self.serve().await {
                Ok(response) => response,
                Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            },
        }
    }

    /// Waits for a worker and has it serve.
    async fn serve(&self) -> io::Result<Response<Full<Bytes>>> {
        let came = Instant::now();
        let worker = self.queue.worker().await;
        let began = Instant::now();
        let time = self
            .service_time
            .borrow()
            .draw(&mut *self.random.borrow_mut());
        Timer::new()?.wait_until(began + time).await?;
        drop(worker);
        let (queued, served) = (began - came, began.elapsed());
        self.metrics.count(queued, served);
        let mut response = plain(StatusCode::OK, self.title.clone());
        for (name, time) in [("x-queued-us", queued), ("x-served-us", served)] {
            let microseconds = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
            response.headers_mut().insert(name, microseconds.into());
        }
        Ok(response)
    }

    fn change(&self, changes: Changes) {
        let mut service_time = self.service_time.borrow_mut();
        if let Some(mean) = changes.mean {
            service_time.mean = mean;
        }
        if let Some(distribution) = changes.distribution {
            service_time.distribution = distribution;
        }
        if let Some(healthy) = changes.healthy {
            *self.healthy.borrow_mut() = healthy;
        }
        if let Some(text) = changes.agent {
            *self.agent_text.borrow_mut() = text;
        }
        if let Some(workers) = changes.workers {
            self.queue.set_workers(workers);
        }
    }
}

fn plain(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}
