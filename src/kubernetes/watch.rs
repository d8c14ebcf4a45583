//! Lists each kind and watches it, and tells what came of it.
//!
//! A watch that ends, breaks off or sends what cannot be read is resumed from the last version
//! that was read whole. Only a server that no longer knows the changes since then (410), and one
//! that sends the same unreadable thing over and over, is asked for everything.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use http::{Method, StatusCode};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep, timeout_at},
};

use crate::policy::{Heard, Offer, pace};

use super::{
    Times,
    client::{Answer, Server},
    failure::{self, Failure, What},
    kinds::KINDS,
    lines::Lines,
    list,
    set::{Set, Unfit},
    wire::{self, Event},
};

/// So many watches in a row that sent what cannot be used: then everything is listed, since the
/// trouble may be in what comes next.
const MAX_RESUMED: u32 = 3;

/// A watch that was open for so many times the least pause was no failure when it breaks.
const LASTING: u32 = 10;

/// What all kinds come to.
struct Gathered {
    set: Mutex<Set>,
    changed: Notify,
}

impl Gathered {
    // Nothing that runs under the lock can panic; a poisoned one holds a whole value.
    fn set(&self) -> MutexGuard<'_, Set> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Set) -> T) -> T {
        let changed = change(&mut self.set());
        self.changed.notify_one();
        changed
    }
}

pub(super) async fn run(server: &Server, tell: mpsc::Sender<Heard>, asked: Arc<Notify>) {
    let gathered = Gathered { set: Mutex::new(Set::new()), changed: Notify::new() };
    let (again, _) = watch::channel(());
    let kinds = (0..KINDS.len()).map(|kind| {
        Follower {
            server,
            gathered: &gathered,
            kind,
            failures: 0,
            ended: 0,
            is_expired: false,
            open: None,
        }
        .run(again.subscribe())
    });
    let ask = async {
        loop {
            asked.notified().await;
            gathered.set().ask();
            again.send_replace(());
        }
    };
    tokio::select! {
        _ = join_all(kinds) => {}
        () = ask => {}
        () = gather(server, &gathered, tell) => {}
    }
}

pub(super) async fn once(server: &Server) -> Result<Offer, String> {
    let mut set = Set::new();
    for (number, kind) in KINDS.iter().enumerate() {
        let listed = list::list(server, kind).await.map_err(|failure| failure.why)?;
        set.listed(number, listed).map_err(|unfit| unfit_of(kind, "the API server", unfit).why)?;
    }
    match set.take(false) {
        Some(Heard::Offer(offer)) => Ok(offer),
        Some(Heard::Rejected(problems)) => Err(problems.to_string()),
        _ => Err("the API server was not read to the end".to_owned()),
    }
}

/// Tells what there is to tell, once it is quiet. Ends when nobody listens.
async fn gather(server: &Server, gathered: &Gathered, tell: mpsc::Sender<Heard>) {
    let times = &server.times;
    let mut last: Option<Instant> = None;
    loop {
        gathered.changed.notified().await;
        let latest = Instant::now() + times.settle_at_most;
        loop {
            // Trouble has nothing to wait for.
            let failed = gathered.set().take_failure();
            if let Some(failed) = failed
                && tell.send(failed).await.is_err()
            {
                return;
            }
            let quiet = (Instant::now() + times.settle).min(latest);
            if timeout_at(quiet, gathered.changed.notified()).await.is_err() {
                break;
            }
        }
        let may_confirm = last.is_none_or(|last| last.elapsed() >= times.unchanged);
        let Some(heard) = gathered.set().take(may_confirm) else { continue };
        last = Some(Instant::now());
        if tell.send(heard).await.is_err() {
            return;
        }
    }
}

/// Follows one kind.
struct Follower<'a> {
    server: &'a Server,
    gathered: &'a Gathered,
    kind: usize,
    /// In a row.
    failures: u32,
    /// Watches in a row that ended in good order, and before their time.
    ended: u32,
    /// The changes since the list before were forgotten before they could be watched.
    is_expired: bool,
    /// Since when the watch is open. None: it was not begun.
    open: Option<Instant>,
}

impl Follower<'_> {
    async fn run(mut self, mut again: watch::Receiver<()>) {
        let mut must_list = true;
        loop {
            let pause = tokio::select! {
                _ = again.changed() => {
                    (must_list, self.failures) = (true, 0);
                    continue;
                }
                pause = self.step(&mut must_list) => pause,
            };
            tokio::select! {
                _ = again.changed() => (must_list, self.failures) = (true, 0),
                () = sleep(pause), if !pause.is_zero() => {}
                () = std::future::ready(()), if pause.is_zero() => {}
            }
        }
    }

    /// Lists, or watches until the watch ends. Returns how long to wait until the next step.
    async fn step(&mut self, must_list: &mut bool) -> Duration {
        let was_listing = *must_list;
        self.open = None;
        let version = self.gathered.set().version(self.kind).filter(|_| !was_listing);
        let done = match version {
            None => self.list().await,
            Some(version) => self.watch(version).await,
        };
        let failure = match done {
            Ok(()) if was_listing => {
                *must_list = false;
                // Else a server that forgets at once would be asked for everything all the time.
                if !self.is_expired {
                    self.failures = 0;
                }
                return Duration::ZERO;
            }
            // Watches that end at their time end spread over time; those that end before do not.
            Ok(()) if self.open.is_some_and(|open| open.elapsed() >= self.server.times.watch) => {
                self.goes_well();
                return Duration::ZERO;
            }
            Ok(()) => {
                self.ended += 1;
                return self.pause(self.ended, None);
            }
            Err(failure) => failure,
        };
        // Some cut connections that were silent for a while. A server that is merely slow to fail
        // never had the watch open.
        if self.open.is_some_and(|open| open.elapsed() > self.server.times.again.base * LASTING) {
            self.goes_well();
        }
        self.failures += 1;
        let is_blip = match failure.what {
            What::Expired => {
                (*must_list, self.is_expired) = (true, true);
                !was_listing || self.failures <= 2
            }
            // A server that restarts, or a certificate that was renewed on disk meanwhile.
            What::Connection | What::Credentials => !was_listing && self.failures == 1,
            What::Broken | What::Much => {
                *must_list |= self.failures >= MAX_RESUMED;
                false
            }
            What::Answer => false,
        };
        tracing::debug!(kind = KINDS[self.kind].plural, why = failure.why, "not heard");
        if !is_blip {
            self.gathered.change(|set| set.failed(self.kind, failure.why));
        }
        self.pause(self.failures, failure.after)
    }

    fn pause(&self, failures: u32, after: Option<Duration>) -> Duration {
        let pause = pause(&self.server.times, failures, self.open.is_some(), pace::random());
        // Not all at once when it is over.
        pause + after.unwrap_or_default()
    }

    async fn list(&mut self) -> Result<(), Failure> {
        let kind = &KINDS[self.kind];
        let listed = list::list(self.server, kind).await?;
        let address = self.server.address();
        self.gathered
            .change(|set| set.listed(self.kind, listed))
            .map_err(|unfit| unfit_of(kind, &address, unfit))
    }

    async fn watch(&mut self, version: u64) -> Result<(), Failure> {
        let (server, kind) = (self.server, &KINDS[self.kind]);
        let lasts = server.times.watch.mul_f64(1.0 + pace::random());
        let path = format!(
            "{}?watch=true&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds={}",
            kind.path(),
            lasts.as_secs().max(1)
        );
        let mut answer = server.send(Method::GET, &path, None).await?;
        if answer.status != StatusCode::OK {
            let failure = failure::of_status(&answer.address, kind, answer.status, answer.after);
            answer.discard(server.times.answer).await;
            return Err(failure);
        }
        self.open = Some(Instant::now());
        self.gathered.change(|set| set.watching(self.kind));
        let end = Instant::now() + lasts + server.times.grace;
        let read = timeout_at(end, self.read(&mut answer)).await.unwrap_or_else(|_| {
            let why = format!("{} leaves a watch open that should have ended", answer.address);
            Err(Failure::new(What::Connection, why))
        });
        read.inspect_err(|failure| {
            if failure.what == What::Connection {
                server.forget();
            }
        })
    }

    /// Takes in what a watch sends, until it ends.
    async fn read(&mut self, answer: &mut Answer) -> Result<(), Failure> {
        let (kind, address) = (&KINDS[self.kind], answer.address.clone());
        let broken = |why: &str| failure::broken(&address, kind, "an event", why);
        let mut lines = Lines::default();
        loop {
            match answer.next().await {
                Ok(Some(bytes)) => lines.push(&bytes),
                // The next watch goes on where this one was cut off.
                Err(failure) if failure.what == What::Much => return Ok(()),
                Err(failure) => return Err(failure),
                // What stands behind the last whole line comes again, whole.
                Ok(None) => return Ok(()),
            }
            while let Some(line) = lines.next().map_err(|_| broken("it has no end"))? {
                if line.is_empty() {
                    continue;
                }
                let status = |code: u16| StatusCode::from_u16(code).unwrap_or(StatusCode::GONE);
                match wire::event(kind, line).map_err(|why| broken(&why))? {
                    Event::Expired => {
                        return Err(failure::of_status(&address, kind, StatusCode::GONE, None));
                    }
                    Event::Error(code) => {
                        return Err(failure::of_status(&address, kind, status(code), None));
                    }
                    event => self
                        .gathered
                        .change(|set| set.apply(self.kind, event))
                        .map_err(|unfit| unfit_of(kind, &address, unfit))?,
                }
                self.goes_well();
            }
        }
    }

    fn goes_well(&mut self) {
        (self.failures, self.ended, self.is_expired) = (0, 0, false);
    }
}

/// How long to wait after so many failures in a row. A watch that was open until now was lost by
/// all nodes, if the server is what went away: they do not come back within a second.
fn pause(times: &Times, failures: u32, was_open: bool, random: f64) -> Duration {
    match was_open && failures <= 1 {
        true => times.spread.mul_f64(random),
        false => times.again.delay(failures, random),
    }
}

fn unfit_of(kind: &super::kinds::Kind, address: &str, unfit: Unfit) -> Failure {
    let resource = kind.resource();
    let why = match unfit {
        Unfit::Old => format!(
            "{address} has an older state of {resource} than it had before: it lags behind \
             others, or was restored from a copy"
        ),
        Unfit::Much => format!("{address} has more of {resource} than a node can hold"),
    };
    Failure::new(What::Broken, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_nodes_lose_at_once_they_ask_for_over_a_while() {
        let times = Times::default();
        assert_eq!(pause(&times, 1, true, 0.0), Duration::ZERO);
        assert_eq!(pause(&times, 1, true, 0.5), times.spread / 2);
        // Whoever was not answered, or lost one watch after the other, asks less and less often.
        for (failures, was_open) in [(1, false), (2, false), (2, true), (9, true)] {
            let delay = times.again.delay(failures, 0.5);
            assert_eq!(pause(&times, failures, was_open, 0.5), delay, "{failures} {was_open}");
        }
    }
}
