//! A national export in virtual time: the job machine and the scheduler as in production, workers, store and objects
//! simulated. Prints what the coordinator does and costs.
//!
//! ```text
//! cargo run --release -p flatbed-coordinator-core --example scale -- [members=330000000] [workers=5000] [rate=16]
//!     [target=320] [kills=50] [hung=5] [slow=100] [seed=1]
//! ```
//!
//! `rate` is MB/s of a slot on average, `target` MiB of a task, `kills` workers killed a minute, `hung` workers that
//! stop moving some time, `slow` workers at an eighth of the rate. Ends with status 1 when the job does not complete or
//! the store held 4 MB or more at once (`coordination.md` 3.4).
#![allow(clippy::print_stdout)] // A command's output is its purpose.

mod nation;
mod store;
mod work;
mod world;

use std::process::ExitCode;

use world::{Options, World};

fn main() -> ExitCode {
    let mut options = Options::default();
    for argument in std::env::args().skip(1) {
        let known = argument.split_once('=').and_then(|(name, value)| {
            let value: u64 = value.parse().ok()?;
            let field = match name {
                "members" => &mut options.members,
                "workers" => &mut options.workers,
                "rate" => &mut options.rate,
                "target" => &mut options.target_mib,
                "kills" => &mut options.kills_per_minute,
                "hung" => &mut options.hung,
                "slow" => &mut options.slow,
                "seed" => &mut options.seed,
                _ => return None,
            };
            *field = value;
            Some(())
        });
        if known.is_none() {
            println!("cannot read `{argument}`: see the head of this example");
            return ExitCode::FAILURE;
        }
    }
    println!("{options:?}");
    let mut world = World::new(options);
    let is_complete = world.run();
    let is_small = world.report();
    if is_complete && is_small { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
