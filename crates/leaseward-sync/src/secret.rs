//! Sets whose files only their members can read: each file is encrypted by who publishes and opened on the member's disk.
//!
//! Must stay true: equal files under one key and path have equal ciphertexts, so that what did not change is not sent
//! again; no nonce is used for two plain texts, since it is made from the text; a file that was moved, cut, or made with
//! another key is refused. Keys are never written anywhere, and shown by their fingerprints only.
//! The names of files, their number and their sizes are not hidden. Stored form: it grows by a new magic number only.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use chacha20poly1305::aead::{AeadInPlace, KeyInit};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};

use crate::error::{Error, Result, at};

const MAGIC: [u8; 8] = *b"LWSEC\0\0\x01";
const NONCE: usize = 24;
const TAG: usize = 16;

/// Bytes that an encrypted file has more than the plain one.
pub const MORE_BYTES: u64 = (MAGIC.len() + NONCE + TAG) as u64;

const HEADER: &str = "leaseward-key-1:";

/// A key of 256 bits.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.fingerprint())
    }
}

impl Key {
    /// Makes a new key from the kernel's randomness and writes it to a new file, for its owner alone.
    ///
    /// # Errors
    /// [`Error::Io`], also if the file exists.
    pub fn create(path: &Path) -> Result<Self> {
        use std::io::Write as _;
        let mut bytes = [0; 32];
        let mut filled = 0;
        while filled < bytes.len() {
            filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())
                .map_err(at("make a key for", path))?;
        }
        let key = Self(bytes);
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(at("create", path))?;
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(file, "{HEADER}{text}").map_err(at("write", path))?;
        file.sync_all().map_err(at("sync", path))?;
        Ok(key)
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// [`Error::Unusable`] for a file that others may read, or that holds no key; [`Error::Io`].
    pub fn read(path: &Path) -> Result<Self> {
        let unusable = |why: &str| Error::unusable(format!("{} as a key", path.display()), why);
        let mode = std::fs::metadata(path).map_err(at("look at", path))?.mode();
        if mode & 0o077 != 0 {
            return Err(unusable(&format!("others may read it (mode {:o}); chmod 600", mode & 0o777)));
        }
        let text = std::fs::read_to_string(path).map_err(at("read", path))?;
        let digest = text.trim().strip_prefix(HEADER).and_then(leaseward_state::config::Digest::parse);
        digest.map(|digest| Self(digest.0)).ok_or_else(|| unusable("it holds none"))
    }

    /// Returns what the key is called. Nothing of the key can be learned from it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let hash = blake3::derive_key("leaseward 1 fingerprint of a set's key", &self.0);
        hash[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Returns a file as it is published. Its memory becomes that of what is returned, if it has room for
    /// [`MORE_BYTES`] more.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for more than the cipher takes, which no file of a set has.
    pub fn seal(&self, path: &str, plain: Vec<u8>) -> Result<Vec<u8>> {
        let mut hasher = blake3::Hasher::new_keyed(&blake3::derive_key("leaseward 1 nonces of a set's files", &self.0));
        hasher.update(&(path.len() as u64).to_le_bytes()).update(path.as_bytes()).update(&plain);
        let hash = hasher.finalize();
        let nonce = &hash.as_bytes()[..NONCE];
        let mut bytes = plain;
        let tag = self.cipher().encrypt_in_place_detached(XNonce::from_slice(nonce), path.as_bytes(), &mut bytes);
        let limit = leaseward_state::limits::SET_BYTES_MAX;
        let tag = tag.map_err(|_| Error::TooLarge { what: "bytes of a secret", size: bytes.len() as u64, limit })?;
        bytes.reserve_exact(MORE_BYTES as usize);
        bytes.splice(..0, MAGIC.into_iter().chain(nonce.iter().copied()));
        bytes.extend_from_slice(&tag);
        Ok(bytes)
    }

    /// Returns the plain file, in the memory of the encrypted one.
    ///
    /// # Errors
    /// [`Error::Unusable`] for what this key did not seal at this path.
    pub fn open(&self, path: &str, sealed: Vec<u8>) -> Result<Vec<u8>> {
        let refuse = |why: &str| Error::unusable(path, why);
        let mut bytes = sealed;
        if !is_sealed(&bytes) {
            return Err(refuse("it is not encrypted, and its set says it is"));
        }
        let cut = || refuse("it is cut off");
        let (header, body) = bytes.split_at_mut_checked(MAGIC.len() + NONCE).ok_or_else(cut)?;
        let length = body.len().checked_sub(TAG).ok_or_else(cut)?;
        let (text, tag) = body.split_at_mut(length);
        let nonce = XNonce::from_slice(&header[MAGIC.len()..]);
        self.cipher()
            .decrypt_in_place_detached(nonce, path.as_bytes(), text, Tag::from_slice(tag))
            .map_err(|_| refuse("it was not encrypted with this key for this path, or was changed since"))?;
        bytes.truncate(MAGIC.len() + NONCE + length);
        bytes.drain(..MAGIC.len() + NONCE);
        Ok(bytes)
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&blake3::derive_key("leaseward 1 content of a set's files", &self.0)).into())
    }
}

/// Returns whether these bytes are an encrypted file.
#[must_use]
pub fn is_sealed(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// The keys of this machine, by fingerprint.
#[derive(Debug, Clone, Default)]
pub struct Keys(BTreeMap<String, Key>);

impl Keys {
    /// Returns these keys.
    #[must_use]
    pub fn new(keys: impl IntoIterator<Item = Key>) -> Self {
        Self(keys.into_iter().map(|key| (key.fingerprint(), key)).collect())
    }

    pub(crate) fn open(&self, fingerprint: &str, path: &str, sealed: Vec<u8>) -> Result<Vec<u8>> {
        let missing = || Error::unusable(path, format!("the key {fingerprint} is not on this machine"));
        self.0.get(fingerprint).ok_or_else(missing)?.open(path, sealed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_opens_with_its_key_at_its_path_and_nowhere_else() {
        let temp = tempfile::tempdir().unwrap();
        let (one, two) = (temp.path().join("one.key"), temp.path().join("two.key"));
        let (key, other) = (Key::create(&one).unwrap(), Key::create(&two).unwrap());
        assert_eq!(Key::read(&one).unwrap(), key);
        assert!(Key::create(&one).is_err(), "a key was overwritten");
        let sealed = key.seal("db.conf", b"password=x".to_vec()).unwrap();
        assert_eq!(sealed.len() as u64, 10 + MORE_BYTES);
        assert_eq!(sealed, key.seal("db.conf", b"password=x".to_vec()).unwrap(), "what did not change is sent again");
        assert!(!sealed.windows(8).any(|window| window == b"password"));
        assert_eq!(key.open("db.conf", sealed.clone()).unwrap(), b"password=x");
        assert!(key.open("other.conf", sealed.clone()).is_err());
        assert!(other.open("db.conf", sealed.clone()).is_err());
        assert!(key.open("db.conf", b"password=x".to_vec()).is_err());
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            assert!(key.open("db.conf", bad).is_err(), "byte {at}");
            assert!(key.open("db.conf", sealed[..at].to_vec()).is_err(), "cut at {at}");
        }
        let keys = Keys::new([other]);
        let why = keys.open(&key.fingerprint(), "db.conf", sealed).unwrap_err().to_string();
        assert!(why.contains(&key.fingerprint()) && why.contains("not on this machine"), "{why}");
        assert!(!format!("{key:?}").contains(std::fs::read_to_string(&one).unwrap().trim()));
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("k");
        Key::create(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Key::read(&path).unwrap_err().to_string().contains("chmod 600"));
    }
}
