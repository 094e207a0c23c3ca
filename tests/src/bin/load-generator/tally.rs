//! What became of all requests: counts, a histogram, and a line for each.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use hdrhistogram::Histogram;
use scenarios::load::{Ending, Latencies, Request, Summary, monotonic_us};

/// The longest latency that is told apart, in microseconds: an hour.
const LONGEST: u64 = 3_600_000_000;
/// How many servers are counted apart, and how long their names may be: an answer may say anything.
const MOST_SERVERS: usize = 64;
const LONGEST_NAME: usize = 64;

/// What became of the requests so far.
pub struct Tally {
    began: Instant,
    began_us: u64,
    latencies: Histogram<u64>,
    endings: BTreeMap<Ending, u64>,
    servers: BTreeMap<String, u64>,
    log: Option<csv::Writer<File>>,
    /// Connections that were opened.
    pub opened: u64,
    /// Connections that were found closed.
    pub closed_idle: u64,
}

impl Tally {
    /// Begins now.
    ///
    /// # Errors
    /// The log can't be made.
    pub fn new(log: Option<&Path>) -> anyhow::Result<Self> {
        let log = log.map(|path| {
            csv::WriterBuilder::new()
                .delimiter(b'\t')
                .buffer_capacity(1 << 16)
                .from_path(path)
        });
        Ok(Self {
            log: log.transpose()?,
            latencies: Histogram::new_with_bounds(1, LONGEST, 3)?,
            endings: BTreeMap::new(),
            servers: BTreeMap::new(),
            opened: 0,
            closed_idle: 0,
            began: Instant::now(),
            began_us: monotonic_us(),
        })
    }

    /// Notes a request that was meant for `moment` and has ended now.
    ///
    /// # Errors
    /// The log can't be written.
    pub fn note(
        &mut self,
        moment: Instant,
        ending: Ending,
        server: &str,
        connection: usize,
        source: Option<IpAddr>,
    ) -> anyhow::Result<()> {
        let latency_us = u64::try_from(moment.elapsed().as_micros()).unwrap_or(u64::MAX);
        let server: String = server.chars().take(LONGEST_NAME).collect();
        *self.endings.entry(ending).or_default() += 1;
        if ending == Ending::Answered {
            self.latencies.saturating_record(latency_us.max(1));
            if let Some(count) = self.servers.get_mut(&server) {
                *count += 1;
            } else if self.servers.len() < MOST_SERVERS {
                self.servers.insert(server.clone(), 1);
            }
        }
        if let Some(log) = &mut self.log {
            let start = moment.saturating_duration_since(self.began);
            log.serialize(Request {
                start_ms: start.as_micros() as f64 / 1000.0,
                latency_us,
                ending,
                server,
                connection,
                source,
            })?;
        }
        Ok(())
    }

    /// Ends now.
    ///
    /// # Errors
    /// The log can't be written.
    pub fn finish(mut self, connections: usize) -> anyhow::Result<Summary> {
        if let Some(log) = &mut self.log {
            log.flush()?;
        }
        let seconds = self.began.elapsed().as_secs_f64();
        let answered = self.endings.remove(&Ending::Answered).unwrap_or(0);
        let failed: u64 = self.endings.values().sum();
        let at = |quantile| self.latencies.value_at_quantile(quantile);
        Ok(Summary {
            began_us: self.began_us,
            seconds,
            connections,
            requests: answered + failed,
            answered,
            failed,
            failures: self.endings,
            throughput: answered as f64 / seconds,
            opened: self.opened,
            closed_idle: self.closed_idle,
            latency_us: Latencies {
                mean: self.latencies.mean(),
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
                p999: at(0.999),
                max: self.latencies.max(),
            },
            servers: self.servers,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn percentiles_are_those_of_what_was_answered() {
        let mut tally = Tally::new(None).unwrap();
        let now = Instant::now();
        for milliseconds in 1..=100 {
            let moment = now
                .checked_sub(Duration::from_millis(milliseconds))
                .unwrap();
            let server = ["mirror 1", "mirror 2"][usize::from(milliseconds > 25)];
            tally
                .note(moment, Ending::Answered, server, 0, None)
                .unwrap();
        }
        let long_ago = now.checked_sub(Duration::from_secs(60)).unwrap();
        for ending in [Ending::Timeout, Ending::InFlight, Ending::InFlight] {
            tally.note(long_ago, ending, "", 0, None).unwrap();
        }
        let summary = tally.finish(1).unwrap();
        assert_eq!(
            (summary.requests, summary.answered, summary.failed),
            (103, 100, 3)
        );
        assert_eq!(summary.count(Ending::InFlight), 2);
        assert_eq!(summary.count(Ending::BadStatus), 0);
        assert_eq!(summary.servers["mirror 1"], 25);
        assert_eq!(summary.servers["mirror 2"], 75);
        let Latencies {
            mean,
            p50,
            p90,
            p99,
            max,
            ..
        } = summary.latency_us;
        for (seen, expected) in [
            (p50, 50),
            (p90, 90),
            (p99, 99),
            (max, 100),
            (mean as u64, 50),
        ] {
            // A thousandth, and what this test took meanwhile.
            let expected = expected * 1000..expected * 1002 + 5000;
            assert!(expected.contains(&seen), "{seen} isn't in {expected:?}");
        }
    }

    #[test]
    fn what_servers_call_themselves_takes_no_more_room_than_is_meant_for_it() {
        let mut tally = Tally::new(None).unwrap();
        for number in 0..1000 {
            let name = format!("{number}{}", "x".repeat(1000));
            tally
                .note(Instant::now(), Ending::Answered, &name, 0, None)
                .unwrap();
        }
        let summary = tally.finish(1).unwrap();
        assert_eq!(summary.answered, 1000);
        assert_eq!(summary.servers.len(), MOST_SERVERS);
        assert!(
            summary
                .servers
                .keys()
                .all(|name| name.len() == LONGEST_NAME)
        );
    }
}
