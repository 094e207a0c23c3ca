//! `shuntd`: the packet rewriter's daemon.
//!
//! It brings the parts together in this order, and takes them apart in the opposite one: the control
//! socket (which tells whether another daemon is there), the TUN, the routes, the workers.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::{CommandFactory, Parser};
use control_protocol::{PROTOCOL_VERSION, VersionResult};
use control_server::ControlSocket;
use log::{info, warn};
use rewriter::config::{EgressKind, Options, Settings};
use rewriter::control::plane::Plane;
use rewriter::control::routing::Routing;
use rewriter::engine::{Config, HopLimit, Ownership};
use rewriter::io::raw::RawPort;
use rewriter::io::routes::{self, Egress, Plan, Routes};
use rewriter::io::self_test::{self, SelfTest};
use rewriter::io::tun::{Offload, TunDevice, TunQueue, steering};
use rewriter::worker::Workers;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// How often the control plane looks after what may have changed by itself.
const TIDY_INTERVAL: Duration = Duration::from_secs(1);

/// Moves a service's traffic to another server, even in the middle of a connection.
///
/// shuntd sets up a TUN interface and the routes that bring packets to it, exchanges both addresses
/// of every packet of a diverted service, and sends it on. What is diverted where is said with
/// shuntctl.
#[derive(Debug, Parser)]
#[command(name = "shuntd", version, after_help = EXAMPLES)]
struct Arguments {
    /// Read options from this TOML file; flags come before it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

const EXAMPLES: &str = "\
Examples:
  shuntd --proxy 10.10.10.10
      Divert from 10.10.10.10, whose traffic the mirrors' routes lead to this machine.
  shuntd --proxy 10.10.10.10 --egress raw
      The same on a machine that doesn't forward packets.
  shuntd --proxy 10.10.10.10 --client 10.1.0.0/24
      Let all traffic of a subnet pass through the rewriter.

Then, for instance:
  shuntctl divert 100.100.100.100:80 123.45.67.89

A configuration file has the same names:
  proxy = [\"10.10.10.10\", \"fd00:10::10\"]
  proxy-ports = \"1024-65535\"
  egress = \"raw\"

Log messages go to the standard error; RUST_LOG=debug shows more of them.";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info"))
        .format_timestamp_millis()
        .format_target(false)
        .init();
    let settings = match settle(arguments) {
        Ok(settings) => settings,
        Err(error) => Arguments::command()
            .error(
                clap::error::ErrorKind::ValueValidation,
                format!("{error:#}"),
            )
            .exit(),
    };
    match run(&settings) {
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

fn run(settings: &Settings) -> Result<()> {
    let (_socket, listener) = ControlSocket::bind(&settings.socket)?;
    // The workers have threads of their own; all else is little.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("can't start the control runtime")?
        .block_on(serve(settings, listener))
}

async fn serve(settings: &Settings, listener: std::os::unix::net::UnixListener) -> Result<()> {
    let listener = UnixListener::from_std(listener).context("can't serve the control socket")?;
    // From here on a signal is an orderly end, not a death in the middle of the set-up.
    let mut interrupt = signal(SignalKind::interrupt()).context("can't wait for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("can't wait for SIGTERM")?;

    let wanted = tested_offload(settings);
    let mut tun = TunDevice::open(&settings.tun, settings.workers.into(), wanted)?;
    if let Some(refused) = tun.granted.refused {
        warn!("{refused}");
    }
    let offload = tun.granted.offload;
    if offload.uso && settings.coalesce {
        tun.queues.iter_mut().for_each(TunQueue::coalesce);
    }
    let name = tun.name.clone();
    let routing = set_up_routing(settings, &name).await?;
    let about = VersionResult {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: PROTOCOL_VERSION,
        egress: match settings.egress {
            EgressKind::Tun => "tun".to_owned(),
            EgressKind::Raw => "raw".to_owned(),
        },
        offload: offload.to_string(),
        workers: settings.workers.into(),
        tun: name.clone(),
        pid: std::process::id(),
    };
    let (workers, exits) = match start_workers(settings, tun) {
        Ok(started) => started,
        Err(error) => {
            let mut routing = routing;
            routing.remove_all().await;
            return Err(error);
        }
    };
    let plane = Arc::new(Plane::new(
        workers.clone(),
        settings.proxies.clone(),
        routing,
        about,
    ));
    info!(
        "ready: {name} with {} worker(s), {offload}; control socket at {}",
        settings.workers,
        settings.socket.display()
    );
    let ended = tokio::select! {
        () = control_server::serve(listener, Arc::clone(&plane)) => Ok(()),
        () = tidy(&plane) => Ok(()),
        error = first_exit(exits) => Err(error),
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    info!("cleaning up");
    plane.shut_down().await;
    workers.stop();
    ended
}

/// What to ask the kernel for: what is wanted, less what it was found to be bad at.
fn tested_offload(settings: &Settings) -> Offload {
    // A raw socket takes no super-packets.
    if settings.egress == EgressKind::Raw || !settings.offload {
        return Offload::NONE;
    }
    let wanted = Offload {
        tso: true,
        uso: settings.uso,
    };
    match self_test::run(wanted) {
        SelfTest::Tried { works, faults } if !faults.is_empty() => {
            let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
            warn!(
                "super-packets fail the self-test, going on with {works}: {}",
                faults.join("; ")
            );
            works
        }
        SelfTest::Tried { .. } => wanted,
        SelfTest::Skipped(reason) => {
            info!("no self-test of super-packets: {reason}");
            wanted
        }
    }
}

async fn set_up_routing(settings: &Settings, tun: &str) -> Result<Routing> {
    let routes_settings = routes::Settings {
        mtu: settings.mtu,
        table: settings.table,
        priority: settings.rule_priority,
        filter_preference: settings.filter_preference,
        clients: settings.clients.clone(),
        egress: match settings.egress {
            EgressKind::Tun => Egress::Tun,
            EgressKind::Raw => Egress::Raw {
                mark: settings.mark,
            },
        },
        enable_forwarding: settings.enable_forwarding,
        ..routes::Settings::new(tun, settings.proxies.clone())
    };
    if settings.routes {
        let routes = Routes::set_up(routes_settings).await?;
        return Ok(Routing::Managed(Box::new(routes)));
    }
    info!("--no-routes: run the commands on the standard output yourself");
    let plan = Plan::prepare(routes_settings).await?;
    Ok(Routing::printed(plan))
}

type Exit = oneshot::Receiver<io::Result<()>>;

fn start_workers(settings: &Settings, tun: TunDevice) -> Result<(Workers, Vec<Exit>)> {
    let config = Config {
        worker: 0,
        ownership: Ownership::new(settings.workers, rand::random()),
        proxies: settings.proxies.clone(),
        proxy_ports: settings.proxy_ports.clone(),
        max_connections: settings.max_connections.div_ceil(settings.workers.into()),
        max_connections_per_client: settings
            .max_connections_per_client
            .map(|limit| limit.div_ceil(settings.workers.into())),
        client_groups: settings.client_groups,
        timeouts: settings.timeouts,
        refused_retries: settings.refused_retries,
        mss_clamp: settings.mss_clamp,
        hop_limit: match settings.egress {
            EgressKind::Tun => HopLimit::Raise,
            EgressKind::Raw => HopLimit::Lower,
        },
    };
    if settings.steering {
        steer(&tun, &config);
    }
    let started = match settings.egress {
        EgressKind::Tun => Workers::start(tun.queues, &config, settings.busy_poll),
        EgressKind::Raw => {
            let ports = tun
                .queues
                .into_iter()
                .map(|queue| RawPort::open(queue, settings.mark))
                .collect::<Result<Vec<_>, _>>()?;
            Workers::start(ports, &config, settings.busy_poll)
        }
    };
    started.context("can't start the workers")
}

/// Has packets come to the workers that own them, if the kernel can do that.
fn steer(tun: &TunDevice, config: &Config) {
    let Some(queue) = tun.queues.first() else {
        return;
    };
    match steering::steer(queue, &config.ownership, &config.proxies) {
        Ok(true) => {
            info!("packets come to the workers that own them (--no-steering: as the kernel likes)")
        }
        Ok(false) => {}
        Err(errno) => warn!(
            "the kernel doesn't take a program to steer packets ({errno}): many will be handed from one \
             worker to another, which costs some speed"
        ),
    }
}

async fn tidy(plane: &Plane) {
    let mut interval = tokio::time::interval(TIDY_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        plane.tidy().await;
    }
}

/// Waits until a worker ends, which none does of its own accord.
async fn first_exit(exits: Vec<Exit>) -> anyhow::Error {
    let exits = exits.into_iter().zip(0..).map(|(exit, number)| {
        Box::pin(async move {
            match exit.await {
                Ok(Ok(())) => anyhow!("worker {number} has ended"),
                Ok(Err(error)) => anyhow!(error).context(format!("worker {number} has failed")),
                Err(_) => anyhow!("worker {number} has panicked"),
            }
        })
    });
    futures::future::select_all(exits).await.0
}
