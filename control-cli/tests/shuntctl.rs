//! `shuntctl` as a shell meets it: exit codes, what goes to which stream, and the form it has there.
//!
//! The daemon in these tests only reads requests and says lines that it was given. What the real one
//! does is tested by the scenarios in the workspace's `tests` folder.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};

use assert_cmd::Command;
use control_protocol::{
    Answer, ConnectionInfo, ConnectionState, ConnectionsQuery, ConnectionsResult, Cursor, Decision,
    DecisionsQuery, DecisionsResult, DivertResult, ErrorCode, Method, Protocol, Request,
    RestoreResult, TcpMove, Timing, Traffic, VersionResult, read_request,
};

/// `shuntctl` without the environment's wishes, asking the daemon at this path.
fn shuntctl(socket: &std::path::Path) -> Command {
    let mut command = Command::cargo_bin("shuntctl").expect("it is built");
    command.env_clear().arg("--socket").arg(socket);
    command
}

/// A daemon that takes one client and gives one of these answers to each of its requests.
struct Daemon {
    directory: tempfile::TempDir,
    requests: JoinHandle<Vec<Request>>,
}

impl Daemon {
    fn answering(answers: Vec<Answer>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(directory.path().join("socket")).expect("a socket");
        let requests = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let lines = BufReader::new(stream.try_clone().expect("a second handle")).lines();
            let mut requests = Vec::new();
            for (line, answer) in lines.zip(answers) {
                let line = line.expect("a line");
                requests.push(read_request(line.as_bytes()).expect("a right request"));
                stream
                    .write_all(answer.to_line().as_bytes())
                    .expect("the client reads");
            }
            requests
        });
        Self {
            directory,
            requests,
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// What the one request asked for.
    fn method(self) -> Method {
        let [request] = <[Request; 1]>::try_from(self.requests()).expect("one request");
        request.method
    }

    fn requests(self) -> Vec<Request> {
        self.requests.join().expect("the daemon is content")
    }
}

fn connection(last: u8) -> ConnectionInfo {
    ConnectionInfo {
        protocol: Protocol::Tcp,
        client: ([10, 0, 0, last], 40_000).into(),
        service: ([10, 1, 0, 1], 80).into(),
        proxy: ([10, 3, 0, 1], 513).into(),
        mirror: ([10, 2, 0, 2], 8080).into(),
        state: ConnectionState::Established,
        idle_seconds: 65,
        forward: Traffic {
            packets: 12,
            bytes: 1_234,
        },
        reverse: Traffic {
            packets: 10,
            bytes: 1_234_567,
        },
        age_seconds: 3700,
        timing: Timing {
            client_rtt_us: Some(20_000),
            mirror_rtt_us: Some(300),
            client_retransmissions: 1,
            mirror_retransmissions: 2,
            ..Timing::default()
        },
    }
}

#[test]
fn a_divert_is_asked_for_as_it_was_typed() {
    let daemon = Daemon::answering(vec![Answer::ok(
        1,
        &DivertResult {
            replaced: false,
            held: false,
        },
    )]);
    shuntctl(&daemon.socket())
        .args([
            "divert",
            "10.1.0.1:80/tcp",
            "10.2.0.2:8080",
            "10.2.0.3:8080*3",
        ])
        .args(["--from", "10.0.0.0/8"])
        .assert()
        .success()
        .stdout("replaced\tfalse\nheld\tfalse\n")
        .stderr("");
    let Method::Divert(divert) = daemon.method() else {
        panic!("another method")
    };
    assert_eq!(divert.service.to_string(), "10.1.0.1:80/tcp");
    assert_eq!(divert.mirrors[1].weight, 3);
    assert_eq!(
        divert.from.map(|from| from.to_string()).as_deref(),
        Some("10.0.0.0/8")
    );
}

#[test]
fn a_redirect_splices_unless_told_otherwise() {
    for (arguments, tcp) in [
        (&[][..], TcpMove::Splice),
        (&["--tcp", "rewrite"], TcpMove::Rewrite),
        (&["--tcp", "reset"], TcpMove::Reset),
    ] {
        let refusal = Answer::error(Some(1), ErrorCode::Refused, "not now");
        let daemon = Daemon::answering(vec![refusal]);
        shuntctl(&daemon.socket())
            .args([
                "redirect",
                "10.1.0.1:80",
                "10.2.0.2",
                "--from-mirror",
                "10.2.0.9:80",
            ])
            .args(arguments)
            .assert()
            .code(1);
        let Method::Redirect(redirect) = daemon.method() else {
            panic!("another method")
        };
        assert_eq!(redirect.tcp, tcp);
        assert_eq!(
            redirect.from_mirror.expect("given").to_string(),
            "10.2.0.9:80"
        );
    }
}

#[test]
fn a_share_is_one_of_a_mirror_s_connections() {
    let refusal = Answer::error(Some(1), ErrorCode::Refused, "not now");
    let daemon = Daemon::answering(vec![refusal]);
    shuntctl(&daemon.socket())
        .args(["redirect", "10.1.0.1:80", "10.2.0.2", "10.2.0.3"])
        .args(["--from-mirror", "10.2.0.3", "--share", "40%"])
        .assert()
        .code(1);
    let Method::Redirect(redirect) = daemon.method() else {
        panic!("another method")
    };
    assert_eq!(redirect.share.map(|share| share.get()), Some(40));
    assert!(!redirect.automatic);

    for wrong in [
        &["--share", "40%"][..],
        &["--from-mirror", "10.2.0.3", "--share", "0"],
    ] {
        shuntctl(std::path::Path::new("/nowhere"))
            .args(["redirect", "10.1.0.1:80", "10.2.0.2", "10.2.0.3"])
            .args(wrong)
            .assert()
            .code(2);
    }
}

#[test]
fn the_monitor_is_asked_on_its_own_socket() {
    let decision = Decision {
        number: 4,
        at: "2026-11-24T15:04:05Z".to_owned(),
        age_ms: 5210,
        service: Some("10.1.0.1:80/tcp".parse().expect("a service")),
        clients: "everyone".to_owned(),
        kind: "failover".to_owned(),
        reason: "b is silent".to_owned(),
        from: Vec::new(),
        to: Vec::new(),
        cost_before_ms: None,
        cost_after_ms: None,
        improvement_percent: None,
        moved: 3,
        instructions: Vec::new(),
        errors: Vec::new(),
    };
    let result = DecisionsResult {
        decisions: vec![decision],
    };
    let monitor = Daemon::answering(vec![Answer::ok(1, &result)]);
    let nowhere = std::path::Path::new("/nowhere");
    shuntctl(nowhere)
        .env("SHUNT_MONITOR", monitor.socket())
        .args(["decisions", "--service", "10.1.0.1:80/tcp", "--limit", "5"])
        .assert()
        .success()
        .stdout(
            "4\t2026-11-24T15:04:05Z\t10.1.0.1:80/tcp\teveryone\tfailover\t-\t-\t-\t-\t-\t3\tb is \
             silent\t-\t-\n",
        );
    let Method::Decisions(query) = monitor.method() else {
        panic!("another method")
    };
    assert_eq!(query.limit, Some(5));

    // A daemon that answers other methods says which one answers these.
    let method = DecisionsQuery::default().into();
    let elsewhere = Answer::elsewhere(1, &method, control_protocol::Daemon::Rewriter);
    let daemon = Daemon::answering(vec![elsewhere]);
    shuntctl(nowhere)
        .args(["decisions", "--monitor"])
        .arg(daemon.socket())
        .assert()
        .code(1)
        .stderr(
            "shuntctl: shuntd doesn't answer `decisions`; shunt-monitor does, on its own socket, which \
             is usually /run/shunt/monitor.sock\n",
        );

    shuntctl(nowhere)
        .args(["mirrors", "--monitor", "/nowhere/monitor.sock"])
        .assert()
        .code(3)
        .stderr(
            "shuntctl: nobody listens on /nowhere/monitor.sock: No such file or directory (os error 2)\n\
             shuntctl: start shunt-monitor, or say where it listens with --monitor PATH or \
             SHUNT_MONITOR\n",
        );
}

#[test]
fn a_refusal_is_told_on_standard_error() {
    let refusal = Answer::error(Some(1), ErrorCode::Refused, "10.1.0.1:80 is not diverted");
    let daemon = Daemon::answering(vec![refusal]);
    shuntctl(&daemon.socket())
        .args(["restore", "10.1.0.1:80"])
        .assert()
        .code(1)
        .stdout("")
        .stderr("shuntctl: 10.1.0.1:80 is not diverted\n");
}

#[test]
fn a_refused_list_leaves_no_beginning_of_a_document() {
    let refusal = Answer::error(Some(1), ErrorCode::Refused, "not now");
    let daemon = Daemon::answering(vec![refusal]);
    shuntctl(&daemon.socket())
        .args(["connections", "--json"])
        .assert()
        .code(1)
        .stdout("");
}

#[test]
fn connections_come_from_as_many_pages_as_there_are() {
    let next = Cursor {
        worker: 0,
        slot: 17,
    };
    let page = |id, last, next| {
        let connections = vec![connection(last)];
        Answer::ok(id, &ConnectionsResult { connections, next })
    };
    let pages = vec![page(1, 1, Some(next)), page(2, 2, None)];

    let daemon = Daemon::answering(pages.clone());
    shuntctl(&daemon.socket())
        .args(["connections", "--service", "10.1.0.1:80"])
        .assert()
        .success()
        .stdout(
            "tcp\t10.0.0.1:40000\t10.1.0.1:80\t10.3.0.1:513\t10.2.0.2:8080\testablished\t65\t12\t\
             1234\t10\t1234567\t3700\t20000\t300\t-\t3\n\
             tcp\t10.0.0.2:40000\t10.1.0.1:80\t10.3.0.1:513\t10.2.0.2:8080\testablished\t65\t12\t\
             1234\t10\t1234567\t3700\t20000\t300\t-\t3\n",
        );
    let service = Some("10.1.0.1:80".parse().expect("a service"));
    let query = |after| {
        Method::Connections(ConnectionsQuery {
            after,
            limit: None,
            service,
        })
    };
    assert_eq!(
        daemon.requests(),
        [
            Request {
                id: 1,
                method: query(None)
            },
            Request {
                id: 2,
                method: query(Some(next))
            }
        ]
    );

    let daemon = Daemon::answering(pages);
    let output = shuntctl(&daemon.socket())
        .args(["connections", "--json"])
        .output();
    let stdout = output.expect("it runs").stdout;
    let result: ConnectionsResult = serde_json::from_slice(&stdout).expect("one document");
    assert_eq!(result.connections, [connection(1), connection(2)]);
}

#[test]
fn pages_that_turn_in_a_circle_are_given_up() {
    let next = Some(Cursor {
        worker: 0,
        slot: 17,
    });
    let page = |id| {
        Answer::ok(
            id,
            &ConnectionsResult {
                connections: Vec::new(),
                next,
            },
        )
    };
    let daemon = Daemon::answering(vec![page(1), page(2)]);
    shuntctl(&daemon.socket())
        .arg("connections")
        .assert()
        .code(4)
        .stderr("shuntctl: the daemon's list has no end\n");
}

#[test]
fn json_is_the_result_as_it_was_sent_wherever_the_option_stands() {
    for arguments in [["--json", "version"], ["version", "--json"]] {
        let result = VersionResult {
            version: "0.1.0".to_owned(),
            protocol: 1,
            egress: "tun".to_owned(),
            offload: "tso+uso".to_owned(),
            workers: 2,
            tun: "shunt0".to_owned(),
            pid: 4711,
        };
        let daemon = Daemon::answering(vec![Answer::ok(1, &result)]);
        shuntctl(&daemon.socket()).args(arguments).assert().success().stdout(concat!(
            r#"{"version":"0.1.0","protocol":1,"egress":"tun","offload":"tso+uso","workers":2,"#,
            r#""tun":"shunt0","pid":4711}"#,
            "\n"
        ));
    }
}

#[test]
fn the_environment_says_where_the_daemon_is_unless_the_command_line_does() {
    let daemon = Daemon::answering(vec![Answer::ok(
        1,
        &RestoreResult {
            remaining: 3,
            held: false,
        },
    )]);
    Command::cargo_bin("shuntctl")
        .expect("it is built")
        .env("SHUNT_SOCKET", daemon.socket())
        .args(["restore", "10.1.0.1"])
        .assert()
        .success()
        .stdout("remaining\t3\nheld\tfalse\n");
}

#[test]
fn without_a_daemon_it_says_where_it_looked_and_what_to_do() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("socket");
    shuntctl(&socket)
        .arg("list")
        .assert()
        .code(3)
        .stdout("")
        .stderr(format!(
            "shuntctl: nobody listens on {}: No such file or directory (os error 2)\n\
         shuntctl: start the daemon as root with `shuntd --proxy ADDR`, or say where it listens \
         with --socket PATH or SHUNT_SOCKET\n",
            socket.display()
        ));
}

#[test]
fn a_daemon_that_goes_away_leaves_the_matter_open() {
    let daemon = Daemon::answering(Vec::new());
    shuntctl(&daemon.socket())
        .args(["restore", "10.1.0.1"])
        .assert()
        .code(4)
        .stderr(
            "shuntctl: the daemon closed the connection without an answer\n\
         shuntctl: what was asked may or may not have been done\n",
        );
}

#[test]
fn a_wrong_command_line_is_explained_before_anybody_is_asked() {
    let nowhere = PathBuf::from("/nowhere");
    for (arguments, explanation) in [
        (
            &["divert", "www.example.org", "10.2.0.2"][..],
            "names are not looked up",
        ),
        (
            &["divert", "10.1.0.1:0", "10.2.0.2"],
            "expected a number from 1 to 65535",
        ),
        (&["divert", "10.1.0.1"], "<MIRROR>..."),
        (
            &["divert", "10.1.0.1", "10.2.0.2/tcp"],
            "write it after the service",
        ),
        (
            &["divert", "10.1.0.1", "10.2.0.2", "--from", "10.1.0.5/8"],
            "write 10.0.0.0/8",
        ),
        (
            &["redirect", "10.1.0.1", "10.2.0.2", "--tcp", "move"],
            "[possible values: ",
        ),
        (&["restart"], "unrecognized subcommand"),
        (&[], "Usage: shuntctl"),
    ] {
        let assert = shuntctl(&nowhere)
            .args(arguments)
            .assert()
            .code(2)
            .stdout("");
        let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(stderr.contains(explanation), "{arguments:?}: {stderr}");
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_problem() {
    let connections = (0..200).map(connection).collect();
    let page = ConnectionsResult {
        connections,
        next: None,
    };
    let daemon = Daemon::answering(vec![Answer::ok(1, &page)]);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = std::process::Command::new(assert_cmd::cargo::cargo_bin("shuntctl"))
        .arg("--socket")
        .arg(daemon.socket())
        .arg("connections")
        .stdout(writer)
        .output()
        .expect("it runs");
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

/// What `shuntctl` prints with these arguments.
fn help(arguments: &[&str]) -> String {
    let mut command = Command::cargo_bin("shuntctl").expect("it is built");
    let output = command
        .env_clear()
        .args(arguments)
        .output()
        .expect("it runs");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn help_shows_the_commands() {
    insta::assert_snapshot!(help(&["-h"]), @r"
    Tell shuntd, the packet rewriter, where connections go

    Usage: shuntctl [OPTIONS] <COMMAND>

    Commands:
      divert       Send new connections to other servers; existing ones stay where they are
      redirect     Send new and existing connections to other servers
      redirects    Show what has become of the latest redirects, or have one wait no longer
      restore      Remove a diversion; existing connections stay on their mirror until they end
      peek-names   Say for which names DNS queries follow a diversion that was set with --peek
      hold         Have programs that decide by themselves, as the monitor does, leave a service alone
      release      Let programs decide about a service again
      list         List the diversions with their mirrors, one line a mirror
      connections  List the connections
      stats        Show what the workers have counted since the daemon started
      watch        Show what is measured of the connections, once a second
      name         Say which names the naming server answers, and with what
      liveness     Show the mirrors' vital signs: which are heard, and which leave something unanswered
      decisions    Show what the monitor has decided lately, and why
      mirrors      Show what the monitor thinks of the mirrors
      version      Show which daemon answers, and how it was started
      help         Print this message or the help of the given subcommand(s)

    Options:
          --json           Print the result as one JSON object
          --socket <PATH>  The daemon's control socket [env: SHUNT_SOCKET] [default:
                           /run/shunt/control.sock]
      -h, --help           Print help (see more with '--help')
      -V, --version        Print version
    ");
}

#[test]
fn the_help_of_a_command_explains_its_values() {
    insta::assert_snapshot!(help(&["redirect", "-h"]), @r"
    Send new and existing connections to other servers

    Usage: shuntctl redirect [OPTIONS] <SERVICE> <MIRROR>...

    Arguments:
      <SERVICE>    The address that clients talk to
      <MIRROR>...  The servers that will really answer

    Options:
          --from <CIDR>           Only for these clients
          --tcp <HOW>             What becomes of established TCP connections [default: splice]
                                  [possible values: splice, rewrite, reset]
          --from-mirror <MIRROR>  Only the connections that are on this mirror now, IP or IP:PORT
          --share <PERCENT>       Move only this share of the connections on --from-mirror, such as 40%
          --json                  Print the result as one JSON object
          --socket <PATH>         The daemon's control socket [env: SHUNT_SOCKET] [default:
                                  /run/shunt/control.sock]
      -h, --help                  Print help (see more with '--help')

    Splicing:
          --within <TIME>       How long to wait until connections can be spliced [default: 30s]
          --quiet <TIME|never>  Splice a connection on which nothing has happened for this long, or
                                never [default: 5s]
          --then <WHAT>         What becomes of connections that couldn't be spliced in time [default:
                                leave] [possible values: leave, reset]
          --otherwise <WHAT>    What becomes of connections that can't be spliced: TLS, SSH, WebSockets
                                and others [default: leave] [possible values: leave, reset]
          --release <HOW>       How the old mirror's side is ended [default: fin] [possible values: fin,
                                rst]
          --force               Splice connections whatever they are used for
          --now                 The old mirror is dead: wait for nothing, and reset at once what can't
                                be spliced
          --no-wait             Don't wait for connections to be spliced; `redirects` tells what becomes
                                of them

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
    Quote a MIRROR with a weight, or the shell may take the star for a pattern.
    ");
}

#[test]
fn the_long_help_gives_examples_and_the_exit_codes() {
    let help = help(&["--help"]);
    for line in [
        "    shuntctl list\n",
        "  3  no daemon is there, or you may not talk to it\n",
    ] {
        assert!(help.contains(line), "{help}");
    }
}
