//! The Internet checksum, kept right by differences.
//!
//! A checksum is the complement of a one's complement sum of 16-bit words (RFC 1071). When some of
//! the words change, the new sum is the old one, minus the old words, plus the new ones: the other
//! words needn't be read (RFC 1624, equation 3: `HC' = ~(~HC + ~m + m')`). All packets of a
//! connection change in the same words by the same amount, so that amount, a [`Sum`], is computed
//! once for a connection and applied to each packet with one addition.
//!
//! Two kinds of number that must not be mixed up:
//! - a [`Sum`] is a running sum, or a difference of two;
//! - what lies in a packet is either a *complete* checksum, the complement of a sum
//!   ([`adjust_complete`]), or, when the kernel has left it to be completed (`NEEDS_CSUM`), a
//!   *partial* one: the un-complemented sum of the pseudo-header alone ([`adjust_partial`]).
//!
//! One's complement has two zeros, 0x0000 and 0xFFFF. An incremental update may give the one where a
//! full sum gives the other; receivers take both, but UDP gives 0x0000 a meaning of its own (no
//! checksum), so [`adjust_udp`] never writes it.

/// A one's complement sum of 16-bit words in host order, or a difference of two such sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Sum(u16);

impl Sum {
    /// The sum of `bytes`, network order; an odd last byte counts as the high half of a word.
    pub fn of(bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<2>();
        let mut total: u64 = words
            .iter()
            .map(|word| u64::from(u16::from_be_bytes(*word)))
            .sum();
        if let [last] = rest {
            total += u64::from(*last) << 8;
        }
        Self::fold(total)
    }

    /// The sum of one 16-bit word, host order.
    pub fn word(word: u16) -> Self {
        Self(word)
    }

    /// `self` less `other`.
    pub fn minus(self, other: Self) -> Self {
        self.plus(other.negated())
    }

    /// `self` and `other` together.
    pub fn plus(self, other: Self) -> Self {
        let (total, carry) = self.0.overflowing_add(other.0);
        Self(total + u16::from(carry))
    }

    /// Whether it is zero, of which one's complement has two: the sum of all that a checksum covers,
    /// the checksum included, when that is right (RFC 1071, section 1).
    pub fn is_zero(self) -> bool {
        self.0 == 0 || self.0 == 0xFFFF
    }

    /// What added to `self` gives zero.
    pub fn negated(self) -> Self {
        Self(!self.0)
    }

    fn fold(mut total: u64) -> Self {
        while total > 0xFFFF {
            total = (total & 0xFFFF) + (total >> 16);
        }
        // The loop has brought it into 16 bits.
        Self(total as u16)
    }
}

/// Applies a difference to a complete checksum (RFC 1624, equation 3).
pub fn adjust_complete(field: &mut [u8; 2], difference: Sum) {
    let sum = Sum(!u16::from_be_bytes(*field));
    *field = (!sum.plus(difference).0).to_be_bytes();
}

/// Applies a difference to a complete UDP checksum: 0x0000 says "none" and stays (RFC 768), a
/// computed 0x0000 becomes 0xFFFF.
pub fn adjust_udp(field: &mut [u8; 2], difference: Sum) {
    if *field == [0, 0] {
        return;
    }
    adjust_complete(field, difference);
    if *field == [0, 0] {
        *field = [0xFF, 0xFF];
    }
}

/// Applies a difference of addresses to the pseudo-header sum that stands in place of a checksum
/// which the kernel has left to be completed.
pub fn adjust_partial(field: &mut [u8; 2], difference: Sum) {
    *field = Sum(u16::from_be_bytes(*field))
        .plus(difference)
        .0
        .to_be_bytes();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1624, section 4: the example on which equation 2 fails.
    #[test]
    fn the_rfcs_own_example() {
        let mut field = 0xDD2F_u16.to_be_bytes();
        adjust_complete(&mut field, Sum::word(0x3285).minus(Sum::word(0x5555)));
        assert_eq!(u16::from_be_bytes(field), 0x0000);
    }

    #[test]
    fn a_udp_checksum_of_none_stays_none() {
        let mut field = [0, 0];
        adjust_udp(&mut field, Sum::word(77));
        assert_eq!(field, [0, 0]);
    }

    #[test]
    fn a_computed_udp_zero_is_written_as_all_ones() {
        let mut field = 0xDD2F_u16.to_be_bytes();
        adjust_udp(&mut field, Sum::word(0x3285).minus(Sum::word(0x5555)));
        assert_eq!(field, [0xFF, 0xFF]);
    }

    /// The two zeros of one's complement count as equal.
    fn same(a: u16, b: u16) -> bool {
        a == b || (a.is_multiple_of(0xFFFF) && b.is_multiple_of(0xFFFF))
    }

    proptest! {
        #[test]
        fn a_difference_equals_a_full_sum(
            mut bytes in prop::collection::vec(any::<u8>(), 8..200),
            replacement in any::<[u8; 8]>(),
        ) {
            let mut field = (!Sum::of(&bytes).0).to_be_bytes();
            let difference = Sum::of(&replacement).minus(Sum::of(&bytes[..8]));
            bytes[..8].copy_from_slice(&replacement);
            adjust_complete(&mut field, difference);
            prop_assert!(same(u16::from_be_bytes(field), !Sum::of(&bytes).0));
        }

        #[test]
        fn a_difference_and_its_negative_leave_all_as_it_was(field in any::<u16>(), by in any::<u16>()) {
            let mut bytes = field.to_be_bytes();
            adjust_complete(&mut bytes, Sum::word(by));
            adjust_complete(&mut bytes, Sum::word(by).negated());
            prop_assert!(same(u16::from_be_bytes(bytes), field));
        }
    }
}
