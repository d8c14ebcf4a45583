//! What the API server holds, as far as it was heard, and what there is to tell of it. Pure.

use std::collections::BTreeMap;

use crate::{
    policy::{Heard, Offer, Text, Texts, objects::text_of},
    problem::{Problem, Report},
};

use super::{
    kinds::KINDS,
    list::{Listed, MAX_OBJECTS},
    wire::{Event, Item},
};

/// Most bytes of texts that are held of a kind. What is over the bound of a set is refused as a
/// set; this bounds what is held until then.
const MAX_HELD: usize = 32 * 1024 * 1024;

/// All kinds, as far as they were heard.
#[derive(Debug)]
pub(super) struct Set {
    kinds: [Held; KINDS.len()],
    /// Some text is not what it was when the set was told last.
    changed: bool,
    /// What was told last of the set itself.
    told: Told,
    /// The failure that was told, and nothing since.
    failed: Option<String>,
    /// Of the set that was told last. 0: none was.
    revision: u64,
}

/// A kind, as far as it was heard.
#[derive(Debug, Default)]
struct Held {
    objects: BTreeMap<String, Result<Text, Problem>>,
    bytes: usize,
    /// Everything up to this version is in `objects`. None: it was never listed.
    version: Option<u64>,
    /// Since the start, or since somebody asked, it was neither listed nor tried in vain.
    is_awaited: bool,
    trouble: Option<String>,
    /// The server said that this is all there is, since anything was told.
    is_confirmed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Offer,
    Rejected,
}

/// Why something heard is not taken in. All that was held is held as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// It is of an older state than what was heard before.
    Old,
    /// It is more than is held.
    Much,
}

impl Set {
    pub(super) fn new() -> Self {
        let mut set = Self {
            kinds: Default::default(),
            changed: false,
            told: Told::Nothing,
            failed: None,
            revision: 0,
        };
        set.ask();
        set
    }

    /// Everything is told again, once each kind was listed or tried in vain.
    pub(super) fn ask(&mut self) {
        (self.told, self.failed) = (Told::Nothing, None);
        for held in &mut self.kinds {
            (held.is_awaited, held.trouble) = (true, None);
        }
    }

    /// A kind was listed.
    pub(super) fn listed(&mut self, kind: usize, listed: Listed) -> Result<(), Unfit> {
        let held = &mut self.kinds[kind];
        if held.version.is_some_and(|version| listed.version < version) {
            return Err(Unfit::Old);
        }
        let mut bytes = 0;
        let mut objects = BTreeMap::new();
        for item in &listed.items {
            // An object that is newer than its list would be told again by the watch, and taken
            // for an old one.
            if item.version > listed.version {
                return Err(Unfit::Old);
            }
            let text = text_of(&item.object);
            bytes += size(&text);
            if bytes > MAX_HELD {
                return Err(Unfit::Much);
            }
            objects.insert(item.name.clone(), text);
        }
        self.changed |= held.version.is_none() || objects != held.objects;
        (held.objects, held.bytes, held.version) = (objects, bytes, Some(listed.version));
        (held.is_awaited, held.trouble, held.is_confirmed) = (false, None, true);
        Ok(())
    }

    /// A watch from the version on has begun: the server knows all that is held.
    pub(super) fn watching(&mut self, kind: usize) {
        let held = &mut self.kinds[kind];
        (held.is_awaited, held.trouble) = (false, None);
    }

    /// A watch has told this, which is no error.
    pub(super) fn apply(&mut self, kind: usize, event: Event) -> Result<(), Unfit> {
        let held = &mut self.kinds[kind];
        let before = held.version.unwrap_or_default();
        let version = match event {
            Event::Bookmark(version) if version < before => return Err(Unfit::Old),
            Event::Bookmark(version) => {
                held.is_confirmed = true;
                version
            }
            Event::Put(Item { version, .. }) | Event::Gone(Item { version, .. })
                if version <= before =>
            {
                return Err(Unfit::Old);
            }
            Event::Put(item) => {
                self.changed |= held.put(&item)?;
                item.version
            }
            Event::Gone(item) => {
                let gone = held.objects.remove(&item.name);
                held.bytes -= gone.as_ref().map_or(0, size);
                self.changed |= gone.is_some();
                item.version
            }
            Event::Expired | Event::Error(_) => before,
        };
        held.version = Some(version);
        Ok(())
    }

    /// A kind could not be listed or watched: why, in a sentence.
    pub(super) fn failed(&mut self, kind: usize, why: String) {
        let held = &mut self.kinds[kind];
        (held.is_awaited, held.trouble) = (false, Some(why));
    }

    /// Where a watch over this kind begins. None: it must be listed.
    pub(super) fn version(&self, kind: usize) -> Option<u64> {
        self.kinds[kind].version
    }

    /// What there is to tell. That nothing has changed is told only if `may_confirm`, or where
    /// the last word was of a failure.
    ///
    /// Where one kind has trouble nothing is told but that: else whoever keeps revocations from
    /// a node could let policies through, and the node would take the set for confirmed.
    pub(super) fn take(&mut self, may_confirm: bool) -> Option<Heard> {
        if self.kinds.iter().any(|held| held.trouble.is_some()) {
            return self.take_failure();
        }
        if self.kinds.iter().any(|held| held.is_awaited) {
            return None;
        }
        let versions = self.kinds.each_ref().map(|held| held.version);
        let (Some(&Some(lowest)), Some(&Some(highest))) =
            (versions.iter().min(), versions.iter().max())
        else {
            return None; // there is one that was never listed
        };
        let had_failed = self.failed.take().is_some();
        let is_confirmed = self.kinds.iter().all(|held| held.is_confirmed);
        if !self.changed
            && (self.told == Told::Offer || (self.told == Told::Rejected && !had_failed))
        {
            if !(had_failed || (self.told == Told::Offer && is_confirmed && may_confirm)) {
                return None;
            }
            self.unconfirm();
            return Some(Heard::Unchanged);
        }
        self.unconfirm();
        self.changed = false;
        let mut report = Report::default();
        let mut files = Vec::new();
        for kept in self.kinds.iter().flat_map(|held| held.objects.values()) {
            match kept {
                Ok(text) => files.push(text.clone()),
                Err(problem) => report.add(problem.clone()),
            }
        }
        if let Err(problems) = report.finish(()) {
            self.told = Told::Rejected;
            return Some(Heard::Rejected(problems));
        }
        files.sort_by(|one, other| one.name.cmp(&other.name));
        // The first set rests on lists alone, of which one server could have answered with less
        // than this node had seen before its start: none is older than the lowest.
        self.revision = match self.revision {
            0 => lowest,
            _ => highest,
        };
        self.told = Told::Offer;
        let texts = Texts { files, keys: Vec::new() };
        Some(Heard::Offer(Offer::of_objects(texts, self.revision)))
    }

    /// The trouble that there is to tell of. None: there is none, or it was told.
    pub(super) fn take_failure(&mut self) -> Option<Heard> {
        let why = self.kinds.iter().find_map(|held| held.trouble.clone())?;
        if self.failed.as_ref() == Some(&why) {
            return None;
        }
        self.failed = Some(why.clone());
        Some(Heard::Failed(why))
    }

    fn unconfirm(&mut self) {
        self.kinds.iter_mut().for_each(|held| held.is_confirmed = false);
    }
}

impl Held {
    /// Whether the text is another one than before.
    fn put(&mut self, item: &Item) -> Result<bool, Unfit> {
        let text = text_of(&item.object);
        let before = self.objects.get(&item.name);
        if before == Some(&text) {
            return Ok(false);
        }
        let bytes = self.bytes - before.map_or(0, size) + size(&text);
        if bytes > MAX_HELD || (before.is_none() && self.objects.len() == MAX_OBJECTS) {
            return Err(Unfit::Much);
        }
        self.bytes = bytes;
        self.objects.insert(item.name.clone(), text);
        Ok(true)
    }
}

fn size(text: &Result<Text, Problem>) -> usize {
    match text {
        Ok(text) => text.name.len() + text.text.len(),
        Err(problem) => problem.message.len(),
    }
}

#[cfg(test)]
mod tests;
