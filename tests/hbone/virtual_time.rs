//! tokio's clock under the test's hand, while sockets are real.

use std::sync::mpsc;
use std::time::Duration;

/// As long as it lives no time passes but by [`Held::pass`]; afterwards it passes whenever all tasks wait.
pub struct Held {
    _until: mpsc::Sender<()>,
}

impl Held {
    /// Stops the clock. It would jump to the next timer whenever all tasks wait, be it for a socket; not while a blocking task
    /// runs.
    pub fn new() -> Self {
        tokio::time::pause();
        let (sender, receiver) = mpsc::channel();
        tokio::task::spawn_blocking(move || receiver.recv());
        Self { _until: sender }
    }

    /// Lets so much time pass, at once.
    pub async fn pass(&self, time: Duration) {
        tokio::time::advance(time).await;
    }
}
