//! What is wrong with a file that an operator wrote: where, what, and what to do.
//!
//! Configuration and policies are reported alike, by the daemon and by `portcullis check`.

use std::fmt;

use serde::Serialize;

/// Problems kept of one reading; the rest is only counted.
const MAX_KEPT: usize = 100;
/// Longest message, in characters: parsers quote what they choke on.
const MAX_MESSAGE: usize = 1000;
/// Longest line that is shown beside a problem, in characters.
const MAX_EXCERPT: usize = 160;

/// A place in a text: both count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

impl Position {
    /// The place of a byte offset in a text.
    pub(crate) fn of_offset(text: &str, offset: usize) -> Self {
        let before = &text.as_bytes()[..offset.min(text.len())];
        let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let before_in_line = String::from_utf8_lossy(&before[line_start..]);
        Self {
            line: 1 + before.iter().filter(|byte| **byte == b'\n').count(),
            column: 1 + before_in_line.chars().count(),
        }
    }
}

/// One thing that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file, as it was named.
    pub file: String,
    /// Where in the file. Absent: the file as a whole.
    #[serde(flatten)]
    pub at: Option<Position>,
    /// The path of the field, as in `spec.authorities[0].name`. Absent: no single field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What is wrong, and the remedy.
    pub message: String,
    /// The line, fit for a terminal. Absent where it could hold a secret, and of a whole file.
    #[serde(skip)]
    pub excerpt: Option<String>,
}

impl Problem {
    /// A problem with a file as a whole.
    pub(crate) fn of_file(file: impl Into<String>, message: impl Into<String>) -> Self {
        let (file, message) = (file.into(), bounded(&message.into()));
        Self { file, at: None, field: None, message, excerpt: None }
    }

    /// A problem at a place in a file whose text is at hand.
    pub(crate) fn at(
        file: &str,
        text: &str,
        at: Position,
        field: Option<String>,
        message: impl Into<String>,
    ) -> Self {
        let excerpt = text.lines().nth(at.line.saturating_sub(1)).and_then(excerpt);
        Self { file: file.into(), at: Some(at), field, message: bounded(&message.into()), excerpt }
    }

    /// The same problem without the line, which could hold a secret.
    pub(crate) fn without_excerpt(mut self) -> Self {
        self.excerpt = None;
        self
    }
}

fn bounded(message: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    message.chars().take(MAX_MESSAGE).map(plain).collect()
}

/// A line fit for a terminal, its characters where they are in the file.
fn excerpt(line: &str) -> Option<String> {
    if line.chars().nth(MAX_EXCERPT).is_some() {
        return None;
    }
    let printable = |c: char| match c {
        ' ' | '\t' => ' ',
        c if c.is_ascii_graphic() || c.is_alphanumeric() => c,
        _ => '·',
    };
    Some(line.chars().map(printable).collect())
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(Position { line, column }) = self.at {
            write!(f, ":{line}:{column}")?;
        }
        if let Some(field) = &self.field {
            write!(f, ": {field}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Everything that is wrong with what was read: at least one problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    list: Vec<Problem>,
    more: usize,
}

impl Problems {
    /// The problems in the order of the files, at most 100 of them.
    pub fn list(&self) -> &[Problem] {
        &self.list
    }

    /// How many there are beside those listed.
    pub fn more(&self) -> usize {
        self.more
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self { list: vec![problem], more: 0 }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        match self.more {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}

impl std::error::Error for Problems {}

/// Collects problems while something is read as far as it can be.
#[derive(Debug, Default)]
pub(crate) struct Report {
    list: Vec<Problem>,
    more: usize,
}

impl Report {
    pub(crate) fn add(&mut self, problem: Problem) {
        self.add_with(|| problem);
    }

    /// One too many is counted and never made: each costs a walk through the text to its line,
    /// and a hostile file has a hundred thousand of them.
    pub(crate) fn add_with(&mut self, problem: impl FnOnce() -> Problem) {
        match self.list.len() < MAX_KEPT {
            true => self.list.push(problem()),
            false => self.more += 1,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many problems are kept.
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// Leaves places out of the problems behind the first ones: of a text that was not written
    /// by hand, lines and columns tell nothing.
    pub(crate) fn forget_places(&mut self, behind: usize) {
        for problem in &mut self.list[behind..] {
            problem.at = problem.at.filter(|_| problem.field.is_none());
            problem.excerpt = None;
        }
    }

    /// What was read, if nothing at all is wrong with it.
    pub(crate) fn finish<T>(self, read: T) -> Result<T, Problems> {
        match self.list.is_empty() {
            true => Ok(read),
            false => Err(Problems { list: self.list, more: self.more }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_names_place_field_and_message() {
        let text = "a: 1\nb: \u{1b}[31mé\n";
        let at = Position { line: 2, column: 4 };
        let problem = Problem::at("p.yaml", text, at, Some("b".into()), "is wrong");
        assert_eq!(problem.to_string(), "p.yaml:2:4: b: is wrong");
        assert_eq!(problem.excerpt.as_deref(), Some("b: ·[31mé"));
        assert_eq!(problem.without_excerpt().excerpt, None);
        assert_eq!(Problem::of_file("p.yaml", "is gone").to_string(), "p.yaml: is gone");
    }

    #[test]
    fn a_message_is_one_line_of_bounded_length() {
        let problem = Problem::of_file("f", format!("a\nb\u{1b}{}", "é".repeat(2000)));
        assert_eq!(problem.message.chars().count(), MAX_MESSAGE);
        assert!(problem.message.starts_with("a b é"), "{problem}");
    }

    #[test]
    fn a_line_too_long_for_a_terminal_is_not_shown() {
        assert_eq!(excerpt(&"x".repeat(MAX_EXCERPT)).map(|line| line.len()), Some(MAX_EXCERPT));
        assert_eq!(excerpt(&"x".repeat(MAX_EXCERPT + 1)), None);
    }

    #[test]
    fn offsets_become_lines_and_columns() {
        let text = "é\nab\n";
        for (offset, line, column) in
            [(0, 1, 1), (1, 1, 2), (2, 1, 2), (3, 2, 1), (5, 2, 3), (6, 3, 1), (99, 3, 1)]
        {
            assert_eq!(Position::of_offset(text, offset), Position { line, column }, "{offset}");
        }
    }

    #[test]
    fn a_report_is_bounded_and_counts_the_rest() {
        let mut report = Report::default();
        for number in 0..MAX_KEPT + 3 {
            report.add(Problem::of_file("f", number.to_string()));
        }
        report.add_with(|| panic!("it is not kept, and so need not be made"));
        let problems = report.finish(()).unwrap_err();
        assert_eq!((problems.list().len(), problems.more()), (MAX_KEPT, 4));
        assert!(problems.to_string().ends_with("f: 99\nand 4 more"), "{problems}");
        assert_eq!(Report::default().finish(7), Ok(7));
    }
}
