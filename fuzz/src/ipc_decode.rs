//! What must hold for any message; shared by the fuzz target and `crates/packet/tests/garbage.rs`.

use hoist_ipc::{MAX_MESSAGE, Reply, Request};

/// Whether the bytes are a request or a reply.
///
/// # Panics
/// If a message that is understood does not encode to the very bytes it came from.
pub(crate) fn check(message: &[u8]) -> bool {
    let request = Request::decode(message);
    if let Ok(request) = request {
        assert_eq!(Request::decode(request.encode().as_ref()), Ok(request));
        assert_eq!(request.encode().as_ref().len(), message.len());
    }
    let reply = Reply::decode(message);
    if let Ok(reply) = reply {
        assert_eq!(reply.encode().as_ref(), message);
    }
    let understood = request.is_ok() || reply.is_ok();
    assert!(!understood || message.len() <= MAX_MESSAGE);
    understood
}
