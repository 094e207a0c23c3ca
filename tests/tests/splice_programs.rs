//! Programs that people run, while their TCP connections are moved, or refused to be.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use control_protocol::{Outcome, RedirectResult, RedirectsResult};
use scenarios::servers::{self, Nginx};
use scenarios::{Background, Host, Lab, MIRROR1, MIRROR2, SERVICE, Shuntd, wait_until};

/// How long a program may take whose connections are moved meanwhile.
const LONG: Duration = Duration::from_secs(100);

/// A file of a gibibyte in `folder`, which no two bytes of are alike but by chance, and its checksum.
#[track_caller]
fn gibibyte(host: &Host, folder: &Path) -> (PathBuf, String) {
    let file = folder.join("gibibyte");
    host.shell(&format!("head -c 1G /dev/urandom >{}", file.display()))
        .success();
    let sum = checksum(host, &file);
    (file, sum)
}

#[track_caller]
fn checksum(host: &Host, file: &Path) -> String {
    let said = host.run(&format!("sha256sum {}", file.display())).success();
    said.split(' ').next().expect("a checksum").to_owned()
}

/// What has become of a redirect's connections by now.
#[track_caller]
fn outcome(shuntd: &Shuntd<'_>, redirect: u64) -> Outcome {
    let result: RedirectsResult = shuntd.ask(&format!("redirects {redirect}"));
    result.redirects[0].outcome.clone()
}

/// The patent's own example: a file system on two servers. A file of a gibibyte is read over NFS, version 3,
/// while its connection is moved twenty times: its checksum is right, and it was mounted once.
#[test]
fn a_file_is_read_over_nfs() {
    if std::env::var_os("SHUNT_IN_USERNS").is_some() {
        // The server opens files by their handles, which only the machine's own root may.
        return;
    }
    let lab = Lab::with_offloads();
    let tree = lab.dir().join("tree");
    fs::create_dir(&tree).expect("a folder of our own");
    let (file, sum) = gibibyte(&lab.client, &tree);
    let _servers = [&lab.mirror1, &lab.mirror2].map(|mirror| {
        // So that reading takes some seconds.
        mirror
            .run("tc qdisc add dev eth0 root tbf rate 1gbit burst 1mb latency 50ms")
            .success();
        servers::nfs(mirror, &tree)
    });
    for flags in ["", "--no-offload"] {
        let shuntd = Shuntd::start(&lab, flags);
        shuntd.ctl(&format!("divert {SERVICE} {MIRROR1}")).success();
        let copy = lab.client.file("copy");
        let reader = lab.client.start(&format!(
            "nfs-cp nfs://{SERVICE}{}?version=3&nfsport=2049&mountport=20048 {}",
            file.display(),
            copy.display()
        ));
        wait_until("the file is being read", || {
            (shuntd.counters().received.bytes > 20_000_000).then_some(())
        });
        for round in 0..20 {
            let mirror = [MIRROR2, MIRROR1][round % 2];
            let redirect: RedirectResult =
                shuntd.ask(&format!("redirect {SERVICE}:2049/tcp {mirror}"));
            let outcome = redirect.outcome;
            assert_eq!(outcome.moved, 1, "{flags}, {round}: {outcome:?}");
            assert_eq!(outcome.reset, 0, "{flags}, {round}: {outcome:?}");
        }
        let (status, report) = reader.wait(LONG);
        assert!(status.success(), "{flags}: {report}");
        assert_eq!(checksum(&lab.client, &copy), sum, "{flags}");
        assert_eq!(shuntd.counters().moved, 20, "{flags}");
        // The reader wouldn't write over it.
        fs::remove_file(copy).expect("a file of ours");
    }
}

/// A download of a gibibyte is finished first; what the client asks for next comes from the new mirror, on the
/// same connection.
#[test]
fn curl_downloads_a_gibibyte() {
    let lab = Lab::with_offloads();
    let nginx = [&lab.mirror1, &lab.mirror2].map(Nginx::start);
    let (file, sum) = gibibyte(&lab.client, lab.dir());
    for server in &nginx {
        server.serve(&file);
    }
    for flags in ["", "--no-offload"] {
        let shuntd = Shuntd::start(&lab, flags);
        shuntd.ctl(&format!("divert {SERVICE} {MIRROR1}")).success();
        let (copy, next) = (lab.client.file("copy"), lab.client.file("next"));
        let curl = lab.client.start(&format!(
            "curl -sS -w %{{local_port}},%{{num_connects}}; --limit-rate 400M \
             -o {} http://{SERVICE}/gibibyte -o {} http://{SERVICE}/",
            copy.display(),
            next.display()
        ));
        wait_until("the download has begun", || {
            (shuntd.counters().received.bytes > 10_000_000).then_some(())
        });
        let redirect: RedirectResult = shuntd.ask(&format!(
            "redirect {SERVICE} {MIRROR2} --quiet 500ms --no-wait"
        ));
        for _ in 0..10 {
            thread::sleep(Duration::from_millis(100));
            let outcome = outcome(&shuntd, redirect.id);
            assert_eq!((outcome.waiting, outcome.moved), (1, 0), "{flags}");
        }
        let (status, report) = curl.wait(LONG);
        assert!(status.success(), "{flags}: {report}");
        // From one port, and connected once.
        let (first, second) = report.trim_end_matches(';').split_once(';').expect("two");
        assert_eq!(first.replace(",1", ",0"), second, "{flags}: {report}");
        assert_eq!(checksum(&lab.client, &copy), sum, "{flags}");
        assert_eq!(fs::read(&next).expect("it was asked for"), b"mirror 2\n");
        assert_eq!(outcome(&shuntd, redirect.id).moved, 1, "{flags}");
    }
}

/// Files are sent to and fetched from mirrors that change, over links that lose packets and change their order:
/// no byte differs at the other end, and no connection gets stuck.
#[test]
fn bad_links_corrupt_nothing() {
    const FILES: usize = 6;
    let lab = Lab::with_offloads();
    let nginx = [&lab.mirror1, &lab.mirror2].map(Nginx::start);
    let (large, sent) = (nginx[0].large(), lab.client.file("sent"));
    lab.client
        .shell(&format!("head -c 300000 /dev/urandom >{}", sent.display()))
        .success();
    for flags in ["", "--no-offload"] {
        let shuntd = Shuntd::start(&lab, flags);
        shuntd.ctl(&format!("divert {SERVICE} {MIRROR1}")).success();
        // Every curl has one connection for all that it does, in turn there and back.
        let transfers = |client: usize| {
            let both_ways = |number: usize| {
                format!(
                    "-sS --fail -T {sent} http://{SERVICE}/sent/{client}.{number} --next \
                     -sS --fail -o {got}.{number} http://{SERVICE}/large",
                    sent = sent.display(),
                    got = lab.client.file(&format!("got.{client}")).display()
                )
            };
            let transfers: Vec<String> = (0..FILES).map(both_ways).collect();
            transfers.join(" --next ")
        };
        lab.make_links_bad();
        let mut curls: Vec<Background> = (0..4)
            .map(|client| lab.client.start(&format!("curl {}", transfers(client))))
            .collect();
        let mut rounds = 0;
        while curls.iter_mut().any(|curl| curl.status().is_none()) {
            let mirror = [MIRROR2, MIRROR1][rounds % 2];
            shuntd
                .ctl(&format!("redirect {SERVICE} {mirror} --no-wait"))
                .success();
            rounds += 1;
            thread::sleep(Duration::from_millis(300));
            assert!(rounds < 600, "{flags}: stuck");
        }
        lab.make_links_good();
        for curl in curls {
            // It ends with what the last transfer ended with, but speaks of every one that failed.
            let (status, report) = curl.wait(LONG);
            assert!(status.success() && report.is_empty(), "{flags}: {report}");
        }
        let counters = shuntd.counters();
        assert!(counters.moved > 8 && counters.reset == 0, "{counters:?}");
        let original = fs::read(&sent).expect("a file of ours");
        let mut uploads = 0;
        for client in 0..4 {
            for number in 0..FILES {
                let got = lab.client.file(&format!("got.{client}.{number}"));
                assert!(fs::read(got).expect("a file") == large, "{flags}: damaged");
                for server in &nginx {
                    let there = server.take_sent(&format!("{client}.{number}"));
                    uploads += usize::from(there.is_some());
                    assert!(
                        there.is_none_or(|bytes| bytes == original),
                        "{flags}: damaged"
                    );
                }
            }
        }
        assert_eq!(uploads, 4 * FILES, "{flags}");
    }
}

/// Conversations with keys or state of their own are refused by name, and go on to their end undisturbed.
#[test]
fn real_conversations_with_state_are_refused() {
    let lab = Lab::with_offloads();
    let nginx = Nginx::start(&lab.mirror1);
    let large = nginx.large();
    let folder = lab.mirror1.file("keys");
    fs::create_dir(&folder).expect("a folder of our own");
    let folder = folder.display();
    lab.mirror1
        .shell(&format!(
            "ssh-keygen -q -t ed25519 -N '' -f {folder}/host
             ssh-keygen -q -t ed25519 -N '' -f {folder}/client
             printf '%s\\n' 'HostKey {folder}/host' 'AuthorizedKeysFile {folder}/client.pub' \
                'StrictModes no' 'UsePAM no' 'PidFile none' >{folder}/sshd
             openssl req -x509 -newkey ed25519 -nodes -subj /CN=mirror -keyout {folder}/key \
                -out {folder}/certificate 2>&1
             mkdir -p /run/sshd"
        ))
        .success();
    let configuration = format!(
        "daemon off; user root; pid state.pid;
        events {{ worker_connections 100; }}
        http {{
            access_log off;
            client_body_temp_path tmp/body; proxy_temp_path tmp/proxy; scgi_temp_path tmp/scgi;
            fastcgi_temp_path tmp/fastcgi; uwsgi_temp_path tmp/uwsgi;
            server {{ listen 8001 http2; root html; }}
            server {{
                listen 8002 ssl; root html;
                ssl_certificate {folder}/certificate; ssl_certificate_key {folder}/key;
            }}
        }}"
    );
    let nginx_folder = lab.mirror1.file("nginx");
    fs::write(nginx_folder.join("state.conf"), configuration).expect("a small file");
    let _servers = [
        lab.mirror1
            .start(&format!("/usr/sbin/sshd -D -e -f {folder}/sshd")),
        lab.mirror1.start("aiosmtpd -n -l 0.0.0.0:25"),
        lab.mirror1.start("websocketd --port=8000 cat"),
        lab.mirror1.start(&format!(
            "nginx -p {} -c state.conf -e state.log",
            nginx_folder.display()
        )),
    ];
    for port in [22, 25, 8000, 8001, 8002] {
        lab.mirror1.wait_for_listener("tcp", port);
    }
    let got = lab.client.file("got");
    let got = got.display();
    let mail = lab.client.file("mail");
    fs::write(
        &mail,
        "Subject: hello\r\n\r\n".to_owned() + &"a line of a mail\r\n".repeat(20_000),
    )
    .expect("a file of our own");
    // Each takes two or three seconds, and leaves in `got` what shows that all went well.
    let conversations = [
        (
            8002,
            "tls",
            format!("curl -sSk --http1.1 --limit-rate 3M https://{SERVICE}:8002/large -o {got}"),
        ),
        (
            8001,
            "http2",
            format!(
                "curl -sS --http2-prior-knowledge --limit-rate 3M http://{SERVICE}:8001/large -o {got}"
            ),
        ),
        (
            8000,
            "upgraded",
            format!(
                "(sleep 1; echo one; sleep 2; echo two; sleep 0.5) | \
                 /usr/bin/python3 -m websockets ws://{SERVICE}:8000/ >{got} 2>&1; grep -q 'two' {got}"
            ),
        ),
        (
            22,
            "ssh",
            format!(
                "ssh -F none -i {folder}/client -o UserKnownHostsFile=/dev/null -o BatchMode=yes \
                 -o StrictHostKeyChecking=no root@{SERVICE} 'sleep 3; echo done' >{got}; grep -q done {got}"
            ),
        ),
        (
            25,
            "server_first",
            format!(
                "curl -sS --limit-rate 150k smtp://{SERVICE}:25 --mail-from a@example.org \
                 --mail-rcpt b@example.org -T {}",
                mail.display()
            ),
        ),
    ];
    for (port, reason, code) in conversations {
        for flags in ["", "--no-offload"] {
            let shuntd = Shuntd::start(&lab, flags);
            shuntd.ctl(&format!("divert {SERVICE} {MIRROR1}")).success();
            let mut command = lab.client.command("bash");
            command.args(["-c", &code]);
            thread::scope(|scope| {
                let client = scope.spawn(|| command.output().expect("bash is there"));
                wait_until("both have spoken", || {
                    let counters = shuntd.counters();
                    (counters.translated_reverse.packets > 2).then_some(())
                });
                thread::sleep(Duration::from_millis(500));
                let redirect: RedirectResult =
                    shuntd.ask(&format!("redirect {SERVICE}:{port}/tcp {MIRROR2}"));
                let outcome = redirect.outcome;
                assert_eq!(
                    outcome.refused.get(reason),
                    Some(&1),
                    "{reason}: {outcome:?}"
                );
                let output = client.join().expect("it has ended");
                assert!(output.status.success(), "{reason}: {output:?}");
            });
            if ["tls", "http2"].contains(&reason) {
                let got = fs::read(lab.client.file("got")).expect("a file");
                assert!(got == large, "{reason}: damaged");
            }
            assert_eq!(shuntd.counters().reset, 0, "{reason}");
        }
    }
}
