use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;

use super::*;
use crate::io::namespace::Links;
use crate::io::namespace::testing::in_namespace;
use crate::io::poll::{Ready, receive_within, wait};
use crate::io::waker;

const PATIENCE: Duration = Duration::from_millis(500);
const HERE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const THERE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);

/// An ICMP echo request to the TUN's own address: the kernel answers it through the TUN.
fn echo_request(sequence: u16) -> Frame {
    let mut packet = Vec::new();
    PacketBuilder::ipv4(THERE.octets(), HERE.octets(), 64)
        .icmpv4_echo_request(7, sequence)
        .write(&mut packet, b"ping")
        .unwrap();
    let mut frame = Frame::new();
    frame.fill(&packet);
    frame
}

fn is_echo_reply(frame: &Frame) -> bool {
    let packet = frame.packet();
    packet.len() == 32 && packet[9] == 1 && packet[20] == 0
}

/// A device with one queue that is up and has the address [`HERE`].
fn device_up(links: &Links) -> TunDevice {
    let device = TunDevice::open("shunt0", 1, Offload::NONE).unwrap();
    links
        .add_address(device.index, IpAddr::from(HERE), 24)
        .unwrap();
    links.set_up(device.index).unwrap();
    device
}

// ---- what is asked for, and what is granted -----------------------------------------------------

/// A kernel that grants these and nothing else, and the attempts that it saw.
fn ask(wanted: Offload, grants: &[Offload]) -> (nix::Result<Granted>, Vec<Offload>) {
    let mut attempts = Vec::new();
    let granted = negotiate(wanted, |offload| {
        attempts.push(offload);
        if grants.contains(&offload) {
            Ok(())
        } else {
            Err(Errno::EINVAL)
        }
    });
    (granted, attempts)
}

const TSO: Offload = Offload {
    tso: true,
    uso: false,
};
const USO: Offload = Offload {
    tso: false,
    uso: true,
};

/// `include/uapi/linux/if_tun.h`: CSUM 1, TSO4 2, TSO6 4, TSO_ECN 8, USO4 0x20, USO6 0x40.
#[test]
fn the_mask_has_both_versions_of_ip_and_never_lacks_checksums() {
    assert_eq!(Offload::NONE.mask(), 0);
    assert_eq!(TSO.mask(), 0x0F);
    assert_eq!(USO.mask(), 0x61);
    assert_eq!(Offload::ALL.mask(), 0x6F);
}

#[test]
fn a_kernel_that_grants_all_is_asked_once() {
    let (granted, attempts) = ask(Offload::ALL, &[Offload::ALL]);
    assert_eq!(
        granted,
        Ok(Granted {
            offload: Offload::ALL,
            refused: None
        })
    );
    assert_eq!(attempts, [Offload::ALL]);
}

#[test]
fn a_kernel_before_6_2_grants_tso_without_uso() {
    let (granted, attempts) = ask(Offload::ALL, &[TSO, Offload::NONE]);
    let refused = OffloadRefused {
        offload: USO,
        errno: Errno::EINVAL,
    };
    assert_eq!(
        granted,
        Ok(Granted {
            offload: TSO,
            refused: Some(refused)
        })
    );
    assert_eq!(attempts, [Offload::ALL, TSO]);
    assert_eq!(
        refused.to_string(),
        "the kernel refuses USO on a TUN (EINVAL: Invalid argument); bulk transfers will be slower"
    );
}

#[test]
fn without_any_offload_packets_still_pass() {
    let (granted, attempts) = ask(Offload::ALL, &[Offload::NONE]);
    let refused = OffloadRefused {
        offload: Offload::ALL,
        errno: Errno::EINVAL,
    };
    assert_eq!(
        granted,
        Ok(Granted {
            offload: Offload::NONE,
            refused: Some(refused)
        })
    );
    assert_eq!(attempts, [Offload::ALL, TSO, Offload::NONE]);
}

#[test]
fn only_what_is_wanted_is_asked_for() {
    let (_, attempts) = ask(USO, &[Offload::NONE]);
    assert_eq!(attempts, [USO, Offload::NONE]);
    let (_, attempts) = ask(TSO, &[Offload::NONE]);
    assert_eq!(attempts, [TSO, Offload::NONE]);
    let (granted, attempts) = ask(Offload::NONE, &[Offload::NONE]);
    assert_eq!(
        granted,
        Ok(Granted {
            offload: Offload::NONE,
            refused: None
        })
    );
    assert_eq!(attempts, [Offload::NONE]);
}

#[test]
fn a_device_that_takes_no_offload_mask_at_all_is_an_error() {
    let (granted, _) = ask(Offload::ALL, &[]);
    assert_eq!(granted, Err(Errno::EINVAL));
}

// ---- opening ------------------------------------------------------------------------------------

#[test]
fn impossible_names_and_numbers_are_refused_before_the_kernel_is_asked() {
    for name in [
        "",
        ".",
        "..",
        "a/b",
        "a b",
        "shunt:1",
        "sixteen-letters-",
        "%s",
        "%d%d",
        "é",
    ] {
        let error = TunDevice::open(name, 1, Offload::NONE).unwrap_err();
        assert!(matches!(error, TunError::Name { .. }), "{name:?}: {error}");
    }
    for name in ["shunt0", "a", "fifteen-letters", "tun.5_x", "shunt%d"] {
        assert!(is_interface_name(name), "{name:?}");
    }
    for queues in [0, MAX_QUEUES + 1] {
        let error = TunDevice::open("shunt0", queues, Offload::NONE).unwrap_err();
        assert!(
            matches!(error, TunError::Queues { .. }),
            "{queues}: {error}"
        );
    }
}

#[test]
fn a_device_belongs_to_who_opened_it_until_the_last_queue_is_closed() {
    in_namespace(|| {
        let mut ours = TunDevice::open("shunt0", 2, Offload::ALL).unwrap();
        assert_eq!(ours.name, "shunt0");
        assert_eq!(if_nametoindex("shunt0"), Ok(ours.index));

        let error = TunDevice::open("shunt0", 1, Offload::ALL).unwrap_err();
        assert!(
            matches!(&error, TunError::Exists { name } if name == "shunt0"),
            "{error}"
        );
        let error = TunDevice::open("lo", 1, Offload::ALL).unwrap_err();
        assert!(
            matches!(&error, TunError::Exists { name } if name == "lo"),
            "{error}"
        );

        ours.queues.pop();
        TunDevice::open("shunt0", 1, Offload::ALL).expect_err("one queue is left");
        ours.queues.pop();
        TunDevice::open("shunt0", 1, Offload::ALL).expect("the device is gone");
    });
}

#[test]
fn a_device_can_have_many_queues_and_a_name_with_a_number() {
    in_namespace(|| {
        let first = TunDevice::open("shunt%d", 4, Offload::ALL).unwrap();
        let second = TunDevice::open("shunt%d", MAX_QUEUES, Offload::NONE).unwrap();
        assert_eq!((first.name.as_str(), first.queues.len()), ("shunt0", 4));
        assert_eq!(
            (second.name.as_str(), second.queues.len()),
            ("shunt1", MAX_QUEUES)
        );
        assert_ne!(first.index, second.index);
    });
}

// ---- packets ------------------------------------------------------------------------------------

#[test]
fn a_packet_goes_in_and_its_answer_comes_out() {
    in_namespace(|| {
        let links = Links::connect().unwrap();
        let queue = &mut device_up(&links).queues[0];

        let mut request = echo_request(1);
        // A flag that the kernel sets on received packets ("checksum verified").
        request.set_header(&VnetHeader {
            flags: 2,
            ..VnetHeader::default()
        });
        queue.transmit(&mut request).unwrap();
        assert_eq!(
            request.header().flags,
            0,
            "it isn't handed back to the kernel"
        );

        let reply = receive_within(queue, PATIENCE, is_echo_reply).unwrap();
        let reply = reply.expect("the kernel answers");
        assert_eq!(&reply.packet()[12..16], HERE.octets());
        assert_eq!(queue.losses(), Losses::default());
    });
}

#[test]
fn what_the_kernel_calls_invalid_is_counted() {
    in_namespace(|| {
        let links = Links::connect().unwrap();
        let queue = &mut device_up(&links).queues[0];

        // No packet at all; a packet that is neither IPv4 nor IPv6; a checksum beyond the packet.
        let mut empty = Frame::new();
        let mut no_ip = Frame::new();
        no_ip.fill(&[0x50; 40]);
        let mut beyond = echo_request(1);
        beyond.set_header(&VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            csum_start: 32,
            csum_offset: 16,
            ..VnetHeader::default()
        });
        for frame in [&mut empty, &mut no_ip, &mut beyond] {
            queue.transmit(frame).unwrap();
        }
        assert_eq!(
            queue.losses(),
            Losses {
                refused: 3,
                ..Losses::default()
            }
        );
    });
}

// ---- the link's life ----------------------------------------------------------------------------

#[test]
fn a_link_that_is_down_is_silent_and_comes_back() {
    in_namespace(|| {
        let links = Links::connect().unwrap();
        let mut device = device_up(&links);
        links.set_down(device.index).unwrap();
        let queue = &mut device.queues[0];
        // What the kernel sent while the link was up is of no interest.
        assert!(
            receive_within(queue, Duration::ZERO, |_| false)
                .unwrap()
                .is_none()
        );

        let (_waker, sleeper) = waker::pair().unwrap();
        let timeout = Some(Duration::from_millis(5));
        let ready = wait(queue.readiness(), sleeper.as_fd(), timeout).unwrap();
        assert_eq!(ready, Ready::default(), "nobody is woken in vain");
        queue.transmit(&mut echo_request(1)).unwrap();
        assert_eq!(
            queue.losses(),
            Losses {
                link_down: 1,
                ..Losses::default()
            }
        );

        links.set_up(device.index).unwrap();
        queue.transmit(&mut echo_request(2)).unwrap();
        assert!(
            receive_within(queue, PATIENCE, is_echo_reply)
                .unwrap()
                .is_some()
        );
        assert_eq!(
            queue.losses(),
            Losses {
                link_down: 1,
                ..Losses::default()
            }
        );
    });
}

#[test]
fn a_deleted_device_wakes_its_worker_and_ends_it() {
    in_namespace(|| {
        let links = Links::connect().unwrap();
        let mut device = TunDevice::open("shunt0", 1, Offload::ALL).unwrap();
        let (_waker, sleeper) = waker::pair().unwrap();
        let queue = &mut device.queues[0];

        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let start = Instant::now();
                let timeout = Some(Duration::from_secs(10));
                let ready = wait(queue.readiness(), sleeper.as_fd(), timeout).unwrap();
                (ready, start.elapsed())
            });
            thread::sleep(Duration::from_millis(20));
            links.delete(device.index).unwrap();
            let (ready, waited) = waiting.join().unwrap();
            assert_eq!(
                ready,
                Ready {
                    port: true,
                    waker: false
                }
            );
            assert!(
                waited < Duration::from_secs(5),
                "the deletion woke it, not the timeout"
            );
        });

        let gone = |error: io::Error| error.raw_os_error() == Some(libc::EBADFD);
        assert!(gone(queue.receive(&mut Frame::new()).unwrap_err()));
        assert!(gone(queue.transmit(&mut echo_request(1)).unwrap_err()));
        assert_eq!(queue.losses(), Losses::default());
    });
}
