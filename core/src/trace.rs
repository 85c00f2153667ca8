//! W3C Trace Context: whether a caller's `traceparent` may be carried on.

/// Whether `header` is a `traceparent` of the shape that every version up to now has:
/// `{version}-{trace id}-{parent id}-{flags}` in lower-case hex, 55 characters, neither id all zeros
/// (W3C Trace Context section 3.2). Another one is replaced by a fresh one.
pub fn is_traceparent(header: &str) -> bool {
    let mut parts = header.split('-');
    let mut next = |length: usize| parts.next().filter(|part| part.len() == length && is_hex(part));
    let (version, trace, parent, flags) = (next(2), next(32), next(16), next(2));
    let is_id = |part: Option<&str>| part.is_some_and(|part| part.bytes().any(|byte| byte != b'0'));
    version.is_some_and(|version| version != "ff")
        && is_id(trace)
        && is_id(parent)
        && flags.is_some()
        && parts.next().is_none()
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_shape_is_what_counts() {
        assert_eq!(GOOD.len(), 55);
        assert!(is_traceparent(GOOD));
        assert!(is_traceparent(&GOOD.replacen("00", "cc", 1)), "a later version");
        for wrong in [
            String::new(),
            "x".repeat(55),
            "-".repeat(55),
            "é".repeat(27) + "-",
            format!("{GOOD}-"),
            format!("{GOOD}-01"),
            GOOD[1..].to_owned(),
            GOOD.replace('-', "0"),
            GOOD.to_uppercase(),
            GOOD.replacen("00", "ff", 1),
            GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01".to_owned(),
        ] {
            assert!(!is_traceparent(&wrong), "{wrong}");
        }
    }
}
