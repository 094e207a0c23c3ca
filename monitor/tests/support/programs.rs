//! Programs that no one here wrote, as mirrors.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::PATIENCE;

/// A program that ends with this.
pub struct Program(Child);

impl Program {
    /// Starts `command`, whose words may not contain blanks.
    #[track_caller]
    pub fn start(command: &str) -> Self {
        let mut words = command.split_whitespace();
        let child = Command::new(words.next().unwrap())
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.unwrap_or_else(|error| panic!("{command}: {error}")))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until `reached`.
#[track_caller]
pub fn wait_until(mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !reached() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A port of loopback that nobody has, for TCP or UDP.
pub fn free_address() -> SocketAddr {
    loop {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        if UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
}

/// An authority, and the certificates that it has signed; by `openssl`.
pub struct Certificates(TempDir);

impl Certificates {
    /// An authority, and a certificate for `name` (such as `DNS:mirror.test`).
    pub fn for_name(name: &str) -> Self {
        let certificates = Self(tempfile::tempdir().unwrap());
        certificates.openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -keyout ca.key \
             -out ca.pem -subj /CN=authority",
        );
        certificates.openssl(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out request.pem \
             -subj /CN=mirror",
        );
        fs::write(
            certificates.path("extensions"),
            format!("subjectAltName={name}\n"),
        )
        .unwrap();
        certificates.openssl(
            "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
             -extfile extensions -out certificate.pem",
        );
        certificates
    }

    /// Where the file `name` is: `ca.pem`, `key.pem`, `certificate.pem`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    #[track_caller]
    fn openssl(&self, arguments: &str) {
        let output = Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(self.0.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments}: {output:?}");
    }
}

/// nginx, which serves the files of a folder.
pub struct Nginx {
    /// Where it speaks HTTP.
    pub http: SocketAddr,
    /// Where it speaks HTTPS.
    pub https: SocketAddr,
    /// The folder; it has a file `health` with the text "all is well".
    pub folder: TempDir,
    _program: Program,
}

impl Nginx {
    /// Starts it with `certificates`, and waits until it listens.
    pub fn start(certificates: &Certificates) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (http, https) = (free_address(), free_address());
        let root = folder.path().display();
        let configuration = format!(
            "daemon off;\nmaster_process off;\npid {root}/pid;\nerror_log {root}/errors;\n\
             user root;\nevents {{}}\n\
             http {{\n access_log off;\n client_body_temp_path {root}/a;\n proxy_temp_path {root}/b;\n \
             fastcgi_temp_path {root}/c;\n uwsgi_temp_path {root}/d;\n scgi_temp_path {root}/e;\n \
             server {{\n  listen {http};\n  listen {https} ssl;\n  root {root};\n  \
             ssl_certificate {};\n  ssl_certificate_key {};\n  \
             location = /moved {{ return 302 /health; }}\n  \
             location = /host {{ return 200 \"$host $ssl_server_name $ssl_protocol\"; }}\n }}\n}}\n",
            certificates.path("certificate.pem").display(),
            certificates.path("key.pem").display(),
        );
        fs::write(folder.path().join("nginx.conf"), configuration).unwrap();
        fs::write(folder.path().join("health"), "all is well\n").unwrap();
        let program = Program::start(&format!(
            "nginx -p {root} -e {root}/errors -c {root}/nginx.conf"
        ));
        wait_until(|| TcpStream::connect(https).is_ok());
        Self {
            http,
            https,
            folder,
            _program: program,
        }
    }
}

/// dnsmasq: `mirror.test` is 10.0.0.7 and fd00::7, any other name of `test` isn't there.
pub struct Dnsmasq {
    /// Where it listens.
    pub address: SocketAddr,
    _program: Program,
}

impl Dnsmasq {
    /// Starts it, and waits until it listens.
    pub fn start() -> Self {
        let address = free_address();
        let program = Program::start(&format!(
            "dnsmasq --keep-in-foreground --conf-file=/dev/null --pid-file= --user=root --no-resolv \
             --no-hosts --bind-interfaces --listen-address={} --port={} --local=/test/ \
             --host-record=mirror.test,10.0.0.7,fd00::7 --txt-record=text.test,well \
             --cname=alias.test,mirror.test",
            address.ip(),
            address.port()
        ));
        // It listens on TCP as well.
        wait_until(|| TcpStream::connect(address).is_ok());
        Self {
            address,
            _program: program,
        }
    }
}

/// Writes `text` to the file `name` of `folder`.
pub fn write(folder: &Path, name: &str, text: &str) {
    fs::write(folder.join(name), text).unwrap();
}
