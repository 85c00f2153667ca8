//! The two directions of an in-memory pipe.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf};

use super::{End, Sink, Source};
use crate::failure::Failure;

/// Splits a pipe.
pub(super) fn split(stream: DuplexStream) -> End<PipeSource, PipeSink> {
    let (read, write) = tokio::io::split(stream);
    End {
        source: PipeSource(Some(read)),
        sink: PipeSink(Some(write)),
    }
}

/// What was written at the other end.
pub(super) struct PipeSource(Option<ReadHalf<DuplexStream>>);

/// To the other end.
pub(super) struct PipeSink(Option<WriteHalf<DuplexStream>>);

impl Source for PipeSource {
    async fn recv(&mut self) -> Result<Option<Bytes>, Failure> {
        let Some(read) = &mut self.0 else { return Ok(None) };
        let mut buffer = BytesMut::with_capacity(CHUNK);
        let length = read.read_buf(&mut buffer).await?;
        Ok((length > 0).then(|| buffer.freeze()))
    }

    fn stop(&mut self) {
        self.0 = None;
    }
}

impl Sink for PipeSink {
    async fn send(&mut self, bytes: Bytes) -> Result<(), Failure> {
        let gone = || Failure::TunnelLost("the pipe is closed".into());
        Ok(self.0.as_mut().ok_or_else(gone)?.write_all(&bytes).await?)
    }

    async fn finish(&mut self) -> Result<(), Failure> {
        match &mut self.0 {
            Some(write) => Ok(write.shutdown().await?),
            None => Ok(()),
        }
    }

    fn reset(&mut self) {
        // A pipe knows no reset; TLS inside takes an end without its own close for what it is.
        self.0 = None;
    }
}

/// Bytes read at a time.
const CHUNK: usize = 64 << 10;
