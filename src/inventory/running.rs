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
