//! When requests are sent: at moments of their own (open loop), or some time after the last answer (closed).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::SmallRng;
use scenarios::timer::Timer;
use tokio::sync::Semaphore;

/// The moments at which requests are to be sent. Clones share them.
#[derive(Debug, Clone)]
pub enum Pace {
    /// A connection asks, hears the answer, and thinks.
    Closed(Rc<Thinking>),
    /// Requests come at random, however long the others take. Connections that share them take turns.
    Open(Rc<Arrivals>),
}

impl Pace {
    /// Waits for the next request of a connection whose last one has ended, and gives the moment for which it
    /// is meant. None: there will be no more.
    ///
    /// # Errors
    /// The timer's.
    pub async fn next(
        &self,
        timer: &mut Timer,
        random: &mut SmallRng,
    ) -> io::Result<Option<Instant>> {
        match self {
            Self::Closed(thinking) => thinking.next(timer, random).await,
            Self::Open(arrivals) => Ok(arrivals.next().await),
        }
    }

    /// There will be no more.
    pub fn end(&self) {
        match self {
            Self::Closed(thinking) => thinking.end.set(Instant::now()),
            Self::Open(arrivals) => arrivals.end(),
        }
    }
}

/// The closed loop.
#[derive(Debug)]
pub struct Thinking {
    mean: Duration,
    end: Cell<Instant>,
}

impl Thinking {
    /// Connections that think, exponentially about `mean`, until `end`.
    pub fn new(mean: Duration, end: Instant) -> Self {
        Self {
            mean,
            end: Cell::new(end),
        }
    }

    async fn next(&self, timer: &mut Timer, random: &mut SmallRng) -> io::Result<Option<Instant>> {
        let moment = Instant::now() + exponential(self.mean, random);
        timer.wait_until(moment.min(self.end.get())).await?;
        // What it takes to be woken isn't the server's doing.
        let now = Instant::now();
        Ok((now < self.end.get()).then_some(now))
    }
}

/// The open loop: moments that have come, and that no connection has taken up yet.
#[derive(Debug)]
pub struct Arrivals {
    waiting: RefCell<VecDeque<Instant>>,
    /// A permit for each of them. Connections queue for these, so all have their turn.
    permits: Semaphore,
}

impl Arrivals {
    /// None yet.
    pub fn new() -> Self {
        Self {
            waiting: RefCell::default(),
            permits: Semaphore::new(0),
        }
    }

    /// Adds the moments of a Poisson process with `rate` a second, each as it comes, until `end`.
    ///
    /// # Errors
    /// The timer's.
    pub async fn arrive(&self, rate: f64, end: Instant, random: &mut SmallRng) -> io::Result<()> {
        let mut timer = Timer::new()?;
        let between = Duration::from_secs_f64(1.0 / rate);
        let mut moment = Instant::now();
        loop {
            // Counted from the last moment that was meant, so that lateness doesn't add up.
            moment += exponential(between, random);
            if moment >= end {
                break;
            }
            if moment > Instant::now() {
                timer.wait_until(moment).await?;
            }
            self.waiting.borrow_mut().push_back(moment);
            self.permits.add_permits(1);
        }
        timer.wait_until(end).await?;
        self.end();
        Ok(())
    }

    async fn next(&self) -> Option<Instant> {
        if let Ok(permit) = self.permits.acquire().await {
            permit.forget();
        }
        // After the end there are no permits, but perhaps some that still wait.
        self.waiting.borrow_mut().pop_front()
    }

    fn end(&self) {
        self.permits.close();
    }
}

/// A random time, exponentially about `mean`.
fn exponential(mean: Duration, random: &mut SmallRng) -> Duration {
    // From (0, 1], of which the logarithm is finite.
    let uniform = 1.0 - random.random::<f64>();
    mean.mul_f64(-uniform.ln())
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[tokio::test]
    async fn arrivals_come_at_the_rate_and_at_random() {
        let arrivals = Arrivals::new();
        let mut random = SmallRng::seed_from_u64(3);
        let (rate, time) = (4000.0, Duration::from_millis(1500));
        let began = Instant::now();
        arrivals
            .arrive(rate, began + time, &mut random)
            .await
            .unwrap();
        assert!(began.elapsed() >= time);

        let mut moments = Vec::new();
        while let Some(moment) = arrivals.next().await {
            moments.push((moment - began).as_secs_f64());
        }
        // A Poisson process: the count's deviation is its root, and that of the gaps is their mean.
        let expected = rate * time.as_secs_f64();
        let count = moments.len() as f64;
        assert!((count - expected).abs() < 4.0 * expected.sqrt(), "{count}");
        let gaps: Vec<f64> = moments.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / count;
        let ratio = variance.sqrt() / mean;
        assert!((ratio - 1.0).abs() < 0.1, "{ratio}");
    }

    #[tokio::test]
    async fn nothing_that_has_arrived_is_lost_at_the_end() {
        let arrivals = Arrivals::new();
        let now = Instant::now();
        for _ in 0..3 {
            arrivals.waiting.borrow_mut().push_back(now);
            arrivals.permits.add_permits(1);
        }
        assert_eq!(arrivals.next().await, Some(now));
        arrivals.end();
        assert_eq!(arrivals.next().await, Some(now));
        assert_eq!(arrivals.next().await, Some(now));
        assert_eq!(arrivals.next().await, None);
    }
}
