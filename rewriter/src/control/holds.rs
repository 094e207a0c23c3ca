//! Services that programs which decide by themselves have to leave alone.
//!
//! A person's instruction wins over a program's: what a person has said of a service that a program
//! decides about is held by itself, until somebody releases it.

use std::collections::BTreeSet;

use control_protocol::{MAX_HOLDS, Service};
use thiserror::Error;

/// About how many services programs may decide. Each can become a hold.
const MAX_AUTOMATIC: usize = 65_536;

/// What is held, and what may come to be.
#[derive(Debug, Default)]
pub(super) struct Holds {
    held: BTreeSet<Service>,
    /// Services that programs have instructed since the daemon started.
    automatic: BTreeSet<Service>,
}

/// Why an instruction about holds, or one by a program, wasn't carried out.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum HoldRefusal {
    /// It was a program's.
    #[error(
        "{service} is held ({hold}), so programs leave it alone; release it with `shuntctl release \
         {hold}`"
    )]
    Held { service: Service, hold: Service },
    /// There are too many holds.
    #[error("{MAX_HOLDS} services are held already; release one that needn't be")]
    TooManyHolds,
    /// Programs decide about too many services.
    #[error(
        "programs have decided about {MAX_AUTOMATIC} services since shuntd started; no more can be kept apart"
    )]
    TooManyAutomatic,
}

impl Holds {
    /// Whether an instruction about `service` may be carried out.
    ///
    /// # Errors
    /// It is a program's, and the service is held, or would be one too many.
    pub(super) fn admit(&self, service: &Service, automatic: bool) -> Result<(), HoldRefusal> {
        if !automatic {
            return Ok(());
        }
        if let Some(hold) = self.over(service) {
            return Err(HoldRefusal::Held {
                service: *service,
                hold: *hold,
            });
        }
        if self.automatic.len() >= MAX_AUTOMATIC && !self.automatic.contains(service) {
            return Err(HoldRefusal::TooManyAutomatic);
        }
        Ok(())
    }

    /// Takes note of an instruction that was carried out. Tells whether the service is held because of it.
    pub(super) fn instructed(&mut self, service: Service, automatic: bool) -> bool {
        if automatic {
            self.automatic.insert(service);
            return false;
        }
        self.automatic.contains(&service)
            && self.over(&service).is_none()
            && self.held.insert(service)
    }

    /// Holds a service. `false`: just that was held already.
    ///
    /// # Errors
    /// There are too many.
    pub(super) fn hold(&mut self, service: Service) -> Result<bool, HoldRefusal> {
        if self.held.len() >= MAX_HOLDS && !self.held.contains(&service) {
            return Err(HoldRefusal::TooManyHolds);
        }
        Ok(self.held.insert(service))
    }

    /// Releases a service. `false`: just that wasn't held.
    pub(super) fn release(&mut self, service: &Service) -> bool {
        self.held.remove(service)
    }

    /// Whether a service is held, by itself or with others.
    pub(super) fn concern(&self, service: &Service) -> bool {
        self.over(service).is_some()
    }

    /// All that is held.
    pub(super) fn iter(&self) -> impl Iterator<Item = Service> {
        self.held.iter().copied()
    }

    /// The hold that covers a service.
    fn over(&self, service: &Service) -> Option<&Service> {
        // Those that could, so that it makes no difference how many others there are.
        let whole = [None, service.port].into_iter().flat_map(|port| {
            [None, service.protocol].map(|protocol| Service {
                address: service.address,
                port,
                protocol,
            })
        });
        whole.into_iter().find_map(|hold| self.held.get(&hold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(text: &str) -> Service {
        text.parse().unwrap()
    }

    #[test]
    fn programs_leave_alone_what_is_held() {
        let mut holds = Holds::default();
        let web = service("10.1.0.1:80/tcp");
        assert_eq!(holds.admit(&web, true), Ok(()));
        assert_eq!(holds.hold(web), Ok(true));
        assert_eq!(holds.hold(web), Ok(false));
        let refusal = holds.admit(&web, true).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "10.1.0.1:80/tcp is held (10.1.0.1:80/tcp), so programs leave it alone; release it with \
             `shuntctl release 10.1.0.1:80/tcp`"
        );
        assert_eq!(holds.admit(&web, false), Ok(()), "a person's");
        assert!(holds.release(&web));
        assert!(!holds.release(&web));
        assert_eq!(holds.admit(&web, true), Ok(()));
    }

    #[test]
    fn a_hold_covers_what_it_says_less_of() {
        for (hold, covered, others) in [
            (
                "10.1.0.1",
                &[
                    "10.1.0.1",
                    "10.1.0.1:80",
                    "10.1.0.1:80/tcp",
                    "10.1.0.1/icmp",
                ][..],
                &["10.1.0.2"][..],
            ),
            (
                "10.1.0.1:80",
                &["10.1.0.1:80", "10.1.0.1:80/udp"],
                &["10.1.0.1", "10.1.0.1:81", "10.1.0.1/tcp"],
            ),
            (
                "10.1.0.1/tcp",
                &["10.1.0.1/tcp", "10.1.0.1:80/tcp"],
                &["10.1.0.1", "10.1.0.1:80", "10.1.0.1:80/udp"],
            ),
            (
                "10.1.0.1:80/tcp",
                &["10.1.0.1:80/tcp"],
                &["10.1.0.1:80", "10.1.0.1/tcp", "10.1.0.1"],
            ),
        ] {
            let mut holds = Holds::default();
            holds.hold(service(hold)).unwrap();
            for (texts, expected) in [(covered, true), (others, false)] {
                for text in texts {
                    let other = service(text);
                    assert_eq!(holds.concern(&other), expected, "{hold} over {text}");
                    assert_eq!(service(hold).covers(&other), expected, "{hold} over {text}");
                }
            }
        }
    }

    #[test]
    fn a_person_s_instruction_holds_what_a_program_has_decided_about() {
        let mut holds = Holds::default();
        let (web, mail) = (service("10.1.0.1:80/tcp"), service("10.1.0.1:25/tcp"));
        assert!(!holds.instructed(web, true));
        assert!(!holds.instructed(mail, false), "no program cares for it");
        assert!(holds.instructed(web, false));
        assert!(!holds.instructed(web, false), "it is held already");
        assert!(holds.admit(&web, true).is_err());
        assert_eq!(holds.iter().collect::<Vec<_>>(), [web]);
        // Released, it can come to that again.
        assert!(holds.release(&web));
        assert_eq!(holds.admit(&web, true), Ok(()));
        assert!(holds.instructed(web, false));
    }

    #[test]
    fn holds_are_bounded() {
        let mut holds = Holds::default();
        for number in 0..MAX_HOLDS {
            let text = format!("10.1.{}.{}", number / 256, number % 256);
            holds.hold(service(&text)).unwrap();
        }
        let one_more = holds.hold(service("10.2.0.1"));
        assert_eq!(one_more, Err(HoldRefusal::TooManyHolds));
        assert_eq!(holds.hold(service("10.1.0.1")), Ok(false));
    }
}
