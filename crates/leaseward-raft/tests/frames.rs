//! Whatever a stranger sends, it is told why or cut off, and the node goes on.

use std::sync::Arc;
use std::time::Duration;

use leaseward_raft::codec::{self, ENVELOPE_BYTES, Kind};
use leaseward_raft::limits::{BULK_FRAME_BYTES_MAX, FRAME_BYTES_MAX, HELLO_BYTES_MAX, ON_ITS_WAY_MAX};
use leaseward_raft::net::frame::{self, FrameError};
use leaseward_raft::net::wire::{Answer, Ask, Hello, PROTOCOL, Purpose, Welcome};
use leaseward_raft::{Replica, Settings, Start, Timing};
use leaseward_state::propose::Propose;
use leaseward_state::{Command, Reply};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

const PATIENCE: Duration = Duration::from_secs(20);

struct Node {
    replica: Replica,
    address: std::net::SocketAddr,
    _dir: TempDir,
}

impl Node {
    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let address = std::net::TcpListener::bind("127.0.0.1:0").expect("free").local_addr().expect("an address");
        let settings = Settings {
            timing: Timing::fast(),
            free_bytes_min: 0,
            fatal: Arc::new(|why| panic!("{why}")),
            ..Settings::new("n", dir.path(), address)
        };
        let replica = Replica::start(settings, Start::Bootstrap).await.expect("it starts");
        timeout(PATIENCE, replica.ready()).await.expect("it is ready");
        let node = Self { replica, address, _dir: dir };
        node.is_unharmed().await;
        node
    }

    fn hello(&self) -> Hello {
        let cluster = Some(self.replica.cluster());
        Hello { protocol: PROTOCOL, cluster, node: None, instance: 9, purpose: Purpose::Client }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("it listens")
    }

    /// Sends bytes as the first frame, and expects to be cut off without a word.
    async fn is_cut_off(&self, what: &str, bytes: &[u8]) {
        let mut stream = self.connect().await;
        stream.write_all(bytes).await.ok();
        ends(&mut stream, what).await;
    }

    async fn welcomed(&self) -> TcpStream {
        let mut stream = self.connect().await;
        frame::write(&mut stream, frame::HELLO, &self.hello()).await.expect("sent");
        let welcome: Welcome = frame::read(&mut stream, frame::HELLO).await.expect("answered");
        assert!(matches!(welcome, Welcome::Welcome { .. }), "{welcome:?}");
        stream
    }

    async fn refusal(&self, hello: &Hello) -> String {
        let mut stream = self.connect().await;
        frame::write(&mut stream, frame::HELLO, hello).await.expect("sent");
        let welcome: Welcome = frame::read(&mut stream, frame::HELLO).await.expect("answered");
        let Welcome::Refused { code, why } = welcome else { panic!("{welcome:?}") };
        assert!(!why.is_empty());
        ends(&mut stream, &code).await;
        code
    }

    async fn is_unharmed(&self) {
        let open = Command::OpenSession { name: "c".into(), ttl_ms: 60_000 };
        let proposed = async {
            loop {
                if let Ok(committed) = self.replica.propose(open.clone().into()).await {
                    return committed;
                }
                tokio::task::yield_now().await;
            }
        };
        let committed = timeout(PATIENCE, proposed).await.expect("it commits");
        assert!(matches!(committed.reply, Reply::Session(_)));
    }
}

async fn ends(stream: &mut TcpStream, what: &str) {
    let mut rest = Vec::new();
    // Cut off with an end or with a reset, if it had more of ours to read.
    timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap_or_else(|_| panic!("{what}: still open")).ok();
    assert!(rest.is_empty(), "{what}: it said {rest:?}");
}

const MESSAGE: fn() -> Kind = || frame::message(Purpose::Client);

#[tokio::test]
async fn first_frames_that_are_none_are_cut_off() {
    let node = Node::start().await;
    let hello = frame::bytes(frame::HELLO, &node.hello()).expect("it fits");
    node.is_cut_off("an HTTP request", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    node.is_cut_off("zeros", &[0; 64]).await;
    for at in 0..hello.len() {
        let mut flipped = hello.clone();
        flipped[at] ^= 0x80;
        // A length that grew makes it wait for more: that ends with the hello's time, below.
        if !(4..8).contains(&at) {
            node.is_cut_off(&format!("byte {at} flipped"), &flipped).await;
        }
    }
    let oversized = Kind { max: usize::MAX, ..frame::HELLO };
    node.is_cut_off("oversized", &codec::seal(oversized, &vec![0; HELLO_BYTES_MAX + 1])).await;
    node.is_cut_off("newer envelope", &codec::seal(Kind { version: 2, ..frame::HELLO }, b"")).await;
    node.is_cut_off("another kind", &codec::seal(MESSAGE(), &codec::encode(&node.hello()))).await;
    node.is_cut_off("trailing bytes", &codec::seal(frame::HELLO, &[codec::encode(&node.hello()), vec![0]].concat()))
        .await;
    node.is_cut_off("half a hello and nothing more", &hello[..hello.len() - 1]).await;
    node.is_unharmed().await;
}

#[tokio::test]
async fn whoever_means_somebody_else_is_told_so() {
    let node = Node::start().await;
    let hello = node.hello();
    let as_node = |id| Hello { node: Some(id), purpose: Purpose::Control, ..node.hello() };
    assert_eq!(node.refusal(&Hello { cluster: Some(1), ..hello.clone() }).await, "LW0602");
    assert_eq!(node.refusal(&Hello { protocol: PROTOCOL + 1, ..hello.clone() }).await, "LW0703");
    assert_eq!(node.refusal(&Hello { purpose: Purpose::Control, ..hello.clone() }).await, "LW0701");
    assert_eq!(node.refusal(&Hello { purpose: Purpose::Bulk, ..hello.clone() }).await, "LW0701");
    assert_eq!(node.refusal(&as_node(node.replica.node())).await, "LW0603");
    // A node that has the address of one that it replaced hears itself: nobody claims anything.
    let mut stream = node.connect().await;
    frame::write(&mut stream, frame::HELLO, &hello).await.expect("sent");
    let welcome: Welcome = frame::read(&mut stream, frame::HELLO).await.expect("answered");
    let Welcome::Welcome { instance, .. } = welcome else { panic!("{welcome:?}") };
    assert_eq!(node.refusal(&Hello { instance, ..as_node(node.replica.node()) }).await, "LW0501");
    // Two processes that say that they are the same node: the second one is a clone.
    let mut first = node.connect().await;
    frame::write(&mut first, frame::HELLO, &as_node(77)).await.expect("sent");
    let welcome: Welcome = frame::read(&mut first, frame::HELLO).await.expect("answered");
    assert!(matches!(welcome, Welcome::Welcome { .. }));
    // An open connection proves no life: the second one waits until the first one is heard, for longer than a word takes.
    let second = Hello { instance: 10, ..as_node(77) };
    let began = Instant::now();
    while node.refusal(&second).await != "LW0603" {
        assert!(began.elapsed() < PATIENCE, "a clone is never refused");
        let ping = frame::bytes(frame::message(Purpose::Control), &(0_u64, Ask::Ping)).expect("it fits");
        first.write_all(&ping).await.expect("it is still listened to");
    }
    assert!(began.elapsed() >= ON_ITS_WAY_MAX, "what was on its way proves nothing");
    node.is_unharmed().await;
}

#[tokio::test]
async fn messages_that_are_none_end_their_connection_only() {
    let node = Node::start().await;
    let mut other = node.welcomed().await;
    let ask = frame::bytes(MESSAGE(), &(1_u64, Ask::Status)).expect("it fits");
    let mut unknown = codec::encode(&(1_u64, Ask::Status));
    unknown[8..12].copy_from_slice(&999_u32.to_le_bytes());
    let oversized = {
        let mut head = codec::seal(MESSAGE(), b"");
        head[4..8].copy_from_slice(&(BULK_FRAME_BYTES_MAX as u32 + 1).to_be_bytes());
        head
    };
    let damaged = {
        let mut bytes = ask.clone();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        bytes
    };
    let newer = codec::seal(Kind { version: 2, ..MESSAGE() }, &codec::encode(&(1_u64, Ask::Status)));
    let garbage: Vec<u8> = (0..200).map(|i: u32| (i * 37 % 251) as u8).collect();
    let bad = [
        ("unknown question", codec::seal(MESSAGE(), &unknown)),
        ("oversized", oversized),
        ("damaged", damaged),
        ("newer", newer),
        ("garbage", garbage),
    ];
    for (what, bytes) in bad {
        let mut stream = node.welcomed().await;
        stream.write_all(&bytes).await.ok();
        ends(&mut stream, what).await;
    }
    // A connection that ends in the middle of a frame.
    let mut stream = node.welcomed().await;
    stream.write_all(&ask[..ask.len() / 2]).await.expect("sent");
    drop(stream);

    other.write_all(&ask).await.expect("sent");
    let (id, answer): (u64, Answer) = frame::read(&mut other, MESSAGE()).await.expect("answered");
    assert!(id == 1 && matches!(answer, Answer::Status(_)), "the others' connections live on");
    node.is_unharmed().await;
}

#[tokio::test]
async fn a_client_cannot_speak_for_a_peer() {
    let node = Node::start().await;
    let mut stream = node.welcomed().await;
    let asks = [Ask::TakeOver { term: 1 }, Ask::PreVote { term: 9, last: None }, Ask::PutFrames(Vec::new())];
    for (id, ask) in (0_u64..).zip(asks) {
        frame::write(&mut stream, MESSAGE(), &(id, ask)).await.expect("sent");
        let (_, answer): (u64, Answer) = frame::read(&mut stream, MESSAGE()).await.expect("answered");
        assert!(matches!(answer, Answer::Failed { code, .. } if code == "LW0701"));
    }
    node.is_unharmed().await;
}

async fn code(kind: Kind, mut bytes: &[u8]) -> &'static str {
    match frame::read::<Ask>(&mut bytes, kind).await {
        Ok(ask) => panic!("{ask:?}"),
        Err(error) => error.code(),
    }
}

#[tokio::test]
async fn each_kind_of_bad_frame_has_its_code() {
    let kind = frame::message(Purpose::Control);
    let good = frame::bytes(kind, &Ask::Status).expect("it fits");
    let mut too_long = good.clone();
    too_long[4..8].copy_from_slice(&(FRAME_BYTES_MAX as u32 + 1).to_be_bytes());
    assert_eq!(code(kind, &too_long).await, "LW0702", "refused by its head alone");
    let newer = codec::seal(Kind { version: 2, ..kind }, b"x");
    assert_eq!(code(kind, &newer).await, "LW0703");
    assert_eq!(code(kind, &[7; ENVELOPE_BYTES]).await, "LW0701");
    assert_eq!(code(kind, &codec::seal(kind, b"xyz")).await, "LW0701");
    for cut in 0..good.len() {
        assert_eq!(code(kind, &good[..cut]).await, "LW0501", "cut off at {cut}: the connection broke");
    }
    let large = Ask::SnapshotPiece { transfer: "t".into(), offset: 0, bytes: vec![0; FRAME_BYTES_MAX] };
    let error = FrameError::from(frame::bytes(kind, &large).expect_err("the other side would refuse it"));
    assert_eq!(error.code(), "LW0702");
}
