//! Pages that are published while the job runs.

use flatbed_coordinator_core::page;

use super::mutation::Mutation;
use super::protocol::Protocol;
use super::state::{Key, Page, Pages, State, View};

fn spans(pages: &Pages) -> impl Iterator<Item = (u64, u64)> {
    pages.values().map(|page| (page.first, page.behind))
}

impl Protocol {
    /// Where the next page may end. Production decides by time and number of files; here all ends are tried.
    pub(super) fn ends_of_pages(&self, view: &View) -> impl Iterator<Item = u64> + use<> {
        let commits = view.ledger.next_commit();
        let first = page::next_first(spans(&view.pages), commits);
        // The last page comes with the result.
        let may = view.pages.len() < usize::from(self.config.pages);
        let first = first.filter(|_| may).unwrap_or(commits);
        (first..commits).map(|last| last + 1)
    }

    /// The next page, up to this commit, and its number.
    pub(super) fn page(&self, state: &State, view: &View, behind: u64) -> Option<(u8, Page)> {
        let first = page::next_first(spans(&view.pages), view.ledger.next_commit())?;
        let commits = view.ledger.commits().range(first..behind);
        let mut files: Vec<Key> = commits.map(|(_, commit)| commit.payload.key).collect();
        if self.mutated(Mutation::PageOfObjects) {
            let known: Vec<Key> = view.pages.values().flat_map(|page| page.files.clone()).collect();
            files =
                state.objects.iter().map(|object| object.key).filter(|key| !known.contains(key)).collect();
        }
        Some((view.pages.len() as u8 + 1, Page { first, behind, files }))
    }
}
