//! Getting a version ready on this machine: fetched, made this member's own, written beside the live one, and checked.
//!
//! Must stay true: nothing is live before its check has passed; what is made for this member alone is in no store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use leaseward_state::config::spec::SetSpec;
use leaseward_state::config::{Digest, Manifest, ManifestNode, SetStep};
use leaseward_state::name::SetName;

use super::fetch::{Failure, Fetch, blocking};
use super::running::Running;
use super::{Blob, Source, WantedVersion, task::Opened};
use crate::apply::{Given, Live};
use crate::error::{Error, Result};
use crate::frame;
use crate::program::Run;
use crate::render::{self, Facts};
use crate::secret::Keys;
use crate::tables::DigestMap;

/// A version as this member should have it.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    /// Its number, and the name of the manifest as this member has it.
    pub(crate) wanted: Live,
    pub(crate) manifest: Arc<Manifest>,
    /// Chunks that are in no store.
    made: Arc<DigestMap<Arc<Vec<u8>>>>,
    here: Here,
}

/// What this machine holds beside what was fetched.
#[derive(Clone)]
struct Here(Arc<dyn Source>);

impl std::fmt::Debug for Here {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Here")
    }
}

impl Here {
    /// Returns the plain bytes of a blob, verified.
    fn get(&self, digest: Digest) -> Result<Given> {
        match self.0.read_here(digest) {
            Some(Blob::Frame(bytes)) => {
                let plain = frame::unpack(digest, bytes.as_slice(), Path::new("this machine's voter"))?;
                Ok(Given::Proven(Arc::new(plain)))
            }
            Some(Blob::Plain(plain)) => Ok(Given::Claimed(plain)),
            None => Err(Error::BlobMissing { digest }),
        }
    }
}

/// What a version depends on, beside itself.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) set: SetName,
    pub(crate) spec: Arc<SetSpec>,
    pub(crate) facts: Arc<Facts>,
    pub(crate) keys: Arc<Keys>,
    pub(crate) running: Running,
    pub(crate) state_dir: PathBuf,
}

impl Member {
    /// Fetches what this machine lacks of a version. Cancel safe: what was stored stays.
    pub(crate) async fn fetch(&self, fetch: &Fetch, want: WantedVersion) -> Result<Prepared, Failure> {
        let here = Here(Arc::clone(&fetch.source));
        if !render::is_needed(&self.spec) {
            let manifest = fetch.version(want).await?;
            let wanted = Live { version: want.number, manifest: want.manifest };
            return Ok(Prepared { wanted, manifest, made: Arc::default(), here });
        }
        let published = fetch.manifest(want).await?;
        let laid = if self.spec.overlays { render::lay(&published, &self.facts) } else { published };
        let mut sources = BTreeMap::new();
        for entry in render::sources(&laid, &self.spec) {
            if let ManifestNode::File { chunks, .. } = &entry.node {
                sources.extend(chunks.iter().map(|chunk| (chunk.digest, *chunk)));
            }
        }
        fetch.chunks(sources.into_values().collect()).await?;
        let (member, cache) = (self.clone(), Arc::clone(&fetch.cache));
        let rendered = blocking(move || {
            render::render(laid, &member.spec, &member.facts, &member.keys, &mut |digest| {
                Ok(cache.get(digest)?.to_vec())
            })
        })
        .await?;
        let manifest = Arc::new(rendered.manifest);
        let made = Arc::new(rendered.made);
        let (disk, tree, held) = (Arc::clone(&fetch.disk), Arc::clone(&manifest), Arc::clone(&made));
        let (name, needs) = blocking(move || {
            crate::manifest::check(&tree)?;
            let name = crate::digest_of(&crate::manifest::encode(&tree));
            let is_held = |digest: Digest| held.contains_key(&digest);
            Ok((name, disk.lock().unwrap_or_else(PoisonError::into_inner).needs(name, &tree, &is_held)?))
        })
        .await?;
        fetch.chunks(needs.fetch.into_iter().filter(|chunk| !made.contains_key(&chunk.digest)).collect()).await?;
        let wanted = Live { version: want.number, manifest: name };
        Ok(Prepared { wanted, manifest, made, here })
    }
}

impl Prepared {
    /// Writes the version beside the live one and runs the set's check over it. Blocks.
    pub(crate) fn stage(&self, opened: &Opened, member: &Member) -> Result<()> {
        let mut disk = opened.disk.lock().unwrap_or_else(PoisonError::into_inner);
        let mut source = |digest: Digest| match self.made.get(&digest) {
            Some(bytes) => Ok(Given::Proven(Arc::clone(bytes))),
            None => match opened.cache.get(digest) {
                Err(Error::BlobMissing { .. }) => self.here.get(digest),
                got => got.map(Given::Proven),
            },
        };
        disk.stage(self.wanted, &self.manifest, &mut source, &opened.cache)?;
        let Some(hook) = &member.spec.check else { return Ok(()) };
        let tree = disk.staged_tree()?;
        let before = disk.live().map_or(0, |live| live.version);
        let target = disk.target();
        let environment = environment(&member.set, self.wanted.version, before);
        let is_secret = member.spec.key.is_some();
        let run = Run { hook, environment, target: &target, tree: &tree, state_dir: &member.state_dir, is_secret };
        let checked = if disk.is_whole() || run.names_tree() {
            let _running = member.running.begin(SetStep::Check, hook);
            run.to_end()
        } else {
            // At the set's own path it would see the old files, and pass for nothing.
            Err("its layout is \"files\", so the new version stands as a whole at {tree} only: name that in `check.command`".to_owned())
        };
        checked.map_err(|why| {
            // What failed its check is not kept: the next attempt begins anew.
            if let Err(error) = disk.unstage() {
                tracing::warn!(set = %member.set, %error, "what was refused cannot be removed");
            }
            Error::CheckFailed { why }
        })
    }
}

/// Returns what a set's programs are told.
pub(crate) fn environment(set: &SetName, version: u64, before: u64) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        ("LEASEWARD_SET", set.to_string()),
        ("LEASEWARD_VERSION", version.to_string()),
        ("LEASEWARD_PREVIOUS", before.to_string()),
    ])
}
