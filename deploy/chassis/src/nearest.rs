//! "Did you mean": the known name nearest to a mistyped one.

/// Changes beyond which two names have nothing to do with each other.
const MAX_CHANGES: usize = 3;

/// The known name that differs least from `name`, when it is near enough to be what was meant.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let candidates = known.into_iter().map(|each| (distance(name, each), each));
    let (changes, best) = candidates.min()?;
    (changes <= MAX_CHANGES && changes < best.chars().count()).then_some(best)
}

/// Insertions, deletions and replacements between two names (Levenshtein).
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (line, have) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, want) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(have != *want);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_changes() {
        for (left, right, changes) in
            [("", "", 0), ("slots", "slots", 0), ("slot", "slots", 1), ("lsots", "slots", 2), ("a", "xyz", 3)]
        {
            assert_eq!(distance(left, right), changes, "{left} {right}");
            assert_eq!(distance(right, left), changes, "{right} {left}");
        }
    }

    #[test]
    fn suggests_only_what_is_near() {
        let known = ["source", "slots", "listen"];
        assert_eq!(nearest("sorce", known), Some("source"));
        assert_eq!(nearest("colour-scheme", known), None);
        assert_eq!(nearest("ab", ["cd"]), None);
    }
}
