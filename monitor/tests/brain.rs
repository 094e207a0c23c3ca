//! The brain in a world of queues: what it does, and what it leaves alone.

mod world;

use std::time::Duration;

use monitor::assign::Want;
use monitor::brain::{Action, Kind, Planned, Settings, State, Vitals, Wish};
use monitor::model::Queue;
use world::{World, down, up};

fn settings() -> Settings {
    Settings {
        settle: Duration::from_secs(10),
        slow_start: Duration::from_secs(20),
        ..Settings::default()
    }
}

/// Three equal mirrors of 200 requests a second each.
fn equals(rate: f64) -> World {
    World::new(settings(), &[Queue::new(0.02, 4.0); 3], &[rate])
}

fn kinds(decisions: &[monitor::brain::Decision]) -> Vec<Kind> {
    decisions.iter().map(|decision| decision.kind).collect()
}

#[test]
fn a_service_begins_with_equal_shares_and_stays_so_among_equals() {
    let mut world = equals(300.0);
    let decisions = world.live(600);
    assert_eq!(kinds(&decisions), [Kind::Start], "{decisions:#?}");
    let weights: Vec<u16> = decisions[0].orders[0]
        .mirrors
        .iter()
        .map(|mirror| mirror.weight)
        .collect();
    assert_eq!(weights, [333, 333, 333]);
}

#[test]
fn unequal_mirrors_get_unequal_shares() {
    let queues = [
        Queue::new(0.02, 8.0),
        Queue::new(0.02, 4.0),
        Queue::new(0.02, 2.0),
    ];
    let mut world = World::new(settings(), &queues, &[350.0]);
    world.live(1);
    let equal = world.cost();
    world.live(900);
    let (cost, best) = (world.cost(), world.best_cost());
    assert!(cost < 1.2 * best, "{cost} {best}");
    assert!(cost < 0.8 * equal, "{cost} {equal}");
    assert!(world.decisions.len() < 12, "{:#?}", world.decisions);
}

#[test]
fn a_dead_mirror_loses_its_traffic_at_once_and_gets_it_back_slowly() {
    let mut world = equals(300.0);
    world.live(60);
    world.servers[1].is_alive = false;
    let decisions = world.tell(1, down());
    assert_eq!(kinds(&decisions), [Kind::Failover]);
    assert!(
        matches!(decisions[0].orders[0].action, Action::Flee(from) if from.address == world::address(1))
    );
    assert!(
        decisions[0]
            .reason
            .contains("m2 is down (the http check is bad)"),
        "{}",
        decisions[0].reason
    );
    assert!(world.rate_at(1) < 1e-9);
    let kinds_while_dead = kinds(&world.live(60));
    assert_eq!(kinds_while_dead, [], "two equal ones are left");

    world.servers[1].is_alive = true;
    world.servers[1].vitals = up();
    let decisions = world.live(120);
    assert!(
        decisions
            .iter()
            .all(|decision| decision.kind == Kind::Recover),
        "{decisions:#?}"
    );
    assert!((3..=6).contains(&decisions.len()), "{decisions:#?}");
    let first = decisions[0].changes[0].to[1];
    let last = decisions[decisions.len() - 1].changes[0].to[1];
    assert!(first < 0.15 && last > 0.28, "{first} {last}");
}

#[test]
fn an_overloaded_mirror_is_relieved_within_two_looks() {
    let mut world = equals(300.0);
    world.live(120);
    world.servers[0].queue = Queue::new(0.2, 4.0);
    let decisions = world.live(2);
    assert_eq!(kinds(&decisions), [Kind::Redirect], "{decisions:#?}");
    assert!(
        decisions[0].reason.contains("overloaded"),
        "{}",
        decisions[0].reason
    );
    assert!(world.rate_at(0) < 30.0, "{}", world.rate_at(0));
    let (before, after) = decisions[0].cost.expect("it weighed");
    assert!(after < 0.5 * before);
    // When it is well again it is found out in time.
    world.servers[0].queue = Queue::new(0.02, 4.0);
    world.live(900);
    assert!(world.rate_at(0) > 60.0, "{:#?}", world.decisions);
}

#[test]
fn what_is_unknown_gets_no_more() {
    let mut world = equals(100.0);
    world.servers[2].vitals = Vitals {
        state: State::Unknown,
        ..up()
    };
    world.live(3);
    assert!(world.decisions.is_empty(), "its first check is waited for");
    world.live(60);
    assert_eq!(world.rate_at(2), 0.0);
    // It loses nothing either.
    let mut world = equals(100.0);
    world.live(20);
    let before = world.rate_at(2);
    world.servers[2].vitals = Vitals {
        state: State::Unknown,
        ..up()
    };
    world.live(100);
    assert!((world.rate_at(2) - before).abs() < 1.0);
}

#[test]
fn when_all_look_dead_everything_stays() {
    let mut world = equals(100.0);
    world.live(20);
    for mirror in 0..3 {
        world.tell(mirror, down());
    }
    let last = world.clients[0].weights.clone();
    assert_eq!(last, [0.0, 0.0, 1.0], "the last one is kept");
    let reasons: Vec<&str> = world
        .decisions
        .iter()
        .map(|decision| decision.reason.as_str())
        .collect();
    assert!(
        reasons[reasons.len() - 1].contains("all mirrors look dead"),
        "{reasons:#?}"
    );
    let said = world.decisions.len();
    world.live(60);
    assert_eq!(world.decisions.len(), said, "said once");

    // All in one moment.
    let mut world = equals(100.0);
    world.live(20);
    let before = world.clients[0].weights.clone();
    for server in &mut world.servers {
        server.vitals = down();
    }
    let decisions = world.live(10);
    assert_eq!(kinds(&decisions), [Kind::None]);
    assert_eq!(world.clients[0].weights, before);
}

#[test]
fn as_many_mirrors_stay_as_the_operator_says() {
    let mut world = World::new(
        Settings {
            min_mirrors: 2,
            ..settings()
        },
        &[Queue::new(0.02, 4.0); 3],
        &[100.0],
    );
    world.live(20);
    world.tell(0, down());
    world.live(5);
    let decisions = world.tell(1, down());
    assert_eq!(kinds(&decisions), [Kind::None]);
    let weights = &world.clients[0].weights;
    assert!(weights[0] == 0.0 && weights[1] > 0.0 && weights[2] > 0.0);
}

#[test]
fn a_mirror_that_is_to_be_empty_is_emptied() {
    let mut world = equals(100.0);
    world.live(20);
    let left = Duration::from_secs(600);
    let decisions = world.tell(
        0,
        Vitals {
            planned: Planned::Draining(left),
            ..up()
        },
    );
    assert_eq!(kinds(&decisions), [Kind::Drain]);
    assert!(matches!(
        decisions[0].orders[0].action,
        Action::Leave { within, or_reset: false, percent: None, .. } if within == left
    ));
    // An agent may ask for it too.
    let decisions = world.tell(
        1,
        Vitals {
            wish: Wish::Drain,
            ..up()
        },
    );
    assert_eq!(kinds(&decisions), [Kind::Drain]);
    assert_eq!(world.clients[0].weights, [0.0, 0.0, 1.0]);
}

#[test]
fn an_agent_has_its_part_of_the_load() {
    let mut world = equals(30.0);
    world.live(20);
    let half = Vitals {
        weight: 0.5,
        ..up()
    };
    let decisions = world.tell(0, half);
    assert_eq!(kinds(&decisions), [Kind::Agent]);
    let weights = &world.clients[0].weights;
    assert!((weights[0] - 0.2).abs() < 0.001, "{weights:?}");
    assert_eq!(kinds(&world.live(60)), []);
    let decisions = world.tell(0, up());
    assert_eq!(kinds(&decisions), [Kind::Agent]);
    let weights = &world.clients[0].weights;
    assert!((weights[0] - 1.0 / 3.0).abs() < 0.001, "{weights:?}");
}

#[test]
fn a_held_service_is_left_alone() {
    let mut world = equals(300.0);
    world.live(60);
    world.brain.take_hold(0, true);
    assert_eq!(world.tell(0, down()), []);
    assert_eq!(world.live(60), []);
    world.brain.take_hold(0, false);
    assert_eq!(kinds(&world.live(1)), [Kind::Failover]);
}

#[test]
fn rules_bind_the_optimiser() {
    let mut world = World::new(settings(), &[Queue::new(0.02, 4.0); 3], &[100.0, 60.0]);
    world.brain.take_want(
        0,
        0,
        Want::Fixed(vec![0.7, 0.3, 0.0]),
        Some("shares".into()),
    );
    world
        .brain
        .take_want(0, 1, Want::Free(vec![2]), Some("third only".into()));
    world.live(300);
    assert_eq!(kinds(&world.decisions), [Kind::Start]);
    assert_eq!(world.clients[0].weights, [0.7, 0.3, 0.0]);
    assert_eq!(world.clients[1].weights, [0.0, 0.0, 1.0]);
    // In the evening another rule applies.
    world
        .brain
        .take_want(0, 1, Want::Free(vec![0, 1]), Some("evening".into()));
    let decisions = world.live(1);
    assert_eq!(kinds(&decisions), [Kind::Rule]);
    assert!(
        decisions[0].reason.contains("\"evening\""),
        "{}",
        decisions[0].reason
    );
    assert_eq!(world.clients[1].weights[2], 0.0);
    // Whom the rules leave only a dead mirror stay with it.
    world.brain.take_want(0, 1, Want::Free(vec![0]), None);
    world.live(20);
    let decisions = world.tell(0, down());
    assert_eq!(world.clients[1].weights, [1.0, 0.0, 0.0], "{decisions:#?}");
    assert_eq!(world.clients[0].weights, [0.0, 1.0, 0.0]);
}

#[test]
fn a_preferred_mirror_overflows_under_load() {
    let mut world = equals(50.0);
    let want = Want::Prefer {
        first: vec![0],
        overflow: vec![1, 2],
        at: 0.8,
    };
    world.brain.take_want(0, 0, want, Some("near".into()));
    world.live(100);
    assert!(world.rate_at(0) > 49.0);
    for rate in [100.0, 150.0, 200.0, 260.0] {
        world.clients[0].rate = rate;
        world.live(200);
    }
    let rates = [0, 1, 2].map(|mirror| world.rate_at(mirror));
    assert!((110.0..200.0).contains(&rates[0]), "{rates:?}");
    assert!(rates[1] > 20.0 && rates[2] > 20.0, "{rates:?}");
    world.clients[0].rate = 50.0;
    world.live(400);
    assert!(world.rate_at(0) > 45.0);
}

#[test]
fn nonsense_from_agents_and_metrics_harms_nobody() {
    let mut world = equals(100.0);
    world.live(20);
    for load in [f64::NAN, f64::INFINITY, -5.0, 1e300] {
        for weight in [f64::NAN, -1.0, 7.0] {
            world.tell(
                0,
                Vitals {
                    load: Some(load),
                    weight,
                    ..up()
                },
            );
            world.live(3);
        }
    }
    let sum: f64 = world.clients[0].at.iter().sum();
    assert!((sum - 1.0).abs() < 1e-6);
}
