//! Metrics for Prometheus: what the workers count, made into text when somebody asks.
//!
//! There is a line for each listed name, and none for any other, so that nobody can fill the monitoring by asking
//! for names.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use log::warn;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::control::Control;
use crate::counters::{Count, LATENCY_BOUNDS, LatencyCounts};
use crate::passing::UpstreamId;
use crate::worker::Shared;

/// Those who may ask at the same time.
const MAX_CLIENTS: usize = 8;

/// How long one of them may take for a request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What the text is (OpenMetrics 1.0).
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All that is told.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
}

/// The families of counters, with what they mean.
const FAMILIES: &[(&str, &str)] = &[
    ("answers", "Queries that the server has answered by itself"),
    ("passed", "Queries that were passed on to the DNS"),
    ("returned", "What became of the queries that were passed on"),
    (
        "repeated",
        "Queries that were sent to an upstream once more",
    ),
    ("dropped", "Queries that were not answered"),
    ("strays", "Messages of upstreams that answered no query"),
    ("unsent", "Answers that could not be sent"),
    ("unlogged", "Queries that are missing from the query log"),
];

#[derive(Debug)]
struct Source {
    shared: Arc<Shared>,
    control: Arc<Control>,
}

impl Metrics {
    /// Tells what is counted here, and how often each name was answered.
    pub fn new(shared: Arc<Shared>, control: Arc<Control>) -> Self {
        let mut registry = Registry::with_prefix("shunt_naming");
        registry.register_collector(Box::new(Source { shared, control }));
        Self { registry }
    }

    /// The text.
    ///
    /// # Errors
    /// None that a string could have.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl Collector for Source {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let counters = &self.shared.counters;
        let sum = |count| counters.iter().map(|counters| counters.read(count)).sum();
        for (family, help) in FAMILIES {
            let mut metric = encoder.encode_descriptor(family, help, None, MetricType::Counter)?;
            for count in Count::ALL {
                let (own, label) = count.name();
                if own == *family {
                    let number: u64 = sum(*count);
                    metric
                        .encode_family(&[("what", label)])?
                        .encode_counter::<NoLabelSet, _, u64>(&number, None)?;
                }
            }
        }
        let catalogue = self.control.catalogue();
        let help = "Listed names";
        let mut metric = encoder.encode_descriptor("names", help, None, MetricType::Gauge)?;
        metric.encode_gauge(&(catalogue.len() as u64))?;
        let help = "Queries that were answered with a listed name";
        let mut metric =
            encoder.encode_descriptor("name_answers", help, None, MetricType::Counter)?;
        for (name, answered) in catalogue.answered() {
            metric
                .encode_family(&[("name", name.as_str())])?
                .encode_counter::<NoLabelSet, _, u64>(&answered, None)?;
        }
        let help = "How long upstreams took to answer, in seconds";
        let mut metric =
            encoder.encode_descriptor("upstream_seconds", help, None, MetricType::Histogram)?;
        for (number, address) in self.shared.upstreams.iter().enumerate() {
            let mut all = LatencyCounts::default();
            for counters in counters {
                let LatencyCounts { classes, sum } = counters.latencies(UpstreamId(number));
                for (all, class) in all.classes.iter_mut().zip(classes) {
                    *all += class;
                }
                all.sum += sum;
            }
            let seconds = |micros: u64| micros as f64 / 1e6;
            // The encoder adds them up, and calls the last one infinite.
            let bounds = LATENCY_BOUNDS.iter().map(|bound| seconds(*bound));
            let buckets: Vec<(f64, u64)> = bounds.chain([f64::MAX]).zip(all.classes).collect();
            metric
                .encode_family(&[("upstream", address.to_string())])?
                .encode_histogram::<NoLabelSet>(
                    seconds(all.sum),
                    all.classes.iter().sum(),
                    &buckets,
                    None,
                )?;
        }
        Ok(())
    }
}

/// Serves the text at `/metrics` for ever.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely; some client will end.
                warn!("can't accept a client for metrics: {error}");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            continue;
        };
        let metrics = Arc::clone(&metrics);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = answer(&request, &metrics);
                async { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(TIMEOUT)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // Whoever breaks off needs nothing more.
            let _ = timeout(TIMEOUT, connection).await;
            drop(place);
        });
    }
}

fn answer(request: &Request<Incoming>, metrics: &Metrics) -> Response<Full<Bytes>> {
    let (status, kind, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => match metrics.text() {
            Ok(text) => (StatusCode::OK, OPEN_METRICS, text),
            Err(error) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "text/plain",
                error.to_string(),
            ),
        },
        _ => (
            StatusCode::NOT_FOUND,
            "text/plain",
            "see /metrics\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
