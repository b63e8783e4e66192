//! Repeatable randomness, and how texts are damaged.

/// Texts that somebody may have forgotten.
const ODD: [&str; 20] = [
    "\0", "%", "%00", "%ff", "\u{feff}", "\u{202e}", "ü", "\"", "\\u0000", "]", "{", ",", "&", "-0", "1e999",
    "$", "|", "\\,", "../", "\r\n",
];

/// SplitMix64.
#[derive(Debug)]
pub struct Sequence(u64);

/// The seed of `FLATBED_TEST_SEED`, else always the same one: a run without it is the same for everybody. Printed, so that
/// a failure can be repeated.
pub fn seed(what: &str) -> u64 {
    let given = std::env::var("FLATBED_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or(0x5eed_f1a7_bed0_0001);
    eprintln!("{what}: FLATBED_TEST_SEED={seed}");
    seed
}

impl Sequence {
    pub fn new(seed: u64) -> Sequence {
        Sequence(seed)
    }

    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`; 0 for 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.draw() % (bound.max(1) as u64)) as usize
    }

    /// With a chance of one in so many.
    pub fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }

    /// One of these.
    pub fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }

    /// A word that occurs nowhere else, longer than what may be repeated.
    pub fn mark(&mut self) -> String {
        let length = 80 + self.below(400);
        (0..length).map(|_| char::from(b'a' + self.below(26) as u8)).collect()
    }

    /// Bytes with some of them changed, taken out, doubled or put in.
    pub fn damaged(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        for _ in 0..1 + self.below(4) {
            let at = self.below(bytes.len() + 1);
            match self.below(6) {
                0 => bytes.truncate(at),
                1 if at < bytes.len() => bytes[at] = self.below(256) as u8,
                2 if at < bytes.len() => drop(bytes.remove(at)),
                3 => bytes.insert(at, self.below(256) as u8),
                4 => {
                    let part: Vec<u8> = bytes[at..].iter().copied().take(self.below(64)).collect();
                    drop(bytes.splice(at..at, part));
                }
                _ => drop(bytes.splice(at..at, self.pick(&ODD).bytes())),
            }
        }
        bytes
    }

    /// A text, damaged as a text.
    pub fn damaged_text(&mut self, text: &str) -> String {
        String::from_utf8_lossy(&self.damaged(text.as_bytes().to_vec())).into_owned()
    }
}
