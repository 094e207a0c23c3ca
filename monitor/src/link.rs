//! The hands: what is said to the rewriters, and what they say.
//!
//! Each rewriter has three conversations, each in a thread of its own with the blocking client of the protocol crate, so
//! that a rewriter that hangs holds up nobody but itself, and a long order doesn't keep a sign of death from
//! being seen:
//!
//! - *watch*: an update a second of what it measures. It also tells whether the rewriter is there at all;
//! - *liveness*: its mirrors' vital signs, many times a second;
//! - *orders*: what it is told, in the order in which it was decided, and now and then the list of its diversions.
//!
//! The threads end with the program, or when nobody takes their events any more.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use control_protocol::{
    Client, ClientError, Divert, ErrorCode, Fallback, Grouping, List, ListResult, Liveness,
    LivenessResult, Percent, Redirect, Splice, TcpMove, Watch, WatchResult,
};
use tokio::sync::mpsc;

use crate::brain::{Action, Order};

/// How long a rewriter may take over an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait before another try to connect.
const RETRY: Duration = Duration::from_millis(500);
/// How often the diversions are listed.
const LIST_INTERVAL: Duration = Duration::from_secs(1);

/// What a rewriter has said, or that it says nothing.
#[derive(Debug)]
pub enum Event {
    /// It is there.
    Connected,
    /// It isn't there any more, or was never.
    Lost(String),
    /// What it has measured.
    Measured(WatchResult),
    /// Its mirrors' vital signs.
    Signs(LivenessResult),
    /// Its diversions, after it was given so many orders.
    Diversions(u64, ListResult),
    /// What became of an order.
    Done(Outcome),
}

/// What became of an order.
#[derive(Debug)]
pub struct Outcome {
    /// The decision that it was part of; none: it only repeated what is in force.
    pub decision: Option<u64>,
    /// How many connections were moved at once, or wait to be.
    pub moved: u64,
    /// Why it wasn't carried out.
    pub error: Option<OrderError>,
}

/// Why an order wasn't carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderError {
    /// A person has the service in hand.
    Held,
    /// Another reason.
    Failed(String),
}

/// Whom to give orders.
#[derive(Debug)]
pub struct Link {
    orders: Sender<(Option<u64>, Order)>,
    given: u64,
}

impl Link {
    /// Begins the conversations with a rewriter. Its events bear `number`.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn open(
        number: usize,
        socket: PathBuf,
        liveness: Option<Duration>,
        events: mpsc::Sender<(usize, Event)>,
    ) -> std::io::Result<Self> {
        let (orders, queue) = channel();
        let teller = Teller { number, events };
        spawn(format!("watch {number}"), &teller, &socket, watch)?;
        if let Some(interval) = liveness {
            let look = move |socket: &Path, teller: &Teller| signs(socket, teller, interval);
            spawn(format!("liveness {number}"), &teller, &socket, look)?;
        }
        let carry_out = move |socket: &Path, teller: &Teller| carry_out(socket, teller, &queue);
        spawn(format!("orders {number}"), &teller, &socket, carry_out)?;
        Ok(Self { orders, given: 0 })
    }

    /// Gives an order, to be carried out after those before it.
    pub fn give(&mut self, decision: Option<u64>, order: Order) {
        self.given += 1;
        // The thread only ends with the program.
        let _ = self.orders.send((decision, order));
    }

    /// How many orders were given.
    pub fn given(&self) -> u64 {
        self.given
    }
}

fn spawn(
    name: String,
    teller: &Teller,
    socket: &Path,
    work: impl FnOnce(&Path, &Teller) + Send + 'static,
) -> std::io::Result<()> {
    let (teller, socket) = (teller.clone(), socket.to_owned());
    thread::Builder::new()
        .name(name)
        .spawn(move || work(&socket, &teller))?;
    Ok(())
}

/// Tells what a rewriter says.
#[derive(Debug, Clone)]
struct Teller {
    number: usize,
    events: mpsc::Sender<(usize, Event)>,
}

/// Nobody listens any more.
struct NobodyListens;

impl Teller {
    fn tell(&self, event: Event) -> Result<(), NobodyListens> {
        self.events
            .blocking_send((self.number, event))
            .map_err(|_| NobodyListens)
    }
}

fn watch(socket: &Path, teller: &Teller) {
    loop {
        let ended = watch_once(socket, teller);
        let why = match ended {
            Ok(NobodyListens) => return,
            Err(error) => in_words(&error),
        };
        if teller.tell(Event::Lost(why)).is_err() {
            return;
        }
        thread::sleep(RETRY);
    }
}

fn watch_once(socket: &Path, teller: &Teller) -> Result<NobodyListens, ClientError> {
    let mut client = Client::connect_timeout(socket, PATIENCE)?;
    // The first is about all that was before.
    client.call(Watch {
        by: Grouping::Mirror,
    })?;
    if teller.tell(Event::Connected).is_err() {
        return Ok(NobodyListens);
    }
    loop {
        let update = client.next_update()?;
        if teller.tell(Event::Measured(update)).is_err() {
            return Ok(NobodyListens);
        }
    }
}

fn signs(socket: &Path, teller: &Teller, interval: Duration) {
    let mut client = None;
    loop {
        let answer = with_client(&mut client, socket, |client| client.call(Liveness {}));
        match answer {
            Ok(signs) => {
                if teller.tell(Event::Signs(signs)).is_err() {
                    return;
                }
                thread::sleep(interval);
            }
            // The conversation that watches says so.
            Err(_) => thread::sleep(RETRY),
        }
    }
}

fn carry_out(socket: &Path, teller: &Teller, orders: &Receiver<(Option<u64>, Order)>) {
    let mut client = None;
    let mut done = 0;
    loop {
        let list = with_client(&mut client, socket, |client| client.call(List {}));
        if let Ok(list) = list
            && teller.tell(Event::Diversions(done, list)).is_err()
        {
            return;
        }
        let mut patience = LIST_INTERVAL;
        loop {
            let (decision, order) = match orders.recv_timeout(patience) {
                Ok(order) => order,
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let carried_out = with_client(&mut client, socket, |client| give(client, &order));
            done += 1;
            let (moved, error) = match carried_out {
                Ok(moved) => (moved, None),
                Err(ClientError::Refused(failure)) if failure.code == ErrorCode::Held => {
                    (0, Some(OrderError::Held))
                }
                Err(error) => (0, Some(OrderError::Failed(in_words(&error)))),
            };
            let outcome = Outcome {
                decision,
                moved,
                error,
            };
            if teller.tell(Event::Done(outcome)).is_err() {
                return;
            }
            // What waits already is done first, then the list is looked at again.
            patience = Duration::ZERO;
        }
    }
}

/// Calls with the client that there is, or a new one. One that has failed isn't used again.
fn with_client<T>(
    client: &mut Option<Client>,
    socket: &Path,
    call: impl FnOnce(&mut Client) -> Result<T, ClientError>,
) -> Result<T, ClientError> {
    let mut used = match client.take() {
        Some(client) => client,
        None => Client::connect_timeout(socket, PATIENCE)?,
    };
    let answer = call(&mut used);
    if matches!(answer, Ok(_) | Err(ClientError::Refused(_))) {
        *client = Some(used);
    }
    answer
}

/// Gives one order. Tells how many connections it moves.
fn give(client: &mut Client, order: &Order) -> Result<u64, ClientError> {
    let Order {
        service,
        from,
        mirrors,
        action,
    } = order.clone();
    let (from_mirror, share, splice) = match action {
        Action::Stay => {
            client.call(Divert {
                service,
                mirrors,
                from,
                peek: None,
                automatic: true,
            })?;
            return Ok(0);
        }
        Action::Leave {
            mirror,
            percent,
            within,
            or_reset,
        } => {
            let fallback = if or_reset {
                Fallback::Reset
            } else {
                Fallback::Leave
            };
            let splice = Splice {
                within_ms: u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
                then: fallback,
                otherwise: fallback,
                ..Splice::default()
            };
            (mirror, percent.and_then(Percent::new), splice)
        }
        Action::Flee(mirror) => {
            let splice = Splice {
                now: true,
                ..Splice::default()
            };
            (mirror, None, splice)
        }
    };
    let result = client.call(Redirect {
        service,
        mirrors,
        from,
        tcp: TcpMove::Splice,
        splice,
        from_mirror: Some(from_mirror),
        share,
        automatic: true,
    })?;
    Ok(result.outcome.moved + result.outcome.waiting)
}

/// An error with what caused it, in one line.
fn in_words(error: &ClientError) -> String {
    let mut words = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        words = format!("{words}: {cause}");
        source = cause.source();
    }
    words
}
