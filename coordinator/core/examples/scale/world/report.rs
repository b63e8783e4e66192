//! What a run printed at its end says.

use flatbed_types::Instant;

use super::{EPOCH_MS, World};

impl World {
    /// Prints the numbers; whether the store stayed small.
    pub fn report(&self) -> bool {
        let progress = self.job.progress(Instant::from_millis(EPOCH_MS));
        let (rows, raw_bytes) = (progress.committed.rows, progress.committed.bytes);
        let end = self.now;
        let seconds = end as f64 / 1_000.0;
        println!(
            "resources {:.1} G, raw {:.1} TB, tasks {}",
            rows as f64 / 1e9,
            raw_bytes as f64 / 1e12,
            progress.tasks
        );
        println!("job time {seconds:.0} s; workers killed {}; commits refused {}", self.kills, self.refused);
        println!("actions {:?}", self.actions);
        let running = self.task_ends.last().copied().unwrap_or(0) - self.first_grant.unwrap_or(0);
        let before_tail = self.task_ends.get(self.task_ends.len() * 99 / 100).copied().unwrap_or(0);
        let tail = self.task_ends.last().copied().unwrap_or(0) - before_tail;
        println!(
            "last 1 % of the tasks: {:.1} s, {:.2} % of the job's time (round 0: {:.0} s)",
            tail as f64 / 1e3,
            tail as f64 * 100.0 / end as f64,
            running as f64 / 1e3
        );
        let store = &self.store;
        println!("commits {}, folds {}", store.commits_made, store.folded);
        println!(
            "transactions {} ({:.1}/s over the job), operations {}, written {:.1} MB, largest {} KB",
            store.transactions,
            store.transactions as f64 / seconds,
            store.operations,
            store.written as f64 / 1e6,
            store.largest_txn >> 10
        );
        println!(
            "live in the store at most {:.2} MB ({} tasks, {} commits at most)",
            store.peak as f64 / 1e6,
            store.peak_tasks,
            store.peak_commits
        );
        let spent = &self.spent;
        let total = spent.job + spent.decide + spent.reports;
        println!(
            "coordinator: {:.1} s = job {:.1} s + {} decisions {:.1} s + {} reports {:.1} s",
            total.as_secs_f64(),
            spent.job.as_secs_f64(),
            spent.decisions,
            spent.decide.as_secs_f64(),
            spent.heartbeats,
            spent.reports.as_secs_f64()
        );
        println!(
            "  {:.6} s a million resources; {:.2} % of a processor; longest step {:?}, longest decision {:?}",
            total.as_secs_f64() * 1e6 / rows.max(1) as f64,
            total.as_secs_f64() * 100.0 / seconds,
            spent.longest_step,
            spent.longest_decision
        );
        for line in std::fs::read_to_string("/proc/self/status").unwrap_or_default().lines() {
            if line.starts_with("VmHWM") {
                println!("memory with the simulated cluster: {line}");
            }
        }
        store.peak < 4_000_000
    }
}
