//! Whether anything is heard on a connection: what tells a voter that is silent from one that is slow.
//!
//! Must stay true: whoever moves bytes is never given up, however slowly, and neither is whoever answers that it is there;
//! a process that is stopped, or whose packets are lost, is given up within about a second.
//! Left out on purpose: questions that wait at a voter until something changes. They are silent for good reason, and a
//! word each moment would cost more than they do.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::sleep;

use crate::limits::{QUIET_BEFORE_ASKING, SENT_AT_LEAST_PER_MILLI, SILENT_AFTER};

/// How many bytes came in. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heard(Arc<AtomicU64>);

impl Heard {
    fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Waits until nothing came in for a while, and nothing even after a word was asked for. `word` asks for one and returns
    /// when it is there, or will not come; `sent` bytes go out before it. Cancel safe.
    pub(crate) async fn silence<F: Future<Output = ()>>(&self, sent: usize, word: impl Fn(Duration) -> F) {
        let patience = SILENT_AFTER + Duration::from_millis(sent as u64 / SENT_AT_LEAST_PER_MILLI);
        loop {
            let before = self.bytes();
            sleep(QUIET_BEFORE_ASKING).await;
            if self.bytes() != before {
                continue;
            }
            word(patience).await;
            if self.bytes() == before {
                return;
            }
        }
    }
}

/// A stream that counts what it reads.
pub(crate) struct Listening<R> {
    stream: R,
    heard: Heard,
}

impl<R> Listening<R> {
    pub(crate) fn to(stream: R, heard: Heard) -> Self {
        Self { stream, heard }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Listening<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.heard.0.fetch_add((buffer.filled().len() - before) as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;

    #[tokio::test]
    async fn every_byte_that_comes_in_is_heard() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let (mut near, far) = tokio::io::duplex(64);
        let heard = Heard::default();
        let mut listening = Listening::to(far, heard.clone());
        let mut buffer = [0; 3];
        for (some, all) in [(1, 1), (2, 3), (3, 6)] {
            near.write_all(&buffer[..some]).await.unwrap();
            listening.read_exact(&mut buffer[..some]).await.unwrap();
            assert_eq!(heard.bytes(), all);
        }
        drop(near);
        assert_eq!((listening.read(&mut buffer).await.unwrap(), heard.bytes()), (0, 6));
    }

    const LONG: Duration = Duration::from_secs(60);

    /// Returns after how long a silence is found while `say` speaks and `word` is what is answered.
    async fn found<F: Future<Output = ()>>(
        sent: usize,
        say: impl AsyncFnOnce(&Heard),
        word: impl Fn(Heard, Duration) -> F,
    ) -> Option<Duration> {
        let (heard, began) = (Heard::default(), Instant::now());
        let silence = timeout(LONG, heard.silence(sent, |patience| word(heard.clone(), patience)));
        let speaking = async {
            say(&heard).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = silence => ended.ok().map(|()| began.elapsed()),
            () = speaking => None,
        }
    }

    async fn nothing(_: Heard, patience: Duration) {
        sleep(patience).await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_is_silent_after_a_second() {
        let after = found(0, async |_| (), nothing).await.unwrap();
        assert_eq!(after, QUIET_BEFORE_ASKING + SILENT_AFTER);
        assert!(after <= Duration::from_secs(1));
        let after_long_question = found(1 << 20, async |_| (), nothing).await.unwrap();
        assert!(after_long_question > after + Duration::from_secs(8), "it was not sent before that");
    }

    #[tokio::test(start_paused = true)]
    async fn who_moves_a_byte_now_and_then_is_slow_and_not_silent() {
        let trickle = async |heard: &Heard| loop {
            sleep(Duration::from_millis(900)).await;
            heard.0.fetch_add(1, Ordering::Relaxed);
        };
        assert_eq!(found(0, trickle, nothing).await, None);
        let until_it_stops = async |heard: &Heard| {
            for _ in 0..10 {
                sleep(Duration::from_millis(900)).await;
                heard.0.fetch_add(1, Ordering::Relaxed);
            }
        };
        let after = found(0, until_it_stops, nothing).await.unwrap();
        assert!((9_000..11_000).contains(&after.as_millis()), "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_a_word_is_busy_and_not_silent() {
        let word = async |heard: Heard, _: Duration| {
            sleep(Duration::from_millis(600)).await;
            heard.0.fetch_add(30, Ordering::Relaxed);
        };
        assert_eq!(found(0, async |_| (), word).await, None);
    }
}
