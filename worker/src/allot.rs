//! How a worker shares its free slots out among the coordinators that it is connected with. Pure.
//!
//! Each coordinator fills what it is allotted without asking the others. While work waits anywhere the allotments
//! sum up to no more than the free slots, so that two coordinators do not count on the same one. While none waits
//! every coordinator may offer all of them: the first task of a new job then starts at once, and what arrives beyond
//! the free slots, which is rare, is declined.

/// The free slots of each coordinator, in the order of `waiting`: the tasks that wait there. With fewer slots than
/// coordinators that have work, those from `turn` on get one each.
pub(crate) fn allot(free: u32, waiting: &[u32], turn: usize) -> Vec<u32> {
    let total: u64 = waiting.iter().map(|tasks| u64::from(*tasks)).sum();
    if total == 0 {
        return vec![free; waiting.len()];
    }
    let mut claimants: Vec<usize> = (0..waiting.len()).filter(|place| waiting[*place] > 0).collect();
    let first = turn % claimants.len();
    claimants.rotate_left(first);
    let mut slots = vec![0; waiting.len()];
    let mut left = free;
    for place in claimants.iter().take(free as usize) {
        slots[*place] = 1;
        left -= 1;
    }
    // The others in proportion to what waits; what does not divide goes to those with the largest remainders.
    let shared = u64::from(left);
    let share = |place: usize| shared * u64::from(waiting[place]);
    for place in &claimants {
        let whole = (share(*place) / total) as u32;
        slots[*place] += whole;
        left -= whole;
    }
    claimants.sort_by_key(|place| std::cmp::Reverse(share(*place) % total));
    for place in claimants.iter().take(left as usize) {
        slots[*place] += 1;
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_slots_go_where_work_waits() {
        for (free, waiting, turn, expected) in [
            // Nothing waits: each may offer all.
            (4, vec![0, 0, 0], 0, vec![4, 4, 4]),
            (0, vec![0, 0], 7, vec![0, 0]),
            (4, vec![], 3, vec![]),
            // One has work.
            (4, vec![0, 9, 0], 5, vec![0, 4, 0]),
            (4, vec![1, 0, 0], 0, vec![4, 0, 0]),
            // As many slots as coordinators with work, or more.
            (2, vec![1, 0, 100], 0, vec![1, 0, 1]),
            (3, vec![1, 1, 1], 2, vec![1, 1, 1]),
            (4, vec![1, 0, 100], 0, vec![1, 0, 3]),
            (10, vec![30, 10], 0, vec![7, 3]),
            (50, vec![60, 2, 0], 1, vec![47, 3, 0]),
            (u32::MAX, vec![u32::MAX, u32::MAX], 0, vec![1 << 31, u32::MAX >> 1]),
            // Fewer: by turns.
            (1, vec![5, 5, 0, 5], 0, vec![1, 0, 0, 0]),
            (1, vec![5, 5, 0, 5], 1, vec![0, 1, 0, 0]),
            (1, vec![5, 5, 0, 5], 2, vec![0, 0, 0, 1]),
            (2, vec![5, 5, 0, 5], 2, vec![1, 0, 0, 1]),
            (2, vec![5, 5, 0, 5], 3, vec![1, 1, 0, 0]),
            (0, vec![5, 5], 0, vec![0, 0]),
        ] {
            assert_eq!(
                allot(free, &waiting, turn),
                expected,
                "{free} slots, {waiting:?} waiting, turn {turn}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn a_slot_is_never_promised_twice_while_work_waits(
            free in 0_u32..200,
            waiting in proptest::collection::vec(proptest::prop_oneof![proptest::strategy::Just(0), 1_u32..100], 1..8),
            turn in proptest::prelude::any::<usize>(),
        ) {
            let slots = allot(free, &waiting, turn);
            let claimants = waiting.iter().filter(|tasks| **tasks > 0).count();
            if claimants > 0 {
                proptest::prop_assert_eq!(slots.iter().sum::<u32>(), free);
                let served = slots.iter().filter(|slots| **slots > 0).count();
                proptest::prop_assert_eq!(served, claimants.min(free as usize));
                proptest::prop_assert!(waiting.iter().zip(&slots).all(|(tasks, slots)| *tasks > 0 || *slots == 0));
            }
        }
    }
}
