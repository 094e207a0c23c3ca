//! A mirror as a queue.
//!
//! Requests come at random, wait in one line, and are served by *c* servers, each of which takes a service
//! time that varies: M/M/c. Its waiting time is taken from Sakasegawa's approximation (H. Sakasegawa, "An
//! approximation formula Lq ≈ α·ρ^β/(1−ρ)", Ann. Inst. Statist. Math. 29, 1977, p. 67), which is exact for one server,
//! within some hundredths for more, and takes numbers of servers that aren't whole: a mirror's "servers" are what its
//! processors, its database and its locks come to, and that is seldom whole.

/// Utilisation from which on the response time goes on in a straight line: the formula has a pole at 1, but a
/// measured load may be beyond what a mirror was thought to be capable of.
const STRAIGHT_FROM: f64 = 0.98;

/// Response time as a function of load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Queue {
    service_time: f64,
    servers: f64,
}

impl Queue {
    /// A queue with this service time in seconds, and this number of servers. What is not a number, or too
    /// small, becomes a microsecond and one server.
    pub fn new(service_time: f64, servers: f64) -> Self {
        Self {
            service_time: service_time.clamp(1e-6, 1e6).max(1e-6),
            servers: servers.clamp(1.0, 1e9).max(1.0),
        }
    }

    /// How long a request takes that needn't wait, in seconds.
    pub fn service_time(&self) -> f64 {
        self.service_time
    }

    /// How many requests are served at the same time.
    pub fn servers(&self) -> f64 {
        self.servers
    }

    /// The most requests a second.
    pub fn capacity(&self) -> f64 {
        self.servers / self.service_time
    }

    /// The part of its capacity that `rate` requests a second are; above 1 it can't keep up.
    pub fn utilisation(&self, rate: f64) -> f64 {
        rate.max(0.0) / self.capacity()
    }

    /// The mean response time in seconds at `rate` requests a second. It grows with the rate, ever faster.
    pub fn response(&self, rate: f64) -> f64 {
        let utilisation = self.utilisation(rate);
        if utilisation <= STRAIGHT_FROM {
            return self.service_time * (1.0 + self.waiting(utilisation));
        }
        let slope = self.waiting_slope(STRAIGHT_FROM);
        self.service_time
            * (1.0 + self.waiting(STRAIGHT_FROM) + slope * (utilisation - STRAIGHT_FROM))
    }

    /// What one more request a second costs all requests together, in seconds: the slope of
    /// `rate · response(rate)`.
    pub fn marginal(&self, rate: f64) -> f64 {
        let utilisation = self.utilisation(rate);
        let slope = self.waiting_slope(utilisation.min(STRAIGHT_FROM));
        self.response(rate) + self.service_time * utilisation * slope
    }

    /// The waiting time in service times.
    fn waiting(&self, utilisation: f64) -> f64 {
        utilisation.powf(self.exponent()) / (self.servers * (1.0 - utilisation))
    }

    /// By how much that grows with the utilisation.
    fn waiting_slope(&self, utilisation: f64) -> f64 {
        let exponent = self.exponent();
        let free = 1.0 - utilisation;
        let rising = exponent * utilisation.powf(exponent - 1.0) / free;
        (rising + utilisation.powf(exponent) / (free * free)) / self.servers
    }

    fn exponent(&self) -> f64 {
        (2.0 * (self.servers + 1.0)).sqrt() - 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mean response time of M/M/c, by Erlang's C formula.
    fn exact(service_time: f64, servers: u32, rate: f64) -> f64 {
        let offered = rate * service_time;
        let utilisation = offered / f64::from(servers);
        // Erlang B by its recursion, then C from B.
        let blocked = (1..=servers).fold(1.0, |b, n| offered * b / (f64::from(n) + offered * b));
        let waits = blocked / (1.0 - utilisation * (1.0 - blocked));
        service_time + waits * service_time / (f64::from(servers) * (1.0 - utilisation))
    }

    #[test]
    fn one_server_is_exact() {
        let queue = Queue::new(0.02, 1.0);
        for rate in [0.0, 5.0, 25.0, 40.0, 48.0] {
            let expected = 0.02 / (1.0 - rate * 0.02);
            assert!((queue.response(rate) - expected).abs() < 1e-9, "{rate}");
        }
    }

    /// What the document says of the formula's own error.
    #[test]
    fn the_formula_is_within_three_hundredths_of_erlangs() {
        for servers in [2, 4, 8, 16, 64] {
            let queue = Queue::new(0.05, f64::from(servers));
            for step in 0..=19 {
                let rate = queue.capacity() * 0.05 * f64::from(step);
                let exact = exact(0.05, servers, rate);
                let error = (queue.response(rate) - exact).abs() / exact;
                assert!(error < 0.03, "{servers} servers at {rate}: {error}");
            }
        }
    }

    #[test]
    fn the_marginal_cost_is_the_slope() {
        for servers in [1.0, 2.5, 8.0] {
            let queue = Queue::new(0.1, servers);
            let cost = |rate: f64| rate * queue.response(rate);
            for part in [0.1, 0.5, 0.9, 0.97, 1.1, 2.0] {
                let rate = part * queue.capacity();
                let slope = (cost(rate + 1e-6) - cost(rate - 1e-6)) / 2e-6;
                let marginal = queue.marginal(rate);
                assert!(
                    (slope - marginal).abs() < 1e-3 * marginal,
                    "{servers} at {part}: {slope} {marginal}"
                );
            }
        }
    }

    #[test]
    fn it_grows_without_a_jump_and_stays_finite() {
        let queue = Queue::new(0.1, 4.0);
        let mut before = 0.0;
        for step in 0..4000 {
            let response = queue.response(f64::from(step) * 0.04);
            assert!(response.is_finite() && response >= before);
            assert!(before == 0.0 || response < 1.5 * before, "{step}");
            before = response;
        }
        assert!(Queue::new(f64::NAN, f64::NAN).response(1e9).is_finite());
    }
}
