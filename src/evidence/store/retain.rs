//! What the store lets go of.

use std::{collections::BTreeSet, io, time::Instant};

use jiff::Timestamp;

use crate::named::ImageId;

use super::{Index, MAX_IMAGES, Store, files::Listed, lock};

/// Most bytes of all files together.
const MAX_BYTES: u64 = 256 << 20;
/// How long an image that the runtime does not have is remembered, in seconds: kubelet removes
/// images and pulls them again, and evidence may come before its image.
const GRACE: i64 = 7 * 24 * 60 * 60;

/// An image and its files.
struct Kept {
    id: ImageId,
    bytes: u64,
    /// Seconds since 1970.
    used: i64,
    files: Vec<Listed>,
}

impl Store {
    /// Lets go of images that the runtime does not have and that were not used for 7 days; then,
    /// if there are more than 20,000 or they take more than 256 MiB, of those that were not used
    /// for longest, first those that the runtime does not have. Nothing else removes an image.
    /// Returns how many went.
    ///
    /// When an image was used is said by the time of its files, which is a hint: one that is
    /// removed too early is to be proven again.
    ///
    /// # Errors
    ///
    /// A directory cannot be read, or a file not be removed.
    pub fn retain(&self, live: &BTreeSet<ImageId>, now: Timestamp) -> io::Result<usize> {
        let _writing = lock(&self.0.writing);
        let mut kept = Vec::new();
        for id in self.0.files.images()? {
            let files = self.0.files.list(id).unwrap_or_default();
            let bytes = files.iter().map(|one| one.bytes).sum();
            let used = files.iter().map(|one| one.used.0).max().unwrap_or_default();
            kept.push(Kept { id, bytes, used, files });
        }
        let excess = excess(&kept, live, now.as_second());
        let mut index = Index::default();
        let mut done = Ok(());
        for Kept { id, files, .. } in &kept {
            let all = files.iter().map(|one| one.digest);
            let go: BTreeSet<_> = match excess.contains(id) {
                true => all.clone().collect(),
                false => self.too_many(*id, files).into_iter().collect(),
            };
            all.filter(|digest| !go.contains(digest)).for_each(|digest| index.add(digest, *id));
            // One that stays does not keep the others.
            for digest in go {
                done = self.0.files.remove(*id, digest).and(done);
            }
        }
        let mut old = lock(&self.0.index);
        index.listed = Some(Instant::now());
        *old = index;
        done.map(|()| excess.len())
    }
}

fn excess(kept: &[Kept], live: &BTreeSet<ImageId>, now: i64) -> BTreeSet<ImageId> {
    let mut order: Vec<_> =
        kept.iter().map(|one| (live.contains(&one.id), one.used, one.id, one.bytes)).collect();
    order.sort_unstable();
    let mut number = order.len();
    let mut bytes: u64 = order.iter().map(|(.., bytes)| bytes).sum();
    let mut excess = BTreeSet::new();
    for (is_live, used, id, size) in order {
        let forgotten = !is_live && now.saturating_sub(used) > GRACE;
        if forgotten || number > MAX_IMAGES || bytes > MAX_BYTES {
            excess.insert(id);
            number -= 1;
            bytes -= size;
        }
    }
    excess
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Digest;

    fn kept(name: &str, bytes: u64, used: i64) -> Kept {
        let id = ImageId::of_config(Digest::of(name.as_bytes()));
        Kept { id, bytes, used, files: Vec::new() }
    }

    #[track_caller]
    fn goes(kept: &[Kept], live: &[usize], now: i64, expected: &[usize]) {
        let ids = |which: &[usize]| which.iter().map(|one| kept[*one].id).collect();
        assert_eq!(excess(kept, &ids(live), now), ids(expected));
    }

    #[test]
    fn an_image_that_the_runtime_lost_goes_a_week_later() {
        let one = [kept("a", 1, 1000)];
        goes(&one, &[], 1000 + GRACE, &[]);
        goes(&one, &[], 1001 + GRACE, &[0]);
        goes(&one, &[0], i64::MAX, &[]);
        // From the future.
        goes(&one, &[], 0, &[]);
        goes(&[kept("a", 1, i64::MIN)], &[], i64::MAX, &[0]);
    }

    #[test]
    fn what_is_too_much_goes_by_age_and_what_runs_last() {
        let half = MAX_BYTES / 2;
        let three = [kept("a", half, 1), kept("b", half, 2), kept("c", 1, 3)];
        goes(&three, &[], 3, &[0]);
        goes(&three, &[0], 3, &[1]);
        goes(&three, &[0, 1, 2], 3, &[0]);
        let many: Vec<_> =
            (0..MAX_IMAGES as i64 + 2).map(|age| kept(&age.to_string(), 1, age)).collect();
        goes(&many, &[0], 3, &[1, 2]);
    }
}
