//! What reaches whom, through a rewriter in miniature, with every reverse-path filter strict.
//!
//! ```text
//!  client 10.1.0.2 ── 10.1.0.1  rewriter  10.2.0.1 ── 10.2.0.2 service
//!                               proxy 10.9.9.9
//! ```

use std::collections::HashMap;
use std::sync::Mutex;

use etherparse::Ipv4HeaderSlice;
use ipnet::IpNet;

use super::*;

const CLIENT: &str = "10.1.0.2";
const REWRITER: &str = "10.2.0.1";
const SERVICE: &str = "10.2.0.2";
const PROXY: &str = "10.9.9.9";

/// Offsets in a UDP packet whose IPv4 header has no options.
mod field {
    use std::ops::Range;

    pub const CHECKSUM: Range<usize> = 10..12;
    pub const SOURCE: Range<usize> = 12..16;
    pub const DESTINATION: Range<usize> = 16..20;
    pub const SOURCE_PORT: Range<usize> = 20..22;
    pub const DESTINATION_PORT: Range<usize> = 22..24;
    pub const UDP_CHECKSUM: Range<usize> = 26..28;
}

/// The hosts, and what the rewriter does with packets.
struct Lab {
    client: super::Host,
    service: super::Host,
    /// The mirror of clients that are diverted.
    diverted: Mutex<HashMap<IpAddr, IpAddr>>,
}

impl Lab {
    fn new() -> Self {
        run("ip link set dev lo up");
        let gateways = (["10.1.0.1/24", "fd01::1/64"], ["10.2.0.1/24", "fd02::1/64"]);
        let client = super::Host::new("wire1", &gateways.0, &["10.1.0.2/24", "fd01::2/64"]);
        let service = super::Host::new("wire2", &gateways.1, &["10.2.0.2/24", "fd02::2/64"]);
        for interface in ["all", "default", "wire1", "wire2"] {
            set_parameter(&format!("net/ipv4/conf/{interface}/rp_filter"), "1");
        }
        Self {
            client,
            service,
            diverted: Mutex::default(),
        }
    }

    fn settings(&self) -> Settings {
        Settings {
            enable_forwarding: true,
            ..Settings::new("shunt0", vec![ip(PROXY)])
        }
    }

    fn divert(&self, client: &str, mirror: &str) {
        self.diverted.lock().unwrap().insert(ip(client), ip(mirror));
    }

    fn restore(&self) {
        self.diverted.lock().unwrap().clear();
    }

    /// Runs `work` while the rewriter rewrites and all hosts echo.
    fn while_rewriting<T>(&self, queue: &mut TunQueue, work: impl FnOnce() -> T) -> T {
        let here = UdpSocket::bind(("::", ECHO)).unwrap();
        let sockets = [self.client.echo_socket(), self.service.echo_socket(), here];
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| self.rewrite(queue, &done));
            let _guard = SetWhenDropped(&done);
            while_echoing(&sockets, work)
        })
    }

    /// Diverts datagrams to the service's port, and passes everything else.
    fn rewrite(&self, queue: &mut TunQueue, done: &AtomicBool) {
        let mut clients: HashMap<[u8; 2], IpAddr> = HashMap::new();
        while !done.load(Ordering::Relaxed) {
            let Some(mut frame) = receive(queue, Duration::from_millis(20)) else {
                continue;
            };
            if frame.packet()[0] >> 4 == 4 {
                self.rewrite_packet(frame.packet_mut(), &mut clients);
            }
            queue.transmit(&mut frame).unwrap();
            queue.flush().unwrap();
        }
    }

    fn rewrite_packet(&self, packet: &mut [u8], clients: &mut HashMap<[u8; 2], IpAddr>) {
        let header = Ipv4HeaderSlice::from_slice(packet).unwrap();
        let (source, destination) = (header.source_addr(), header.destination_addr());
        let asks =
            destination == ip(SERVICE) && packet[field::DESTINATION_PORT] == ECHO.to_be_bytes();
        let mut write = |range: std::ops::Range<usize>, address: IpAddr| {
            let IpAddr::V4(address) = address else {
                panic!("{address} isn't IPv4")
            };
            packet[range].copy_from_slice(&address.octets());
        };
        let mirror = self
            .diverted
            .lock()
            .unwrap()
            .get(&IpAddr::V4(source))
            .copied();
        if destination == ip(PROXY) {
            write(field::SOURCE, ip(SERVICE));
            let port: [u8; 2] = packet[field::DESTINATION_PORT].try_into().unwrap();
            packet[field::DESTINATION].copy_from_slice(&octets(clients[&port]));
        } else if let (true, Some(mirror)) = (asks, mirror) {
            write(field::SOURCE, ip(PROXY));
            write(field::DESTINATION, mirror);
            let port = packet[field::SOURCE_PORT].try_into().unwrap();
            clients.insert(port, IpAddr::V4(source));
        } else {
            return;
        }
        let header = Ipv4HeaderSlice::from_slice(packet).unwrap().to_header();
        packet[field::CHECKSUM].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
        packet[field::UDP_CHECKSUM].fill(0);
    }
}

fn octets(address: IpAddr) -> [u8; 4] {
    match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => panic!("{address} isn't IPv4"),
    }
}

/// Where the kernel would send a packet that comes in by an interface, or the error.
fn way(to: &str, from: &str, by: &str) -> String {
    match try_run(&format!("ip route get {to} from {from} iif {by}")) {
        Ok(text) => {
            let mut words = text.split_whitespace().skip_while(|word| *word != "dev");
            words.nth(1).unwrap().to_owned()
        }
        Err(complaint) => complaint.trim().to_owned(),
    }
}

#[test]
fn an_identity_diversion_works_with_strict_reverse_path_filters() {
    in_namespace(|| {
        let lab = Lab::new();
        let mut queue = open_tun("shunt0");
        on_runtime(async {
            let mut routes = Routes::set_up(lab.settings()).await.unwrap();
            routes.add_service(ip(SERVICE)).await.unwrap();
            lab.while_rewriting(&mut queue, || {
                // The mirror is the service itself: it sees the proxy, and answers the proxy.
                lab.divert(CLIENT, SERVICE);
                assert_eq!(lab.client.ask(SERVICE), Some(ip(PROXY)));

                // So does a process on the rewriter's own host, whichever address it sends from.
                lab.divert("10.1.0.1", SERVICE);
                lab.divert("10.2.0.1", SERVICE);
                assert_eq!(ask(SERVICE, PATIENCE), Some(ip(PROXY)));
            });
            assert!(routes.remove_all().await.is_empty());
        });
    });
}

#[test]
fn a_mirror_on_the_rewriters_own_host_works() {
    in_namespace(|| {
        let lab = Lab::new();
        let mut queue = open_tun("shunt0");
        on_runtime(async {
            let mut routes = Routes::set_up(lab.settings()).await.unwrap();
            routes.add_service(ip(SERVICE)).await.unwrap();
            lab.while_rewriting(&mut queue, || {
                lab.divert(CLIENT, REWRITER);
                assert_eq!(lab.client.ask(SERVICE), Some(ip(PROXY)));
            });
        });
    });
}

#[test]
fn what_isnt_diverted_passes_with_strict_reverse_path_filters() {
    in_namespace(|| {
        let lab = Lab::new();
        let mut queue = open_tun("shunt0");
        on_runtime(async {
            let mut routes = Routes::set_up(lab.settings()).await.unwrap();
            routes.add_service(ip(SERVICE)).await.unwrap();
            lab.while_rewriting(&mut queue, || {
                lab.restore();
                // A client that isn't diverted reaches the service as itself.
                assert_eq!(lab.client.ask(SERVICE), Some(ip(CLIENT)));
                // So does the rewriter's own host.
                assert_eq!(ask(SERVICE, PATIENCE), Some(ip(REWRITER)));
                // The service reaches clients, and both addresses of the rewriter's host, even if
                // it has to ask for its gateway's hardware address first.
                assert_eq!(lab.service.ask(CLIENT), Some(ip(SERVICE)));
                lab.service.forget_neighbours();
                assert_eq!(lab.service.ask(REWRITER), Some(ip(SERVICE)));
                assert_eq!(way("10.1.0.1", SERVICE, "wire2"), "lo");
                // Clients reach the rewriter's host.
                assert_eq!(lab.client.ask("10.1.0.1"), Some(ip(CLIENT)));
            });
        });
    });
}

#[test]
fn ipv6_passes_and_local_processes_are_met() {
    in_namespace(|| {
        let lab = Lab::new();
        let mut queue = open_tun("shunt0");
        let settings = Settings {
            proxies: vec![ip(PROXY), ip("fd09::9")],
            ..lab.settings()
        };
        on_runtime(async {
            let mut routes = Routes::set_up(settings).await.unwrap();
            routes.add_service(ip("fd02::2")).await.unwrap();
            assert_eq!(
                way("fd02::2", "fd01::2", "wire1"),
                "shunt0",
                "client → service"
            );
            assert_eq!(
                way("fd09::9", "fd02::2", "wire2"),
                "shunt0",
                "mirror → proxy"
            );
            assert_eq!(
                way("fd02::2", "fd09::9", "shunt0"),
                "wire2",
                "rewritten forward"
            );
            assert_eq!(
                way("fd01::2", "fd02::2", "shunt0"),
                "wire1",
                "rewritten reverse"
            );
            lab.while_rewriting(&mut queue, || {
                assert_eq!(lab.client.ask("fd02::2"), Some(ip("fd01::2")));
                assert!(ask("fd02::2", PATIENCE).is_some());
                assert_eq!(lab.service.ask("fd01::2"), Some(ip("fd02::2")));
            });
        });
    });
}

#[test]
fn a_removed_service_is_left_alone() {
    in_namespace(|| {
        let lab = Lab::new();
        let _queue = open_tun("shunt0");
        on_runtime(async {
            let mut routes = Routes::set_up(lab.settings()).await.unwrap();
            assert_eq!(way(SERVICE, CLIENT, "wire1"), "wire2");
            routes.add_service(ip(SERVICE)).await.unwrap();
            assert_eq!(way(SERVICE, CLIENT, "wire1"), "shunt0");
            assert_eq!(
                way(CLIENT, SERVICE, "wire2"),
                "shunt0",
                "the answers come too"
            );

            // Adding it twice changes nothing, so one removal is enough; and a second one is idle.
            let once = listing(&lab.settings());
            routes.add_service(ip(SERVICE)).await.unwrap();
            assert_eq!(listing(&lab.settings()), once);
            for _ in 0..2 {
                routes.remove_service(ip(SERVICE)).await.unwrap();
                assert_eq!(way(SERVICE, CLIENT, "wire1"), "wire2");
                assert_eq!(way(CLIENT, SERVICE, "wire2"), "wire1");
            }
        });
    });
}

#[test]
fn answers_need_not_come_without_a_strict_reverse_path_filter() {
    in_namespace(|| {
        let lab = Lab::new();
        for interface in ["all", "default", "wire1", "wire2"] {
            set_parameter(&format!("net/ipv4/conf/{interface}/rp_filter"), "0");
        }
        let mut queue = open_tun("shunt0");
        on_runtime(async {
            let mut routes = Routes::set_up(lab.settings()).await.unwrap();
            routes.add_service(ip(SERVICE)).await.unwrap();
            assert_eq!(
                way(CLIENT, SERVICE, "wire2"),
                "wire1",
                "the answers go straight back"
            );
            lab.while_rewriting(&mut queue, || {
                assert_eq!(lab.client.ask(SERVICE), Some(ip(CLIENT)));
                lab.divert(CLIENT, SERVICE);
                assert_eq!(lab.client.ask(SERVICE), Some(ip(PROXY)));
            });
        });
    });
}

#[test]
fn all_packets_of_client_networks_come_and_the_host_stays_reachable() {
    in_namespace(|| {
        let lab = Lab::new();
        let mut queue = open_tun("shunt0");
        let net: IpNet = "10.1.0.0/24".parse().unwrap();
        let settings = Settings {
            clients: vec![net],
            ..lab.settings()
        };
        on_runtime(async {
            let mut routes = Routes::set_up(settings.clone()).await.unwrap();
            // A service needs no route of its own, wherever it is.
            let before = listing(&settings);
            routes.add_service(ip(SERVICE)).await.unwrap();
            assert_eq!(listing(&settings), before);
            assert_eq!(way(SERVICE, CLIENT, "wire1"), "shunt0");
            assert_eq!(way("10.1.0.3", CLIENT, "wire1"), "shunt0", "to a neighbour");
            assert_eq!(
                way("10.1.0.1", CLIENT, "wire1"),
                "lo",
                "to the rewriter's host"
            );
            assert_eq!(
                way(SERVICE, PROXY, "shunt0"),
                "wire2",
                "whatever was rewritten"
            );

            lab.while_rewriting(&mut queue, || {
                assert_eq!(lab.client.ask(SERVICE), Some(ip(CLIENT)));
                lab.divert(CLIENT, SERVICE);
                assert_eq!(lab.client.ask(SERVICE), Some(ip(PROXY)));
                lab.client.forget_neighbours();
                assert_eq!(lab.client.ask("10.1.0.1"), Some(ip(CLIENT)));
                assert_eq!(way(REWRITER, CLIENT, "wire1"), "lo");
                assert_eq!(ask(CLIENT, PATIENCE), Some(ip("10.1.0.1")));
                assert_eq!(lab.service.ask(CLIENT), Some(ip(SERVICE)));
            });
            assert!(routes.remove_all().await.is_empty());
        });
    });
}

#[test]
fn local_processes_keep_their_source_address_and_follow_its_change() {
    in_namespace(|| {
        let lab = Lab::new();
        let mut queue = open_tun("shunt0");
        on_runtime(async {
            let mut routes = Routes::set_up(lab.settings()).await.unwrap();
            // Without a route through Shunt, the near end of the wire is the source.
            let source = || run(&format!("ip route get {SERVICE} ipproto udp"));
            assert!(source().contains("dev wire2 src 10.2.0.1"), "{}", source());
            routes.add_service(ip(SERVICE)).await.unwrap();
            assert!(
                source().contains("dev shunt0 table 3353 src 10.2.0.1"),
                "{}",
                source()
            );

            run("ip address add 10.2.0.9/24 dev wire2");
            run("ip address del 10.2.0.1/24 dev wire2");
            run("ip address add 10.2.0.9/24 dev wire2");
            assert!(routes.refresh().await.is_empty());
            assert!(
                source().contains("dev shunt0 table 3353 src 10.2.0.9"),
                "{}",
                source()
            );
            lab.while_rewriting(&mut queue, || {
                assert_eq!(ask(SERVICE, PATIENCE), Some(ip("10.2.0.9")));
            });
            routes.remove_service(ip(SERVICE)).await.unwrap();
            assert!(source().contains("dev wire2"), "{}", source());
        });
    });
}
