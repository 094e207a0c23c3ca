//! What Shunt says that it has measured, beside what clients have seen.

use std::thread;
use std::time::{Duration, Instant};

use control_protocol::{Client, End, GroupStats, StatsResult, Watch};
use scenarios::servers::{self, Conversation, Nginx};
use scenarios::{CLIENT, Lab, MIRROR1, MIRROR2, SERVICE, Shuntd};

/// What `stats --by` shows.
#[track_caller]
fn groups(shuntd: &Shuntd, by: &str) -> Vec<GroupStats> {
    let stats: StatsResult = shuntd.ask(&format!("stats --by {by}"));
    stats.groups.expect("it was asked for")
}

/// Requests, each on a connection of its own, to two mirrors.
#[test]
fn what_was_counted_is_what_was_done() {
    let lab = Lab::new();
    let _servers = [Nginx::start(&lab.mirror1), Nginx::start(&lab.mirror2)];
    let shuntd = Shuntd::start(&lab, "");
    shuntd
        .ctl(&format!("divert {SERVICE}:80 {MIRROR1} {MIRROR2}*3"))
        .success();
    // Nobody listens there.
    shuntd
        .ctl(&format!("divert {SERVICE}:81 {MIRROR1}:9"))
        .success();
    let curl = format!("for i in $(seq 60); do curl -sS --max-time 5 http://{SERVICE}/; done");
    let pages = lab.client.shell(&curl).success();
    let from_first = pages.matches("mirror 1").count() as u64;
    assert_eq!(pages.lines().count(), 60);
    let refused = lab
        .client
        .run(&format!("curl -sS --max-time 5 http://{SERVICE}:81/"));
    // curl(1): failed to connect to the host.
    assert_eq!(refused.code(), 7);

    let by_mirror = groups(&shuntd, "mirror");
    let of = |mirror: &str| {
        by_mirror
            .iter()
            .find(|group| group.mirror.expect("a mirror").to_string() == mirror)
            .expect(mirror)
    };
    let first = of(&format!("{MIRROR1}:80"));
    let second = of(&format!("{MIRROR2}:80"));
    let closed = of(&format!("{MIRROR1}:9"));
    assert_eq!((first.opened, second.opened), (from_first, 60 - from_first));
    for group in [first, second] {
        assert_eq!(group.first_byte.count, group.opened);
        assert_eq!(group.mirror_handshake.count, group.opened);
        assert_eq!(group.client_handshake.count, group.opened);
        assert!(group.forward.packets >= 5 * group.opened);
        // Namespaces of one machine are near each other.
        let longest = group.first_byte.max_us;
        assert!((1..1_000_000).contains(&longest), "{longest} µs");
        assert!(group.first_byte.p50_us <= group.first_byte.p99_us);
        assert_eq!(group.refused + group.unanswered + group.reverse.resets, 0);
    }
    assert_eq!((closed.refused, closed.reverse.resets), (1, 1));
    assert_eq!(closed.first_byte.count, 0);

    let by_service = groups(&shuntd, "service");
    let opened: Vec<u64> = by_service.iter().map(|group| group.opened).collect();
    assert_eq!(opened, [60, 1]);
    let by_client = groups(&shuntd, "client");
    let [clients] = &by_client[..] else {
        panic!("one client: {by_client:#?}");
    };
    let prefix = clients.clients.expect("its prefix");
    assert!(prefix.contains(CLIENT.parse().expect("an address")));
    assert_eq!(prefix.network().prefix_len(), 24);
    assert_eq!(clients.opened, 61);
}

/// A server that takes its time, and a client that asks it and breaks off.
#[test]
fn a_connection_shows_what_was_measured_of_it() {
    let lab = Lab::new();
    let _server = servers::echo_tcp(&lab.mirror1);
    let shuntd = Shuntd::start(&lab, "");
    shuntd
        .ctl(&format!("divert {SERVICE}:7 {MIRROR1}"))
        .success();
    let mut conversation = Conversation::open(&lab.client, SERVICE);
    assert_eq!(conversation.say("hello").expect("an echo"), "hello");
    let connections = shuntd.connections();
    let [connection] = &connections[..] else {
        panic!("one connection: {connections:#?}");
    };
    let timing = connection.timing;
    for time in [
        timing.mirror_handshake_us,
        timing.client_handshake_us,
        timing.mirror_rtt_us,
        timing.client_rtt_us,
        timing.first_byte_us,
    ] {
        assert!(time.is_some_and(|time| time < 1_000_000), "{timing:?}");
    }
    assert_eq!((timing.icmp_errors, timing.reset_by), (0, None));
    assert!(connection.age_seconds < 60);

    shuntd
        .ctl(&format!("redirect {SERVICE}:7 {MIRROR2} --tcp reset"))
        .success();
    let refused: StatsResult = shuntd.ask("stats");
    assert_eq!(refused.total.reset, 1);
    // A redirect's reset is neither end's.
    assert_eq!(shuntd.connections()[0].timing.reset_by, None::<End>);
}

/// Who watches gets an update a second about just that time; who doesn't read holds up nobody, and later gets
/// what it has missed in one update.
#[test]
fn watchers_get_an_update_a_second_and_slow_ones_fewer() {
    let lab = Lab::new();
    let _server = Nginx::start(&lab.mirror1);
    let shuntd = Shuntd::start(&lab, "");
    shuntd
        .ctl(&format!("divert {SERVICE}:80 {MIRROR1}"))
        .success();
    let curl = |times: u32| {
        let curl = format!("curl -sS --max-time 5 http://{SERVICE}/");
        for _ in 0..times {
            lab.client.run(&curl).success();
        }
    };
    curl(3);

    let mut watcher = Client::connect(shuntd.socket()).expect("it listens");
    let first = watcher.call(Watch::default()).expect("an update");
    assert_eq!(first.groups[0].opened, 3);
    let mut update = || watcher.next_update().expect("an update");
    curl(4);
    let (began, mut opened, mut milliseconds) = (Instant::now(), 0, 0);
    while opened < 4 {
        let update = update();
        opened += update.groups[0].opened;
        milliseconds += update.interval_ms;
        assert!((900..3000).contains(&update.interval_ms), "{update:?}");
        assert!(began.elapsed() < Duration::from_secs(10), "{opened} of 4");
    }
    assert_eq!(opened, 4);
    assert!(milliseconds >= 900);

    // It goes to sleep. Others get their answers meanwhile.
    let began = Instant::now();
    curl(5);
    shuntd.ctl("stats --by mirror").success();
    thread::sleep(Duration::from_millis(2500));
    let mut opened = 0;
    while opened < 5 {
        opened += update().groups[0].opened;
        assert!(began.elapsed() < Duration::from_secs(15), "{opened} of 5");
    }
    assert_eq!(opened, 5);

    let shown = shuntd.ctl("watch --count 2 --by service").success();
    assert_eq!(shown.matches("interval_ms\t").count(), 2, "{shown}");
}
