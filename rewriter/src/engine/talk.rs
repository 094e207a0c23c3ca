//! What a TCP connection is used for, told by what its ends say first.

use super::tcp::brings_news;
use crate::packet::TcpSegment;
use crate::table::{Connection, Direction, Talk};

/// How the client's side begins, of protocols whose state a new server can't know.
const CLIENTS_SAY: &[(&[u8], Talk)] = &[
    // A TLS record: handshake, version 3.x (RFC 8446, section 5.1).
    (&[0x16, 0x03], Talk::Tls),
    // RFC 9113, section 3.4.
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Talk::Http2),
    // RFC 4253, section 4.2.
    (b"SSH-", Talk::Ssh),
    // HAProxy, "The PROXY protocol", versions 1 and 2.
    (b"PROXY ", Talk::ProxyHeader),
    (b"\r\n\r\n\0\r\nQUIT\n", Talk::ProxyHeader),
];

/// Takes note of data that passes, before its segment is noted otherwise.
pub(super) fn listen(
    connection: &mut Connection,
    direction: Direction,
    segment: &TcpSegment,
    payload: &[u8],
) {
    let sender = match direction {
        Direction::Forward => &connection.client,
        Direction::Reverse => &connection.mirror,
    };
    let is_new = brings_news(sender, segment);
    let is_first = segment.sequence == sender.start;
    if is_new {
        connection.last_data = Some(direction);
    }
    connection.talk = match (connection.talk, direction) {
        (Talk::Silent | Talk::Unseen, Direction::Forward) if is_first => client_says(payload),
        (Talk::Silent, Direction::Forward) => Talk::Unseen,
        // A keep-alive probe may have an old byte in it.
        (Talk::Silent, Direction::Reverse) if !is_new => Talk::Silent,
        (Talk::Silent, Direction::Reverse) if payload.starts_with(b"SSH-") => Talk::Ssh,
        (Talk::Silent, Direction::Reverse) => Talk::ServerFirst,
        (Talk::Plain, Direction::Reverse) => match http_status(payload) {
            Some([b'1', b'0', b'1']) => Talk::Upgraded,
            Some([b'1', ..]) => {
                // An interim answer (RFC 9110, section 15.2): the client goes on, or the server does.
                connection.last_data = Some(Direction::Forward);
                Talk::Plain
            }
            _ => Talk::Plain,
        },
        (talk, _) => talk,
    };
}

/// What the client's first bytes mean. If they are fewer than it takes to tell, the worst.
fn client_says(payload: &[u8]) -> Talk {
    CLIENTS_SAY
        .iter()
        .find(|(beginning, _)| {
            let length = payload.len().min(beginning.len());
            payload[..length] == beginning[..length]
        })
        .map_or(Talk::Plain, |(_, talk)| *talk)
}

/// The status code of an HTTP/1 answer that begins here (RFC 9112, section 4).
fn http_status(payload: &[u8]) -> Option<[u8; 3]> {
    let version_and_status = payload.strip_prefix(b"HTTP/1.")?;
    version_and_status.get(2..5)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell() {
        for (payload, talk) in [
            (&b"GET / HTTP/1.1\r\n"[..], Talk::Plain),
            (b"\x16\x03\x01\x02\x00", Talk::Tls),
            (b"\x16", Talk::Tls),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", Talk::Http2),
            (b"PRINT", Talk::Plain),
            (b"SSH-2.0-OpenSSH_9.2", Talk::Ssh),
            (b"PROXY TCP4 1.2.3.4", Talk::ProxyHeader),
            (b"\r\n\r\n\0\r\nQUIT\n\x21", Talk::ProxyHeader),
            (b"*1\r\n$4\r\nPING\r\n", Talk::Plain),
        ] {
            assert_eq!(client_says(payload), talk, "{payload:?}");
        }
    }

    #[test]
    fn statuses() {
        assert_eq!(http_status(b"HTTP/1.1 101 Switching"), Some(*b"101"));
        assert_eq!(http_status(b"HTTP/1.0 200 OK"), Some(*b"200"));
        assert_eq!(http_status(b"HTTP/1.1"), None);
        assert_eq!(http_status(b"+PONG\r\n"), None);
    }
}
