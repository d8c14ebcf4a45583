//! How the policies of this node stand: for `status`, metrics and the Node's condition.

use jiff::Timestamp;

use crate::image::Digest;

/// How the policies of this node stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The source's set in force. None: none is.
    pub in_force: Option<InForce>,
    /// What is wrong. None: what the source holds is in force.
    pub trouble: Option<Trouble>,
    /// When the source last said that the set in force is what it holds.
    pub confirmed: Option<Timestamp>,
}

/// A set of the source that is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InForce {
    /// Names exactly the source's set, without the floor of this node.
    pub digest: Digest,
    /// The source's own count of its changes.
    pub revision: Option<u64>,
    /// How many policies there are in it.
    pub policies: usize,
    /// Since when.
    pub since: Timestamp,
    /// From this moment on it is in force no more, unless the source is heard before.
    pub until: Option<Timestamp>,
}

/// Why what the source holds now is not in force, or not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What kind of trouble.
    pub kind: TroubleKind,
    /// In a sentence, for people.
    pub message: String,
    /// Since when.
    pub since: Timestamp,
}

/// A kind of trouble, written in UpperCamelCase as reasons of conditions are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TroubleKind {
    /// What the source holds is no policy set, is not signed by a pinned key, or is older than
    /// what was in force.
    Rejected,
    /// The source cannot be reached.
    Unreachable,
    /// The set is past its `expiresAt`, or the source was silent for longer than `max_age`.
    Expired,
    /// What was accepted cannot be kept on this node.
    NotKept,
}

impl TroubleKind {
    /// All of them.
    pub const ALL: [TroubleKind; 4] =
        [Self::Rejected, Self::Unreachable, Self::Expired, Self::NotKept];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "Rejected",
            Self::Unreachable => "Unreachable",
            Self::Expired => "Expired",
            Self::NotKept => "NotKept",
        }
    }
}
