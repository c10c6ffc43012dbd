//! What the simulated network makes of links: how long bytes are on their way, on programs that only send and receive.

use std::path::Path;
use std::sync::{Arc, Mutex};

use leaseward_raft::simulation::Accept;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{connect, listen};
use crate::clocks::{At, MS, SECOND};
use crate::host::Program;
use crate::world::{World, address};

/// Bytes that each stream carries.
const BYTES: usize = 2_000;

/// When the last byte of each stream was there.
type Arrivals = Arc<Mutex<Vec<At>>>;

fn receiver(arrivals: Arrivals) -> Program {
    Arc::new(move |host| {
        let arrivals = Arc::clone(&arrivals);
        Box::pin(async move {
            let mut listener = listen(&host).expect("nobody else listens here");
            while let Ok((mut stream, _)) = listener.accept().await {
                let (host, arrivals) = (Arc::clone(&host), Arc::clone(&arrivals));
                tokio::spawn(async move {
                    let mut bytes = vec![0; BYTES];
                    stream.read_exact(&mut bytes).await.expect("nothing breaks here");
                    arrivals.lock().expect("no holder of this lock panics").push(host.now());
                });
            }
        })
    })
}

/// Sends on so many streams at once, each in small pieces.
fn sender(streams: usize) -> Program {
    Arc::new(move |host| {
        Box::pin(async move {
            let to = address(1).to_string();
            let mut all = Vec::new();
            for _ in 0..streams {
                all.push(connect(&host, &to).await.expect("somebody listens there"));
            }
            for stream in &mut all {
                for _ in 0..BYTES / 100 {
                    stream.write_all(&[7; 100]).await.expect("nothing breaks here");
                }
            }
            // Whoever drops a stream ends it.
            std::future::pending::<()>().await;
        })
    })
}

/// Returns how long it took until everything was there, in milliseconds, if links carry so much in one.
fn took(streams: usize, there: Option<u64>, back: Option<u64>) -> At {
    let mut world = World::new(1, &["from".to_owned(), "to".to_owned()], Path::new("/nowhere"));
    world.net.link(0, 1, |link| link.carries = there);
    world.net.link(1, 0, |link| link.carries = back);
    let arrivals = Arrivals::default();
    world.install(1, receiver(Arc::clone(&arrivals)));
    world.boot(1);
    world.step();
    let began = world.now;
    world.install(0, sender(streams));
    world.boot(0);
    while world.now < began + 10 * SECOND {
        world.step();
        let arrivals = arrivals.lock().expect("no holder of this lock panics");
        if arrivals.len() == streams {
            return (arrivals.iter().max().copied().unwrap_or_default() - began) / MS;
        }
    }
    panic!("not everything is there after ten seconds");
}

#[test]
fn bytes_above_what_a_link_carries_wait_and_all_streams_share_it() {
    // To and fro for the opening, and the way of the last packet.
    let ways = 15;
    let wide = took(2, None, None);
    assert!(wide <= ways, "a link that is as wide as need be: {wide} ms");
    let one = took(1, Some(10), None);
    assert!((200..=200 + ways).contains(&one), "2,000 bytes at ten in a millisecond: {one} ms");
    let two = took(2, Some(10), None);
    assert!((400..=400 + ways).contains(&two), "two such streams that go the same way: {two} ms");
    let other = took(2, None, Some(10));
    assert!(other <= ways, "only the way back is narrow: {other} ms");
}
