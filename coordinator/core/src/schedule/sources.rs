//! The sources that attempts read: how many do, and how many may.

use super::budget::Budget;

#[derive(Debug)]
struct Source {
    name: String,
    running: u32,
    budget: Option<Budget>,
}

/// All sources that an attempt ever read. There are a handful: one a cluster as a rule.
#[derive(Debug, Default)]
pub(super) struct Sources {
    all: Vec<Source>,
}

impl Sources {
    /// An attempt began; the index of its source.
    pub fn began(&mut self, name: &str) -> usize {
        let index = self.index(name).unwrap_or_else(|| {
            self.all.push(Source { name: name.to_owned(), running: 0, budget: None });
            self.all.len() - 1
        });
        self.all[index].running += 1;
        index
    }

    pub fn ended(&mut self, index: usize) {
        if let Some(source) = self.all.get_mut(index) {
            source.running = source.running.saturating_sub(1);
        }
    }

    /// An attempt that has just ended was done.
    pub fn succeeded(&mut self, index: usize) {
        if let Some(Source { running, budget: Some(budget), .. }) = self.all.get_mut(index) {
            budget.succeeded(running.saturating_add(1));
        }
    }

    /// An attempt that has just ended was asked for less.
    pub fn throttled(&mut self, index: usize, now_ms: u64, pause_ms: u64) {
        if let Some(source) = self.all.get_mut(index) {
            let running = source.running.saturating_add(1);
            source.budget = Some(Budget::throttled(source.budget.take(), now_ms, running, pause_ms));
        }
    }

    pub fn index(&self, name: &str) -> Option<usize> {
        self.all.iter().position(|source| source.name == name)
    }

    pub fn name(&self, index: usize) -> Option<&str> {
        self.all.get(index).map(|source| source.name.as_str())
    }

    pub fn budget(&self, name: &str) -> Option<&Budget> {
        self.all.iter().find(|source| source.name == name)?.budget.as_ref()
    }

    pub fn any_limited(&self) -> bool {
        self.all.iter().any(|source| source.budget.is_some())
    }
}
