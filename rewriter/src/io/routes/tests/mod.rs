//! Tests in real network namespaces, with iproute2 as the judge.
//!
//! Each test runs in a thread that has a namespace of its own, called the rewriter's here. Other
//! hosts are named namespaces, removed when their [`Host`] is dropped.

mod equivalence;
mod filters;
mod leftovers;
mod plan;
mod refresh;
mod refusals;
mod routing;

use std::fs;
use std::future::Future;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sched::{CloneFlags, setns};

use super::*;
use crate::io::namespace::testing::in_namespace;
use crate::io::tun::{Offload, TunDevice, TunQueue};
use crate::io::{Frame, Port};

/// How long a packet may take that should arrive. What shouldn't is waited for as [`BRIEFLY`].
const PATIENCE: Duration = Duration::from_secs(3);
const BRIEFLY: Duration = Duration::from_millis(200);

/// Where the tests' servers listen.
const ECHO: u16 = 7;

/// Runs a command line, which must succeed; gives what it printed.
fn run(line: &str) -> String {
    match try_run(line) {
        Ok(output) => output,
        Err(complaint) => panic!("{line}: {complaint}"),
    }
}

/// Runs a command line of words without quotes; what it printed, or its complaint.
fn try_run(line: &str) -> Result<String, String> {
    let mut words = line.split_whitespace();
    let program = words.next().unwrap();
    // Lists are compared between namespaces, so nothing in them may depend on the time.
    let output = Command::new(program).args(words).output().expect(program);
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn set_parameter(path: &str, value: &str) {
    fs::write(Path::new("/proc/sys").join(path), value).expect(path);
}

fn parameter(path: &str) -> String {
    fs::read_to_string(Path::new("/proc/sys").join(path))
        .expect(path)
        .trim()
        .to_owned()
}

fn on_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// All that [`Routes`] may change in the calling thread's namespace, as iproute2 shows it.
fn listing(settings: &Settings) -> String {
    let tun = &settings.tun;
    let mut lines = Vec::new();
    for family in ["-4", "-6"] {
        lines.push(run(&format!("ip {family} rule show")));
        for table in [settings.table, settings.table + 1] {
            // A table without routes doesn't exist, which is an error.
            let routes = try_run(&format!("ip {family} route show table {table}"));
            lines.push(routes.unwrap_or_default());
        }
    }
    lines.push(run(&format!("ip address show dev {tun}")));
    for name in [
        "ipv4/conf/%/rp_filter",
        "ipv4/conf/%/accept_local",
        "ipv6/conf/%/addr_gen_mode",
    ] {
        let path = format!("net/{}", name.replace('%', tun));
        lines.push(format!("{path} = {}", parameter(&path)));
    }
    for path in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        lines.push(format!("{path} = {}", parameter(path)));
    }
    let is_hook = |line: &&str| line.contains("clsact") || line.contains("ingress");
    lines.extend(
        run("tc qdisc show")
            .lines()
            .filter(is_hook)
            .map(str::to_owned),
    );
    for link in interfaces() {
        lines.push(try_run(&format!("tc filter show dev {link} ingress")).unwrap_or_default());
    }
    lines.join("\n")
}

fn interfaces() -> Vec<String> {
    let interfaces = nix::net::if_::if_nameindex().unwrap();
    interfaces
        .into_iter()
        .map(|it| it.name().to_string_lossy().into_owned())
        .collect()
}

/// Another host, with a wire to the rewriter.
struct Host {
    namespace: String,
}

impl Host {
    /// A host behind the rewriter's new interface `wire`, which has the first address and is the
    /// host's gateway; the host itself has the second one.
    fn new(wire: &str, gateway: &[&str], own: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("shunt-routes-{}-{count}", std::process::id());
        run(&format!("ip netns add {namespace}"));
        let host = Self { namespace };
        let namespace = &host.namespace;
        run(&format!(
            "ip link add {wire} type veth peer name eth0 netns {namespace}"
        ));
        run(&format!("ip link set dev {wire} up"));
        run(&format!("ip -n {namespace} link set dev lo up"));
        run(&format!("ip -n {namespace} link set dev eth0 up"));
        for (gateway, own) in gateway.iter().zip(own) {
            let option = if gateway.contains(':') { "nodad" } else { "" };
            run(&format!("ip address add {gateway} dev {wire} {option}"));
            run(&format!(
                "ip -n {namespace} address add {own} dev eth0 {option}"
            ));
            let gateway = gateway.split('/').next().unwrap();
            run(&format!(
                "ip -n {namespace} route add default via {gateway}"
            ));
        }
        host
    }

    /// Forgets neighbours, so that they have to be asked for again.
    fn forget_neighbours(&self) {
        run("ip neigh flush all");
        run(&format!("ip -n {} neigh flush all", self.namespace));
    }

    /// Runs `work` on this host.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = PathBuf::from("/run/netns").join(&self.namespace);
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(fs::File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    /// A socket of this host that answers each datagram with its sender's address, as text.
    fn echo_socket(&self) -> UdpSocket {
        self.run(|| UdpSocket::bind(("::", ECHO)).unwrap())
    }

    /// Sends a datagram from this host to an echo socket; the address that it was seen from.
    fn ask(&self, target: &str) -> Option<IpAddr> {
        self.run(|| ask(target, PATIENCE))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Err(complaint) = try_run(&format!("ip netns del {}", self.namespace)) {
            eprintln!("{}: {complaint}", self.namespace);
        }
    }
}

/// Sends a datagram from the calling thread's host to an echo socket; the address that it was seen
/// from, if the answer comes in time, and comes from whom it was sent to.
fn ask(target: &str, patience: Duration) -> Option<IpAddr> {
    let target = SocketAddr::new(ip(target), ECHO);
    let socket = UdpSocket::bind(if target.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    })
    .unwrap();
    socket.connect(target).ok()?;
    socket.set_read_timeout(Some(patience)).unwrap();
    socket.send(b"who am I?").ok()?;
    let mut answer = [0; 100];
    let len = socket.recv(&mut answer).ok()?;
    std::str::from_utf8(&answer[..len]).unwrap().parse().ok()
}

/// Runs `work` while these sockets answer, as [`Host::echo_socket`] says.
fn while_echoing<T>(sockets: &[UdpSocket], work: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for socket in sockets {
            scope.spawn(|| echo(socket, &done));
        }
        let _guard = SetWhenDropped(&done);
        work()
    })
}

fn echo(socket: &UdpSocket, done: &AtomicBool) {
    socket
        .set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    let mut datagram = [0; 2000];
    while !done.load(Ordering::Relaxed) {
        if let Ok((_, sender)) = socket.recv_from(&mut datagram) {
            let address = sender.ip().to_canonical();
            // The way back may be closed for now; the asker will notice.
            let _ = socket.send_to(address.to_string().as_bytes(), sender);
        }
    }
}

/// Ends the helpers even if the test panics.
struct SetWhenDropped<'a>(&'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A TUN without offloads, and its only queue.
fn open_tun(name: &str) -> TunQueue {
    TunDevice::open(name, 1, Offload::default())
        .unwrap()
        .queues
        .pop()
        .unwrap()
}

/// The next packet that comes to the TUN within the time, other than chatter.
fn receive(queue: &mut TunQueue, patience: Duration) -> Option<Frame> {
    let mut frame = Frame::new();
    loop {
        let timeout = PollTimeout::try_from(patience).unwrap();
        let mut fds = [PollFd::new(queue.readiness(), PollFlags::POLLIN)];
        if nix::poll::poll(&mut fds, timeout).unwrap() == 0 {
            return None;
        }
        if queue.receive(&mut frame).unwrap() {
            return Some(frame);
        }
    }
}

/// Everything that comes to the TUN until nothing more does.
fn receive_all(queue: &mut TunQueue) -> Vec<Frame> {
    std::iter::from_fn(|| receive(queue, BRIEFLY)).collect()
}
