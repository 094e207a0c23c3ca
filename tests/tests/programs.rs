//! Programs that people run every day, through a diversion: ssh, redis, and a long answer by DNS.

use std::fs;
use std::path::Path;

use scenarios::{
    CLIENT, Capture, Lab, MIRROR1, MIRROR1_6, PROXY, SERVICE, SERVICE6, Shuntd, Way,
    assert_valid_checksums,
};

/// The flags of a matrix: one worker and two, with super-packets, without, and by raw sockets.
const MATRIX: [&str; 6] = [
    "--workers 1",
    "--workers 2",
    "--workers 1 --no-offload",
    "--workers 2 --no-offload",
    "--workers 1 --egress raw",
    "--workers 2 --egress raw",
];

/// Service and mirror, in both families.
const BOTH: [(&str, &str); 2] = [(SERVICE, MIRROR1), (SERVICE6, MIRROR1_6)];

/// A file of a million bytes in `folder`.
#[track_caller]
fn million(folder: &Path) -> (std::path::PathBuf, Vec<u8>) {
    let bytes: Vec<u8> = (0..=250).cycle().take(1_000_000).collect();
    let file = folder.join("million");
    fs::write(&file, &bytes).expect("a file of our own");
    (file, bytes)
}

/// An answer of some 3,500 bytes in one datagram, whose fragments the mirror's kernel makes.
#[test]
fn a_dns_answer_larger_than_the_mtu() {
    let lab = Lab::new();
    let text = "x".repeat(200);
    let mut dnsmasq = String::from(
        "dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --user=root \
         --pid-file= --log-facility=- --edns-packet-max=4096",
    );
    // Sixteen records that differ, as a set has no record twice.
    for number in 10..26 {
        dnsmasq += &format!(" --txt-record=large.shunt.test,{number}{text}");
    }
    let _server = lab.mirror1.start(&dnsmasq);
    lab.mirror1.wait_for_listener("udp", 53);
    for flags in MATRIX {
        let shuntd = Shuntd::start(&lab, flags);
        for (service, mirror) in BOTH {
            let story = format!("{flags}, {service}");
            shuntd.ctl(&format!("divert {service} {mirror}")).success();
            let before = shuntd.counters().reassembled;
            let client_sees = Capture::start(&lab.client, "eth0", Way::In, "ip or ip6");
            let dig = format!(
                "dig +bufsize=4096 +notcp +ignore +tries=3 +time=5 @{service} large.shunt.test TXT"
            );
            let answer = lab.client.run(&dig).success();
            assert_eq!(answer.matches(&text).count(), 16, "{story}: {answer}");
            // "flags: qr aa rd ra;" has a "tc" in it where the answer was cut short.
            assert!(!answer.contains(" tc"), "{story}: {answer}");
            assert!(shuntd.counters().reassembled > before, "{story}");
            let seen = client_sees.finish();
            assert!(seen.len() >= 3, "{story}: three fragments: {seen:?}");
            assert_valid_checksums(&seen);
        }
    }
}

/// sshd on the mirror with keys of its own: the client knows the service's host key, logs in by its
/// own key, and copies a file there and back.
#[test]
fn ssh_works_through_a_diversion() {
    let lab = Lab::with_offloads();
    let keys = lab.dir().join("keys");
    fs::create_dir(&keys).expect("a folder of our own");
    let folder = keys.display();
    lab.mirror1
        .shell(&format!(
            "ssh-keygen -q -t ed25519 -N '' -f {folder}/host
             ssh-keygen -q -t ed25519 -N '' -f {folder}/client
             cp {folder}/client.pub {folder}/authorized
             for name in {SERVICE} {SERVICE6}; do echo \"$name $(cat {folder}/host.pub)\"; done \
                 >{folder}/known
             mkdir -p /run/sshd"
        ))
        .success();
    let configuration = format!(
        "HostKey {folder}/host
         AuthorizedKeysFile {folder}/authorized
         PermitRootLogin prohibit-password
         PasswordAuthentication no
         KbdInteractiveAuthentication no
         StrictModes no
         UsePAM no
         UseDNS no
         PidFile none\n"
    );
    fs::write(keys.join("sshd"), configuration).expect("a small file");
    let sshd = lab
        .mirror1
        .start(&format!("/usr/sbin/sshd -D -e -f {folder}/sshd"));
    lab.mirror1.wait_for_listener("tcp", 22);
    let (file, bytes) = million(&keys);

    for flags in MATRIX {
        let shuntd = Shuntd::start(&lab, flags);
        for ((service, mirror), site) in BOTH
            .into_iter()
            .zip(["100.100.100.100:22", "[fd00:100::100]:22"])
        {
            shuntd.ctl(&format!("divert {site} {mirror}")).success();
            let ssh = format!(
                "timeout 25 ssh -F none -i {folder}/client -o UserKnownHostsFile={folder}/known \
                 -o GlobalKnownHostsFile=none -o StrictHostKeyChecking=yes -o BatchMode=yes \
                 -o IdentitiesOnly=yes root@{service}"
            );
            let said = lab
                .client
                .shell(&format!("{ssh} 'echo hello from $SSH_CONNECTION'"));
            assert!(
                said.stdout.starts_with("hello from ") && said.stdout.contains(mirror),
                "{said:#?}\n{}",
                sshd.log()
            );
            // The shell there says who came: the proxy, not the client.
            assert!(!said.stdout.contains(CLIENT), "{said:#?}");

            let (there, back) = (keys.join("there"), keys.join("back"));
            lab.client
                .shell(&format!(
                    "{ssh} 'cat >{}' <{}
                     {ssh} 'cat {}' >{}",
                    there.display(),
                    file.display(),
                    there.display(),
                    back.display()
                ))
                .success();
            for copy in [&there, &back] {
                assert!(
                    fs::read(copy).expect("a copy") == bytes,
                    "{service}: {} differs",
                    copy.display()
                );
                fs::remove_file(copy).expect("a file of our own");
            }
        }
    }
}

/// Redis on the mirror: values of all sizes, many commands in a pipeline, and who the client is.
#[test]
fn redis_works_through_a_diversion() {
    let lab = Lab::with_offloads();
    let folder = lab.mirror1.file("redis");
    fs::create_dir(&folder).expect("a folder of our own");
    let _redis = lab.mirror1.start(&format!(
        "redis-server --port 6379 --bind 0.0.0.0 :: --protected-mode no --save  --appendonly no \
         --dir {}",
        folder.display()
    ));
    lab.mirror1.wait_for_listener("tcp", 6379);
    let (file, bytes) = million(lab.dir());

    for flags in MATRIX {
        let shuntd = Shuntd::start(&lab, flags);
        for ((service, mirror), site) in BOTH
            .into_iter()
            .zip(["100.100.100.100:6379", "[fd00:100::100]:6379"])
        {
            shuntd.ctl(&format!("divert {site} {mirror}")).success();
            let cli = format!("timeout 25 redis-cli -h {service}");
            let say = |words: &str| lab.client.shell(&format!("{cli} {words}")).success();
            assert_eq!(say("ping"), "PONG\n");
            assert_eq!(say("set name value"), "OK\n");
            assert_eq!(say("get name"), "value\n");
            let info = say("client info");
            if service == SERVICE {
                assert!(info.contains(&format!(" addr={PROXY}:")), "{info}");
            }

            assert_eq!(say(&format!("-x set large <{}", file.display())), "OK\n");
            let got = lab.client.file("got");
            say(&format!("--raw get large >{}", got.display()));
            let got = fs::read(&got).expect("redis-cli's output");
            assert!(
                got.strip_suffix(b"\n") == Some(&bytes[..]),
                "{service}: {} bytes came back",
                got.len()
            );

            say("del counter");
            let pipe = say("--pipe < <(for i in {1..5000}; do printf 'INCR counter\\r\\n'; done)");
            assert!(pipe.contains("errors: 0, replies: 5000"), "{pipe}");
            assert_eq!(say("get counter"), "5000\n");
        }
    }
}
