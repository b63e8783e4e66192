//! How large the heavy suites run.

/// Whether the full sizes were asked for (`FLATBED_TEST_SCALE=full`): minutes instead of seconds.
pub fn is_full() -> bool {
    std::env::var("FLATBED_TEST_SCALE").is_ok_and(|scale| scale == "full")
}
