//! The routes that bring packets to the TUN, and keep what has been rewritten from coming back.
//!
//! # Theory of operation
//!
//! Packets to services and to proxy addresses have to be read from the TUN; what the rewriter sends
//! has to take the normal tables, even when it goes to the very same address (an *identity
//! diversion*, whose mirror is the service itself). So the routes to the TUN live in a table of their
//! own, and rules decide who looks there.
//!
//! [`Settings`] and what the host is like make a [`Plan`]: a list of [`Step`]s. [`Routes`] carries it
//! out over netlink; printed, it is a list of commands. Services come and go later, one or two steps
//! each. At the start, what a crashed run left behind is cleared away; at the end,
//! [`Routes::remove_all`] goes through the steps backwards.
//!
//! # The rules
//!
//! With [`Egress::Tun`], for table and priority 3353, each family has these:
//!
//! | priority | packets                          | table            | why                          |
//! |----------|----------------------------------|------------------|------------------------------|
//! | 3353     | from the TUN                     | skip to 3357     | they are rewritten           |
//! | 3353     | from a proxy address             | skip to 3357     | they are too; see below      |
//! | 3354     | to a proxy address               | 3353             | mirrors answer               |
//! | 3354     | of local TCP, UDP, ICMP sockets  | 3353             | clients on this host         |
//! | 3355     | all others that are local        | skip to 3357     | see below                    |
//! | 3356     | all                              | 3353             | services                     |
//! | 3356     | from a service                   | 3354: everything | only if a filter is strict   |
//! | 3357     |                                  |                  | the normal rules follow      |
//!
//! With client networks, the two for services give way to `from` each network, table 3354, and
//! the local ones to none: the host's own traffic isn't a client's. What clients send to the host
//! itself was taken by table `local` (priority 0) before.
//!
//! A single rule, `not iif shunt0 lookup 3353`, would do if there were no *reverse-path filters*.
//! Such a filter looks the source up as if it were a destination, and drops the packet unless the
//! route leads out of the interface that it came in by (`__fib_validate_source` in
//! `net/ipv4/fib_frontend.c`; IPv4 only). That lookup sees the same rules, with what will be the
//! outgoing interface as the incoming one, or `lo` for a packet to the host itself. Hence:
//!
//! - Mirror → proxy, to the TUN: the lookup comes "from the TUN", and skips. Identity diversions
//!   work.
//! - Service → this host: the lookup comes "from lo", as a local process's packet to the service
//!   does. If it found the TUN, the service could no longer reach this host, not even ask for its
//!   hardware address (`arp_process` drops what fails the filter), and so not send anything through
//!   it. But only a socket's lookup names a protocol: rules with `iif lo` don't make
//!   the kernel look for one in a packet (`fib_rule_requires_fldissect` in
//!   `include/net/fib_rules.h`). So local processes are met by protocol, and the rest skips. (Other
//!   rules on the host that select ports or protocols undo this: then only a loose filter helps.)
//! - Service → client, the answer to a packet that passed undiverted: the lookup can't be told from
//!   that of the client's own packet, and finds the TUN. Only taking the answer through the TUN, too,
//!   satisfies a strict filter, so that is what the `from` rules are for, which exist only if
//!   an interface's filter is strict: each costs every lookup on the host a comparison. (With client
//!   networks: `to` each network.)
//! - What the TUN emits: its own filter is loose (`rp_filter` 2), and it has an address, without
//!   which even a loose filter drops what isn't routed back to it: 192.0.0.8, the dummy address
//!   of RFC 7600. `accept_local` admits what local processes sent and the rewriter passed.
//!
//! A firewall may have a filter of its own (firewalld has, for IPv6, with nftables' `fib`). It comes
//! before routing, and its lookup comes from no interface at all. The `from` rules of proxy addresses
//! make identity diversions pass it; for undiverted packets' answers it must be loose or off.
//!
//! A local socket without an address takes the one that its route prefers. So a service's route
//! names the one that the normal tables would have given (`host::source_to`), lest a server on
//! this host answer from another address than it was asked at.
//!
//! # Raw egress
//!
//! With [`Egress::Raw`], the kernel forwards nothing: neither forwarding nor a firewall's leave to
//! forward is needed. Traffic filters (`filter.rs`) on every interface take packets from there to
//! the TUN before anything looks at them; so no reverse-path filter does either. Rules and routes
//! serve local processes only, and rewritten packets are those that carry the mark. With client
//! networks, filters before those let pass what is for the host itself.
//!
//! - A filter is found by walking a list. Some dozens of services are fine; for thousands,
//!   client networks or [`Egress::Tun`] are.
//! - Packets that an interface in promiscuous mode overhears are taken, too.
//! - If the daemon dies, the filters stay without a target and *drop* what they match, until the
//!   next start clears them away (with [`Egress::Tun`] packets take the normal tables at once).
//!
//! # Limits
//!
//! One table can serve one daemon; a second one needs other numbers, and is told so. What is in a
//! VRF, which has tables of its own, isn't brought to the TUN by rules. Multicast and broadcast
//! never are.

mod error;
mod filter;
mod host;
mod leftovers;
mod netlink;
mod plan;
mod refresh;
mod settings;
mod step;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::net::IpAddr;

pub use error::RoutesError;
pub use plan::Plan;
pub use settings::{Egress, Settings};
pub use step::{
    Action, Family, Filter, Interface, LinkChange, Match, ROUTE_PROTOCOL, Route, Rule, Selector,
    Step,
};

use host::Host;
use netlink::Kernel;
use refresh::Upkeep;

/// The arrangement, made and kept. Drop alone leaves everything as it is, for a later run to clear
/// away: [`Routes::remove_all`] needs the runtime.
#[derive(Debug)]
pub struct Routes {
    kernel: Kernel,
    plan: Plan,
    tun_index: u32,
    /// What was done, in that order.
    made: Vec<Step>,
    /// Interfaces that had a hook for filters before us, so it isn't ours to remove.
    hooked_before: HashSet<Interface>,
    upkeep: Upkeep,
}

impl Routes {
    /// Clears away what a crashed run left behind, and sets up link, addresses, routes, rules and
    /// filters. The TUN must be open. Runs on tokio with its I/O and time drivers on, in the network
    /// namespace of the calling thread.
    ///
    /// # Errors
    /// What [`RoutesError`] lists. Whatever was set up by then is taken away again.
    pub async fn set_up(settings: Settings) -> Result<Self, RoutesError> {
        settings.validate()?;
        let kernel = Kernel::connect()?;
        let links = kernel.links().await?;
        let tun = links
            .into_iter()
            .find(|link| link.interface.name == settings.tun);
        let tun_index = match tun {
            Some(link) => link.interface.index,
            None => return Err(RoutesError::NoSuchLink { name: settings.tun }),
        };
        refuse_local_proxies(&kernel, &settings).await?;
        leftovers::clear(&kernel, &settings, tun_index).await?;
        let host = Host::inspect(&kernel, &settings).await?;
        let plan = Plan::new(settings, host)?;
        let (made, hooked_before) = (Vec::new(), HashSet::new());
        let mut routes = Self {
            kernel,
            plan,
            tun_index,
            made,
            hooked_before,
            upkeep: Upkeep::default(),
        };
        routes.require_forwarding()?;
        let steps = routes.plan.steps();
        if let Err(e) = routes.make_all(&steps).await {
            routes.remove_all().await;
            return Err(e);
        }
        Ok(routes)
    }

    /// Brings packets to this service to the TUN. Does nothing if that is so already, or if there
    /// are client networks, whose packets all come anyway.
    ///
    /// The caller refuses services that [`Routes::is_local`].
    ///
    /// # Errors
    /// Its family isn't available or isn't forwarded, it is a proxy address, or the kernel refuses.
    /// Nothing has changed then.
    pub async fn add_service(&mut self, service: IpAddr) -> Result<(), RoutesError> {
        self.plan.adopt_forwarding(host::forwarding()?);
        let steps = self.plan.add_service(service, host::source_to(service))?;
        let made_before = self.made.len();
        let result = self.make_service(steps).await;
        if result.is_err() {
            self.plan.remove_service(service);
            let half = self.made.split_off(made_before);
            self.undo_all(half).await;
        }
        result
    }

    /// Lets packets to this service go their usual way. Does nothing if they do already.
    ///
    /// # Errors
    /// The kernel refuses to remove something, which then stays; the rest is removed.
    pub async fn remove_service(&mut self, service: IpAddr) -> Result<(), RoutesError> {
        let steps: HashSet<_> = self.plan.remove_service(service).into_iter().collect();
        let gone = self
            .made
            .extract_if(.., |step| steps.contains(step))
            .collect();
        self.undo_all(gone)
            .await
            .into_iter()
            .next()
            .map_or(Ok(()), Err)
    }

    /// Whether the host takes packets to this address for itself, so that they would never reach
    /// the TUN.
    ///
    /// # Errors
    /// The kernel doesn't answer.
    pub async fn is_local(&self, address: IpAddr) -> Result<bool, RoutesError> {
        self.kernel.is_local(address).await
    }

    /// Takes everything away that this run has set up, as far as possible. What is gone already
    /// counts as taken away, so a second call does nothing. Forwarding, if it was turned on, stays.
    ///
    /// Gives all that went wrong, each logged as a warning.
    pub async fn remove_all(&mut self) -> Vec<RoutesError> {
        let all = std::mem::take(&mut self.made);
        let errors = self.undo_all(all).await;
        errors.iter().for_each(|e| log::warn!("{e}"));
        errors
    }

    fn require_forwarding(&self) -> Result<(), RoutesError> {
        let missing = self.plan.forwarding_missing();
        match missing.first() {
            Some(family) if !self.plan.settings().enable_forwarding => {
                let command = Step::Forwarding(*family).command();
                Err(RoutesError::ForwardingOff {
                    family: *family,
                    command,
                })
            }
            _ => Ok(()),
        }
    }

    async fn make_service(&mut self, steps: Vec<Step>) -> Result<(), RoutesError> {
        self.require_forwarding()?;
        let forwarding = self
            .plan
            .forwarding_missing()
            .into_iter()
            .map(Step::Forwarding);
        let steps: Vec<_> = forwarding.chain(steps).collect();
        self.make_all(&steps).await
    }

    async fn make_all(&mut self, steps: &[Step]) -> Result<(), RoutesError> {
        let hooked = self.hooked(steps).await?;
        for step in steps {
            self.make(step, &hooked).await?;
        }
        Ok(())
    }

    /// The interfaces that have a hook; empty if no step needs to know.
    async fn hooked(&self, steps: &[Step]) -> Result<HashSet<u32>, RoutesError> {
        if steps.iter().any(|step| matches!(step, Step::Hook(_))) {
            self.kernel.hooked().await
        } else {
            Ok(HashSet::new())
        }
    }

    async fn make(&mut self, step: &Step, hooked: &HashSet<u32>) -> Result<(), RoutesError> {
        match step {
            Step::Hook(interface) if hooked.contains(&interface.index) => {
                self.hooked_before.insert(interface.clone());
            }
            _ => {
                match step {
                    Step::Forwarding(_) => log::info!("{}; it stays on", step.command()),
                    _ => log::debug!("{}", step.command()),
                }
                match self.kernel.make(step, self.tun_index).await {
                    Err(e) if step.filtered_interface().is_some() && e.is_no_device() => {
                        log::debug!("{e}: the interface has gone");
                        return Ok(());
                    }
                    other => other?,
                }
            }
        }
        self.made.push(step.clone());
        Ok(())
    }

    /// Undoes these steps, last one first.
    async fn undo_all(&mut self, steps: Vec<Step>) -> Vec<RoutesError> {
        let mut errors = Vec::new();
        for step in steps.iter().rev() {
            if let Step::Hook(interface) = step
                && self.hooked_before.remove(interface)
            {
                continue;
            }
            if let Err(e) = self.kernel.undo(step, self.tun_index).await {
                errors.push(e);
            }
        }
        errors
    }
}

/// # Errors
/// A proxy address is the host's own, or the kernel doesn't answer.
async fn refuse_local_proxies(kernel: &Kernel, settings: &Settings) -> Result<(), RoutesError> {
    for proxy in &settings.proxies {
        if kernel.is_local(*proxy).await? {
            return Err(RoutesError::LocalProxy { address: *proxy });
        }
    }
    Ok(())
}

/// Whether this host takes packets to an address for itself: [`Routes::is_local`] for those who
/// have no [`Routes`], because they only print a [`Plan`].
///
/// # Errors
/// The kernel doesn't answer.
pub async fn is_local(address: IpAddr) -> Result<bool, RoutesError> {
    Kernel::connect()?.is_local(address).await
}
