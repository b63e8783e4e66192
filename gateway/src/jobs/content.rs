//! Questions whose answer is content: a worker writes it as an object, of which the name comes back. The object rests for
//! `caps::ANSWER_MILLIS`; read it at once, through `delivery::Objects`.

use std::time::Duration;

use flatbed_proto::convert::{Wire, required};
use flatbed_proto::wire::job as wire;
use flatbed_types::content::{ReadResource, SearchGroups};
use flatbed_types::job::ObjectPointer;
use flatbed_types::{ErrorCode, caps};
use tonic::Response;

use super::{CallError, Jobs, client, error_of, unreadable};

/// How long one coordinator may take: it waits `caps::ASK_MILLIS` for a worker's answer.
const PATIENCE: Duration = Duration::from_millis(caps::ASK_MILLIS + 500);

/// Deadline of a question.
const QUESTION: Duration = Duration::from_millis(caps::ASK_MILLIS + 2_000);

/// The answer to a search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundGroups {
    /// The Groups as NDJSON, in order of their ids.
    pub content: ObjectPointer,
    /// Whether there are more than were asked for.
    pub more: bool,
}

impl Jobs {
    /// A resource that belongs to no patient, as it is now, as JSON without a line end; `None` when there is none. An
    /// error of class `TooLarge` when it is larger than asked for.
    pub async fn read_resource(&self, question: &ReadResource) -> Result<Option<ObjectPointer>, CallError> {
        let message = wire::ReadResourceRequest { question: Some(question.to_wire()) };
        let answer = self.0.call_for(QUESTION, PATIENCE, |channel| {
            let message = message.clone();
            async move { client(channel).read_resource(message).await.map(Response::into_inner) }
        });
        match answer.await.map_err(|status| error_of(&status)) {
            Ok(answer) => required(answer.content, "content").map(Some).map_err(unreadable),
            Err(error) if error.code == ErrorCode::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Groups of the source that match a search, as they are now.
    pub async fn search_groups(&self, question: &SearchGroups) -> Result<FoundGroups, CallError> {
        let message = wire::SearchGroupsRequest { question: Some(question.to_wire()) };
        let answer = self.0.call_for(QUESTION, PATIENCE, |channel| {
            let message = message.clone();
            async move { client(channel).search_groups(message).await.map(Response::into_inner) }
        });
        let answer = answer.await.map_err(|status| error_of(&status))?;
        let content = required(answer.content, "content").map_err(unreadable)?;
        Ok(FoundGroups { content, more: answer.more })
    }
}
