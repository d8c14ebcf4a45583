//! The two halves of a call to the runtime: what is sent, and what comes back.

use std::{
    convert::Infallible,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http_body::{Body as _, Frame};
use tokio::sync::oneshot;

use super::{Body, body::BodyError};

/// Held by whoever waits for the answer, or reads it: without him, nobody wants the rest of the
/// call to be sent.
pub(super) type Caller = oneshot::Sender<Infallible>;

/// The body of the runtime's answer.
#[derive(Debug)]
pub struct Received {
    stream: RecvStream,
    data_ended: bool,
    _caller: Option<Caller>,
}

impl Received {
    pub(super) fn new(stream: RecvStream, caller: Option<Caller>) -> Self {
        Self { stream, data_ended: false, _caller: caller }
    }
}

impl http_body::Body for Received {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Fails for a call that has ended, whose window is nobody's concern.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.data_ended = true,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(cx));
        Poll::Ready(trailers.transpose().map(|trailers| trailers.map(Frame::trailers)))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }
}

/// Sends the body of a call: at once, where all of it is there, as kubelet's mostly is; or else
/// from a task of its own, so that the answer may begin before. What is returned then is dropped
/// when the call is given up.
pub(super) async fn send(mut body: Body, mut stream: SendStream<Bytes>) -> Option<Caller> {
    let first = poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx))).await;
    match first {
        Poll::Pending => {
            return Some(keep_sending(None, body, stream));
        }
        Poll::Ready(first) => {
            let ended = body.is_end_stream();
            match first.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) if ended => drop(stream.send_data(data, true)),
                Some(Ok(Ok(data))) => {
                    return Some(keep_sending(Some(data), body, stream));
                }
                Some(Ok(Err(frame))) => {
                    drop(stream.send_trailers(frame.into_trailers().unwrap_or_default()))
                }
                Some(Err(error)) => stream.send_reset(reason(&error)),
                None => end(&body, &mut stream),
            }
        }
    }
    None
}

fn keep_sending(data: Option<Bytes>, body: Body, stream: SendStream<Bytes>) -> Caller {
    let (caller, called) = oneshot::channel();
    tokio::spawn(pass_on(data, body, stream, called));
    caller
}

/// Sends frame by frame, as fast as the runtime takes them, until the end or until the runtime
/// wants no more.
async fn pass_on(
    mut data: Option<Bytes>,
    mut body: Body,
    mut stream: SendStream<Bytes>,
    mut called: oneshot::Receiver<Infallible>,
) {
    loop {
        if let Some(data) = data.take() {
            let ended = body.is_end_stream();
            if !data.is_empty() && !room(&mut stream, &mut called).await {
                return stream.send_reset(why(&mut body).await);
            }
            if stream.send_data(data, ended).is_err() || ended {
                return;
            }
        }
        let next = poll_fn(|cx| {
            if stream.poll_reset(cx).is_ready() {
                return Poll::Ready(None);
            }
            Pin::new(&mut body).poll_frame(cx).map(Some)
        });
        let Some(frame) = next.await else { return };
        match frame.map(|frame| frame.map(Frame::into_data)) {
            Some(Ok(Ok(next))) => data = Some(next),
            Some(Ok(Err(frame))) => {
                let _ = stream.send_trailers(frame.into_trailers().unwrap_or_default());
                return;
            }
            Some(Err(error)) => return stream.send_reset(reason(&error)),
            None => return end(&body, &mut stream),
        }
    }
}

/// Ends a call whose body gives no more. The library takes a client that breaks off with `CANCEL`
/// or `NO_ERROR` for one that has said all.
fn end(body: &Body, stream: &mut SendStream<Bytes>) {
    match body.is_end_stream() {
        true => drop(stream.send_data(Bytes::new(), true)),
        false => stream.send_reset(Reason::CANCEL),
    }
}

/// Returns when the runtime takes more of this call. False: it never will, or its caller has given
/// it up, which what he said before hides from whoever reads that in its turn.
async fn room(stream: &mut SendStream<Bytes>, called: &mut oneshot::Receiver<Infallible>) -> bool {
    stream.reserve_capacity(1);
    while stream.capacity() == 0 {
        let more = poll_fn(|cx| {
            if stream.poll_reset(cx).is_ready() || Pin::new(&mut *called).poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            stream.poll_capacity(cx)
        });
        if !matches!(more.await, Some(Ok(_))) {
            return false;
        }
    }
    true
}

/// The reason for which a call was given up, behind what its client said before: a window of it at
/// most.
async fn why(body: &mut Body) -> Reason {
    poll_fn(|cx| {
        loop {
            match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(error))) => return Poll::Ready(reason(&error)),
                Poll::Ready(None) | Poll::Pending => return Poll::Ready(Reason::CANCEL),
            }
        }
    })
    .await
}

/// The reason of a client that broke its call off.
fn reason(error: &BodyError) -> Reason {
    error.reason().unwrap_or(Reason::CANCEL)
}

#[cfg(test)]
mod tests;
