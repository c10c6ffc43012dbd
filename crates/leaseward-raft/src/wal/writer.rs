//! The one thread that writes the log: takes what waits, writes it at once, syncs once, then tells everybody.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tracing::error;

use super::format::{Record, RecordKind};
use super::segments::{Place, Wal};
use crate::disk::{Disk, DiskFile};

/// Writes that wait for the thread. Beyond it, writers wait.
const QUEUE: usize = 4_096;

/// Called with the outcome of a write: where its records stand.
pub(super) type Then = Box<dyn FnOnce(io::Result<Vec<Place>>) + Send>;

/// Called once if the log can no longer be trusted.
pub(super) type Fatal = Arc<dyn Fn(&str) + Send + Sync>;

enum Job {
    Write { records: Vec<Record>, then: Then },
    Purged,
    Stop,
}

/// What the thread has done so far.
#[derive(Debug, Default)]
pub struct WriterStats {
    /// Batches made durable.
    pub syncs: AtomicU64,
    /// Records made durable.
    pub records: AtomicU64,
    /// Bytes that the log takes on disk.
    pub disk_bytes: AtomicU64,
}

/// The way to the thread.
enum Jobs {
    Thread(SyncSender<Job>),
    /// A simulated host has a task in its place.
    #[cfg(feature = "simulation")]
    Task(tokio::sync::mpsc::UnboundedSender<Job>),
}

impl Jobs {
    /// Blocks while the queue is full. Returns the job if nobody takes it any more.
    fn send(&self, job: Job) -> Result<(), Job> {
        match self {
            Self::Thread(jobs) => jobs.send(job).map_err(|refused| refused.0),
            #[cfg(feature = "simulation")]
            Self::Task(jobs) => jobs.send(job).map_err(|refused| refused.0),
        }
    }
}

/// A handle to the thread. The thread ends when the handle is dropped.
pub struct Writer {
    jobs: Jobs,
    files: Arc<Mutex<BTreeMap<u64, Arc<dyn DiskFile>>>>,
    lazy: Arc<Mutex<Option<Record>>>,
    stats: Arc<WriterStats>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    /// Starts the thread.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn start(
        wal: Wal,
        disk: Arc<dyn Disk>,
        segment_bytes: u64,
        fatal: Arc<dyn Fn(&str) + Send + Sync>,
    ) -> io::Result<Self> {
        let files = Arc::new(Mutex::new(wal.files()));
        let lazy = Arc::default();
        let stats = Arc::new(WriterStats::default());
        let thread = Thread {
            wal,
            disk,
            segment_bytes,
            fatal,
            files: Arc::clone(&files),
            lazy: Arc::clone(&lazy),
            stats: Arc::clone(&stats),
            failed: None,
            preparing: None,
        };
        #[cfg(feature = "simulation")]
        if let Some(host) = crate::simulation::host() {
            let (jobs, queue) = tokio::sync::mpsc::unbounded_channel();
            tokio::spawn(thread.run_simulated(queue, host));
            return Ok(Self { jobs: Jobs::Task(jobs), files, lazy, stats, thread: Mutex::new(None) });
        }
        let (jobs, queue) = sync_channel(QUEUE);
        let run = move || {
            let mut thread = thread;
            while let Ok(first) = queue.recv() {
                if !thread.turn(first, || queue.try_recv().ok()) {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("wal".into()).spawn(run)?;
        Ok(Self { jobs: Jobs::Thread(jobs), files, lazy, stats, thread: Mutex::new(Some(thread)) })
    }

    /// Writes the records as one batch, possibly together with others, and calls `then` once they are durable.
    /// Blocks while the queue is full.
    pub fn write(&self, records: Vec<Record>, then: Box<dyn FnOnce(io::Result<Vec<Place>>) + Send>) {
        if let Err(refused) = self.jobs.send(Job::Write { records, then })
            && let Job::Write { then, .. } = refused
        {
            then(Err(io::Error::other("the log is closed")));
        }
    }

    /// Writes a record together with the next batch, whenever that is: it only saves work after a restart.
    pub fn write_lazily(&self, record: Record) {
        *self.lazy.lock().expect("no holder of this lock panics") = Some(record);
    }

    /// Removes segments that are not needed any more.
    pub fn purged(&self) {
        self.jobs.send(Job::Purged).ok();
    }

    /// Writes what waits and ends the thread. Nothing is written after it; later writes fail.
    pub fn close(&self) {
        let thread = self.thread.lock().expect("no holder of this lock panics").take();
        if let Some(thread) = thread {
            self.jobs.send(Job::Stop).ok();
            thread.join().ok();
        }
    }

    /// Returns the file of a segment, if it still exists.
    #[must_use]
    pub fn file(&self, segment: u64) -> Option<Arc<dyn DiskFile>> {
        self.files.lock().expect("no holder of this lock panics").get(&segment).cloned()
    }

    /// Returns what was done so far.
    #[must_use]
    pub fn stats(&self) -> Arc<WriterStats> {
        Arc::clone(&self.stats)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.close();
    }
}

struct Thread {
    wal: Wal,
    disk: Arc<dyn Disk>,
    segment_bytes: u64,
    fatal: Fatal,
    files: Arc<Mutex<BTreeMap<u64, Arc<dyn DiskFile>>>>,
    lazy: Arc<Mutex<Option<Record>>>,
    stats: Arc<WriterStats>,
    failed: Option<String>,
    preparing: Option<JoinHandle<()>>,
}

impl Thread {
    /// Does a job and those that wait behind it. Returns false after the last one.
    fn turn(&mut self, first: Job, mut more: impl FnMut() -> Option<Job>) -> bool {
        let mut waiting = Vec::new();
        let (mut stop, mut purge) = (false, false);
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(job) = next {
            match job {
                Job::Write { records, then } => {
                    bytes += records.iter().map(|record| record.payload.len()).sum::<usize>();
                    waiting.push((records, then));
                }
                Job::Purged => purge = true,
                Job::Stop => stop = true,
            }
            // Half a segment at once: one commit must never outgrow a segment.
            let full = bytes as u64 > self.segment_bytes / 4;
            next = if stop || full { None } else { more() };
        }
        self.write(waiting);
        if purge && self.failed.is_none() {
            if let Err(error) = self.wal.remove_purged() {
                self.fail(&error);
            }
            self.publish_files();
        }
        if stop {
            self.write(Vec::new());
            if let Some(preparing) = self.preparing.take() {
                preparing.join().ok();
            }
        }
        !stop
    }

    /// The thread of a simulated host, where a write takes as long as the host says.
    #[cfg(feature = "simulation")]
    async fn run_simulated(
        mut self,
        mut queue: tokio::sync::mpsc::UnboundedReceiver<Job>,
        host: Arc<dyn crate::simulation::Host>,
    ) {
        while let Some(first) = queue.recv().await {
            host.log_written().await;
            if !self.turn(first, || queue.try_recv().ok()) {
                return;
            }
        }
    }

    fn write(&mut self, jobs: Vec<(Vec<Record>, Then)>) {
        let mut records = Vec::new();
        let mut counts = Vec::with_capacity(jobs.len());
        let mut thens = Vec::with_capacity(jobs.len());
        for (job, then) in jobs {
            counts.push(job.len());
            records.extend(job);
            thens.push(then);
        }
        if let Some(lazy) = self.lazy.lock().expect("no holder of this lock panics").take() {
            records.push(lazy);
        }
        if records.is_empty() {
            return;
        }
        match self.commit(&records) {
            Ok(mut places) => {
                self.stats.syncs.fetch_add(1, Ordering::Relaxed);
                self.stats.records.fetch_add(records.len() as u64, Ordering::Relaxed);
                for (then, count) in thens.into_iter().zip(counts) {
                    let rest = places.split_off(count);
                    then(Ok(std::mem::replace(&mut places, rest)));
                }
            }
            Err(error) => {
                for then in thens {
                    then(Err(io::Error::new(error.kind(), error.to_string())));
                }
            }
        }
    }

    fn commit(&mut self, records: &[Record]) -> io::Result<Vec<Place>> {
        if let Some(why) = &self.failed {
            return Err(io::Error::other(why.clone()));
        }
        debug_assert!(records.iter().all(|record| record.kind != RecordKind::Head), "heads are the log's own");
        match self.wal.commit(records) {
            Ok(places) => {
                self.after_commit();
                Ok(places)
            }
            Err(error) => {
                self.fail(&error);
                Err(error)
            }
        }
    }

    /// After a failed sync the kernel may have thrown pages and names away: what is durable is unknown, and the next sync may say that
    /// all is well.
    fn fail(&mut self, error: &io::Error) {
        let code = if error.kind() == io::ErrorKind::StorageFull { "LW0605" } else { "LW0600" };
        let why = format!("{code}: the log cannot be written: {error}");
        error!(code, %error, "the log cannot be written; nothing more is acknowledged");
        self.failed = Some(why.clone());
        (self.fatal)(&why);
    }

    fn after_commit(&mut self) {
        let known = self.files.lock().expect("no holder of this lock panics").len();
        if self.wal.segment_count() != known {
            self.publish_files();
        }
        if self.preparing.as_ref().is_some_and(JoinHandle::is_finished) {
            self.preparing = None;
        }
        if self.wal.wants_preparation() && self.preparing.is_none() {
            let (disk, size) = (Arc::clone(&self.disk), self.segment_bytes);
            let prepare = move || Wal::prepare_segment(disk.as_ref(), size);
            #[cfg(feature = "simulation")]
            if crate::simulation::host().is_some() {
                return prepare();
            }
            self.preparing = std::thread::Builder::new().name("wal-next".into()).spawn(prepare).ok();
        }
    }

    fn publish_files(&self) {
        *self.files.lock().expect("no holder of this lock panics") = self.wal.files();
        self.stats.disk_bytes.store(self.wal.disk_bytes(), Ordering::Relaxed);
    }
}
