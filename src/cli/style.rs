//! Colour for people, and text that cannot play with their terminal.

use std::{fmt, io::IsTerminal};

/// Whether output is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Style {
    colour: bool,
}

impl Style {
    /// Colour where the output is a terminal that has it, unless `NO_COLOR` is set
    /// (<https://no-color.org>).
    pub(crate) fn of(output: &impl IsTerminal) -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let dumb = set("TERM").is_none_or(|term| term == "dumb");
        Self { colour: output.is_terminal() && set("NO_COLOR").is_none() && !dumb }
    }

    /// Never colour.
    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        Self { colour: false }
    }

    /// Always colour.
    #[cfg(test)]
    pub(crate) fn coloured() -> Self {
        Self { colour: true }
    }

    /// Accepted, whole.
    pub(crate) fn green<T>(self, text: T) -> Painted<T> {
        self.paint("32", text)
    }

    /// Refused, broken.
    pub(crate) fn red<T>(self, text: T) -> Painted<T> {
        self.paint("31", text)
    }

    /// Let through, doubtful.
    pub(crate) fn yellow<T>(self, text: T) -> Painted<T> {
        self.paint("33", text)
    }

    /// Beside the point.
    pub(crate) fn dim<T>(self, text: T) -> Painted<T> {
        self.paint("2", text)
    }

    /// The point.
    pub(crate) fn bold<T>(self, text: T) -> Painted<T> {
        self.paint("1", text)
    }

    fn paint<T>(self, code: &'static str, text: T) -> Painted<T> {
        Painted { code: self.colour.then_some(code), text }
    }
}

/// A text in its colour. Width and alignment count the text alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Painted<T> {
    code: Option<&'static str>,
    text: T,
}

impl<T: fmt::Display> fmt::Display for Painted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(code) = self.code else { return self.text.fmt(f) };
        write!(f, "\x1b[{code}m")?;
        self.text.fmt(f)?;
        f.write_str("\x1b[0m")
    }
}

/// Text from outside with everything escaped that a terminal obeys instead of showing: control
/// characters, and the marks that reverse or hide text.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        let obeyed = character.is_control()
            || matches!(
                character,
                '\u{ad}'
                    | '\u{61c}'
                    | '\u{180e}'
                    | '\u{200b}'..='\u{200f}'
                    | '\u{2028}'..='\u{202e}'
                    | '\u{2060}'..='\u{206f}'
                    | '\u{feff}'
                    | '\u{fff9}'..='\u{fffb}'
                    | '\u{e0000}'..='\u{e007f}'
            );
        match obeyed {
            true => shown.extend(character.escape_default()),
            false => shown.push(character),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn width_counts_the_text_alone() {
        assert_eq!(format!("[{:<5}]", Style::plain().red("no")), "[no   ]");
        assert_eq!(format!("[{:<5}]", Style::coloured().red("no")), "[\x1b[31mno   \x1b[0m]");
    }

    #[test]
    fn what_is_no_terminal_has_no_colour() {
        assert_eq!(Style::of(&tempfile::tempfile().unwrap()), Style::plain());
    }

    #[test]
    fn a_terminal_obeys_nothing() {
        assert_eq!(printable("\x1b[31m\r\n\u{9b}"), "\\u{1b}[31m\\r\\n\\u{9b}");
        assert_eq!(printable("a\u{202e}b\u{200b}"), "a\\u{202e}b\\u{200b}");
        assert_eq!(printable("“é” … 日本"), "“é” … 日本");
    }
}
