//! The loop. One turn: read a bounded number of packets, fire timers, tell events, write packets; then let others run,
//! so that what they send goes out in batches.

use std::io;
use std::rc::Rc;

use mesh_core::engine::Event;
use tokio::io::Interest;

use super::shared::{Handle, Outgoing, Shared, Waiters};
use super::{Captured, Flow};
use crate::tun::READ_BYTES;

/// Packets read in one turn.
const BATCH: usize = 32;

/// Runs until the device is lost.
pub(super) async fn run(shared: &Rc<Shared>, mut on: impl FnMut(Captured)) -> io::Error {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let more = match read(shared, &mut buffer) {
            Ok(more) => more,
            Err(error) => return error,
        };
        shared.engine.borrow_mut().handle_timeout(shared.now());
        tell(shared, &mut on);
        write(shared);
        {
            let engine = shared.engine.borrow();
            shared
                .stats
                .refresh(&engine.counters(), engine.flows(), engine.half_open());
        }
        if more {
            tokio::task::yield_now().await;
        } else if let Err(error) = rest(shared).await {
            return error;
        }
    }
}

/// Reads packets into the engine; whether there may be more.
fn read(shared: &Rc<Shared>, buffer: &mut [u8]) -> io::Result<bool> {
    let mut engine = shared.engine.borrow_mut();
    for _ in 0..BATCH {
        match shared.tun.try_io(Interest::READABLE, |tun| tun.read(buffer)) {
            Ok(packet) => engine.handle_packet(shared.now(), &buffer[packet]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Tells what happened to those who wait. The engine is not borrowed while they are told.
fn tell(shared: &Rc<Shared>, on: &mut impl FnMut(Captured)) {
    loop {
        let event = shared.engine.borrow_mut().poll_event();
        let waiters = |flow| shared.waiters.borrow().get(&flow).cloned();
        match event {
            None => return,
            Some(Event::Opened { flow, key }) => on(Captured::Tcp(Flow::new(Handle::new(shared, flow, key)))),
            Some(Event::Datagram { key, payload }) => on(Captured::Datagram { key, payload }),
            Some(Event::Connected { flow }) => {
                if let Some(waiters) = waiters(flow) {
                    waiters.answer();
                }
            }
            Some(Event::Readable { flow }) => {
                if let Some(waiters) = waiters(flow) {
                    Waiters::wake(&waiters.readable);
                }
            }
            Some(Event::Writable { flow }) => {
                if let Some(waiters) = waiters(flow) {
                    Waiters::wake(&waiters.writable);
                }
            }
            Some(Event::Closed { flow, reason }) => {
                let gone = shared.waiters.borrow_mut().remove(&flow);
                if let Some(waiters) = gone {
                    waiters.close(reason);
                }
            }
        }
    }
}

/// Writes the engine's packets until there are none, or the device takes no more.
fn write(shared: &Rc<Shared>) {
    let mut engine = shared.engine.borrow_mut();
    let mut outgoing = shared.outgoing.borrow_mut();
    let Outgoing { buffer, waiting } = &mut *outgoing;
    while let Some(packet) = waiting.take().or_else(|| engine.poll_packet(shared.now(), buffer)) {
        let written = shared
            .tun
            .try_io(Interest::WRITABLE, |tun| tun.write(&buffer[..packet.len], &packet));
        match written {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                *waiting = Some(packet);
                return;
            }
            // The kernel takes no such packet, now or ever (ENOBUFS, EIO while the device is down). TCP repeats it.
            Err(error) => {
                shared.stats.count_write_error();
                tracing::debug!(%error, len = packet.len, "the TUN device refused a packet");
            }
        }
    }
}

/// Until there is something to do.
async fn rest(shared: &Rc<Shared>) -> io::Result<()> {
    let timeout = shared.engine.borrow().poll_timeout();
    let blocked = shared.outgoing.borrow().waiting.is_some();
    tokio::select! {
        ready = shared.tun.ready(Interest::READABLE | Interest::ERROR) => {
            // Someone deleted the device.
            if ready?.ready().is_error() {
                return Err(io::Error::new(io::ErrorKind::NotConnected, "the TUN device was removed"));
            }
        }
        ready = shared.tun.writable(), if blocked => drop(ready?),
        () = shared.woken() => {}
        () = tokio::time::sleep_until(shared.at(timeout.unwrap_or_default())), if timeout.is_some() => {}
    }
    Ok(())
}
