//! Containers that run: what is told of those that would not be let start now, or were not let
//! start here. None is ever stopped: that is for people to decide.

use std::time::Duration;

use crate::{
    audit::{Event, Pod, Record, RequestedImage},
    forward::Container,
    image::shorten,
    judgement::{Asked, Judgement},
    local::Question,
    named::Named,
    pipeline::{is_among, repositories},
    policy::{Caller, PolicySet},
};

/// What `CreateContainer` would be asked for this container. `names` are all that the runtime has
/// for its image. None: the runtime does not say which image it runs.
pub(super) fn question(container: &Container, names: &[String]) -> Option<Question> {
    let reference = |text: &str| match text.parse() {
        Ok(Named::Reference(name)) => Some(name),
        Ok(Named::Id(_) | Named::Short(_)) | Err(_) => None,
    };
    let names = match (reference(&container.user_specified), reference(&container.requested)) {
        (Some(written), _) => vec![written],
        (None, Some(name)) if is_among(&name, names) => vec![name],
        _ => repositories(names),
    };
    let namespace = Some(container.pod[0].clone()).filter(|namespace| !namespace.is_empty());
    Some(Question { id: container.image?, names, caller: Caller::of(namespace) })
}

/// The record of a container that would be refused now.
pub(super) fn drifted(
    container: &Container,
    question: Option<&Question>,
    judgement: &Judgement,
    policies: &PolicySet,
) -> Option<Record> {
    let refusal = judgement.decision.as_ref().err()?;
    let mut message = format!(
        "{} runs an image that would be refused now: {}; it is left running",
        who(container),
        refusal.message
    );
    if policies.switches().next().is_some() {
        message += " (whether its pod broke a policy's glass is not known here)";
    }
    let requested = shorten(asked_for(container));
    let asked = Asked {
        requested: Some(&requested),
        name: question.and_then(|question| question.names.first()),
        ..Asked::default()
    };
    let record = judgement.record(Event::Drift, asked, Duration::ZERO);
    Some(Record { message, duration_us: None, ..about(container, record) })
}

/// The record of a container that Portcullis did not let be created.
pub(super) fn unpermitted(container: &Container) -> Record {
    let message = format!(
        "{} was not created through Portcullis: it is older than this node's records, or came past \
         the gate; it is left running",
        who(container)
    );
    let image = RequestedImage {
        requested: shorten(asked_for(container)),
        id: container.image,
        ..Default::default()
    };
    about(container, Record { image: Some(image), ..Record::new(Event::Drift, message) })
}

fn about(container: &Container, record: Record) -> Record {
    let [namespace, name, uid] = container.pod.clone();
    let pod = Pod { namespace, name, uid };
    Record { pod: Some(pod), container: Some(container.id.clone()), ..record }
}

/// As a person would name it.
fn who(container: &Container) -> String {
    let [namespace, name, _] = &container.pod;
    let container = shorten(&container.name);
    match namespace.is_empty() && name.is_empty() {
        true => format!("container \"{container}\" of no pod"),
        false => {
            format!("container \"{container}\" in pod {}/{}", shorten(namespace), shorten(name))
        }
    }
}

fn asked_for(container: &Container) -> &str {
    match container.user_specified.is_empty() {
        true => &container.requested,
        false => &container.user_specified,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{image::Digest, named::ImageId};

    fn container(requested: &str, written: &str, namespace: &str) -> Container {
        Container {
            id: "c".into(),
            name: "web\"\n".into(),
            running: true,
            requested: requested.into(),
            user_specified: written.into(),
            image: Some(ImageId::of_config(Digest::of(b"x"))),
            pod: [namespace.into(), "web-0".into(), "u".into()],
        }
    }

    #[test]
    fn a_container_is_asked_about_as_its_creation_would_be() {
        let names = ["a.io/x:v1".to_owned(), "a.io/x:v2".into(), "b.io/y:v1".into()];
        let id = ImageId::of_config(Digest::of(b"x")).to_string();
        let names_of = |requested: &str, written: &str| {
            let question = question(&container(requested, written, "shop"), &names).unwrap();
            assert_eq!(question.caller, Caller::of(Some("shop".into())));
            question.names.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(names_of(&id, "c.io/z:v1"), ["c.io/z:v1"]);
        assert_eq!(names_of("b.io/y:v1", ""), ["b.io/y:v1"]);
        // Neither an ID nor a name that the image does not have says where it is from.
        assert_eq!(names_of(&id, ""), ["a.io/x:v1", "b.io/y:v1"]);
        assert_eq!(names_of("c.io/z:v1", &id), ["a.io/x:v1", "b.io/y:v1"]);
        let nowhere = question(&container(&id, "", ""), &[]).unwrap();
        assert_eq!((nowhere.names.len(), nowhere.caller), (0, Caller::default()));
        let unsaid = Container { image: None, ..container(&id, "a.io/x:v1", "shop") };
        assert_eq!(question(&unsaid, &names), None);
    }

    #[test]
    fn hostile_names_are_shown_in_pieces() {
        let record = unpermitted(&container("x", &"y\n".repeat(200), &"n\n".repeat(200)));
        assert!(record.message.starts_with("container \"web\\\"\\n\" in pod n\\nn\\n"));
        assert!(record.message.len() < 600, "{}", record.message);
        assert!(record.image.unwrap().requested.len() < 300);
        assert_eq!((record.decision, record.reason), (None, None));
    }
}
