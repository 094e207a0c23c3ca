//! A worker: one thread with one port and one engine.
//!
//! Its loop reads a batch of packets, runs the engine on each where it lies, and writes it. Between
//! batches it takes packets that other workers received but this one owns, does what the control
//! socket asks, a slice of a redirect, and what the engine has to do by the clock. When there is none of
//! that it looks again for a while, and then sleeps.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError};
use tokio::sync::oneshot;

use crate::engine::{
    Config, Counters, Engine, Outgoing, Redirect, RedirectOutcome, Sweep, Time, Verdict,
};
use crate::io::poll;
use crate::io::waker::{self, Sleeper, Waker};
use crate::io::{Frame, Losses, Port, TooBig};
use crate::packet::Datagram;

/// Packets read before they are handled, and before a worker looks at anything else.
const BATCH: usize = 32;
/// Bytes after which no more packets are read into a batch: super-packets are to be sent before they
/// have left the processor's cache.
const BATCH_BYTES: usize = 64 * 1024;
/// Packets that may wait for their owner; more are dropped.
const HANDOVER_QUEUE: usize = 1024;
/// Slots of a redirect that are done between two batches.
const SWEEP_SLICE: u32 = 1024;

/// The least time between two alerts in the log.
const ALERT_INTERVAL: Duration = Duration::from_secs(10);

/// What a worker is asked to do.
enum Command {
    /// Anything that is quickly done with the engine.
    Run(Box<dyn FnOnce(&mut Engine) + Send>),
    /// Move connections; answered when all have been looked at.
    Redirect(Redirect, oneshot::Sender<RedirectOutcome>),
    /// Say what was counted.
    Report(oneshot::Sender<Report>),
    /// End.
    Stop,
}

/// What one worker received and another owns.
enum HandedOver {
    /// A packet as it came, with its header ([`Frame::wire`]).
    Packet(Box<[u8]>),
    /// A datagram whose fragments met at the worker that hands it over.
    Datagram(Datagram),
}

/// What a worker has counted since its start.
#[derive(Debug, Clone)]
pub struct Report {
    /// What the engine counted.
    pub counters: Counters,
    /// How many connections there are now.
    pub connections: u64,
    /// What the port couldn't send.
    pub losses: Losses,
    /// Packets that were dropped because their owner's queue was full.
    pub handover_full: u64,
}

/// A worker no longer answers: its thread has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a worker has ended")]
pub struct WorkerGone;

/// All the workers of a daemon, to be asked things. Clones ask the same workers.
#[derive(Debug, Clone)]
pub struct Workers {
    peers: Vec<Peer>,
    clock: Clock,
}

/// How to reach a worker.
#[derive(Debug, Clone)]
struct Peer {
    commands: Sender<Command>,
    packets: Sender<HandedOver>,
    waker: Waker,
}

impl Workers {
    /// Starts a thread for each port. `config` is taken for each with its own number. The returned
    /// receivers, one for each worker, say how it ended; one that is closed without a word means that
    /// it panicked. A worker with nothing to do looks for packets for as long as `busy_poll` before it
    /// sleeps.
    ///
    /// # Errors
    /// No thread or no event descriptor could be made.
    pub fn start<P: Port + Send + 'static>(
        ports: Vec<P>,
        config: &Config,
        busy_poll: Duration,
    ) -> io::Result<(Self, Vec<oneshot::Receiver<io::Result<()>>>)> {
        let mut peers = Vec::new();
        let mut ends = Vec::new();
        for _ in &ports {
            let (waker, sleeper) = waker::pair()?;
            let (commands, command_queue) = crossbeam_channel::unbounded();
            let (packets, packet_queue) = crossbeam_channel::bounded(HANDOVER_QUEUE);
            peers.push(Peer {
                commands,
                packets,
                waker,
            });
            ends.push((sleeper, command_queue, packet_queue));
        }
        let clock = Clock {
            epoch: Instant::now(),
        };
        let mut exits = Vec::new();
        for ((number, port), (sleeper, commands, packets)) in (0..).zip(ports).zip(ends) {
            let config = Config {
                worker: number,
                ..config.clone()
            };
            let worker = Worker {
                engine: Engine::new(&config, clock.now()),
                port,
                clock,
                busy_poll,
                sleeper,
                commands,
                packets,
                peers: peers.clone(),
                sweeps: VecDeque::new(),
                handover_full: 0,
                next_alert: Time::default(),
            };
            let (exit, exited) = oneshot::channel();
            thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || {
                    // The receiver may be gone when the daemon is on its way out.
                    let _ = exit.send(worker.run());
                })?;
            exits.push(exited);
        }
        Ok((Self { peers, clock }, exits))
    }

    /// Runs `question` on the engine of worker `number`.
    ///
    /// # Errors
    /// There is no such worker, or it has ended.
    pub async fn ask<T: Send + 'static>(
        &self,
        number: u32,
        question: impl FnOnce(&mut Engine) -> T + Send + 'static,
    ) -> Result<T, WorkerGone> {
        let peer = self.peers.get(number as usize).ok_or(WorkerGone)?;
        let (answer, answered) = oneshot::channel();
        peer.send(Command::Run(Box::new(move |engine| {
            // Whoever asked may have gone away meanwhile.
            let _ = answer.send(question(engine));
        })));
        answered.await.map_err(|_| WorkerGone)
    }

    /// Runs `question` on every engine, and answers when all have, in their order.
    ///
    /// # Errors
    /// A worker has ended.
    pub async fn ask_all<T: Send + 'static>(
        &self,
        question: impl Fn(&mut Engine) -> T + Clone + Send + 'static,
    ) -> Result<Vec<T>, WorkerGone> {
        let answers = self.peers.iter().map(|peer| {
            let (answer, answered) = oneshot::channel();
            let question = question.clone();
            peer.send(Command::Run(Box::new(move |engine| {
                let _ = answer.send(question(engine));
            })));
            answered
        });
        collect(answers.collect()).await
    }

    /// Moves connections in all workers; the sum of what they did.
    ///
    /// # Errors
    /// A worker has ended.
    pub async fn redirect(&self, redirect: Redirect) -> Result<RedirectOutcome, WorkerGone> {
        let answers = self.peers.iter().map(|peer| {
            let (answer, answered) = oneshot::channel();
            peer.send(Command::Redirect(redirect, answer));
            answered
        });
        let outcomes = collect(answers.collect()).await?;
        Ok(outcomes
            .into_iter()
            .fold(RedirectOutcome::default(), RedirectOutcome::plus))
    }

    /// What each worker has counted.
    ///
    /// # Errors
    /// A worker has ended.
    pub async fn report(&self) -> Result<Vec<Report>, WorkerGone> {
        let answers = self.peers.iter().map(|peer| {
            let (answer, answered) = oneshot::channel();
            peer.send(Command::Report(answer));
            answered
        });
        collect(answers.collect()).await
    }

    /// The time on the workers' clock.
    pub fn now(&self) -> Time {
        self.clock.now()
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.peers.len() as u32
    }

    /// Tells all to end.
    pub fn stop(&self) {
        for peer in &self.peers {
            peer.send(Command::Stop);
        }
    }
}

async fn collect<T>(answers: Vec<oneshot::Receiver<T>>) -> Result<Vec<T>, WorkerGone> {
    let mut collected = Vec::with_capacity(answers.len());
    for answer in answers {
        collected.push(answer.await.map_err(|_| WorkerGone)?);
    }
    Ok(collected)
}

impl Peer {
    /// A worker that has ended drops the command, and with it the channel for the answer, which is
    /// how the asker learns of it.
    fn send(&self, command: Command) {
        let _ = self.commands.send(command);
        self.waker.wake();
    }
}

/// The workers' clock: monotonic, the same for all.
#[derive(Debug, Clone, Copy)]
struct Clock {
    epoch: Instant,
}

impl Clock {
    fn now(&self) -> Time {
        Time::default().after(self.epoch.elapsed())
    }
}

struct Worker<P> {
    engine: Engine,
    port: P,
    clock: Clock,
    busy_poll: Duration,
    sleeper: Sleeper,
    commands: Receiver<Command>,
    packets: Receiver<HandedOver>,
    peers: Vec<Peer>,
    sweeps: VecDeque<(Sweep, oneshot::Sender<RedirectOutcome>)>,
    handover_full: u64,
    next_alert: Time,
}

impl<P: Port> Worker<P> {
    fn run(mut self) -> io::Result<()> {
        let mut frames: [Frame; BATCH] = std::array::from_fn(|_| Frame::new());
        // When there was last something to do.
        let mut busy_at = self.clock.now();
        loop {
            let now = self.clock.now();
            let mut busy = self.receive_batch(&mut frames, now)?;
            let [frame, ..] = &mut frames;
            busy |= self.take_over_batch(frame, now)?;
            while let Ok(command) = self.commands.try_recv() {
                match command {
                    Command::Run(question) => question(&mut self.engine),
                    Command::Redirect(redirect, answer) => {
                        self.sweeps.push_back((Sweep::new(redirect), answer));
                    }
                    Command::Report(answer) => {
                        let _ = answer.send(self.report());
                    }
                    Command::Stop => return self.port.flush(),
                }
            }
            busy |= self.sweep(now);
            self.engine.handle_timeout(now);
            self.send_own(frame)?;
            self.port.flush()?;
            busy |= self.deal_with_too_big(now);
            self.log_alert(now);
            if busy {
                busy_at = now;
            } else if now.since(busy_at) < self.busy_poll {
                // Whoever is to send the next packet may be waiting for this core.
                thread::yield_now();
            } else {
                self.sleep()?;
            }
        }
    }

    /// Reads and handles a batch. `true`: there was something.
    fn receive_batch(&mut self, frames: &mut [Frame], now: Time) -> io::Result<bool> {
        let (mut received, mut bytes) = (0, 0);
        while received < BATCH && bytes < BATCH_BYTES {
            let frame = &mut frames[received];
            if !self.port.receive(frame)? {
                break;
            }
            bytes += frame.wire().len();
            received += 1;
        }
        let batch = &mut frames[..received];
        if batch.len() > 1 {
            self.engine.fetch(batch.iter_mut().map(Frame::packet_mut));
        }
        for frame in batch {
            self.handle(frame, now)?;
        }
        Ok(received > 0)
    }

    /// Handles what other workers received. `true`: there may be more.
    fn take_over_batch(&mut self, frame: &mut Frame, now: Time) -> io::Result<bool> {
        for _ in 0..BATCH {
            match self.packets.try_recv() {
                Ok(HandedOver::Packet(wire)) => {
                    frame.fill_wire(&wire);
                    self.handle(frame, now)?;
                }
                Ok(HandedOver::Datagram(datagram)) => {
                    self.engine.handle_datagram(datagram, now);
                    self.send_own(frame)?;
                }
                Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    fn handle(&mut self, frame: &mut Frame, now: Time) -> io::Result<()> {
        let mut header = frame.header();
        match self.engine.handle(frame.packet_mut(), &mut header, now) {
            Verdict::Translated(_) | Verdict::Passed => {
                frame.set_header(&header);
                self.port.transmit(frame)
            }
            Verdict::HandOver { owner } => {
                self.hand_over(owner, HandedOver::Packet(frame.wire().into()));
                Ok(())
            }
            // At once, so that a datagram doesn't fall behind the packets that come after it.
            Verdict::Held => self.send_own(frame),
            Verdict::Dropped(_) => Ok(()),
        }
    }

    /// Sends what the engine has to send of its own accord, to the port and to other workers.
    fn send_own(&mut self, frame: &mut Frame) -> io::Result<()> {
        while let Some((owner, datagram)) = self.engine.poll_hand_over() {
            self.hand_over(owner, HandedOver::Datagram(datagram));
        }
        while let Some(Outgoing { packet, offload }) = self.engine.poll_transmit() {
            frame.fill(&packet);
            frame.set_header(&offload);
            self.port.transmit(frame)?;
        }
        Ok(())
    }

    fn hand_over(&mut self, owner: u16, packet: HandedOver) {
        let Some(peer) = self.peers.get(usize::from(owner)) else {
            return;
        };
        match peer.packets.try_send(packet) {
            Ok(()) => peer.waker.wake(),
            Err(TrySendError::Full(_)) => self.handover_full += 1,
            // The daemon is on its way out.
            Err(TrySendError::Disconnected(_)) => {}
        }
    }

    /// Does a slice of the first redirect that isn't finished. `true`: there is more.
    fn sweep(&mut self, now: Time) -> bool {
        if let Some((sweep, _)) = self.sweeps.front_mut()
            && let Some(outcome) = self.engine.sweep(sweep, SWEEP_SLICE, now)
            && let Some((_, answer)) = self.sweeps.pop_front()
        {
            let _ = answer.send(outcome);
        }
        !self.sweeps.is_empty()
    }

    /// Has the engine deal with packets that were too long for their links. `true`: it may have
    /// something to send.
    fn deal_with_too_big(&mut self, now: Time) -> bool {
        let mut any = false;
        while let Some(TooBig { packet, mtu }) = self.port.poll_too_big() {
            self.engine.handle_too_big(packet, mtu, now);
            any = true;
        }
        any
    }

    fn log_alert(&mut self, now: Time) {
        if let Some(alert) = self.engine.poll_alert()
            && now >= self.next_alert
        {
            log::warn!("{alert}");
            self.next_alert = now.after(ALERT_INTERVAL);
        }
    }

    fn sleep(&self) -> io::Result<()> {
        let timeout: Option<Duration> = self
            .engine
            .poll_timeout()
            .map(|due| due.since(self.clock.now()));
        let ready = poll::wait(self.port.readiness(), self.sleeper.as_fd(), timeout)?;
        if ready.waker {
            self.sleeper.drain();
        }
        Ok(())
    }

    fn report(&self) -> Report {
        Report {
            counters: self.engine.counters().clone(),
            connections: self.engine.connections().len() as u64,
            losses: self.port.losses(),
            handover_full: self.handover_full,
        }
    }
}
