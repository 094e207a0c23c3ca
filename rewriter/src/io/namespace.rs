//! A network namespace for a while: a thread of its own, with links, addresses and routes of its
//! own.
//!
//! A network namespace belongs to a thread, not to a process. A thread that leaves the common one
//! (`unshare(CLONE_NEWNET)`) has an empty network to itself, in which nothing that it does touches
//! the host; and the namespace is gone when the thread has ended and its descriptors are closed.
//! The [self-test](super::self_test) runs in one, and so do the tests of this crate that need real
//! links.
//!
//! What a thread must have in its namespace is opened by the thread itself: sockets and TUNs belong
//! to the namespace of the thread that opens them, and `/proc/sys/net` shows the one of the thread
//! that reads (`/proc/net`, by contrast, shows the one of the process's first thread).

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use rtnetlink::{Handle, LinkUnspec};
use tokio::runtime::{Builder, Runtime};

/// Runs `work` in a thread with a network namespace of its own, and waits for it.
///
/// # Errors
/// The thread can't be made, or isn't permitted to have a namespace (`EPERM`: it takes
/// `CAP_SYS_ADMIN`).
///
/// # Panics
/// When `work` does.
pub(super) fn run<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("namespace".to_owned())
            .spawn_scoped(scope, || {
                unshare(CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            })?;
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Whether the kernel speaks IPv6 here; `ipv6.disable=1` on its command line forbids it.
pub(super) fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// Writes `value` to the setting `/proc/sys/<name>` of the calling thread's namespace.
///
/// # Errors
/// It doesn't exist or can't be written: containers often have `/proc/sys` read-only.
pub(super) fn set_sysctl(name: &str, value: &str) -> io::Result<()> {
    fs::write(Path::new("/proc/sys").join(name), value)
}

/// The links of the namespace of the thread that made it.
pub(super) struct Links {
    runtime: Runtime,
    handle: Handle,
}

impl Links {
    /// Connects to the kernel (rtnetlink).
    ///
    /// # Errors
    /// No descriptors are left (`EMFILE`, `ENFILE`).
    pub(super) fn connect() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let handle = runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            tokio::spawn(connection);
            io::Result::Ok(handle)
        })?;
        Ok(Self { runtime, handle })
    }

    /// Gives the link an address and a route to the network of `prefix` bits around it.
    ///
    /// # Errors
    /// The kernel's answer.
    pub(super) fn add_address(
        &self,
        index: u32,
        address: IpAddr,
        prefix: u8,
    ) -> Result<(), rtnetlink::Error> {
        let request = self.handle.address().add(index, address, prefix);
        self.runtime.block_on(request.execute())
    }

    /// Sets the link up.
    ///
    /// # Errors
    /// The kernel's answer.
    pub(super) fn set_up(&self, index: u32) -> Result<(), rtnetlink::Error> {
        let up = LinkUnspec::new_with_index(index).up().build();
        self.runtime.block_on(self.handle.link().set(up).execute())
    }
}

/// For the tests of this crate.
#[cfg(test)]
pub(super) mod testing {
    use std::env;
    use std::net::Ipv4Addr;

    use rtnetlink::RouteMessageBuilder;
    use rtnetlink::packet_route::rule::RuleAction;

    use super::*;

    /// [`run`]s a test that needs real links.
    ///
    /// Without the right to have a namespace the test fails, unless `SHUNT_TEST_UNPRIVILEGED=1` is
    /// set: then it says that it is skipped.
    pub(in crate::io) fn in_namespace(test: impl FnOnce() + Send) {
        match run(test) {
            Ok(()) => {}
            Err(error) if env::var_os("SHUNT_TEST_UNPRIVILEGED").is_some_and(|set| set == "1") => {
                println!("skipped: no network namespace ({error})");
            }
            Err(error) => panic!(
                "this test needs a network namespace of its own ({error}): run it as root, \
                 or set SHUNT_TEST_UNPRIVILEGED=1 to skip such tests"
            ),
        }
    }

    impl Links {
        /// Sets the link down.
        pub(in crate::io) fn set_down(&self, index: u32) -> Result<(), rtnetlink::Error> {
            let down = LinkUnspec::new_with_index(index).down().build();
            self.runtime
                .block_on(self.handle.link().set(down).execute())
        }

        /// Removes a link, as `ip link delete` does.
        pub(in crate::io) fn delete(&self, index: u32) -> Result<(), rtnetlink::Error> {
            self.runtime
                .block_on(self.handle.link().del(index).execute())
        }

        /// Sends what carries `mark` and goes to `destination` out of the link, and nothing else.
        pub(in crate::io) fn route_marked(
            &self,
            mark: u32,
            destination: Ipv4Addr,
            index: u32,
        ) -> Result<(), rtnetlink::Error> {
            const TABLE: u32 = 100;
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(destination, 32)
                .output_interface(index)
                .table_id(TABLE)
                .build();
            let rule = self.handle.rule().add().v4().fw_mark(mark).table_id(TABLE);
            self.runtime.block_on(async {
                self.handle.route().add(route).execute().await?;
                rule.action(RuleAction::ToTable).execute().await
            })
        }
    }

    fn names_of_links() -> Vec<String> {
        let links = nix::net::if_::if_nameindex().unwrap();
        links
            .into_iter()
            .map(|link| link.name().to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn a_namespace_starts_empty_and_has_settings_of_its_own() {
        const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
        let before = fs::read_to_string(FORWARDING).unwrap();
        in_namespace(|| {
            assert_eq!(names_of_links(), ["lo"]);
            let other = if before.trim() == "1" { "0" } else { "1" };
            set_sysctl("net/ipv4/ip_forward", other).unwrap();
            assert_eq!(fs::read_to_string(FORWARDING).unwrap().trim(), other);
        });
        let after = fs::read_to_string(FORWARDING).unwrap();
        assert_eq!(after, before, "the host's setting is untouched");
    }
}
