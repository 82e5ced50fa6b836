//! What every wrapper of a `std` socket has.

/// Methods that are `std`'s own.
macro_rules! delegate {
    ($std:ident: $(fn $name:ident($($arg:ident: $type:ty),*) -> $ret:ty;)+) => {$(
        #[doc = concat!("As [`std::net::", stringify!($std), "::", stringify!($name), "`].")]
        ///
        /// # Errors
        /// Those of the `std` function.
        pub fn $name(&self, $($arg: $type),*) -> $ret {
            self.0.$name($($arg),*)
        }
    )+};
}

/// Conversions and descriptors.
macro_rules! wraps {
    ($($name:ident)+) => {$(
        impl From<std::net::$name> for $name {
            fn from(inner: std::net::$name) -> Self {
                Self(inner)
            }
        }

        impl From<$name> for std::net::$name {
            fn from(outer: $name) -> Self {
                outer.0
            }
        }

        impl From<std::os::fd::OwnedFd> for $name {
            fn from(fd: std::os::fd::OwnedFd) -> Self {
                Self(fd.into())
            }
        }

        impl From<$name> for std::os::fd::OwnedFd {
            fn from(outer: $name) -> Self {
                outer.0.into()
            }
        }

        impl std::os::fd::AsFd for $name {
            fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
                self.0.as_fd()
            }
        }

        impl std::os::fd::AsRawFd for $name {
            fn as_raw_fd(&self) -> std::os::fd::RawFd {
                self.0.as_raw_fd()
            }
        }

        impl std::os::fd::IntoRawFd for $name {
            fn into_raw_fd(self) -> std::os::fd::RawFd {
                self.0.into_raw_fd()
            }
        }

        impl $name {
            /// Another handle of the same socket.
            ///
            /// # Errors
            /// The process has no descriptor left.
            pub fn try_clone(&self) -> std::io::Result<Self> {
                self.0.try_clone().map(Self)
            }
        }
    )+};
}
