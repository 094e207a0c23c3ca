//! What passes an interface: tcpdump, and the files it writes.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::lab::Host;
use crate::packet::Packet;
use crate::process::{Background, wait_until};

/// The packets of which direction to catch, as seen from the host with the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Those that arrive.
    In,
    /// Those that leave.
    Out,
    /// All.
    Both,
}

/// A running tcpdump.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Background,
    file: PathBuf,
    place: String,
}

impl Capture {
    /// Catches on `interface` of `host` what matches tcpdump's `filter`: packets as they are on a
    /// wire, no longer than an MTU of 1500. When this returns, no packet is missed any more.
    #[track_caller]
    pub fn start(host: &Host, interface: &str, way: Way, filter: &str) -> Self {
        Self::of_length(2048, 32, host, interface, way, filter)
    }

    /// The same where packets of up to 64 KiB may pass, for which the kernel's ring has less room.
    #[track_caller]
    pub fn of_super_packets(host: &Host, interface: &str, way: Way, filter: &str) -> Self {
        Self::of_length(66_000, 128, host, interface, way, filter)
    }

    #[track_caller]
    fn of_length(
        length: u32,
        ring_mib: u32,
        host: &Host,
        interface: &str,
        way: Way,
        filter: &str,
    ) -> Self {
        let place = format!("{}'s {interface}", host.name());
        let mut command = host.command("tcpdump");
        command.args(["-i", interface, "-n", "--immediate-mode", "-U"]);
        // The ring has slots of the longest packet's size, so that these 32 MiB hold 16,000
        // packets of a wire, and these 128 MiB 1,000 super-packets.
        command.args([
            "-s",
            &length.to_string(),
            "-B",
            &(ring_mib * 1024).to_string(),
        ]);
        // Stay who we are: in a user namespace there is no other user to become.
        command.args(["-Z", "root"]);
        match way {
            Way::In => command.args(["-Q", "in"]),
            Way::Out => command.args(["-Q", "out"]),
            Way::Both => &mut command,
        };
        let file = host.file(&format!("{interface}.{way:?}.{:x}.pcap", unique()));
        command.arg("-w").arg(&file).arg(filter);
        let mut tcpdump = host.spawn(&mut command, "tcpdump");
        tcpdump.wait_for_log("listening on");
        Self {
            tcpdump,
            file,
            place,
        }
    }

    /// What has been caught so far.
    #[track_caller]
    pub fn so_far(&self) -> Vec<Packet> {
        let bytes = fs::read(&self.file).unwrap_or_else(|error| panic!("{}: {error}", self.place));
        Packet::from_pcap(&bytes)
    }

    /// Waits until at least `count` packets have been caught, and gives what was caught.
    #[track_caller]
    pub fn wait_for(&self, count: usize) -> Vec<Packet> {
        wait_until(&format!("{count} packets at {}", self.place), || {
            Some(self.so_far()).filter(|packets| packets.len() >= count)
        })
    }

    /// Ends the capture once nothing more arrives, and gives all that was caught.
    #[track_caller]
    pub fn finish(self) -> Vec<Packet> {
        let size = || fs::metadata(&self.file).map_or(0, |metadata| metadata.len());
        let mut before = size();
        wait_until(&format!("{} falls quiet", self.place), || {
            thread::sleep(Duration::from_millis(100));
            let now = size();
            let quiet = now == before;
            before = now;
            quiet.then_some(())
        });
        let Self {
            tcpdump,
            file,
            place,
        } = self;
        let (status, log) = tcpdump.stop(Signal::SIGINT);
        assert!(status.success(), "tcpdump at {place} failed:\n{log}");
        assert!(
            log.contains("\n0 packets dropped by kernel"),
            "{place} is incomplete:\n{log}"
        );
        let packets =
            Packet::from_pcap(&fs::read(&file).unwrap_or_else(|error| panic!("{place}: {error}")));
        // Captures of bulk traffic are large, and a lab may take several.
        let _ = fs::remove_file(&file);
        packets
    }
}

/// A number that no other capture of this process has.
fn unique() -> u32 {
    static CAPTURES: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    CAPTURES.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}
