//! How long a request is served, and by how many: what can be changed while the server runs.

use std::time::Duration;

use clap::ValueEnum;
use rand::Rng;

/// The longest mean that can be set. No one tests with more, and the times drawn stay within what can be told.
const LONGEST: Duration = Duration::from_secs(3600);

/// How the times that requests take are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Distribution {
    /// Exponentially about the mean, as in M/M/c.
    Exponential,
    /// All alike, as in M/D/c.
    Constant,
}

/// How long a request takes once a worker has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceTime {
    /// The mean.
    pub mean: Duration,
    /// How they are spread.
    pub distribution: Distribution,
}

impl ServiceTime {
    /// The time for one request.
    pub fn draw(self, random: &mut impl Rng) -> Duration {
        match self.distribution {
            Distribution::Constant => self.mean,
            Distribution::Exponential => {
                // From (0, 1], of which the logarithm is finite.
                let uniform = 1.0 - random.random::<f64>();
                self.mean.mul_f64(-uniform.ln())
            }
        }
    }
}

/// Reads a mean from the command line, e.g. `20ms`.
///
/// # Errors
/// It is no time, or more than an hour.
pub fn mean(text: &str) -> Result<Duration, String> {
    let mean = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if mean > LONGEST {
        return Err("an hour is the most".into());
    }
    Ok(mean)
}

/// What is to be changed, from the query of `POST /set`. What isn't named stays.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// `workers=N`.
    pub workers: Option<usize>,
    /// `service_ms=N`.
    pub mean: Option<Duration>,
    /// `distribution=exponential|constant`.
    pub distribution: Option<Distribution>,
    /// `health=good|bad`.
    pub healthy: Option<bool>,
    /// `agent=TEXT`.
    pub agent: Option<String>,
}

impl Changes {
    /// Reads a query such as `workers=4&service_ms=200`.
    ///
    /// # Errors
    /// A sentence about what can't be read.
    pub fn from_query(query: &str) -> Result<Self, String> {
        let mut changes = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let unreadable = || format!("{name} can't be '{value}'");
            match &*name {
                "workers" => changes.workers = Some(value.parse().map_err(|_| unreadable())?),
                "service_ms" => {
                    let milliseconds: f64 = value.parse().map_err(|_| unreadable())?;
                    let mean = Duration::try_from_secs_f64(milliseconds / 1000.0)
                        .ok()
                        .filter(|mean| *mean <= LONGEST);
                    changes.mean = Some(mean.ok_or_else(unreadable)?);
                }
                "distribution" => {
                    let distribution = Distribution::from_str(&value, false);
                    changes.distribution = Some(distribution.map_err(|_| unreadable())?);
                }
                "health" => {
                    changes.healthy = Some(match &*value {
                        "good" => true,
                        "bad" => false,
                        _ => return Err(unreadable()),
                    });
                }
                "agent" => changes.agent = Some(value.into_owned()),
                _ => {
                    return Err(format!(
                        "there is no '{name}'; there are workers, service_ms, distribution, health, agent"
                    ));
                }
            }
        }
        Ok(changes)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    #[test]
    fn times_are_spread_as_they_should() {
        let mut random = SmallRng::seed_from_u64(1);
        let mut time = ServiceTime {
            mean: Duration::from_millis(20),
            distribution: Distribution::Exponential,
        };
        let drawn: Vec<f64> = (0..100_000)
            .map(|_| time.draw(&mut random).as_secs_f64())
            .collect();
        let count = drawn.len() as f64;
        let mean = drawn.iter().sum::<f64>() / count;
        assert!((mean / 0.020 - 1.0).abs() < 0.02, "{mean}");
        // Of an exponential distribution, e⁻¹ is above the mean.
        let above = drawn.iter().filter(|time| **time > 0.020).count() as f64 / count;
        assert!((above - (-1.0_f64).exp()).abs() < 0.01, "{above}");

        time.distribution = Distribution::Constant;
        assert_eq!(time.draw(&mut random), time.mean);
    }

    #[test]
    fn a_query_names_what_changes() {
        let changes = Changes::from_query("workers=4&service_ms=0.5&health=bad&agent=up+50%25");
        assert_eq!(
            changes,
            Ok(Changes {
                workers: Some(4),
                mean: Some(Duration::from_micros(500)),
                distribution: None,
                healthy: Some(false),
                agent: Some("up 50%".into()),
            })
        );
        assert_eq!(Changes::from_query(""), Ok(Changes::default()));
        let constant = Changes::from_query("distribution=constant").unwrap();
        assert_eq!(constant.distribution, Some(Distribution::Constant));
        for query in [
            "workers=-1",
            "workers=",
            "service_ms=-5",
            "service_ms=inf",
            "service_ms=1e99",
            "service_ms=3600001",
            "health=ill",
            "distribution=normal",
            "colour=red",
            "workers",
        ] {
            assert!(Changes::from_query(query).is_err(), "{query}");
        }
    }
}
