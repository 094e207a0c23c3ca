//! The addresses that requests come from: clients of several networks, some with more connections than others.

use std::net::IpAddr;
use std::str::FromStr;

/// An address of this host, and its share of the connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    address: IpAddr,
    weight: u16,
}

impl FromStr for Source {
    type Err = String;

    /// `ADDRESS` or `ADDRESS*WEIGHT`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (address, weight) = text.split_once('*').unwrap_or((text, "1"));
        let weight = weight
            .parse()
            .ok()
            .filter(|weight| *weight > 0)
            .ok_or_else(|| format!("'{weight}' is no weight: 1 to {}", u16::MAX))?;
        let address = address
            .parse()
            .map_err(|_| format!("'{address}' is no address"))?;
        Ok(Self { address, weight })
    }
}

/// Shares `connections` out among the sources, in turn and in proportion to their weights.
pub fn share_out(sources: &[Source], connections: usize) -> Vec<Option<IpAddr>> {
    let total: i64 = sources.iter().map(|source| i64::from(source.weight)).sum();
    // Each saves its weight a turn, and whoever has most takes the turn and pays the total.
    let mut credits = vec![0_i64; sources.len()];
    (0..connections)
        .map(|_| {
            for (credit, source) in credits.iter_mut().zip(sources) {
                *credit += i64::from(source.weight);
            }
            let richest = (0..sources.len())
                .rev()
                .max_by_key(|index| credits[*index])?;
            credits[richest] -= total;
            Some(sources[richest].address)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_shared_out_by_weight_and_in_turn() {
        let sources: Vec<Source> = ["10.1.0.2*2", "10.1.1.2", "fd00:1::2"]
            .map(|text| text.parse().unwrap())
            .to_vec();
        let addresses: Vec<IpAddr> = share_out(&sources, 8).into_iter().flatten().collect();
        let [a, b, c] = [0, 1, 2].map(|index| sources[index].address);
        assert_eq!(addresses, [a, b, c, a, a, b, c, a]);
        assert_eq!(share_out(&[], 2), [None, None]);
    }

    #[test]
    fn what_is_no_source_is_refused() {
        for text in [
            "",
            "10.1.0.2*0",
            "10.1.0.2*-1",
            "10.1.0.2*",
            "mirror*1",
            "10.1.0.2*65536",
        ] {
            assert!(text.parse::<Source>().is_err(), "{text}");
        }
    }
}
