//! What a redirect costs those whose connections are moved: throughput meanwhile, time until the last has
//! moved, and how long a request is held.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use benches::report::{Machine, Spread, short};
use clap::Parser;
use control_protocol::{Outcome, RedirectResult, RedirectsResult};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use scenarios::{Background, Host, Lab, MIRROR1, MIRROR2, SERVICE, Shuntd};
use serde_json::{Value, json};

/// Connections that wrk keeps at work.
const BUSY: u64 = 64;
/// How often they are redirected.
const EVERY: Duration = Duration::from_millis(500);
/// What is asked for, and the answer's body on each mirror.
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: service\r\n\r\n";
const BODIES: [&str; 2] = ["mirror 1\n", "mirror 2\n"];

/// Measures what a redirect costs the connections that it moves, on a network of namespaces.
///
/// Needs root, the programs that scripts/bench.sh installs, and shuntd and shuntctl beside this program
/// or where SHUNTD and SHUNTCTL say. Everything happens in network namespaces that are gone afterwards.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many rounds.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// How long wrk is at work with redirects, and as long without, in seconds.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// How many idle connections are redirected at once.
    #[arg(long, default_value_t = 10_000)]
    connections: u64,
    /// Write splice.md and splice.json into this folder.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// One short round: does everything work? The numbers mean nothing.
    #[arg(long)]
    quick: bool,
}

/// How Shunt is run.
const MODES: [(&str, &str); 2] = [("with super-packets", ""), ("without", "--no-offload")];

/// A number that was measured, in one mode and round.
#[derive(Debug)]
struct Figure {
    name: &'static str,
    unit: &'static str,
    value: f64,
    mode: &'static str,
}

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the report is what this program is for, and progress goes to stderr"
)]
fn main() -> anyhow::Result<()> {
    let mut arguments = Arguments::parse();
    if arguments.quick {
        (arguments.rounds, arguments.seconds, arguments.connections) = (1, 2, 200);
    }
    // A descriptor for each connection here, and two in nginx.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    ensure!(
        most > arguments.connections + 1000,
        "{} connections need more open files than this process may have ({most})",
        arguments.connections
    );
    let mut figures = Vec::new();
    for round in 0..arguments.rounds {
        for (mode, flags) in MODES {
            eprintln!("round {} of {}: {mode}", round + 1, arguments.rounds);
            let mut bench = Bench {
                arguments: &arguments,
                mode,
                flags,
                figures: &mut figures,
            };
            bench.busy(round)?;
            bench.idle()?;
        }
    }
    let report = Report::new(&arguments, &figures)?;
    if arguments.json {
        println!("{:#}", report.json());
    } else {
        println!("{}", report.table());
    }
    if let Some(folder) = &arguments.out {
        fs::create_dir_all(folder)?;
        let text = format!("# Splicing, measured\n\n{}\n", report.table());
        fs::write(folder.join("splice.md"), text)?;
        fs::write(folder.join("splice.json"), format!("{:#}\n", report.json()))?;
    }
    Ok(())
}

struct Bench<'a> {
    arguments: &'a Arguments,
    mode: &'static str,
    flags: &'static str,
    figures: &'a mut Vec<Figure>,
}

impl Bench<'_> {
    fn note(&mut self, name: &'static str, unit: &'static str, value: f64) {
        self.figures.push(Figure {
            name,
            unit,
            value,
            mode: self.mode,
        });
    }

    /// wrk on connections that stay open, without redirects and with.
    fn busy(&mut self, round: u32) -> anyhow::Result<()> {
        let lab = Lab::with_offloads();
        let _servers = servers(&lab)?;
        let shuntd = Shuntd::start(&lab, self.flags);
        shuntd.ctl(&format!("divert {SERVICE} {MIRROR1}")).success();
        let mut rates = [0.0; 2];
        for turn in 0..2 {
            let redirected = (turn + round) % 2 == 1;
            let rate = self.wrk(&lab, &shuntd, redirected)?;
            rates[usize::from(redirected)] = rate;
        }
        self.note(
            "64 busy connections: requests without redirects",
            "/s",
            rates[0],
        );
        self.note("the same, redirected twice a second", "/s", rates[1]);
        self.note("with redirects ÷ without", "", rates[1] / rates[0]);
        Ok(())
    }

    fn wrk(&mut self, lab: &Lab, shuntd: &Shuntd<'_>, redirected: bool) -> anyhow::Result<f64> {
        let seconds = self.arguments.seconds;
        let before = shuntd.counters().received.packets;
        let wrk = lab.client.start(&format!(
            "wrk -t 1 -c {BUSY} -d {seconds} --timeout 10 http://{SERVICE}/"
        ));
        while shuntd.counters().received.packets < before + 1000 {
            thread::sleep(Duration::from_millis(5));
        }
        let (began, mut redirects, mut not_moved, mut hold) = (Instant::now(), 0_u32, 0, 0);
        let time = Duration::from_secs(seconds) - EVERY;
        while redirected && EVERY * redirects < time {
            thread::sleep((EVERY * redirects).saturating_sub(began.elapsed()));
            let mirror = [MIRROR2, MIRROR1][redirects as usize % 2];
            let Outcome {
                moved,
                longest_hold_us,
                ..
            } = shuntd
                .ask::<RedirectResult>(&format!("redirect {SERVICE} {mirror}"))
                .outcome;
            redirects += 1;
            not_moved += BUSY - moved;
            hold = hold.max(longest_hold_us);
        }
        let (status, report) = wrk.wait(Duration::from_secs(seconds + 20));
        ensure!(status.success(), "wrk: {report}");
        let number = |start: &str| -> Option<f64> {
            let line = report
                .lines()
                .find(|line| line.trim_start().starts_with(start))?;
            line.split_once(':')?.1.trim().parse().ok()
        };
        if redirected {
            let errors = report
                .lines()
                .filter(|line| line.contains("Socket errors") || line.contains("Non-2xx"))
                .count();
            self.note("redirects", "", redirects.into());
            self.note(
                "connections that a redirect didn't move",
                "",
                not_moved as f64,
            );
            self.note("kinds of errors that wrk reports", "", errors as f64);
            self.note("longest hold of a request", "ms", hold as f64 / 1000.0);
            // The next run begins on the first mirror.
            shuntd.ctl(&format!("divert {SERVICE} {MIRROR1}")).success();
        }
        number("Requests/sec").with_context(|| format!("wrk says {report:?}"))
    }

    /// Connections on which nothing happens, all moved at once; and then each by its next request.
    fn idle(&mut self) -> anyhow::Result<()> {
        let lab = Lab::with_offloads();
        let _servers = servers(&lab)?;
        let shuntd = Shuntd::start(&lab, self.flags);
        shuntd.ctl(&format!("divert {SERVICE} {MIRROR1}")).success();
        let count = self.arguments.connections;
        let mut connections = connect(&lab.client, count)?;
        let ask_all = |connections: &mut [TcpStream], body: &str| -> anyhow::Result<Vec<f64>> {
            let mut times = Vec::new();
            for stream in connections {
                let began = Instant::now();
                stream.write_all(REQUEST)?;
                hear(stream, body)?;
                times.push(began.elapsed().as_secs_f64() * 1e3);
            }
            times.sort_by(f64::total_cmp);
            Ok(times)
        };
        ask_all(&mut connections, BODIES[0])?;
        let usual = ask_all(&mut connections, BODIES[0])?;

        let began = Instant::now();
        let redirect: RedirectResult = shuntd.ask(&format!(
            "redirect {SERVICE} {MIRROR2} --quiet 0s --no-wait"
        ));
        let outcome = finish(&shuntd, redirect.id);
        let took = began.elapsed();
        ensure!(outcome.moved == count, "{outcome:?}");
        self.note(
            "idle connections redirected: until the last has moved",
            "ms",
            took.as_secs_f64() * 1e3,
        );

        let redirect: RedirectResult = shuntd.ask(&format!(
            "redirect {SERVICE} {MIRROR1} --quiet never --no-wait"
        ));
        let held = ask_all(&mut connections, BODIES[0])?;
        let outcome = finish(&shuntd, redirect.id);
        ensure!(outcome.moved == count, "{outcome:?}");
        let at = |times: &[f64], share: f64| times[(times.len() as f64 * share) as usize];
        for (name, times) in [
            ("a request, one at a time: p50", &usual),
            ("the same, which moves its connection: p50", &held),
        ] {
            self.note(name, "ms", at(times, 0.5));
        }
        self.note("a request, one at a time: p99", "ms", at(&usual, 0.99));
        self.note(
            "the same, which moves its connection: p99",
            "ms",
            at(&held, 0.99),
        );
        self.note(
            "its longest hold",
            "ms",
            outcome.longest_hold_us as f64 / 1000.0,
        );

        // All ask at once, and all are moved by that.
        let redirect: RedirectResult = shuntd.ask(&format!(
            "redirect {SERVICE} {MIRROR2} --quiet never --no-wait"
        ));
        for stream in &mut connections {
            stream.write_all(REQUEST)?;
        }
        for stream in &mut connections {
            hear(stream, BODIES[1])?;
        }
        let outcome = finish(&shuntd, redirect.id);
        ensure!(outcome.moved == count, "{outcome:?}");
        self.note(
            "all idle connections ask at once: longest hold",
            "ms",
            outcome.longest_hold_us as f64 / 1000.0,
        );
        Ok(())
    }
}

/// Waits until no connection of a redirect waits, and gives what has become of them.
fn finish(shuntd: &Shuntd<'_>, redirect: u64) -> Outcome {
    loop {
        let result: RedirectsResult = shuntd.ask(&format!("redirects {redirect}"));
        if let [redirect] = result.redirects.as_slice()
            && redirect.outcome.waiting == 0
        {
            return redirect.outcome.clone();
        }
    }
}

/// Opens connections to the service.
fn connect(client: &Host, count: u64) -> anyhow::Result<Vec<TcpStream>> {
    let service = SocketAddr::new(SERVICE.parse()?, 80);
    client.inside(|| {
        (0..count)
            .map(|_| {
                let stream = TcpStream::connect(service)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(Duration::from_secs(20)))?;
                Ok(stream)
            })
            .collect()
    })
}

/// Reads an answer, which must have this body.
fn hear(stream: &mut TcpStream, body: &str) -> anyhow::Result<()> {
    let mut heard = Vec::new();
    let mut buffer = [0; 2048];
    while !heard.ends_with(body.as_bytes()) {
        let length = stream.read(&mut buffer)?;
        ensure!(
            length > 0 && heard.len() < 4096,
            "this is no answer: {heard:?}"
        );
        heard.extend_from_slice(&buffer[..length]);
    }
    ensure!(heard.starts_with(b"HTTP/1.1 200 OK\r\n"), "{heard:?}");
    Ok(())
}

/// A web server on each mirror, which says which one it is.
fn servers(lab: &Lab) -> anyhow::Result<Vec<Background>> {
    [&lab.mirror1, &lab.mirror2]
        .into_iter()
        .zip(BODIES)
        .map(|(host, body)| {
            let folder = host.file("web");
            for name in ["html", "tmp"] {
                fs::create_dir_all(folder.join(name))?;
            }
            fs::write(folder.join("html/index.html"), body)?;
            fs::write(folder.join("nginx.conf"), NGINX)?;
            let program = host.start(&format!(
                "nginx -p {} -c nginx.conf -e error.log",
                folder.display()
            ));
            host.wait_for_listener("tcp", 80);
            Ok(program)
        })
        .collect()
}

const NGINX: &str = "daemon off; user root; pid nginx.pid; worker_processes 1; error_log error.log;
worker_rlimit_nofile 50000;
events { worker_connections 40000; }
http {
    access_log off;
    client_body_temp_path tmp/body; proxy_temp_path tmp/proxy; fastcgi_temp_path tmp/fastcgi;
    uwsgi_temp_path tmp/uwsgi; scgi_temp_path tmp/scgi;
    keepalive_requests 1000000000; keepalive_timeout 1h;
    server { listen 80 backlog=20000; root html; }
}";

/// All rounds together.
struct Report<'a> {
    arguments: &'a Arguments,
    machine: Machine,
    rows: Vec<Row>,
}

/// One figure, by mode.
struct Row {
    name: &'static str,
    unit: &'static str,
    spreads: Vec<(&'static str, Spread)>,
}

impl<'a> Report<'a> {
    fn new(arguments: &'a Arguments, figures: &[Figure]) -> anyhow::Result<Self> {
        let mut rows: Vec<Row> = Vec::new();
        for figure in figures {
            if rows.iter().any(|row| row.name == figure.name) {
                continue;
            }
            let numbers = |mode: &str| {
                let those = figures
                    .iter()
                    .filter(|other| other.name == figure.name && other.mode == mode);
                Spread::of(those.map(|figure| figure.value).collect())
            };
            rows.push(Row {
                name: figure.name,
                unit: figure.unit,
                spreads: MODES
                    .iter()
                    .filter_map(|(mode, _)| Some((*mode, numbers(mode)?)))
                    .collect(),
            });
        }
        Ok(Self {
            arguments,
            machine: Machine::look(&[("nginx", "nginx -v"), ("wrk", "wrk --version")])?,
            rows,
        })
    }

    /// For people: a table in Markdown.
    fn table(&self) -> String {
        let Arguments {
            rounds,
            seconds,
            connections,
            ..
        } = self.arguments;
        let mut text = format!(
            "{}\n\nMedian of {rounds} rounds, with the least and the most. wrk works for {seconds} s with \
             redirects and as long without; {connections} idle connections.\n\n| |",
            self.machine.describe()
        );
        // Writing to a string doesn't fail.
        for (mode, _) in MODES {
            let _ = write!(text, " {mode} |");
        }
        text += "\n|---|---|---|";
        for row in &self.rows {
            let comma = if row.unit.is_empty() { "" } else { ", " };
            let _ = write!(text, "\n| {}{comma}{} |", row.name, row.unit);
            for (_, spread) in &row.spreads {
                let _ = write!(
                    text,
                    " {} ({}–{}) |",
                    short(spread.median),
                    short(spread.least),
                    short(spread.most)
                );
            }
        }
        text.push('\n');
        text
    }

    /// For programs.
    fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let modes: Vec<Value> = row
                    .spreads
                    .iter()
                    .map(|(mode, spread)| {
                        json!({
                            "mode": mode, "median": spread.median, "least": spread.least,
                            "most": spread.most,
                        })
                    })
                    .collect();
                json!({"figure": row.name, "unit": row.unit, "modes": modes})
            })
            .collect();
        json!({
            "rounds": self.arguments.rounds,
            "seconds": self.arguments.seconds,
            "connections": self.arguments.connections,
            "machine": self.machine.names(),
            "figures": rows,
        })
    }
}
