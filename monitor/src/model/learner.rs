//! Finding a mirror's two numbers from what is measured.
//!
//! Samples (so many requests a second, answered in so long) are gathered in bins of similar rate. The queue that is
//! believed is the one that lies nearest to the bins' means, on a logarithmic scale, and to what was believed
//! beforehand of the servers' number: with little to go on, that decides; with samples at several loads, the samples
//! do. It is found on a grid that becomes finer around the best point, so a fit always ends, and always in the same
//! place.
//!
//! Old samples lose weight. When samples say again and again, or once very loudly, that the mirror isn't what it was
//! (somebody has taken half of its memory, a backup has begun), the old ones are forgotten at once; of what was known
//! only the number of servers counts on, since machines become slower more often than they lose processors.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Queue;

/// After this time a sample has half of its weight.
const HALF_LIFE: Duration = Duration::from_secs(900);
/// After this time half of the highest load is no longer taken for proven.
const PROVEN_HALF_LIFE: Duration = Duration::from_secs(6 * 3600);
/// Rates in one bin differ by less than this factor.
const BIN: f64 = 1.15;
/// How far a sample of one measurement may lie from the truth: a factor of e to this.
const NOISE: f64 = 0.25;
/// The most weight that a bin has, in samples: what was seen often at one load says nothing about others.
const MAX_BIN_WEIGHT: f64 = 20.0;
/// Below this weight a bin is dropped.
const MIN_BIN_WEIGHT: f64 = 0.01;
/// Answers that a sample must have to count in full.
const FULL_COUNT: f64 = 50.0;
/// Answers that a sample must have to surprise anybody.
const SURPRISING_COUNT: u64 = 8;
/// A sample that differs by this factor is a surprise by itself.
const LOUD: f64 = 3.0;
/// Samples that differ by this factor, in the same direction, are one together.
const NOTICEABLE: f64 = 1.6;
/// As many as this.
const NOTICEABLE_TIMES: u32 = 3;
/// What is believed of a mirror of which nothing is known: so many servers, give or take a factor.
const USUAL_SERVERS: Belief = Belief {
    of: 4.0,
    spread: 1.5,
};
/// It answers well as long as that takes no more than so many service times.
const WELL: f64 = 2.5;
/// A mirror that uses this part of its capacity may be one that can't keep up.
const FULL: f64 = 0.92;

/// What was measured of a mirror in some time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Requests a second.
    pub rate: f64,
    /// Mean response time in seconds.
    pub response: f64,
    /// How many answers that is the mean of.
    pub count: u64,
}

/// What is believed before anything is measured: a number, and how far off it may be (a factor of e to this).
#[derive(Debug, Clone, Copy, PartialEq)]
struct Belief {
    of: f64,
    spread: f64,
}

impl Belief {
    fn disbelief(&self, value: f64) -> f64 {
        ((value / self.of).ln() / self.spread).powi(2)
    }
}

/// Samples of similar rates, weighted.
#[derive(Debug, Clone, Copy, Default)]
struct Bin {
    weight: f64,
    rate: f64,
    response: f64,
}

/// What has been learned of one mirror.
#[derive(Debug, Clone)]
pub struct Learner {
    bins: BTreeMap<i32, Bin>,
    /// When the weights were last brought down.
    aged: Duration,
    servers: Belief,
    /// The capacity in requests a second, if an operator has said it.
    told: Option<Belief>,
    /// The same, if something else has said it lately.
    seen: Option<Belief>,
    /// The highest rate that was answered as the model says.
    proven: f64,
    /// Samples in a row that were slower (above 0) or faster than the model.
    strikes: i32,
    /// The model's error: a running mean of how far the logarithms were apart.
    error: Option<f64>,
    queue: Option<Queue>,
}

impl Default for Learner {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Learner {
    /// Of a mirror of which nothing has been measured; `capacity` in requests a second, if an operator has said it.
    pub fn new(capacity: Option<f64>) -> Self {
        Self {
            bins: BTreeMap::new(),
            aged: Duration::ZERO,
            servers: USUAL_SERVERS,
            told: capacity.map(|of| Belief { of, spread: 0.3 }),
            seen: None,
            proven: 0.0,
            strikes: 0,
            error: None,
            queue: None,
        }
    }

    /// The queue that is believed; none before the first sample.
    pub fn queue(&self) -> Option<Queue> {
        self.queue
    }

    /// How far predictions were from what came, on average, as a part of it: 0.2 is a fifth.
    pub fn error(&self) -> Option<f64> {
        self.error.map(f64::exp_m1)
    }

    /// The most requests a second that the mirror may be given: what it has been seen to answer well, and as much more
    /// as it then seemed to have free, so that the steps become smaller as it fills. No limit where somebody has said its
    /// capacity.
    pub fn trusted_rate(&self) -> f64 {
        let used = self
            .queue
            .map_or(1.0, |queue| queue.utilisation(self.proven).min(1.0));
        if self.told.is_some() || self.seen.is_some() {
            return f64::INFINITY;
        }
        self.proven * (2.0 - used)
    }

    /// A source other than response times says how much of its capacity the mirror uses, at this rate.
    pub fn take_utilisation(&mut self, rate: f64, utilisation: f64) {
        let is_telling = rate > 0.0 && (0.1..=1.0).contains(&utilisation);
        if is_telling {
            self.seen = Some(Belief {
                of: rate / utilisation,
                spread: 0.2,
            });
        }
    }

    /// Learns from a sample at a moment. Tells whether the mirror was found to be another than before. What isn't
    /// a positive number is passed over.
    pub fn take(&mut self, sample: Sample, now: Duration) -> bool {
        let is_sound = |number: f64| number.is_finite() && number > 0.0;
        if !is_sound(sample.rate) || !is_sound(sample.response) || sample.count == 0 {
            return false;
        }
        self.age(now);
        let apart = self.queue.map_or(0.0, |queue| apart(&sample, &queue));
        if self.queue.is_some() {
            let error = self.error.get_or_insert(apart.abs());
            *error += 0.1 * sample_weight(&sample) * (apart.abs() - *error);
        }
        self.put(&sample);
        let is_far = apart.abs() > NOTICEABLE.ln();
        let queue = self.fit(is_far || self.queue.is_none());
        let is_surprise = self.is_surprise(&sample, &queue);
        self.queue = Some(queue);
        if is_surprise {
            self.forget();
            self.put(&sample);
            self.queue = Some(self.fit(true));
        }
        let is_well = self
            .queue
            .is_some_and(|queue| sample.response < WELL * queue.service_time());
        if is_well {
            self.proven = self.proven.max(sample.rate);
        }
        is_surprise
    }

    /// Whether it can't be the same mirror any more: not even the queue that takes account of the sample says
    /// anything like it.
    fn is_surprise(&mut self, sample: &Sample, queue: &Queue) -> bool {
        if sample.count < SURPRISING_COUNT {
            return false;
        }
        let apart = apart(sample, queue);
        if apart.abs() < NOTICEABLE.ln() {
            self.strikes = 0;
            return false;
        }
        let direction = if apart > 0.0 { 1 } else { -1 };
        self.strikes = if self.strikes.signum() == direction {
            self.strikes + direction
        } else {
            direction
        };
        apart.abs() > LOUD.ln() || self.strikes.unsigned_abs() >= NOTICEABLE_TIMES
    }

    /// Forgets what was measured of the mirror that it was.
    fn forget(&mut self) {
        self.bins.clear();
        self.proven = 0.0;
        self.strikes = 0;
        if let Some(queue) = self.queue {
            self.servers = Belief {
                of: queue.servers(),
                spread: 0.7,
            };
        }
        self.seen = None;
        // It was said of the mirror that it was, but may be true again.
        if let Some(told) = &mut self.told {
            told.spread = 1.0;
        }
    }

    /// Lets what is known grow older.
    fn age(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.aged).as_secs_f64();
        self.aged = now;
        let factor = 0.5_f64.powf(passed / HALF_LIFE.as_secs_f64());
        self.bins.retain(|_, bin| {
            bin.weight *= factor;
            bin.weight > MIN_BIN_WEIGHT
        });
        self.proven *= 0.5_f64.powf(passed / PROVEN_HALF_LIFE.as_secs_f64());
    }

    fn put(&mut self, sample: &Sample) {
        let number = (sample.rate.ln() / BIN.ln()).floor();
        let bin = self.bins.entry(number as i32).or_default();
        let weight = sample_weight(sample);
        let sum = bin.weight + weight;
        bin.rate += (sample.rate - bin.rate) * weight / sum;
        bin.response += (sample.response - bin.response) * weight / sum;
        bin.weight = sum.min(MAX_BIN_WEIGHT);
    }

    /// The queue nearest to what is known, looked for everywhere or only around the one that is believed. The grid is
    /// over service time and capacity: with little to do the one decides, with too much the other.
    fn fit(&self, everywhere: bool) -> Queue {
        const STEPS: i32 = 4;
        let (busiest, fastest) = (self.busiest(), self.fastest());
        let (mut best, mut reach, rounds) = match self.queue {
            Some(queue) if !everywhere => (
                (queue.service_time().ln(), queue.capacity().ln()),
                (0.2_f64, 0.4_f64),
                2,
            ),
            _ => {
                // From what a mirror that can't keep up would take without a queue, to what was measured.
                let least = fastest.min(self.servers.of / busiest).ln() - 0.7;
                let reach = 0.5 * (fastest.ln() + 0.2 - least);
                ((least + reach, busiest.ln() + 3.0), (reach, 3.05), 6)
            }
        };
        for _ in 0..rounds {
            let middle = best;
            let mut least = f64::INFINITY;
            for i in -STEPS..=STEPS {
                for j in -STEPS..=STEPS {
                    let part = |steps: i32| f64::from(steps) / f64::from(STEPS);
                    let point = (middle.0 + reach.0 * part(i), middle.1 + reach.1 * part(j));
                    let distance = self.distance(&at(point));
                    if distance < least {
                        (least, best) = (distance, point);
                    }
                }
            }
            reach = (reach.0 / 2.0, reach.1 / 2.0);
        }
        at(best)
    }

    /// How far a queue is from what is known.
    fn distance(&self, queue: &Queue) -> f64 {
        let measured: f64 = self
            .bins
            .values()
            .map(|bin| {
                let sample = Sample {
                    rate: bin.rate,
                    response: bin.response,
                    count: 1,
                };
                let apart = apart(&sample, queue) / NOISE;
                // The few that are far off are no reason to move everything.
                bin.weight * apart.powi(2).min(9.0 + apart.abs())
            })
            .sum();
        let capacity: f64 = [self.told, self.seen]
            .iter()
            .flatten()
            .map(|belief| belief.disbelief(queue.capacity()))
            .sum();
        // It can't have answered more than it is capable of.
        let too_small = (self.busiest() / queue.capacity()).max(1.0).ln() / 0.1;
        measured + self.servers.disbelief(queue.servers()) + capacity + too_small.powi(2)
    }

    fn busiest(&self) -> f64 {
        self.bins.values().map(|bin| bin.rate).fold(0.0, f64::max)
    }

    fn fastest(&self) -> f64 {
        let responses = self.bins.values().map(|bin| bin.response);
        responses.fold(f64::INFINITY, f64::min)
    }
}

/// How far a sample is from what a queue says: the logarithm of their ratio. A mirror that can't keep up answers at its
/// capacity, and after any time.
fn apart(sample: &Sample, queue: &Queue) -> f64 {
    let apart = (sample.response / queue.response(sample.rate)).ln();
    if queue.utilisation(sample.rate) > FULL {
        apart.min(0.0)
    } else {
        apart
    }
}

/// The queue with these logarithms of service time and capacity.
fn at((service_time, capacity): (f64, f64)) -> Queue {
    Queue::new(service_time.exp(), (service_time + capacity).exp())
}

/// How much a sample counts: more answers, more weight.
fn sample_weight(sample: &Sample) -> f64 {
    (sample.count as f64 / FULL_COUNT).min(1.0)
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Has a learner watch a queue for some samples, a second each, at rates that wander between two parts of the
    /// queue's capacity. Samples are off by a fifth.
    fn watch(learner: &mut Learner, queue: &Queue, parts: (f64, f64), seconds: u64, began: u64) {
        let mut random = SmallRng::seed_from_u64(began);
        for second in 0..seconds {
            let rate = queue.capacity() * random.random_range(parts.0..=parts.1);
            let noise = (random.random_range(-0.2..0.2_f64)).exp();
            let sample = Sample {
                rate,
                response: queue.response(rate) * noise,
                count: rate.ceil() as u64,
            };
            learner.take(sample, Duration::from_secs(began + second));
        }
    }

    fn off(learned: f64, true_value: f64) -> f64 {
        (learned / true_value - 1.0).abs()
    }

    #[test]
    fn a_load_that_changes_shows_both_numbers() {
        for (service_time, servers) in [(0.02, 8.0), (0.1, 2.0), (0.005, 1.0), (0.05, 32.0)] {
            let queue = Queue::new(service_time, servers);
            let mut learner = Learner::default();
            watch(&mut learner, &queue, (0.1, 0.95), 300, 0);
            let learned = learner.queue().expect("it was taught");
            let what = format!("{queue:?} {learned:?}");
            assert!(off(learned.service_time(), service_time) < 0.2, "{what}");
            assert!(off(learned.capacity(), queue.capacity()) < 0.2, "{what}");
            assert!(learner.error().expect("it predicted") < 0.25, "{what}");
        }
    }

    #[test]
    fn what_was_never_seen_is_not_trusted() {
        let queue = Queue::new(0.02, 8.0);
        let mut learner = Learner::default();
        assert_eq!(learner.trusted_rate(), 0.0);
        watch(&mut learner, &queue, (0.05, 0.1), 300, 0);
        assert!(learner.trusted_rate() < 0.2 * queue.capacity());
        let mut told = Learner::new(Some(400.0));
        watch(&mut told, &queue, (0.05, 0.1), 300, 0);
        let learned = told.queue().expect("it was taught").capacity();
        assert!(off(learned, 400.0) < 0.3, "{learned}");
    }

    #[test]
    fn ten_times_slower_is_noticed_at_once() {
        let queue = Queue::new(0.02, 4.0);
        let mut learner = Learner::default();
        watch(&mut learner, &queue, (0.3, 0.6), 120, 0);
        // 21 connections ask one request after the other: it can't keep up any more.
        let slow = Sample {
            rate: 20.0,
            response: 1.05,
            count: 20,
        };
        assert!(learner.take(slow, Duration::from_secs(121)));
        let learned = learner.queue().expect("it was taught");
        assert!(off(learned.capacity(), 20.0) < 0.5, "{learned:?}");
        // And back again.
        watch(&mut learner, &queue, (0.1, 0.2), 60, 122);
        let learned = learner.queue().expect("it was taught");
        assert!(off(learned.service_time(), 0.02) < 0.3, "{learned:?}");
    }

    #[test]
    fn noise_is_no_surprise() {
        let queue = Queue::new(0.02, 4.0);
        let mut learner = Learner::default();
        let mut random = SmallRng::seed_from_u64(7);
        let surprises = (0..2000).filter(|second| {
            let rate = queue.capacity() * random.random_range(0.2..0.9);
            let response = queue.response(rate) * random.random_range(-0.4..0.4_f64).exp();
            let count = rate as u64;
            learner.take(
                Sample {
                    rate,
                    response,
                    count,
                },
                Duration::from_secs(*second),
            )
        });
        assert!(surprises.count() <= 2);
    }

    #[test]
    fn nonsense_teaches_nothing() {
        let mut learner = Learner::default();
        for (rate, response, count) in [
            (f64::NAN, 1.0, 5),
            (1.0, f64::NAN, 5),
            (1.0, f64::INFINITY, 5),
            (-1.0, 1.0, 5),
            (1.0, 0.0, 5),
            (1.0, 1.0, 0),
        ] {
            let sample = Sample {
                rate,
                response,
                count,
            };
            assert!(!learner.take(sample, Duration::ZERO));
        }
        learner.take_utilisation(f64::NAN, 0.5);
        learner.take_utilisation(10.0, f64::NAN);
        assert_eq!(learner.queue(), None);
    }

    #[test]
    fn another_source_may_tell_the_capacity() {
        let queue = Queue::new(0.02, 16.0);
        let mut learner = Learner::default();
        for second in 0..60 {
            let rate = 160.0;
            learner.take_utilisation(rate, queue.utilisation(rate));
            let sample = Sample {
                rate,
                response: queue.response(rate),
                count: 160,
            };
            learner.take(sample, Duration::from_secs(second));
        }
        let learned = learner.queue().expect("it was taught").capacity();
        assert!(off(learned, queue.capacity()) < 0.25, "{learned}");
    }
}
