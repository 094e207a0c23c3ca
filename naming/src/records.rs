//! From what is said on the control socket to the records of a message, and from a zone file to what could have
//! been said. The reading is hickory's.

use std::collections::BTreeMap;

use control_protocol::{DomainName, NameAddress, NameImport, NameRecords, TextError};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::txt::{ParseError, Parser};
use std::net::IpAddr;
use thiserror::Error;

/// Bytes of one string in a TXT record (RFC 1035, section 3.3).
const MAX_STRING: usize = 255;

/// What a zone file says that must not be followed (RFC 1035, section 5.1).
const INCLUDE: &str = "$include";

/// What is wrong with a record's text.
#[derive(Debug, Error)]
#[error("\"{text}\" can't be read as the data of a {kind} record: {error}")]
pub struct RecordError {
    kind: RecordType,
    text: String,
    error: ParseError,
}

/// What is wrong with a zone file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ZoneError {
    /// It isn't one.
    #[error("not a zone file: {0}")]
    Unreadable(#[from] ParseError),
    /// It wants another file to be read.
    #[error("the zone file can't include other files; write their text into it")]
    Includes,
    /// A name in it that can't be listed.
    #[error("{0}")]
    Name(#[from] TextError),
    /// Its records are of another class.
    #[error("{name} is of class {class}; only IN can be listed")]
    Class {
        /// The name.
        name: DomainName,
        /// Its class.
        class: DNSClass,
    },
}

/// The names of a zone file.
#[derive(Debug, Default)]
pub struct Zone {
    /// Each with the shortest of its records' times to live, in seconds.
    pub names: BTreeMap<DomainName, (u32, NameRecords)>,
    /// Records of types that can't be listed, by type.
    pub skipped: BTreeMap<String, u64>,
}

/// The records of a name, each with its weight.
///
/// # Errors
/// The first text that can't be read.
pub fn read_records(records: &NameRecords) -> Result<Vec<(RData, u16)>, RecordError> {
    let mut read = Vec::new();
    for NameAddress { address, weight } in &records.addresses {
        let data = match address {
            IpAddr::V4(address) => RData::A(A(*address)),
            IpAddr::V6(address) => RData::AAAA(AAAA(*address)),
        };
        read.push((data, *weight));
    }
    if let Some(target) = &records.cname {
        let refused = |error| RecordError {
            kind: RecordType::CNAME,
            text: target.to_string(),
            error: ParseError::from(error),
        };
        let mut target = Name::from_ascii(target.as_str()).map_err(refused)?;
        target.set_fqdn(true);
        read.push((RData::CNAME(CNAME(target)), 1));
    }
    for (kind, texts) in [
        (RecordType::HTTPS, &records.https),
        (RecordType::SVCB, &records.svcb),
        (RecordType::SRV, &records.srv),
    ] {
        for text in texts {
            let data = RData::try_from_str(kind, text).map_err(|error| RecordError {
                kind,
                text: text.clone(),
                error,
            })?;
            read.push((data, 1));
        }
    }
    for text in &records.txt {
        let strings: Vec<&[u8]> = match text.as_bytes() {
            [] => vec![&[]],
            bytes => bytes.chunks(MAX_STRING).collect(),
        };
        read.push((RData::TXT(TXT::from_bytes(strings)), 1));
    }
    Ok(read)
}

/// Reads a zone file.
///
/// # Errors
/// It can't be read, or has something that can't be listed, other than records of unusual types.
pub fn read_zone(import: &NameImport) -> Result<Zone, ZoneError> {
    if import.zone.to_ascii_lowercase().contains(INCLUDE) {
        return Err(ZoneError::Includes);
    }
    let origin = match &import.origin {
        // A zone file has an origin; that of one without relative names doesn't matter.
        None => Name::root(),
        Some(origin) => Name::from_ascii(origin.as_str()).map_err(ParseError::from)?,
    };
    let (_, sets) = Parser::new(import.zone.as_str(), None, Some(origin)).parse()?;
    let mut zone = Zone::default();
    for set in sets.values() {
        for record in set.records_without_rrsigs() {
            let mut records = NameRecords::default();
            if !list(record, &mut records)? {
                let skipped = zone.skipped.entry(record.record_type().to_string());
                *skipped.or_default() += 1;
                continue;
            }
            let name: DomainName = record.name.to_ascii().parse()?;
            if record.dns_class != DNSClass::IN {
                return Err(ZoneError::Class {
                    name,
                    class: record.dns_class,
                });
            }
            let ttl = import.ttl.unwrap_or(record.ttl);
            let (shortest, listed) = zone
                .names
                .entry(name)
                .or_insert_with(|| (ttl, NameRecords::default()));
            *shortest = ttl.min(*shortest);
            listed.addresses.append(&mut records.addresses);
            listed.cname = listed.cname.take().or(records.cname);
            listed.https.append(&mut records.https);
            listed.svcb.append(&mut records.svcb);
            listed.srv.append(&mut records.srv);
            listed.txt.append(&mut records.txt);
        }
    }
    Ok(zone)
}

/// Puts a record where it belongs. `false`: it belongs nowhere.
fn list(record: &Record, records: &mut NameRecords) -> Result<bool, ZoneError> {
    let address = |address| NameAddress { address, weight: 1 };
    match &record.data {
        RData::A(A(ipv4)) => records.addresses.push(address((*ipv4).into())),
        RData::AAAA(AAAA(ipv6)) => records.addresses.push(address((*ipv6).into())),
        RData::CNAME(CNAME(target)) => records.cname = Some(target.to_ascii().parse()?),
        RData::HTTPS(data) => records.https.push(data.to_string()),
        RData::SVCB(data) => records.svcb.push(data.to_string()),
        RData::SRV(data) => records.srv.push(data.to_string()),
        RData::TXT(data) => match String::from_utf8(data.txt_data.concat()) {
            Ok(text) => records.txt.push(text),
            Err(_) => return Ok(false),
        },
        _ => return Ok(false),
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn import(zone: &str) -> Result<Zone, String> {
        read_zone(&NameImport {
            zone: zone.to_owned(),
            origin: Some("bt.com".parse().unwrap()),
            ttl: None,
        })
        .map_err(|error| error.to_string())
    }

    #[test]
    fn what_was_imported_can_be_written_and_read_again() {
        let zone = import(
            "@ 3600 IN SOA ns hostmaster 1 2 3 4 5\n\
             @ 3600 IN NS ns\n\
             www 60 IN A 10.2.0.3\n\
             www 30 IN A 10.2.0.4\n\
             www 60 IN AAAA fd00::3\n\
             www 60 IN HTTPS 1 . alpn=h2,h3 port=8443 ipv4hint=10.2.0.3\n\
             _http._tcp 60 IN SRV 0 5 80 www\n\
             * 60 IN TXT \"any \" \"text\"\n\
             old 60 IN CNAME www.bt.com.\n",
        )
        .unwrap();
        assert_eq!(
            zone.skipped,
            BTreeMap::from([("NS".to_owned(), 1), ("SOA".to_owned(), 1)])
        );
        let names: Vec<_> = zone.names.keys().map(DomainName::as_str).collect();
        assert_eq!(
            names,
            ["*.bt.com", "_http._tcp.bt.com", "old.bt.com", "www.bt.com"]
        );
        let (ttl, www) = &zone.names[&"www.bt.com".parse().unwrap()];
        assert_eq!(*ttl, 30);
        assert_eq!(www.addresses.len(), 3);
        for (_, records) in zone.names.values() {
            let once = read_records(records).unwrap();
            let texts = NameRecords {
                https: www.https.clone(),
                ..records.clone()
            };
            assert!(read_records(&texts).is_ok());
            assert!(!once.is_empty());
        }
        let https = read_records(www).unwrap();
        let RData::HTTPS(https) = &https[3].0 else {
            panic!("{https:?}");
        };
        let expected = RData::try_from_str(
            RecordType::HTTPS,
            "1 . alpn=h2,h3 port=8443 ipv4hint=10.2.0.3",
        );
        assert_eq!(RData::HTTPS(https.clone()), expected.unwrap());
    }

    #[test]
    fn what_isnt_a_zone_is_refused() {
        assert!(import("www 60 IN A 10.2.0.300\n").is_err());
        let error = import("$Include /etc/passwd\n").unwrap_err();
        assert!(error.contains("can't include"), "{error}");
        let error = import("www 60 CH A 10.2.0.3\n").unwrap_err();
        assert!(error.contains("only IN"), "{error}");
        assert!(import("a!b 60 IN A 10.2.0.3\n").is_err());
    }

    #[test]
    fn a_long_text_is_cut_into_strings() {
        let records = NameRecords {
            txt: vec!["x".repeat(600), String::new()],
            ..NameRecords::default()
        };
        let read = read_records(&records).unwrap();
        let lengths = |data: &RData| match data {
            RData::TXT(text) => text.txt_data.iter().map(|string| string.len()).collect(),
            _ => Vec::new(),
        };
        assert_eq!(lengths(&read[0].0), [255, 255, 90]);
        assert_eq!(lengths(&read[1].0), [0]);
    }

    #[test]
    fn what_cant_be_read_is_named() {
        let records = NameRecords {
            srv: vec!["0 5 eighty www.bt.com.".to_owned()],
            ..NameRecords::default()
        };
        let error = read_records(&records).unwrap_err().to_string();
        assert!(
            error.starts_with(
                "\"0 5 eighty www.bt.com.\" can't be read as the data of a SRV record"
            ),
            "{error}"
        );
    }
}
