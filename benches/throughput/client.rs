//! The application on machine A: connects as often as the measure wants, warms up, then counts for some seconds.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::measure::{Kind, MESSAGE, Measure, Sample, machine_busy};

const WARM_UP: Duration = Duration::from_millis(500);
const CHUNK: usize = 256 << 10;

/// What the workers count while [`Counts::is_open`].
#[derive(Default)]
struct Counts {
    bytes: AtomicU64,
    /// Microseconds of each request.
    times: Mutex<Vec<f64>>,
    is_open: std::sync::atomic::AtomicBool,
}

/// Loads `address` and gives what was seen in `seconds`.
pub(crate) fn run(measure: &Measure, address: SocketAddr, seconds: f64) -> Result<Sample> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(load(measure, address, seconds))
}

/// Whether a message comes back from `address`.
pub(crate) fn answers(address: SocketAddr) -> bool {
    use std::io::{Read as _, Write as _};
    let asked = || {
        let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(&[7; MESSAGE])?;
        stream.read_exact(&mut [0; MESSAGE])
    };
    asked().is_ok()
}

async fn load(measure: &Measure, address: SocketAddr, seconds: f64) -> Result<Sample> {
    let counts = Arc::new(Counts::default());
    let mut workers = JoinSet::new();
    for _ in 0..measure.at_once {
        workers.spawn(work(measure.kind, address, counts.clone()));
    }
    // Workers run for ever: one that ends, ends with an error.
    let measured = tokio::select! {
        ended = workers.join_next() => ended.context("no workers")??.map(|()| unreachable!()),
        measured = window(&counts, seconds) => measured,
    };
    let (wall, busy) = measured.with_context(|| format!("{} to {address}", measure.name))?;
    let bytes = counts.bytes.load(Relaxed) as f64;
    let mut times = std::mem::take(&mut *counts.times.lock().unwrap_or_else(PoisonError::into_inner));
    times.sort_by(f64::total_cmp);
    if measure.is_bulk() {
        ensure!(
            bytes > 0.0,
            "{} to {address}: not one byte in {seconds} s",
            measure.name
        );
        let gib = bytes / f64::from(1 << 30);
        return Ok(Sample {
            rate: bytes * 8e-9 / wall,
            cpu: busy / gib,
            p50_us: 0.0,
            p99_us: 0.0,
        });
    }
    ensure!(
        !times.is_empty(),
        "{} to {address}: not one answer in {seconds} s",
        measure.name
    );
    let count = times.len() as f64;
    Ok(Sample {
        rate: count / wall,
        cpu: busy * 1e6 / count,
        p50_us: times[times.len() / 2],
        p99_us: times[(times.len() * 99 / 100).min(times.len() - 1)],
    })
}

/// Opens the window after the warm-up; gives its true length and the machine's busy seconds in it.
async fn window(counts: &Counts, seconds: f64) -> Result<(f64, f64)> {
    tokio::time::sleep(WARM_UP).await;
    let (began, busy) = (Instant::now(), machine_busy()?);
    counts.is_open.store(true, Relaxed);
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    counts.is_open.store(false, Relaxed);
    Ok((began.elapsed().as_secs_f64(), machine_busy()? - busy))
}

async fn work(kind: Kind, address: SocketAddr, counts: Arc<Counts>) -> Result<()> {
    match kind {
        Kind::Up => send(address, &counts).await,
        Kind::Down => receive(address, &counts).await,
        Kind::Echo => ask_again(address, &counts).await,
        Kind::Connect => connect_again(address, &counts).await,
    }
}

async fn send(address: SocketAddr, counts: &Counts) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let buffer = vec![0xa5; CHUNK];
    loop {
        let sent = stream.write(&buffer).await?;
        counts.count_bytes(sent);
    }
}

async fn receive(address: SocketAddr, counts: &Counts) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let received = stream.read(&mut buffer).await?;
        ensure!(received > 0, "the source ended");
        counts.count_bytes(received);
    }
}

async fn ask_again(address: SocketAddr, counts: &Counts) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    loop {
        let began = Instant::now();
        ask(&mut stream).await?;
        counts.count_time(began);
    }
}

async fn connect_again(address: SocketAddr, counts: &Counts) -> Result<()> {
    loop {
        let began = Instant::now();
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        ask(&mut stream).await?;
        drop(stream);
        counts.count_time(began);
    }
}

async fn ask(stream: &mut TcpStream) -> Result<()> {
    let mut message = [7; MESSAGE];
    stream.write_all(&message).await?;
    stream.read_exact(&mut message).await?;
    Ok(())
}

impl Counts {
    fn count_bytes(&self, bytes: usize) {
        if self.is_open.load(Relaxed) {
            self.bytes.fetch_add(bytes as u64, Relaxed);
        }
    }

    fn count_time(&self, began: Instant) {
        if self.is_open.load(Relaxed) {
            let micros = began.elapsed().as_secs_f64() * 1e6;
            self.times.lock().unwrap_or_else(PoisonError::into_inner).push(micros);
        }
    }
}
