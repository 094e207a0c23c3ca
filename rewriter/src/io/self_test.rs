//! The self-test: does this kernel really carry super-packets from one TUN to another?
//!
//! # Theory of operation
//!
//! `TUNSETOFFLOAD` says what a kernel accepts, not what it does well: some kernels refuse
//! super-packets when they are written, and some have corrupted them. The patient would be every
//! bulk transfer through Shunt, so it is tried once at start, and what doesn't work isn't asked
//! for.
//!
//! ```text
//!          a thread in a network namespace of its own
//!          ┌────────────────────────────────────────────────────────────┐
//!  write   │ TUN "inlet"                                   TUN "outlet" │   read,
//! ────────▶│ 198.18.0.1/16  ── kernel forwards ──▶        198.19.0.1/16 │ ────────▶
//!          │ 2001:db8:a::1/64                          2001:db8:b::1/64 │   compare
//!          └────────────────────────────────────────────────────────────┘
//! ```
//!
//! [`Probe`]s go through one after the other. First an ordinary packet: when not even that is
//! forwarded, the test says nothing of super-packets. Then a TCP and a UDP super-packet of 60,000
//! bytes, for each version of IP. What arrives must be what was sent, less one hop. The namespace,
//! its links and all that is in it vanish with the thread; nothing of the host is touched.
//!
//! A namespace takes `CAP_SYS_ADMIN`, which a daemon in a container or a hardened unit may lack.
//! The test is then [skipped](SelfTest::Skipped), and the caller decides.

mod probe;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use thiserror::Error;

use self::probe::{CLIENT4, CLIENT6, SERVER4, SERVER6};
pub use self::probe::{Change, Family, Kind, Probe};
use super::Port;
use super::namespace::{self, Links};
use super::poll::receive_within;
use super::tun::{Offload, TunDevice, TunError};

/// How long a packet may take through the namespace. The kernel forwards it while it is being
/// written, so all but a broken one take microseconds.
const PATIENCE: Duration = Duration::from_millis(500);

/// What the self-test found.
#[derive(Debug)]
pub enum SelfTest {
    /// The kernel was tried.
    Tried {
        /// What it carries unharmed: never more than was wanted, or than it grants.
        works: Offload,
        /// What it doesn't; worth a warning each. Empty if the kernel carries all that it grants.
        faults: Vec<Fault>,
    },
    /// The kernel couldn't be tried, so nothing is known.
    Skipped(Skipped),
}

/// A super-packet that the kernel doesn't carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{probe} doesn't pass the kernel: {reason}")]
pub struct Fault {
    /// What was sent.
    pub probe: Probe,
    /// What became of it.
    pub reason: FaultReason,
}

/// What became of a [`Probe`] that didn't pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FaultReason {
    /// The kernel refused it when it was written.
    #[error("it is refused")]
    Refused,
    /// Nothing came out in time.
    #[error("it is lost")]
    Lost,
    /// It came out changed.
    #[error("{0}")]
    Changed(Change),
}

/// Why the kernel couldn't be tried. The messages include the cause, so that isn't a
/// [`source`](std::error::Error::source) as well.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Skipped {
    /// No network namespace, for want of `CAP_SYS_ADMIN` mostly.
    #[error("no network namespace can be made ({0})")]
    Namespace(io::Error),
    /// No TUN in it.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// No connection to the kernel's routing.
    #[error("rtnetlink can't be used ({0})")]
    Rtnetlink(io::Error),
    /// Its links can't be set up.
    #[error("links can't be set up ({0})")]
    Links(rtnetlink::Error),
    /// It can't be made to forward; in a container, `/proc/sys` may be read-only.
    #[error("{name} can't be set ({error})")]
    Sysctl {
        /// The setting, as a path below `/proc/sys`.
        name: &'static str,
        /// The kernel's answer.
        error: io::Error,
    },
    /// Not even an ordinary packet is forwarded.
    #[error("{0}")]
    NothingPasses(Fault),
    /// A TUN broke while the test ran.
    #[error("a TUN broke ({0})")]
    Broken(io::Error),
}

impl From<rtnetlink::Error> for Skipped {
    fn from(error: rtnetlink::Error) -> Self {
        Self::Links(error)
    }
}

/// Tries which of the `wanted` super-packets the kernel carries.
///
/// It takes less than a tenth of a second when all is well, and at most half a second for each of
/// six packets. The calling thread waits; its namespace isn't changed.
pub fn run(wanted: Offload) -> SelfTest {
    if wanted == Offload::NONE {
        return SelfTest::Tried {
            works: Offload::NONE,
            faults: Vec::new(),
        };
    }
    match namespace::run(|| try_kernel(wanted)) {
        Ok(Ok((works, faults))) => SelfTest::Tried { works, faults },
        Ok(Err(skipped)) => SelfTest::Skipped(skipped),
        Err(error) => SelfTest::Skipped(Skipped::Namespace(error)),
    }
}

/// The test itself, in the namespace's thread.
fn try_kernel(wanted: Offload) -> Result<(Offload, Vec<Fault>), Skipped> {
    let mut router = Router::set_up(wanted)?;
    let mut faults = Vec::new();
    for &family in router.families {
        let plain = Probe {
            kind: Kind::Plain,
            family,
        };
        router.pass(plain)?.map_err(Skipped::NothingPasses)?;
        if router.granted.tso {
            faults.extend(
                router
                    .pass(Probe {
                        kind: Kind::Tcp,
                        family,
                    })?
                    .err(),
            );
        }
        if router.granted.uso {
            faults.extend(
                router
                    .pass(Probe {
                        kind: Kind::Udp,
                        family,
                    })?
                    .err(),
            );
        }
    }
    Ok((router.granted.without(unusable(&faults)), faults))
}

/// What isn't to be used: a TUN has one switch for both versions of IP.
fn unusable(faults: &[Fault]) -> Offload {
    let any = |kind| faults.iter().any(|fault| fault.probe.kind == kind);
    Offload {
        tso: any(Kind::Tcp),
        uso: any(Kind::Udp),
    }
}

/// The kernel as a router between two TUNs.
struct Router {
    inlet: TunDevice,
    outlet: TunDevice,
    /// What it grants, to both TUNs alike.
    granted: Offload,
    /// The versions of IP that it speaks.
    families: &'static [Family],
}

impl Router {
    /// Sets up the calling thread's namespace, which is expected to be empty.
    fn set_up(wanted: Offload) -> Result<Self, Skipped> {
        let families: &[Family] = if namespace::has_ipv6() {
            &[Family::V4, Family::V6]
        } else {
            &[Family::V4]
        };
        for family in families {
            let name = match family {
                Family::V4 => "net/ipv4/ip_forward",
                Family::V6 => "net/ipv6/conf/all/forwarding",
            };
            namespace::set_sysctl(name, "1").map_err(|error| Skipped::Sysctl { name, error })?;
        }

        let inlet = TunDevice::open("inlet", 1, wanted)?;
        let outlet = TunDevice::open("outlet", 1, inlet.granted.offload)?;
        let links = Links::connect().map_err(Skipped::Rtnetlink)?;
        for (device, four, six) in [(&inlet, CLIENT4, CLIENT6), (&outlet, SERVER4, SERVER6)] {
            for family in families {
                // The router is the host 1 of each network, the probe's end is host 2. That there
                // is a route back to the client satisfies any `rp_filter`.
                let (router, prefix) = match family {
                    Family::V4 => (IpAddr::from(Ipv4Addr::from_bits(four.to_bits() - 1)), 16),
                    Family::V6 => (IpAddr::from(Ipv6Addr::from_bits(six.to_bits() - 1)), 64),
                };
                links.add_address(device.index, router, prefix)?;
            }
            links.set_up(device.index)?;
        }
        Ok(Self {
            granted: outlet.granted.offload,
            inlet,
            outlet,
            families,
        })
    }

    /// Sends `probe` and looks what comes out.
    fn pass(&mut self, probe: Probe) -> Result<Result<(), Fault>, Skipped> {
        let fault = |reason| Fault { probe, reason };
        let inlet = &mut self.inlet.queues[0];
        let before = inlet.losses();
        inlet.transmit(&mut probe.sent()).map_err(Skipped::Broken)?;
        if inlet.losses() != before {
            return Ok(Err(fault(FaultReason::Refused)));
        }
        let got = receive_within(&mut self.outlet.queues[0], PATIENCE, |frame| {
            probe.is_ancestor_of(frame)
        })
        .map_err(Skipped::Broken)?;
        Ok(match got.map(|frame| probe.compare(&frame)) {
            None => Err(fault(FaultReason::Lost)),
            Some(Err(change)) => Err(fault(FaultReason::Changed(change))),
            Some(Ok(())) => Ok(()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::namespace::testing::in_namespace;
    use crate::packet::VnetHeader;

    #[test]
    fn faults_take_away_what_they_concern() {
        let fault = |kind, family| Fault {
            probe: Probe { kind, family },
            reason: FaultReason::Lost,
        };
        assert_eq!(unusable(&[]), Offload::NONE);
        let tcp6 = fault(Kind::Tcp, Family::V6);
        assert_eq!(
            Offload::ALL.without(unusable(&[tcp6])),
            Offload {
                tso: false,
                uso: true
            }
        );
        let udp4 = fault(Kind::Udp, Family::V4);
        assert_eq!(
            Offload::ALL.without(unusable(&[udp4])),
            Offload {
                tso: true,
                uso: false
            }
        );
        assert_eq!(Offload::ALL.without(unusable(&[tcp6, udp4])), Offload::NONE);
    }

    #[test]
    fn this_kernel_carries_what_it_grants() {
        in_namespace(|| match run(Offload::ALL) {
            SelfTest::Tried { works, faults } => {
                assert_eq!(faults, []);
                let device = TunDevice::open("shunt0", 1, Offload::ALL).unwrap();
                assert_eq!(works, device.granted.offload);
            }
            SelfTest::Skipped(skipped) => panic!("{skipped}"),
        });
    }

    #[test]
    fn wanting_nothing_needs_no_test() {
        let SelfTest::Tried { works, faults } = run(Offload::NONE) else {
            panic!("there was nothing to skip");
        };
        assert_eq!((works, faults), (Offload::NONE, Vec::new()));
    }

    /// The TUNs grant nothing, so the kernel cuts what is written all the same: each probe comes
    /// out as its first segment.
    #[test]
    fn a_super_packet_that_comes_out_in_pieces_is_noticed() {
        in_namespace(|| {
            let mut router = Router::set_up(Offload::NONE).unwrap();
            for &family in router.families {
                for kind in [Kind::Tcp, Kind::Udp] {
                    let probe = Probe { kind, family };
                    let fault = router.pass(probe).unwrap().unwrap_err();
                    assert_eq!(fault.probe, probe);
                    assert_eq!(
                        fault.reason,
                        FaultReason::Changed(Change::Header(VnetHeader::default())),
                        "{fault}"
                    );
                }
            }
        });
    }

    #[test]
    fn a_kernel_that_forwards_nothing_says_nothing_of_super_packets() {
        in_namespace(|| {
            let mut router = Router::set_up(Offload::ALL).unwrap();
            namespace::set_sysctl("net/ipv4/ip_forward", "0").unwrap();
            let probe = Probe {
                kind: Kind::Plain,
                family: Family::V4,
            };
            let fault = router.pass(probe).unwrap().unwrap_err();
            assert_eq!(
                fault,
                Fault {
                    probe,
                    reason: FaultReason::Lost
                }
            );
            assert_eq!(
                Skipped::NothingPasses(fault).to_string(),
                "an ordinary packet over IPv4 doesn't pass the kernel: it is lost"
            );
        });
    }

    #[test]
    fn a_refused_packet_is_noticed() {
        in_namespace(|| {
            let mut router = Router::set_up(Offload::ALL).unwrap();
            // A TUN refuses every packet while its link is down.
            Links::connect()
                .unwrap()
                .set_down(router.inlet.index)
                .unwrap();
            let probe = Probe {
                kind: Kind::Tcp,
                family: Family::V4,
            };
            let fault = router.pass(probe).unwrap().unwrap_err();
            assert_eq!(
                fault,
                Fault {
                    probe,
                    reason: FaultReason::Refused
                }
            );
        });
    }
}
