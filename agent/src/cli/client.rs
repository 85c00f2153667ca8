//! Talks to the daemon over its admin socket.

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;

use crate::admin::SOCKET;
use crate::config::Config;

/// What the daemon answered: its status code and its text. `None` when no daemon answers.
pub(super) fn request(
    config: &Config,
    method: &str,
    path: &str,
    body: String,
) -> anyhow::Result<Option<(u16, String)>> {
    let socket = config.paths.run.join(SOCKET);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stream = match tokio::net::UnixStream::connect(&socket).await {
            Ok(stream) => stream,
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                bail!(
                    "{}: permission denied; use sudo, or join the group {}",
                    socket.display(),
                    config.admin.group
                )
            }
            Err(_) => return Ok(None),
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "agent")
            .body(Full::new(Bytes::from(body)))?;
        let response = sender.send_request(request).await.context("asking the daemon")?;
        let status = response.status().as_u16();
        let text = response
            .into_body()
            .collect()
            .await
            .context("reading the daemon's answer")?
            .to_bytes();
        connection.abort();
        Ok(Some((status, String::from_utf8_lossy(&text).trim_end().to_owned())))
    })
}
