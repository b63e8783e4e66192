//! Where the real data sets are, when they are.

use std::path::PathBuf;

/// The folder of `FLATBED_TEST_DATA`. Without it says so in one line, and the suite goes on with generated data.
pub fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("FLATBED_TEST_DATA").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("the real data sets were not there (FLATBED_TEST_DATA is not set)");
    }
    folder
}
