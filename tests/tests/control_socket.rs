//! The control socket, from people with `nc -U` to clients that mean harm.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use scenarios::servers::Nginx;
use scenarios::{Lab, MIRROR1, SERVICE, Shuntd, shuntctl};
use serde_json::{Value, json};

/// A client of the socket that says whatever it likes.
struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    #[track_caller]
    fn connect(shuntd: &Shuntd) -> Self {
        let stream = UnixStream::connect(shuntd.socket()).expect("it listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("a timeout");
        stream
            .set_write_timeout(Some(Duration::from_secs(5)))
            .expect("a timeout");
        Self {
            stream: BufReader::new(stream),
        }
    }

    #[track_caller]
    fn say(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).expect("it listens");
    }

    /// The next answer; `None` when it has hung up.
    #[track_caller]
    fn hear(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).expect("an answer is JSON")),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => None,
            Err(error) => panic!("no answer: {error}"),
        }
    }

    #[track_caller]
    fn ask(&mut self, line: &str) -> Value {
        self.say(format!("{line}\n").as_bytes());
        self.hear().expect("an answer")
    }
}

/// What a client with good manners asks, and how long it waits for the answer.
#[track_caller]
fn time_of_an_answer(shuntd: &Shuntd) -> Duration {
    let began = Instant::now();
    let answer = Client::connect(shuntd).ask(r#"{"v":1,"id":7,"method":"version"}"#);
    assert_eq!(answer["id"], 7, "{answer}");
    assert!(answer["result"].is_object(), "{answer}");
    began.elapsed()
}

/// What is wrong with a request is said, with the request's own number if it had one, and the
/// connection goes on.
#[test]
fn wrong_requests_get_clear_errors() {
    let lab = Lab::new();
    let shuntd = Shuntd::start(&lab, "");
    let mut client = Client::connect(&shuntd);
    for (request, id, code) in [
        ("divert 100.100.100.100", Value::Null, "malformed"),
        ("{", Value::Null, "malformed"),
        ("[]", Value::Null, "malformed"),
        ("\u{0}\u{1}", Value::Null, "malformed"),
        (
            r#"{"v":1,"id":-1,"method":"list"}"#,
            Value::Null,
            "malformed",
        ),
        (
            r#"{"v":2,"id":1,"method":"list"}"#,
            json!(1),
            "unsupported_version",
        ),
        (
            r#"{"v":1,"id":2,"method":"destroy"}"#,
            json!(2),
            "unknown_method",
        ),
        (
            r#"{"v":1,"id":3,"method":"divert"}"#,
            json!(3),
            "invalid_params",
        ),
        (
            r#"{"v":1,"id":4,"method":"divert","params":{"service":"1.2.3.4:0","mirrors":["1.1.1.1"]}}"#,
            json!(4),
            "invalid_params",
        ),
    ] {
        let answer = client.ask(request);
        assert_eq!(answer["id"], id, "{request}: {answer}");
        assert_eq!(answer["error"]["code"], code, "{request}: {answer}");
        let message = answer["error"]["message"].as_str().expect("a sentence");
        assert!(message.len() > 10, "{request}: {answer}");
    }
    let answer = client.ask(r#"{"v":1,"id":5,"method":"list"}"#);
    assert_eq!(answer["result"]["diversions"], json!([]), "{answer}");
}

/// Requests may come in one heap, or byte by byte; each is answered, in order.
#[test]
fn requests_in_heaps_and_in_crumbs() {
    let lab = Lab::new();
    let shuntd = Shuntd::start(&lab, "");
    let mut client = Client::connect(&shuntd);
    let heap: String = (0..100)
        .map(|id| format!("{{\"v\":1,\"id\":{id},\"method\":\"list\"}}\n"))
        .collect();
    client.say(heap.as_bytes());
    for id in 0..100 {
        assert_eq!(client.hear().expect("an answer")["id"], id);
    }
    for byte in b"{\"v\":1,\"id\":100,\"method\":\"version\"}\r\n" {
        client.say(&[*byte]);
    }
    assert_eq!(client.hear().expect("an answer")["id"], 100);
}

/// A line of more than 1 MiB is refused as soon as it is too long, and doesn't fill the memory.
#[test]
fn a_line_without_end_is_refused() {
    let lab = Lab::new();
    let shuntd = Shuntd::start(&lab, "");
    let mut client = Client::connect(&shuntd);
    let chunk = vec![b' '; 64 << 10];
    let mut sent = 0;
    // It may hang up while we're still talking.
    while sent < 4 << 20 {
        match client.stream.get_mut().write(&chunk) {
            Ok(length) => sent += length,
            Err(error) if error.kind() == ErrorKind::BrokenPipe => break,
            Err(error) => panic!("{error}"),
        }
    }
    let answer = client.hear().expect("it says why before it hangs up");
    assert_eq!(answer["error"]["code"], "too_large", "{answer}");
    assert!(time_of_an_answer(&shuntd) < Duration::from_secs(1));
}

/// A client that goes away in the middle of a line costs nobody anything.
#[test]
fn half_a_line_and_gone() {
    let lab = Lab::new();
    let shuntd = Shuntd::start(&lab, "");
    for _ in 0..50 {
        Client::connect(&shuntd).say(br#"{"v":1,"id":1,"meth"#);
    }
    // One that hangs up its own side only still gets an answer, or the hang-up.
    let mut client = Client::connect(&shuntd);
    client.say(br#"{"v":1,"id":1,"method":"version"}"#);
    client
        .stream
        .get_mut()
        .shutdown(std::net::Shutdown::Write)
        .expect("a shutdown");
    let mut rest = String::new();
    client
        .stream
        .read_to_string(&mut rest)
        .expect("it hangs up soon");
    assert!(time_of_an_answer(&shuntd) < Duration::from_secs(1));
}

/// Clients that never read, and clients that never finish their line, hold up neither the others nor
/// the packets.
#[test]
fn clients_that_never_read_stall_nobody() {
    let lab = Lab::new();
    let _server = Nginx::start(&lab.mirror1);
    let shuntd = Shuntd::start(&lab, "");
    shuntd
        .ctl(&format!("divert {SERVICE}:80 {MIRROR1}"))
        .success();

    let mut rude: Vec<Client> = (0..8).map(|_| Client::connect(&shuntd)).collect();
    let requests = "{\"v\":1,\"id\":1,\"method\":\"stats\"}\n".repeat(1000);
    for client in &mut rude {
        let stream = client.stream.get_mut();
        stream
            .set_write_timeout(Some(Duration::from_millis(200)))
            .expect("a timeout");
        // Until neither end has room for more; or until it has had enough of us.
        for _ in 0..100 {
            if stream.write_all(requests.as_bytes()).is_err() {
                break;
            }
        }
    }
    let mut slow: Vec<Client> = (0..8).map(|_| Client::connect(&shuntd)).collect();
    for client in &mut slow {
        client.say(br#"{"v":1,"id":1,"#);
    }
    assert!(time_of_an_answer(&shuntd) < Duration::from_secs(1));
    let page = lab
        .client
        .run(&format!("curl -sS --max-time 2 http://{SERVICE}/"))
        .success();
    assert_eq!(page, "mirror 1\n");
    drop((rude, slow));
    assert!(time_of_an_answer(&shuntd) < Duration::from_secs(1));
}

/// Only its owner and the owner's group may speak to it; a socket that a dead daemon left is
/// replaced, and any other file is not.
#[test]
fn the_socket_file() {
    let lab = Lab::new();
    let path = Shuntd::default_socket(&lab);
    // A socket that nobody listens at.
    drop(UnixListener::bind(&path).expect("our directory"));
    assert!(path.exists());
    let shuntd = Shuntd::start(&lab, "");
    let metadata = fs::metadata(&path).expect("the socket");
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
    drop(shuntd);

    fs::write(&path, "precious").expect("our directory");
    let refused = Shuntd::refused(&lab, "");
    assert!(refused.stderr.contains("control.sock"), "{refused:#?}");
    assert_eq!(fs::read_to_string(&path).expect("still there"), "precious");
    fs::remove_file(&path).expect("our own file");

    // A living socket of something that isn't a daemon is somebody's as well.
    let somebody = UnixListener::bind(&path).expect("our directory");
    let refused = Shuntd::refused(&lab, "");
    assert!(refused.stderr.contains("control.sock"), "{refused:#?}");
    assert!(path.exists());
    drop(somebody);
}

/// `shuntctl` where no daemon is: exit code 3, where it looked, and how to start one.
#[test]
fn no_daemon_there() {
    let lab = Lab::new();
    let nowhere = lab.dir().join("nowhere.sock");
    let missing = shuntctl(&lab.rewriter, &nowhere, "list");
    let dead = lab.dir().join("dead.sock");
    drop(UnixListener::bind(&dead).expect("our directory"));
    let refused = shuntctl(&lab.rewriter, &dead, "list");
    for (finished, path) in [(missing, nowhere), (refused, dead)] {
        assert_eq!(finished.code(), 3, "{finished:#?}");
        assert!(
            finished.stderr.contains(&path.display().to_string()),
            "{finished:#?}"
        );
        assert!(finished.stderr.contains("shuntd"), "{finished:#?}");
    }
}

/// A client who watches gets updates, and can ask nothing else.
#[test]
fn nothing_can_follow_watch() {
    let lab = Lab::new();
    let shuntd = Shuntd::start(&lab, "");
    let mut client = Client::connect(&shuntd);
    let update = client.ask(r#"{"v":1,"id":5,"method":"watch"}"#);
    assert_eq!(
        (&update["id"], &update["result"]["groups"]),
        (&json!(5), &json!([]))
    );
    client.say(b"{\"v\":1,\"id\":6,\"method\":\"version\"}\n");
    let refusal = loop {
        let answer = client.hear().expect("a refusal comes first");
        if answer["error"] != Value::Null {
            break answer;
        }
    };
    assert_eq!(refusal["error"]["code"], "refused");
    assert_eq!(client.hear(), None);
}
