//! `shunt-monitor`: the network monitor's daemon.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use control_protocol::{DecisionsResult, MirrorsResult};
use control_server::ControlSocket;
use log::info;
use monitor::board::Board;
use monitor::config::Config;
use monitor::metrics;
use monitor::monitor::{Hands, Monitor, read_config};
use monitor::server::Window;
use serde_json::json;
use tokio::net::UnixListener;
use tokio::select;
use tokio::signal::unix::{SignalKind, signal};

/// How long `plan` watches at least.
const LEAST_WATCH: Duration = Duration::from_secs(4);

const EXAMPLES: &str = "\
Examples:
  shunt-monitor check --config monitor.toml
      Is the file right, and what does it say?
  shunt-monitor plan --config monitor.toml
      Watch for some seconds, and say what would be done now, and why.
  shunt-monitor run --config monitor.toml --dry-run
      Log what would be done, and do nothing.
  shunt-monitor run --config monitor.toml
      Do it.

The smallest monitor.toml:
  [[rewriter]]
  name = \"edge\"
  [[mirror]]
  name = \"london\"
  address = \"10.2.0.2\"
  [[mirror]]
  name = \"paris\"
  address = \"10.2.0.3\"
  [[service]]
  address = \"100.100.100.100:80/tcp\"
  mirrors = [\"london\", \"paris\"]

While it runs, `shuntctl decisions` and `shuntctl mirrors` show what it thinks. What a person says with
shuntctl counts more: `shuntctl hold SERVICE` has it leave a service alone, until `shuntctl release SERVICE`.
When it ends, its last instructions stand.

Log messages go to the standard error; RUST_LOG=debug shows more of them.";

/// Watches a service's mirrors, and has their traffic go where it is served best.
///
/// shunt-monitor checks each mirror, learns from the rewriters' measurements what each is capable of, and
/// instructs the rewriters: away from dead mirrors at once, away from overloaded ones as soon as another
/// assignment is better by enough, within the rules of its configuration.
#[derive(Debug, Parser)]
#[command(name = "shunt-monitor", version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Watch, decide and instruct
    Run {
        #[command(flatten)]
        file: ConfigFile,
        /// Only log what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Watch for a while, say what would be done now and why, and do nothing
    Plan {
        #[command(flatten)]
        file: ConfigFile,
        /// How long to watch [default: twice the interval, at least 4s]
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        watch: Option<Duration>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Say whether the configuration is right, and how it was understood
    Check {
        #[command(flatten)]
        file: ConfigFile,
    },
}

#[derive(Debug, clap::Args)]
struct ConfigFile {
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/shunt/monitor.toml")]
    config: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info"))
        .format_timestamp_millis()
        .format_target(false)
        .init();
    let done = match arguments.command {
        Command::Run { file, dry_run } => run(&file, dry_run),
        Command::Plan { file, watch, json } => plan(&file, watch, json),
        Command::Check { file } => check(&file),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("can't start the runtime")
}

fn run(file: &ConfigFile, dry_run: bool) -> Result<()> {
    let config = read_config(&file.config)?;
    let (_socket, listener) = ControlSocket::bind(&config.socket)?;
    let runtime = runtime()?;
    let done = runtime.block_on(serve(config, listener, dry_run));
    // Threads that wait for a rewriter end with the program.
    runtime.shutdown_background();
    done
}

async fn serve(
    config: Config,
    listener: std::os::unix::net::UnixListener,
    dry_run: bool,
) -> Result<()> {
    let listener = UnixListener::from_std(listener).context("can't serve the control socket")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("can't wait for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("can't wait for SIGTERM")?;
    let board = Board::default();
    if let Some(address) = config.metrics {
        metrics::serve(address, board.clone())
            .await
            .with_context(|| format!("can't serve metrics at {address}"))?;
    }
    info!(
        "watching {} mirrors of {} services for {} rewriters; listening on {}",
        config.mirrors.len(),
        config.services.len(),
        config.rewriters.len(),
        config.socket.display()
    );
    let hands = if dry_run { Hands::Tied } else { Hands::Free };
    let mut monitor = Monitor::start(config, hands, board.clone())?;
    select! {
        () = monitor.run() => {}
        () = control_server::serve(listener, Arc::new(Window(board))) => {}
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    info!("ending; the last instructions stand");
    Ok(())
}

fn plan(file: &ConfigFile, watch: Option<Duration>, json: bool) -> Result<()> {
    let config = read_config(&file.config)?;
    let watch = watch.unwrap_or((2 * config.interval).max(LEAST_WATCH));
    info!("watching for {}", humantime::format_duration(watch));
    let board = Board::default();
    let runtime = runtime()?;
    let planned = runtime.block_on(async {
        let mut monitor = Monitor::start(config, Hands::Tied, board.clone())?;
        monitor.plan(watch).await;
        anyhow::Ok(())
    });
    runtime.shutdown_background();
    planned?;
    let shown = board.lock();
    let mut out = io::stdout().lock();
    let decisions = shown.decisions(None, usize::MAX, Instant::now());
    if json {
        let (mirrors, decisions) = (
            MirrorsResult {
                mirrors: shown.mirrors.clone(),
            },
            DecisionsResult { decisions },
        );
        writeln!(
            out,
            "{}",
            json!({"mirrors": mirrors.mirrors, "decisions": decisions.decisions})
        )?;
        return Ok(());
    }
    for mirror in &shown.mirrors {
        let unknown = || "?".to_owned();
        let response = mirror
            .response_ms
            .map_or_else(unknown, |ms| format!("{ms:.1}"));
        let capacity = mirror
            .capacity
            .map_or_else(unknown, |rate| format!("{rate:.0}"));
        writeln!(
            out,
            "{}: {} ({}); {:.0} requests a second of {capacity}, {response} ms",
            mirror.name, mirror.state, mirror.reason, mirror.rate
        )?;
    }
    if decisions.is_empty() {
        writeln!(
            out,
            "nothing would be done: nothing else is better by enough"
        )?;
    }
    for decision in &decisions {
        let service = decision
            .service
            .map_or_else(String::new, |service| service.to_string());
        writeln!(
            out,
            "{service} for {}: {}: {}",
            decision.clients, decision.kind, decision.reason
        )?;
        for instruction in &decision.instructions {
            writeln!(out, "  shuntctl {instruction}")?;
        }
    }
    Ok(())
}

fn check(file: &ConfigFile) -> Result<()> {
    let config = read_config(&file.config)?;
    let mut out = io::stdout().lock();
    for rewriter in &config.rewriters {
        writeln!(
            out,
            "rewriter {} at {}",
            rewriter.name,
            rewriter.socket.display()
        )?;
    }
    for mirror in &config.mirrors {
        let checks: Vec<String> = mirror
            .checks
            .iter()
            .map(|check| {
                let every = humantime::format_duration(check.interval);
                format!("{} every {every}", check.kind.name())
            })
            .collect();
        let checks = match checks.as_slice() {
            [] => "no checks".to_owned(),
            checks => checks.join(", "),
        };
        writeln!(
            out,
            "mirror {} at {}: {checks}",
            mirror.name, mirror.address
        )?;
    }
    for service in &config.services {
        let name = |mirror: &usize| config.mirrors[*mirror].name.as_str();
        let mirrors: Vec<&str> = service.mirrors.iter().map(name).collect();
        writeln!(out, "service {}: {}", service.address, mirrors.join(", "))?;
        for (number, group) in service.rules.groups().iter().enumerate() {
            let applied = service.rules.bounds(group, jiff::Timestamp::now());
            let rule = applied
                .rule
                .map_or_else(|| "no rule".to_owned(), ToString::to_string);
            let until = applied
                .until
                .map_or_else(String::new, |until| format!(" until {until}"));
            let prefixes = service.prefixes(number).iter().flatten().count();
            writeln!(
                out,
                "  {} ({prefixes} prefixes): now {rule}{until}",
                group.name
            )?;
        }
    }
    writeln!(out, "the configuration is right")?;
    Ok(())
}
