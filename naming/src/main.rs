//! `shunt-naming`: the enhanced naming server's daemon.
//!
//! It brings the parts together in this order, and takes them apart in the opposite one: the control socket and the
//! state file (which tell whether another server is there), the listeners, the workers.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use arc_swap::ArcSwap;
use clap::{CommandFactory, Parser};
use control_protocol::{PROTOCOL_VERSION, VersionResult};
use control_server::ControlSocket;
use log::{info, warn};
use naming::config::{Options, Settings};
use naming::control::Control;
use naming::counters::Counters;
use naming::metrics::{self, Metrics};
use naming::passing;
use naming::query_log::QueryLog;
use naming::rewriters;
use naming::state::StateFile;
use naming::table::Table;
use naming::tcp;
use naming::udp::{Bound, check_free};
use naming::worker::{Shared, Workers};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;

/// How often it is looked whether the workers are alive.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// TCP clients that may wait to be accepted.
const BACKLOG: u32 = 128;

/// Answers a chosen set of names from a table, and passes all other queries on to the DNS.
///
/// shunt-naming stands before a DNS server. Which names it answers, and with what, is said with `shuntctl name`;
/// changes count for the next query. Whatever else is asked goes to the upstreams, and their answers come back
/// unchanged.
#[derive(Debug, Parser)]
#[command(name = "shunt-naming", version, after_help = EXAMPLES, max_term_width = 100)]
struct Arguments {
    /// Read options from this TOML file; flags come before it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only check the options and the state file, and say what is wrong
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    options: Options,
}

const EXAMPLES: &str = "\
Examples:
  shunt-naming --upstream 10.0.0.53
      Answer at all addresses of this machine, and pass other names to 10.0.0.53.
  shunt-naming --config naming.toml
      The same with a file, whose names are those of the flags:
        listen = [\"10.2.0.5\", \"fd00:2::5\"]
        upstream = [\"10.0.0.53\", \"10.0.0.54:5353\"]
        ttl = 5

Then, for instance:
  shuntctl name set www.bt.com 10.2.0.3 --ttl 5
  dig @10.2.0.5 www.bt.com

To put it in the way of clients who go on asking 10.0.0.53, on a rewriter between them:
  shuntctl divert 10.0.0.53:53 10.2.0.5:53 --from 10.1.0.0/24

So that the rewriter sends it only queries for names that it lists:
  shuntctl divert 10.0.0.53:53/udp 10.2.0.5:53 --peek
and in the file, which tells them to the rewriter:
        [[rewriter]]
        socket = \"/run/shunt/control.sock\"
        service = \"10.0.0.53:53/udp\"

Log messages go to the standard error; RUST_LOG=debug shows more of them.";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info"))
        .format_timestamp_millis()
        .format_target(false)
        .init();
    let is_check = arguments.check;
    let settings = match settle(arguments) {
        Ok(settings) => settings,
        Err(error) => Arguments::command()
            .error(
                clap::error::ErrorKind::ValueValidation,
                format!("{error:#}"),
            )
            .exit(),
    };
    let done = if is_check {
        check(&settings)
    } else {
        run(&settings)
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn settle(arguments: Arguments) -> Result<Settings> {
    let file = match &arguments.config {
        Some(path) => Options::read(path)?,
        None => Options::default(),
    };
    Ok(arguments.options.or(file).settle()?)
}

/// Says whether it could start, as far as that can be told beside one that runs.
fn check(settings: &Settings) -> Result<()> {
    let names = StateFile::peek(&settings.state)?;
    info!(
        "the options are right; {} has {} name(s)",
        settings.state.display(),
        names.len()
    );
    Ok(())
}

fn run(settings: &Settings) -> Result<()> {
    let (_socket, listener) = ControlSocket::bind(&settings.socket)?;
    let state = StateFile::open(&settings.state)?;
    raise_descriptor_limit();
    let (query_log, log_writer) = match &settings.query_log {
        Some((path, size)) => {
            let (log, writer) = QueryLog::start(path, *size)
                .with_context(|| format!("can't write the query log {}", path.display()))?;
            (Some(log), Some(writer))
        }
        None => (None, None),
    };
    // The workers have threads of their own; all else is little.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("can't start the control runtime")?;
    let ended = runtime.block_on(serve(settings, listener, state, query_log));
    // Whoever may write into the log must be gone before it can end.
    drop(runtime);
    if let Some(writer) = log_writer {
        writer.join();
    }
    ended
}

async fn serve(
    settings: &Settings,
    listener: std::os::unix::net::UnixListener,
    state: StateFile,
    query_log: Option<QueryLog>,
) -> Result<()> {
    let listener = UnixListener::from_std(listener).context("can't serve the control socket")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("can't wait for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("can't wait for SIGTERM")?;

    let shared = Arc::new(Shared {
        table: ArcSwap::from_pointee(Table::new()),
        rules: settings.rules.clone(),
        upstreams: settings.upstreams.clone(),
        rate_limit: settings.rate_limit,
        rate_limit_exempt: settings.rate_limit_exempt.clone(),
        query_log,
        counters: (0..=settings.workers)
            .map(|_| Counters::new(settings.upstreams.len()))
            .collect(),
    });
    let about = VersionResult {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: PROTOCOL_VERSION,
        egress: "none".to_owned(),
        offload: "none".to_owned(),
        workers: settings.workers.into(),
        tun: "none".to_owned(),
        pid: std::process::id(),
    };
    let control = Control::new(state, Arc::clone(&shared), settings.ttl, about)?;
    let control = Arc::new(control);
    let names = control.catalogue().len();

    for address in &settings.listen {
        check_free(*address)?;
    }
    let tcp_listeners = settings
        .listen
        .iter()
        .map(|address| {
            listen_tcp(*address).with_context(|| format!("can't listen at {address} over TCP"))
        })
        .collect::<Result<Vec<_>>>()?;
    let limits = passing::Limits {
        upstreams: settings.upstreams.len(),
        timeout: settings.upstream_timeout,
        max_flights: settings.max_in_flight.div_ceil(settings.workers.into()),
    };
    let listeners = (0..settings.workers)
        .map(|_| {
            settings
                .listen
                .iter()
                .map(|address| Bound::bind(*address))
                .collect()
        })
        .collect::<Result<Vec<_>, _>>()?;
    let workers = Workers::start(listeners, &shared, limits).context("can't start the workers")?;
    let upstreams = tcp::Upstreams::new(&settings.upstreams, settings.upstream_timeout);
    let upstreams = Arc::new(upstreams);
    let places = Arc::new(Semaphore::new(settings.tcp.max_clients));
    for listener in tcp_listeners {
        tokio::spawn(tcp::serve(
            listener,
            Arc::clone(&places),
            settings.tcp,
            Arc::clone(&shared),
            Arc::clone(&upstreams),
        ));
    }
    if let Some(address) = settings.metrics {
        let listener =
            listen_tcp(address).with_context(|| format!("can't serve metrics at {address}"))?;
        let metrics = Metrics::new(Arc::clone(&shared), Arc::clone(&control));
        tokio::spawn(metrics::serve(listener, Arc::new(metrics)));
    }
    rewriters::start(&settings.rewriters, &control)
        .context("can't start telling the rewriters the names")?;
    info!(
        "ready: {names} name(s), {} worker(s); listening at {}; control socket at {}",
        settings.workers,
        listed(&settings.listen),
        settings.socket.display()
    );
    let ended = tokio::select! {
        () = control_server::serve(listener, control) => Ok(()),
        () = worker_ends(&workers) => Err(anyhow!("a worker has ended")),
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    match (ended, workers.stop()) {
        (Ok(()), None) => Ok(()),
        (Err(error), None) => Err(error),
        (_, Some(error)) => Err(anyhow!(error).context("a worker has failed")),
    }
}

fn listen_tcp(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => {
            let socket = TcpSocket::new_v6()?;
            // IPv4 has a socket of its own.
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv6V6Only, &true)?;
            socket
        }
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Waits until a worker ends, which none does of its own accord.
async fn worker_ends(workers: &Workers) {
    let mut interval = tokio::time::interval(CHECK_INTERVAL);
    while !workers.has_ended() {
        interval.tick().await;
    }
}

/// Sockets towards upstreams and TCP clients may be many.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(errno) = raised {
        warn!("can't raise the number of descriptors: {errno}");
    }
}

fn listed(addresses: &[SocketAddr]) -> String {
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    texts.join(", ")
}
