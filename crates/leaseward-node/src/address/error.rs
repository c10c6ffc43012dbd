//! What can go wrong with a floating address, as a caller can act on it.

use std::io;
use std::net::IpAddr;

use super::frame::Mac;

/// Why a floating address was not claimed, extended or released.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// Somebody holds it. It was not claimed; with this machine's own MAC it is here, but not ours.
    #[error("{ip} is held by {mac} on {interface}, so it was not claimed")]
    Conflict {
        /// The address.
        ip: IpAddr,
        /// Its holder.
        mac: Mac,
        /// Where the holder was seen.
        interface: String,
    },
    /// It is not known where the address belongs. Never retry it unchanged.
    #[error("no interface for {ip}: {why}")]
    NoInterface {
        /// The address.
        ip: IpAddr,
        /// What was looked for.
        why: String,
    },
    /// The kernel wants `CAP_NET_ADMIN` and `CAP_NET_RAW`.
    #[error("not allowed to {doing}: it needs CAP_NET_ADMIN and CAP_NET_RAW")]
    NotAllowed {
        /// What was refused, as a verb.
        doing: String,
    },
    /// The machine failed us.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, as a verb.
        doing: String,
        /// The kernel's word.
        source: io::Error,
    },
    /// A network fence was asked for, and there is no `nft`.
    #[error("a network fence needs the program nft, and there is none in /usr/sbin, /sbin and /usr/bin")]
    NoNft,
    /// `nft` did not take the fence.
    #[error("nft refused: {why}")]
    Nft {
        /// Its words.
        why: String,
    },
    /// The time was over, or the server was released, before the address was in place. It is not.
    #[error("the time of {ip} was over before it was in place")]
    Late {
        /// The address.
        ip: IpAddr,
    },
    /// The text is no address that a server can have. Never retry it.
    #[error("`{ip}` is not an address that a server can have")]
    NotAnAddress {
        /// The text.
        ip: String,
    },
}

impl AddressError {
    /// Returns whether the same request may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Conflict { .. } | Self::Io { .. } | Self::Nft { .. } | Self::NoNft | Self::Late { .. } => true,
            Self::NoInterface { .. } | Self::NotAllowed { .. } | Self::NotAnAddress { .. } => false,
        }
    }

    /// Returns the stable code that documentation and scripts refer to.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Conflict { .. } => "LW0350",
            Self::NoInterface { .. } => "LW0351",
            Self::NotAllowed { .. } => "LW0352",
            Self::Io { .. } => "LW0353",
            Self::NoNft => "LW0354",
            Self::Nft { .. } => "LW0355",
            Self::Late { .. } => "LW0356",
            Self::NotAnAddress { .. } => "LW0357",
        }
    }
}

/// Returns a function that gives the kernel's error its verb.
pub(super) fn failed<E: Into<io::Error>>(doing: impl Into<String>) -> impl FnOnce(E) -> AddressError {
    let doing = doing.into();
    move |source| {
        let source = source.into();
        // Not EACCES: that is also the kernel's word for an interface without IPv6.
        if source.raw_os_error() == Some(libc::EPERM) {
            AddressError::NotAllowed { doing }
        } else {
            AddressError::Io { doing, source }
        }
    }
}
