//! A mirror that refuses fails no client, as long as there is another.

use control_protocol::StatsResult;
use scenarios::servers::Nginx;
use scenarios::{Lab, MIRROR1, MIRROR1_6, MIRROR2, MIRROR2_6, SERVICE, SERVICE6, Shuntd};

/// curl, fifty times, with a connection each; gives the exit codes and what was served.
fn fifty(lab: &Lab, service: &str) -> (Vec<String>, String) {
    let code = format!(
        "for i in $(seq 50); do code=0; curl -gsS --max-time 5 http://{service}/ || code=$?; echo exit $code; done"
    );
    let output = lab.client.shell(&code).success();
    let (codes, pages): (Vec<&str>, Vec<&str>) =
        output.lines().partition(|line| line.starts_with("exit "));
    let codes = codes.into_iter().map(str::to_owned).collect();
    (codes, pages.join("\n"))
}

/// Two mirrors, one without a listener: with each of the ways that packets can leave and with both families.
#[test]
fn a_mirror_without_a_listener_fails_no_client() {
    for (flags, service, [first, second]) in [
        ("--workers 2", SERVICE.to_owned(), [MIRROR1, MIRROR2]),
        ("--egress raw", SERVICE.to_owned(), [MIRROR1, MIRROR2]),
        (
            "--workers 1",
            format!("[{SERVICE6}]"),
            [MIRROR1_6, MIRROR2_6],
        ),
    ] {
        let lab = Lab::new();
        let _server = Nginx::start(&lab.mirror2);
        let shuntd = Shuntd::start(&lab, flags);
        shuntd
            .ctl(&format!("divert {service}:80 {first} {second}"))
            .success();
        let (codes, pages) = fifty(&lab, &service);
        assert_eq!(codes, vec!["exit 0"; 50], "{flags}");
        assert_eq!(pages, vec!["mirror 2"; 50].join("\n"));

        // About half of them came to the wrong one first; all are on the other now.
        let stats: StatsResult = shuntd.ask("stats --by mirror");
        let retried = stats.total.retried;
        assert!((5..=45).contains(&retried), "{retried}");
        let groups = stats.groups.expect("asked for");
        let refused: u64 = groups.iter().map(|group| group.refused).sum();
        assert_eq!(refused, retried);
        assert_eq!((stats.total.created, stats.total.moved), (50, 0));
    }
}

/// Where no mirror listens, or retries are off, the client is refused as soon as ever.
#[test]
fn where_all_refuse_the_client_is_refused() {
    let lab = Lab::new();
    for (flags, retried) in [("", 5), ("--refused-retries 0", 0)] {
        let shuntd = Shuntd::start(&lab, flags);
        shuntd
            .ctl(&format!("divert {SERVICE}:80 {MIRROR1} {MIRROR2}"))
            .success();
        for _ in 0..5 {
            let curl = lab
                .client
                .run(&format!("curl -sS --max-time 5 http://{SERVICE}/"));
            // curl(1): failed to connect to the host.
            assert_eq!(curl.code(), 7, "{curl:#?}");
        }
        assert_eq!(shuntd.counters().retried, retried);
    }
}
