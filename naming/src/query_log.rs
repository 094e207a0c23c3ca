//! The query log: one line a query, in a file of bounded size. Off unless asked for, since it says who wanted to
//! know what.
//!
//! Workers put what they did into a channel that holds a few thousand; what doesn't fit is counted and left out, as
//! nobody's answer may wait for a disk. One thread writes. When the file is full, it takes the place of the one
//! before it, whose name ends in `.1`.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use dns_question::{Header, Question, WireName};
use log::warn;

use crate::answer::Transport;
use crate::counters::Count;

/// Lines that may wait to be written.
const WAITING: usize = 8192;

/// How long a line may wait in memory.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);

/// One query, and what was done about it.
#[derive(Debug)]
pub struct Entry {
    /// When.
    pub at: SystemTime,
    /// Who asked.
    pub client: SocketAddr,
    /// How.
    pub transport: Transport,
    /// What was asked: header and question of the query, or as much as there was.
    pub query: Box<[u8]>,
    /// What was done.
    pub done: Count,
}

/// Where workers put their lines.
#[derive(Debug, Clone)]
pub struct QueryLog {
    entries: Sender<Entry>,
}

/// The thread that writes.
#[derive(Debug)]
pub struct Writer {
    thread: JoinHandle<()>,
}

impl QueryLog {
    /// Begins to write to the end of the file at `path`, which is put aside when it has `max_bytes`. Ends when
    /// the last clone is dropped.
    ///
    /// # Errors
    /// The file can't be opened, or the system has no threads left.
    pub fn start(path: &Path, max_bytes: u64) -> io::Result<(Self, Writer)> {
        let (entries, waiting) = bounded(WAITING);
        let mut file = LogFile::open(path, max_bytes)?;
        let thread = thread::Builder::new()
            .name("query log".to_owned())
            .spawn(move || file.write_all(&waiting))?;
        Ok((Self { entries }, Writer { thread }))
    }

    /// Puts a line. `false`: there was no room.
    pub fn put(&self, entry: Entry) -> bool {
        !matches!(self.entries.try_send(entry), Err(TrySendError::Full(_)))
    }
}

impl Writer {
    /// Waits until all is written, once no [`QueryLog`] is left.
    pub fn join(self) {
        // A panic has been told by itself.
        let _ = self.thread.join();
    }
}

struct LogFile {
    path: PathBuf,
    file: BufWriter<File>,
    bytes: u64,
    max_bytes: u64,
    /// Whether the operator has been told that it can't be written.
    has_warned: bool,
}

impl LogFile {
    fn open(path: &Path, max_bytes: u64) -> io::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o640)
            .open(path)?;
        Ok(Self {
            path: path.to_owned(),
            bytes: file.metadata()?.len(),
            file: BufWriter::new(file),
            max_bytes,
            has_warned: false,
        })
    }

    fn write_all(&mut self, waiting: &Receiver<Entry>) {
        let mut line = String::new();
        loop {
            let done = match waiting.recv_timeout(FLUSH_INTERVAL) {
                Ok(entry) => {
                    line.clear();
                    describe(&entry, &mut line);
                    self.write(&line)
                }
                Err(RecvTimeoutError::Timeout) => self.file.flush(),
                Err(RecvTimeoutError::Disconnected) => {
                    if let Err(error) = self.file.flush() {
                        self.warn(&error);
                    }
                    return;
                }
            };
            match done {
                Ok(()) => self.has_warned = false,
                Err(error) => self.warn(&error),
            }
        }
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        if self.bytes > 0 && self.bytes + line.len() as u64 > self.max_bytes {
            self.file.flush()?;
            let mut before = self.path.as_os_str().to_owned();
            before.push(".1");
            fs::rename(&self.path, before)?;
            *self = Self::open(&self.path, self.max_bytes)?;
        }
        self.bytes += line.len() as u64;
        self.file.write_all(line.as_bytes())
    }

    fn warn(&mut self, error: &io::Error) {
        if !self.has_warned {
            warn!("can't write the query log {}: {error}", self.path.display());
            self.has_warned = true;
        }
    }
}

/// One line: columns with tabs between them. A name can't break out of its column: what isn't printable is escaped.
fn describe(entry: &Entry, line: &mut String) {
    let transport = match entry.transport {
        Transport::Udp => "udp",
        Transport::Tcp => "tcp",
    };
    let at = humantime::format_rfc3339_millis(entry.at);
    let (family, label) = entry.done.name();
    let id = Header::read(&entry.query).map_or(0, |header| header.id());
    // Writing to a string can't fail.
    let _ = write!(line, "{at}\t{}\t{transport}\t{id}\t", entry.client);
    let _ = match Question::read(&entry.query) {
        Ok(question) => {
            let name = WireName::from_question(&question);
            write!(
                line,
                "{name}\t{}\t{}",
                type_name(question.kind),
                question.class
            )
        }
        Err(_) => write!(line, "-\t-\t-"),
    };
    let _ = writeln!(line, "\t{family}\t{label}");
}

/// A type by its name, or as RFC 3597 writes those without.
fn type_name(kind: u16) -> String {
    use hickory_proto::rr::RecordType;
    match RecordType::from(kind) {
        RecordType::Unknown(_) => format!("TYPE{kind}"),
        known => known.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &[u8]) -> Entry {
        let header = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        Entry {
            at: SystemTime::UNIX_EPOCH + Duration::from_millis(1500),
            client: "192.0.2.1:5353".parse().unwrap(),
            transport: Transport::Udp,
            query: [&header, name, &[0, 28, 0, 1]].concat().into(),
            done: Count::Own,
        }
    }

    #[test]
    fn a_line_says_who_asked_what_and_what_was_done() {
        let mut line = String::new();
        describe(&entry(b"\x03WWW\x02b\t\0"), &mut line);
        assert_eq!(
            line,
            "1970-01-01T00:00:01.500Z\t192.0.2.1:5353\tudp\t4660\twww.b\\009\tAAAA\t1\tanswers\town\n"
        );
        line.clear();
        let cut = Entry {
            query: [0; 3].into(),
            ..entry(b"\0")
        };
        describe(&cut, &mut line);
        assert!(line.contains("\t-\t-\t-\t"), "{line}");
    }

    #[test]
    fn a_full_file_is_put_aside_and_never_more_than_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queries.log");
        let mut line = String::new();
        describe(&entry(b"\0"), &mut line);
        let (log, writer) = QueryLog::start(&path, 3 * line.len() as u64).unwrap();
        for _ in 0..8 {
            assert!(log.put(entry(b"\0")));
        }
        drop(log);
        writer.join();
        let lines = |path: &Path| fs::read_to_string(path).unwrap().lines().count();
        assert_eq!(lines(&path), 2);
        assert_eq!(lines(&folder.path().join("queries.log.1")), 3);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        // The next server goes on where this one has ended.
        let (log, writer) = QueryLog::start(&path, 3 * line.len() as u64).unwrap();
        log.put(entry(b"\0"));
        drop(log);
        writer.join();
        assert_eq!(lines(&path), 3);
    }
}
