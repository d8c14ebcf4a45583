//! Which containers were permitted here.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

/// Remembers the containers whose creation was permitted. It is for reports and proves nothing.
#[derive(Clone, Debug)]
pub struct Ledger(Arc<Mutex<BTreeSet<String>>>);

impl Ledger {
    /// Opens the ledger below the state directory.
    pub fn open(_state_directory: &Path) -> Self {
        Self(Arc::default())
    }

    /// Remembers a container.
    pub fn permit(&self, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned());
    }

    /// Whether a container was permitted here.
    pub fn was_permitted(&self, id: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }
}
