//! What tests of commands on testbeds share.

use hoist_wire::Testbed;

/// One of the test's own; none, with the reason on the terminal, for who is not root.
pub(crate) fn testbed() -> Option<Testbed> {
    if nix::unistd::geteuid().is_root() {
        return Some(Testbed::builder().up().unwrap());
    }
    eprintln!("skipped: needs root");
    None
}
