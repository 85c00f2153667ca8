//! The streams of an HTTP/3 connection that carry no flow: control (SETTINGS, GOAWAY) and QPACK's, which stay empty.

use std::rc::Rc;

use mesh_core::h3::frame::{Decoder, Frame, Stream, control_preface, goaway, lossy};
use mesh_core::h3::{H3Error, read_varint, stream_type};
use quinn::{RecvStream, VarInt};

use super::{Connection, lost};
use crate::failure::Failure;

impl Connection {
    /// Our control stream, with our settings. Closing it is a connection error, so it is held to the end.
    pub(super) async fn open_control(&self) -> Result<quinn::SendStream, Failure> {
        let mut stream = self.quic.open_uni().await.map_err(|error| lost(&error))?;
        stream
            .write_all(&control_preface())
            .await
            .map_err(super::stream::write_failure)?;
        Ok(stream)
    }

    /// What is served goes on; what comes from now on is rejected, and may be tried elsewhere (RFC 9114 5.2).
    pub(super) async fn go_away(&self, control: &mut quinn::SendStream) {
        self.link.go_away();
        if let Err(error) = control.write_all(&goaway(self.next_request.get())).await {
            tracing::debug!(target: "mesh_agent::tunnel", peer = %self.link.peer.identity, %error, "GOAWAY was not sent");
        }
    }

    /// Says that too much is lost of what we send here, so that the peer may take another way with new streams.
    pub(super) async fn tell_of_losses(&self, control: &mut quinn::SendStream) {
        tracing::info!(target: "mesh_agent::tunnel", peer = %self.link.peer.identity, "too many packets to this peer are lost over QUIC");
        if let Err(error) = control.write_all(&lossy()).await {
            tracing::debug!(target: "mesh_agent::tunnel", peer = %self.link.peer.identity, %error, "the peer was not told of losses");
        }
    }

    /// A stream of the peer's: its control stream, QPACK's (which stay empty), or one that is not known.
    pub(super) async fn unidirectional(self: Rc<Self>, mut stream: RecvStream) {
        let mut kind = Vec::new();
        let kind = loop {
            if let Some((kind, _)) = read_varint(&kind) {
                break kind;
            }
            let mut byte = [0];
            match stream.read(&mut byte).await {
                Ok(Some(_)) => kind.push(byte[0]),
                Ok(None) | Err(_) => return,
            }
        };
        let ended = match kind {
            stream_type::CONTROL => self.control(stream).await,
            stream_type::QPACK_ENCODER | stream_type::QPACK_DECODER => swallow(stream).await,
            // We never allow pushes.
            stream_type::PUSH => Err(H3Error::Id),
            _ => {
                let _ = stream.stop(VarInt::from_u32(0x103));
                return;
            }
        };
        if self.quic.close_reason().is_none() {
            self.fail(ended.err().unwrap_or(H3Error::ClosedCriticalStream));
        }
    }

    async fn control(&self, mut stream: RecvStream) -> Result<(), H3Error> {
        let mut decoder = Decoder::new(Stream::Control);
        while let Ok(Some(chunk)) = stream.read_chunk(CONTROL_CHUNK, true).await {
            let mut bytes = chunk.bytes;
            while let Some(frame) = decoder.next(&mut bytes)? {
                match frame {
                    Frame::Settings(settings) => drop(self.settings.send_replace(Some(settings))),
                    Frame::GoAway(_) => self.link.go_away(),
                    Frame::Lossy => self.peer_loses.set(true),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// With the dynamic table off nothing but settings-neutral instructions may come; they are few.
async fn swallow(mut stream: RecvStream) -> Result<(), H3Error> {
    let mut seen = 0;
    while let Ok(Some(chunk)) = stream.read_chunk(CONTROL_CHUNK, true).await {
        seen += chunk.bytes.len();
        if seen > MAX_QPACK {
            return Err(H3Error::ExcessiveLoad);
        }
    }
    Ok(())
}

const CONTROL_CHUNK: usize = 1024;
const MAX_QPACK: usize = 1024;
