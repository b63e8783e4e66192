//! "Did you mean": the known name nearest to a mistyped one.

/// Changes beyond which two names have nothing to do with each other.
const MAX_CHANGES: usize = 3;

/// The known name that differs least from `name`, when it is near enough to be what was meant.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let candidates = known.into_iter().map(|each| (strsim::levenshtein(name, each), each));
    let (changes, best) = candidates.min()?;
    (changes <= MAX_CHANGES && changes < best.chars().count()).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_only_what_is_near() {
        let known = ["source", "slots", "listen"];
        assert_eq!(nearest("sorce", known), Some("source"));
        assert_eq!(nearest("colour-scheme", known), None);
        assert_eq!(nearest("ab", ["cd"]), None);
    }
}
