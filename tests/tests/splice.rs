//! A live TCP connection goes on at another mirror, and neither end notices.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use control_protocol::{RedirectResult, StatsResult};
use scenarios::servers::Nginx;
use scenarios::{
    Capture, Host, Lab, MIRROR1, MIRROR1_6, MIRROR2, MIRROR2_6, SERVICE, SERVICE6, Shuntd, Way,
    assert_valid_checksums,
};

/// An HTTP client with one connection.
struct Browser(BufReader<TcpStream>);

impl Browser {
    fn connect(host: &Host, to: &str) -> Self {
        Self(BufReader::new(host.connect(to)))
    }

    /// Asks for `path`, and gives the whole answer's body.
    #[track_caller]
    fn get(&mut self, path: &str) -> Vec<u8> {
        self.ask(path);
        self.hear()
    }

    #[track_caller]
    fn ask(&mut self, path: &str) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: service\r\n\r\n");
        self.0
            .get_mut()
            .write_all(request.as_bytes())
            .expect("the connection is open");
    }

    #[track_caller]
    fn hear(&mut self) -> Vec<u8> {
        let mut length = None;
        let mut first = true;
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).expect("an answer");
            if std::mem::take(&mut first) {
                assert!(line.starts_with("HTTP/1.1 200"), "{line:?}");
            }
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = Some(value.trim().parse().expect("a number"));
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length.expect("nginx says how long it is")];
        self.0.read_exact(&mut body).expect("a whole answer");
        body
    }
}

/// One connection, a request after the other, with a redirect before some: every answer is whole and
/// comes from the mirror in force.
#[test]
fn one_connection_many_mirrors() {
    for flags in ["", "--no-offload", "--workers 2"] {
        for (service, mirrors) in [
            (SERVICE, [MIRROR1, MIRROR2]),
            (SERVICE6, [MIRROR1_6, MIRROR2_6]),
        ] {
            let lab = Lab::new();
            let _nginx = [&lab.mirror1, &lab.mirror2].map(Nginx::start);
            let shuntd = Shuntd::start(&lab, flags);
            shuntd
                .ctl(&format!("divert {service} {}", mirrors[0]))
                .success();
            let client_sees = Capture::start(&lab.client, "eth0", Way::In, "tcp port 80");
            let site = std::net::SocketAddr::new(service.parse().expect("an address"), 80);
            let mut browser = Browser::connect(&lab.client, &site.to_string());
            let large = std::fs::read(lab.mirror1.file("nginx/html/large")).expect("it is there");
            let mut now_on = 0;
            for round in 0..60 {
                if round % 3 == 2 {
                    now_on = 1 - now_on;
                    let redirect: RedirectResult =
                        shuntd.ask(&format!("redirect {service} {} --no-wait", mirrors[now_on]));
                    assert_eq!(redirect.outcome.waiting, 1, "{round}: {redirect:?}");
                }
                let answer = String::from_utf8(browser.get("/")).expect("text");
                assert_eq!(answer, format!("mirror {}\n", now_on + 1), "round {round}");
                assert!(browser.get("/large") == large, "damaged in round {round}");
            }
            let stats: StatsResult = shuntd.ask("stats");
            assert_eq!((stats.total.moved, stats.total.reset), (20, 0));
            let seen = client_sees.finish();
            assert_valid_checksums(&seen);
            assert!(!seen.iter().any(|packet| packet.is_reset()));
        }
    }
}
