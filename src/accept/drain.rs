//! Which calls a connection waits for at the end.
//!
//! A call with one answer is waited for, and then the connection ends by itself, when all of that
//! has left. A stream of events ends when its client goes, and so would keep a daemon that
//! is to stop: it is ended, as if the runtime had gone, and its client asks anew.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http_body::{Body, Frame, SizeHint};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::forward::{self, Answer};

/// Methods whose answer has no end.
const ENDLESS: &[&str] = &["/runtime.v1.RuntimeService/GetContainerEvents"];

/// The calls of a connection.
#[derive(Clone, Debug)]
pub(super) struct Calls {
    tally: watch::Sender<Tally>,
    stop: watch::Receiver<bool>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    under_way: usize,
    /// When the last one ended.
    last: Option<Instant>,
}

/// One call, until it is dropped.
pub(super) enum Call {
    /// It is waited for.
    Counted(#[expect(dead_code, reason = "held until the call ends")] Counted),
    /// It would never end. Ready when it has to.
    Endless(Pin<Box<dyn Future<Output = ()> + Send>>),
}

/// A call that is waited for.
#[derive(Debug)]
pub(super) struct Counted(watch::Sender<Tally>);

impl Calls {
    /// None yet; `stop` turns true when endless ones have to end.
    pub(super) fn until(stop: watch::Receiver<bool>) -> Self {
        Self { tally: watch::Sender::default(), stop }
    }

    /// Notes a call.
    pub(super) fn begin(&self, path: &str) -> Call {
        if ENDLESS.contains(&path) {
            let mut stop = self.stop.clone();
            return Call::Endless(Box::pin(async move { ordered(&mut stop).await }));
        }
        self.tally.send_modify(|tally| tally.under_way += 1);
        Call::Counted(Counted(self.tally.clone()))
    }

    /// Returns when there is nobody to wait for: no call is under way, a moment has passed, and the
    /// last answer was handed to HTTP/2 so long ago that even a slow reader has it.
    pub(super) async fn over(&self, moment: Duration, slow: Duration) {
        loop {
            // This holds a sender, so that the wait is for the number alone.
            let _ = self.tally.subscribe().wait_for(|tally| tally.under_way == 0).await;
            let last = self.tally.borrow().last;
            let rest = last.map_or(moment, |last| moment.max(slow.saturating_sub(last.elapsed())));
            sleep(rest).await;
            let tally = *self.tally.borrow();
            if tally.under_way == 0 && tally.last == last {
                return;
            }
        }
    }
}

/// Returns when the order to stop is given, or nobody is left to give it.
pub(super) async fn ordered(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|tally| {
            tally.under_way -= 1;
            tally.last = Some(Instant::now());
        });
    }
}

impl Call {
    /// Its answer as it leaves. An endless one that has none yet when it has to end gets its end.
    pub(super) async fn answered(
        mut self,
        answer: impl Future<Output = Answer>,
    ) -> http::Response<Answering> {
        let answer = match &mut self {
            Call::Counted(_) => answer.await,
            Call::Endless(over) => tokio::select! {
                answer = answer => answer,
                () = over => return forward::stopping().map(Answering::ended),
            },
        };
        answer.map(|body| Answering { body, call: Some(self) })
    }
}

/// The body of an answer, and the call that it belongs to: it has ended when all of it was handed
/// to HTTP/2, or given up.
pub(super) struct Answering {
    body: forward::Body,
    call: Option<Call>,
}

impl Answering {
    fn ended(body: forward::Body) -> Self {
        Self { body, call: None }
    }
}

impl Body for Answering {
    type Data = Bytes;
    type Error = <forward::Body as Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(Call::Endless(over)) = &mut self.call
            && over.as_mut().poll(cx).is_ready()
        {
            *self = Self::ended(forward::Body::default());
            let mut end = mem::take(forward::stopping().headers_mut());
            end.remove(CONTENT_TYPE);
            return Poll::Ready(Some(Ok(Frame::trailers(end))));
        }
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

    const EVENTS: &str = "/runtime.v1.RuntimeService/GetContainerEvents";
    const MOMENT: Duration = Duration::from_millis(1);
    const SLOW: Duration = Duration::from_millis(50);
    const PATIENCE: Duration = Duration::from_secs(30);

    async fn over(calls: &Calls, slow: Duration) -> Duration {
        let began = Instant::now();
        timeout(PATIENCE, calls.over(MOMENT, slow)).await.expect("none is waited for");
        began.elapsed()
    }

    #[tokio::test]
    async fn each_call_is_waited_for_and_a_stream_of_events_is_not() {
        let (_order, stop) = watch::channel(false);
        let calls = Calls::until(stop);
        let _endless = calls.begin(EVENTS);
        over(&calls, Duration::MAX).await;
        let first = calls.begin("/runtime.v1.RuntimeService/Version");
        let second = calls.begin("/runtime.v1.RuntimeService/GetContainerEvents?");
        drop(first);
        timeout(SLOW, calls.over(MOMENT, MOMENT)).await.expect_err("one is under way");
        drop(second);
        over(&calls, MOMENT).await;
    }

    #[tokio::test]
    async fn who_was_just_answered_has_time_to_read() {
        let (_order, stop) = watch::channel(false);
        let calls = Calls::until(stop);
        let began = Instant::now();
        drop(calls.begin("/runtime.v1.RuntimeService/Version"));
        over(&calls, SLOW).await;
        assert!(began.elapsed() >= SLOW);
        // Once.
        timeout(PATIENCE, calls.over(MOMENT, SLOW)).await.expect("it was long ago");
        drop(calls.begin("/runtime.v1.RuntimeService/Version"));
        timeout(SLOW, calls.over(MOMENT, PATIENCE)).await.expect_err("it was just now");
        // A call that comes and goes meanwhile counts as well.
        let waiting = calls.clone();
        let waiting = tokio::spawn(async move { over(&waiting, SLOW).await });
        tokio::task::yield_now().await;
        let began = Instant::now();
        drop(calls.begin("/runtime.v1.RuntimeService/Version"));
        waiting.await.unwrap();
        assert!(began.elapsed() >= SLOW);
    }

    #[tokio::test]
    async fn a_stream_of_events_ends_with_a_status_when_it_has_to() {
        let (order, stop) = watch::channel(false);
        let calls = Calls::until(stop);
        let answer = |text: &'static str| Answer::new(forward::Body::whole(text));
        let mut early = calls.begin(EVENTS).answered(async { answer("event") }).await.into_body();
        let mut frame = async || {
            let frame = std::future::poll_fn(|cx| Pin::new(&mut early).poll_frame(cx)).await;
            frame.map(Result::unwrap)
        };
        assert_eq!(frame().await.unwrap().into_data().unwrap(), "event");
        order.send(true).unwrap();
        let end = frame().await.unwrap().into_trailers().unwrap();
        assert_eq!((end.len(), &end["grpc-status"]), (2, &"14".parse().unwrap()));
        assert!(frame().await.is_none());
        let late = calls.begin(EVENTS).answered(std::future::pending()).await;
        assert_eq!(late.headers()["grpc-status"], "14");
        assert!(late.into_body().is_end_stream());
        // All others have their answer.
        let other = calls.begin("/runtime.v1.RuntimeService/Version");
        let mut other = other.answered(async { answer("version") }).await.into_body();
        let data = std::future::poll_fn(|cx| Pin::new(&mut other).poll_frame(cx)).await;
        assert_eq!(data.unwrap().unwrap().into_data().unwrap(), "version");
    }
}
