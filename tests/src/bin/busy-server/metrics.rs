//! The figures of load that the server shows at `/metrics`, in the text format of OpenMetrics.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::queue::Load;

/// What is counted, and what is looked at when somebody asks.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    workers: Gauge,
    busy: Gauge,
    utilisation: Gauge<f64, AtomicU64>,
    waiting: Gauge,
    requests: Counter,
    queued: Counter<f64, AtomicU64>,
    served: Counter<f64, AtomicU64>,
}

impl Metrics {
    /// All zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("busy_server");
        let workers = Gauge::default();
        registry.register("workers", "Workers that there are", workers.clone());
        let busy = Gauge::default();
        registry.register("busy_workers", "Workers at work", busy.clone());
        let utilisation = Gauge::default();
        registry.register(
            "utilization",
            "Busy workers as a share of all, from 0 to 1",
            utilisation.clone(),
        );
        let waiting = Gauge::default();
        registry.register(
            "queue_length",
            "Requests that wait for a worker",
            waiting.clone(),
        );
        let requests = Counter::default();
        registry.register(
            "requests",
            "Requests that have been served",
            requests.clone(),
        );
        let queued = Counter::default();
        registry.register_with_unit(
            "queued",
            "Time that served requests had to wait",
            Unit::Seconds,
            queued.clone(),
        );
        let served = Counter::default();
        registry.register_with_unit(
            "served",
            "Time that workers were at work for them",
            Unit::Seconds,
            served.clone(),
        );
        Self {
            registry,
            workers,
            busy,
            utilisation,
            waiting,
            requests,
            queued,
            served,
        }
    }

    /// Counts a request that has been served.
    pub fn count(&self, queued: Duration, served: Duration) {
        self.requests.inc();
        self.queued.inc_by(queued.as_secs_f64());
        self.served.inc_by(served.as_secs_f64());
    }

    /// The page.
    ///
    /// # Errors
    /// Writing to a string doesn't fail.
    pub fn page(&self, load: Load) -> Result<String, fmt::Error> {
        self.workers.set(saturating(load.workers));
        self.busy.set(saturating(load.busy));
        self.utilisation.set(load.utilisation());
        self.waiting.set(saturating(load.waiting));
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

fn saturating(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_each_figure() {
        let metrics = Metrics::new();
        metrics.count(Duration::from_millis(500), Duration::from_millis(250));
        metrics.count(Duration::ZERO, Duration::from_millis(250));
        let page = metrics
            .page(Load {
                workers: 4,
                busy: 3,
                waiting: 0,
            })
            .unwrap();
        for line in [
            "busy_server_workers 4",
            "busy_server_busy_workers 3",
            "busy_server_utilization 0.75",
            "busy_server_queue_length 0",
            "busy_server_requests_total 2",
            "busy_server_queued_seconds_total 0.5",
            "busy_server_served_seconds_total 0.5",
        ] {
            assert!(page.lines().any(|shown| shown == line), "{line}: {page}");
        }
    }
}
