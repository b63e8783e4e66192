//! Repeatable randomness: a seed is printed by every suite that uses one, and can be given again.

/// SplitMix64.
pub struct Random(u64);

impl Random {
    /// A sequence.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The seed of `FLATBED_TEST_SEED`, else one of this process; printed, so that a failure can be repeated.
    pub fn from_environment(what: &str) -> Random {
        let given = std::env::var("FLATBED_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| {
            let clock =
                std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64);
            clock ^ (u64::from(std::process::id()) << 32)
        });
        eprintln!("{what}: repeat with FLATBED_TEST_SEED={seed}");
        Random::new(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 for 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound.max(1)
    }
}
