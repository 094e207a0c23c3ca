//! Servers that no one here wrote. Each says which host it is on: `mirror 1`, `mirror 2`, `origin`.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, TcpStream};
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::{Host, bracketed};
use crate::process::{Background, Finished, wait_until};

/// How many bytes [`Nginx`]'s file `/large` has.
pub const LARGE: usize = 8 << 20;

/// nginx at the ports 80 and 8080, over both families.
///
/// `/` answers with the host's title; `/once/` does so and closes the connection; `/large` is a
/// file of [`LARGE`] bytes; what is put to `/sent/` is kept.
#[derive(Debug)]
pub struct Nginx<'lab> {
    host: &'lab Host,
    program: Background,
}

/// One line of nginx's access log: the ends of a connection as the server saw them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visit {
    /// Who came.
    pub from: IpAddr,
    /// From which port.
    pub from_port: u16,
    /// To which of the server's addresses.
    pub to: IpAddr,
    /// To which of its ports.
    pub to_port: u16,
    /// What was asked for.
    pub path: String,
}

impl<'lab> Nginx<'lab> {
    /// Starts it on `host`, and waits until it listens.
    #[track_caller]
    pub fn start(host: &'lab Host) -> Self {
        let folder = host.file("nginx");
        for name in ["html", "tmp"] {
            fs::create_dir_all(folder.join(name)).expect("the scratch directory is ours");
        }
        fs::write(folder.join("html/index.html"), host.title() + "\n").expect("a small file");
        let large: Vec<u8> = (0..=250).cycle().take(LARGE).collect();
        fs::write(folder.join("html/large"), large).expect("room for a few MiB");

        let configuration = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/nginx.conf");
        let mut command = host.command("nginx");
        command
            .arg("-p")
            .arg(&folder)
            .args(["-c", configuration, "-e", "error.log"]);
        let program = host.spawn(&mut command, "nginx");
        host.wait_for_listener("tcp", 80);
        Self { host, program }
    }

    /// Kills it and its worker processes, so that nothing can tidy up but the kernel.
    #[track_caller]
    pub fn kill(self) {
        let pid = self.program.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
            .expect("it runs, and the kernel tells children");
        // First the one that would replace the others.
        self.program.stop(Signal::SIGKILL);
        for child in children.split_whitespace() {
            let child = Pid::from_raw(child.parse().expect("a number"));
            kill(child, Signal::SIGKILL).expect("it runs");
        }
        wait_until("nobody listens any more", || {
            self.host
                .run("ss -Hnlt sport = :80")
                .success()
                .is_empty()
                .then_some(())
        });
    }

    /// What its file `/large` holds.
    #[track_caller]
    pub fn large(&self) -> Vec<u8> {
        fs::read(self.host.file("nginx/html/large")).expect("written at its start")
    }

    /// Offers another file, by its name.
    #[track_caller]
    pub fn serve(&self, file: &Path) {
        let name = file.file_name().expect("a file");
        let page = self.host.file("nginx/html").join(name);
        fs::hard_link(file, page).expect("both are in the scratch directory");
    }

    /// What was put to `/sent/` under this name, which is forgotten.
    #[track_caller]
    pub fn take_sent(&self, name: &str) -> Option<Vec<u8>> {
        let file = self.host.file("nginx/html/sent").join(name);
        let bytes = fs::read(&file).ok()?;
        fs::remove_file(file).expect("it was there");
        Some(bytes)
    }

    /// Everyone who came, in order.
    #[track_caller]
    pub fn visits(&self) -> Vec<Visit> {
        let log = fs::read_to_string(self.host.file("nginx/access.log")).expect("nginx keeps one");
        log.lines()
            .map(|line| Visit::parse(line).unwrap_or_else(|| panic!("{line}")))
            .collect()
    }
}

impl Visit {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        Some(Self {
            from: words.next()?.parse().ok()?,
            from_port: words.next()?.parse().ok()?,
            to: words.next()?.parse().ok()?,
            to_port: words.next()?.parse().ok()?,
            path: words.next()?.to_owned(),
        })
    }
}

/// The port of [`echo_tcp`].
pub const ECHO_PORT: u16 = 7;

/// A TCP server at port 7 (socat and cat) that greets with the host's title and then says
/// everything back.
#[track_caller]
pub fn echo_tcp(host: &Host) -> Background {
    let mut command = host.command("socat");
    command.arg("TCP6-LISTEN:7,fork,reuseaddr,ipv6only=0,backlog=64");
    command.arg(format!("SYSTEM:echo {}; exec cat", host.title()));
    let program = host.spawn(&mut command, "socat");
    host.wait_for_listener("tcp", ECHO_PORT);
    program
}

/// A client's side of a connection with [`echo_tcp`].
#[derive(Debug)]
pub struct Conversation {
    stream: BufReader<TcpStream>,
    /// How the server introduced itself.
    pub greeting: String,
}

impl Conversation {
    /// Connects from `host` to the echo server that answers at `address`.
    #[track_caller]
    pub fn open(host: &Host, address: &str) -> Self {
        let stream = host.connect(&format!("{}:{ECHO_PORT}", bracketed(address)));
        let mut conversation = Self {
            stream: BufReader::new(stream),
            greeting: String::new(),
        };
        conversation.greeting = conversation.hear().expect("a greeting");
        conversation
    }

    /// Says a line, and gives what comes back.
    pub fn say(&mut self, line: &str) -> io::Result<String> {
        self.stream
            .get_mut()
            .write_all(format!("{line}\n").as_bytes())?;
        self.hear()
    }

    /// The next line that the server says.
    pub fn hear(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }
}

/// What dnsmasq knows as the IPv4 address of `who.shunt.test` on this host: the last byte tells
/// mirror 1 from mirror 2 from the origin.
pub fn dns_answer(host: &Host) -> &'static str {
    match host.name() {
        "mirror1" => "192.0.2.1",
        "mirror2" => "192.0.2.2",
        _ => "192.0.2.100",
    }
}

/// dnsmasq at port 53, UDP and TCP, which knows the name `who.shunt.test` (see [`dns_answer`]) and
/// the TXT record `long.shunt.test`, too long for a datagram without EDNS.
#[track_caller]
pub fn dnsmasq(host: &Host) -> Background {
    let mut command = host.command("dnsmasq");
    command.args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
    ]);
    command.args(["--user=root", "--pid-file=", "--log-facility=-"]);
    command.arg(format!("--host-record=who.shunt.test,{}", dns_answer(host)));
    let text = "x".repeat(200);
    command.arg(format!(
        "--txt-record=long.shunt.test,{}",
        [text.as_str(); 5].join(",")
    ));
    let program = host.spawn(&mut command, "dnsmasq");
    host.wait_for_listener("udp", 53);
    host.wait_for_listener("tcp", 53);
    program
}

/// Where [`nsd`] keeps its zone, which is `shunt.test`.
pub const ZONE: &str = "shunt.test";

/// NSD at port 53 of these addresses, UDP and TCP, with the zone [`ZONE`] as it stands in this text, signed
/// (ECDSA P-256, NSEC).
#[track_caller]
pub fn nsd(host: &Host, addresses: &[&str], zone: &str) -> Background {
    let folder = host.file("nsd");
    fs::create_dir_all(&folder).expect("the scratch directory is ours");
    fs::write(folder.join("zone"), zone).expect("a small file");
    let mut signing = host.command("bash");
    signing.args([
        "-euc",
        "cd $0
        key=$(ldns-keygen -r /dev/urandom -a ECDSAP256SHA256 shunt.test)
        ldns-signzone -o shunt.test -f signed zone $key",
    ]);
    Finished::of(signing.arg(&folder)).success();
    let listen: String = addresses
        .iter()
        .map(|address| format!("    ip-address: {address}\n"))
        .collect();
    let folder = folder.display();
    let configuration = format!(
        "server:
             server-count: 1
             username: root
             zonesdir: {folder}
             database: \"\"
             pidfile: {folder}/nsd.pid
             xfrdfile: {folder}/xfrd.state
             zonelistfile: {folder}/zone.list
             xfrdir: {folder}
             tcp-count: 200
             rrl-ratelimit: 0
         {listen}
         remote-control:
             control-enable: no
         zone:
             name: shunt.test
             zonefile: signed
        "
    );
    let path = host.file("nsd.conf");
    // An indentation is an end of a section to nobody.
    fs::write(&path, configuration).expect("a small file");
    let mut command = host.command("nsd");
    command.arg("-d").arg("-c").arg(&path);
    let program = host.spawn(&mut command, "nsd");
    host.wait_for_listener("udp", 53);
    host.wait_for_listener("tcp", 53);
    program
}

/// An NFS server (nfs-ganesha, version 3 over TCP) that exports the folder `tree` for reading, with its
/// ports 2049 and, for mounting, 20048. Servers of one folder know it by the same file handles.
#[track_caller]
pub fn nfs(host: &Host, tree: &Path) -> Background {
    let configuration = host.file("ganesha.conf");
    let tree = tree.display();
    let text = format!(
        "NFS_CORE_PARAM {{
            Protocols = 3; NFS_Port = 2049; MNT_Port = 20048;
            Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false;
        }}
        EXPORT {{
            Export_Id = 1; Path = {tree}; Pseudo = {tree};
            Protocols = 3; Transports = TCP; SecType = sys; Squash = none; Access_Type = RO;
            FSAL {{ Name = VFS; }}
        }}"
    );
    fs::write(&configuration, text).expect("a small file");
    // It registers with a portmapper of its own, whose socket is in /run. Both end with `unshare`.
    let mut command = host.command("unshare");
    command
        .args(["--mount", "--pid", "--fork", "--kill-child", "bash", "-euc"])
        .arg(format!(
            "mount -t tmpfs none /run
             mkdir /run/rpcbind /run/ganesha
             rpcbind
             exec ganesha.nfsd -F -f {} -L STDOUT -p /run/ganesha/pid",
            configuration.display()
        ));
    let program = host.spawn(&mut command, "ganesha.nfsd");
    host.wait_for_listener("tcp", 2049);
    program
}

/// An iperf3 server at its usual port 5201.
#[track_caller]
pub fn iperf3(host: &Host) -> Background {
    let program = host.start("iperf3 --server --forceflush");
    host.wait_for_listener("tcp", 5201);
    program
}
