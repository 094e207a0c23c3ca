//! A person and a program that both instruct the rewriter: the person wins.

use control_protocol::{
    Client, ClientError, Divert, ErrorCode, Failure, ListResult, Redirect, RedirectResult, Restore,
    Service, Splice, TcpMove,
};
use scenarios::{Lab, MIRROR1, MIRROR2, SERVICE, Shuntd};

/// What the daemon says to a program that it turns away.
#[track_caller]
fn refusal<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Failure {
    match result {
        Err(ClientError::Refused(failure)) => failure,
        other => panic!("no refusal: {other:?}"),
    }
}

/// The mirrors of the one diversion, with their weights.
#[track_caller]
fn mirrors(shuntd: &Shuntd) -> Vec<(String, u16)> {
    let diversions = shuntd.diversions();
    let [diversion] = &diversions[..] else {
        panic!("one diversion: {diversions:#?}");
    };
    let mirrors = diversion.mirrors.iter();
    mirrors.map(|m| (m.address.to_string(), m.weight)).collect()
}

#[test]
fn a_program_leaves_alone_what_a_person_has_taken_over() {
    let lab = Lab::new();
    let shuntd = Shuntd::start(&lab, "");
    let service: Service = format!("{SERVICE}:80/tcp").parse().expect("a service");
    let mut program = Client::connect(shuntd.socket()).expect("it listens");
    let divert = |mirror: &str| Divert {
        service,
        mirrors: vec![mirror.parse().expect("a mirror")],
        from: None,
        peek: None,
        automatic: true,
    };
    let redirect = Redirect {
        service,
        mirrors: vec![MIRROR1.parse().expect("a mirror")],
        from: None,
        tcp: TcpMove::Splice,
        splice: Splice::default(),
        from_mirror: None,
        share: None,
        automatic: true,
    };
    let restore = Restore {
        service,
        from: None,
        automatic: true,
    };

    // The program decides.
    assert!(!program.call(divert(MIRROR1)).expect("it may").held);
    assert!(!shuntd.diversions()[0].held);

    // A person decides otherwise, and is told what that means.
    let redirected: RedirectResult = shuntd.ask(&format!("redirect {service} {MIRROR2}"));
    assert!(redirected.held);
    let list: ListResult = shuntd.ask("list");
    assert!(list.diversions[0].held);
    assert_eq!(list.holds, [service]);

    // From now on nothing that the program says changes anything.
    for failure in [
        refusal(program.call(divert(MIRROR1))),
        refusal(program.call(redirect.clone())),
        refusal(program.call(restore.clone())),
    ] {
        assert_eq!(failure.code, ErrorCode::Held);
        assert_eq!(
            failure.message,
            format!(
                "{service} is held ({service}), so programs leave it alone; release it with \
                 `shuntctl release {service}`"
            )
        );
    }
    assert_eq!(mirrors(&shuntd), [(MIRROR2.to_owned(), 1)]);
    // The person goes on, and needn't be told again.
    let shown = shuntd.ctl(&format!("divert {service} {MIRROR2}*7"));
    assert_eq!(shown.success(), "replaced\ttrue\nheld\tfalse\n");

    // Released, it is the program's again.
    let shown = shuntd.ctl(&format!("release {service}")).success();
    assert_eq!(shown, "changed\ttrue\n");
    assert!(program.call(redirect).expect("it may").replaced);
    assert_eq!(mirrors(&shuntd), [(MIRROR1.to_owned(), 1)]);
    // What a person restores is held as well: the program mustn't divert it at once again.
    let shown = shuntd.ctl(&format!("restore {service}")).success();
    assert_eq!(shown, "remaining\t0\nheld\ttrue\n");
    assert_eq!(refusal(program.call(restore)).code, ErrorCode::Held);
    assert_eq!(refusal(program.call(divert(MIRROR1))).code, ErrorCode::Held);
    assert!(shuntd.diversions().is_empty());
}

#[test]
fn a_hold_on_an_address_is_one_on_all_that_goes_there() {
    let lab = Lab::new();
    let shuntd = Shuntd::start(&lab, "");
    let mut program = Client::connect(shuntd.socket()).expect("it listens");
    let mut divert = |service: &str| {
        program.call(Divert {
            service: service.parse().expect("a service"),
            mirrors: vec![MIRROR1.parse().expect("a mirror")],
            from: None,
            peek: None,
            automatic: true,
        })
    };

    assert_eq!(
        shuntd.ctl(&format!("hold {SERVICE}")).success(),
        "changed\ttrue\n"
    );
    assert_eq!(
        shuntd.ctl(&format!("hold {SERVICE}")).success(),
        "changed\tfalse\n"
    );
    for port in ["", ":80", ":53/udp"] {
        let failure = refusal(divert(&format!("{SERVICE}{port}")));
        assert_eq!(failure.code, ErrorCode::Held, "{port}");
    }
    divert("100.100.100.101:80").expect("another address");
    // A person's diversions aren't hindered; the list shows what is held.
    shuntd
        .ctl(&format!("divert {SERVICE}:80 {MIRROR1}"))
        .success();
    let list: ListResult = shuntd.ask("list");
    assert_eq!(list.holds, [SERVICE.parse().expect("a service")]);
    let held: Vec<(String, bool)> = list
        .diversions
        .iter()
        .map(|diversion| (diversion.service.to_string(), diversion.held))
        .collect();
    assert_eq!(
        held,
        [
            (format!("{SERVICE}:80"), true),
            ("100.100.100.101:80".to_owned(), false)
        ]
    );
    shuntd.ctl(&format!("release {SERVICE}:80")).success();
    refusal(divert(&format!("{SERVICE}:80")));
    shuntd.ctl(&format!("release {SERVICE}")).success();
    divert(&format!("{SERVICE}:80")).expect("it is released");
}

/// What only the monitor answers is refused here with a word on where it is answered.
#[test]
fn the_monitor_s_methods_are_not_shuntd_s() {
    let lab = Lab::new();
    let shuntd = Shuntd::start(&lab, "");
    let socket = shuntd.socket().display();
    for command in ["decisions", "mirrors"] {
        let asked = shuntd.ctl(&format!("{command} --monitor {socket}"));
        assert_eq!(asked.code(), 1, "{asked:#?}");
        assert_eq!(
            asked.stderr,
            format!(
                "shuntctl: shuntd doesn't answer `{command}`; shunt-monitor does, on its own socket, \
                 which is usually /run/shunt/monitor.sock\n"
            )
        );
    }
}
