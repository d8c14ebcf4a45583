//! Equal work in flight is done once.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    hash::Hash,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
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
    /// The turns that work of one group can have: half of all, so that a registry that hangs does
    /// not hold up the others.
    share: usize,
    groups: Mutex<HashMap<String, Weak<Semaphore>>>,
}

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// With so much work under way at once.
    pub(crate) fn of(turns: usize) -> Self {
        let (board, groups) = Default::default();
        let share = turns.div_ceil(2);
        Self { board, turns: Arc::new(Semaphore::new(turns)), share, groups }
    }

    /// Waits for the result of this work, beginning it on `threads` unless it is in flight. It
    /// goes on when nobody waits any more. `None` when it panicked.
    pub(crate) fn join<F>(
        &self,
        key: K,
        group: &str,
        threads: &Handle,
        start: impl FnOnce() -> F,
    ) -> Landing<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut board = lock(&self.board);
        if let Some(landing) = board.get(&key) {
            return landing.clone();
        }
        let entry = Entry { board: self.board.clone(), key: key.clone() };
        let (work, turns, share) = (start(), self.turns.clone(), self.share_of(group));
        let task = threads.spawn(async move {
            let _entry = entry;
            let _share = share.acquire().await;
            let _turn = turns.acquire().await;
            work.await
        });
        let landing = async move { task.await.ok() }.boxed().shared();
        board.insert(key, landing.clone());
        landing
    }

    fn share_of(&self, group: &str) -> Arc<Semaphore> {
        // As with the board.
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = groups.get(group).and_then(Weak::upgrade) {
            return share;
        }
        groups.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(self.share));
        groups.insert(group.to_owned(), Arc::downgrade(&share));
        share
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
    use std::{
        sync::atomic::{AtomicUsize, Ordering::SeqCst},
        time::Duration,
    };

    use tokio::{sync::Notify, time::timeout};

    use super::*;

    /// No test waits for this long unless it fails.
    const PATIENCE: Duration = Duration::from_secs(30);

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
        let first = flights.join(1, "a", &threads, work());
        let second = flights.join(1, "a", &threads, work());
        let other = flights.join(2, "b", &threads, work());
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
            flights.join(key, &key.to_string(), &Handle::current(), || async move {
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
    async fn one_group_leaves_room_for_others() {
        let (flights, threads) = (Flights::<u8, u8>::of(4), Handle::current());
        let hung =
            [1, 2, 3, 4, 5].map(|key| flights.join(key, "hangs", &threads, std::future::pending));
        for (key, group) in [(6, "answers"), (7, "answers too")] {
            let answer = flights.join(key, group, &threads, || async move { key });
            assert_eq!(timeout(PATIENCE, answer).await, Ok(Some(key)));
        }
        assert_eq!(lock(&flights.board).len(), hung.len());
        // Groups of the past are not kept.
        assert!(flights.groups.lock().unwrap().len() <= 2);
    }

    #[tokio::test]
    async fn a_panic_is_nobodys_result_and_leaves_nothing_behind() {
        let flights = Flights::<u8, u8>::of(1);
        let threads = Handle::current();
        assert_eq!(
            flights.join(1, "a", &threads, || async { panic!("seen in the test's output") }).await,
            None
        );
        assert_eq!(flights.join(1, "a", &threads, || async { 7 }).await, Some(7));
    }

    #[tokio::test]
    async fn work_goes_on_when_nobody_waits() {
        let flights = Flights::<u8, u8>::of(1);
        let (sender, receiver) = tokio::sync::oneshot::channel();
        drop(
            flights.join(1, "a", &Handle::current(), || async move {
                sender.send(()).map_or(0, |()| 1)
            }),
        );
        receiver.await.expect("the work was done");
    }
}
