//! A host made of a TUN: the scenario itself is its network stack, and chooses every byte.

use std::io::ErrorKind;

use tun_tap::{Iface, Mode};

use crate::lab::{Host, bracketed};
use crate::packet::Packet;
use crate::process::wait_until;

/// A host directly behind the rewriter, at the other end of a TUN.
///
/// What it sends arrives at the rewriter's kernel as if from a wire, and what the kernel routes to
/// its address arrives here.
#[derive(Debug)]
pub struct PacketHost {
    tun: Iface,
}

impl PacketHost {
    /// Puts a host with `address` behind the interface `name` of `rewriter`. If the lab has a host
    /// of that address already, this one takes its place.
    #[track_caller]
    pub fn new(rewriter: &Host, name: &str, address: &str) -> Self {
        let tun = rewriter
            .inside(|| Iface::without_packet_info(name, Mode::Tun))
            .unwrap_or_else(|error| panic!("no TUN {name}: {error}"));
        tun.set_non_blocking()
            .expect("a TUN can be read without waiting");
        rewriter.run(&format!("ip link set {name} up")).success();
        let bits = if bracketed(address) == address {
            32
        } else {
            128
        };
        rewriter
            .run(&format!("ip route replace {address}/{bits} dev {name}"))
            .success();
        Self { tun }
    }

    /// Sends these bytes, which need not be a valid packet.
    #[track_caller]
    pub fn send(&self, bytes: &[u8]) {
        let sent = self
            .tun
            .send(bytes)
            .unwrap_or_else(|error| panic!("{}: {error}", self.name()));
        assert_eq!(sent, bytes.len(), "a TUN takes whole packets");
    }

    /// The next packet that arrives here.
    #[track_caller]
    pub fn receive(&self) -> Packet {
        wait_until(&format!("a packet arrives at {}", self.name()), || {
            self.received()
        })
    }

    /// The next packet that has arrived already, if any.
    #[track_caller]
    pub fn received(&self) -> Option<Packet> {
        let mut buffer = vec![0; 65_536];
        loop {
            match self.tun.recv(&mut buffer) {
                Ok(length) => {
                    let packet = Packet::new(&buffer[..length]);
                    if !packet.is_between_neighbours() {
                        return Some(packet);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(error) => panic!("{}: {error}", self.name()),
            }
        }
    }

    fn name(&self) -> &str {
        self.tun.name()
    }
}
