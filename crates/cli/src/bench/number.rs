//! Numbers as people read them.

/// With its unit and a factor of a thousand: `875 k packets/s`.
pub(crate) fn with_unit(value: f64, unit: &str) -> String {
    let (factor, prefix) = scale(value, unit);
    let gap = if prefix.is_empty() { "" } else { " " };
    let number = short(value / factor);
    let unit = if number == "1" && prefix.is_empty() { one(unit) } else { unit };
    format!("{number}{gap}{prefix} {unit}")
}

/// What is counted, when there is one.
fn one(unit: &str) -> &str {
    match unit {
        "flows" | "sockets" | "connections" | "packets" | "requests" => &unit[..unit.len() - 1],
        _ => unit,
    }
}

/// The factor and its prefix that bring `value` near one. Times and shares have units of their own size.
pub(crate) fn scale(value: f64, unit: &str) -> (f64, &'static str) {
    let is_fixed = ["%", "ns", "us", "ms", "s"].iter().any(|own| unit.split('/').next() == Some(own));
    match value.abs() {
        _ if is_fixed => (1.0, ""),
        value if value >= 0.9995e9 => (1e9, "G"),
        value if value >= 0.9995e6 => (1e6, "M"),
        value if value >= 0.9995e3 => (1e3, "k"),
        _ => (1.0, ""),
    }
}

/// Three significant digits, without zeros at the end.
pub(crate) fn short(value: f64) -> String {
    let text = format!("{value:.*}", decimals(value));
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').into(),
        false => text,
    }
}

/// Decimals that give three significant digits, at most three.
pub(crate) fn decimals(value: f64) -> usize {
    match value.abs() {
        value if value >= 99.95 => 0,
        value if value >= 9.995 => 1,
        value if value >= 0.9995 => 2,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_a_factor() {
        assert_eq!(with_unit(875e3, "packets/s"), "875 k packets/s");
        assert_eq!(with_unit(1.75e6, "packets/s"), "1.75 M packets/s");
        assert_eq!(with_unit(999_900.0, "packets/s"), "1 M packets/s");
        assert_eq!(with_unit(10.0, "flows"), "10 flows");
        assert_eq!(with_unit(1.0, "flows"), "1 flow");
        assert_eq!(with_unit(1234.0, "ns/packet"), "1234 ns/packet");
        assert_eq!(with_unit(0.05, "%"), "0.05 %");
        assert_eq!(with_unit(0.0, "packets"), "0 packets");
    }
}
