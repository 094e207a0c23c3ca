//! Which connections go where: weights, clients, specificity, replacement, restoring, identity.

use control_protocol::{DiversionState, RedirectResult, RestoreResult};
use scenarios::servers::{self, Conversation, Nginx};
use scenarios::{
    CLIENT_B, Capture, Lab, MIRROR1, PROXY, SERVICE, Shuntd, Way, assert_only_between,
};

/// The page that a client address gets from the service, each time over a new connection.
#[track_caller]
fn page(lab: &Lab, from: &str, port: u16) -> String {
    let curl = format!("curl -sS --interface {from} http://{SERVICE}:{port}/once/");
    lab.client.run(&curl).success().trim().to_owned()
}

const CLIENT_A: &str = scenarios::CLIENT;

/// Two mirrors with the weights 3 and 1 get three quarters and one quarter of the connections.
#[test]
fn weights_share_the_connections() {
    const CONNECTIONS: usize = 400;
    let lab = Lab::new();
    let (heavy, light) = (Nginx::start(&lab.mirror1), Nginx::start(&lab.mirror2));
    let shuntd = Shuntd::start(&lab, "");
    shuntd
        .ctl("divert 100.100.100.100:80 10.2.0.2:80*3 10.2.0.3:80")
        .success();

    let curl = format!("curl -sS http://{SERVICE}/once/?[1-{CONNECTIONS}]");
    let pages = lab.client.run(&curl).success();
    let to_heavy = pages.matches("mirror 1\n").count();
    assert_eq!(to_heavy + pages.matches("mirror 2\n").count(), CONNECTIONS);
    // Of 400 the share of 3 in 4 is 300; a standard deviation is 9.
    assert!(
        (255..=345).contains(&to_heavy),
        "{to_heavy} of {CONNECTIONS} went to the heavy one"
    );
    assert_eq!(heavy.visits().len(), to_heavy);
    assert_eq!(light.visits().len(), CONNECTIONS - to_heavy);

    // A mirror of weight 0 is drained.
    shuntd
        .ctl("divert 100.100.100.100:80 10.2.0.2:80*0 10.2.0.3:80")
        .success();
    let curl = format!("curl -sS http://{SERVICE}/once/?[1-20]");
    assert_eq!(lab.client.run(&curl).success(), "mirror 2\n".repeat(20));
}

/// Of the diversions that fit, the one with the longest client prefix wins, then the one with the
/// port, then the one with the protocol.
#[test]
fn the_most_specific_diversion_wins() {
    let lab = Lab::new();
    let _servers = [
        Nginx::start(&lab.mirror1),
        Nginx::start(&lab.mirror2),
        Nginx::start(&lab.origin),
    ];
    let shuntd = Shuntd::start(&lab, "");
    let sees = || {
        [
            (CLIENT_A, 80),
            (CLIENT_A, 8080),
            (CLIENT_B, 80),
            (CLIENT_B, 8080),
        ]
        .map(|(from, port)| page(&lab, from, port))
    };
    assert_eq!(sees(), ["origin", "origin", "origin", "origin"]);

    // One diversion for all clients and every port …
    shuntd.ctl(&format!("divert {SERVICE} 10.2.0.2")).success();
    assert_eq!(sees(), ["mirror 1", "mirror 1", "mirror 1", "mirror 1"]);
    // … a port wins against no port …
    shuntd
        .ctl(&format!("divert {SERVICE}:80 10.2.0.3"))
        .success();
    assert_eq!(sees(), ["mirror 2", "mirror 1", "mirror 2", "mirror 1"]);
    // … a protocol wins against none, but not against a port …
    shuntd
        .ctl(&format!("divert {SERVICE}/tcp {SERVICE}"))
        .success();
    assert_eq!(sees(), ["mirror 2", "origin", "mirror 2", "origin"]);
    // … and a client prefix wins against both; the longer, the more so.
    shuntd
        .ctl(&format!("divert {SERVICE} 10.2.0.2 --from 10.1.0.0/24"))
        .success();
    assert_eq!(sees(), ["mirror 1", "mirror 1", "mirror 1", "mirror 1"]);
    shuntd
        .ctl(&format!("divert {SERVICE} 10.2.0.3 --from {CLIENT_B}/32"))
        .success();
    assert_eq!(sees(), ["mirror 1", "mirror 1", "mirror 2", "mirror 2"]);
    assert_eq!(shuntd.diversions().len(), 5);

    // What is restored uncovers the next in line.
    shuntd
        .ctl(&format!("restore {SERVICE} --from {CLIENT_B}/32"))
        .success();
    shuntd
        .ctl(&format!("restore {SERVICE} --from 10.1.0.0/24"))
        .success();
    assert_eq!(sees(), ["mirror 2", "origin", "mirror 2", "origin"]);
    shuntd.ctl(&format!("restore {SERVICE}:80")).success();
    shuntd.ctl(&format!("restore {SERVICE}/tcp")).success();
    shuntd.ctl(&format!("restore {SERVICE}")).success();
    assert_eq!(sees(), ["origin", "origin", "origin", "origin"]);
}

/// A second `divert` moves new connections only, and so does `restore`; both say who stays.
#[test]
fn divert_and_restore_leave_connections_where_they_are() {
    let lab = Lab::new();
    let _servers = [
        servers::echo_tcp(&lab.mirror1),
        servers::echo_tcp(&lab.mirror2),
        servers::echo_tcp(&lab.origin),
    ];
    let shuntd = Shuntd::start(&lab, "");
    shuntd.ctl("divert 100.100.100.100:7 10.2.0.2").success();
    let mut first = Conversation::open(&lab.client, SERVICE);
    assert_eq!(first.greeting, "mirror 1");

    shuntd.ctl("divert 100.100.100.100:7 10.2.0.3").success();
    let mut second = Conversation::open(&lab.client, SERVICE);
    assert_eq!(second.greeting, "mirror 2");
    assert_eq!(first.say("still there?").expect("an echo"), "still there?");

    let restored: RestoreResult = shuntd.ask("restore 100.100.100.100:7");
    assert_eq!(restored.remaining, 2);
    assert_eq!(Conversation::open(&lab.client, SERVICE).greeting, "origin");
    assert_eq!(first.say("and now?").expect("an echo"), "and now?");
    assert_eq!(second.say("and you?").expect("an echo"), "and you?");

    let diversions = shuntd.diversions();
    let [diversion] = diversions.as_slice() else {
        panic!("a restored diversion is listed while it has connections: {diversions:#?}");
    };
    assert_eq!(diversion.state, DiversionState::Restored);
    let refusal = shuntd.ctl("restore 100.100.100.100:99");
    assert_eq!(
        refusal.code(),
        1,
        "there is nothing to restore: {refusal:?}"
    );
}

/// An identity diversion changes nothing for the client, but the service sees the proxy; and what
/// began under it can be moved.
#[test]
fn an_identity_diversion_makes_connections_movable() {
    let lab = Lab::new();
    let nginx = Nginx::start(&lab.origin);
    let _servers = [
        servers::dnsmasq(&lab.origin),
        servers::dnsmasq(&lab.mirror1),
    ];
    let shuntd = Shuntd::start(&lab, "");
    shuntd.ctl(&format!("divert {SERVICE} {SERVICE}")).success();
    let client_sees = Capture::start(&lab.client, "eth0", Way::In, "ip");
    let origin_sees = Capture::start(&lab.origin, "eth0", Way::In, "ip");

    assert_eq!(page(&lab, CLIENT_A, 80), "origin");
    assert_eq!(nginx.visits()[0].from.to_string(), PROXY);
    let ask = || {
        let dig = format!("dig +short +tries=1 -b {CLIENT_A}#4000 @{SERVICE} who.shunt.test");
        lab.client.run(&dig).success().trim().to_owned()
    };
    assert_eq!(ask(), servers::dns_answer(&lab.origin));
    assert_only_between(&client_sees.finish(), CLIENT_A, SERVICE);
    assert_only_between(&origin_sees.finish(), PROXY, SERVICE);

    let redirected: RedirectResult = shuntd.ask(&format!("redirect {SERVICE} {MIRROR1}"));
    assert!(redirected.replaced);
    assert!(redirected.outcome.moved >= 1, "{redirected:?}");
    assert_eq!(
        ask(),
        servers::dns_answer(&lab.mirror1),
        "the same flow, another server"
    );
}
