//! From what was published to what one member should have: layers for its labels, files filled in, secrets opened.
//!
//! Must stay true: equal inputs give equal trees, so every member can say which tree it has; a name that a template does
//! not know is a failure and never an empty word; a secret is plain in the target only, for its owner alone.
//! Left out on purpose: where keys come from (`secret.rs` reads them), and which sets ask for any of this.

use std::collections::BTreeMap;
use std::sync::Arc;

use leaseward_state::config::spec::SetSpec;
use leaseward_state::config::{Chunk, Digest, Manifest, ManifestEntry, ManifestNode};
use minijinja::{Environment, ErrorKind, UndefinedBehavior, context};

use crate::digest_of;
use crate::error::{Error, Result};
use crate::limits::{CHUNK_BYTES_MAX, RENDERED_BYTES_MAX};
use crate::secret::{Keys, MORE_BYTES};
use crate::tables::DigestMap;

/// The ending of a file that is filled in.
const TEMPLATE: &str = ".tmpl";

/// What a member is, as far as its config depends on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The machine's name.
    pub machine: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// What one member should have.
#[derive(Debug, Default)]
pub(crate) struct Rendered {
    pub(crate) manifest: Manifest,
    /// Chunks that stand in no store: what was filled in or opened.
    pub(crate) made: DigestMap<Arc<Vec<u8>>>,
}

/// Returns whether members of such a set have something else than what was published.
pub(crate) fn is_needed(spec: &SetSpec) -> bool {
    spec.overlays || spec.templates || spec.key.is_some()
}

/// Lays the layers for this member over the rest. Pure.
pub(crate) fn lay(published: &Manifest, facts: &Facts) -> Manifest {
    let mut layers: Vec<(&str, Vec<&ManifestEntry>)> = Vec::new();
    let mut tree: BTreeMap<String, (&str, ManifestNode)> = BTreeMap::new();
    for entry in &published.entries {
        let top = entry.path.split('/').next().unwrap_or_default();
        if !top.starts_with('@') || !top.contains('=') {
            tree.insert(entry.path.clone(), (&entry.path, entry.node.clone()));
            continue;
        }
        match layers.last_mut() {
            Some((layer, entries)) if *layer == top => entries.push(entry),
            _ => layers.push((top, vec![entry])),
        }
    }
    // Labels first, by their names; what is for this machine alone comes last.
    layers.retain(|(layer, _)| is_for(layer, facts));
    layers.sort_by_key(|(layer, _)| (layer.starts_with("@machine="), *layer));
    for (layer, entries) in layers {
        for entry in entries {
            let Some(path) = entry.path.strip_prefix(layer).and_then(|path| path.strip_prefix('/')) else { continue };
            if !matches!(entry.node, ManifestNode::Directory { .. }) {
                // A file in the place of a directory takes all of it away.
                let below = format!("{path}/");
                tree.retain(|other, _| !other.starts_with(&below));
            }
            for (end, _) in path.match_indices('/') {
                let above = tree.get(&path[..end]);
                if !matches!(above, None | Some((_, ManifestNode::Directory { .. }))) {
                    tree.remove(&path[..end]);
                }
                tree.entry(path[..end].to_owned()).or_insert(("", ManifestNode::Directory { mode: 0o755 }));
            }
            tree.insert(path.to_owned(), (&entry.path, entry.node.clone()));
        }
    }
    // Attributes go along with the file that they were published with.
    let xattrs = published.xattrs.as_ref().map(|all| {
        let of = |(path, (from, _)): (&String, &(&str, _))| Some((path.clone(), all.get(*from)?.clone()));
        tree.iter().filter_map(of).collect()
    });
    let entries = tree.into_iter().map(|(path, (_, node))| ManifestEntry { path, node }).collect();
    Manifest { entries, xattrs }
}

fn is_for(layer: &str, facts: &Facts) -> bool {
    let Some((key, value)) = layer.strip_prefix('@').and_then(|layer| layer.split_once('=')) else { return false };
    match key {
        "machine" => facts.machine == value,
        label => facts.labels.get(label).is_some_and(|has| has == value),
    }
}

/// Returns the files of a laid tree whose content must be read to know what the member should have.
pub(crate) fn sources<'a>(laid: &'a Manifest, spec: &'a SetSpec) -> impl Iterator<Item = &'a ManifestEntry> {
    laid.entries.iter().filter(|entry| {
        matches!(entry.node, ManifestNode::File { .. })
            && (spec.key.is_some() || (spec.templates && entry.path.ends_with(TEMPLATE)))
    })
}

/// Opens and fills in what is to be, with the content of files from `read`.
///
/// # Errors
/// [`Error::IllegalTree`] for a template that cannot be filled in, a secret that cannot be opened, or two files of one
/// name; what `read` returns.
pub(crate) fn render(
    laid: Manifest,
    spec: &SetSpec,
    facts: &Facts,
    keys: &Keys,
    read: &mut dyn FnMut(Digest) -> Result<Vec<u8>>,
) -> Result<Rendered> {
    let mut done = Rendered::default();
    let mut tree = BTreeMap::new();
    let (mut given, mut total) = (0, 0);
    let mut xattrs = laid.xattrs;
    for ManifestEntry { path, node } in laid.entries {
        let ManifestNode::File { mode, size, chunks, .. } = &node else {
            put(&mut tree, path, node)?;
            continue;
        };
        let template = spec.templates && path.ends_with(TEMPLATE);
        if spec.key.is_none() && !template {
            put(&mut tree, path, node)?;
            continue;
        }
        given += if spec.key.is_some() { size.saturating_sub(MORE_BYTES) } else { *size };
        bounded(given)?;
        let mut bytes = Vec::with_capacity(*size as usize);
        for chunk in chunks {
            bytes.extend_from_slice(&read(chunk.digest)?);
        }
        let mut mode = *mode;
        if let Some(key) = &spec.key {
            bytes = keys.open(key, &path, bytes)?;
            mode &= 0o700;
        }
        let mut to = path.clone();
        if template {
            bytes = fill_in(&path, &bytes, facts)?;
            to.truncate(path.len() - TEMPLATE.len());
            if let Some(all) = &mut xattrs
                && let Some(found) = all.remove(&path)
            {
                all.insert(to.clone(), found);
            }
        }
        total += bytes.len() as u64;
        bounded(total)?;
        let digest = digest_of(&bytes);
        let size = bytes.len() as u64;
        let mut chunks = Vec::new();
        for piece in bytes.chunks(CHUNK_BYTES_MAX) {
            let chunk = Chunk { digest: digest_of(piece), size: piece.len() as u32 };
            done.made.insert(chunk.digest, Arc::new(piece.to_vec()));
            chunks.push(chunk);
        }
        put(&mut tree, to, ManifestNode::File { mode, size, digest, chunks })?;
    }
    done.manifest.xattrs = xattrs;
    done.manifest.entries = tree.into_iter().map(|(path, node)| ManifestEntry { path, node }).collect();
    crate::manifest::check(&done.manifest)?;
    Ok(done)
}

fn bounded(size: u64) -> Result<()> {
    if size <= RENDERED_BYTES_MAX {
        return Ok(());
    }
    Err(Error::TooLarge { what: "bytes of templates and secrets of a set", size, limit: RENDERED_BYTES_MAX })
}

/// Refuses a version whose secrets no member would open: it would be rejected everywhere. Where layers differ for members,
/// each file is asked by itself.
///
/// # Errors
/// [`Error::TooLarge`].
pub fn secrets_fit(published: &Manifest, spec: &SetSpec) -> Result<()> {
    if spec.key.is_none() {
        return Ok(());
    }
    let sizes = published.entries.iter().filter_map(|entry| match &entry.node {
        ManifestNode::File { size, .. } => Some(size.saturating_sub(MORE_BYTES)),
        _ => None,
    });
    bounded(if spec.overlays { sizes.max().unwrap_or(0) } else { sizes.sum() })
}

fn put(tree: &mut BTreeMap<String, ManifestNode>, path: String, node: ManifestNode) -> Result<()> {
    if tree.contains_key(&path) {
        return Err(Error::illegal(&path, "it stands in the set both as a template and as itself"));
    }
    tree.insert(path, node);
    Ok(())
}

fn fill_in(path: &str, bytes: &[u8], facts: &Facts) -> Result<Vec<u8>> {
    let refuse = |why: String| Error::unusable(path, format!("it cannot be filled in: {why}"));
    let text = std::str::from_utf8(bytes).map_err(|_| refuse("it is not UTF-8".into()))?;
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_keep_trailing_newline(true);
    environment.set_fuel(Some(1_000_000));
    // The longest text first: a reason is of one line.
    let why = |error: &minijinja::Error| match error.kind() {
        ErrorKind::UndefinedError => unknown(&environment, text, facts, error),
        _ => format!("{error:#}").lines().next().unwrap_or_default().to_owned(),
    };
    let known = context! { machine => facts.machine, labels => facts.labels };
    environment.render_str(text, known).map(String::into_bytes).map_err(|error| refuse(why(&error)))
}

/// Returns which values a template asks for that this machine has not, and which it has: the engine names none.
fn unknown(environment: &Environment<'_>, text: &str, facts: &Facts, error: &minijinja::Error) -> String {
    let asked = environment.template_from_str(text).map(|template| template.undeclared_variables(true));
    let is_known = |name: &str| match name.strip_prefix("labels.") {
        Some(label) => facts.labels.contains_key(label),
        None => name == "machine" || name == "labels",
    };
    let mut unknown: Vec<String> = asked.unwrap_or_default().into_iter().filter(|name| !is_known(name)).collect();
    unknown.sort_unstable();
    let line = error.line().map_or_else(String::new, |line| format!("line {line}: "));
    let labels: Vec<&str> = facts.labels.keys().map(String::as_str).collect();
    let labels = if labels.is_empty() { "none".to_owned() } else { labels.join(", ") };
    format!("{line}{} has no value on {}; its labels: {labels}", unknown.join(", "), facts.machine)
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
