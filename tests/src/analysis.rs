//! What a log of requests says: how long they took, when the last client was well again, where they went.
//!
//! Times are in milliseconds since the load began.

use crate::load::{Ending, Request};

/// How long requests took, and how many there were.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Times {
    /// Half of them took no longer than this, in milliseconds.
    pub p50: f64,
    /// Nine tenths of them didn't either.
    pub p90: f64,
    /// Nor did 99 hundredths.
    pub p99: f64,
    /// In milliseconds.
    pub mean: f64,
    /// All of them.
    pub count: usize,
    /// Those of them that failed.
    pub failed: usize,
}

impl Times {
    /// Of these requests; none if there are none. One that failed counts as `failure_ms`: who leaves failures
    /// out finds a system the quicker the more requests it fails.
    pub fn of<'r>(
        requests: impl IntoIterator<Item = &'r Request>,
        failure_ms: f64,
    ) -> Option<Self> {
        let mut failed = 0;
        let mut times: Vec<f64> = requests
            .into_iter()
            .map(|request| match request.ending {
                Ending::Answered => request.latency_us as f64 / 1000.0,
                _ => {
                    failed += 1;
                    failure_ms
                }
            })
            .collect();
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied();
        Some(Self {
            p50: at(0.5)?,
            p90: at(0.9)?,
            p99: at(0.99)?,
            mean: times.iter().sum::<f64>() / times.len() as f64,
            count: times.len(),
            failed,
        })
    }
}

/// How long after `trouble` the last connection had good answers again, in milliseconds.
///
/// For each connection that is the end of the first answer after the last failure, or, if none failed, of the
/// first answer at all: one that was held up shows that way. None: some connection had none until the end of
/// the log.
pub fn recovered(requests: &[Request], trouble: f64) -> Option<f64> {
    let connections = requests.iter().map(|request| request.connection).max()? + 1;
    let mut well = vec![None; connections];
    let mut ended: Vec<&Request> = requests
        .iter()
        .filter(|request| request.end_ms() >= trouble)
        .collect();
    ended.sort_by(|one, other| one.end_ms().total_cmp(&other.end_ms()));
    for request in ended {
        let well = &mut well[request.connection];
        match request.ending {
            Ending::Answered => *well = well.or(Some(request.end_ms())),
            _ => *well = None,
        }
    }
    // Who had been asked before, and has to answer again.
    let asked = |number: &usize| requests.iter().any(|request| request.connection == *number);
    (0..connections)
        .filter(asked)
        .map(|number| well[number].map(|end| end - trouble))
        .collect::<Option<Vec<f64>>>()?
        .into_iter()
        .max_by(f64::total_cmp)
}

/// The requests that failed after `trouble`.
pub fn failed_after(requests: &[Request], trouble: f64) -> usize {
    requests
        .iter()
        .filter(|request| request.ending != Ending::Answered && request.end_ms() >= trouble)
        .count()
}

/// How many milliseconds after `trouble` a server had less than a fifth of the requests that it had before, for
/// the first time and for half a second. None: it kept more.
pub fn left(requests: &[Request], trouble: f64, server: &str) -> Option<f64> {
    const BEFORE: f64 = 3000.0;
    const WINDOW: f64 = 500.0;
    const STEP: f64 = 50.0;
    const SHARE: f64 = 0.2;
    let answered = |from: f64, to: f64| {
        requests
            .iter()
            .filter(|request| {
                request.server == server && request.start_ms >= from && request.start_ms < to
            })
            .count() as f64
    };
    let before = answered(trouble - BEFORE, trouble) / BEFORE;
    if before == 0.0 {
        return None;
    }
    let end = requests
        .iter()
        .map(|request| request.start_ms)
        .max_by(f64::total_cmp)?;
    let mut from = trouble;
    while from + WINDOW <= end {
        if answered(from, from + WINDOW) / WINDOW < SHARE * before {
            return Some(from - trouble);
        }
        from += STEP;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(connection: usize, start_ms: f64, end_ms: f64, ending: Ending) -> Request {
        Request {
            start_ms,
            latency_us: ((end_ms - start_ms) * 1000.0) as u64,
            ending,
            server: match ending {
                Ending::Answered => "mirror 1".into(),
                _ => String::new(),
            },
            connection,
            source: None,
        }
    }

    #[test]
    fn a_failure_counts_as_the_time_that_its_client_waited() {
        let mut requests: Vec<Request> = (1..=98)
            .map(|time| request(0, 0.0, time.into(), Ending::Answered))
            .collect();
        for _ in 0..2 {
            requests.push(request(0, 0.0, 1.0, Ending::InFlight));
        }
        let times = Times::of(&requests, 2000.0).unwrap();
        assert_eq!((times.count, times.failed), (100, 2));
        assert_eq!((times.p50, times.p90, times.p99), (51.0, 91.0, 2000.0));
        assert!((times.mean - (98.0 * 99.0 / 2.0 + 4000.0) / 100.0).abs() < 1e-9);
        assert_eq!(Times::of([], 1.0), None);
    }

    #[test]
    fn the_last_connection_to_be_well_again_counts() {
        use Ending::{Answered, InFlight, NoConnection};
        let mut requests = vec![
            request(0, 0.0, 10.0, Answered),
            request(0, 90.0, 110.0, Answered),
            request(1, 95.0, 100.0, InFlight),
            request(1, 120.0, 121.0, NoConnection),
            request(1, 140.0, 150.0, Answered),
            request(1, 160.0, 170.0, Answered),
            // Held up, but not failed.
            request(2, 99.0, 400.0, Answered),
            request(2, 410.0, 420.0, Answered),
        ];
        assert_eq!(recovered(&requests[..6], 100.0), Some(50.0));
        assert_eq!(recovered(&requests, 100.0), Some(300.0));
        assert_eq!(failed_after(&requests, 100.0), 2);
        assert_eq!(failed_after(&requests, 121.0), 1);
        requests.push(request(0, 500.0, 501.0, InFlight));
        assert_eq!(recovered(&requests, 100.0), None);
        // Nothing has been heard of connection 3 since.
        requests.pop();
        requests.push(request(3, 0.0, 5.0, Answered));
        assert_eq!(recovered(&requests, 100.0), None);
        assert_eq!(recovered(&[], 100.0), None);
    }

    #[test]
    fn a_server_is_left_when_hardly_anything_goes_there() {
        // A request every ten milliseconds, all to mirror 1 until 5 s, and from 6 s on every tenth.
        let requests: Vec<Request> = (0..1000)
            .filter(|number| *number < 600 || number % 10 == 0)
            .map(|number| {
                let start = f64::from(number) * 10.0;
                request(0, start, start + 5.0, Ending::Answered)
            })
            .collect();
        let time = left(&requests, 5000.0, "mirror 1").unwrap();
        // The window may hold a fifth: up to 100 ms of it before the change.
        assert!((900.0..=1000.0).contains(&time), "{time}");
        assert_eq!(left(&requests[..600], 5000.0, "mirror 1"), None);
        assert_eq!(left(&requests, 5000.0, "mirror 2"), None);
    }
}
