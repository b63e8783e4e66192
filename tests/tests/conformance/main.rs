//! The Bulk Data contract as tests over HTTP: `rows.txt` is the contract's rows with our claims, the modules here are the
//! checks that the claims stand on. A claim without a check, a check that no row names, and a page that is not what the
//! table says fail in `table`.
//!
//! By default each check runs against a `flatbed serve` of its own over the lake of the fixture; with
//! `FLATBED_CONFORMANCE_BASE` those that need no fixture run against that base URL. `tests/conformance` does both.

use flatbed_tests::conformance::table::Table;

/// The tests of a module's checks, and their names for the table. Checks of `anything` are given a target; those of
/// `fixture` start what they need.
macro_rules! checks {
    (anything: [$($any:ident),* $(,)?], fixture: [$($own:ident),* $(,)?] $(,)?) => {
        pub(crate) const CHECKS: &[&str] = &[
            $(concat!(module_path!(), "::", stringify!($any)),)*
            $(concat!(module_path!(), "::", stringify!($own)),)*
        ];

        mod tests {
            use flatbed_tests::conformance::{Needs, prove};
            $(#[tokio::test]
            async fn $any() -> anyhow::Result<()> {
                let name = crate::named(concat!(module_path!(), "::", stringify!($any)));
                let target = flatbed_tests::conformance::target::Target::any();
                let check = async { super::$any(target.await?).await };
                prove(&crate::rows()?, &name, Needs::Anything, check).await
            })*
            $(#[tokio::test]
            async fn $own() -> anyhow::Result<()> {
                let name = crate::named(concat!(module_path!(), "::", stringify!($own)));
                prove(&crate::rows()?, &name, Needs::Fixture, super::$own()).await
            })*
        }
    };
}

mod associated;
mod auth;
mod auth_keys;
mod auth_registration;
mod auth_tokens;
mod auth_walls;
mod cohorts;
mod consent;
mod delete;
mod elements;
mod errors;
mod files;
mod filters;
mod groups;
mod headers;
mod kickoff;
mod manifest;
mod metadata;
mod organised;
mod parameters;
mod partial;
mod patients;
mod payers;
mod security;
mod sizes;
mod status;
mod table;
mod time;

/// The table.
fn rows() -> anyhow::Result<Table> {
    Table::parse(include_str!("rows.txt"))
}

/// The name of a check in the table: `module::function`.
fn named(path: &str) -> String {
    path.split("::").filter(|part| !["conformance", "tests"].contains(part)).collect::<Vec<_>>().join("::")
}
