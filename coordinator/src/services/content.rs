//! Questions whose answer is content: passed on to a worker, which writes the answer as an object. Here only its name is
//! seen.

use flatbed_proto::convert::required;
use flatbed_proto::status::to_status;
use flatbed_proto::wire::job::{
    ReadResourceRequest, ReadResourceResponse, SearchGroupsRequest, SearchGroupsResponse,
};
use flatbed_types::ErrorCode;
use flatbed_types::content::{ContentQuestion, ReadResource, SearchGroups};
use tonic::Status;

use super::{Services, malformed};
use crate::driver::Inquiry;

impl Services {
    /// A resource that belongs to no patient.
    pub(super) async fn content(&self, request: ReadResourceRequest) -> Result<ReadResourceResponse, Status> {
        let question: ReadResource = required(request.question, "question").map_err(malformed)?;
        let name = format!("{}/{}", question.resource_type.name(), question.id);
        let answer = self.inquire(Inquiry::Content(ContentQuestion::Read(question))).await?;
        match answer.content {
            Some(content) => Ok(ReadResourceResponse { content: Some(content) }),
            None => Err(to_status(ErrorCode::NotFound, format!("there is no {name}"))),
        }
    }

    /// Groups that match a search.
    pub(super) async fn groups(&self, request: SearchGroupsRequest) -> Result<SearchGroupsResponse, Status> {
        let question: SearchGroups = required(request.question, "question").map_err(malformed)?;
        let answer = self.inquire(Inquiry::Content(ContentQuestion::SearchGroups(question))).await?;
        Ok(SearchGroupsResponse { content: answer.content, more: answer.more })
    }
}
