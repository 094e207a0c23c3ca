//! The monitor's metrics, in the text format that Prometheus reads (OpenMetrics 1.0).
//!
//! What is served is made from the board when it is asked for, so there is nothing to be kept up to date.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use log::{debug, warn};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::board::{Board, Shown};

/// Clients at a time; more wait.
const MAX_CLIENTS: usize = 16;
/// How long a client has for all it wants.
const PATIENCE: Duration = Duration::from_secs(10);

type Labels = Vec<(String, String)>;
type Numbers = Family<Labels, Gauge<f64, AtomicU64>>;

/// Serves metrics at an address, for ever.
///
/// # Errors
/// The address can't be listened at.
pub async fn serve(address: SocketAddr, board: Board) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    tokio::spawn(async move {
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!("can't accept a client of the metrics: {error}");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let board = board.clone();
            tokio::spawn(async move {
                let answer = service_fn(move |request| answer(request, board.clone()));
                let served = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), answer);
                if let Ok(Err(error)) = timeout(PATIENCE, served).await {
                    debug!("a client of the metrics: {error}");
                }
                drop(place);
            });
        }
    });
    Ok(())
}

async fn answer(
    request: Request<hyper::body::Incoming>,
    board: Board,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let is_known = request.method() == Method::GET && request.uri().path() == "/metrics";
    let (status, body) = if is_known {
        match text(&board.lock()) {
            Ok(text) => (StatusCode::OK, text),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    } else {
        (StatusCode::NOT_FOUND, "look at /metrics\n".to_owned())
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static(
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
    );
    if is_known {
        response
            .headers_mut()
            .insert(hyper::header::CONTENT_TYPE, kind);
    }
    Ok(response)
}

/// All metrics as text.
fn text(shown: &Shown) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("shunt_monitor");
    let mut numbers = |name: &str, help: &str| {
        let family = Numbers::default();
        registry.register(name, help, family.clone());
        family
    };
    let up = numbers(
        "mirror_up",
        "1: the mirror is up, 0: it is down; missing: unknown",
    );
    let rate = numbers(
        "mirror_requests_per_second",
        "Requests a second at the mirror",
    );
    let response = numbers("mirror_response_seconds", "Mean response time, measured");
    let capacity = numbers(
        "mirror_capacity",
        "Requests a second that the model believes it can answer",
    );
    let service_time = numbers(
        "mirror_service_seconds",
        "Response time without load, by the model",
    );
    let utilisation = numbers(
        "mirror_utilisation",
        "The part of its capacity that is used",
    );
    let error = numbers(
        "mirror_model_error",
        "How wrong the model was lately, as a part",
    );
    let connections = numbers("mirror_connections", "Connections that are on the mirror");
    let share = numbers("share", "Share of new connections");
    let there = numbers("rewriter_up", "1: the rewriter can be reached");
    let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    for mirror in &shown.mirrors {
        let labels = vec![label("mirror", &mirror.name)];
        let set = |family: &Numbers, value: Option<f64>| {
            if let Some(value) = value {
                family.get_or_create(&labels).set(value);
            }
        };
        set(
            &up,
            match mirror.state {
                control_protocol::Health::Up => Some(1.0),
                control_protocol::Health::Down => Some(0.0),
                control_protocol::Health::Unknown => None,
            },
        );
        set(&rate, Some(mirror.rate));
        set(&response, mirror.response_ms.map(|ms| ms / 1e3));
        set(&capacity, mirror.capacity);
        set(&service_time, mirror.service_time_ms.map(|ms| ms / 1e3));
        set(&utilisation, mirror.utilisation);
        set(
            &error,
            mirror.model_error_percent.map(|percent| percent / 100.0),
        );
        set(&connections, Some(mirror.connections as f64));
    }
    for (service, clients, mirror, part) in &shown.shares {
        let labels = vec![
            label("service", &service.to_string()),
            label("clients", clients),
            label("mirror", mirror),
        ];
        share.get_or_create(&labels).set(*part);
    }
    for (rewriter, is_there) in &shown.rewriters {
        let labels = vec![label("rewriter", rewriter)];
        there
            .get_or_create(&labels)
            .set(f64::from(u8::from(*is_there)));
    }
    let decisions = Family::<Labels, Counter>::default();
    registry.register("decisions", "Decisions made", decisions.clone());
    for (kind, count) in &shown.made {
        decisions
            .get_or_create(&vec![label("kind", kind)])
            .inc_by(*count);
    }
    let failed = Counter::<u64>::default();
    failed.inc_by(shown.failed_orders);
    registry.register("failed_orders", "Orders that weren't carried out", failed);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}
