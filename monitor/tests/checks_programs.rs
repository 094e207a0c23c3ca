//! The checks against the programs that mirrors really run: nginx with and without TLS, dnsmasq.

#![allow(clippy::unwrap_used, reason = "in a test, that is how to fail")]

mod support;

use monitor::check::{Finding, Verdict};
use support::programs::{Certificates, Dnsmasq, Nginx, Program, free_address, wait_until, write};
use support::{answers, closed, find, silent};

#[track_caller]
fn assert_found(finding: &Finding, verdict: Verdict, detail: &str) {
    assert_eq!(
        (finding.verdict, finding.detail.as_str()),
        (verdict, detail)
    );
}

#[tokio::test]
async fn nginx_is_good_over_http() {
    let nginx = Nginx::start(&Certificates::for_name("DNS:mirror.test"));
    for (check, verdict, detail) in [
        ("path = '/health'", Verdict::Good, "status 200"),
        (
            "path = '/health'\nbody = 'all is well'",
            Verdict::Good,
            "status 200",
        ),
        (
            "path = '/health'\nmethod = 'HEAD'",
            Verdict::Good,
            "status 200",
        ),
        (
            "path = '/nothing'",
            Verdict::Bad,
            "status 404, expected 200-399",
        ),
        (
            "path = '/nothing'\nstatus = 404",
            Verdict::Good,
            "status 404",
        ),
        ("path = '/moved'", Verdict::Good, "status 302"),
        (
            "path = '/moved'\nstatus = '200-299'",
            Verdict::Bad,
            "status 302, expected 200-299",
        ),
        (
            "path = '/host'\nhost = 'www.test'\nbody = 'www.test'",
            Verdict::Good,
            "status 200",
        ),
    ] {
        let finding = find(nginx.http, &format!("kind = 'http'\n{check}")).await;
        assert_found(&finding, verdict, detail);
    }
    // TLS where there is none, and the other way round.
    let finding = find(nginx.http, "kind = 'http'\ntls = true\nverify = false").await;
    assert_eq!(finding.verdict, Verdict::Bad);
    assert!(finding.detail.starts_with("TLS: "), "{}", finding.detail);
    let finding = find(nginx.https, "kind = 'http'\npath = '/health'").await;
    assert_found(&finding, Verdict::Bad, "status 400, expected 200-399");
}

#[tokio::test]
async fn certificates_are_verified_by_the_given_authority_and_name() {
    let certificates = Certificates::for_name("DNS:mirror.test");
    let nginx = Nginx::start(&certificates);
    let ca = certificates.path("ca.pem");
    let check = |more: &str| format!("kind = 'http'\npath = '/host'\ntls = true\n{more}");
    let with_ca = |more: &str| check(&format!("ca = '{}'\n{more}", ca.display()));

    // The name that is verified is also the one in the handshake; its port isn't part of it.
    for host in ["mirror.test", "mirror.test:8443"] {
        let more = format!("host = '{host}'\nbody = 'mirror.test mirror.test TLSv1'");
        let finding = find(nginx.https, &with_ca(&more)).await;
        assert_found(&finding, Verdict::Good, "status 200");
    }
    for (text, expected) in [
        (
            with_ca("host = 'other.test'"),
            "certificate not valid for name \"other.test\"",
        ),
        (with_ca(""), "certificate not valid for name"),
        // This host's authorities haven't signed it.
        (check("host = 'mirror.test'"), "UnknownIssuer"),
    ] {
        let finding = find(nginx.https, &text).await;
        assert_eq!(finding.verdict, Verdict::Bad);
        assert!(finding.detail.starts_with("TLS: "), "{}", finding.detail);
        assert!(finding.detail.contains(expected), "{}", finding.detail);
    }
    let finding = find(nginx.https, &check("verify = false")).await;
    assert_found(&finding, Verdict::Good, "status 200");
}

#[tokio::test]
async fn a_certificate_for_an_address_will_do_without_a_name() {
    let certificates = Certificates::for_name("IP:127.0.0.1");
    let address = free_address();
    let _server = Program::start(&format!(
        "openssl s_server -www -quiet -accept {address} -cert {} -key {}",
        certificates.path("certificate.pem").display(),
        certificates.path("key.pem").display()
    ));
    wait_until(|| std::net::TcpStream::connect(address).is_ok());
    let ca = certificates.path("ca.pem");
    let text = format!(
        "kind = 'http'\ntls = true\nca = '{}'\nbody = 'TLSv1.3'",
        ca.display()
    );
    let finding = find(address, &text).await;
    assert_found(&finding, Verdict::Good, "status 200");
}

#[tokio::test]
async fn a_handshake_that_hangs_or_is_garbage_is_bad() {
    let text = "kind = 'http'\ntls = true\nverify = false";
    let briefly = format!("{text}\ntimeout = '200ms'");
    let finding = find(silent().await, &briefly).await;
    assert_found(&finding, Verdict::Bad, "no answer within 200ms");
    for garbage in [
        "HTTP/1.1 400 Bad Request\r\n\r\n",
        "\x16\x03\x03\x7f\x7f",
        "",
    ] {
        let finding = find(answers("", garbage).await, text).await;
        assert_eq!(finding.verdict, Verdict::Bad);
        assert!(finding.detail.starts_with("TLS: "), "{}", finding.detail);
    }
}

#[tokio::test]
async fn a_metric_that_nginx_serves_tells_the_load() {
    let certificates = Certificates::for_name("DNS:mirror.test");
    let nginx = Nginx::start(&certificates);
    let metrics = "# TYPE node_load1 gauge\nnode_load1 3.2\nnode_cpu{cpu=\"0\"} 1\n\
                   node_cpu{cpu=\"1\"} 2\n";
    write(nginx.folder.path(), "metrics", metrics);
    let ca = certificates.path("ca.pem");
    let text = format!(
        "kind = 'prometheus'\ntls = true\nca = '{}'\nhost = 'mirror.test'\nmetric = 'node_load1'\n\
         full = 4",
        ca.display()
    );
    let finding = find(nginx.https, &text).await;
    assert_found(&finding, Verdict::Good, "node_load1 is 3.2; load 0.80");
    let text = "kind = 'prometheus'\nmetric = 'node_cpu'\nlabels = { cpu = '1' }\nfull = 4";
    assert_eq!(find(nginx.http, text).await.load, Some(0.5));
    let text = "kind = 'prometheus'\nmetric = 'node_cpu'\nfull = 4\nmax = 2.5";
    let finding = find(nginx.http, text).await;
    assert_found(
        &finding,
        Verdict::Bad,
        "node_cpu is 3, more than 2.5; load 0.75",
    );
}

#[tokio::test]
async fn dnsmasq_answers_as_expected_or_not() {
    let dnsmasq = Dnsmasq::start();
    for (check, verdict, detail) in [
        ("name = 'mirror.test'", Verdict::Good, "NOERROR: 10.0.0.7"),
        (
            "name = 'MIRROR.test.'\nanswer = '10.0.0.7'",
            Verdict::Good,
            "NOERROR: 10.0.0.7",
        ),
        (
            "name = 'mirror.test'\ntype = 'AAAA'\nanswer = 'fd00::7'",
            Verdict::Good,
            "NOERROR: fd00::7",
        ),
        (
            "name = 'text.test'\ntype = 'TXT'\nanswer = 'well'",
            Verdict::Good,
            "NOERROR: well",
        ),
        (
            "name = 'alias.test'\nanswer = 'mirror.test'",
            Verdict::Good,
            "NOERROR: mirror.test., 10.0.0.7",
        ),
        (
            "name = 'mirror.test'\nanswer = '10.0.0.8'",
            Verdict::Bad,
            "NOERROR: 10.0.0.7; expected 10.0.0.8",
        ),
        (
            "name = 'nobody.test'",
            Verdict::Bad,
            "NXDOMAIN, expected NOERROR",
        ),
        (
            "name = 'nobody.test'\nrcode = 'NXDOMAIN'",
            Verdict::Good,
            "NXDOMAIN, no records",
        ),
        (
            "name = 'example.org'\nrcode = 'REFUSED'",
            Verdict::Good,
            "REFUSED, no records",
        ),
    ] {
        let finding = find(dnsmasq.address, &format!("kind = 'dns'\n{check}")).await;
        assert_eq!(
            (finding.verdict, finding.detail.as_str()),
            (verdict, detail),
            "{check}"
        );
    }
    let finding = find(closed().await, "kind = 'dns'\nname = 'mirror.test'").await;
    assert_found(
        &finding,
        Verdict::Bad,
        "receive: Connection refused (os error 111)",
    );
    // The same by a plain datagram: a query for the root's name servers, whose answer repeats it.
    let query = "'12 34 01 00 00 01 00 00 00 00 00 00 00 00 02 00 01'";
    let text = format!("kind = 'udp'\nsend-hex = {query}\nexpect-hex = '12 34'");
    assert_eq!(find(dnsmasq.address, &text).await.verdict, Verdict::Good);
}
