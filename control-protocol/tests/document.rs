//! Keeps `docs/control-protocol.md` true: its examples are read with this crate, and its Python client
//! is run.

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::thread;

use control_protocol::{
    Answer, Call, ConnectionsQuery, DecisionsQuery, Divert, DivertResult, ErrorCode, Hold, List,
    Liveness, Method, Mirrors, NameImport, NameList, NameSet, NameUnset, PeekNames, Redirect,
    RedirectsQuery, ReleaseHold, Restore, Stats, Version, Watch, read_request,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

const DOCUMENT: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../docs/control-protocol.md"
));

/// The code blocks of this language.
fn blocks(language: &str) -> Vec<&'static str> {
    let opening = format!("```{language}\n");
    DOCUMENT
        .split(&opening)
        .skip(1)
        .map(|rest| rest.split_once("```").expect("each block is closed").0)
        .collect()
}

/// Checks that an answer's result is read and written as it stands in the document, so that the
/// document has all of its fields.
fn check_result<C: Call>(answer: &Answer)
where
    C::Result: Serialize + DeserializeOwned,
{
    let Ok(text) = &answer.outcome else { return };
    let result: C::Result = serde_json::from_str(text.get()).expect("the method's result");
    assert_eq!(
        serde_json::to_string(&result).expect("plain data"),
        text.get()
    );
}

#[test]
fn the_examples_are_right_and_there_is_one_for_each_method() {
    let mut shown = BTreeSet::new();
    let mut last = None;
    for block in blocks("json") {
        if block.contains("\"method\"") {
            let request = read_request(block.as_bytes()).expect(block);
            let without_empty = |line: &str| line.replace(",\"params\":{}", "");
            assert_eq!(without_empty(&request.to_line()), without_empty(block));
            shown.insert(request.method.name());
            last = Some(request);
            continue;
        }
        let answer = Answer::from_line(block.as_bytes()).expect(block);
        assert_eq!(answer.to_line(), block);
        let request = last.as_ref().expect("a request comes before its answer");
        assert_eq!(answer.id, Some(request.id));
        match request.method {
            Method::Divert(_) => check_result::<Divert>(&answer),
            Method::Redirect(_) => check_result::<Redirect>(&answer),
            Method::Redirects(_) => check_result::<RedirectsQuery>(&answer),
            Method::Restore(_) => check_result::<Restore>(&answer),
            Method::List(_) => check_result::<List>(&answer),
            Method::Connections(_) => check_result::<ConnectionsQuery>(&answer),
            Method::Stats(_) => check_result::<Stats>(&answer),
            Method::Watch(_) => check_result::<Watch>(&answer),
            Method::NameSet(_) => check_result::<NameSet>(&answer),
            Method::NameUnset(_) => check_result::<NameUnset>(&answer),
            Method::NameList(_) => check_result::<NameList>(&answer),
            Method::NameImport(_) => check_result::<NameImport>(&answer),
            Method::PeekNames(_) => check_result::<PeekNames>(&answer),
            Method::Hold(_) => check_result::<Hold>(&answer),
            Method::Release(_) => check_result::<ReleaseHold>(&answer),
            Method::Liveness(_) => check_result::<Liveness>(&answer),
            Method::Decisions(_) => check_result::<DecisionsQuery>(&answer),
            Method::Mirrors(_) => check_result::<Mirrors>(&answer),
            Method::Version(_) => check_result::<Version>(&answer),
        }
    }
    assert_eq!(shown, Method::NAMES.iter().copied().collect());
}

#[test]
fn each_method_and_each_error_code_is_described() {
    for name in Method::NAMES {
        assert!(DOCUMENT.contains(&format!("\n### {name}\n")), "{name}");
    }
    for code in [
        ErrorCode::Malformed,
        ErrorCode::TooLarge,
        ErrorCode::UnsupportedVersion,
        ErrorCode::UnknownMethod,
        ErrorCode::InvalidParams,
        ErrorCode::Refused,
        ErrorCode::Held,
        ErrorCode::Internal,
    ] {
        assert!(DOCUMENT.contains(&format!("\n| `{code}` | ")), "{code}");
    }
}

#[test]
fn the_python_client_works() {
    let [script] = blocks("python")[..] else {
        panic!("one client")
    };
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("socket");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let daemon = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut line = Vec::new();
        BufReader::new(&stream)
            .read_until(b'\n', &mut line)
            .expect("a request");
        let request = read_request(&line).expect("a right request");
        let result = DivertResult {
            replaced: true,
            held: false,
        };
        let answer = Answer::ok(request.id, &result);
        stream
            .write_all(answer.to_line().as_bytes())
            .expect("the client reads");
        request.method
    });

    let output = match Command::new("python3")
        .arg("-c")
        .arg(script)
        .arg(&socket)
        .output()
    {
        Ok(output) => output,
        // The crate doesn't need Python; who hasn't got it can't check this example.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => panic!("{error}"),
    };
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "{'replaced': True, 'held': False}\n"
    );
    assert_eq!(
        daemon.join().expect("the daemon is content").name(),
        "divert"
    );
}
