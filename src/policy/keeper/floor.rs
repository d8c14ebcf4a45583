//! The floor's part: a directory of this node that is in force beside the source.

use super::{
    Event, Floor, Keeper, Kind, Last, Looked, Offer, Texts, Timestamp, TroubleKind, first_line,
    note, shown,
};

impl Keeper {
    /// Takes in what the floor's directory holds.
    pub(in crate::policy) fn look_at_floor(
        &mut self,
        looked: Looked<Floor>,
        now: Timestamp,
    ) -> Option<Event> {
        let event = match looked {
            Ok((floor, texts)) => self.floor_offered(floor, texts, now),
            Err(problems) => {
                let why = problems.to_string();
                if self.floor.is_err() {
                    self.floor = Err(first_line(&why));
                    self.compose(false);
                }
                let told = note(&mut self.floor_rejected, TroubleKind::Rejected, &why, now);
                told.then_some(Event::Rejected(why))
            }
        };
        self.publish();
        event
    }

    /// Puts in force the floor that was kept, where its directory holds none.
    pub(in crate::policy) fn recall_floor(&mut self, now: Timestamp) -> Option<Event> {
        let directory = shown(self.setup.floor.as_ref()?);
        let last = self.kept.last(Kind::Floor).ok()?.filter(|last| last.source == directory)?;
        let offer = Offer::of_kept_files(&self.kept.bytes(last).ok()?).ok()?;
        let floor = Floor::of(offer.texts.read(&directory, now).ok()?, &directory).ok()?;
        if floor.digest() != last.digest {
            return None;
        }
        self.floor = Ok(Some(floor));
        self.compose(true);
        self.publish();
        Some(Event::Recalled(self.current.snapshot(now).ok()?))
    }

    fn floor_offered(&mut self, floor: Floor, texts: Texts, now: Timestamp) -> Option<Event> {
        let recovered = self.floor_rejected.take().is_some();
        let before = self.floor.as_ref().ok().and_then(|floor| Some(floor.as_ref()?.digest()));
        let changed = before != Some(floor.digest());
        if changed {
            let source = self.setup.floor.as_deref().map(shown).unwrap_or_default();
            let last = Last { source, revision: None, digest: floor.digest(), confirmed: now };
            // The directory is its own proof, and why it is not kept was logged.
            let _ = self.keep(Kind::Floor, last, &Offer::of_files(texts));
            self.floor = Ok(Some(floor));
            self.compose(true);
        }
        let in_force = self.current.snapshot(now).ok()?;
        match changed {
            true => Some(Event::Loaded(in_force)),
            false => recovered.then_some(Event::Unchanged(in_force)),
        }
    }
}
