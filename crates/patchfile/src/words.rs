//! Words that depend on a number.

use std::fmt::Display;

/// A number and what is counted, with what must agree with it: `counted(1, "task has moved", "tasks have moved")`.
pub fn counted<N: Display + PartialEq + From<u8>>(count: N, one: &str, others: &str) -> String {
    let words = if count == N::from(1) { one } else { others };
    format!("{count} {words}")
}

#[cfg(test)]
mod tests {
    use super::counted;

    #[test]
    fn one_is_one() {
        let tasks = |count: usize| counted(count, "task is back", "tasks are back");
        assert_eq!(tasks(0), "0 tasks are back");
        assert_eq!(tasks(1), "1 task is back");
        assert_eq!(tasks(2), "2 tasks are back");
    }
}
