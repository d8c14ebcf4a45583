//! What a broken API server does, and to which requests.

use std::sync::Arc;

use tokio::sync::watch;

/// What happens to a request.
#[derive(Clone)]
pub(crate) enum Fault {
    /// Answers this status, these headers and this body.
    Status(u16, Vec<(&'static str, String)>, String),
    /// Answers as usual once the gate is open.
    Wait(Gate),
    /// Closes the connection without an answer.
    Close,
    /// The usual answer, half of its body, and then a broken connection.
    Half,
    /// Answers 200 and never ends the body.
    Stall,
}

/// Holds requests back until it is opened.
#[derive(Clone)]
pub(crate) struct Gate(Arc<watch::Sender<bool>>);

impl Gate {
    pub(crate) fn closed() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    pub(crate) fn open(&self) {
        self.0.send_replace(true);
    }

    pub(super) async fn passed(&self) {
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }
}

type Predicate = Box<dyn Fn(&str) -> bool + Send>;

#[derive(Default)]
pub(super) struct Faults(Vec<(usize, Predicate, Fault)>);

impl Faults {
    pub(super) fn add(&mut self, times: usize, when: Predicate, fault: Fault) {
        self.0.push((times, when, fault));
    }

    /// What is due for a request, once less.
    pub(super) fn due(&mut self, request: &str) -> Option<Fault> {
        let (left, _, fault) =
            self.0.iter_mut().find(|(left, when, _)| *left > 0 && when(request))?;
        *left -= 1;
        Some(fault.clone())
    }
}
