//! Redirects of a share of one mirror's connections, as stories of packets.

#![allow(clippy::unwrap_used, reason = "in a test, that is how to fail")]

mod support;

use std::collections::HashMap;
use std::net::SocketAddr;

use control_protocol::{Percent, Protocol, TcpMove};
use rewriter::engine::{Redirect, RedirectOutcome, SpliceOrders, Verdict};
use rewriter::table::{Direction, DiversionId};
use support::*;

const FIRST: &str = "10.2.0.2:80";
const SECOND: &str = "10.2.0.3:80";
const THIRD: &str = "10.2.0.4:80";

fn client(number: u16) -> SocketAddr {
    SocketAddr::new(address(CLIENT).ip(), 2000 + number)
}

fn share(diversion: DiversionId, tcp: TcpMove, hundredths: u8, from: &str) -> Redirect {
    Redirect {
        from_mirror: Some(from.parse().unwrap()),
        share: Percent::new(hundredths),
        ..Redirect::new(0, diversion, tcp)
    }
}

/// How many connections are on each mirror.
fn on_mirrors(world: &World) -> HashMap<SocketAddr, u64> {
    let mut mirrors = HashMap::new();
    for engine in &world.engines {
        for aggregate in engine.aggregates().iter() {
            *mirrors.entry(aggregate.key.mirror.into()).or_default() += aggregate.connections;
        }
    }
    mirrors.retain(|_, count| *count > 0);
    mirrors
}

/// Clients open connections of this protocol, all to the first mirror.
fn open(world: &mut World, protocol: Protocol, clients: u16) {
    world.divert(SERVICE, &[FIRST]);
    for number in 0..clients {
        let (client, service) = (client(number), address(SERVICE));
        if protocol == Protocol::Udp {
            world.handle(&mut udp(client, service, b"question"));
            continue;
        }
        let mut syn = tcp(client, service, SYN, (1000, 0), b"");
        world.handle(&mut syn);
        let syn = see(&syn);
        let mut answer = tcp(syn.destination, syn.source, SYN | ACK, (7000, 1001), b"");
        world.handle(&mut answer);
        world.handle(&mut tcp(client, service, ACK, (1001, 7001), b""));
    }
}

#[test]
fn a_share_moves_although_its_mirror_stays_in_service() {
    for (protocol, tcp) in [
        (Protocol::Udp, TcpMove::Splice),
        (Protocol::Tcp, TcpMove::Rewrite),
    ] {
        for workers in [1, 2] {
            let mut world = World::new(workers);
            open(&mut world, protocol, 100);
            let id = world.divert(SERVICE, &["10.2.0.2:80*3", SECOND]);
            let outcome = world.redirect(share(id, tcp, 40, "10.2.0.2"));
            let moved = outcome.moved;
            // Exact to one in each worker, and never too many.
            assert!((41 - u64::from(workers)..=40).contains(&moved), "{moved}");
            assert_eq!(
                outcome,
                RedirectOutcome {
                    moved,
                    kept: 100 - moved,
                    ..RedirectOutcome::default()
                }
            );
            assert_eq!(
                on_mirrors(&world),
                [(address(FIRST), 100 - moved), (address(SECOND), moved)].into()
            );
            // The same again: 40 % of those that are left.
            let again = world.redirect(share(id, tcp, 40, FIRST)).moved;
            assert!(again <= (100 - moved) * 40 / 100);
            assert!(again + u64::from(workers) > (100 - moved) * 40 / 100);
        }
    }
}

#[test]
fn a_share_goes_to_the_other_mirrors_by_weight_and_never_to_its_own() {
    let mut world = World::new(1);
    open(&mut world, Protocol::Udp, 400);
    let id = world.divert(SERVICE, &["10.2.0.2:80*1000", "10.2.0.3:80*3", THIRD]);
    let outcome = world.redirect(share(id, TcpMove::Splice, 100, FIRST));
    assert_eq!((outcome.moved, outcome.kept), (400, 0));
    let on = on_mirrors(&world);
    assert_eq!(on.get(&address(FIRST)), None);
    assert_eq!(on[&address(SECOND)] + on[&address(THIRD)], 400);
    assert!((260..340).contains(&on[&address(SECOND)]), "{on:?}");
}

#[test]
fn connections_on_other_mirrors_are_kept_and_not_counted_in_the_share() {
    let mut world = World::new(1);
    open(&mut world, Protocol::Udp, 50);
    let id = world.divert(SERVICE, &[FIRST, SECOND]);
    let outcome = world.redirect(share(id, TcpMove::Splice, 50, SECOND));
    assert_eq!((outcome.moved, outcome.kept), (0, 50));
    assert_eq!(on_mirrors(&world), [(address(FIRST), 50)].into());
}

#[test]
fn where_there_is_no_other_mirror_all_stay() {
    let mut world = World::new(1);
    open(&mut world, Protocol::Udp, 10);
    let id = world.divert(SERVICE, &[FIRST, "10.2.0.3:80*0"]);
    let outcome = world.redirect(share(id, TcpMove::Splice, 50, FIRST));
    assert_eq!((outcome.moved, outcome.kept), (0, 10));
}

#[test]
fn a_share_is_reset() {
    let mut world = World::new(1);
    open(&mut world, Protocol::Tcp, 10);
    let id = world.divert(SERVICE, &[FIRST, SECOND]);
    let outcome = world.redirect(share(id, TcpMove::Reset, 30, FIRST));
    assert_eq!((outcome.reset, outcome.kept), (3, 7));
    assert_eq!(world.sent().len(), 2 * 3, "each at both ends");
}

#[test]
fn a_share_is_spliced() {
    let mut world = World::new(1);
    open(&mut world, Protocol::Tcp, 10);
    let id = world.divert(SERVICE, &[FIRST, SECOND]);
    let splice = SpliceOrders {
        now: true,
        ..SpliceOrders::default()
    };
    let outcome = world.redirect(Redirect {
        splice,
        ..share(id, TcpMove::Splice, 30, FIRST)
    });
    assert_eq!((outcome.waiting, outcome.kept), (3, 7));

    // Nothing is on their way, so the other mirror is connected at once.
    let syns = world.sent();
    assert_eq!(syns.len(), 3);
    for syn in syns {
        assert_eq!((syn.destination, syn.flags), (address(SECOND), SYN));
        let mut answer = tcp(
            syn.destination,
            syn.source,
            SYN | ACK,
            (50, syn.sequence + 1),
            b"",
        );
        assert_eq!(world.handle(&mut answer), Verdict::Held);
    }
    let outcome = world.engines[0].redirect_outcome(world.redirects).unwrap();
    assert_eq!((outcome.moved, outcome.waiting, outcome.kept), (3, 0, 7));
    assert_eq!(
        on_mirrors(&world),
        [(address(FIRST), 7), (address(SECOND), 3)].into()
    );
    // What the clients say next goes where they are.
    let mut at_second = 0;
    for number in 0..10 {
        let mut segment = tcp(client(number), address(SERVICE), ACK, (1001, 7001), b"next");
        assert_eq!(
            world.handle(&mut segment),
            Verdict::Translated(Direction::Forward)
        );
        at_second += usize::from(see(&segment).destination == address(SECOND));
    }
    assert_eq!(at_second, 3);
}
