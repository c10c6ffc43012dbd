//! What a voter uses at one moment: memory, files, threads, bytes on disk, and what its metrics count.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use leaseward_state::limits::LEDGER_MAX;
use leaseward_tests::Lab;
use walk::bytes_below;

use super::judge::Allowed;

/// What is sampled, by name. Bytes are in megabytes.
pub(super) type Sample = BTreeMap<String, f64>;

/// A mebibyte.
const MB: f64 = 1_048_576.0;

/// What is counted in the metrics; everything else there (terms, indices, revisions) grows by its nature.
const METRICS: &[&str] = &[
    "leaseward_answers_kept",
    "leaseward_events_kept",
    "leaseward_leases",
    "leaseward_machines",
    "leaseward_sessions",
];

/// Returns by how much something may rise.
pub(super) fn allowed(name: &str) -> Allowed {
    let (share, floor) = match name {
        // What the allocator keeps of a peak, caches that fill slowly, and answers that are kept for a day: some kilobytes
        // each with their pages of the store, and two thousand in half an hour.
        "rss_mb" | "rss_anon_mb" => (0.05, 15.0),
        "open_files" | "threads" => (0.2, 8.0),
        // One segment of the log, and what was written in it.
        "log_mb" => (0.0, 20.0),
        // The store writes anew what it wrote, and tidies up later.
        "store_mb" => (0.25, 12.0),
        // One collection late.
        "blobs_mb" => (0.25, 12.0),
        "snapshots_mb" => (0.25, 2.0),
        // As many as are ever kept; shown beside memory, which they are a part of.
        "events_kept" => (0.0, LEDGER_MAX as f64),
        // What the process says on stderr.
        "said_kb" => (0.0, 64.0),
        _ => (0.2, 64.0),
    };
    Allowed { share, floor }
}

/// Returns whether it begins anew with each process. What is on disk goes on.
pub(super) fn is_of_process(name: &str) -> bool {
    matches!(name, "rss_mb" | "rss_anon_mb" | "open_files" | "threads")
}

/// Samples one voter.
pub(super) async fn take(lab: &Lab, http: &reqwest::Client, voter: usize) -> Sample {
    let mut sample = of_process(lab.voter_pid(voter));
    let data = lab.voter_data(voter);
    for (name, dir) in [("log_mb", "wal"), ("store_mb", "state"), ("blobs_mb", "blobs"), ("snapshots_mb", "snapshots")]
    {
        sample.insert(name.into(), bytes_below(&data.join(dir)) as f64 / MB);
    }
    let said = lab.dir().join("log").join(format!("n{}.log", voter + 1));
    sample.insert("said_kb".into(), fs::metadata(said).map_or(0, |found| found.len()) as f64 / 1_024.0);
    let page = http.get(format!("http://{}/metrics", lab.api(voter))).send().await;
    if let Ok(page) = page
        && let Ok(text) = page.text().await
    {
        sample.append(&mut metrics(&text));
    }
    sample
}

fn of_process(pid: u32) -> Sample {
    let proc = Path::new("/proc").join(pid.to_string());
    let status = fs::read_to_string(proc.join("status")).unwrap_or_default();
    let mut sample = Sample::new();
    for line in status.lines() {
        let Some((name, value)) = line.split_once(':') else { continue };
        let value: Option<f64> = value.split_whitespace().next().and_then(|value| value.parse().ok());
        let known = match name {
            "VmRSS" => ("rss_mb", 1_024.0),
            "RssAnon" => ("rss_anon_mb", 1_024.0),
            "Threads" => ("threads", 1.0),
            _ => continue,
        };
        if let Some(value) = value {
            sample.insert(known.0.into(), value / known.1);
        }
    }
    if let Ok(files) = fs::read_dir(proc.join("fd")) {
        sample.insert("open_files".into(), files.count() as f64);
    }
    sample
}

/// Returns the sums of the metrics that are of interest, over their labels.
fn metrics(page: &str) -> Sample {
    let mut sample = Sample::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, value)) = line.rsplit_once(' ') else { continue };
        let name = name.split('{').next().unwrap_or(name);
        if METRICS.contains(&name)
            && let Ok(value) = value.parse::<f64>()
        {
            *sample.entry(name.trim_start_matches("leaseward_").into()).or_default() += value;
        }
    }
    sample
}

mod walk {
    //! How much is on disk.

    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    /// Returns the bytes that the files below a directory take up. What goes away meanwhile counts as nothing.
    pub(super) fn bytes_below(dir: &Path) -> u64 {
        let Ok(entries) = fs::read_dir(dir) else { return 0 };
        let of = |entry: fs::DirEntry| match entry.metadata() {
            Ok(found) if found.is_dir() => bytes_below(&entry.path()),
            Ok(found) => found.blocks() * 512,
            Err(_) => 0,
        };
        entries.flatten().map(of).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_files_and_threads() {
        let sample = of_process(std::process::id());
        for name in ["rss_mb", "rss_anon_mb", "threads", "open_files"] {
            assert!(sample[name] > 0.0, "{sample:?}");
        }
    }

    #[test]
    fn metrics_are_summed_over_their_labels_and_the_others_left_out() {
        let page = "# HELP a b\nleaseward_sessions 3\nleaseward_leases{state=\"held\"} 4\nleaseward_leases{state=\"delayed\"} 1\n\
                    leaseward_raft_term 9\n";
        assert_eq!(metrics(page), Sample::from([("sessions".into(), 3.0), ("leases".into(), 5.0)]));
    }
}
