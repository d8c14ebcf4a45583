//! What is refused, what is let through and on what grounds; properties of any set of policies.

use super::*;
use crate::{
    evidence::{UntrustedBody, UntrustedClaim},
    policy::{PolicySet, source},
    verify::testing::Pair,
};

mod modes;
mod properties;
mod somewhere;

const INDEX: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
const CHILD: &str = "sha256:2222222222222222222222222222222222222222222222222222222222222222";
const CONFIG: &str = "sha256:3333333333333333333333333333333333333333333333333333333333333333";
const OTHER: &str = "sha256:4444444444444444444444444444444444444444444444444444444444444444";
const NOW: &str = "2026-06-01T00:00:00Z";
const IMAGE: &str = "r.io/prod/app:v1";
const PINNED: &str =
    "r.io/prod/app@sha256:1111111111111111111111111111111111111111111111111111111111111111";
/// An authority that accepts the image, and one that does not.
const YES: &str = "{name: all, unsigned: {reason: test}}";
const NO: &str = "{name: none, digests: ['sha256:4444444444444444444444444444444444444444444444444444444444444444']}";
/// A glass for the namespace `incident`.
const GLASS: &str = "breakGlass: {annotation: glass, namespaces: [incident]}";

/// A policy for `r.io/prod/*`, unless the lines match something else.
fn policy(name: &str, lines: &[&str], authority: &str) -> String {
    let mut text = format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\nmetadata: {{name: {name}}}\nspec:\n"
    );
    if !lines.iter().any(|line| line.starts_with("match:")) {
        text += "  match: {images: ['r.io/prod/*']}\n";
    }
    lines.iter().for_each(|line| text += &format!("  {line}\n"));
    text + &format!("  authorities: [{authority}]\n---\n")
}

/// A revocation of these digests or keys.
fn revocation(name: &str, list: &str, what: &[&str]) -> String {
    format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: Revocation\nmetadata: {{name: {name}}}\n\
         spec: {{{list}: {what:?}}}\n---\n"
    )
}

/// An authority by this key.
fn key(name: &str, pair: &Pair) -> String {
    format!("{{name: {name}, publicKey: {{pem: {:?}}}}}", pair.pem())
}

/// A signature of the index by this key, in cosign 2's format.
fn signed(pair: &Pair) -> UntrustedClaim {
    let payload = format!(
        "{{\"critical\":{{\"identity\":{{\"docker-reference\":\"\"}},\"image\":\
         {{\"docker-manifest-digest\":\"{INDEX}\"}},\"type\":\"cosign container image \
         signature\"}},\"optional\":null}}"
    );
    let signature = pair.sign(payload.as_bytes());
    let body = UntrustedBody::SimpleSigning { payload: payload.into_bytes(), signature };
    UntrustedClaim { subject: INDEX.parse().unwrap(), source: "somewhere".into(), body }
}

/// A question to [`decide`].
struct Question {
    set: PolicySet,
    image: &'static str,
    namespace: Option<&'static str>,
    annotations: &'static [(&'static str, &'static str)],
    evidence: Evidence,
    now: Timestamp,
}

impl Question {
    /// About [`IMAGE`] in the namespace `shop`, under these policies.
    fn under(set: &[String]) -> Self {
        let now = NOW.parse().unwrap();
        Self {
            set: source::parse("p.yaml", &set.concat(), now).unwrap(),
            image: IMAGE,
            namespace: Some("shop"),
            annotations: &[],
            evidence: Evidence::default(),
            now,
        }
    }

    fn image(self, image: &'static str) -> Self {
        Self { image, ..self }
    }

    fn namespace(self, namespace: Option<&'static str>) -> Self {
        Self { namespace, ..self }
    }

    /// From `incident`, with the annotation that breaks the glass.
    fn breaking_glass(self) -> Self {
        Self { namespace: Some("incident"), annotations: &[("glass", "true")], ..self }
    }

    fn claims(mut self, claims: impl IntoIterator<Item = UntrustedClaim>) -> Self {
        self.evidence.claims.extend(claims);
        self
    }

    fn at(self, now: &str) -> Self {
        Self { now: now.parse().unwrap(), ..self }
    }

    fn decide(&self) -> Result<Grounds, Refusal> {
        self.decide_with_reports().0
    }

    fn decide_with_reports(&self) -> (Result<Grounds, Refusal>, Vec<PolicyReport>) {
        let switches = self.annotations.iter().filter(|(_, value)| *value == "true");
        let caller = Caller {
            namespace: self.namespace.map(str::to_owned),
            switches: switches.map(|(name, _)| (*name).to_owned()).collect(),
        };
        let caller = caller.seen_by(&self.set);
        let selected = match self.set.select(&self.image.parse().unwrap(), self.namespace) {
            Ok(selected) => selected,
            Err(refusal) => return (Err(refusal), Vec::new()),
        };
        let (decision, reports) = decide(&selected, &resolved(), &self.evidence, &caller, self.now);
        (decision.map(|permit| permit.grounds().clone()), reports)
    }

    fn acceptable_somewhere(&self) -> bool {
        self.somewhere(Glass::Granted)
    }

    fn somewhere(&self, glass: Glass) -> bool {
        let selected = self.set.covering_somewhere(&self.image.parse().unwrap());
        selected.is_some_and(|selected| {
            acceptable_somewhere(&selected, &resolved(), &self.evidence, glass, self.now)
        })
    }

    #[track_caller]
    fn refused(&self, code: Code, message: &str) {
        assert_eq!(self.decide(), Err(Refusal::new(code, message)));
    }
}

/// The image: an index, the child for this platform, and the child's configuration.
fn resolved() -> Resolved {
    let image = PinnedImage {
        repository: "r.io/prod/app".parse().unwrap(),
        digest: INDEX.parse().unwrap(),
    };
    let id = Some(ImageId::of_config(CONFIG.parse().unwrap()));
    Resolved { image, child: Some(CHILD.parse().unwrap()), id }
}

/// Why the policy `name` with the authority [`NO`] refuses.
fn not_listed(name: &str) -> Refusal {
    let message = format!(
        "{PINNED}: policy {name:?} requires 1 of 1 authority: \"none\": the digest is not among the \
         1 listed"
    );
    Refusal::new(Code::AuthorityNotSatisfied, message)
}

fn broken(names: &[&str]) -> Result<Grounds, Refusal> {
    Ok(Grounds::BreakGlass(names.iter().map(|name| (*name).to_owned()).collect()))
}
