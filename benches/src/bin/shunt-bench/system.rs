//! The ways from the client to the server that are compared: each is set up on the rewriter's host, and
//! gone again when its value is dropped.

use std::fs;

use clap::ValueEnum;
use nix::sys::signal::Signal;
use scenarios::{
    Background, Lab, MIRROR1, MIRROR1_6, PROXY, PROXY6, SERVICE, SERVICE6, Shuntd, wait_until,
};

use crate::workload::{ECHO_PORT, HTTP_PORT, IPERF_PORT};

/// The TCP ports that a proxy must listen at.
const PORTS: [u16; 3] = [HTTP_PORT, IPERF_PORT, ECHO_PORT];

/// The address that what goes to the server comes from has a neighbour: 100,000 flows are more than one
/// address has ports.
const SECOND_PROXY: &str = "10.10.10.11";
const SECOND_PROXY6: &str = "fd00:10::11";

/// A way from the client to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum System {
    /// The kernel forwards; the client knows the server's own address.
    Plain,
    /// nftables, DNAT and SNAT: what the others are compared with.
    Nftables,
    /// HAProxy, mode tcp, a thread for each core.
    Haproxy,
    /// nginx's stream module, a worker for each core.
    NginxStream,
    /// Shunt as it comes.
    Shunt,
    /// Shunt without super-packets.
    ShuntNoOffload,
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Its number: 4 or 6.
    pub fn number(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 6,
        }
    }
}

impl System {
    /// Its name, as on the command line.
    pub fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether UDP can go this way.
    pub fn takes_udp(self) -> bool {
        !matches!(self, Self::Haproxy | Self::NginxStream)
    }

    /// The address that the client goes to.
    pub fn target(self, family: Family) -> &'static str {
        match (self, family) {
            (Self::Plain, Family::V4) => MIRROR1,
            (Self::Plain, Family::V6) => MIRROR1_6,
            (_, Family::V4) => SERVICE,
            (_, Family::V6) => SERVICE6,
        }
    }

    /// Sets it up.
    ///
    /// # Panics
    /// Something doesn't work, as all of the lab does.
    pub fn start(self, lab: &Lab) -> Running<'_> {
        let rewriter = &lab.rewriter;
        match self {
            Self::Plain => Running::Plain,
            Self::Nftables => {
                let rules = lab.dir().join("rules.nft");
                fs::write(&rules, nftables()).expect("a file of our own");
                rewriter
                    .run(&format!("nft -f {}", rules.display()))
                    .success();
                Running::Rules(Undo {
                    lab,
                    code: "nft delete table inet bench".into(),
                })
            }
            Self::Haproxy => {
                let file = lab.dir().join("haproxy.cfg");
                fs::write(&file, haproxy()).expect("a file of our own");
                Proxy::start(lab, &format!("haproxy -db -f {}", file.display()))
            }
            Self::NginxStream => {
                let folder = lab.dir().join("stream");
                fs::create_dir_all(&folder).expect("a folder of our own");
                fs::write(folder.join("stream.conf"), nginx_stream()).expect("a small file");
                let line = format!("nginx -p {0} -c stream.conf -e error.log", folder.display());
                Proxy::start(lab, &line)
            }
            Self::Shunt | Self::ShuntNoOffload => {
                let more = if self == Self::Shunt {
                    ""
                } else {
                    "--no-offload"
                };
                let proxies = [PROXY, SECOND_PROXY, PROXY6, SECOND_PROXY6];
                let shuntd = Shuntd::start(
                    lab,
                    &format!("--proxy {} {more}", proxies.join(" --proxy ")),
                );
                for (service, mirror) in [(SERVICE, MIRROR1), (SERVICE6, MIRROR1_6)] {
                    shuntd.ctl(&format!("divert {service} {mirror}")).success();
                }
                Running::Shunt(shuntd)
            }
        }
    }
}

/// A way that is open. What a variant holds is there to be dropped.
#[derive(Debug)]
pub enum Running<'lab> {
    /// Nothing had to be done.
    Plain,
    /// Rules of nftables.
    Rules(#[expect(dead_code, reason = "see above")] Undo<'lab>),
    /// A proxy. It ends before its addresses go.
    Proxy(
        #[expect(dead_code, reason = "see above")] Proxy,
        #[expect(dead_code, reason = "see above")] Undo<'lab>,
    ),
    /// The daemon.
    Shunt(#[expect(dead_code, reason = "see above")] Shuntd<'lab>),
}

/// Shell code that is run on the rewriter's host when this is dropped.
#[derive(Debug)]
pub struct Undo<'lab> {
    lab: &'lab Lab,
    code: String,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        // What fails here shows in what is measured next.
        self.lab.rewriter.shell(&self.code);
    }
}

/// A proxy's process, and those that it has started itself.
#[derive(Debug)]
pub struct Proxy(Option<Background>);

impl Proxy {
    /// Starts it, with addresses that the rewriter's host has for as long.
    fn start<'lab>(lab: &'lab Lab, line: &str) -> Running<'lab> {
        let addresses = |verb: &str| {
            format!(
                "ip addr {verb} {SERVICE}/32 dev lo; ip addr {verb} {PROXY}/32 dev lo
                 ip addr {verb} {SERVICE6}/128 dev lo; ip addr {verb} {PROXY6}/128 dev lo"
            )
        };
        lab.rewriter.shell(&addresses("add")).success();
        let undo = Undo {
            lab,
            code: addresses("del"),
        };
        let mut program = lab.rewriter.start(line);
        for port in PORTS {
            let line = format!("ss -Hnl --tcp sport = :{port}");
            wait_until(&format!("the proxy listens at {port}"), || {
                if let Some(status) = program.status() {
                    panic!("{line} ended ({status}): {}", program.log());
                }
                (!lab.rewriter.run(&line).success().is_empty()).then_some(())
            });
        }
        let proxy = Self(Some(program));
        Running::Proxy(proxy, undo)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(program) = self.0.take() {
            program.stop(Signal::SIGTERM);
        }
    }
}

fn nftables() -> String {
    format!(
        "table inet bench {{
            chain prerouting {{
                type nat hook prerouting priority dstnat;
                ip daddr {SERVICE} dnat ip to {MIRROR1}
                ip6 daddr {SERVICE6} dnat ip6 to {MIRROR1_6}
            }}
            chain postrouting {{
                type nat hook postrouting priority srcnat;
                ip daddr {MIRROR1} snat ip to {PROXY}-{SECOND_PROXY}
                ip6 daddr {MIRROR1_6} snat ip6 to {PROXY6}-{SECOND_PROXY6}
            }}
        }}"
    )
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn haproxy() -> String {
    let mut text = format!(
        "global
            nbthread {}
            maxconn 5000
        defaults
            mode tcp
            timeout connect 5s
            timeout client 60s
            timeout server 60s\n",
        cores()
    );
    for port in PORTS {
        for (name, bind, server, source) in [
            ("v4", SERVICE.to_owned(), MIRROR1.to_owned(), PROXY),
            (
                "v6",
                format!("[{SERVICE6}]"),
                format!("[{MIRROR1_6}]"),
                &*format!("[{PROXY6}]"),
            ),
        ] {
            text += &format!(
                "listen {name}-{port}
                    bind {bind}:{port}
                    source {source}:0
                    server mirror {server}:{port}\n"
            );
        }
    }
    text
}

fn nginx_stream() -> String {
    let mut servers = String::new();
    for port in PORTS {
        for (listen, server, source) in [
            (SERVICE.to_owned(), MIRROR1.to_owned(), PROXY),
            (format!("[{SERVICE6}]"), format!("[{MIRROR1_6}]"), PROXY6),
        ] {
            servers += &format!(
                "server {{ listen {listen}:{port}; proxy_pass {server}:{port}; proxy_bind {source}; }}\n"
            );
        }
    }
    format!(
        "daemon off; user root; pid nginx.pid; worker_processes {};
        load_module /usr/lib/nginx/modules/ngx_stream_module.so;
        events {{ worker_connections 8000; }}
        stream {{ {servers} }}",
        cores()
    )
}
