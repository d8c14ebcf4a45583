//! What the documents say of the program is so.

use std::{path::Path, process::Command};

use portcullis::{
    forward,
    refusal::{Code, Refusal},
};

use super::source::{self, File, file, files};

/// The part of a document below `## heading`.
pub(crate) fn section<'a>(document: &'a str, heading: &str) -> &'a str {
    let (_, rest) = document
        .split_once(&format!("\n## {heading}\n"))
        .unwrap_or_else(|| panic!("no heading {heading:?}"));
    rest.split("\n## ").next().unwrap_or(rest)
}

/// What stands between backticks in a line.
pub(crate) fn quoted(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).collect()
}

/// The Markdown files at the top, and those of the package.
fn documents() -> Vec<File> {
    let mut all = files(".");
    all.retain(|file| file.path.ends_with(".md") && !file.path.starts_with("tests/"));
    all
}

#[test]
fn every_reason_code_is_in_the_table_with_its_answer() {
    let document = file("ARCHITECTURE.md").text;
    let rows: Vec<_> = section(&document, "Answers").lines().map(quoted).collect();
    for code in Code::ALL {
        let answer = forward::refuse(&Refusal::new(code, "why"));
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        let status = match &*header("grpc-status") {
            "2" => "UNKNOWN",
            "3" => "INVALID_ARGUMENT",
            "5" => "NOT_FOUND",
            other => panic!("{code}: status {other} is not in the table yet"),
        };
        let message = header("grpc-message");
        let prefix = message.strip_suffix("why").unwrap().trim_end_matches("%20");
        let mut expected = vec![code.as_str(), status];
        expected.push(if prefix.is_empty() { "none" } else { prefix });
        assert!(
            rows.iter().any(|row| row.starts_with(&expected)),
            "ARCHITECTURE.md, Answers: no row begins with {expected:?}"
        );
    }
}

#[test]
fn every_test_that_security_md_names_exists() {
    let document = file("SECURITY.md").text;
    let (named, missing) = tests_of(&document);
    assert!(missing.is_empty(), "SECURITY.md names what is no test: {missing:#?}");
    assert!(named > 200, "{named} tests are named");

    let broken = "`src/image.rs`: `no_such_test`\n`src/image.rs`: `split_registry`\n\
                  `tests/real/ways.rs`: `by_kubelet`\n`tests/real/ways.rs`: `as_a_volume`\n";
    let (named, missing) = tests_of(broken);
    assert_eq!((named, missing.len()), (4, 3), "{missing:?}");
}

/// How many tests a document names, and those of them that are none.
fn tests_of(document: &str) -> (usize, Vec<String>) {
    let (mut named, mut missing) = (0, Vec::new());
    for line in document.lines() {
        let mut tests: Option<File> = None;
        for word in quoted(line) {
            match &tests {
                _ if word.ends_with(".rs") => tests = Some(file(word)),
                Some(tests) => {
                    named += 1;
                    if !is_test(tests, word) {
                        missing.push(format!("{}: {word}", tests.path));
                    }
                }
                None => {}
            }
        }
    }
    (named, missing)
}

fn is_test(file: &File, name: &str) -> bool {
    let Some((before, _)) = file.text.split_once(&format!("fn {name}(")) else { return false };
    if let Some(folder) =
        ["tests/real/", "tests/cluster/"].iter().find(|f| file.path.starts_with(**f))
    {
        // They stand in a table, behind the name of their module.
        let main = source::file(&format!("{folder}main.rs")).text;
        let (_, table) = main.split_once("    tests! {").expect("the table of the tests");
        return table.split(|c: char| c != '_' && !c.is_alphanumeric()).any(|word| word == name);
    }
    // Since the end of what stands before.
    let attributes = before.rsplit(['}', ';']).next().unwrap_or(before);
    attributes.contains("#[test]") || attributes.contains("#[tokio::test")
}

/// Each hole that other verifiers had has a test, or stands in the place of one that has.
#[test]
fn every_known_hole_has_its_test() {
    let document = file("SECURITY.md").text;
    let rows: Vec<_> =
        section(&document, "Known holes").lines().filter(|line| line.starts_with("| ")).collect();
    let mut numbers = 1..;
    for row in rows.iter().filter(|row| !row.starts_with("| ---") && !row.contains("shown by")) {
        if row.starts_with("| B") {
            let number = numbers.next().unwrap_or_default();
            assert!(row.starts_with(&format!("| B{number} | ")), "B{number} is not there: {row}");
        }
        let shown = row.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default();
        assert!(tests_of(shown).0 > 0 || shown.starts_with("as B"), "no test: {row}");
    }
    assert_eq!(numbers.next(), Some(30));
}

#[test]
fn every_file_that_a_document_names_exists() {
    let folders = ["src/", "tests/", "packaging/", "proto/"];
    for document in documents() {
        for (number, line) in document.text.lines().enumerate() {
            let paths = quoted(line).into_iter().filter_map(|word| {
                let path = word.split([' ', ':']).next()?;
                folders.iter().any(|folder| path.starts_with(folder)).then_some(path)
            });
            let links = line.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
            for path in paths.chain(links.filter(|link| !link.is_empty() && !link.contains(':'))) {
                let exists = Path::new(env!("CARGO_MANIFEST_DIR")).join(path).exists();
                assert!(exists, "{}:{}: there is no {path}", document.path, number + 1);
            }
        }
    }
}

#[test]
fn every_flag_is_in_the_help() {
    let help = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .args(arguments)
            .arg("--help")
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let commands: [&[&str]; 17] = [
        &[],
        &["run"],
        &["check"],
        &["verify"],
        &["explain"],
        &["status"],
        &["preflight"],
        &["audit"],
        &["audit", "verify"],
        &["audit", "tail"],
        &["evidence"],
        &["evidence", "export"],
        &["evidence", "import"],
        &["policy"],
        &["policy", "bundle"],
        &["policy", "sign"],
        &["policy", "show"],
    ];
    let help: String = commands.into_iter().map(help).collect();
    let source = file("src/cli/arguments.rs").code;
    let mut flags = 0;
    for (attribute, field) in source.split("#[arg(").skip(1).filter_map(|arg| arg.split_once(")]"))
    {
        if !attribute.split([',', ' ']).any(|word| word == "long") {
            continue;
        }
        let name = field.split(':').next().unwrap_or_default();
        let name = name.trim().trim_start_matches("pub(super) ").replace('_', "-");
        let flag = format!("--{name}");
        let at = help.lines().position(|line| line.split([' ', ',']).any(|word| word == flag));
        let at = at.unwrap_or_else(|| panic!("{flag} is in no --help"));
        // On its line, or on the next one.
        let told = help.lines().skip(at).take(2).flat_map(str::split_whitespace);
        let is_word = |word: &str| word.len() > 3 && word.chars().all(char::is_alphabetic);
        assert!(told.into_iter().any(is_word), "{flag} has no explanation");
        flags += 1;
    }
    assert!(flags >= 9, "{flags} flags");
}

#[test]
fn no_file_names_a_place_of_one_machine() {
    let places = [concat!("/wo", "rk"), concat!("/ro", "ot/"), concat!("/ho", "me/")];
    // `"$temp/root/usr"` is below another folder.
    let is_path = |c: char| c.is_alphanumeric() || "._-}@/*~".contains(c);
    for file in files(".") {
        for (number, line) in file.text.lines().enumerate() {
            for (at, _) in places.iter().flat_map(|place| line.match_indices(place)) {
                assert!(
                    line[..at].ends_with(is_path),
                    "{}:{}: a path of one machine, which no other has: {line}",
                    file.path,
                    number + 1
                );
            }
        }
    }
}
