//! The order of canonical decimal strings.

use std::cmp::Ordering;

/// Orders two canonical decimal strings (no exponent, no leading or trailing zeros) by value. The
/// strings stay what they are, so no digit is ever lost.
pub fn compare(a: &str, b: &str) -> Ordering {
    match (a.strip_prefix('-'), b.strip_prefix('-')) {
        (Some(a), Some(b)) => compare_magnitudes(b, a),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => compare_magnitudes(a, b),
    }
}

fn compare_magnitudes(a: &str, b: &str) -> Ordering {
    let (whole_a, fraction_a) = a.split_once('.').unwrap_or((a, ""));
    let (whole_b, fraction_b) = b.split_once('.').unwrap_or((b, ""));
    (whole_a.len(), whole_a, fraction_a).cmp(&(whole_b.len(), whole_b, fraction_b))
}

#[cfg(test)]
mod tests {
    use super::compare;

    #[test]
    fn decimals_are_ordered_by_value() {
        let rising =
            ["-10", "-2", "-1.5", "-1.25", "0", "0.00000001", "0.1", "0.12", "9.5", "10", "100.01"];
        for (i, a) in rising.iter().enumerate() {
            for (j, b) in rising.iter().enumerate() {
                assert_eq!(compare(a, b), i.cmp(&j), "{a} and {b}");
            }
        }
    }
}
