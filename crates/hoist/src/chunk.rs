//! Received bytes, wherever they lie.

use crate::sys::Lent;
use std::{fmt, ops::Deref};

/// Received bytes. Reads as a `[u8]`; what it lies in goes back when it is dropped.
pub struct Chunk(Place);

enum Place {
    Own(Vec<u8>),
    Lent(Lent),
}

impl Chunk {
    pub(crate) fn own(bytes: Vec<u8>) -> Self {
        Self(Place::Own(bytes))
    }

    pub(crate) fn lent(bytes: Lent) -> Self {
        Self(Place::Lent(bytes))
    }

    /// Whether the bytes lie in the frame they arrived in, without a copy.
    #[must_use]
    pub fn is_borrowed(&self) -> bool {
        matches!(&self.0, Place::Lent(bytes) if bytes.in_frame())
    }

    /// The bytes in memory of their own: a copy, unless they already are.
    #[must_use]
    pub fn into_vec(self) -> Vec<u8> {
        match self.0 {
            Place::Own(bytes) => bytes,
            Place::Lent(bytes) => bytes.to_vec(),
        }
    }
}

impl Deref for Chunk {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Place::Own(bytes) => bytes,
            Place::Lent(bytes) => bytes,
        }
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Chunk> for Vec<u8> {
    fn from(chunk: Chunk) -> Self {
        chunk.into_vec()
    }
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let borrowed = self.is_borrowed();
        f.debug_struct("Chunk").field("len", &self.len()).field("borrowed", &borrowed).finish()
    }
}

const _: () = {
    const fn goes_anywhere<T: Send + Sync + 'static>() {}
    goes_anywhere::<Chunk>();
};
