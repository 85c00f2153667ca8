//! Carries bytes both ways between two ends, with half-close, reset and counts. No buffer of its own: the next chunk is
//! read only after the last one was taken, so that back-pressure goes from end to end.

mod duplex;
pub mod tcp;
pub mod udp;

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::failure::Failure;

/// Where bytes come from.
#[allow(async_fn_in_trait)]
pub trait Source {
    /// The next bytes, or `None` once the other end finished. Cancel-safe.
    async fn recv(&mut self) -> Result<Option<Bytes>, Failure>;
    /// The same without waiting: `None` when nothing is there. Only for sources whose pieces are small, so that they are worth
    /// gathering.
    fn recv_ready(&mut self) -> Option<Result<Option<Bytes>, Failure>> {
        None
    }
    /// Nothing more is wanted; tells the other end (STOP_SENDING, RST).
    fn stop(&mut self);
}

/// Where bytes go.
#[allow(async_fn_in_trait)]
pub trait Sink {
    /// Takes all of these bytes; waits while there is no room.
    async fn send(&mut self, bytes: Bytes) -> Result<(), Failure>;
    /// Takes all of these, in this order, and leaves none.
    async fn send_all(&mut self, pieces: &mut Vec<Bytes>) -> Result<(), Failure> {
        for piece in pieces.drain(..) {
            self.send(piece).await?;
        }
        Ok(())
    }
    /// No more bytes will come (FIN, END_STREAM).
    async fn finish(&mut self) -> Result<(), Failure>;
    /// Abnormal end (RST, RESET_STREAM). Dropping a sink that was not finished does the same.
    fn reset(&mut self);
}

/// Bytes carried, readable while a flow lives.
#[derive(Debug, Default)]
pub struct Count {
    total: AtomicU64,
    /// What [`Count::fresh`] gave out.
    told: AtomicU64,
}

impl Count {
    /// Bytes so far.
    pub fn get(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Bytes since the last call, so that each is counted once.
    pub fn fresh(&self) -> u64 {
        let total = self.get();
        total.saturating_sub(self.told.swap(total, Ordering::Relaxed))
    }

    pub(crate) fn add(&self, bytes: usize) {
        self.total.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// One end: a source and a sink.
#[derive(Debug)]
pub struct End<R, W> {
    pub source: R,
    pub sink: W,
}

/// Copies `a` to `b` (counted in `forth`) and `b` to `a` (counted in `back`) until both directions finished, or one failed:
/// then both ends are reset.
pub async fn both_ways<AR: Source, AW: Sink, BR: Source, BW: Sink>(
    mut a: End<AR, AW>,
    mut b: End<BR, BW>,
    forth: &Count,
    back: &Count,
) -> Result<(), Failure> {
    let result = tokio::try_join!(
        one_way(&mut a.source, &mut b.sink, forth),
        one_way(&mut b.source, &mut a.sink, back),
    );
    if result.is_err() {
        a.sink.reset();
        b.sink.reset();
        a.source.stop();
        b.source.stop();
    }
    result.map(|_| ())
}

/// The same for datagrams, where an end is no half-close: until one direction finished, or failed.
pub async fn until_one_ends<AR: Source, AW: Sink, BR: Source, BW: Sink>(
    mut a: End<AR, AW>,
    mut b: End<BR, BW>,
    forth: &Count,
    back: &Count,
) -> Result<(), Failure> {
    // Each way finishes its own sink. Those of a flow that failed are reset as they are dropped.
    let ended_forth = tokio::select! {
        result = one_way(&mut a.source, &mut b.sink, forth) => result.map(|()| true)?,
        result = one_way(&mut b.source, &mut a.sink, back) => result.map(|()| false)?,
    };
    match ended_forth {
        true => a.sink.finish().await,
        false => b.sink.finish().await,
    }
}

async fn one_way(source: &mut impl Source, sink: &mut impl Sink, count: &Count) -> Result<(), Failure> {
    let mut pieces = Vec::new();
    let mut next = source.recv().await;
    while let Some(first) = next? {
        let mut length = first.len();
        pieces.push(first);
        // What comes in packets leaves in one call.
        let mut met = None;
        while length < GATHERED_BYTES && pieces.len() < GATHERED_PIECES {
            match source.recv_ready() {
                None => break,
                Some(Ok(Some(piece))) => {
                    length += piece.len();
                    pieces.push(piece);
                }
                end => {
                    met = end;
                    break;
                }
            }
        }
        sink.send_all(&mut pieces).await?;
        count.add(length);
        next = match met {
            Some(end) => end,
            None => source.recv().await,
        };
    }
    sink.finish().await
}

/// Most that is gathered for one call; as many pieces as quinn gives at a time.
const GATHERED_BYTES: usize = 128 << 10;
const GATHERED_PIECES: usize = 64;

/// An end as a plain stream of bytes, for what wants one (TLS). What is written to it goes out at the end's sink.
pub fn pipe<R: Source + 'static, W: Sink + 'static>(end: End<R, W>) -> tokio::io::DuplexStream {
    let (near, far) = tokio::io::duplex(PIPE);
    tokio::task::spawn_local(async move {
        let (forth, back) = (Count::default(), Count::default());
        // Whoever reads or writes the pipe hears of its end.
        let _ = both_ways(duplex::split(far), end, &forth, &back).await;
    });
    near
}

/// Bytes that a pipe holds in each direction.
const PIPE: usize = 256 << 10;
