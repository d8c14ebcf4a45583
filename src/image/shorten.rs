//! Hostile text, for messages.

/// Hostile text goes into messages and logs in small, printable pieces only. Quotes and
/// backslashes are escaped: put the piece between quotes as it is, not through `{:?}`. So is all
/// that is not ASCII, of which much acts on a terminal, turns the text around it or looks like
/// something else; but for the letters of Latin-1 and the `…` of what was copied from a message.
pub(crate) fn shorten(text: &str) -> String {
    const SHOWN: usize = 100;
    let mut short = String::new();
    for c in text.chars().take(SHOWN) {
        match c {
            '…' => short.push(c),
            'À'..='ÿ' if c.is_alphabetic() => short.push(c),
            _ => short.extend(c.escape_default()),
        }
    }
    if text.chars().nth(SHOWN).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_deceive_is_escaped() {
        assert_eq!(shorten("sha256:aé…"), "sha256:aé…");
        // Controls, what turns text about, what cannot be seen, and what looks like another.
        for hostile in
            "\0\x1b\u{7f}\u{9b}\u{a0}\u{ad}×÷\u{200b}\u{200d}\u{202e}\u{2066}\u{feff}\u{301}аſא"
                .chars()
        {
            assert_eq!(shorten(&hostile.to_string()), hostile.escape_default().to_string());
        }
        assert_eq!(shorten("a\"\\\n"), "a\\\"\\\\\\n");
        assert_eq!(shorten(&"é".repeat(101)), "é".repeat(100) + "…");
    }
}
