//! A number of workers, and the queue before them: first come, first served. When those who come do so at
//! random, it is the M/G/c queue of the textbooks.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use tokio::sync::oneshot;

/// The workers and those who wait for one. Clones are the same queue.
#[derive(Debug, Clone)]
pub struct Queue(Rc<RefCell<State>>);

#[derive(Debug)]
struct State {
    workers: usize,
    busy: usize,
    waiting: VecDeque<oneshot::Sender<Worker>>,
}

/// How busy it is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// The workers that there are.
    pub workers: usize,
    /// Those at work. When workers have been taken away, there may be more than `workers` for a while.
    pub busy: usize,
    /// Who waits for a worker.
    pub waiting: usize,
}

impl Load {
    /// The share of the workers that are at work, from 0 to 1.
    pub fn utilisation(self) -> f64 {
        // Without workers nothing could be done, as if all were busy.
        (self.busy as f64 / self.workers as f64)
            .min(1.0)
            .max(f64::from(u8::from(self.workers == 0)))
    }
}

/// A worker at work. It is free again when this is dropped.
#[derive(Debug)]
pub struct Worker(Queue);

impl Queue {
    /// A queue before this many workers. With none, everyone waits until there are some.
    pub fn new(workers: usize) -> Self {
        Self(Rc::new(RefCell::new(State {
            workers,
            busy: 0,
            waiting: VecDeque::new(),
        })))
    }

    /// Waits for a worker. Who gives up waiting has left the queue.
    pub async fn worker(&self) -> Worker {
        let (promise, turn) = oneshot::channel();
        self.0.borrow_mut().waiting.push_back(promise);
        self.serve();
        match turn.await {
            Ok(worker) => worker,
            // Promises are only dropped with the queue, which this call holds.
            Err(_) => std::future::pending().await,
        }
    }

    /// From now on there are this many workers. Those at work finish what they do.
    pub fn set_workers(&self, workers: usize) {
        self.0.borrow_mut().workers = workers;
        self.serve();
    }

    /// How busy it is.
    pub fn load(&self) -> Load {
        let state = self.0.borrow();
        Load {
            workers: state.workers,
            busy: state.busy,
            waiting: state
                .waiting
                .iter()
                .filter(|promise| !promise.is_closed())
                .count(),
        }
    }

    /// Gives free workers to those who have waited longest.
    fn serve(&self) {
        while let Some(promise) = self.next() {
            // If it fails, the worker comes back, is dropped, and so freed.
            let _ = promise.send(Worker(self.clone()));
        }
    }

    /// Whoever is to be served next, if a worker is free; that one is busy from now on.
    fn next(&self) -> Option<oneshot::Sender<Worker>> {
        let mut state = self.0.borrow_mut();
        if state.busy >= state.workers {
            return None;
        }
        loop {
            let promise = state.waiting.pop_front()?;
            if !promise.is_closed() {
                state.busy += 1;
                return Some(promise);
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.0.0.borrow_mut().busy -= 1;
        self.0.serve();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    fn load(workers: usize, busy: usize, waiting: usize) -> Load {
        Load {
            workers,
            busy,
            waiting,
        }
    }

    #[test]
    fn who_came_first_is_served_first() {
        let queue = Queue::new(1);
        let (mut first, mut second, mut third) = (
            pin!(queue.worker()),
            pin!(queue.worker()),
            pin!(queue.worker()),
        );
        let Poll::Ready(worker) = poll(first.as_mut()) else {
            panic!("a worker is free");
        };
        assert!(poll(second.as_mut()).is_pending());
        assert!(poll(third.as_mut()).is_pending());
        assert_eq!(queue.load(), load(1, 1, 2));
        drop(worker);
        assert!(poll(third.as_mut()).is_pending());
        let Poll::Ready(worker) = poll(second.as_mut()) else {
            panic!("the second's turn");
        };
        assert_eq!(queue.load(), load(1, 1, 1));
        drop(worker);
        assert!(poll(third.as_mut()).is_ready());
        assert_eq!(queue.load(), load(1, 0, 0));
    }

    #[test]
    fn who_gives_up_holds_up_nobody() {
        let queue = Queue::new(1);
        let Poll::Ready(worker) = poll(pin!(queue.worker())) else {
            panic!("a worker is free");
        };
        {
            let mut given_up = pin!(queue.worker());
            assert!(poll(given_up.as_mut()).is_pending());
        }
        let mut patient = pin!(queue.worker());
        assert!(poll(patient.as_mut()).is_pending());
        assert_eq!(queue.load(), load(1, 1, 1));
        drop(worker);
        // A worker that was promised to one who then leaves is free again.
        {
            let mut leaves = pin!(queue.worker());
            assert!(poll(leaves.as_mut()).is_pending());
            assert!(poll(patient.as_mut()).is_ready());
        }
        assert_eq!(queue.load(), load(1, 0, 0));
    }

    #[test]
    fn workers_come_and_go() {
        let queue = Queue::new(0);
        assert_eq!(queue.load().utilisation(), 1.0);
        let mut first = pin!(queue.worker());
        let mut second = pin!(queue.worker());
        assert!(poll(first.as_mut()).is_pending());
        assert!(poll(second.as_mut()).is_pending());
        queue.set_workers(2);
        let (Poll::Ready(one), Poll::Ready(_two)) = (poll(first.as_mut()), poll(second.as_mut()))
        else {
            panic!("there are two");
        };
        queue.set_workers(1);
        assert_eq!(queue.load(), load(1, 2, 0));
        assert_eq!(queue.load().utilisation(), 1.0);
        let mut third = pin!(queue.worker());
        assert!(poll(third.as_mut()).is_pending());
        drop(one);
        // Only now there are no more at work than there are.
        assert!(poll(third.as_mut()).is_pending());
    }
}
