//! A program for the kernel that brings each packet to the queue of the worker that owns it.
//!
//! Left alone, the kernel chooses a queue by a hash of the packet, so that of two workers half of all
//! packets come to the wrong one, and are handed over: a copy, and often a wake-up. With
//! `TUNSETSTEERINGEBPF` it asks an eBPF program instead (`tun_ebpf_select_queue`,
//! `drivers/net/tun.c`), and that can compute the owner just as [`Ownership`] does: from the proxy port
//! of what goes to a proxy address, from the client's address and port of everything else.
//!
//! It is only a hint. Fragments, ICMP errors, and packets with extension headers all go to the first
//! queue, whose worker hands them over as ever; so a mistake here would cost time and nothing else.
//!
//! The program is put together by hand: some fifty instructions, for which a compiler and a loader
//! would be a great deal to carry. Opcodes are those of RFC 9669.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;

use super::TunQueue;
use crate::engine::Ownership;

/// Beyond so many proxy addresses, which are compared one by one, it isn't worth it.
const MAX_PROXIES: usize = 64;

/// Has the kernel steer the packets of a device, of which `queue` is one queue, to their owners: the
/// queues stand in the order of the workers. `Ok(false)`: there is nothing to gain.
///
/// # Errors
/// The kernel's: it doesn't let us load programs, or its TUN doesn't know of them (before Linux 4.16).
/// Packets then come as before.
pub fn steer(queue: &TunQueue, ownership: &Ownership, proxies: &[IpAddr]) -> nix::Result<bool> {
    if ownership.workers() < 2 || proxies.len() > MAX_PROXIES {
        return Ok(false);
    }
    let program = load(&program(ownership, proxies))?;
    let fd: libc::c_int = program.as_raw_fd();
    #[expect(unsafe_code, reason = "an ioctl that the kernel's TUN driver defines")]
    // SAFETY: TUNSETSTEERINGEBPF reads one `int`, which lives on this stack frame. The device keeps
    // the program; our descriptor of it may go.
    Errno::result(unsafe {
        libc::ioctl(
            queue.fd.as_raw_fd(),
            libc::TUNSETSTEERINGEBPF,
            &raw const fd,
        )
    })?;
    Ok(true)
}

/// A register.
#[derive(Debug, Clone, Copy)]
struct Register(u8);

/// What instructions that read from a packet give.
const VALUE: Register = Register(0);
/// Scratch; those instructions change it.
const SCRATCH: Register = Register(1);
/// The packet, where they look for it.
const PACKET: Register = Register(6);
/// Where the transport header begins.
const TRANSPORT: Register = Register(7);
/// The IP protocol number.
const PROTOCOL: Register = Register(8);
/// The owner's hash as it grows.
const MIX: Register = Register(9);

/// Bits of the [`Ownership`] that the program must agree with.
const ROTATION: i32 = 29;
const SHARE_SHIFT: i32 = 40;

mod opcode {
    pub const LOAD_BYTE: u8 = 0x30;
    pub const LOAD_HALF: u8 = 0x28;
    pub const LOAD_WORD: u8 = 0x20;
    pub const LOAD_BYTE_AT: u8 = 0x50;
    pub const LOAD_HALF_AT: u8 = 0x48;
    pub const LOAD_CONSTANT: u8 = 0x18;
    pub const MOVE: u8 = 0xBF;
    pub const MOVE_NUMBER: u8 = 0xB7;
    pub const AND_NUMBER: u8 = 0x57;
    pub const SHIFT_LEFT: u8 = 0x67;
    pub const SHIFT_RIGHT: u8 = 0x77;
    pub const MODULO: u8 = 0x97;
    pub const XOR: u8 = 0xAF;
    pub const OR: u8 = 0x4F;
    pub const MULTIPLY: u8 = 0x2F;
    pub const JUMP: u8 = 0x05;
    /// These compare 32 bits.
    pub const JUMP_IF_EQUAL: u8 = 0x16;
    pub const JUMP_UNLESS_EQUAL: u8 = 0x56;
    pub const EXIT: u8 = 0x95;
}

/// One instruction as the kernel reads it (`struct bpf_insn`, `linux/bpf.h`).
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    number: i32,
}

/// A place in the program that is jumped to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Label {
    V4,
    V6,
    Forward4,
    Forward6,
    Port4,
    Port6,
    Mix4,
    Mix6,
    Reverse,
    ReversePort,
    ReverseEcho,
    /// After the comparison with this proxy address.
    AfterProxy(usize),
    /// To the first queue.
    First,
}

/// A program under way.
#[derive(Debug, Default)]
struct Program {
    instructions: Vec<Instruction>,
    places: Vec<(Label, usize)>,
    jumps: Vec<(usize, Label)>,
}

impl Program {
    fn put(&mut self, code: u8, destination: Register, source: Register, number: i32) {
        let (low, high) = if cfg!(target_endian = "little") {
            (destination, source)
        } else {
            (source, destination)
        };
        self.instructions.push(Instruction {
            code,
            registers: high.0 << 4 | low.0,
            offset: 0,
            number,
        });
    }

    /// Reads from the packet, at so many bytes from its IP header, into [`VALUE`]; beyond its end, the
    /// packet goes to the first queue.
    fn load(&mut self, code: u8, at: i32) {
        self.put(code, VALUE, Register(0), at);
    }

    /// The same, from the transport header.
    fn load_transport(&mut self, code: u8, at: i32) {
        self.put(code, VALUE, TRANSPORT, at);
    }

    fn with_number(&mut self, code: u8, register: Register, number: i32) {
        self.put(code, register, Register(0), number);
    }

    fn with_register(&mut self, code: u8, register: Register, source: Register) {
        self.put(code, register, source, 0);
    }

    fn constant(&mut self, register: Register, value: u64) {
        self.put(opcode::LOAD_CONSTANT, register, Register(0), value as i32);
        self.put(0, Register(0), Register(0), (value >> 32) as i32);
    }

    fn jump(&mut self, to: Label) {
        self.jump_if(opcode::JUMP, Register(0), 0, to);
    }

    fn jump_if(&mut self, code: u8, register: Register, number: i32, to: Label) {
        self.jumps.push((self.instructions.len(), to));
        self.with_number(code, register, number);
    }

    fn place(&mut self, label: Label) {
        self.places.push((label, self.instructions.len()));
    }

    /// Ends with the remainder of a register by the number of workers.
    fn share(&mut self, register: Register, workers: u16) {
        self.with_register(opcode::MOVE, VALUE, register);
        self.with_number(opcode::MODULO, VALUE, workers.into());
        self.with_number(opcode::EXIT, Register(0), 0);
    }

    /// One step of [`Ownership::of_client`], with the word in [`VALUE`].
    fn mix(&mut self, key: u64) {
        self.with_register(opcode::XOR, MIX, VALUE);
        self.constant(SCRATCH, key);
        self.with_register(opcode::MULTIPLY, MIX, SCRATCH);
        self.with_register(opcode::MOVE, SCRATCH, MIX);
        self.with_number(opcode::SHIFT_LEFT, SCRATCH, ROTATION);
        self.with_number(opcode::SHIFT_RIGHT, MIX, 64 - ROTATION);
        self.with_register(opcode::OR, MIX, SCRATCH);
    }

    /// The finished program. Every label that is jumped to has been placed.
    fn finish(mut self) -> Vec<Instruction> {
        for (from, label) in self.jumps {
            let place = self.places.iter().find(|(placed, _)| *placed == label);
            let to = place.map_or(from + 1, |(_, at)| *at);
            // Forwards, and by less than 2^15.
            self.instructions[from].offset = (to - from - 1) as i16;
        }
        self.instructions
    }
}

/// IP protocol numbers.
const ICMP: i32 = 1;
const TCP: i32 = 6;
const UDP: i32 = 17;
const ICMPV6: i32 = 58;

fn program(ownership: &Ownership, proxies: &[IpAddr]) -> Vec<Instruction> {
    use opcode::{
        AND_NUMBER, EXIT, JUMP_IF_EQUAL, JUMP_UNLESS_EQUAL, LOAD_BYTE, LOAD_BYTE_AT, LOAD_HALF,
        LOAD_HALF_AT, LOAD_WORD, MOVE, MOVE_NUMBER, SHIFT_LEFT, SHIFT_RIGHT,
    };
    let (workers, key) = (ownership.workers(), ownership.key());
    let mut p = Program::default();
    p.with_register(MOVE, PACKET, SCRATCH);
    p.load(LOAD_BYTE, 0);
    p.with_register(MOVE, TRANSPORT, VALUE);
    p.with_number(SHIFT_RIGHT, VALUE, 4);
    p.jump_if(JUMP_IF_EQUAL, VALUE, 4, Label::V4);
    p.jump_if(JUMP_IF_EQUAL, VALUE, 6, Label::V6);
    p.jump(Label::First);

    // IPv4, RFC 791: no fragments; the header's length in words of four bytes.
    p.place(Label::V4);
    p.with_number(AND_NUMBER, TRANSPORT, 0x0F);
    p.with_number(SHIFT_LEFT, TRANSPORT, 2);
    p.load(LOAD_HALF, 6);
    p.with_number(AND_NUMBER, VALUE, 0x3FFF);
    p.jump_if(JUMP_UNLESS_EQUAL, VALUE, 0, Label::First);
    p.load(LOAD_BYTE, 9);
    p.with_register(MOVE, PROTOCOL, VALUE);
    p.load(LOAD_WORD, 16);
    for proxy in proxies {
        if let IpAddr::V4(proxy) = proxy {
            let bits = proxy.to_bits().cast_signed();
            p.jump_if(JUMP_IF_EQUAL, VALUE, bits, Label::Reverse);
        }
    }
    p.jump(Label::Forward4);

    // IPv6, RFC 8200: no extension headers.
    p.place(Label::V6);
    p.with_number(MOVE_NUMBER, TRANSPORT, 40);
    p.load(LOAD_BYTE, 6);
    p.with_register(MOVE, PROTOCOL, VALUE);
    for (number, proxy) in proxies.iter().enumerate() {
        let IpAddr::V6(proxy) = proxy else { continue };
        for (at, word) in (24..).step_by(4).zip(proxy.octets().as_chunks::<4>().0) {
            p.load(LOAD_WORD, at);
            let bits = i32::from_be_bytes(*word);
            p.jump_if(JUMP_UNLESS_EQUAL, VALUE, bits, Label::AfterProxy(number));
        }
        p.jump(Label::Reverse);
        p.place(Label::AfterProxy(number));
    }
    p.jump(Label::Forward6);

    // To a mirror: by the client's port, or the identifier of an echo request, and its address.
    for (forward, port, mix, icmp, request) in [
        (Label::Forward4, Label::Port4, Label::Mix4, ICMP, 8),
        (Label::Forward6, Label::Port6, Label::Mix6, ICMPV6, 128),
    ] {
        p.place(forward);
        p.jump_if(JUMP_IF_EQUAL, PROTOCOL, TCP, port);
        p.jump_if(JUMP_IF_EQUAL, PROTOCOL, UDP, port);
        p.jump_if(JUMP_UNLESS_EQUAL, PROTOCOL, icmp, Label::First);
        p.load_transport(LOAD_BYTE_AT, 0);
        p.jump_if(JUMP_UNLESS_EQUAL, VALUE, request, Label::First);
        p.load_transport(LOAD_HALF_AT, 4);
        p.with_register(MOVE, MIX, VALUE);
        p.jump(mix);
        p.place(port);
        p.load_transport(LOAD_HALF_AT, 0);
        p.with_register(MOVE, MIX, VALUE);
        p.place(mix);
        let source = if icmp == ICMP { 12..16 } else { 8..24 };
        for at in source.step_by(4) {
            p.load(LOAD_WORD, at);
            p.mix(key);
        }
        p.with_number(SHIFT_RIGHT, MIX, SHARE_SHIFT);
        p.share(MIX, workers);
    }

    // From a mirror: by the proxy port, or the identifier of an echo reply.
    p.place(Label::Reverse);
    p.jump_if(JUMP_IF_EQUAL, PROTOCOL, TCP, Label::ReversePort);
    p.jump_if(JUMP_IF_EQUAL, PROTOCOL, UDP, Label::ReversePort);
    p.load_transport(LOAD_BYTE_AT, 0);
    p.jump_if(JUMP_IF_EQUAL, VALUE, 0, Label::ReverseEcho);
    p.jump_if(JUMP_IF_EQUAL, VALUE, 129, Label::ReverseEcho);
    p.jump(Label::First);
    p.place(Label::ReverseEcho);
    p.load_transport(LOAD_HALF_AT, 4);
    p.share(VALUE, workers);
    p.place(Label::ReversePort);
    p.load_transport(LOAD_HALF_AT, 2);
    p.share(VALUE, workers);

    p.place(Label::First);
    p.with_number(MOVE_NUMBER, VALUE, 0);
    p.with_number(EXIT, Register(0), 0);
    p.finish()
}

/// What `BPF_PROG_LOAD` reads: the beginning of `union bpf_attr` (`linux/bpf.h`).
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

fn load(instructions: &[Instruction]) -> nix::Result<OwnedFd> {
    const PROG_LOAD: libc::c_int = 5;
    const SOCKET_FILTER: u32 = 1;
    let license = c"Dual MIT/GPL";
    let attributes = Load {
        kind: SOCKET_FILTER,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    #[expect(unsafe_code, reason = "a system call without a wrapper")]
    // SAFETY: the kernel reads `attributes`, and the instructions and the text that it points to,
    // all of which outlive the call; it gives a descriptor that nobody else has.
    unsafe {
        let fd = libc::syscall(
            libc::SYS_bpf,
            PROG_LOAD,
            &raw const attributes,
            size_of_val(&attributes),
        );
        Ok(OwnedFd::from_raw_fd(Errno::result(fd)? as libc::c_int))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
    use std::time::Duration;

    use super::*;
    use crate::io::Frame;
    use crate::io::namespace::Links;
    use crate::io::namespace::testing::in_namespace;
    use crate::io::poll::receive_within;
    use crate::io::tun::{Offload, TunDevice};

    const WORKERS: u16 = 3;
    const PROXIES: [&str; 4] = ["10.9.9.9", "198.19.255.1", "fd09::1", "fd09:ffff::ffff"];

    /// Which queue a packet comes out of that this host sends.
    fn arrives_at(device: &mut TunDevice, is_meant: impl Fn(&Frame) -> bool) -> Option<u16> {
        for _ in 0..100 {
            for (number, queue) in (0..).zip(&mut device.queues) {
                if receive_within(queue, Duration::from_millis(5), &is_meant)
                    .unwrap()
                    .is_some()
                {
                    return Some(number);
                }
            }
        }
        None
    }

    /// Every packet that has ports arrives at the worker that owns it.
    #[test]
    fn packets_arrive_at_their_owners() {
        in_namespace(|| {
            let links = Links::connect().unwrap();
            let mut device = TunDevice::open("shunt0", WORKERS.into(), Offload::ALL).unwrap();
            let own: [IpAddr; 2] = [
                Ipv4Addr::new(198, 18, 0, 1).into(),
                "fd18::1".parse::<Ipv6Addr>().unwrap().into(),
            ];
            links.add_address(device.index, own[0], 8).unwrap();
            links.add_address(device.index, own[1], 8).unwrap();
            links.set_up(device.index).unwrap();
            let ownership = Ownership::new(WORKERS, 0xFEDC_BA98_7654_3210);
            let proxies = PROXIES.map(|proxy| proxy.parse().unwrap());
            match steer(&device.queues[0], &ownership, &proxies) {
                Ok(done) => assert!(done),
                // Without the right to load programs there is nothing to see.
                Err(Errno::EPERM) => return,
                Err(errno) => panic!("{errno}"),
            }
            let mut seen = [0; WORKERS as usize];
            for (own, service, proxy) in [
                (own[0], "198.18.7.7", "198.19.255.1"),
                (own[1], "fd18::77", "fd09:ffff::ffff"),
            ] {
                for (to, is_proxy) in [(service, false), (proxy, true)] {
                    for port in 5000..5020 {
                        let to = SocketAddr::new(to.parse().unwrap(), port);
                        let socket = UdpSocket::bind(SocketAddr::new(own, 0)).unwrap();
                        let from = socket.local_addr().unwrap();
                        socket.send_to(b"steer me", to).unwrap();
                        let is_meant = |frame: &Frame| frame.packet().ends_with(b"steer me");
                        let queue = arrives_at(&mut device, is_meant).expect("it arrives");
                        let owner = if is_proxy {
                            ownership.of_proxy_port(port)
                        } else {
                            ownership.of_client(from.into())
                        };
                        assert_eq!(queue, owner, "{from} to {to}");
                        seen[usize::from(queue)] += 1;
                    }
                }
            }
            assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
        });
    }
}
