//! The repository as the rules see it: its files, and what their code names.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// One text file.
pub(crate) struct File {
    /// From the top of the repository: `src/lib.rs`.
    pub path: String,
    /// As it is.
    pub text: String,
    /// Rust only: the same lines and columns, with comments, the contents of literals and all
    /// test code blanked out.
    pub code: String,
}

/// What code says in some line: `std::fs::File`, `panic!`; nested imports spelt out.
pub(crate) struct Name {
    pub line: usize,
    pub path: String,
}

impl File {
    pub(crate) fn new(path: &str, text: String) -> Self {
        let is_code = path.ends_with(".rs") && !is_test(path);
        let code = if is_code { without_tests(&without_literals(&text)) } else { String::new() };
        Self { path: path.to_owned(), text, code }
    }

    /// Every path that the code names, in the order of the lines.
    pub(crate) fn names(&self) -> Vec<Name> {
        let mut names = Vec::new();
        let mut rest = &self.code[..];
        while let Some(start) = rest.find(is_ident) {
            let line = 1 + self.code[..self.code.len() - rest.len() + start].matches('\n').count();
            rest = &rest[start..];
            let end = match rest.strip_prefix("use ") {
                Some(import) => {
                    let end = import.find(';').unwrap_or(import.len());
                    let mut paths = Vec::new();
                    expand("", &import[..end], &mut paths);
                    names.extend(paths.into_iter().map(|path| Name { line, path }));
                    "use ".len() + end
                }
                None => {
                    let mut end = path_end(rest);
                    end += usize::from(is_macro(&rest[end..]));
                    names.push(Name { line, path: rest[..end].to_owned() });
                    end
                }
            };
            rest = &rest[end..];
        }
        names
    }
}

/// The files of a folder of the repository, and of all folders below it.
pub(crate) fn files(folder: &str) -> Vec<File> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    let mut folders = vec![top.join(folder)];
    while let Some(folder) = folders.pop() {
        let mut entries: Vec<PathBuf> =
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            let name = path.strip_prefix(top).unwrap().to_str().unwrap().to_owned();
            // In a second work tree, .git is a file.
            if [".git", "target", "tests/fixtures/registry/blobs"].contains(&&*name) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(text) = fs::read_to_string(&path) {
                files.push(File::new(&name, text));
            }
        }
    }
    assert!(!files.is_empty(), "{folder} holds no files");
    files
}

/// One file of the repository.
pub(crate) fn file(path: &str) -> File {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path));
    File::new(path, text.unwrap_or_else(|error| panic!("{path}: {error}")))
}

fn is_test(path: &str) -> bool {
    !path.starts_with("src/")
        || path.ends_with("/tests.rs")
        || path.ends_with("/testing.rs")
        || path.contains("/tests/")
}

fn is_ident(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether what stands behind a path makes it the call of a macro.
fn is_macro(behind: &str) -> bool {
    ["!(", "![", "! {", "!{"].iter().any(|call| behind.starts_with(call))
}

/// How long the path is that a text begins with.
fn path_end(text: &str) -> usize {
    let mut end = 0;
    loop {
        end += text[end..].find(|c| !is_ident(c)).unwrap_or(text.len() - end);
        match text[end..].strip_prefix("::") {
            Some(more) if more.starts_with(is_ident) => end += 2,
            _ => return end,
        }
    }
}

/// `a::{self, b as c, d::{e}}` is `a`, `a::b` and `a::d::e`.
fn expand(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let join = |part: &str| match (prefix, part.trim()) {
        ("", part) => part.to_owned(),
        (prefix, "self") => prefix.to_owned(),
        (prefix, part) => format!("{prefix}::{part}"),
    };
    let (mut depth, mut start) = (0, 0);
    let mut parts = Vec::new();
    for (at, c) in tree.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&tree[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&tree[start..]);
    for part in parts.into_iter().map(str::trim).filter(|part| !part.is_empty()) {
        match part.split_once('{') {
            Some((head, inner)) => {
                let inner = inner.trim_end().strip_suffix('}').unwrap_or(inner);
                expand(&join(head.trim().trim_end_matches("::")), inner, paths);
            }
            None => paths.push(join(part.split(" as ").next().unwrap_or(part))),
        }
    }
}

/// Blanks comments and the contents of literals.
fn without_literals(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut code = String::with_capacity(text.len());
    let mut i = 0;
    while i < chars.len() {
        let raw_hashes = (at(i) == 'r' && (i == 0 || !is_ident(at(i - 1)) || at(i - 1) == 'b'))
            .then(|| chars[i + 1..].iter().take_while(|c| **c == '#').count())
            .filter(|hashes| at(i + 1 + hashes) == '"');
        let end = if at(i) == '/' && at(i + 1) == '/' {
            chars[i..].iter().position(|c| *c == '\n').map_or(chars.len(), |length| i + length)
        } else if let Some(hashes) = raw_hashes {
            let close: String = std::iter::once('"').chain("#".repeat(hashes).chars()).collect();
            let from = i + hashes + 2;
            let body: String = chars[from..].iter().collect();
            let length = body.find(&close).map_or(body.len(), |end| end + close.len());
            from + body[..length].chars().count()
        } else if at(i) == '"' {
            let mut end = i + 1;
            while end < chars.len() && at(end) != '"' {
                end += if at(end) == '\\' { 2 } else { 1 };
            }
            end + 1
        } else if at(i) == '\'' && (at(i + 1) == '\\' || at(i + 2) == '\'') {
            let from = if at(i + 1) == '\\' { i + 3 } else { i + 2 };
            chars[from..].iter().position(|c| *c == '\'').map_or(chars.len(), |n| from + n + 1)
        } else {
            code.push(at(i));
            i += 1;
            continue;
        };
        code.extend(chars[i..end.min(chars.len())].iter().map(|c| match c {
            '\n' => '\n',
            _ => ' ',
        }));
        i = end;
    }
    code
}

/// Blanks what stands behind `#[cfg(test)]`: an item of one line, or up to its closing brace.
fn without_tests(code: &str) -> String {
    let mut kept = String::with_capacity(code.len());
    let mut lines = code.lines();
    while let Some(line) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            kept.push_str(line);
            kept.push('\n');
            continue;
        }
        let brace = format!("{}}}", " ".repeat(line.len() - line.trim_start().len()));
        kept.push('\n');
        let mut is_first = true;
        for line in lines.by_ref() {
            kept.push('\n');
            let ends_at_once = is_first && line.trim_end().ends_with(';');
            is_first &= line.trim_start().starts_with("#[");
            if ends_at_once || line.trim_end() == brace {
                break;
            }
        }
    }
    kept
}

#[test]
fn code_is_told_from_what_looks_like_it() {
    let text = r##"
use std::{fs::{self, File as F}, io};
// tokio::comment
fn f<'a>() { let _ = (vec!["tokio \" x", r#"tokio "x" "#, 'x', '\'', b"tokio", reqwest::get::<a::B>()]); }
#[cfg(test)]
mod testing;
fn g() {}
#[cfg(test)]
mod tests {
    use tokio::time;
}
fn h() {}
"##;
    let file = File::new("src/x.rs", text.to_owned());
    let names: Vec<_> = file.names().iter().map(|n| format!("{} {}", n.line, n.path)).collect();
    let expected = [
        "2 std::fs",
        "2 std::fs::File",
        "2 std::io",
        "4 fn",
        "4 f",
        "4 a",
        "4 let",
        "4 _",
        "4 vec!",
        "4 b",
        "4 reqwest::get",
        "4 a::B",
        "7 fn",
        "7 g",
        "12 fn",
        "12 h",
    ];
    assert_eq!(names, expected);
}
