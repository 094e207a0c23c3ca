//! The monitor's own control socket: it shows, and takes no orders. Those are given to the rewriters, by people.

use std::time::Instant;

use control_protocol::{
    Answer, Daemon, DecisionsQuery, DecisionsResult, ErrorCode, MAX_PAGE, Method, MirrorsResult,
    Request, Watch,
};
use control_server::Handler;

use crate::board::Board;

/// What answers on the socket.
#[derive(Debug)]
pub struct Window(pub Board);

impl Handler for Window {
    type Updates = ();

    async fn answer(&self, request: Request) -> Answer {
        let id = request.id;
        match request.method {
            Method::Decisions(DecisionsQuery { service, limit }) => {
                let limit = limit.unwrap_or(MAX_PAGE) as usize;
                let decisions = self
                    .0
                    .lock()
                    .decisions(service.as_ref(), limit, Instant::now());
                Answer::ok(id, &DecisionsResult { decisions })
            }
            Method::Mirrors(_) => {
                let mirrors = self.0.lock().mirrors.clone();
                Answer::ok(id, &MirrorsResult { mirrors })
            }
            other => Answer::elsewhere(id, &other, Daemon::Monitor),
        }
    }

    fn watch(&self, id: u64, params: Watch) -> Result<(), Answer> {
        Err(Answer::elsewhere(id, &params.into(), Daemon::Monitor))
    }

    async fn next_update(&self, id: u64, (): &mut ()) -> Answer {
        Answer::error(
            Some(id),
            ErrorCode::Internal,
            "there is nothing to be watched here",
        )
    }
}
