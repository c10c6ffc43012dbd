//! Connections over a stream in memory: both sides are ours, or one is played frame by frame.

use tokio::io::{DuplexStream, ReadHalf, WriteHalf, duplex};
use tokio::time::timeout;

use super::*;

/// The near side's voters: each answers with what it hears; number 9 is not there.
#[derive(Clone)]
struct Echo;

impl Dial for Echo {
    type Connection = DuplexStream;

    async fn dial(&self, voter: u8) -> io::Result<DuplexStream> {
        if voter == 9 {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = duplex(1_000);
        tokio::spawn(async move {
            let (mut read, mut write) = split(theirs);
            tokio::io::copy(&mut read, &mut write).await.ok();
            // What it says after it has heard the end shows that half an end is not the whole.
            write.write_all(b"over").await.ok();
            write.shutdown().await.ok();
        });
        Ok(ours)
    }
}

type Half = Stream<ReadHalf<DuplexStream>, WriteHalf<DuplexStream>>;

const SILENCE: Duration = Duration::from_secs(1);

fn stream(io: DuplexStream) -> Half {
    let (read, write) = split(io);
    Stream { read, write, decoder: Decoder::default() }
}

fn nobody() -> mpsc::Receiver<Accepted<DuplexStream>> {
    mpsc::channel(1).1
}

/// Starts both sides. Returns where the far side accepts.
fn both() -> mpsc::Sender<Accepted<DuplexStream>> {
    let (near, far) = duplex(100_000);
    let (accept, accepted) = mpsc::channel(4);
    tokio::spawn(carry(stream(near), nobody(), Some(Echo), SILENCE));
    tokio::spawn(carry(stream(far), accepted, None::<Echo>, SILENCE));
    accept
}

async fn connect(accept: &mpsc::Sender<Accepted<DuplexStream>>, voter: u8) -> DuplexStream {
    let (ours, connection) = duplex(1_000);
    accept.send(Accepted { voter, connection }).await.expect("it carries");
    ours
}

/// Plays the other side of a near side.
async fn told(frames: &[u8]) -> (Over, Vec<Frame>) {
    let (near, far) = duplex(1_000_000);
    let near = tokio::spawn(carry(stream(near), nobody(), Some(Echo), SILENCE));
    let (mut read, mut write) = split(far);
    write.write_all(frames).await.expect("written");
    let over = timeout(Duration::from_secs(5), near).await.expect("it ends").expect("it does not panic");
    let mut heard = Vec::new();
    read.read_to_end(&mut heard).await.expect("read");
    let mut decoder = Decoder::default();
    decoder.feed(&heard);
    let frames = std::iter::from_fn(|| decoder.next().expect("they are good"));
    (over, frames.filter(|frame| *frame != Frame::Ping).collect())
}

#[tokio::test]
async fn many_connections_carry_more_than_their_window_and_end_half_by_half() {
    let accept = both();
    let mut clients = JoinSet::new();
    for voter in 0..4_u8 {
        let connection = connect(&accept, voter).await;
        clients.spawn(async move {
            let (mut read, mut write) = split(connection);
            let sent: Vec<u8> = (0..3 * WINDOW_BYTES).map(|at| (at % 251) as u8 ^ voter).collect();
            let all = sent.clone();
            let writer = tokio::spawn(async move {
                write.write_all(&all).await.expect("written");
                write.shutdown().await.expect("ended");
                write
            });
            let mut heard = Vec::new();
            if voter == 3 {
                // What is read late is there all the same, though all has ended meanwhile.
                let mut first = [0; 1];
                read.read_exact(&mut first).await.expect("read");
                heard.push(first[0]);
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            read.read_to_end(&mut heard).await.expect("read");
            assert!(heard == [sent, b"over".to_vec()].concat(), "voter {voter}: {} bytes", heard.len());
            writer.await.expect("written");
        });
    }
    timeout(Duration::from_secs(20), clients.join_all()).await.expect("in time");
}

#[tokio::test]
async fn a_connection_that_nobody_reads_does_not_hold_the_others_up() {
    let accept = both();
    let mut slow = connect(&accept, 0).await;
    // Its echo fills every buffer on the way back, and then its own way there.
    let stuck = timeout(Duration::from_millis(500), slow.write_all(&vec![1; 8 * WINDOW_BYTES])).await;
    assert!(stuck.is_err(), "it should be stuck");
    let mut quick = connect(&accept, 1).await;
    let exchange = async {
        quick.write_all(b"renew").await.expect("written");
        let mut heard = [0; 5];
        quick.read_exact(&mut heard).await.expect("read");
        heard
    };
    assert_eq!(timeout(Duration::from_secs(1), exchange).await.expect("in time"), *b"renew");
}

#[tokio::test]
async fn a_voter_that_is_not_there_closes_its_connection_only() {
    let accept = both();
    let mut dead = connect(&accept, 9).await;
    assert_eq!(timeout(SILENCE, dead.read_to_end(&mut Vec::new())).await.expect("in time").expect("closed"), 0);
    let mut alive = connect(&accept, 1).await;
    alive.write_all(b"x").await.expect("written");
    assert_eq!(alive.read_u8().await.expect("read"), b'x');
}

#[tokio::test(start_paused = true)]
async fn late_frames_are_no_mistake_and_silence_is_the_end() {
    let late = [
        Frame::Data { channel: 7, bytes: vec![1] },
        Frame::Credit { channel: 7, bytes: 1 },
        Frame::End { channel: 7 },
        Frame::Close { channel: 7 },
        Frame::Open { channel: 8, voter: 9 },
    ];
    let (over, answers) = told(&late.iter().flat_map(Frame::encode).collect::<Vec<_>>()).await;
    assert_eq!(over, Over::Silent(SILENCE));
    assert_eq!(answers, [Frame::Close { channel: 8 }]);
}

#[tokio::test(start_paused = true)]
async fn what_breaks_the_rules_ends_the_stream() {
    let open = Frame::Open { channel: 1, voter: 9 };
    let rules = Over::Broken(Broken::Rules(1));
    assert_eq!(told(&[open.encode(), open.encode()].concat()).await.0, rules, "opened twice");
    assert_eq!(told(&[0xff; 4]).await.0, Over::Broken(Broken::Length(u32::MAX)));
    assert_eq!(told(&Frame::Hello(Vec::new()).encode()).await.0, Over::Broken(Broken::Rules(0)));
    let credit = Frame::Credit { channel: 1, bytes: 1 };
    assert_eq!(told(&[open.encode(), credit.encode()].concat()).await.0, rules, "more than was sent");
    let mut flood = open.encode();
    for _ in 0..=WINDOW_BYTES / PIECE_BYTES_MAX {
        flood.extend(Frame::Data { channel: 1, bytes: vec![0; PIECE_BYTES_MAX] }.encode());
    }
    assert_eq!(told(&flood).await.0, rules, "more than its window");
    let many = (0..=u32::try_from(CARRIED_MAX).expect("few"))
        .flat_map(|channel| Frame::Open { channel, voter: 0 }.encode())
        .collect::<Vec<_>>();
    assert_eq!(told(&many).await.0, Over::Broken(Broken::Rules(64)));

    // A near side opens nothing on a far one.
    let (near, far) = duplex(1_000);
    let far = carry(stream(far), nobody(), None::<Echo>, SILENCE);
    let (_read, mut write) = split(near);
    write.write_all(&open.encode()).await.expect("written");
    assert_eq!(far.await, rules);
}
