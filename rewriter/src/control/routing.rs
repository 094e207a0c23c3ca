//! The routes that bring packets here: set up by the daemon, or by a person who was told how.

use std::io::{self, Write};
use std::net::IpAddr;

use log::warn;

use crate::io::routes::{self, Plan, Routes, RoutesError};

/// Who sets up the routes.
#[derive(Debug)]
pub enum Routing {
    /// The daemon does.
    Managed(Box<Routes>),
    /// A person does, with the commands that are printed to the standard output (`--no-routes`): see
    /// [`Routing::printed`].
    Printed(Box<Plan>),
}

impl Routing {
    /// Prints the commands for what `plan` has so far, and goes on printing.
    pub fn printed(plan: Plan) -> Self {
        print(
            &plan
                .to_string()
                .lines()
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        );
        Self::Printed(Box::new(plan))
    }

    /// Sees to it that a service's packets come here; nothing to do if they do already.
    ///
    /// # Errors
    /// The kernel refuses, or the family isn't set up.
    pub(super) async fn add(&mut self, service: IpAddr) -> Result<(), RoutesError> {
        match self {
            Self::Managed(routes) => routes.add_service(service).await,
            Self::Printed(plan) => {
                print(&plan.commands_for_add(service)?);
                Ok(())
            }
        }
    }

    /// Lets a service's packets take their normal way.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) async fn remove(&mut self, service: IpAddr) -> Result<(), RoutesError> {
        match self {
            Self::Managed(routes) => routes.remove_service(service).await,
            Self::Printed(plan) => {
                print(&plan.commands_for_remove(service));
                Ok(())
            }
        }
    }

    /// Whether an address is this machine's own, so that its packets never come to a route.
    ///
    /// # Errors
    /// The kernel doesn't answer.
    pub(super) async fn is_local(&self, address: IpAddr) -> Result<bool, RoutesError> {
        match self {
            Self::Managed(routes) => routes.is_local(address).await,
            Self::Printed(_) => routes::is_local(address).await,
        }
    }

    /// Follows changes of the machine's interfaces. What goes wrong has been logged.
    pub(super) async fn refresh(&mut self) {
        if let Self::Managed(routes) = self {
            routes.refresh().await;
        }
    }

    /// Takes away all that was set up. What goes wrong has been logged.
    pub async fn remove_all(&mut self) {
        match self {
            Self::Managed(routes) => {
                routes.remove_all().await;
            }
            Self::Printed(plan) => print(&plan.commands_for_removal()),
        }
    }
}

/// Prints commands, one a line.
fn print(commands: &[String]) {
    let mut out = io::stdout().lock();
    let result = commands
        .iter()
        .try_for_each(|command| writeln!(out, "{command}"))
        .and_then(|()| out.flush());
    if let Err(error) = result {
        warn!("can't print the commands: {error}");
    }
}
