//! Connections that we open towards applications of this machine, out of the device, in the name of a caller elsewhere.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use mesh_core::engine::{CloseReason, ConnectError};

use super::shared::{Handle, Shared};
use super::streams::{FlowSink, FlowSource};
use crate::copy::End;

/// Opens connections on the thread of its [`super::Capture`].
#[derive(Clone, Debug)]
pub struct Opener {
    pub(super) shared: Rc<Shared>,
}

impl Opener {
    /// A connection to `application` whose peer is `caller`, on a port of our choice. Errors: `ConnectionRefused` (RST),
    /// `HostUnreachable` (an ICMP error), `TimedOut` after `limit`; `ResourceBusy` at once, when there is no room for one more
    /// flow. Dropping the future gives it up.
    pub async fn open(
        &self,
        caller: IpAddr,
        application: SocketAddr,
        limit: Duration,
    ) -> io::Result<End<FlowSource, FlowSink>> {
        let opened = self
            .shared
            .engine
            .borrow_mut()
            .connect(self.shared.now(), caller, application);
        let (flow, key) = opened.map_err(no_room)?;
        let handle = Handle::new(&self.shared, flow, key);
        self.shared.wake_loop();
        // Made before the answer: dropping them resets the flow.
        let end = End {
            source: FlowSource::new(handle.clone()),
            sink: FlowSink::new(handle.clone()),
        };
        match tokio::time::timeout(limit, handle.answered()).await {
            Ok(Ok(())) => Ok(end),
            Ok(Err(reason)) => Err(not_answered(reason)),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("{application} did not answer within {} ms", limit.as_millis()),
            )),
        }
    }
}

fn no_room(error: ConnectError) -> io::Error {
    let kind = match error {
        ConnectError::NoMemory | ConnectError::TooMany | ConnectError::NoPort => io::ErrorKind::ResourceBusy,
        ConnectError::Address => io::ErrorKind::InvalidInput,
    };
    io::Error::new(kind, error)
}

fn not_answered(reason: CloseReason) -> io::Error {
    match reason {
        CloseReason::ResetByApplication => io::ErrorKind::ConnectionRefused.into(),
        CloseReason::Unreachable => io::Error::new(
            io::ErrorKind::HostUnreachable,
            "a packet filter of this machine rejects it",
        ),
        CloseReason::TimedOut => io::ErrorKind::TimedOut.into(),
        CloseReason::Aborted | CloseReason::Finished => io::ErrorKind::ConnectionAborted.into(),
    }
}
