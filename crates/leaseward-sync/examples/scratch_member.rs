//! Scratch: one member alone.
use leaseward_state::config::delta::SharedBytes;
use leaseward_state::config::spec::SetSpec;
use leaseward_state::config::{Chunk, Digest, Manifest, SyncState};
use leaseward_state::name::SetName;
use leaseward_sync::member::*;
use leaseward_sync::{delta, digest_of, empty_tree, frame, manifest, scan};
use std::collections::HashMap;
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

#[derive(Default)]
struct Src {
    blobs: Mutex<HashMap<Digest, Vec<u8>>>,
    trees: Mutex<HashMap<Digest, Manifest>>,
    deltas: Mutex<HashMap<(Digest, Digest), Option<SharedBytes>>>,
}
impl Source for Src {
    fn fetch(&self, digest: Digest) -> Fetching<'_> {
        Box::pin(async move { Ok(Blob::Frame(self.blobs.lock().unwrap()[&digest].clone().into())) })
    }
    fn fetch_many<'a>(&'a self, digests: &'a [Digest], _turn: usize) -> FetchingMany<'a> {
        Box::pin(async move {
            let blobs = self.blobs.lock().unwrap();
            let mut out = Vec::new();
            let mut n = 0;
            for d in digests {
                let b = &blobs[d];
                n += b.len();
                out.push((*d, Blob::Frame(b.clone().into())));
                if n > 4 << 20 {
                    break;
                }
            }
            Ok(out)
        })
    }
    fn delta<'a>(&'a self, _: &'a SetName, base: Digest, next: Digest) -> FetchingDelta<'a> {
        Box::pin(async move { self.deltas.lock().unwrap().get(&(base, next)).cloned().flatten() })
    }
}
fn text(seed: u64, size: usize) -> Vec<u8> {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::new();
    while out.len() < size {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        out.extend(format!("key_{} = value {}\n", s % 97, (s >> 20) % 1000_000).bytes());
    }
    out.truncate(size);
    out
}
#[tokio::main]
async fn main() {
    if std::env::var("TRACE").is_ok() {}
    let root = std::env::temp_dir().join(format!("scratch-member-{}", std::process::id()));
    let _ = fs::remove_dir_all(&root);
    let source_dir = root.join("source");
    for i in 0..2000u64 {
        let p = source_dir.join(format!("dir{:03}/f-{i:05}.conf", i % 50));
        fs::create_dir_all(p.parent().unwrap()).unwrap();
        fs::write(p, text(i, 6_000 + (i as usize * 7919) % 36_000)).unwrap();
    }
    fs::write(source_dir.join("records.db"), text(7, 3_200_000)).unwrap();
    let members = std::env::var("MEMBERS").map_or(1, |v| v.parse().unwrap());
    let src = Arc::new(Src::default());
    let set = "app".parse::<SetName>().unwrap();
    let mut ms = Vec::new();
    for m in 0..members {
        let (wtx, wrx) = watch::channel(Wanted::new());
        let (tx, rx) = mpsc::channel(64);
        let mut config = MemberConfig::new(root.join(format!("m{m}/sets")), root.join(format!("m{m}/state")));
        config.reserve_bytes = 0;
        let mem = Member::spawn(config, wrx, Arc::clone(&src) as Arc<dyn Source>, Arc::new(Ungated), tx);
        ms.push((wtx, rx, mem));
    }
    let spec = Arc::new(SetSpec::default());
    let mut last = empty_tree();
    let pause: u64 = std::env::var("PAUSE").map_or(0, |v| v.parse().unwrap());
    for n in 1..=14u64 {
        let kind = if n == 1 {
            "first"
        } else if n <= 6 {
            "one"
        } else if n <= 10 {
            "edit1"
        } else {
            "head"
        };
        fs::write(source_dir.join("VERSION"), format!("{n}")).unwrap();
        let touch = match kind {
            "one" => 1,
            "edit1" => 20,
            "head" => 20,
            _ => 0,
        };
        for k in 0..touch {
            let i = (n * 131 + k * 97) % 2000;
            let p = source_dir.join(format!("dir{:03}/f-{i:05}.conf", i % 50));
            let mut b = fs::read(&p).unwrap();
            if kind == "head" {
                let mut h = format!("# {n}\n").into_bytes();
                h.extend(b);
                b = h;
            } else {
                let at = b.len() / 2;
                b[at..at + 6].copy_from_slice(format!("{:06}", n * 1000 + k).as_bytes());
            }
            fs::write(&p, b).unwrap();
        }
        let began = Instant::now();
        let scanned = scan(&source_dir).unwrap();
        let scan_ms = began.elapsed().as_secs_f64() * 1e3;
        let tree = scanned.manifest().clone();
        let enc = manifest::encode(&tree);
        let d = digest_of(&enc);
        let began = Instant::now();
        for c in scanned.digests() {
            let mut b = src.blobs.lock().unwrap();
            if !b.contains_key(&c) {
                b.insert(c, frame::pack(&scanned.read(c).unwrap()).unwrap());
            }
        }
        src.blobs.lock().unwrap().insert(d, frame::pack(&enc).unwrap());
        let pack_ms = began.elapsed().as_secs_f64() * 1e3;
        let began = Instant::now();
        let base_tree = src.trees.lock().unwrap().get(&last).cloned();
        if let Some(base) = base_tree {
            let blobs = src.blobs.lock().unwrap();
            let dl = delta::encode(
                &base,
                &tree,
                &mut |c: Chunk| frame::unpack(c.digest, &blobs[&c.digest], std::path::Path::new("x")),
                4 << 20,
            )
            .unwrap();
            src.deltas.lock().unwrap().insert((last, d), dl.map(Into::into));
        }
        let delta_ms = began.elapsed().as_secs_f64() * 1e3;
        src.trees.lock().unwrap().insert(d, tree);
        last = d;
        rustix_sync();
        let began = Instant::now();
        let want = WantedSet {
            live: Some(WantedVersion { number: n, manifest: d }),
            staged: None,
            attempt: 0,
            spec: Arc::clone(&spec),
        };
        for (wtx, _, _) in &ms {
            wtx.send_replace(Wanted::from([(set.clone(), want.clone())]));
        }
        let mut live_ms = 0.0f64;
        let mut applied_ms = 0.0f64;
        for (m, (_, rx, _)) in ms.iter_mut().enumerate() {
            loop {
                let r = rx.recv().await.unwrap();
                if r.applied == n && r.state == SyncState::Applied {
                    break;
                }
                if live_ms == 0.0
                    && fs::read_to_string(root.join(format!("m{m}/sets/app/VERSION"))).is_ok_and(|v| v == n.to_string())
                {
                    live_ms = began.elapsed().as_secs_f64() * 1e3;
                }
                if matches!(r.state, SyncState::Rejected { .. }) {
                    panic!("{r:?}")
                }
            }
            applied_ms = began.elapsed().as_secs_f64() * 1e3;
        }
        println!("{kind}: scan {scan_ms:.1} pack {pack_ms:.1} delta {delta_ms:.1} | applied {applied_ms:.1}");
        tokio::time::sleep(Duration::from_millis(300 + pause)).await;
    }
    for (_, _, m) in ms {
        m.stop().await;
    }
    let _ = fs::remove_dir_all(&root);
}
fn rustix_sync() {
    std::process::Command::new("sync").status().unwrap();
}
