//! What is measured: how much gets through, how fast, and what it costs the machine.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use nix::sys::socket::{setsockopt, sockopt};
use scenarios::{Background, CLIENT, CLIENT6, Host, Lab};
use serde_json::Value;

use crate::flood::Flood;
use crate::system::{Family, System};

pub const HTTP_PORT: u16 = 80;
pub const IPERF_PORT: u16 = 5201;
pub const ECHO_PORT: u16 = 7;
/// Where the sink counts datagrams.
pub const SINK_PORT: u16 = 9;

/// Connections that wrk keeps at work.
const HTTP_CONNECTIONS: u32 = 32;
/// Bytes of a request and of its response, when latency is measured.
const MESSAGE: usize = 64;
/// UDP payload of a frame of 64 bytes over IPv4; over IPv6 that frame is 84 bytes long.
pub const SMALL_PAYLOAD: usize = 18;
/// UDP payload of a segment, and of the datagram that is cut into such.
const SEGMENT: usize = 1400;
const SEGMENTS: usize = 44;

/// Something to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Workload {
    /// One TCP connection, client to server.
    TcpUp,
    /// One TCP connection, server to client.
    TcpDown,
    /// Eight TCP connections, client to server.
    Tcp8,
    /// UDP frames of 64 bytes, one flow, as many as get through.
    #[value(name = "udp-1")]
    Udp1,
    /// The same in 1,000 flows.
    #[value(name = "udp-1000")]
    Udp1000,
    /// The same in 100,000 flows.
    #[value(name = "udp-100000")]
    Udp100000,
    /// UDP in super-packets of 44 datagrams of 1,400 bytes.
    UdpGso,
    /// HTTP requests, each on a connection of its own.
    HttpNew,
    /// HTTP requests on 32 connections that stay open.
    HttpKeep,
    /// 64 bytes there and back on an open TCP connection, one at a time.
    Latency,
}

/// A number that was measured.
#[derive(Debug, Clone)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// The number.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// Whether less is better.
    pub less_is_better: bool,
}

impl Figure {
    fn more(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            value,
            unit,
            less_is_better: false,
        }
    }

    fn less(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            less_is_better: true,
            ..Self::more(name, value, unit)
        }
    }
}

impl Workload {
    /// Its name, as on the command line.
    pub fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether it is UDP.
    pub fn is_udp(self) -> bool {
        matches!(
            self,
            Self::Udp1 | Self::Udp1000 | Self::Udp100000 | Self::UdpGso
        )
    }

    /// Measures it for some time, and what it cost the whole machine.
    ///
    /// # Errors
    /// Nothing gets through, or a program says something that isn't understood.
    pub fn run(
        self,
        lab: &Lab,
        system: System,
        family: Family,
        time: Duration,
    ) -> anyhow::Result<Vec<Figure>> {
        let target = system.target(family);
        let name = self.name();
        let (began, busy) = (Instant::now(), CpuTime::now()?);
        let figures = match self {
            Self::TcpUp => vec![iperf3(lab, target, time, "")?],
            Self::TcpDown => vec![iperf3(lab, target, time, "--reverse")?],
            Self::Tcp8 => vec![iperf3(lab, target, time, "--parallel 8")?],
            Self::Udp1 => vec![flood(lab, target, family, time, 1)?],
            Self::Udp1000 => vec![flood(lab, target, family, time, 1000)?],
            Self::Udp100000 => vec![flood(lab, target, family, time, 100_000)?],
            Self::UdpGso => vec![udp_gso(lab, target, family, time)?],
            Self::HttpNew => vec![wrk(lab, target, time, &["-H", "Connection: close"])?],
            Self::HttpKeep => vec![wrk(lab, target, time, &[])?],
            Self::Latency => latency(lab, target, time)?,
        };
        let mut figures: Vec<Figure> = figures
            .into_iter()
            .map(|figure| Figure {
                name: [name.as_str(), &figure.name]
                    .join(" ")
                    .trim_end()
                    .to_owned(),
                ..figure
            })
            .collect();
        let (seconds, busy) = (began.elapsed().as_secs_f64(), CpuTime::now()?.since(&busy));
        if let [figure] = figures.as_slice() {
            // The figure is a rate, so over the time that it took:
            let amount = figure.value * seconds;
            let (per, unit) = match figure.unit {
                "Gbit/s" => (amount, "CPU-s/Gbit"),
                _ => (amount / 1e6, "CPU-s/million"),
            };
            figures.push(Figure::less(format!("{name} CPU"), busy / per, unit));
        }
        Ok(figures)
    }
}

/// What the machine's processors have been busy for since its start.
struct CpuTime(f64);

impl CpuTime {
    fn now() -> anyhow::Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
        let line = stat.lines().next().context("/proc/stat is empty")?;
        let fields: Vec<f64> = line
            .split_whitespace()
            .skip(1)
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        // user, nice, system, (idle, iowait,) irq, softirq: proc_stat(5), in 1/100 s.
        let [user, nice, system, _, _, irq, softirq, ..] = fields[..] else {
            bail!("/proc/stat says {line:?}");
        };
        Ok(Self((user + nice + system + irq + softirq) / 100.0))
    }

    fn since(&self, earlier: &Self) -> f64 {
        self.0 - earlier.0
    }
}

/// The programs on the server's host.
#[derive(Debug)]
pub struct Servers {
    _nginx: Background,
    _iperf3: Background,
}

impl Servers {
    /// Starts them, and an echo server in a thread of this process.
    pub fn start(lab: &Lab) -> Self {
        let host = &lab.mirror1;
        let folder = host.file("web");
        for name in ["html", "tmp"] {
            fs::create_dir_all(folder.join(name)).expect("a folder of our own");
        }
        fs::write(folder.join("html/index.html"), "hello\n").expect("a small file");
        fs::write(folder.join("nginx.conf"), NGINX).expect("a small file");
        let line = format!("nginx -p {} -c nginx.conf -e error.log", folder.display());
        let nginx = host.start(&line);
        let iperf3 = scenarios::servers::iperf3(host);
        let listener = host.inside(|| TcpListener::bind(("::", ECHO_PORT)));
        let listener = listener.expect("the port is free");
        thread::spawn(move || echo(&listener));
        count_datagrams(host);
        host.wait_for_listener("tcp", HTTP_PORT);
        Self {
            _nginx: nginx,
            _iperf3: iperf3,
        }
    }
}

const NGINX: &str = "daemon off; user root; pid nginx.pid; worker_processes 1; error_log error.log;
events { worker_connections 4096; }
http {
    access_log off;
    client_body_temp_path tmp/body; proxy_temp_path tmp/proxy; fastcgi_temp_path tmp/fastcgi;
    uwsgi_temp_path tmp/uwsgi; scgi_temp_path tmp/scgi;
    keepalive_requests 1000000000;
    server { listen 80; listen [::]:80; root html; }
}";

/// Says back what comes, a thread for each connection.
fn echo(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        thread::spawn(move || -> std::io::Result<()> {
            let mut stream = stream;
            stream.set_nodelay(true)?;
            let mut message = [0; MESSAGE];
            loop {
                stream.read_exact(&mut message)?;
                stream.write_all(&message)?;
            }
        });
    }
}

/// Counts datagrams to [`SINK_PORT`] as they arrive at the host, and drops them before they cost more.
fn count_datagrams(host: &Host) {
    let rules = host.file("sink.nft");
    let text = format!(
        "table netdev sink {{
            counter datagrams {{ }}
            chain ingress {{
                type filter hook ingress device eth0 priority 0;
                udp dport {SINK_PORT} counter name datagrams drop
            }}
        }}"
    );
    fs::write(&rules, text).expect("a file of our own");
    host.run(&format!("nft -f {}", rules.display())).success();
}

/// The bytes of payload that the sink has counted.
fn counted(host: &Host, family: Family) -> anyhow::Result<f64> {
    let listing = host.run("nft -j list counters").success();
    let listing: Value = serde_json::from_str(&listing)?;
    let counter = listing["nftables"]
        .as_array()
        .and_then(|entries| entries.iter().find_map(|entry| entry.get("counter")))
        .context("nft lists no counter")?;
    let number = |name: &str| counter[name].as_f64().context("a number");
    let headers = match family {
        Family::V4 => 20.0 + 8.0,
        Family::V6 => 40.0 + 8.0,
    };
    // A super-packet counts once, with its headers once.
    Ok(number("bytes")? - headers * number("packets")?)
}

/// How much payload arrives while `send` sends, in bytes a second.
fn arriving(
    lab: &Lab,
    family: Family,
    send: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<f64> {
    let host = &lab.mirror1;
    host.run("nft reset counters").success();
    let before = counted(host, family)?;
    let began = Instant::now();
    send()?;
    let seconds = began.elapsed().as_secs_f64();
    let arrived = counted(host, family)? - before;
    ensure!(arrived > 0.0, "nothing arrived");
    Ok(arrived / seconds)
}

fn flood(
    lab: &Lab,
    target: &str,
    family: Family,
    time: Duration,
    flows: u32,
) -> anyhow::Result<Figure> {
    let source = match family {
        Family::V4 => CLIENT,
        Family::V6 => CLIENT6,
    };
    let flood = Flood::new(lab, source.parse()?, target.parse()?, flows)?;
    // What leaves the rewriter's host are datagrams, as on a network whose cards don't cut super-packets.
    let cut_by_link = |on_or_off| {
        let line = format!("ethtool -K mirror1 tx-udp-segmentation {on_or_off}");
        lab.rewriter.run(&line).success();
    };
    cut_by_link("off");
    let bytes = arriving(lab, family, || Ok(flood.send_for(time)?));
    cut_by_link("on");
    let bytes = bytes?;
    Ok(Figure::more("", bytes / SMALL_PAYLOAD as f64, "packets/s"))
}

fn udp_gso(lab: &Lab, target: &str, family: Family, time: Duration) -> anyhow::Result<Figure> {
    let any = match family {
        Family::V4 => "0.0.0.0:0",
        Family::V6 => "[::]:0",
    };
    let target = SocketAddr::new(target.parse()?, SINK_PORT);
    let socket = lab.client.inside(|| UdpSocket::bind(any))?;
    socket.connect(target)?;
    setsockopt(&socket, sockopt::UdpGsoSegment, &(SEGMENT as i32))?;
    let datagrams = vec![0; SEGMENTS * SEGMENT];
    let bytes = arriving(lab, family, || {
        let began = Instant::now();
        while began.elapsed() < time {
            socket.send(&datagrams)?;
        }
        Ok(())
    })?;
    Ok(Figure::more("", bytes * 8.0 / 1e9, "Gbit/s"))
}

fn iperf3(lab: &Lab, target: &str, time: Duration, way: &str) -> anyhow::Result<Figure> {
    let seconds = time.as_secs_f64().ceil();
    let line = format!("iperf3 --json --client {target} --time {seconds} {way}");
    let report: Value = serde_json::from_str(&lab.client.run(&line).stdout)?;
    if let Some(error) = report["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
    let rate = rate.context("iperf3 says nothing of what was received")?;
    ensure!(rate > 0.0, "nothing arrived");
    Ok(Figure::more("", rate / 1e9, "Gbit/s"))
}

fn wrk(lab: &Lab, target: &str, time: Duration, more: &[&str]) -> anyhow::Result<Figure> {
    let site = SocketAddr::new(target.parse()?, HTTP_PORT);
    let seconds = time.as_secs_f64().ceil();
    let mut command = lab.client.command("wrk");
    command
        .args(["-t", "1", "-c", &HTTP_CONNECTIONS.to_string()])
        .args(["-d", &format!("{seconds}s")])
        .args(more)
        .arg(format!("http://{site}/"));
    let output = command.output().context("wrk")?;
    let report = String::from_utf8_lossy(&output.stdout);
    let of_line = |start: &str| {
        let line = report
            .lines()
            .find(|line| line.trim_start().starts_with(start));
        line.and_then(|line| line.split(':').nth(1)).map(str::trim)
    };
    if let Some(errors) = of_line("Non-2xx") {
        bail!("wrk: {errors} requests failed");
    }
    let rate: f64 = of_line("Requests/sec")
        .with_context(|| format!("wrk says {report:?}"))?
        .parse()?;
    ensure!(rate > 0.0, "no request was answered");
    Ok(Figure::more("", rate, "requests/s"))
}

fn latency(lab: &Lab, target: &str, time: Duration) -> anyhow::Result<Vec<Figure>> {
    let target = SocketAddr::new(target.parse()?, ECHO_PORT);
    let mut stream = lab.client.inside(|| TcpStream::connect(target))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut message = [7; MESSAGE];
    let mut samples = Vec::new();
    let began = Instant::now();
    while began.elapsed() < time {
        let sent = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        samples.push(sent.elapsed());
    }
    samples.sort_unstable();
    let quantile = |share: f64| {
        let at = (samples.len() as f64 * share) as usize;
        let sample = samples.get(at).or(samples.last());
        sample.map_or(0.0, |sample| sample.as_secs_f64() * 1e6)
    };
    Ok([("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)]
        .map(|(name, share)| Figure::less(name, quantile(share), "µs"))
        .into())
}
