//! What keeps the arrangement in order while the daemon runs: [`Routes::refresh`].
//!
//! The kernel drops routes unasked: all that lead to the TUN when it is set down or loses its last
//! address, and those whose source is an address that goes. It tells nobody (`fib_table_flush` in
//! `net/ipv4/fib_trie.c`). Operators and their tools drop rules: `ip rule flush`, or a network manager
//! that removes what it doesn't know.
//!
//! So what was made is made again now and then, which the kernel refuses for all that is still
//! there ([`Kernel::restore`](super::netlink::Kernel::restore)). Each time the [`FIRST`] steps have
//! their turn, which are those of the TUN, the proxy addresses and the rules for all services, and
//! some of the others ([`some_others`]), round and round. What drops routes rarely drops one alone: if
//! any was lost, all are looked at. A single route of very many services may so be missing for some
//! minutes; and a look costs the same for any number of services.

use std::collections::HashSet;
use std::ops::Range;

use super::host::{self, Host};
use super::step::{Interface, Step};
use super::{Egress, Routes, RoutesError};

/// How many of the first steps are looked at each time.
const FIRST: usize = 32;

/// How many of the other steps are looked at each time. To ask for a filter is dear.
fn some_others(egress: Egress) -> usize {
    match egress {
        Egress::Tun => 64,
        Egress::Raw { .. } => 16,
    }
}

/// What [`Routes::refresh`] remembers.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    /// The TUN was down.
    down: bool,
    /// Where in [`Routes::made`] the next batch begins.
    next: usize,
    /// What was made may be something else than what is planned.
    differs: bool,
    /// What was wrong the last time, as it was logged.
    complaints: HashSet<String>,
}

impl Routes {
    /// Follows what has happened to the host, and makes up for what was lost. To be called about
    /// once a second.
    ///
    /// - Routes, rules and parameters that are gone are made again, soon after the TUN is up again.
    /// - When the host's addresses change, local processes may have to use another source towards
    ///   a service.
    /// - Rules for strict reverse-path filters come and go with these.
    /// - With [`Egress::Raw`], interfaces that have appeared get filters, the host's new addresses
    ///   pass, and what failed or went with a hook that somebody removed is made up for.
    ///
    /// Cheap when nothing has changed, however many services there are: some dozens of short
    /// questions to the kernel.
    ///
    /// Gives what has gone wrong, each logged as a warning; what could be done was done. What goes
    /// on being wrong isn't repeated.
    pub async fn refresh(&mut self) -> Vec<RoutesError> {
        let mut errors = Vec::new();
        if let Err(e) = self.try_refresh(&mut errors).await {
            errors.push(e);
        }
        let complaints = errors.iter().map(ToString::to_string).collect();
        let known = std::mem::replace(&mut self.upkeep.complaints, complaints);
        errors.retain(|e| !known.contains(&e.to_string()));
        errors.iter().for_each(|e| log::warn!("{e}"));
        errors
    }

    async fn try_refresh(&mut self, errors: &mut Vec<RoutesError>) -> Result<(), RoutesError> {
        let was_down = self.upkeep.down;
        self.upkeep.down = !self.kernel.is_up(self.tun_index).await?;
        if self.upkeep.down {
            // Nothing can be arranged, and nothing should: somebody wanted this.
            let tun = self.plan.settings().tun.clone();
            return Err(RoutesError::LinkDown { tun });
        }
        if was_down {
            log::info!("{} is up again", self.plan.settings().tun);
        }
        if let Err(e) = self.follow_host(errors).await {
            errors.push(e);
        }
        self.restore_lost(errors).await;
        Ok(())
    }

    async fn follow_host(&mut self, errors: &mut Vec<RoutesError>) -> Result<(), RoutesError> {
        let settings = self.plan.settings();
        let (links, addresses) = Host::links_and_addresses(&self.kernel, settings).await?;
        let changed = match settings.egress {
            Egress::Tun => {
                let strict = host::strict_reverse_path(&settings.tun)?;
                self.plan.adopt_reverse_path(strict)
            }
            Egress::Raw { .. } => self.forget_unhooked().await?,
        };
        self.upkeep.differs |= changed;
        if *self.plan.addresses() != addresses {
            self.refresh_sources(errors).await;
        }
        self.upkeep.differs |= self.plan.adopt_links(links, addresses)?;
        if self.upkeep.differs {
            let before = errors.len();
            self.carry_out_changes(errors).await;
            self.upkeep.differs = errors.len() != before;
        }
        Ok(())
    }

    async fn refresh_sources(&mut self, errors: &mut Vec<RoutesError>) {
        let mut replaced = HashSet::new();
        for service in self.plan.services() {
            let source = host::source_to(service);
            let Some((before, after)) = self.plan.change_source(service, source) else {
                continue;
            };
            // It takes the other's place at once: no packet goes astray.
            match self.make(&Step::Route(after), &HashSet::new()).await {
                Ok(()) => {
                    replaced.insert(Step::Route(before));
                }
                Err(e) => {
                    self.plan.change_source(service, before.source);
                    errors.push(e);
                }
            }
        }
        self.made.retain(|step| !replaced.contains(step));
    }

    /// With its hook, an interface has lost its filters; one that has gone has no hook either.
    /// Forgets that those were made; gives whether there were any.
    async fn forget_unhooked(&mut self) -> Result<bool, RoutesError> {
        let hooked = self.kernel.hooked().await?;
        let is_lost = |interface: &Interface| !hooked.contains(&interface.index);
        let before = self.made.len();
        self.made
            .retain(|step| !step.filtered_interface().is_some_and(is_lost));
        self.hooked_before.retain(|interface| !is_lost(interface));
        Ok(self.made.len() != before)
    }

    /// Undoes what the plan has no longer, and makes what it has in addition.
    async fn carry_out_changes(&mut self, errors: &mut Vec<RoutesError>) {
        let mut wanted = self.plan.steps();
        wanted.retain(Step::comes_and_goes);
        let wanted_set: HashSet<_> = wanted.iter().collect();
        let superfluous = |step: &mut Step| step.comes_and_goes() && !wanted_set.contains(step);
        let gone = self.made.extract_if(.., superfluous).collect();
        errors.extend(self.undo_all(gone).await);

        let made: HashSet<_> = self.made.iter().cloned().collect();
        wanted.retain(|step| !made.contains(step));
        let hooked = match self.hooked(&wanted).await {
            Ok(hooked) => hooked,
            Err(e) => return errors.push(e),
        };
        for step in &wanted {
            if let Err(e) = self.make(step, &hooked).await {
                errors.push(e);
            }
        }
    }

    async fn restore_lost(&mut self, errors: &mut Vec<RoutesError>) {
        let len = self.made.len();
        let first = 0..FIRST.min(len);
        let start = if self.upkeep.next < len {
            self.upkeep.next.max(first.end)
        } else {
            first.end
        };
        let turn = start..(start + some_others(self.plan.settings().egress)).min(len);
        self.upkeep.next = turn.end;

        let mut wrong = Vec::new();
        let mut restored = self.restore(first, &mut wrong).await;
        restored += self.restore(turn, &mut wrong).await;
        if restored != 0 {
            wrong.clear();
            restored += self.restore(0..len, &mut wrong).await;
            log::warn!(
                "{restored} of the routes, rules and the like of {} were gone, and are there again",
                self.plan.settings().tun
            );
        }
        errors.extend(wrong);
    }

    /// Makes again what is lost of these steps; gives how many there were. Of what goes wrong the
    /// first stands for all: it mostly has one cause.
    async fn restore(&self, steps: Range<usize>, errors: &mut Vec<RoutesError>) -> usize {
        let (mut restored, mut first_error) = (0, None);
        for step in &self.made[steps] {
            match self.kernel.restore(step, self.tun_index).await {
                Ok(true) => {
                    log::debug!("{}", step.command());
                    restored += 1;
                }
                Ok(false) => {}
                Err(e) if step.filtered_interface().is_some() && e.is_no_device() => {}
                Err(e) => {
                    log::debug!("{e}");
                    first_error.get_or_insert(e);
                }
            }
        }
        errors.extend(first_error);
        restored
    }
}
