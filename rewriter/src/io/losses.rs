//! Which counter of [`Losses`] an error of the kernel belongs to.

use nix::errno::Errno;

use super::Losses;

impl Losses {
    /// Counts `packets` that the kernel refused with `errno`.
    pub(super) fn count(&mut self, packets: u64, errno: Errno) {
        let counter = match errno {
            Errno::EINVAL => &mut self.refused,
            Errno::ENOBUFS | Errno::ENOMEM | Errno::EAGAIN => &mut self.no_room,
            Errno::EIO | Errno::ENETDOWN => &mut self.link_down,
            Errno::ENETUNREACH | Errno::EHOSTUNREACH => &mut self.no_route,
            Errno::EMSGSIZE => &mut self.too_big,
            Errno::EPERM | Errno::EACCES => &mut self.forbidden,
            _ => &mut self.other,
        };
        *counter += packets;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_counter() {
        let mut losses = Losses::default();
        for errno in [
            Errno::EINVAL,
            Errno::ENOBUFS,
            Errno::ENOMEM,
            Errno::EAGAIN,
            Errno::EIO,
            Errno::ENETDOWN,
            Errno::ENETUNREACH,
            Errno::EHOSTUNREACH,
            Errno::EMSGSIZE,
            Errno::EPERM,
            Errno::EACCES,
            Errno::EADDRNOTAVAIL,
        ] {
            losses.count(1, errno);
        }
        assert_eq!(
            losses,
            Losses {
                refused: 1,
                no_room: 3,
                link_down: 2,
                no_route: 2,
                too_big: 1,
                forbidden: 2,
                other: 1,
            }
        );
    }
}
