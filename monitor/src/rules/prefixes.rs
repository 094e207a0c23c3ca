//! Sets of addresses as lists of prefixes.
//!
//! Two prefixes nest or have nothing in common. A list is *plain* if none of its prefixes is in another
//! one, and they are in order, as `IpNet::aggregate` makes it.

use ipnet::IpNet;

/// The addresses that are in both of two plain lists; plain again.
pub(super) fn intersection(a: &[IpNet], b: &[IpNet]) -> Vec<IpNet> {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    let mut both = Vec::new();
    while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
        if x.contains(*y) {
            both.push(**y);
            b.next();
        } else if y.contains(*x) {
            both.push(**x);
            a.next();
        } else if x < y {
            a.next();
        } else {
            b.next();
        }
    }
    both
}

/// A prefix without others: what is left of it as prefixes, in order.
pub(super) fn difference(prefix: IpNet, without: &[IpNet]) -> Vec<IpNet> {
    let mut rest = Vec::new();
    subtract(prefix, without.to_vec(), &mut rest);
    rest
}

/// Halves the prefix until each part is in one of the others, or has nothing to do with them.
fn subtract(prefix: IpNet, mut without: Vec<IpNet>, rest: &mut Vec<IpNet>) {
    if without.iter().any(|other| other.contains(&prefix)) {
        return;
    }
    without.retain(|other| prefix.contains(other));
    if without.is_empty() {
        rest.push(prefix);
        return;
    }
    // One of the others is longer, so this one can be halved.
    for half in prefix
        .subnets(prefix.prefix_len() + 1)
        .into_iter()
        .flatten()
    {
        subtract(half, without.clone(), rest);
    }
}

/// Halves the prefixes of length 0. To the rewriter a diversion of these is as specific as one for
/// everyone, so it couldn't tell which comes first.
pub(super) fn without_whole_families(prefixes: Vec<IpNet>) -> Vec<IpNet> {
    let halve = |prefix: IpNet| {
        let length = prefix.prefix_len().max(1);
        prefix.subnets(length).into_iter().flatten()
    };
    prefixes.into_iter().flat_map(halve).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(text: &str) -> Vec<IpNet> {
        text.split_whitespace()
            .map(|p| p.parse().unwrap())
            .collect()
    }

    #[test]
    fn what_is_in_both() {
        for (a, b, both) in [
            (
                "10.0.0.0/8",
                "10.1.0.0/16 10.3.0.0/16 11.0.0.0/8",
                "10.1.0.0/16 10.3.0.0/16",
            ),
            (
                "10.1.0.0/16 10.2.0.0/16",
                "10.0.0.0/8",
                "10.1.0.0/16 10.2.0.0/16",
            ),
            ("10.0.0.0/8", "10.0.0.0/8", "10.0.0.0/8"),
            ("10.0.0.0/8", "0.0.0.0/0 ::/0", "10.0.0.0/8"),
            (
                "10.0.0.0/8 fd00::/8",
                "12.0.0.0/8 fd00:1::/32",
                "fd00:1::/32",
            ),
            ("10.0.0.0/8", "::/0", ""),
            ("", "::/0", ""),
        ] {
            assert_eq!(
                intersection(&networks(a), &networks(b)),
                networks(both),
                "{a} and {b}"
            );
            assert_eq!(
                intersection(&networks(b), &networks(a)),
                networks(both),
                "{b} and {a}"
            );
        }
    }

    #[test]
    fn what_is_left() {
        for (prefix, without, left) in [
            ("10.0.0.0/8", "11.0.0.0/8", "10.0.0.0/8"),
            ("10.0.0.0/8", "10.0.0.0/8", ""),
            ("10.0.0.0/8", "0.0.0.0/0", ""),
            ("10.0.0.0/8", "10.128.0.0/10", "10.0.0.0/9 10.192.0.0/10"),
            (
                "10.0.0.0/30",
                "10.0.0.1/32 10.0.0.2/32",
                "10.0.0.0/32 10.0.0.3/32",
            ),
            ("fd00::/126", "fd00::3/128", "fd00::/127 fd00::2/128"),
            ("10.0.0.0/31", "10.0.0.0/32 10.0.0.1/32", ""),
        ] {
            assert_eq!(
                difference(prefix.parse().unwrap(), &networks(without)),
                networks(left),
                "{prefix} without {without}"
            );
        }
    }
}
