//! No copy of this process's memory, which holds keys and passwords, is left behind when it crashes.

use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, setrlimit};

/// Turns core dumps off, including those that go to a program of the system. Other processes of the same user then cannot
/// read this process's memory either.
///
/// # Errors
/// When the system refuses.
pub(crate) fn turn_off() -> std::io::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    set_dumpable(false)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_dumped_once_it_is_turned_off() {
        turn_off().unwrap();
        assert!(!nix::sys::prctl::get_dumpable().unwrap());
        assert_eq!(nix::sys::resource::getrlimit(Resource::RLIMIT_CORE).unwrap(), (0, 0));
    }
}
