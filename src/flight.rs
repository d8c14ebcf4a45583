//! Equal work in flight is done once.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    hash::Hash,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{FutureExt, future::Shared};
use tokio::{runtime::Handle, sync::Semaphore};

type Landing<V> = Shared<Pin<Box<dyn Future<Output = Option<V>> + Send>>>;
type Board<K, V> = Mutex<HashMap<K, Landing<V>>>;

/// Work in flight, by what it is about. A result is shared by those who wait for it and is not
/// kept: who comes later starts anew.
pub(crate) struct Flights<K, V> {
    board: Arc<Board<K, V>>,
    /// What is under way at once; the rest waits for its turn, first come, first served.
    turns: Arc<Semaphore>,
}

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// With so much work under way at once.
    pub(crate) fn of(turns: usize) -> Self {
        Self { board: Arc::default(), turns: Arc::new(Semaphore::new(turns)) }
    }

    /// Waits for the result of this work, beginning it on `threads` unless it is in flight. It
    /// goes on when nobody waits any more. `None` when it panicked.
    pub(crate) fn join<F>(&self, key: K, threads: &Handle, start: impl FnOnce() -> F) -> Landing<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut board = lock(&self.board);
        if let Some(landing) = board.get(&key) {
            return landing.clone();
        }
        let entry = Entry { board: self.board.clone(), key: key.clone() };
        let (work, turns) = (start(), self.turns.clone());
        let task = threads.spawn(async move {
            let _entry = entry;
            let _turn = turns.acquire().await;
            work.await
        });
        let landing = async move { task.await.ok() }.boxed().shared();
        board.insert(key, landing.clone());
        landing
    }
}

impl<K, V> fmt::Debug for Flights<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flights")
    }
}

/// Clears the board when the work ends, by a panic as well.
struct Entry<K: Eq + Hash, V> {
    board: Arc<Board<K, V>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Entry<K, V> {
    fn drop(&mut self) {
        lock(&self.board).remove(&self.key);
    }
}

fn lock<K, V>(board: &Board<K, V>) -> MutexGuard<'_, HashMap<K, Landing<V>>> {
    // A map is whole after a panic between two of its operations.
    board.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn equal_work_is_done_once_and_unequal_work_apart() {
        let flights = Flights::<u8, usize>::of(3);
        let (begun, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let work = || {
            let (begun, go) = (begun.clone(), go.clone());
            move || async move {
                let number = begun.fetch_add(1, SeqCst);
                go.notified().await;
                number
            }
        };
        let threads = Handle::current();
        let first = flights.join(1, &threads, work());
        let second = flights.join(1, &threads, work());
        let other = flights.join(2, &threads, work());
        tokio::task::yield_now().await;
        go.notify_waiters();
        assert_eq!((first.await, second.await, other.await), (Some(0), Some(0), Some(1)));
        assert!(lock(&flights.board).is_empty());
    }

    #[tokio::test]
    async fn no_more_work_is_begun_than_fits() {
        let flights = Flights::<u8, usize>::of(2);
        let (begun, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let landings = [1, 2, 3].map(|key| {
            let (begun, go) = (begun.clone(), go.clone());
            flights.join(key, &Handle::current(), || async move {
                let number = begun.fetch_add(1, SeqCst);
                go.notified().await;
                number
            })
        });
        tokio::task::yield_now().await;
        assert_eq!(begun.load(SeqCst), 2);
        let [first, second, third] = landings;
        go.notify_one();
        assert_eq!(first.await, Some(0));
        while begun.load(SeqCst) < 3 {
            tokio::task::yield_now().await;
        }
        go.notify_waiters();
        assert_eq!((second.await, third.await), (Some(1), Some(2)));
    }

    #[tokio::test]
    async fn a_panic_is_nobodys_result_and_leaves_nothing_behind() {
        let flights = Flights::<u8, u8>::of(1);
        let threads = Handle::current();
        assert_eq!(
            flights.join(1, &threads, || async { panic!("seen in the test's output") }).await,
            None
        );
        assert_eq!(flights.join(1, &threads, || async { 7 }).await, Some(7));
    }

    #[tokio::test]
    async fn work_goes_on_when_nobody_waits() {
        let flights = Flights::<u8, u8>::of(1);
        let (sender, receiver) = tokio::sync::oneshot::channel();
        drop(flights.join(
            1,
            &Handle::current(),
            || async move { sender.send(()).map_or(0, |()| 1) },
        ));
        receiver.await.expect("the work was done");
    }
}
