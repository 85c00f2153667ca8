//! Live agents: one stream for each host key. A second stream with the same host key but another process is a clone and
//! refused; one of the same process replaces the first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;
use tonic::Code;

use crate::error::Refusal;

/// Which agents have a stream.
#[derive(Clone, Default)]
pub struct Registry {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    live: HashMap<String, Holder>,
    epoch: u64,
}

struct Holder {
    epoch: u64,
    instance: String,
    end: Option<oneshot::Sender<Refusal>>,
}

/// A live stream's hold on its agent.
pub struct Live {
    agent: String,
    epoch: u64,
    end: oneshot::Receiver<Refusal>,
}

impl Live {
    /// The agent.
    pub fn agent(&self) -> &str {
        &self.agent
    }

    /// Resolves when the stream must end, with the reason.
    pub async fn ended(&mut self) -> Refusal {
        match (&mut self.end).await {
            Ok(refusal) => refusal,
            Err(_) => Refusal::new(Code::Aborted, "replaced", "a newer stream of this agent took over"),
        }
    }
}

impl Registry {
    /// Takes the agent's place; `None` when another process holds it, which makes this one a clone.
    pub fn connect(&self, agent: &str, instance: &str) -> Option<Live> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.live.get(agent).is_some_and(|held| held.instance != instance) {
            return None;
        }
        state.epoch += 1;
        let (sender, end) = oneshot::channel();
        let holder = Holder {
            epoch: state.epoch,
            instance: instance.to_owned(),
            end: Some(sender),
        };
        let epoch = state.epoch;
        state.live.insert(agent.to_owned(), holder);
        Some(Live {
            agent: agent.to_owned(),
            epoch,
            end,
        })
    }

    /// Gives the place up; false when a newer stream has it already.
    pub fn disconnect(&self, live: &Live) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let own = state.live.get(&live.agent).is_some_and(|held| held.epoch == live.epoch);
        if own {
            state.live.remove(&live.agent);
        }
        own
    }

    /// Ends the agent's stream; its place is free once the stream is gone.
    pub fn end(&self, agent: &str, refusal: Refusal) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(end) = state.live.get_mut(agent).and_then(|held| held.end.take()) {
            let _ = end.send(refusal);
        }
    }

    /// Whether the agent has a stream.
    pub fn is_live(&self, agent: &str) -> bool {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .live
            .contains_key(agent)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn the_same_process_replaces_and_another_is_refused() {
        let registry = Registry::default();
        let mut first = registry.connect("a", "1").unwrap();
        assert!(registry.connect("a", "2").is_none());
        let second = registry.connect("a", "1").unwrap();
        assert_eq!(first.ended().await.word, "replaced");
        assert!(!registry.disconnect(&first));
        assert!(registry.is_live("a"));
        assert!(registry.disconnect(&second));
        assert!(registry.connect("a", "2").is_some());
    }
}
