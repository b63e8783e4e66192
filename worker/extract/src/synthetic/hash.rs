//! Randomness by counting: every draw is a hash of the seed, what the draw is for and the identity of the
//! resource. Nothing is carried from one resource to the next, so any range can be generated alone.

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finaliser of splitmix64: a bijection in which every input bit moves about half of the output bits.
pub const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// What a draw is for. Draws with different purposes do not know of each other.
#[derive(Clone, Copy)]
pub enum Purpose {
    /// The deleted patient of a block.
    DeadPatient,
    /// The very heavy patient of a block.
    HeavyPatient,
    /// How much care a patient needs.
    Weight,
    /// Whether a patient is a dependant of the head of the household.
    Household,
    /// Name of a person.
    Person,
    /// Family name of a household.
    Family,
    /// Which member of a Group a stretch of patients gives.
    Member,
    /// Standing and period of a Group's member.
    Standing,
    /// How many resources of a kind a patient has; the variant is the kind.
    Count,
    /// Whether a resource was deleted; the variant is the kind.
    Dead,
    /// When a resource was changed or deleted; the variant is the kind.
    Changed,
    /// The content of a resource; the variant is the kind.
    Content,
}

/// A sequence of random numbers that is named by what it is for.
#[derive(Clone, Copy)]
pub struct Draw {
    state: u64,
}

impl Draw {
    /// The sequence of this purpose (and a variant of it, below 256) for `index` of `ordinal`.
    pub fn new(seed: u64, purpose: Purpose, variant: u64, ordinal: u64, index: u64) -> Draw {
        let salt = mix(seed.wrapping_add(GOLDEN.wrapping_mul((purpose as u64 + 1) << 8 | variant)));
        Draw { state: mix(salt ^ (ordinal << 24 | index).wrapping_mul(GOLDEN)) }
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        mix(self.state)
    }

    /// A number below `bound` (which is at least 1 and below 2^32).
    pub fn below(&mut self, bound: u64) -> u64 {
        ((self.bits() >> 32) * bound) >> 32
    }

    /// True once in `bound` times.
    pub fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}
