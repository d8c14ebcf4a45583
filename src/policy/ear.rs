//! Hears of changes of a directory: inotify says when to look again.

use std::{path::PathBuf, sync::Arc};

use notify::{
    EventKind, INotifyWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};
use tokio::sync::Notify;

/// Hears of changes by inotify.
#[derive(Debug)]
pub(super) struct Ear {
    directory: PathBuf,
    inotify: Option<INotifyWatcher>,
}

impl Ear {
    /// Listens from now on, and notifies `changed`.
    pub(super) fn new(directory: PathBuf, changed: Arc<Notify>) -> Self {
        let inside = directory.clone();
        let hear = move |event: notify::Result<notify::Event>| {
            // An error may stand for changes that were missed.
            let concerns = event.map_or(true, |event| {
                is_change(event.kind)
                    && (event.paths.is_empty()
                        || event.paths.iter().any(|p| p.starts_with(&inside)))
            });
            if concerns {
                changed.notify_one();
            }
        };
        let inotify = INotifyWatcher::new(hear, notify::Config::default()).map_err(|error| {
            tracing::warn!(%error, "changes of the policies are noticed by polling only");
        });
        let mut ear = Self { directory, inotify: inotify.ok() };
        ear.listen();
        ear
    }

    /// Listens anew: the directory, or the link that leads to it, may be another one by now. The
    /// parent tells when it comes, goes or is swapped.
    pub(super) fn listen(&mut self) {
        let Some(inotify) = &mut self.inotify else { return };
        for path in self.directory.parent().into_iter().chain([&*self.directory]) {
            let _ = inotify.unwatch(path);
            if let Err(error) = inotify.watch(path, RecursiveMode::NonRecursive) {
                tracing::debug!(path = %path.display(), %error, "is not watched yet");
            }
        }
    }
}

/// Whether an event can mean other contents; our own reading causes events, too.
fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_reading_is_no_change() {
        use notify::event::{CreateKind, ModifyKind};
        assert!(!is_change(EventKind::Access(AccessKind::Open(AccessMode::Any))));
        assert!(!is_change(EventKind::Access(AccessKind::Close(AccessMode::Read))));
        assert!(is_change(EventKind::Access(AccessKind::Close(AccessMode::Write))));
        assert!(is_change(EventKind::Create(CreateKind::Any)));
        assert!(is_change(EventKind::Modify(ModifyKind::Any)));
        assert!(is_change(EventKind::Other));
    }
}
