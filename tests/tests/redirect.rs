//! Moving connections that are under way.

use std::io;
use std::time::{Duration, Instant};

use control_protocol::RedirectResult;
use nix::sys::signal::Signal;
use scenarios::servers::{self, Conversation};
use scenarios::{
    Capture, Lab, MIRROR1, MIRROR2, PROXY, Packet, SERVICE, SERVICE6, Shuntd, Way,
    assert_only_between, assert_valid_checksums, wait_until,
};

/// What "at once" means here.
const AT_ONCE: Duration = Duration::from_secs(1);

/// The address of `who.shunt.test` as the service says it, asked from the client's port `port`.
#[track_caller]
fn dig(lab: &Lab, port: u16) -> String {
    let dig = format!("dig +short +tries=1 +time=5 -b 10.1.0.2#{port} @{SERVICE} who.shunt.test");
    lab.client.run(&dig).success().trim().to_owned()
}

/// `redirect --tcp reset`, the default: both ends of an established connection are told at once that
/// it is over, and the client's next attempt reaches the new mirror.
#[test]
fn tcp_reset_ends_the_connection_at_both_ends() {
    for service in [SERVICE, SERVICE6] {
        let lab = Lab::new();
        let _servers = [
            servers::echo_tcp(&lab.mirror1),
            servers::echo_tcp(&lab.mirror2),
        ];
        let shuntd = Shuntd::start(&lab, "");
        let (site, mirror1, mirror2) = match service {
            SERVICE => ("100.100.100.100:7", MIRROR1, MIRROR2),
            _ => (
                "[fd00:100::100]:7",
                scenarios::MIRROR1_6,
                scenarios::MIRROR2_6,
            ),
        };
        shuntd.ctl(&format!("divert {site} {mirror1}")).success();
        let mut conversation = Conversation::open(&lab.client, service);
        assert_eq!(conversation.greeting, "mirror 1");
        assert_eq!(conversation.say("hello").expect("an echo"), "hello");
        let client_sees = Capture::start(&lab.client, "eth0", Way::In, "ip or ip6");
        let mirror1_sees = Capture::start(&lab.mirror1, "eth0", Way::In, "ip or ip6");

        let began = Instant::now();
        let redirected: RedirectResult =
            shuntd.ask(&format!("redirect {site} {mirror2} --tcp reset"));
        let error = conversation.hear().expect_err("the connection was reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
        assert!(began.elapsed() < AT_ONCE, "that took {:?}", began.elapsed());
        assert_eq!(
            (
                redirected.outcome.moved,
                redirected.outcome.reset,
                redirected.outcome.kept
            ),
            (0, 1, 0)
        );

        wait_until("mirror 1 forgets the connection", || {
            lab.mirror1.tcp_peers().is_empty().then_some(())
        });
        assert_eq!(
            Conversation::open(&lab.client, service).greeting,
            "mirror 2"
        );

        // Each end got its reset from the address that it knows: one for each sequence number that
        // it may be expecting, and one more if an acknowledgement was still under way.
        let resets = |packets: &[Packet]| packets.iter().filter(|packet| packet.is_reset()).count();
        for seen in [client_sees.finish(), mirror1_sees.finish()] {
            assert!((1..=3).contains(&resets(&seen)), "{seen:#?}");
            assert_valid_checksums(&seen);
        }
    }
}

/// `redirect --tcp rewrite`, the patent's own way: the destination simply changes. Mirror 2 gets the
/// segments of a connection it doesn't know, says so, and the client hears it as from the service.
#[test]
fn tcp_rewrite_sends_the_same_connection_elsewhere() {
    let lab = Lab::new();
    let _servers = [
        servers::echo_tcp(&lab.mirror1),
        servers::echo_tcp(&lab.mirror2),
    ];
    let shuntd = Shuntd::start(&lab, "");
    shuntd.ctl("divert 100.100.100.100:7 10.2.0.2").success();
    let mut conversation = Conversation::open(&lab.client, SERVICE);
    assert_eq!(conversation.say("hello").expect("an echo"), "hello");
    let mirror1_sees = Capture::start(&lab.mirror1, "eth0", Way::In, "tcp");
    let mirror2_sees = Capture::start(&lab.mirror2, "eth0", Way::In, "tcp");
    let client_sees = Capture::start(&lab.client, "eth0", Way::In, "tcp");

    let redirected: RedirectResult =
        shuntd.ask("redirect 100.100.100.100:7 10.2.0.3 --tcp rewrite");
    assert_eq!(
        (
            redirected.outcome.moved,
            redirected.outcome.reset,
            redirected.outcome.kept
        ),
        (1, 0, 0)
    );
    let error = conversation
        .say("who is there?")
        .expect_err("mirror 2 knows no such connection");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");

    // (A late acknowledgement of the echo may still have gone its old way.)
    let heard = mirror1_sees.finish();
    assert!(
        heard.iter().all(|packet| packet.payload().is_empty()),
        "mirror 1 heard {heard:?}"
    );
    let at_mirror2 = mirror2_sees.finish();
    assert_eq!(at_mirror2[0].payload(), b"who is there?\n");
    assert_only_between(&at_mirror2, PROXY, MIRROR2);
    assert_valid_checksums(&at_mirror2);
    let at_client = client_sees.finish();
    assert_only_between(&at_client, scenarios::CLIENT, SERVICE);
    assert_valid_checksums(&at_client);
}

/// UDP moves at once: of one flow, between the same two ports, one question is answered by mirror 1
/// and the next by mirror 2.
#[test]
fn udp_moves_at_once() {
    let lab = Lab::new();
    let _servers = [
        servers::dnsmasq(&lab.mirror1),
        servers::dnsmasq(&lab.mirror2),
    ];
    let shuntd = Shuntd::start(&lab, "");
    shuntd.ctl("divert 100.100.100.100:53 10.2.0.2").success();
    assert_eq!(dig(&lab, 4000), servers::dns_answer(&lab.mirror1));

    // `divert` moves new flows only.
    shuntd.ctl("divert 100.100.100.100:53 10.2.0.3").success();
    assert_eq!(dig(&lab, 4000), servers::dns_answer(&lab.mirror1));
    assert_eq!(dig(&lab, 4001), servers::dns_answer(&lab.mirror2));

    let redirected: RedirectResult = shuntd.ask("redirect 100.100.100.100:53 10.2.0.3");
    assert_eq!(
        (
            redirected.outcome.moved,
            redirected.outcome.reset,
            redirected.outcome.kept
        ),
        (1, 0, 1)
    );
    assert_eq!(dig(&lab, 4000), servers::dns_answer(&lab.mirror2));
}

/// `--from-mirror` empties one mirror and leaves the others' connections alone.
#[test]
fn from_mirror_moves_only_that_mirrors_connections() {
    let lab = Lab::new();
    let _servers = [
        servers::dnsmasq(&lab.mirror1),
        servers::dnsmasq(&lab.mirror2),
        servers::dnsmasq(&lab.origin),
    ];
    let shuntd = Shuntd::start(&lab, "");
    shuntd.ctl("divert 100.100.100.100:53 10.2.0.2").success();
    assert_eq!(dig(&lab, 4000), servers::dns_answer(&lab.mirror1));
    shuntd.ctl("divert 100.100.100.100:53 10.2.0.3").success();
    assert_eq!(dig(&lab, 4001), servers::dns_answer(&lab.mirror2));

    let redirected: RedirectResult =
        shuntd.ask("redirect 100.100.100.100:53 100.100.100.100 --from-mirror 10.2.0.2");
    assert_eq!(
        (
            redirected.outcome.moved,
            redirected.outcome.reset,
            redirected.outcome.kept
        ),
        (1, 0, 1)
    );
    assert_eq!(dig(&lab, 4000), servers::dns_answer(&lab.origin));
    assert_eq!(dig(&lab, 4001), servers::dns_answer(&lab.mirror2));
}

/// A ping that runs while its service moves loses nothing worth mentioning.
#[test]
fn ping_moves_in_the_middle_of_its_run() {
    const PINGS: usize = 150;
    for (ping, site, mirror1, mirror2) in [
        ("ping -4", SERVICE, MIRROR1, MIRROR2),
        (
            "ping -6",
            SERVICE6,
            scenarios::MIRROR1_6,
            scenarios::MIRROR2_6,
        ),
    ] {
        let lab = Lab::new();
        let shuntd = Shuntd::start(&lab, "");
        shuntd
            .ctl(&format!("divert {site}/icmp {mirror1}"))
            .success();
        let requests = "icmp[icmptype] = icmp-echo or icmp6[icmp6type] = icmp6-echo";
        let mirror1_sees = Capture::start(&lab.mirror1, "eth0", Way::In, requests);
        let mirror2_sees = Capture::start(&lab.mirror2, "eth0", Way::In, requests);
        let client_sees = Capture::start(&lab.client, "eth0", Way::In, "icmp or icmp6");

        let running = lab
            .client
            .start(&format!("{ping} -i 0.01 -c {PINGS} -W 1 {site}"));
        mirror1_sees.wait_for(PINGS / 3);
        let redirected: RedirectResult = shuntd.ask(&format!("redirect {site}/icmp {mirror2}"));
        assert_eq!(
            (
                redirected.outcome.moved,
                redirected.outcome.reset,
                redirected.outcome.kept
            ),
            (1, 0, 0)
        );
        let (_, report) = running.wait(Duration::from_secs(10));

        let answered = client_sees.finish();
        assert!(
            answered.len() >= PINGS - 1,
            "{} of {PINGS}:\n{report}",
            answered.len()
        );
        assert_valid_checksums(&answered);
        let (before, after) = (mirror1_sees.finish(), mirror2_sees.finish());
        assert_eq!(
            before.len() + after.len(),
            PINGS,
            "each request reached one mirror"
        );
        assert!(
            after.len() > PINGS / 3,
            "{} came after the redirect",
            after.len()
        );
        assert_valid_checksums(&before);
        assert_valid_checksums(&after);
    }
}

/// A TCP connection that was there before the diversion goes on to the original service as if
/// nothing had happened, in every routing mode, and a redirect can't move it.
#[test]
fn a_connection_older_than_its_diversion_goes_on_unchanged() {
    for flags in ["", "--client 10.1.0.0/24", "--egress raw"] {
        let lab = Lab::new();
        let _servers = [
            servers::echo_tcp(&lab.origin),
            servers::echo_tcp(&lab.mirror1),
        ];
        let mut older = Conversation::open(&lab.client, SERVICE);
        assert_eq!(older.greeting, "origin");

        let shuntd = Shuntd::start(&lab, flags);
        assert_eq!(older.say("a rewriter?").expect("an echo"), "a rewriter?");
        shuntd.ctl("divert 100.100.100.100:7 10.2.0.2").success();
        let origin_sees = Capture::start(&lab.origin, "eth0", Way::In, "tcp");
        assert_eq!(older.say("a diversion?").expect("an echo"), "a diversion?");
        assert_eq!(
            Conversation::open(&lab.client, SERVICE).greeting,
            "mirror 1"
        );
        let redirected: RedirectResult = shuntd.ask("redirect 100.100.100.100:7 10.2.0.2");
        assert_eq!(
            redirected.outcome.reset, 0,
            "the older connection isn't Shunt's to reset"
        );
        assert_eq!(older.say("a redirect?").expect("an echo"), "a redirect?");

        let passed = origin_sees.finish();
        assert_only_between(&passed, scenarios::CLIENT, SERVICE);
        assert_valid_checksums(&passed);
        shuntd.stop(Signal::SIGTERM);
        assert_eq!(older.say("all gone?").expect("an echo"), "all gone?");
    }
}
