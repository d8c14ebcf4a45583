//! An end of a connection that wakes its peer, and is woken, as seldom as can be.
//!
//! A relayed call is short, so what it costs is system calls and wake-ups. Two things save them:
//! what is written is gathered until every task that is ready has had its turn, so that an
//! answer's headers, data and trailers leave in one write; and nobody waits for a socket to become
//! writable that is, so that a peer which reads does not wake this thread.
//!
//! What a long answer costs is copies, and the wait for its end. So it is read in large pieces,
//! and after each of them others have their turn: what has come leaves while more comes.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    ops::Range,
    os::unix::net,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd},
    net::UnixStream,
    task::yield_now,
    time::sleep,
};

/// Most bytes gathered for one socket; who has more to write waits until they are written.
const MAX_GATHERED: usize = 64 << 10;
/// Room that a socket keeps for its next write.
const KEPT: usize = 16 << 10;
/// Most bytes read at once of a peer that has much to say, before others have their turn.
const MAX_AHEAD: usize = 64 << 10;
/// How long to wait where the system has no descriptor left to wait by.
const PAUSE: Duration = Duration::from_millis(5);

/// One end of a Unix stream. Its writes end in a task of its own, which ends with it.
#[derive(Debug)]
pub(crate) struct Socket {
    shared: Arc<Shared>,
    ahead: Ahead,
}

/// What was read of a peer that says more than its reader has room for. Most never do, and then
/// this holds nothing.
#[derive(Debug, Default)]
struct Ahead {
    buffer: Vec<u8>,
    /// What of it is still to be handed out.
    left: Range<usize>,
    /// The last read filled its room: there is more.
    more: bool,
    /// Others have not had their turn since.
    pause: bool,
}

#[derive(Debug)]
struct Shared {
    stream: AsyncFd<net::UnixStream>,
    out: Mutex<Out>,
}

/// What is to be written, and who waits for what.
#[derive(Debug, Default)]
struct Out {
    gathered: Vec<u8>,
    /// How many bytes of that are written.
    written: usize,
    /// Why nothing can be written any more.
    failed: Option<io::ErrorKind>,
    /// Nobody will write any more.
    closed: bool,
    /// Waits for something to write.
    pump: Option<Waker>,
    /// Waits for room.
    writer: Option<Waker>,
}

impl Socket {
    /// Takes a stream over, on a runtime.
    pub(crate) fn new(stream: UnixStream) -> io::Result<Self> {
        let stream = registered(stream.into_std()?, Interest::READABLE)?;
        let shared = Arc::new(Shared { stream, out: Mutex::default() });
        tokio::spawn(pump(shared.clone()));
        Ok(Self { shared, ahead: Ahead::default() })
    }
}

#[expect(
    deprecated,
    reason = "meant for types whose descriptor may change; that of std's does not"
)]
fn registered(stream: net::UnixStream, interest: Interest) -> io::Result<AsyncFd<net::UnixStream>> {
    AsyncFd::with_interest(stream, interest)
}

/// Writes what was gathered, each time that all who were ready have had their turn.
async fn pump(shared: Arc<Shared>) {
    while shared.something().await {
        // Comes back when no task is ready any more. What was written last leaves first then: an
        // answer, before the acknowledgement of the ping that came with it.
        yield_now().await;
        let (full, closed) = shared.out().write(&shared.stream);
        if full && closed {
            return; // who has gone does not wait for a reader who may never come
        }
        if full {
            tokio::select! {
                () = shared.writable() => {}
                () = shared.given_up() => return,
            }
        }
    }
}

impl Shared {
    fn out(&self) -> MutexGuard<'_, Out> {
        self.out.lock().expect("nothing panics while it writes")
    }

    /// Returns when there is something to write. False: there never will be.
    async fn something(&self) -> bool {
        std::future::poll_fn(|cx| {
            let mut out = self.out();
            if !out.gathered.is_empty() && out.failed.is_none() {
                return Poll::Ready(true);
            }
            if out.closed {
                return Poll::Ready(false);
            }
            out.pump = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Returns when nobody will write any more.
    async fn given_up(&self) {
        std::future::poll_fn(|cx| {
            let mut out = self.out();
            if out.closed {
                return Poll::Ready(());
            }
            out.pump = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Returns when the socket may have room. It is registered for that only now, by another
    /// descriptor: otherwise each read of the peer would wake this thread.
    async fn writable(&self) {
        let stream = self.stream.get_ref().try_clone();
        let waiting = stream.and_then(|own| registered(own, Interest::WRITABLE));
        match waiting {
            Ok(waiting) => drop(waiting.writable().await),
            Err(_) => sleep(PAUSE).await,
        }
    }
}

impl Out {
    /// Writes as much as the socket takes. Whether it takes no more for now, and whether anybody
    /// would write more.
    fn write(&mut self, stream: &AsyncFd<net::UnixStream>) -> (bool, bool) {
        let mut full = false;
        while self.written < self.gathered.len() && self.failed.is_none() && !full {
            match stream.get_ref().write(&self.gathered[self.written..]) {
                Ok(0) => self.failed = Some(io::ErrorKind::WriteZero),
                Ok(written) => self.written += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => full = true,
                Err(error) => self.failed = Some(error.kind()),
            }
        }
        if self.written == self.gathered.len() {
            self.written = 0;
            self.gathered.clear();
            // Whoever waits for room is about to fill it again.
            if self.writer.is_none() {
                self.gathered.shrink_to(KEPT);
            }
        }
        if let Some(writer) = self.writer.take_if(|_| !full || self.failed.is_some()) {
            writer.wake();
        }
        (full, self.closed)
    }

    fn check(&self) -> io::Result<()> {
        self.failed.map_or(Ok(()), |kind| Err(kind.into()))
    }
}

impl Ahead {
    fn room(&mut self) -> &mut [u8] {
        self.buffer.resize(MAX_AHEAD, 0);
        &mut self.buffer
    }

    fn hand_out(&mut self, buffer: &mut ReadBuf<'_>) {
        let length = self.left.len().min(buffer.remaining());
        buffer.put_slice(&self.buffer[self.left.start..][..length]);
        self.left.start += length;
        if !self.left.is_empty() {
            return;
        }
        self.pause = self.more;
        if !self.more {
            self.buffer = Vec::new();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { shared, ahead } = &mut *self;
        if !ahead.left.is_empty() {
            ahead.hand_out(buffer);
            return Poll::Ready(Ok(()));
        }
        if std::mem::take(&mut ahead.pause) {
            let turn = pin!(yield_now());
            return turn.poll(cx).map(Ok);
        }
        loop {
            let mut ready = std::task::ready!(shared.stream.poll_read_ready(cx))?;
            let much = ahead.more;
            let room = if much { ahead.room() } else { buffer.initialize_unfilled() };
            match ready.get_inner().read(room) {
                Ok(read) => {
                    ahead.more = read > 0 && read == room.len();
                    // A stream that fills less than the room has no more: to ask it is in vain.
                    if read > 0 && !ahead.more {
                        ready.clear_ready();
                    }
                    if much {
                        ahead.left = 0..read;
                        ahead.hand_out(buffer);
                    } else {
                        buffer.advance(read);
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    *ahead = Ahead::default();
                    ready.clear_ready();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut out = self.shared.out();
        out.check()?;
        if out.gathered.len() >= MAX_GATHERED {
            out.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let mut taken = 0;
        for piece in pieces {
            let room = MAX_GATHERED - out.gathered.len();
            let piece = &piece[..piece.len().min(room)];
            out.gathered.extend_from_slice(piece);
            taken += piece.len();
        }
        if let Some(pump) = out.pump.take() {
            pump.wake();
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What was written leaves when all who are ready have had their turn; there is nothing to
    /// wait for.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.shared.out().check())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut out = self.shared.out();
        out.check()?;
        if !out.gathered.is_empty() {
            out.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(self.shared.stream.get_ref().shutdown(Shutdown::Write))
    }
}

impl Drop for Socket {
    /// What was written still leaves, if its reader takes it; the pump ends with that.
    fn drop(&mut self) {
        let mut out = self.shared.out();
        out.closed = true;
        if let Some(pump) = out.pump.take() {
            pump.wake();
        }
    }
}

#[cfg(test)]
mod tests;
