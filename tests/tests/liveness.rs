//! What Shunt says of mirrors that die, in either of the two ways that there are.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use control_protocol::{LivenessResult, MirrorLiveness};
use scenarios::servers::Nginx;
use scenarios::{Lab, MIRROR1, MIRROR2, SERVICE, Shuntd, wait_until};

/// What is said of the mirror at this address.
#[track_caller]
fn liveness(shuntd: &Shuntd, mirror: &str) -> MirrorLiveness {
    let LivenessResult { mirrors } = shuntd.ask("liveness");
    *mirrors
        .iter()
        .find(|found| found.mirror.ip().to_string() == mirror)
        .unwrap_or_else(|| panic!("no {mirror} in {mirrors:#?}"))
}

/// Asks on an open connection, and waits for the beginning of the answer.
fn ask(stream: &mut TcpStream) -> std::io::Result<usize> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: service\r\n\r\n")?;
    stream.read(&mut [0; 4096])
}

/// Connections on both mirrors, one of whose processes is killed: what is left of its connections is
/// reset, new ones are refused, and neither looks like silence.
#[test]
fn a_killed_server_resets_and_refuses() {
    let lab = Lab::new();
    let first = Nginx::start(&lab.mirror1);
    let _second = Nginx::start(&lab.mirror2);
    let shuntd = Shuntd::start(&lab, "");
    shuntd
        .ctl(&format!("divert {SERVICE}:80 {MIRROR1}"))
        .success();
    let site = format!("{SERVICE}:80");
    let mut open = lab.client.connect(&site);
    assert!(ask(&mut open).expect("an answer") > 0);
    let before = liveness(&shuntd, MIRROR1);
    assert_eq!((before.connections, before.unanswered), (1, 0));
    assert_eq!((before.refused, before.resets), (0, 0));
    assert_eq!(before.waiting_ms, None);

    first.kill();
    // Its kernel said goodbye for it; who asks all the same is told that nobody is there.
    let answer = ask(&mut open);
    assert!(!matches!(answer, Ok(1..)), "{answer:?}");
    let curl = format!("curl -sS --max-time 5 http://{SERVICE}/");
    // curl(1): failed to connect to the host.
    assert_eq!(lab.client.run(&curl).code(), 7);
    assert_eq!(lab.client.run(&curl).code(), 7);
    let after = liveness(&shuntd, MIRROR1);
    assert_eq!((after.refused, after.resets), (2, 1), "{after:?}");
    assert_eq!((after.unanswered, after.waiting_ms), (0, None));
}

/// The link of one of two mirrors is cut: from the first thing that is asked of it on it is waited for, longer and
/// longer, while the other is heard; and no more when the link is there again.
#[test]
fn a_mirror_whose_link_is_cut_is_waited_for() {
    let lab = Lab::new();
    let _servers = [&lab.mirror1, &lab.mirror2].map(Nginx::start);
    let shuntd = Shuntd::start(&lab, "--workers 2");
    shuntd
        .ctl(&format!("divert {SERVICE}:80 {MIRROR1}"))
        .success();
    let site = format!("{SERVICE}:80");
    let mut on_first: Vec<TcpStream> = (0..4).map(|_| lab.client.connect(&site)).collect();
    for stream in &mut on_first {
        assert!(ask(stream).expect("an answer") > 0);
    }
    shuntd
        .ctl(&format!("divert {SERVICE}:80 {MIRROR2}"))
        .success();
    let mut on_second = lab.client.connect(&site);

    lab.mirror1.cut_off();
    // Nothing is asked of it yet.
    thread::sleep(Duration::from_millis(300));
    let quiet = liveness(&shuntd, MIRROR1);
    assert_eq!((quiet.unanswered, quiet.waiting_ms), (0, None), "{quiet:?}");

    let began = Instant::now();
    for stream in &mut on_first {
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: service\r\n\r\n")
            .expect("it goes into the socket");
    }
    let waited = wait_until("the mirror has been silent for a second", || {
        let signs = liveness(&shuntd, MIRROR1);
        let most = began.elapsed();
        let waiting = Duration::from_millis(signs.waiting_ms.unwrap_or(0));
        assert!(waiting <= most, "{waiting:?} of {most:?}");
        (waiting >= Duration::from_secs(1)).then_some(signs)
    });
    // Each was sent at least once more meanwhile.
    assert!(waited.unanswered >= 8, "{waited:?}");
    assert!(waited.heard_ms >= waited.waiting_ms, "{waited:?}");
    assert_eq!((waited.refused, waited.resets), (0, 0));
    assert_eq!(waited.connections, 4);
    assert!(ask(&mut on_second).expect("an answer") > 0);
    let other = liveness(&shuntd, MIRROR2);
    assert_eq!((other.unanswered, other.waiting_ms), (0, None), "{other:?}");

    lab.mirror1.reconnect();
    wait_until("it is heard again", || {
        let signs = liveness(&shuntd, MIRROR1);
        (signs.waiting_ms.is_none() && signs.heard_ms < Some(1000)).then_some(())
    });
    for stream in &mut on_first {
        assert!(stream.read(&mut [0; 4096]).expect("an answer") > 0);
    }
}
