//! What an image on this node is worth under the policies in force, for anybody, and whether more
//! evidence could make it worth more.

use jiff::Timestamp;

use crate::{
    decide::{self, Glass, Grounds},
    evidence::Known,
    image::{Digest, ImageRef, Repository, Version},
    policy::{Caller, PolicySet},
    refusal::{Code, Refusal},
};

/// What policies say of a manifest or an index in the runtime.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Appraisal {
    /// Why nobody may have it without breaking a policy's glass. None: somebody may, under one of
    /// its names at least.
    pub(super) refusal: Option<Refusal>,
    /// Its repositories under which a policy, for whatever namespace, is not satisfied by the
    /// evidence that is here, and might be by more.
    pub(super) lacking: Vec<Repository>,
}

/// Holds what is known of a manifest or an index against the policies for each of its names, in
/// whatever namespace.
pub(super) fn appraise(
    digest: Digest,
    known: &[Known],
    names: &[ImageRef],
    policies: &PolicySet,
    now: Timestamp,
) -> Appraisal {
    let (mut accepted, mut refusal, mut lacking) = (false, None, Vec::new());
    if names.is_empty() {
        let why = "the image has no name on this node, and policies go by names";
        refusal = Some(Refusal::new(Code::NoPolicyMatches, why).about(&digest));
    }
    for name in names {
        let Some(selected) = policies.covering_somewhere(name) else {
            refusal = refusal.or_else(|| policies.select(name, None).err());
            continue;
        };
        // A tag where a policy wants a digest is no lack of evidence.
        let by_digest = ImageRef { version: Version::Digest(digest), ..name.clone() };
        let by_digest = policies.covering_somewhere(&by_digest);
        for known in known {
            let (image, evidence) = (known.resolved(&name.repository), known.evidence());
            accepted |=
                decide::acceptable_somewhere(&selected, &image, &evidence, Glass::Whole, now);
            let decide =
                |selected| decide::decide(selected, &image, &evidence, &Caller::default(), now).0;
            if !accepted && refusal.is_none() {
                refusal = decide(&selected).err();
            }
            let lacks = by_digest.as_ref().is_some_and(|selected| match decide(selected) {
                Ok(permit) => *permit.grounds() != Grounds::Satisfied,
                // No signature helps what is revoked.
                Err(refusal) => refusal.code != Code::Revoked,
            });
            if lacks && !lacking.contains(&name.repository) {
                lacking.push(name.repository.clone());
            }
        }
    }
    let unknown = || {
        let why = "the runtime does not show what it would start from this";
        Refusal::new(Code::NotProvenLocally, why).about(&digest)
    };
    let refusal = (!accepted).then(|| refusal.unwrap_or_else(unknown));
    Appraisal { refusal, lacking }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{evidence::Entry, policy::source, resolve::Fetched};

    /// An image about which nobody was asked.
    fn known() -> Known {
        let digest = Digest::of(b"blob");
        let body = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
            "config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":1}},
            "layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{digest}","size":1}}]}}"#
        );
        let media_type = "application/vnd.oci.image.manifest.v1+json".into();
        let digest = Digest::of(body.as_bytes());
        let manifest = Fetched { digest, media_type, body: body.into() };
        Known::new(Entry { manifest, claims: Vec::new(), whole: false }, None).unwrap()
    }

    /// Who wants the image, by lines of `spec` and whether the policy is satisfied by it.
    fn appraised(names: &[&str], policies: &[(&str, bool)]) -> (Option<Code>, Vec<String>) {
        let text = policies.iter().enumerate().map(|(number, (lines, accepts))| {
            let authority = match accepts {
                true => "unsigned: {reason: test}".to_owned(),
                false => format!("digests: [\"{}\"]", Digest::of(b"another")),
            };
            format!(
                "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\n\
                 metadata: {{name: p{number}}}\nspec:\n  {lines}\n  \
                 authorities: [{{name: a, {authority}}}]\n---\n"
            )
        });
        let text: String = text.collect();
        let set = source::parse("p.yaml", &text, Timestamp::UNIX_EPOCH).unwrap();
        let names: Vec<ImageRef> = names.iter().map(|name| name.parse().unwrap()).collect();
        let known = known();
        let now = Timestamp::UNIX_EPOCH;
        let Appraisal { refusal, lacking } = appraise(known.digest(), &[known], &names, &set, now);
        let lacking = lacking.iter().map(ToString::to_string).collect();
        (refusal.map(|refusal| refusal.code), lacking)
    }

    const ALL: &str = "match: {images: ['**']}";
    const SHOP: &str = "match: {images: ['**'], namespaces: [shop]}";
    const DEV: &str = "match: {images: ['**'], namespaces: [dev]}";

    #[test]
    fn evidence_is_lacking_where_any_policy_wants_more() {
        assert_eq!(appraised(&["a.io/x:v1"], &[(ALL, true)]), (None, vec![]));
        let lacks = vec!["a.io/x".to_owned()];
        let (why, lacking) = appraised(&["a.io/x:v1"], &[(ALL, false)]);
        assert!(why.is_some() && lacking == lacks);
        // Somebody may have it, and somebody else could if there were more.
        assert_eq!(appraised(&["a.io/x:v1"], &[(SHOP, true), (DEV, false)]), (None, lacks.clone()));
        // A policy that only warns wants it as well.
        let warn = "mode: Warn\n  match: {images: ['**']}";
        assert_eq!(appraised(&["a.io/x:v1"], &[(warn, false)]), (None, lacks));
    }

    #[test]
    fn glass_that_could_be_broken_proves_nothing() {
        let glass = "breakGlass: {annotation: glass, namespaces: [incident]}\n  \
                     match: {images: ['**']}";
        let refused = (Some(Code::NotProvenLocally), vec!["a.io/x".to_owned()]);
        assert_eq!(appraised(&["a.io/x:v1"], &[(glass, false)]), refused);
        assert_eq!(appraised(&["a.io/x:v1"], &[(glass, true)]), (None, vec![]));
    }

    #[test]
    fn nobody_is_asked_where_no_answer_helps() {
        let none = Some(Code::NoPolicyMatches);
        assert_eq!(
            appraised(&["a.io/x:v1"], &[("match: {images: ['b.io/**']}", true)]),
            (none, vec![])
        );
        assert_eq!(appraised(&[], &[(ALL, true)]), (none, vec![]));
        let digest = "reference: Digest\n  match: {images: ['**']}";
        let tagged = appraised(&["a.io/x:v1"], &[(digest, true)]);
        assert_eq!(tagged, (Some(Code::DigestRequired), vec![]));
    }

    #[test]
    fn one_name_that_is_accepted_is_enough() {
        let only = "match: {images: ['b.io/**']}";
        let names = ["a.io/x:v1", "b.io/y:v1"];
        assert_eq!(appraised(&names, &[(only, true)]), (None, vec![]));
        let policies = [(only, true), ("match: {images: ['a.io/**']}", false)];
        assert_eq!(appraised(&names, &policies), (None, vec!["a.io/x".into()]));
    }
}
