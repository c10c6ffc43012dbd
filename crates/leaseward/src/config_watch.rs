//! A config file that a program follows in its memory, typed: each version that parses, in order, and a word back about
//! each of them.
//!
//! Must stay true: what does not parse, or is not what its name says, never reaches the program; what the program has
//! stays as it is until it takes the next one; the monitor shows what the program said, and no more than that.
//! `follow.rs` hears of versions, `format.rs` reads them, `words.rs` (pure) knows what was said of which, `reporter.rs`
//! says it.
//!
//! A program is no machine. It gets what was published for all: no layers, and no set with templates or a key. It gets
//! the version that everybody has: while a rollout is under way that is the one before. A pin of one machine is not about
//! it; a pin of all members is.

mod follow;
mod format;
mod reporter;
mod words;

use std::fmt;
use std::sync::Arc;

use leaseward_raft::net::wire::{SetView, VersionOrder};
use leaseward_state::config::Digest;
use leaseward_state::config::check_path;
use leaseward_state::config::program::{ProgramReport, RejectedVersion};
use leaseward_state::{Revision, SetName};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use self::follow::{Follow, Found};
use self::format::Format;
use self::reporter::{Reporter, leave_word};
use self::words::Words;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::limits::{ATTEMPT, CONFIG_RETRY, REASON_CHARS_MAX, WRITE_WITHIN};

/// A version of a config file, as a program got it.
#[derive(Debug)]
pub struct ConfigVersion<T> {
    /// Its number in the set.
    pub version: u64,
    /// What it says.
    pub value: Arc<T>,
}

impl<T> Clone for ConfigVersion<T> {
    fn clone(&self) -> Self {
        Self { version: self.version, value: Arc::clone(&self.value) }
    }
}

/// A config file that this program follows, from [`crate::Cluster::config`].
///
/// While it lives, the program stands in `leaseward config monitor`, under a session that is renewed in the background.
/// When it is dropped, or the program dies, it stands there no more: at once, or when the session has run out.
pub struct ConfigWatch<T> {
    follow: Follow,
    format: Format,
    current: ConfigVersion<T>,
    /// The content that the program got last.
    content: Digest,
    /// The content that could not be read last, and why.
    unreadable: Option<(Digest, String)>,
    words: Words,
    about: About,
    reporter: Reporter,
    /// The entry that made the set.
    life: Revision,
}

/// What a version has for the program.
enum News<T> {
    /// The file that it knows.
    Unchanged,
    /// Another file, by its name.
    New(Digest, T),
    /// Nothing that it could use: the name of the file, if it is one, and why.
    Refused(Option<Digest>, String),
}

impl<T: fmt::Debug> fmt::Debug for ConfigWatch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigWatch")
            .field("about", &self.about)
            .field("current", &self.current)
            .finish_non_exhaustive()
    }
}

/// Which file of which set.
#[derive(Debug, Clone)]
struct About {
    set: SetName,
    file: String,
}

impl About {
    fn says(&self, applied: u64, rejected: Option<RejectedVersion>) -> ProgramReport {
        let rejected = rejected.map(|rejected| RejectedVersion { why: cut(&rejected.why), ..rejected });
        ProgramReport { set: self.set.clone(), file: self.file.clone(), applied, rejected }
    }
}

impl<T: DeserializeOwned> ConfigWatch<T> {
    pub(crate) async fn start(client: &Client, name: &str, set: &str, file: &str) -> Result<Self> {
        let about = About { set: SetName::new(set)?, file: file.to_owned() };
        let format = Format::of(file)?;
        check_path(file).map_err(|bad| Error::Config { code: "LW0101", why: bad.to_string() })?;
        // What is awaited for seconds must not stand in the way of the program's leases, nor be given up with them.
        let client = client.another();
        if let Err(error) = client.learn().await {
            debug!(%error, "the other nodes are not known yet");
        }
        let mut follow = Follow::new(client.clone(), about.set.clone(), about.file.clone());
        let (view, order) = first(&follow, &about.set).await?;
        let (content, value) = match first_value(&mut follow, format, &view, order).await? {
            Ok(first) => first,
            Err((code, why)) => {
                let rejected = Some(RejectedVersion { version: order.number, why: why.clone() });
                let word = leave_word(&client, name, about.says(0, rejected));
                if !matches!(timeout(ATTEMPT, word).await, Ok(Ok(()))) {
                    debug!(set, file, "the monitor does not hear that the first version is refused");
                }
                let why = format!("config/{set} v{} {file}: {why}", order.number);
                return Err(Error::Config { code, why });
            }
        };
        follow.done(&view);
        let current = ConfigVersion { version: order.number, value: Arc::new(value) };
        let words = Words::beginning(order.number);
        let reporter = Reporter::start(client, name.to_owned(), about.says(words.works_with(), words.refused()));
        Ok(Self { follow, format, current, content, unreadable: None, words, about, reporter, life: view.created })
    }

    /// Waits for the next version whose file is another one and parses, and returns it. Versions that came meanwhile are
    /// passed over: it is the newest. One that cannot be read is refused in this program's name, with the parser's words;
    /// one with the same file counts as applied if the program works with that file. Both happen while this waits.
    ///
    /// However long the cluster is away, it waits. A set that is forgotten is waited for, too.
    ///
    /// Cancel safe: what was not returned is returned by the next call.
    ///
    /// # Errors
    /// [`Error::Failed`] if the cluster speaks another protocol than this program.
    pub async fn changed(&mut self) -> Result<ConfigVersion<T>> {
        let mut pause = CONFIG_RETRY.0;
        loop {
            let view = self.follow.news().await?;
            match self.look(&view).await {
                Ok(None) => self.follow.done(&view),
                Ok(Some((order, news))) => {
                    // Nothing is awaited from here on.
                    self.follow.done(&view);
                    let is_another = view.created != self.life;
                    if is_another {
                        // What was said of the other one is forgotten with it.
                        self.life = view.created;
                        self.words.begin_anew();
                    }
                    let new = self.take(order, news);
                    self.reporter.say(self.about.says(self.words.works_with(), self.words.refused()), is_another);
                    if let Some(new) = new {
                        return Ok(new);
                    }
                    pause = CONFIG_RETRY.0;
                }
                Err(error) => {
                    debug!(set = %self.about.set, %error, "a version is not to be had yet");
                    sleep(pause).await;
                    if pause >= CONFIG_RETRY.1 {
                        warn!(set = %self.about.set, %error, "a version is not to be had");
                    }
                    pause = (pause * 2).min(CONFIG_RETRY.1);
                }
            }
        }
    }

    /// Returns what the version of a view has for the program, if there is one.
    async fn look(&mut self, view: &SetView) -> Result<Option<(VersionOrder, News<T>)>> {
        let Some(order) = view.version else { return Ok(None) };
        let file = match self.follow.find(view, order.manifest).await? {
            Found::File(file) => file,
            Found::Unusable(_, why) => return Ok(Some((order, News::Refused(None, why)))),
        };
        let news = if file.digest == self.content {
            News::Unchanged
        } else if let Some((digest, why)) = self.unreadable.as_ref().filter(|(digest, _)| *digest == file.digest) {
            News::Refused(Some(*digest), why.clone())
        } else {
            match self.format.read(&self.follow.fetch(&file).await?) {
                Ok(value) => News::New(file.digest, value),
                Err(why) => News::Refused(Some(file.digest), why),
            }
        };
        Ok(Some((order, news)))
    }

    /// Takes a version. Returns it if it is for the program.
    fn take(&mut self, order: VersionOrder, news: News<T>) -> Option<ConfigVersion<T>> {
        let version = order.number;
        match news {
            News::Unchanged => {
                self.words.unchanged(version);
                None
            }
            News::Refused(digest, why) => {
                self.unreadable = digest.map(|digest| (digest, why.clone()));
                self.refuse(version, why);
                None
            }
            News::New(digest, value) => {
                self.words.give(version);
                self.content = digest;
                self.current = ConfigVersion { version, value: Arc::new(value) };
                info!(set = %self.about.set, file = self.about.file, version, "a new version is here");
                Some(self.current.clone())
            }
        }
    }

    fn refuse(&mut self, version: u64, why: String) {
        warn!(set = %self.about.set, file = self.about.file, version, why, "a version is refused");
        self.words.unreadable(version, why);
    }
}

impl<T> ConfigWatch<T> {
    /// Returns the version that this program got last: from [`crate::Cluster::config`], or from
    /// [`ConfigWatch::changed`].
    #[must_use]
    pub fn current(&self) -> &ConfigVersion<T> {
        &self.current
    }

    /// Says that this program works with a version, and waits until the cluster knows. The first one counts as applied
    /// without a word. A version that is older than the last one spoken of, or that this program never got, is passed over.
    ///
    /// Idempotent. Cancel safe: what is said is said, also when nobody waits for it, and again after an outage.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the cluster has not heard it within ten seconds; it is said on. [`Error::Refused`] if it
    /// is not heard at all: LW0105 where too many programs follow the set, LW0404 if the set is forgotten. The program
    /// may go on in any case.
    pub async fn applied(&mut self, version: u64) -> Result<()> {
        self.words.applied(version);
        self.say().await
    }

    /// Says that this program does not take a version, and why, and waits until the cluster knows. The first 1,000
    /// characters of the reason are shown. Otherwise as [`ConfigWatch::applied`].
    ///
    /// # Errors
    /// As [`ConfigWatch::applied`].
    pub async fn rejected(&mut self, version: u64, why: impl fmt::Display) -> Result<()> {
        self.words.rejected(version, why.to_string());
        self.say().await
    }

    async fn say(&self) -> Result<()> {
        self.reporter.say(self.about.says(self.words.works_with(), self.words.refused()), false);
        self.reporter.heard().await
    }

    /// Follows the file no more, and waits until the monitor knows: for a program that ends right after. Dropping it does
    /// the same in the background.
    pub async fn close(self) {
        self.reporter.close().await;
    }
}

/// Returns the set as it is now, and the version for programs.
async fn first(follow: &Follow, set: &SetName) -> Result<(SetView, VersionOrder)> {
    let view = follow.now().await?;
    let missing = |why: String| Error::Config { code: "LW0404", why };
    match view.version {
        Some(order) => Ok((view, order)),
        None if view.revision.0 == 0 => Err(missing(format!("config/{set} does not exist"))),
        None => Err(missing(format!("config/{set} has no version for everybody yet"))),
    }
}

/// Returns the first value with the name of its file, or why there is none. What is not to be had yet is tried again for a
/// while.
async fn first_value<T: DeserializeOwned>(
    follow: &mut Follow,
    format: Format,
    view: &SetView,
    order: VersionOrder,
) -> Result<Result<(Digest, T), (&'static str, String)>> {
    let deadline = Instant::now() + WRITE_WITHIN;
    let mut pause = CONFIG_RETRY.0;
    loop {
        let fetched = match follow.find(view, order.manifest).await {
            Ok(Found::Unusable(code, why)) => return Ok(Err((code, why))),
            Ok(Found::File(file)) => follow.fetch(&file).await.map(|bytes| (file.digest, bytes)),
            Err(error) => Err(error),
        };
        match fetched {
            Ok((digest, bytes)) => {
                return Ok(format.read(&bytes).map(|value| (digest, value)).map_err(|why| ("LW0815", why)));
            }
            Err(error) if Instant::now() + pause >= deadline => return Err(error),
            Err(_) => sleep(pause).await,
        }
        pause = (pause * 2).min(CONFIG_RETRY.1);
    }
}

fn cut(why: &str) -> String {
    why.chars().take(REASON_CHARS_MAX).collect()
}
