//! Which calls a connection waits for at the end.
//!
//! A call with one answer is waited for. A stream of events ends when its client goes, and so
//! would keep a daemon that is to stop: it is cut, as if the runtime had gone, and its client
//! asks anew.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http_body::{Body, Frame, SizeHint};
use tokio::{sync::watch, time::sleep};

/// Methods whose answer has no end.
const ENDLESS: &[&str] = &["/runtime.v1.RuntimeService/GetContainerEvents"];

/// The calls of a connection that are waited for.
#[derive(Clone, Debug)]
pub(super) struct Calls(watch::Sender<usize>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Call(watch::Sender<usize>);

impl Calls {
    /// None yet.
    pub(super) fn none() -> Self {
        Self(watch::Sender::new(0))
    }

    /// Notes a call, unless it is one that is not waited for.
    pub(super) fn begin(&self, path: &str) -> Option<Call> {
        if ENDLESS.contains(&path) {
            return None;
        }
        self.0.send_modify(|calls| *calls += 1);
        Some(Call(self.0.clone()))
    }

    /// Returns when each has had its whole answer, and no other has begun a moment later.
    pub(super) async fn over(&self, moment: Duration) {
        loop {
            // This holds a sender, so that the wait is for the number alone.
            let _ = self.0.subscribe().wait_for(|calls| *calls == 0).await;
            sleep(moment).await;
            if *self.0.borrow() == 0 {
                return;
            }
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.send_modify(|calls| *calls -= 1);
    }
}

/// An answer, and the call that it belongs to: it has ended when the answer is sent, or given up.
#[derive(Debug)]
pub(super) struct Answering<B> {
    body: B,
    _call: Option<Call>,
}

impl<B> Answering<B> {
    /// This answer to this call.
    pub(super) fn new(body: B, call: Option<Call>) -> Self {
        Self { body, _call: call }
    }
}

impl<B: Body + Unpin> Body for Answering<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn each_call_is_waited_for_and_a_stream_of_events_is_not() {
        const MOMENT: Duration = Duration::from_millis(1);
        const PATIENCE: Duration = Duration::from_secs(30);
        let calls = Calls::none();
        assert!(calls.begin("/runtime.v1.RuntimeService/GetContainerEvents").is_none());
        timeout(PATIENCE, calls.over(MOMENT)).await.expect("none is waited for");
        let first = calls.begin("/runtime.v1.RuntimeService/Version");
        let second = calls.begin("/runtime.v1.RuntimeService/GetContainerEvents?");
        drop(first);
        timeout(20 * MOMENT, calls.over(MOMENT)).await.expect_err("one is under way");
        drop(second);
        timeout(PATIENCE, calls.over(MOMENT)).await.expect("all have ended");
    }
}
