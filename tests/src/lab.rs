//! The network: hosts, and what can be done on each.

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::process::{Background, Finished, PATIENCE, report, wait_until};

/// A network of its own: client, rewriter, two mirrors and the original service.
///
/// Several can stand side by side. Dropping one ends what runs in it and removes it.
#[derive(Debug)]
pub struct Lab {
    /// What its namespaces' names begin with.
    prefix: String,
    /// Its scratch directory: logs, captures, configurations.
    dir: PathBuf,
    /// The client, with two addresses of each family and the client's address of figure 3.
    pub client: Host,
    /// The rewriter, which forwards. Its interfaces are called like the hosts behind them.
    pub rewriter: Host,
    /// The first mirror, which is also the mirror of figure 3.
    pub mirror1: Host,
    /// The second mirror.
    pub mirror2: Host,
    /// The original service.
    pub origin: Host,
}

impl Lab {
    /// A network in which every packet that the rewriter's host sends has its checksums complete
    /// and is no longer than the MTU, so that a [`Capture`](crate::Capture) of what arrives at a
    /// host can be held against the standards. The hosts still *send* super-packets.
    #[track_caller]
    pub fn new() -> Self {
        let lab = Self::with_offloads();
        for interface in ["client", "mirror1", "mirror2", "origin"] {
            // Without `tx` there is no TSO either, so the kernel cuts and sums as it sends.
            lab.rewriter
                .run(&format!("ethtool -K {interface} tx off"))
                .success();
        }
        lab
    }

    /// A network whose links keep every offload that the kernel gives them: super-packets with
    /// unfinished checksums pass from end to end, as they do between virtual machines.
    #[track_caller]
    pub fn with_offloads() -> Self {
        static LABS: AtomicU32 = AtomicU32::new(0);
        static SWEPT: OnceLock<()> = OnceLock::new();
        SWEPT.get_or_init(|| topology(&["sweep"]));

        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("shunttest-{}.{}-{number}", std::process::id(), start_time());
        let dir = std::env::temp_dir().join(&prefix);
        fs::create_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        topology(&["up", &prefix]);
        let host = |name| Host::new(name, &prefix, &dir);
        Self {
            client: host("client"),
            rewriter: host("rewriter"),
            mirror1: host("mirror1"),
            mirror2: host("mirror2"),
            origin: host("origin"),
            prefix,
            dir,
        }
    }

    /// Makes every link between client, rewriter and mirrors bad for TCP: of twenty packets that come to a
    /// host one is lost, and of those that leave it one in twenty goes through a narrow queue, and is overtaken.
    #[track_caller]
    pub fn make_links_bad(&self) {
        for (host, interfaces) in self.bad_links() {
            let mut code = String::from(
                "nft add table inet bad
                 nft add chain inet bad in '{ type filter hook prerouting priority -300; }'
                 nft add rule inet bad in meta l4proto tcp numgen random mod 20 == 0 drop
                 nft add chain inet bad out '{ type filter hook postrouting priority 300; }'
                 nft add rule inet bad out meta l4proto tcp numgen random mod 20 == 0 \
                     meta priority set 1:2\n",
            );
            for interface in interfaces {
                code += &format!(
                    "tc qdisc add dev {interface} root handle 1: htb default 1
                     tc class add dev {interface} parent 1: classid 1:1 htb rate 10gbit quantum 60000
                     tc class add dev {interface} parent 1: classid 1:2 htb rate 100mbit quantum 60000
                     tc qdisc add dev {interface} parent 1:2 pfifo limit 4\n"
                );
            }
            host.shell(&code).success();
        }
    }

    /// Undoes [`Lab::make_links_bad`].
    #[track_caller]
    pub fn make_links_good(&self) {
        for (host, interfaces) in self.bad_links() {
            let mut code = String::from("nft delete table inet bad\n");
            for interface in interfaces {
                code += &format!("tc qdisc del dev {interface} root\n");
            }
            host.shell(&code).success();
        }
    }

    fn bad_links(&self) -> [(&Host, &'static [&'static str]); 4] {
        [
            (&self.client, &["eth0"]),
            (&self.rewriter, &["client", "mirror1", "mirror2"]),
            (&self.mirror1, &["eth0"]),
            (&self.mirror2, &["eth0"]),
        ]
    }

    /// A directory for the scenario's own files, gone with the lab.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::env::var_os("SHUNT_KEEP_LAB").is_some() && thread::panicking() {
            report(&format!(
                "{} is left standing; its files: {:?}",
                self.prefix, self.dir
            ));
            return;
        }
        topology(&["down", &self.prefix]);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Runs `scripts/topology.sh`, the one description of the network.
#[track_caller]
fn topology(arguments: &[&str]) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/topology.sh");
    let finished = Finished::of(Command::new(script).args(arguments));
    // While a failed test is being unwound, a second panic would hide the first.
    if !thread::panicking() {
        finished.success();
    }
}

/// When this process started, in the kernel's ticks (field 22 of `/proc/self/stat`).
fn start_time() -> String {
    let stat = fs::read_to_string("/proc/self/stat").expect("/proc is mounted");
    let (_, after_name) = stat
        .rsplit_once(") ")
        .expect("the name ends with a parenthesis");
    after_name.split(' ').nth(19).expect("field 22").to_owned()
}

/// One host of a [`Lab`]: a network namespace.
#[derive(Debug)]
pub struct Host {
    name: String,
    namespace: String,
    dir: PathBuf,
}

impl Host {
    fn new(name: &str, prefix: &str, lab_dir: &Path) -> Self {
        let dir = lab_dir.join(name);
        fs::create_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        Self {
            name: name.to_owned(),
            namespace: format!("{prefix}-{name}"),
            dir,
        }
    }

    /// Its name, e.g. `mirror1`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of its network namespace, for links between hosts.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// What its servers call themselves, e.g. `mirror 1`.
    pub fn title(&self) -> String {
        self.name.replace("mirror", "mirror ")
    }

    /// A file of this name in the host's own scratch directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A command that will run on this host.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, program]);
        command
    }

    /// Runs a command line, split at spaces, to its end on this host. It has half a minute.
    #[track_caller]
    pub fn run(&self, line: &str) -> Finished {
        let mut command = self.command("timeout");
        command
            .args(["--kill-after=1", "30"])
            .args(line.split_whitespace());
        Finished::of(&mut command)
    }

    /// Runs shell code on this host.
    #[track_caller]
    pub fn shell(&self, code: &str) -> Finished {
        Finished::of(self.command("bash").args(["-euc", code]))
    }

    /// Starts a command line, split at spaces, that runs on while the scenario does.
    #[track_caller]
    pub fn start(&self, line: &str) -> Background {
        let mut words = line.split_whitespace();
        let program = words.next().expect("a program to start");
        self.spawn(self.command(program).args(words), program)
    }

    /// Starts a command that was made by [`Host::command`].
    #[track_caller]
    pub(crate) fn spawn(&self, command: &mut Command, program: &str) -> Background {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let base = program.rsplit('/').next().unwrap_or(program);
        let log = self.file(&format!("{base}.{number}.log"));
        Background::start(&format!("{base} on {}", self.name), command, log)
    }

    /// Does `work` in a thread that lives on this host: the sockets it opens are the host's, and
    /// stay so when they are handed back.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = Path::new("/run/netns").join(&self.namespace);
        let enter_and_work = || {
            let namespace = File::open(&path).expect("the host's namespace exists");
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
            work()
        };
        thread::scope(|scope| match scope.spawn(enter_and_work).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Opens a TCP connection from here. Reading from it gives up after ten seconds.
    #[track_caller]
    pub fn connect(&self, to: &str) -> TcpStream {
        let to: SocketAddr = to.parse().expect("an address and a port");
        let stream = self
            .inside(|| TcpStream::connect_timeout(&to, PATIENCE))
            .unwrap_or_else(|error| panic!("{} can't connect to {to}: {error}", self.name));
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a timeout can be set");
        stream
    }

    /// Opens a UDP socket here on `from` (port 0: any), connected to `to`. Receiving gives up
    /// after ten seconds.
    #[track_caller]
    pub fn udp(&self, from: &str, to: &str) -> UdpSocket {
        let to: SocketAddr = to.parse().expect("an address and a port");
        let socket = self
            .inside(|| {
                let socket = UdpSocket::bind(from)?;
                socket.connect(to)?;
                std::io::Result::Ok(socket)
            })
            .unwrap_or_else(|error| panic!("no UDP socket on {}: {error}", self.name));
        socket
            .set_read_timeout(Some(PATIENCE))
            .expect("a timeout can be set");
        socket
    }

    /// Waits until something on this host listens at `port`, of `protocol` `tcp` or `udp`.
    #[track_caller]
    pub fn wait_for_listener(&self, protocol: &str, port: u16) {
        let line = format!("ss -Hnl --{protocol} sport = :{port}");
        wait_until(
            &format!("{} listens at {protocol} port {port}", self.name),
            || (!self.run(&line).success().is_empty()).then_some(()),
        );
    }

    /// The addresses that this host's established TCP connections have at the far end.
    #[track_caller]
    pub fn tcp_peers(&self) -> Vec<SocketAddr> {
        let listing = self.run("ss -Hnt state established").success();
        let peer = |line: &str| line.split_whitespace().nth(3)?.parse().ok();
        listing.lines().filter_map(peer).collect()
    }

    /// Loses everything that comes to this host, as if its cable were cut somewhere on the way.
    #[track_caller]
    pub fn cut_off(&self) {
        self.shell(
            "nft add table inet cut
             nft add chain inet cut in '{ type filter hook prerouting priority -400; }'
             nft add rule inet cut in drop",
        )
        .success();
    }

    /// Undoes [`Host::cut_off`].
    #[track_caller]
    pub fn reconnect(&self) {
        self.run("nft delete table inet cut").success();
    }

    /// The value of a kernel setting, e.g. `net/ipv4/ip_forward`.
    #[track_caller]
    pub fn setting(&self, path: &str) -> String {
        self.run(&format!("cat /proc/sys/{path}"))
            .success()
            .trim()
            .to_owned()
    }

    /// Changes a kernel setting of this host.
    #[track_caller]
    pub fn set(&self, path: &str, value: &str) {
        self.shell(&format!("echo {value} >/proc/sys/{path}"))
            .success();
    }
}

/// Brackets around an IPv6 address, as in a URL or before a port.
pub(crate) fn bracketed(address: &str) -> String {
    match address.parse() {
        Ok(IpAddr::V6(_)) => format!("[{address}]"),
        _ => address.to_owned(),
    }
}
