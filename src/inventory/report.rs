//! What the audit log is told of containers that run, once each.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use tokio::task::spawn_blocking;

use crate::{
    forward::Container,
    image::Digest,
    judgement::Judgement,
    local::Question,
    policy::PolicySet,
    refusal::{Code, Refusal},
};

use super::{Inventory, Looked, Memory, references, running};

impl Inventory {
    /// Puts on record which of these would be refused now, and counts them.
    pub(super) async fn drifted(
        &self,
        containers: &[Container],
        looked: &[Looked],
        policies: &Arc<PolicySet>,
        memory: &mut Memory,
    ) -> usize {
        let mut drifted = 0;
        for container in containers {
            let of = |looked: &&Looked| container.image.is_some_and(|id| looked.ids.contains(&id));
            let names: Vec<_> =
                looked.iter().filter(of).flat_map(|looked| references(&looked.names)).collect();
            let question = running::question(container, &names);
            let Some(judgement) = self.judge(policies, question.clone()).await else { continue };
            let record = running::drifted(container, question.as_ref(), &judgement, policies);
            let Some(record) = record else { continue };
            drifted += 1;
            // Other policies that say the same of it are no news.
            let told = Digest::of(record.message.as_bytes());
            if memory.drifted.get(&container.id) != Some(&told) {
                tracing::warn!("{}", record.message);
                if self.parts.audit.record(record, ()).await.is_ok() {
                    memory.drifted.insert(container.id.clone(), told);
                }
            }
        }
        drifted
    }

    async fn judge(
        &self,
        policies: &Arc<PolicySet>,
        question: Option<Question>,
    ) -> Option<Arc<Judgement>> {
        let Some(question) = question else {
            let why = "the container runtime does not say which image it runs";
            let refusal = Refusal::new(Code::NotProvenLocally, why);
            return Some(Arc::new(Judgement::refused(refusal)));
        };
        let (local, policies) = (self.parts.local.clone(), policies.clone());
        spawn_blocking(move || local.judge(&policies, &question, Timestamp::now())).await.ok()
    }

    /// Puts on record which of these were not created through Portcullis, and counts them.
    pub(super) async fn unpermitted(&self, containers: &[Container], memory: &mut Memory) -> usize {
        let ledger = self.parts.ledger.clone();
        let ids: Vec<_> = containers.iter().map(|container| container.id.clone()).collect();
        let looking = move || {
            let (permitted, others): (BTreeSet<String>, BTreeSet<String>) =
                ids.into_iter().partition(|id| ledger.was_permitted(id));
            let told: Vec<String> = others.into_iter().filter(|id| ledger.was_told(id)).collect();
            (permitted, told)
        };
        let (permitted, told) = spawn_blocking(looking).await.unwrap_or_default();
        // By an earlier process.
        memory.unpermitted.extend(told);
        let is_unpermitted = |container: &&Container| !permitted.contains(&container.id);
        let unpermitted: Vec<_> = containers.iter().filter(is_unpermitted).collect();
        for container in &unpermitted {
            if memory.unpermitted.contains(&container.id) {
                continue;
            }
            let record = running::unpermitted(container);
            tracing::warn!("{}", record.message);
            if self.parts.audit.record(record, ()).await.is_ok() {
                memory.unpermitted.insert(container.id.clone());
                let (ledger, id) = (self.parts.ledger.clone(), container.id.clone());
                let _ = spawn_blocking(move || ledger.told(&id)).await;
            }
        }
        unpermitted.len()
    }
}
