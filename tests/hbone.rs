//! HBONE over HTTP/2 as others see it on the wire: our listener before a bare client, our dialler before a bare server.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "hbone/bare.rs"]
mod bare;
#[path = "hbone/client_answers.rs"]
mod client_answers;
#[path = "hbone/client_first.rs"]
mod client_first;
#[path = "hbone/client_pool.rs"]
mod client_pool;
#[path = "hbone/client_wire.rs"]
mod client_wire;
#[path = "hbone/door.rs"]
mod door;
#[path = "hbone/frames.rs"]
mod frames;
#[path = "hbone/machine.rs"]
mod machine;
#[path = "tunnel/mesh.rs"]
mod mesh;
#[path = "hbone/outbound.rs"]
mod outbound;
#[path = "hbone/server_abuse.rs"]
mod server_abuse;
#[path = "hbone/server_heads.rs"]
mod server_heads;
#[path = "hbone/server_status.rs"]
mod server_status;
#[path = "hbone/server_streams.rs"]
mod server_streams;
#[path = "hbone/server_tls.rs"]
mod server_tls;
#[path = "hbone/server_wire.rs"]
mod server_wire;
#[path = "hbone/setting.rs"]
mod setting;
#[path = "hbone/virtual_time.rs"]
mod virtual_time;
