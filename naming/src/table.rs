//! The listed names, each with its answers: made ready when the name is set, so that a query costs a copy.

use std::sync::atomic::{AtomicU64, Ordering};

use dns_question::{Names, WireName, class, kind};
use hickory_proto::ProtoError;
use hickory_proto::rr::RData;
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder, NameEncoding};
use thiserror::Error;

/// A pointer to the question's name, which stands right behind the header (RFC 1035, section 4.1.4).
const QUESTION_NAME: [u8; 2] = [0xC0, 12];

/// The most records of one name, so that its answer stays within what a message can hold.
pub const MAX_RECORDS: usize = 256;

/// Bytes of the longest data of one record. What is longer is of no use to any of the types there are.
pub const MAX_RECORD_DATA: usize = 4096;

/// Bytes of all records of one type together: they and the rest of the answer must fit 65,535.
const MAX_SET: usize = 60_000;

/// All listed names.
pub type Table = Names<std::sync::Arc<Entry>>;

/// What is known of one listed name.
#[derive(Debug)]
pub struct Entry {
    sets: Vec<RecordSet>,
    alias: Option<Alias>,
    /// The SOA record that goes with an empty answer.
    negative: Box<[u8]>,
    answered: AtomicU64,
}

/// Another name that stands for this one.
#[derive(Debug)]
pub struct Alias {
    /// The other name.
    pub target: WireName,
    /// The CNAME record without its owner's name.
    pub record: Box<[u8]>,
}

/// The records of one type.
#[derive(Debug)]
pub struct RecordSet {
    kind: u16,
    /// Each from its type on, without its owner's name; those with weight 0 are left out.
    records: Vec<Box<[u8]>>,
    /// The weights' running sum, for each of the records.
    weights: Vec<u64>,
}

/// Why records can't be listed under a name.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EntryError {
    /// A name that stands for another has nothing of its own (RFC 1034, section 3.6.2).
    #[error("a name with a CNAME can have no other record")]
    AliasWithOthers,
    /// There are no records.
    #[error("there is no record for the name")]
    NoRecords,
    /// More than [`MAX_RECORDS`].
    #[error("the name has {0} records; at most {MAX_RECORDS} are possible")]
    TooManyRecords(usize),
    /// One that is longer than [`MAX_RECORD_DATA`], or more of them than fit a message.
    #[error("the records are too long for a message")]
    TooLong,
    /// A type that the table doesn't take.
    #[error("records of the type {0} can't be listed")]
    Type(hickory_proto::rr::RecordType),
    /// The library can't write it.
    #[error("a record can't be written: {0}")]
    Unwritable(#[from] ProtoError),
    /// The CNAME's target is no name.
    #[error("the CNAME's target is no name: {0}")]
    Target(#[from] dns_question::NameError),
}

impl Entry {
    /// An entry with these records, each with a weight that counts among those of the same type.
    ///
    /// # Errors
    /// The records don't go together, or don't fit.
    pub fn new(ttl: u32, records: &[(RData, u16)]) -> Result<Self, EntryError> {
        if records.is_empty() {
            return Err(EntryError::NoRecords);
        }
        if records.len() > MAX_RECORDS {
            return Err(EntryError::TooManyRecords(records.len()));
        }
        let mut sets: Vec<RecordSet> = Vec::new();
        let mut alias = None;
        for (data, weight) in records {
            let record_type = data.record_type();
            let kind = u16::from(record_type);
            let record = write_record(kind, ttl, data)?;
            match kind {
                kind::CNAME => {
                    if records.len() > 1 {
                        return Err(EntryError::AliasWithOthers);
                    }
                    let RData::CNAME(target) = data else {
                        return Err(EntryError::Type(record_type));
                    };
                    let target = WireName::from_text(&target.to_ascii())?;
                    alias = Some(Alias { target, record });
                }
                kind::A | kind::AAAA | kind::HTTPS | kind::SVCB | kind::SRV | kind::TXT => {
                    let set = match sets.iter_mut().position(|set| set.kind == kind) {
                        Some(at) => &mut sets[at],
                        None => {
                            sets.push(RecordSet::empty(kind));
                            let last = sets.len() - 1;
                            &mut sets[last]
                        }
                    };
                    set.push(record, *weight);
                }
                _ => return Err(EntryError::Type(record_type)),
            }
        }
        let too_long = |set: &RecordSet| {
            set.records
                .iter()
                .map(|record| record.len() + 2)
                .sum::<usize>()
                > MAX_SET
        };
        if sets.iter().any(too_long) {
            return Err(EntryError::TooLong);
        }
        Ok(Self {
            sets,
            alias,
            negative: negative(ttl),
            answered: AtomicU64::new(0),
        })
    }

    /// The records of this type; `None`: it has none.
    pub fn set(&self, kind: u16) -> Option<&RecordSet> {
        self.sets.iter().find(|set| set.kind == kind)
    }

    /// The name that stands for it.
    pub fn alias(&self) -> Option<&Alias> {
        self.alias.as_ref()
    }

    /// The SOA record of an empty answer (RFC 2308, section 5), from its type on.
    pub fn negative(&self) -> &[u8] {
        &self.negative
    }

    /// Counts a query that was answered from here.
    pub fn count(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// How many queries were answered from here.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Takes over the count of the entry that this one replaces.
    pub fn succeed(&self, other: &Self) {
        self.answered.fetch_add(other.answered(), Ordering::Relaxed);
    }
}

impl RecordSet {
    fn empty(kind: u16) -> Self {
        Self {
            kind,
            records: Vec::new(),
            weights: Vec::new(),
        }
    }

    fn push(&mut self, record: Box<[u8]>, weight: u16) {
        if weight == 0 {
            return;
        }
        let before = self.weights.last().copied().unwrap_or(0);
        self.records.push(record);
        self.weights.push(before + u64::from(weight));
    }

    /// How many records an answer has.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether an answer has none, as all have the weight 0.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// All records from their types on: first the one that `random` picks by weight, then the others in
    /// the order in which they were set, from there on and around.
    pub fn rotated(&self, random: u64) -> impl Iterator<Item = &[u8]> {
        let first = match self.weights.last() {
            Some(total) if self.records.len() > 1 => {
                let pick = random % total;
                self.weights.partition_point(|sum| *sum <= pick)
            }
            _ => 0,
        };
        let (before, from_first) = self.records.split_at(first);
        from_first.iter().chain(before).map(AsRef::as_ref)
    }
}

/// A record of class IN from its type on.
fn write_record(kind: u16, ttl: u32, data: &RData) -> Result<Box<[u8]>, EntryError> {
    let mut bytes = Vec::new();
    let mut encoder = BinEncoder::new(&mut bytes);
    // Names within the data aren't compressed, as they can't point at what stands before.
    encoder.set_name_encoding(NameEncoding::Uncompressed);
    data.emit(&mut encoder)?;
    if bytes.len() > MAX_RECORD_DATA {
        return Err(EntryError::TooLong);
    }
    Ok(record(kind, ttl, &bytes))
}

fn record(kind: u16, ttl: u32, data: &[u8]) -> Box<[u8]> {
    let mut record = Vec::with_capacity(10 + data.len());
    record.extend(kind.to_be_bytes());
    record.extend(class::IN.to_be_bytes());
    record.extend(ttl.to_be_bytes());
    // At most MAX_RECORD_DATA.
    record.extend((data.len() as u16).to_be_bytes());
    record.extend(data);
    record.into()
}

/// The SOA record of an empty answer. What is absent may be remembered as long as what is there. Its owner
/// and its server are the question's name: the table knows no zones.
fn negative(ttl: u32) -> Box<[u8]> {
    /// Nobody's mailbox (RFC 2606).
    const MAILBOX: &[u8] = b"\x06nobody\x07invalid\0";
    let mut data = QUESTION_NAME.to_vec();
    data.extend(MAILBOX);
    // Serial, refresh, retry and expire are for those who copy zones, which nobody does here.
    for number in [1, 3600, 600, 86_400, ttl] {
        data.extend(u32::to_be_bytes(number));
    }
    record(kind::SOA, ttl, &data)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use hickory_proto::rr::RecordType;

    fn data(kind: RecordType, text: &str) -> RData {
        RData::try_from_str(kind, text).unwrap()
    }

    #[test]
    fn the_first_record_is_picked_by_weight_and_all_are_listed() {
        let records = [("10.2.0.2", 1), ("10.2.0.3", 3), ("10.2.0.4", 0)]
            .map(|(address, weight)| (data(RecordType::A, address), weight));
        let entry = Entry::new(5, &records).unwrap();
        let set = entry.set(kind::A).unwrap();
        let mut firsts = BTreeMap::new();
        for random in 0..400 {
            let last_bytes: Vec<u8> = set
                .rotated(random)
                .map(|record| *record.last().unwrap())
                .collect();
            assert_eq!(last_bytes.len(), 2, "weight 0 is left out");
            *firsts.entry(last_bytes[0]).or_insert(0) += 1;
        }
        assert_eq!(firsts, BTreeMap::from([(2, 100), (3, 300)]));
    }

    #[test]
    fn what_doesnt_go_together_is_refused() {
        let address = (data(RecordType::A, "10.2.0.2"), 1);
        let alias = (data(RecordType::CNAME, "www.bt.com."), 1);
        assert!(matches!(Entry::new(5, &[]), Err(EntryError::NoRecords)));
        assert!(matches!(
            Entry::new(5, &[address.clone(), alias]),
            Err(EntryError::AliasWithOthers)
        ));
        let many = vec![address; MAX_RECORDS + 1];
        assert!(matches!(
            Entry::new(5, &many),
            Err(EntryError::TooManyRecords(257))
        ));
        let texts = vec![(data(RecordType::TXT, &"x".repeat(250)), 1); MAX_RECORDS];
        assert!(matches!(Entry::new(5, &texts), Err(EntryError::TooLong)));
        let other = (data(RecordType::MX, "10 mail.bt.com."), 1);
        assert!(matches!(Entry::new(5, &[other]), Err(EntryError::Type(_))));
    }
}
