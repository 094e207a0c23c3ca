//! When a mirror looks dead to a rewriter, before any check has noticed.
//!
//! What a rewriter sees is only a sign: a server may reset connections that it has done with, and a silence may be a
//! lost packet. So a sign moves nobody. It says whose checks are to be made at once, and how long each may take.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use control_protocol::{LivenessResult, MirrorLiveness};

use crate::check::{Health, State};
use crate::config::{Liveness, MirrorConfig};

/// Segments without an answer after which a mirror is suspected: one or two may have been lost.
const SEGMENTS: u64 = 3;
/// Between two suspicions of one mirror.
const INTERVAL: Duration = Duration::from_millis(200);
/// A mirror has so many times as long as its checks usually take before its silence is suspicious.
const LATENCIES: u32 = 4;

/// Which mirrors have been suspected, and what the rewriters had counted then.
#[derive(Debug)]
pub struct Suspicions {
    liveness: Liveness,
    /// Bad signs by rewriter and mirror.
    counted: HashMap<(usize, SocketAddr), u64>,
    /// When each mirror was last suspected.
    suspected: Vec<Option<Instant>>,
}

/// A mirror whose checks are to be made at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suspect {
    /// Its number.
    pub mirror: usize,
    /// How long each check may take.
    pub limit: Duration,
}

impl Suspicions {
    /// None yet, of so many mirrors.
    pub fn new(liveness: Liveness, mirrors: usize) -> Self {
        Self {
            liveness,
            counted: HashMap::new(),
            suspected: vec![None; mirrors],
        }
    }

    /// Looks at what a rewriter sees of its mirrors. Gives those that look dead, but not those that are known to be
    /// down, nor those that were suspected just now.
    pub fn look(
        &mut self,
        rewriter: usize,
        signs: &LivenessResult,
        mirrors: &[MirrorConfig],
        health: &[Health],
        now: Instant,
    ) -> Vec<Suspect> {
        let mut suspects = Vec::new();
        for seen in &signs.mirrors {
            let has_more = self.has_more_bad_signs(rewriter, seen);
            for (mirror, (config, health)) in mirrors.iter().zip(health).enumerate() {
                let port = config.address.port;
                let is_it = config.ip() == seen.mirror.ip()
                    && port.is_none_or(|port| port == seen.mirror.port());
                let is_silent = seen.unanswered >= SEGMENTS
                    && seen.waiting_ms.is_some_and(|waiting| {
                        Duration::from_millis(waiting) >= patience(self.liveness.silence, health)
                    });
                let is_recent = self.suspected[mirror]
                    .is_some_and(|before| now.saturating_duration_since(before) < INTERVAL);
                let is_down = health.standing().state == State::Down;
                if is_it && (has_more || is_silent) && !is_recent && !is_down {
                    self.suspected[mirror] = Some(now);
                    suspects.push(Suspect {
                        mirror,
                        limit: patience(self.liveness.confirm, health),
                    });
                }
            }
        }
        suspects
    }

    /// Whether a rewriter has counted more bad signs of a mirror than the last time.
    fn has_more_bad_signs(&mut self, rewriter: usize, seen: &MirrorLiveness) -> bool {
        let bad = seen.refused + seen.resets + seen.icmp_errors;
        let before = self.counted.insert((rewriter, seen.mirror), bad);
        before.is_some_and(|before| bad > before)
    }
}

/// How long a mirror may take: at least this, and longer if it is far away.
fn patience(least: Duration, health: &Health) -> Duration {
    least.max(health.latency().unwrap_or_default() * LATENCIES)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::check::{Finding, Verdict};
    use crate::config::Config;

    const CONFIG: &str = r#"
[[rewriter]]
name = "edge"
[[mirror]]
name = "near"
address = "10.2.0.2"
[[mirror]]
name = "far"
address = "10.2.0.3:8080"
[[service]]
address = "100.100.100.100:80/tcp"
mirrors = ["near", "far"]
"#;

    fn signs(
        mirror: &str,
        unanswered: u64,
        waiting_ms: Option<u64>,
        resets: u64,
    ) -> LivenessResult {
        LivenessResult {
            mirrors: vec![MirrorLiveness {
                mirror: mirror.parse().expect("an address"),
                connections: 5,
                heard_ms: Some(100),
                unanswered,
                waiting_ms,
                refused: 0,
                resets,
                icmp_errors: 0,
            }],
        }
    }

    struct Scene {
        config: Config,
        health: Vec<Health>,
        suspicions: Suspicions,
        now: Instant,
    }

    impl Scene {
        fn new() -> Self {
            let config = Config::parse(CONFIG, Path::new("")).expect("it is right");
            let mirrors = config.mirrors.iter();
            Self {
                health: mirrors.map(|mirror| Health::new(&mirror.checks)).collect(),
                suspicions: Suspicions::new(Liveness::default(), 2),
                config,
                now: Instant::now(),
            }
        }

        /// A look, so long after the last one.
        fn look(&mut self, after_ms: u64, signs: &LivenessResult) -> Vec<Suspect> {
            self.now += Duration::from_millis(after_ms);
            self.suspicions
                .look(0, signs, &self.config.mirrors, &self.health, self.now)
        }
    }

    #[test]
    fn silence_is_suspicious_after_a_while() {
        let mut scene = Scene::new();
        assert_eq!(scene.look(50, &signs("10.2.0.2:80", 9, Some(50), 0)), []);
        assert_eq!(scene.look(50, &signs("10.2.0.2:80", 2, Some(900), 0)), []);
        let suspect = Suspect {
            mirror: 0,
            limit: Duration::from_millis(50),
        };
        let silent = signs("10.2.0.2:80", 9, Some(100), 0);
        assert_eq!(scene.look(50, &silent), [suspect]);
        assert_eq!(scene.look(50, &silent), [], "just suspected");
        assert_eq!(scene.look(200, &silent), [suspect]);
    }

    #[test]
    fn resets_are_suspicious_when_there_are_more() {
        let mut scene = Scene::new();
        let address = "10.2.0.3:8080";
        assert_eq!(
            scene.look(50, &signs(address, 0, None, 7)),
            [],
            "they may be old"
        );
        assert_eq!(scene.look(50, &signs(address, 0, None, 7)), []);
        assert_eq!(scene.look(50, &signs(address, 0, None, 8)).len(), 1);
        let other_port = signs("10.2.0.3:80", 99, Some(9999), 8);
        assert_eq!(scene.look(500, &other_port), [], "not this mirror");
    }

    #[test]
    fn who_is_far_away_has_longer_and_who_is_down_is_no_suspect() {
        let mut scene = Scene::new();
        let found = |verdict, latency| Finding {
            latency,
            ..Finding::new(verdict, "")
        };
        let far = found(Verdict::Good, Some(Duration::from_millis(80)));
        scene.health[0].handle(0, far, scene.now);
        assert_eq!(scene.look(50, &signs("10.2.0.2:80", 9, Some(300), 0)), []);
        let suspects = scene.look(50, &signs("10.2.0.2:80", 9, Some(330), 0));
        assert_eq!(suspects[0].limit, Duration::from_millis(320));
        for _ in 0..3 {
            let bad = found(Verdict::Bad, None);
            scene.health[0].handle(0, bad, scene.now);
        }
        assert_eq!(scene.look(500, &signs("10.2.0.2:80", 9, Some(900), 0)), []);
    }
}
