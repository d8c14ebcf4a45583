//! Writes the Node's condition when it changes, and rarely otherwise.

use http::{Method, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    json,
    policy::{
        pace::{self, random},
        standing::Standing,
    },
};

use super::{
    client::Server,
    condition::{Condition, condition, found},
    failure::{self, Failure, What},
    names::is_subdomain,
};

/// How a patch of a node's status is written.
const MERGE: &str = "application/strategic-merge-patch+json";

/// Keeps the condition of this node true to how the policies stand. Ends only when it is dropped,
/// or when nobody can tell any more how they stand, or when the node has no name that a node can
/// have.
pub async fn report(server: &Server, node: &str, mut standing: watch::Receiver<Standing>) {
    if !is_subdomain(node) {
        tracing::warn!("this node has no name that a Node can have: its condition is not reported");
        return;
    }
    let times = server.times;
    let path = format!("/api/v1/nodes/{node}/status");
    let mut writer = Writer { server, node, path, since: None };
    let (mut written, mut failures, mut told) = (None::<String>, 0, None::<String>);
    let mut refresh = Instant::now();
    loop {
        let is_due = |standing: &Standing| Some(condition(standing).mark) != written;
        if failures == 0 && !is_due(&standing.borrow_and_update()) {
            tokio::select! {
                changed = standing.changed() => if changed.is_err() { return },
                () = sleep_until(refresh) => {}
            }
            if !is_due(&standing.borrow()) && Instant::now() < refresh {
                continue;
            }
        }
        let pause = match failures {
            0 => times.spread.mul_f64(random()),
            failures => times.again.delay(failures, random()),
        };
        sleep(pause).await;
        let now = condition(&standing.borrow_and_update());
        match writer.write(&now).await {
            Ok(()) => {
                (written, failures, told) = (Some(now.mark), 0, None);
                refresh = Instant::now() + pace::spread(times.refresh, random());
            }
            Err(failure) => {
                failures += 1;
                if told.as_ref() != Some(&failure.why) {
                    tracing::warn!(why = failure.why, "the node's condition is not written");
                    told = Some(failure.why);
                }
                sleep(failure.after.unwrap_or_default()).await;
            }
        }
    }
}

struct Writer<'a> {
    server: &'a Server,
    node: &'a str,
    path: String,
    /// The status that the condition has, and since when.
    since: Option<(String, Timestamp)>,
}

impl Writer<'_> {
    async fn write(&mut self, condition: &Condition) -> Result<(), Failure> {
        if self.since.is_none() {
            // A patch of nothing: it changes nothing, answers the node, and needs no permission
            // but the one to patch. So a restart leaves the time of the transition as it was.
            let node = self.patch(&json!({})).await?;
            self.since = found(&node);
        }
        let now = Timestamp::now();
        let since = match &self.since {
            Some((status, since)) if status == condition.status => *since,
            _ => now,
        };
        self.patch(&condition.patch(now, since)).await?;
        self.since = Some((condition.status.to_owned(), since));
        Ok(())
    }

    async fn patch(&self, patch: &Value) -> Result<Value, Failure> {
        let body = Some((MERGE, patch.to_string().into_bytes()));
        let answer = self.server.send(Method::PATCH, &self.path, body).await?;
        let (address, status, after) = (answer.address.clone(), answer.status, answer.after);
        if status != StatusCode::OK {
            answer.discard(self.server.times.answer).await;
            let what = format!("the condition of the Node {}", self.node);
            return Err(failure::of_writing(&address, &what, status, after));
        }
        let body = answer.whole(self.server.times.answer).await?;
        json::read(&body).map_err(|error| {
            let why = format!("{address} sent a node that cannot be read: {error}");
            Failure::new(What::Broken, why)
        })
    }
}
