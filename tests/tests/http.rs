//! curl, wrk and nginx: the web, diverted and redirected.

use std::fs;
use std::net::IpAddr;

use control_protocol::ConnectionState;
use scenarios::servers::Nginx;
use scenarios::{
    CLIENT, CLIENT6, Capture, Lab, MIRROR1, MIRROR1_6, MIRROR2, MIRROR2_6, PROXY, PROXY6, SERVICE,
    SERVICE6, Shuntd, Way, assert_only_between, assert_valid_checksums,
};

/// The addresses of one family.
struct Family {
    client: &'static str,
    service: &'static str,
    /// The service as a URL and `shuntctl` write it: with brackets if need be.
    site: &'static str,
    proxy: &'static str,
    mirror1: &'static str,
    mirror2: &'static str,
}

const IPV4: Family = Family {
    client: CLIENT,
    service: SERVICE,
    site: SERVICE,
    proxy: PROXY,
    mirror1: MIRROR1,
    mirror2: MIRROR2,
};
const IPV6: Family = Family {
    client: CLIENT6,
    service: SERVICE6,
    site: "[fd00:100::100]",
    proxy: PROXY6,
    mirror1: MIRROR1_6,
    mirror2: MIRROR2_6,
};

/// A client asks for one page, again and again, while the service moves from the origin to mirror 1,
/// to mirror 2, and back. It only ever sees the service's address, and the mirrors only the proxy's.
#[track_caller]
fn a_page_moves_and_the_client_never_knows(family: &Family) {
    let Family {
        client,
        service,
        site,
        proxy,
        mirror1,
        mirror2,
    } = family;
    let lab = Lab::new();
    let (at_origin, at_mirror1, at_mirror2) = (
        Nginx::start(&lab.origin),
        Nginx::start(&lab.mirror1),
        Nginx::start(&lab.mirror2),
    );
    let shuntd = Shuntd::start(&lab, "");
    let client_sees = Capture::start(&lab.client, "eth0", Way::In, "ip or ip6");
    let mirror1_sees = Capture::start(&lab.mirror1, "eth0", Way::In, "ip or ip6");
    let mirror2_sees = Capture::start(&lab.mirror2, "eth0", Way::In, "ip or ip6");
    let page = || {
        lab.client
            .run(&format!("curl -sS http://{site}/"))
            .success()
    };

    assert_eq!(page(), "origin\n");
    shuntd.ctl(&format!("divert {site}:80 {mirror1}")).success();
    assert_eq!(page(), "mirror 1\n");
    let file = lab.client.file("large");
    lab.client
        .run(&format!(
            "curl -sS -o {} http://{site}/large",
            file.display()
        ))
        .success();
    assert!(
        fs::read(&file).expect("curl wrote it") == at_mirror1.large(),
        "damaged on its way"
    );
    shuntd
        .ctl(&format!("redirect {site}:80 {mirror2}"))
        .success();
    assert_eq!(page(), "mirror 2\n");
    shuntd.ctl(&format!("restore {site}:80")).success();
    assert_eq!(page(), "origin\n");

    let visitors = |nginx: &Nginx| -> Vec<String> {
        nginx
            .visits()
            .iter()
            .map(|visit| format!("{} {}", visit.from, visit.path))
            .collect()
    };
    assert_eq!(
        visitors(&at_origin),
        [format!("{client} /"), format!("{client} /")]
    );
    assert_eq!(
        visitors(&at_mirror1),
        [format!("{proxy} /"), format!("{proxy} /large")]
    );
    assert_eq!(visitors(&at_mirror2), [format!("{proxy} /")]);

    for (seen, one, other) in [
        (client_sees.finish(), client, service),
        (mirror1_sees.finish(), proxy, mirror1),
        (mirror2_sees.finish(), proxy, mirror2),
    ] {
        assert_only_between(&seen, one, other);
        assert_valid_checksums(&seen);
    }
}

/// While a connection is open, each end's kernel names the other end as Shunt means it to.
#[test]
fn each_end_sees_whom_it_should() {
    let lab = Lab::new();
    let _nginx = Nginx::start(&lab.mirror1);
    let shuntd = Shuntd::start(&lab, "");
    shuntd
        .ctl("divert 100.100.100.100:80 10.2.0.2:8080")
        .success();
    let stream = lab.client.connect("100.100.100.100:80");

    let client_end = stream.local_addr().expect("connected").to_string();
    assert_eq!(
        lab.client.tcp_peers(),
        ["100.100.100.100:80".parse().expect("an address")]
    );
    let peers = lab.mirror1.tcp_peers();
    let [peer] = peers.as_slice() else {
        panic!("mirror 1 has one connection, not {peers:?}");
    };
    assert_eq!(peer.ip().to_string(), PROXY);
    assert!(
        peer.port() >= 1024,
        "{peer} is outside of the default range of proxy ports"
    );

    let connections = shuntd.connections();
    let [connection] = connections.as_slice() else {
        panic!("one connection, not {connections:#?}");
    };
    assert_eq!(connection.client.to_string(), client_end);
    assert_eq!(connection.service.to_string(), "100.100.100.100:80");
    assert_eq!(connection.proxy, *peer);
    assert_eq!(connection.mirror.to_string(), "10.2.0.2:8080");
    assert_eq!(connection.state, ConnectionState::Established);
}

/// wrk, with links that keep their offloads: thousands of short connections, then a few busy ones.
/// Not a single request may fail.
#[test]
fn wrk_sees_no_error() {
    let lab = Lab::with_offloads();
    let nginx = Nginx::start(&lab.mirror1);
    let shuntd = Shuntd::start(&lab, "");
    for site in [IPV4.site, IPV6.site] {
        let mirror = if site == SERVICE { MIRROR1 } else { MIRROR1_6 };
        shuntd.ctl(&format!("divert {site}:80 {mirror}")).success();
        for path in ["once/", "index.html"] {
            let wrk = format!("wrk -t 1 -c 16 -d 1s http://{site}/{path}");
            let report = lab.client.run(&wrk).success();
            assert!(!report.contains("Socket errors"), "{report}");
            assert!(!report.contains("Non-2xx"), "{report}");
            let served = report
                .lines()
                .find_map(|line| line.trim().split_once(" requests in "))
                .and_then(|(count, _)| count.parse::<u64>().ok());
            assert!(served > Some(100), "{report}");
        }
    }
    let proxies = [PROXY, PROXY6].map(|proxy| proxy.parse::<IpAddr>().expect("an address"));
    let stranger = nginx
        .visits()
        .into_iter()
        .find(|visit| !proxies.contains(&visit.from));
    assert_eq!(stranger, None, "the mirror knows the proxy addresses only");
}

/// The story over IPv4.
#[test]
fn a_page_moves_over_ipv4() {
    a_page_moves_and_the_client_never_knows(&IPV4);
}

/// The story over IPv6.
#[test]
fn a_page_moves_over_ipv6() {
    a_page_moves_and_the_client_never_knows(&IPV6);
}
