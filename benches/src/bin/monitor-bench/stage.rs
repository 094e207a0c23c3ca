//! What all measurements take place on: three busy servers, a rewriter before them, and a monitor or none.

use clap::ValueEnum;
use scenarios::monitor::configuration;
use scenarios::{
    BusyServer, CLIENTS, Lab, MIRROR1, MIRROR2, MIRROR3, SERVICE, ShuntMonitor, Shuntd,
};

/// How a request may take at the most, in milliseconds.
pub const TIMEOUT_MS: f64 = 2000.0;

/// Who watches over the mirrors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Watch {
    /// Nobody: equal weights, as an operator sets them who has nothing else to go by.
    None,
    /// The monitor, which checks the mirrors over HTTP every 500 ms.
    Checks,
    /// The monitor, with the same checks, and the rewriter's own signs of life.
    Signs,
}

impl Watch {
    /// For tables.
    pub fn title(self) -> &'static str {
        match self {
            Self::None => "no monitor",
            Self::Checks => "monitor, checks",
            Self::Signs => "monitor, checks and signs of life",
        }
    }
}

/// A lab in which everything runs.
pub struct Stage<'lab> {
    pub lab: &'lab Lab,
    /// A server on each mirror.
    pub servers: Vec<BusyServer<'lab>>,
    pub monitor: Option<ShuntMonitor<'lab>>,
}

impl Stage<'_> {
    /// Sets everything up, with the flags of each server, and does `work` there.
    ///
    /// # Errors
    /// Those of `work`.
    ///
    /// # Panics
    /// Something doesn't start, or doesn't end as it should, as all of the lab does.
    pub fn set<T>(
        watch: Watch,
        servers: [&str; 3],
        work: impl FnOnce(&mut Stage<'_>) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let lab = Lab::with_offloads();
        let servers = lab
            .mirrors()
            .into_iter()
            .zip(servers)
            .map(|(host, flags)| BusyServer::start(host, flags))
            .collect();
        let shuntd = Shuntd::start(&lab, "");
        shuntd
            .ctl(&format!(
                "divert {SERVICE}:80/tcp {MIRROR1} {MIRROR2} {MIRROR3}"
            ))
            .success();
        let monitor = monitor_configuration(&lab, watch)
            .map(|configuration| ShuntMonitor::start(&lab, &configuration));
        work(&mut Stage {
            lab: &lab,
            servers,
            monitor,
        })
    }

    /// The flags of a load generator for `connections` connections of three client networks.
    pub fn load(connections: usize, pace: &str) -> String {
        format!(
            "--to {SERVICE}:80 --from {} --connections {connections} --timeout {TIMEOUT_MS}ms {pace}",
            CLIENTS.join(" --from ")
        )
    }

    /// How many decisions the monitor has made that instructed a rewriter.
    pub fn decisions(&self) -> usize {
        let decisions = self.monitor.iter().flat_map(ShuntMonitor::decisions);
        decisions
            .filter(|decision| !decision.instructions.is_empty())
            .count()
    }
}

fn monitor_configuration(lab: &Lab, watch: Watch) -> Option<String> {
    const SETTINGS: &str = "interval = \"1s\"
improvement = 10
settle = \"5s\"
slow-start = \"10s\"
";
    const NO_SIGNS: &str = "[liveness]
enabled = false
";
    const CHECK: &str = "kind = \"http\"
path = \"/health\"
interval = \"500ms\"
timeout = \"300ms\"
rise = 2
fall = 2";
    let liveness = match watch {
        Watch::None => return None,
        Watch::Checks => NO_SIGNS,
        Watch::Signs => "",
    };
    Some(configuration(
        lab,
        &format!("{SETTINGS}{liveness}"),
        CHECK,
        "",
    ))
}
