//! Cookies: what shows that a client is where its address says (RFC 7873), in the form that servers have agreed on
//! (RFC 9018).

use std::hash::Hasher;
use std::net::IpAddr;

use siphasher::sip::SipHasher24;

use super::edns::Cookie;

/// Version 1, and three bytes without a meaning (RFC 9018, section 4).
const PREAMBLE: [u8; 4] = [1, 0, 0, 0];

/// How long a cookie counts, in seconds.
const LIFE: i32 = 3600;

/// By how many seconds the clocks of two servers may differ.
const SKEW: i32 = 300;

/// What only this server knows.
#[derive(Clone)]
pub struct CookieSecret([u8; 16]);

impl std::fmt::Debug for CookieSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CookieSecret(…)")
    }
}

impl CookieSecret {
    /// A secret that nobody can guess.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// Both parts of the cookie that a client is to send next time. `seconds` is the time since 1970, modulo 2³².
    pub fn make(&self, client: [u8; 8], address: IpAddr, seconds: u32) -> [u8; 24] {
        let mut cookie = [0; 24];
        let [part, preamble, time, hash] = [0..8, 8..12, 12..16, 16..24];
        cookie[part].copy_from_slice(&client);
        cookie[preamble].copy_from_slice(&PREAMBLE);
        cookie[time].copy_from_slice(&seconds.to_be_bytes());
        let sum = self.hash(&cookie[..16], address);
        cookie[hash].copy_from_slice(&sum);
        cookie
    }

    /// Whether the server's part is one that this client was given, and not too long ago.
    pub fn is_valid(&self, cookie: &Cookie<'_>, address: IpAddr, seconds: u32) -> bool {
        let Some((body, hash)) = cookie.server.split_first_chunk::<8>() else {
            return false;
        };
        let [preamble @ .., _, _, _, _] = body;
        let [_, _, _, _, time @ ..] = body;
        // Serial number arithmetic (RFC 1982).
        let age = seconds.wrapping_sub(u32::from_be_bytes(*time)) as i32;
        if *preamble != PREAMBLE || !(-SKEW..=LIFE).contains(&age) {
            return false;
        }
        let mut input = [0; 16];
        input[..8].copy_from_slice(&cookie.client);
        input[8..].copy_from_slice(body);
        self.hash(&input, address) == *hash
    }

    /// SipHash-2-4 over the client's part, the server's part before the hash, and the client's address.
    fn hash(&self, parts: &[u8], address: IpAddr) -> [u8; 8] {
        let mut hasher = SipHasher24::new_with_key(&self.0);
        hasher.write(parts);
        match address {
            IpAddr::V4(address) => hasher.write(&address.octets()),
            IpAddr::V6(address) => hasher.write(&address.octets()),
        }
        // The hash's bytes in the order in which SipHash has them.
        hasher.finish().to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 9018, appendix A.1.
    #[test]
    fn the_cookie_of_rfc_9018() {
        let secret = CookieSecret([
            0xe5, 0xe9, 0x73, 0xe5, 0xa6, 0xb2, 0xa4, 0x3f, 0x48, 0xe7, 0xdc, 0x84, 0x9e, 0x37,
            0xbf, 0xcf,
        ]);
        let client = [0x24, 0x64, 0xc4, 0xab, 0xcf, 0x10, 0xc9, 0x57];
        let address: IpAddr = "198.51.100.100".parse().unwrap();
        let cookie = secret.make(client, address, 1_559_731_985);
        assert_eq!(
            cookie[8..],
            [
                0x01, 0x00, 0x00, 0x00, 0x5c, 0xf7, 0x9f, 0x11, 0x1f, 0x81, 0x30, 0xc3, 0xee, 0xe2,
                0x94, 0x80
            ]
        );
        let cookie = Cookie {
            client,
            server: &cookie[8..],
        };
        let is_valid =
            |address: &str, seconds| secret.is_valid(&cookie, address.parse().unwrap(), seconds);
        assert!(is_valid("198.51.100.100", 1_559_731_985));
        assert!(is_valid("198.51.100.100", 1_559_731_985 + 3600));
        assert!(!is_valid("198.51.100.100", 1_559_731_985 + 3601));
        assert!(!is_valid("198.51.100.101", 1_559_731_985));
        let other = Cookie {
            client: [0; 8],
            ..cookie
        };
        assert!(!secret.is_valid(&other, address, 1_559_731_985));
    }
}
