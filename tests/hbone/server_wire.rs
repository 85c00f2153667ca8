//! What our listener says of the connection itself: SETTINGS, windows, PING, GOAWAY.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::frames::{ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, SETTINGS, WINDOW_UPDATE, connect};
use crate::mesh::{echo_server, run};
use crate::setting::Setting;
use crate::virtual_time::Held;

#[test]
fn settings_and_windows_are_ztunnels() {
    run(async || {
        let setting = Setting::new();
        let mut wire = setting.wire().await;
        let frames = wire.round_trip().await;
        let settings = frames.iter().find(|frame| frame.kind == SETTINGS && frame.flags != ACK);
        let expected = BTreeMap::from([
            (3, 200),      // MAX_CONCURRENT_STREAMS
            (4, 4 << 20),  // INITIAL_WINDOW_SIZE
            (5, 1 << 20),  // MAX_FRAME_SIZE
            (6, 64 << 10), // MAX_HEADER_LIST_SIZE
        ]);
        assert_eq!(settings.expect("no SETTINGS").settings(), expected);
        // Ours were acknowledged.
        assert!(frames.iter().any(|frame| frame.kind == SETTINGS && frame.flags == ACK));
        // The connection's window is 65535 (RFC 9113 6.9.2), and this.
        let window = frames
            .into_iter()
            .find(|frame| frame.kind == WINDOW_UPDATE && frame.stream == 0);
        let window = match window {
            Some(window) => window,
            None => wire.next(WINDOW_UPDATE).await,
        };
        assert_eq!((window.stream, window.number(0)), (0, (16 << 20) - 65_535));
    });
}

/// A large frame is what the settings promise to take.
#[test]
fn a_frame_of_a_mebibyte_is_taken() {
    run(async || {
        let setting = Setting::new();
        let application = echo_server().await;
        let mut wire = setting.wire().await;
        wire.round_trip().await;
        wire.write(HEADERS, END_HEADERS, 1, &connect(&application))
            .await
            .unwrap();
        wire.next(HEADERS).await;
        // Room for what comes back.
        for stream in [0, 1] {
            wire.write(WINDOW_UPDATE, 0, stream, &(2_u32 << 20).to_be_bytes())
                .await
                .unwrap();
        }
        let sent: Vec<u8> = (0..1 << 20).map(|at: u32| at.to_le_bytes()[1]).collect();
        wire.write(DATA, END_STREAM, 1, &sent).await.unwrap();
        let mut got = Vec::new();
        loop {
            let frame = wire.next(DATA).await;
            got.extend_from_slice(&frame.payload);
            if frame.flags & END_STREAM != 0 {
                break;
            }
        }
        assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
    });
}

#[test]
fn it_pings_every_ten_seconds_and_hangs_up_after_twenty_without_an_answer() {
    run(async || {
        let setting = Setting::new();
        let mut wire = setting.wire().await;
        wire.round_trip().await;
        let time = Held::new();
        for _ in 0..2 {
            time.pass(Duration::from_millis(9_900)).await;
            let early = wire.round_trip().await;
            assert!(!early.iter().any(|frame| frame.kind == PING), "{early:?}");
            time.pass(Duration::from_millis(200)).await;
            let ping = wire.due_ping().await;
            wire.write(PING, ACK, 0, &ping.payload).await.unwrap();
            wire.round_trip().await;
        }
        time.pass(Duration::from_millis(10_100)).await;
        wire.due_ping().await;
        time.pass(Duration::from_millis(19_800)).await;
        wire.round_trip().await;
        time.pass(Duration::from_millis(400)).await;
        drop(time);
        assert!(wire.next_or_end(PING).await.is_none(), "another PING before an answer");
    });
}

#[test]
fn who_drains_says_goaway_and_serves_what_lives() {
    run(async || {
        let setting = Setting::new();
        let application = echo_server().await;
        let mut wire = setting.wire().await;
        wire.write(HEADERS, END_HEADERS, 1, &connect(&application))
            .await
            .unwrap();
        wire.next(HEADERS).await;
        setting.tunnels.drain();
        // First a warning that refuses nothing yet (RFC 9113 6.8), and once that is known to have arrived the last stream.
        let warning = wire.next(GOAWAY).await;
        assert_eq!((warning.number(0), warning.number(4)), (u32::MAX >> 1, 0));
        let ping = wire.next(PING).await;
        wire.write(PING, ACK, 0, &ping.payload).await.unwrap();
        let last = wire.next(GOAWAY).await;
        assert_eq!((last.number(0), last.number(4)), (1, 0));
        wire.write(DATA, 0, 1, b"still").await.unwrap();
        assert_eq!(wire.next(DATA).await.payload, b"still");
        wire.write(DATA, END_STREAM, 1, b"").await.unwrap();
        let end = wire.next(DATA).await;
        assert_eq!(end.flags & END_STREAM, END_STREAM);
        assert!(wire.next_or_end(DATA).await.is_none(), "the connection stays");
    });
}

#[test]
fn a_client_that_goes_away_keeps_its_streams() {
    run(async || {
        let setting = Setting::new();
        let application = echo_server().await;
        let mut wire = setting.wire().await;
        wire.write(HEADERS, END_HEADERS, 1, &connect(&application))
            .await
            .unwrap();
        wire.next(HEADERS).await;
        wire.write(GOAWAY, 0, 0, &[0; 8]).await.unwrap();
        wire.round_trip().await;
        wire.write(DATA, 0, 1, b"still").await.unwrap();
        assert_eq!(wire.next(DATA).await.payload, b"still");
        wire.write(DATA, END_STREAM, 1, b"").await.unwrap();
        assert_eq!(wire.next(DATA).await.flags & END_STREAM, END_STREAM);
    });
}
