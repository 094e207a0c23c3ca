//! The command line: what can be said, and the help that explains it.

use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use control_protocol::{
    ClientPrefix, ConnectionsQuery, DEFAULT_MONITOR_SOCKET, DEFAULT_NAMING_SOCKET, DEFAULT_SOCKET,
    Daemon, DecisionsQuery, Divert, DomainName, Fallback, Grouping, Hold, MAX_PAGE, MAX_TTL,
    MAX_WITHIN_MS, Mirror, MirrorAddress, NameAddress, NameImport, NameRecords, NameSet, NameUnset,
    PeekNames, Percent, Redirect, RedirectsQuery, Release, ReleaseHold, Restore, Service, Splice,
    TcpMove,
};

/// Puts the options of all subcommands behind those of one.
const COMMON: usize = 100;

/// Names in one request, which are at most a quarter of the longest request.
const PEEK_NAMES_AT_ONCE: usize = 1000;

const EXAMPLES: &str = "\
Examples:
  Send new connections to another server, three times as many to the second:
    shuntctl divert 10.1.0.1:80/tcp 10.2.0.2:8080 '10.2.0.3:8080*3'
  Move the existing ones as well:
    shuntctl redirect 10.1.0.1:53/udp 10.2.0.2
  See what is diverted, then take it back:
    shuntctl list
    shuntctl restore 10.1.0.1:80/tcp

Exit codes:
  0  done
  1  the daemon did not do it; the reason is on standard error
  2  the command line is wrong
  3  no daemon is there, or you may not talk to it
  4  the answer got lost, so it may or may not have been done; or the output did

On a terminal, output is a table. In a pipe it is lines of tab-separated columns in the same order,
without a heading, with plain numbers of bytes and seconds. With --json it is the result as the
daemon sends it; docs/control-protocol.md describes the fields.";

const VALUES: &str = "\
Values:
  SERVICE  IP[:PORT][/PROTOCOL], the address that clients talk to
           10.1.0.1            everything that goes to this address
           10.1.0.1:80         this port, TCP and UDP
           [fd00::1]:443/tcp   this port, TCP only; IPv6 with a port needs brackets
           10.1.0.1/icmp       echo (ping); it has no port
           10.1.0.1/47         another IP protocol, by its number
  MIRROR   IP[:PORT][*WEIGHT], a server that really answers
           10.2.0.2            the same port as at the service
           10.2.0.2:8080       another port
           10.2.0.2:8080*3     three times the share of a mirror without a weight
           10.2.0.2*0          no new connections: it drains
  CIDR     IP[/LENGTH], clients by their address
           192.168.7.0/24      all clients of this prefix
           192.168.7.9         this client
Quote a MIRROR with a weight, or the shell may take the star for a pattern.";

const NAMES: &str = "\
Examples:
  shuntctl name set www.bt.com 10.2.0.3 --ttl 5
  shuntctl name set www.bt.com 10.2.0.2 '10.2.0.3*3' fd00:2::3
      All are answered; three times of four, 10.2.0.3 comes first. With *0 one isn't answered.
  shuntctl name set '*.bt.com' --cname www.bt.com
  shuntctl name set www.bt.com 10.2.0.3 --https '1 . alpn=h2,h3'
  shuntctl name set _http._tcp.bt.com --srv '0 5 80 www.bt.com.'";

/// Tell shuntd, the packet rewriter, where connections go.
///
/// A diversion sends the connections of a service to one or more mirrors, and the clients notice
/// nothing. `divert` sets one for new connections, `redirect` moves the existing ones as well, and
/// `restore` takes it away.
#[derive(Debug, Parser)]
#[command(name = "shuntctl", version, after_long_help = EXAMPLES, max_term_width = 100)]
pub struct Arguments {
    /// The daemon's control socket
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "SHUNT_SOCKET",
        hide_env_values = true,
        default_value = DEFAULT_SOCKET,
        display_order = COMMON
    )]
    pub socket: PathBuf,

    /// Print the result as one JSON object
    #[arg(long, global = true, display_order = COMMON)]
    pub json: bool,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Arguments {
    /// Which daemon is asked, and where it listens.
    pub fn daemon(&self) -> (Daemon, &Path) {
        match &self.command {
            Command::Decisions(DecisionsArguments { monitor, .. }) | Command::Mirrors(monitor) => {
                (Daemon::Monitor, &monitor.monitor_socket)
            }
            Command::Name(name) => (Daemon::Naming, &name.naming),
            _ => (Daemon::Rewriter, &self.socket),
        }
    }
}

/// What to do, one variant a subcommand.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Send new connections to other servers; existing ones stay where they are
    ///
    /// Sets the diversion of SERVICE for the clients of --from, in place of the one that was there
    /// for the same SERVICE and the same clients. New connections are shared among the mirrors by
    /// weight. Existing connections stay where they are until they end.
    #[command(after_help = VALUES)]
    Divert(DivertArguments),

    /// Send new and existing connections to other servers
    ///
    /// Sets the diversion as `divert` does, and moves the existing connections that it governs to
    /// the new mirrors. Those that are on one of the new mirrors already stay there.
    ///
    /// UDP and echo move at once. An established TCP connection is spliced: when its server has
    /// answered and the client asks for something else, or nothing has happened for a while, Shunt
    /// connects to the new mirror and joins that connection to the client's, which doesn't notice. The
    /// command waits until that has been done for every connection, or can't be, and then says what has
    /// become of them.
    #[command(after_help = VALUES)]
    Redirect(RedirectArguments),

    /// Show what has become of the latest redirects, or have one wait no longer
    Redirects(RedirectsArguments),

    /// Remove a diversion; existing connections stay on their mirror until they end
    ///
    /// SERVICE and --from must be those that the diversion was set with; `list` shows them.
    #[command(after_help = VALUES)]
    Restore(RestoreArguments),

    /// Say for which names DNS queries follow a diversion that was set with --peek
    ///
    /// They take the place of those that were said before. A naming server whose configuration names this
    /// rewriter does this by itself.
    #[command(after_help = VALUES)]
    PeekNames(PeekNamesArguments),

    /// Have programs that decide by themselves, as the monitor does, leave a service alone
    ///
    /// What you say of SERVICE is carried out as ever. A hold on an address without a port or a protocol
    /// is one on all that goes there. A service that the monitor decides about is held by itself as soon
    /// as you divert, redirect or restore it.
    #[command(after_help = VALUES)]
    Hold(HoldArguments),

    /// Let programs decide about a service again
    #[command(after_help = VALUES)]
    Release(HoldArguments),

    /// List the diversions with their mirrors, one line a mirror
    List,

    /// List the connections
    ///
    /// Each line shows a connection's two pairs of addresses: client and service, as the client sees
    /// it, then proxy and mirror, as the mirror sees it. For an echo, the ports of client and proxy
    /// are the echo identifiers. Connections that begin or end during the listing may be missing.
    #[command(after_help = VALUES)]
    Connections(ConnectionsArguments),

    /// Show what the workers have counted since the daemon started
    ///
    /// With --by, show what has been measured of the connections instead: one line for all that are on the
    /// same mirror, of the same service, or of clients of the same prefix. P50, P90 and P99 are the times
    /// from what a client asks to the first byte of the answer that half, nine tenths and 99 of 100
    /// answers keep to.
    Stats(StatsArguments),

    /// Show what is measured of the connections, once a second
    ///
    /// Each update is about the time since the one before.
    Watch(WatchArguments),

    /// Say which names the naming server answers, and with what
    ///
    /// All other names it passes on to the DNS. Changes count for the next query, and are kept.
    Name(NameArguments),
    /// Show the mirrors' vital signs: which are heard, and which leave something unanswered
    ///
    /// HEARD is how long ago anything came from a mirror. UNANSWERED counts what has been sent to it since
    /// then and wants an answer, and WAITING is how long ago the first of that was.
    Liveness,

    /// Show what the monitor has decided lately, and why
    Decisions(DecisionsArguments),

    /// Show what the monitor thinks of the mirrors
    Mirrors(MonitorArguments),

    /// Show which daemon answers, and how it was started
    Version,
}

/// What `name` takes.
#[derive(Debug, Args)]
pub struct NameArguments {
    /// The naming server's control socket
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "SHUNT_NAMING",
        hide_env_values = true,
        default_value = DEFAULT_NAMING_SOCKET,
        display_order = COMMON
    )]
    pub naming: PathBuf,

    /// What to do.
    #[command(subcommand)]
    pub command: NameCommand,
}

/// What to do about names.
#[derive(Debug, Subcommand)]
pub enum NameCommand {
    /// Answer a name from now on, in place of what was answered for it before
    ///
    /// All that the name has is said at once. A query for another type gets an empty answer, unless the naming
    /// server is told otherwise.
    #[command(after_help = NAMES)]
    Set(NameSetArguments),

    /// Answer a name no longer: the DNS is asked again
    Unset(NameUnsetArguments),

    /// List the names, one line a record
    List,

    /// Answer all names of a zone file
    ///
    /// Each is set with all its records, as if by `set`; either all of them, or none. Other names stay. Records of
    /// types that can't be listed, such as SOA and NS, are left out.
    Import(NameImportArguments),
}

/// What `divert` takes.
#[derive(Debug, Args)]
pub struct DivertArguments {
    /// The address that clients talk to
    service: Service,

    /// The servers that really answer
    #[arg(required = true, value_name = "MIRROR")]
    mirrors: Vec<Mirror>,

    /// Only for these clients
    #[arg(long, value_name = "CIDR")]
    from: Option<ClientPrefix>,

    /// Only DNS queries for names that `peek-names` or the naming server lists; all others go on as they are
    ///
    /// SERVICE must be a UDP port. Without --peek and --no-peek, a diversion stays as it was in this.
    #[arg(long, conflicts_with = "no_peek")]
    peek: bool,

    /// All packets again, of a diversion that was set with --peek
    #[arg(long)]
    no_peek: bool,
}

impl DivertArguments {
    /// The request that the arguments stand for.
    pub fn request(&self) -> Divert {
        Divert {
            service: self.service,
            mirrors: self.mirrors.clone(),
            from: self.from,
            peek: (self.peek || self.no_peek).then_some(self.peek),
            automatic: false,
        }
    }
}

/// What `peek-names` takes.
#[derive(Debug, Args)]
pub struct PeekNamesArguments {
    /// The service of the diversion
    pub service: Service,

    /// Names such as www.bt.com, and *.bt.com for all below bt.com
    #[arg(required_unless_present = "file", value_name = "NAME")]
    names: Vec<DomainName>,

    /// The clients of the diversion
    #[arg(long, value_name = "CIDR")]
    from: Option<ClientPrefix>,

    /// A file with more of them, one a line; - is the standard input
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

impl PeekNamesArguments {
    /// The requests that the arguments stand for, with these names as well: one for each part of the list.
    pub fn requests(&self, mut names: Vec<DomainName>) -> Vec<PeekNames> {
        names.extend_from_slice(&self.names);
        let mut requests: Vec<PeekNames> = names
            .chunks(PEEK_NAMES_AT_ONCE)
            .map(|part| self.request(part.to_vec()))
            .collect();
        if requests.is_empty() {
            requests.push(self.request(Vec::new()));
        }
        let last = requests.len() - 1;
        for (number, request) in requests.iter_mut().enumerate() {
            request.continues = number > 0;
            request.more = number < last;
        }
        requests
    }

    fn request(&self, names: Vec<DomainName>) -> PeekNames {
        PeekNames {
            service: self.service,
            from: self.from,
            names,
            continues: false,
            more: false,
        }
    }
}

/// What `redirect` takes.
#[derive(Debug, Args)]
pub struct RedirectArguments {
    /// The address that clients talk to
    service: Service,

    /// The servers that will really answer
    #[arg(required = true, value_name = "MIRROR")]
    mirrors: Vec<Mirror>,

    /// Only for these clients
    #[arg(long, value_name = "CIDR")]
    from: Option<ClientPrefix>,

    /// What becomes of established TCP connections
    ///
    /// splice: go on at the new mirror, unnoticed, as soon as that can be done. reset: end them on both sides, so that the client connects anew and reaches the new mirror.
    /// rewrite: send their packets to the new mirror from now on; right only when it knows the
    /// connection already, as one of a pair that shares its state does.
    #[arg(
        long,
        value_name = "HOW",
        default_value_t,
        value_parser = PossibleValuesParser::new([
            TcpMove::Splice.as_str(), TcpMove::Rewrite.as_str(), TcpMove::Reset.as_str()
        ])
            .try_map(|word| word.parse::<TcpMove>()),
    )]
    tcp: TcpMove,

    /// Only the connections that are on this mirror now, IP or IP:PORT
    #[arg(long, value_name = "MIRROR")]
    from_mirror: Option<MirrorAddress>,

    /// Move only this share of the connections on --from-mirror, such as 40%
    ///
    /// They leave although --from-mirror may be one of the mirrors still: they go to another of these.
    #[arg(long, value_name = "PERCENT", requires = "from_mirror")]
    share: Option<Percent>,

    #[command(flatten)]
    splice: SpliceArguments,

    /// Don't wait for connections to be spliced; `redirects` tells what becomes of them
    #[arg(long)]
    pub no_wait: bool,
}

/// How connections are spliced.
#[derive(Debug, Args)]
#[command(next_help_heading = "Splicing")]
struct SpliceArguments {
    /// How long to wait until connections can be spliced
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = milliseconds)]
    within: u64,

    /// Splice a connection on which nothing has happened for this long, or never
    ///
    /// Otherwise it is spliced when the client next sends something. A server that takes longer than
    /// this over an answer it has begun would be cut off.
    #[arg(long, value_name = "TIME|never", default_value = "5s", value_parser = quiet)]
    quiet: Quiet,

    /// What becomes of connections that couldn't be spliced in time
    #[arg(
        long,
        value_name = "WHAT",
        default_value_t,
        value_parser = PossibleValuesParser::new([Fallback::Leave.as_str(), Fallback::Reset.as_str()])
            .try_map(|word| word.parse::<Fallback>()),
    )]
    then: Fallback,

    /// What becomes of connections that can't be spliced: TLS, SSH, WebSockets and others
    #[arg(
        long,
        value_name = "WHAT",
        default_value_t,
        value_parser = PossibleValuesParser::new([Fallback::Leave.as_str(), Fallback::Reset.as_str()])
            .try_map(|word| word.parse::<Fallback>()),
    )]
    otherwise: Fallback,

    /// How the old mirror's side is ended
    #[arg(
        long,
        value_name = "HOW",
        default_value_t,
        value_parser = PossibleValuesParser::new([Release::Fin.as_str(), Release::Rst.as_str()])
            .try_map(|word| word.parse::<Release>()),
    )]
    release: Release,

    /// Splice connections whatever they are used for
    #[arg(long)]
    force: bool,

    /// The old mirror is dead: wait for nothing, and reset at once what can't be spliced
    #[arg(long)]
    now: bool,
}

/// A time in milliseconds; none: never.
#[derive(Debug, Clone, Copy)]
struct Quiet(Option<u64>);

fn quiet(text: &str) -> Result<Quiet, String> {
    if text == "never" {
        return Ok(Quiet(None));
    }
    milliseconds(text)
        .map(|time| Quiet(Some(time)))
        .map_err(|error| format!("{error}, or never"))
}

fn milliseconds(text: &str) -> Result<u64, String> {
    let wrong = "expected a time of at most a day, such as 500ms, 30s or 5m";
    let time = humantime::parse_duration(text).map_err(|_| wrong)?;
    u64::try_from(time.as_millis())
        .ok()
        .filter(|time| *time <= MAX_WITHIN_MS)
        .ok_or_else(|| wrong.to_owned())
}

/// What `name set` takes.
#[derive(Debug, Args)]
pub struct NameSetArguments {
    /// The name, or *.NAME for all names below it
    name: DomainName,

    /// Its addresses, IPv4 and IPv6
    #[arg(value_name = "ADDRESS", required_unless_present_any = ["cname", "https", "svcb", "srv", "txt"])]
    addresses: Vec<NameAddress>,

    /// How long clients may remember it, in seconds [default: as the naming server is configured]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(..=i64::from(MAX_TTL)))]
    ttl: Option<u32>,

    /// The name that it stands for; then it has nothing else
    #[arg(long, value_name = "NAME", conflicts_with_all = ["addresses", "https", "svcb", "srv", "txt"])]
    cname: Option<DomainName>,

    /// An HTTPS record as in a zone file (repeatable)
    #[arg(long, value_name = "DATA")]
    https: Vec<String>,

    /// An SVCB record as in a zone file (repeatable)
    #[arg(long, value_name = "DATA")]
    svcb: Vec<String>,

    /// An SRV record as in a zone file (repeatable)
    #[arg(long, value_name = "DATA")]
    srv: Vec<String>,

    /// A text (repeatable)
    #[arg(long, value_name = "TEXT")]
    txt: Vec<String>,
}

impl NameSetArguments {
    /// The request that the arguments stand for.
    pub fn request(&self) -> NameSet {
        NameSet {
            name: self.name.clone(),
            ttl: self.ttl,
            records: NameRecords {
                addresses: self.addresses.clone(),
                cname: self.cname.clone(),
                https: self.https.clone(),
                svcb: self.svcb.clone(),
                srv: self.srv.clone(),
                txt: self.txt.clone(),
            },
        }
    }
}

/// What `name unset` takes.
#[derive(Debug, Args)]
pub struct NameUnsetArguments {
    /// The name as it was set
    name: DomainName,
}

impl NameUnsetArguments {
    /// The request that the arguments stand for.
    pub fn request(&self) -> NameUnset {
        NameUnset {
            name: self.name.clone(),
        }
    }
}

/// What `name import` takes.
#[derive(Debug, Args)]
pub struct NameImportArguments {
    /// The zone file; - is the standard input
    #[arg(value_name = "ZONEFILE")]
    pub file: PathBuf,

    /// What names without a dot at their end are below of, where the file has no $ORIGIN
    #[arg(long, value_name = "NAME")]
    origin: Option<DomainName>,

    /// How long clients may remember every name, in seconds [default: the shortest of each name's records]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(..=i64::from(MAX_TTL)))]
    ttl: Option<u32>,
}

impl NameImportArguments {
    /// The request that the arguments stand for, with the text of the file.
    pub fn request(&self, zone: String) -> NameImport {
        NameImport {
            zone,
            origin: self.origin.clone(),
            ttl: self.ttl,
        }
    }
}

/// What `redirects` takes.
#[derive(Debug, Args)]
pub struct RedirectsArguments {
    /// Only this redirect, by its number
    id: Option<u64>,

    /// Have the connections of this redirect that still wait stay where they are
    #[arg(long, requires = "id")]
    cancel: bool,
}

impl RedirectsArguments {
    /// The request that the arguments stand for.
    pub fn request(&self) -> RedirectsQuery {
        RedirectsQuery {
            id: self.id,
            cancel: self.cancel,
        }
    }
}

impl RedirectArguments {
    /// The request that the arguments stand for.
    pub fn request(&self) -> Redirect {
        Redirect {
            service: self.service,
            mirrors: self.mirrors.clone(),
            from: self.from,
            tcp: self.tcp,
            splice: Splice {
                within_ms: self.splice.within,
                quiet_ms: self.splice.quiet.0,
                then: self.splice.then,
                otherwise: self.splice.otherwise,
                release: self.splice.release,
                force: self.splice.force,
                now: self.splice.now,
            },
            from_mirror: self.from_mirror,
            share: self.share,
            automatic: false,
        }
    }
}

/// What `restore` takes.
#[derive(Debug, Args)]
pub struct RestoreArguments {
    /// The diversion's service
    service: Service,

    /// The diversion's clients
    #[arg(long, value_name = "CIDR")]
    from: Option<ClientPrefix>,
}

impl RestoreArguments {
    /// The request that the arguments stand for.
    pub fn request(&self) -> Restore {
        Restore {
            service: self.service,
            from: self.from,
            automatic: false,
        }
    }
}

/// What `hold` and `release` take.
#[derive(Debug, Args)]
pub struct HoldArguments {
    /// What programs are to leave alone, or no longer
    pub service: Service,
}

impl HoldArguments {
    /// The request to hold.
    pub fn hold(&self) -> Hold {
        Hold {
            service: self.service,
        }
    }

    /// The request to release.
    pub fn release(&self) -> ReleaseHold {
        ReleaseHold {
            service: self.service,
        }
    }
}

/// What `connections` takes.
#[derive(Debug, Args)]
pub struct ConnectionsArguments {
    /// Only the connections to this service
    #[arg(long)]
    service: Option<Service>,
}

impl ConnectionsArguments {
    /// The request for the first page.
    pub fn request(&self) -> ConnectionsQuery {
        ConnectionsQuery {
            service: self.service,
            ..ConnectionsQuery::default()
        }
    }
}

/// What `stats` takes.
#[derive(Debug, Args)]
pub struct StatsArguments {
    /// Show what has been measured of the connections, taken together by this
    #[arg(long, value_name = "mirror|service|client", value_parser = grouping())]
    pub by: Option<Grouping>,
}

/// What `watch` takes.
#[derive(Debug, Args)]
pub struct WatchArguments {
    /// What connections are taken together by
    #[arg(long, value_name = "mirror|service|client", default_value_t, value_parser = grouping())]
    pub by: Grouping,

    /// Stop after so many updates
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
}

/// Where the monitor is.
#[derive(Debug, Args)]
pub struct MonitorArguments {
    /// The monitor's socket
    #[arg(
        long = "monitor",
        value_name = "PATH",
        env = "SHUNT_MONITOR",
        hide_env_values = true,
        default_value = DEFAULT_MONITOR_SOCKET
    )]
    monitor_socket: PathBuf,
}

/// What `decisions` takes.
#[derive(Debug, Args)]
pub struct DecisionsArguments {
    #[command(flatten)]
    monitor: MonitorArguments,

    /// Only the decisions about this service
    #[arg(long)]
    service: Option<Service>,

    /// At most so many, the latest ones
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_PAGE)))]
    limit: Option<u32>,

    /// Go on showing decisions as they are taken
    #[arg(long)]
    pub follow: bool,
}

impl DecisionsArguments {
    /// The request that the arguments stand for.
    pub fn request(&self) -> DecisionsQuery {
        DecisionsQuery {
            service: self.service,
            limit: self.limit,
        }
    }
}

fn grouping() -> impl TypedValueParser<Value = Grouping> {
    let words = [Grouping::Mirror, Grouping::Service, Grouping::Client].map(Grouping::as_str);
    PossibleValuesParser::new(words).try_map(|word| word.parse::<Grouping>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }
}
