//! The table of limits in ARCHITECTURE.md says what the code does, and leaves none out.

use std::collections::BTreeMap;

use super::{
    documents::{quoted, section},
    source::{file, files},
};

#[test]
fn the_table_of_limits_is_true_and_whole() {
    let mut constants = BTreeMap::new();
    for file in files("src") {
        for item in file.code.split("const ").skip(1) {
            let Some((head, value)) = item.split(';').next().and_then(|item| item.split_once('='))
            else {
                continue;
            };
            let name = head.split(':').next().unwrap_or_default().trim().to_owned();
            // Without the digits' separators.
            constants.insert((name, file.path.clone()), value.trim().replace('_', ""));
        }
    }
    let mut unlisted: Vec<_> =
        constants.keys().filter(|(name, _)| name.starts_with("MAX_")).cloned().collect();
    let document = file("ARCHITECTURE.md").text;
    let mut rows = 0;
    for row in section(&document, "Limits").lines().filter(|line| line.contains("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [_, value, place] = cells[..] else { panic!("{row}: three columns are expected") };
        let [name, path] = quoted(place)[..] else { panic!("{row}: `NAME` in `file` is expected") };
        let key = (name.to_owned(), path.to_owned());
        let source = constants.get(&key).unwrap_or_else(|| panic!("{path} has no constant {name}"));
        if let Some(amount) = evaluate(source) {
            assert_eq!(Some(amount), read(value), "{row}: the source says {source}");
        }
        unlisted.retain(|listed| *listed != key);
        rows += 1;
    }
    assert!(rows > 40, "{rows} rows");
    assert!(
        unlisted.is_empty(),
        "limits that the table of ARCHITECTURE.md leaves out: {unlisted:?}"
    );
}

/// A constant's value; durations in milliseconds. `None`: not of a simple form.
fn evaluate(source: &str) -> Option<u64> {
    let of = |prefix| source.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(')'));
    match (of("Duration::fromsecs("), of("Duration::frommillis("), source.split_once("<<")) {
        (Some(seconds), _, _) => Some(evaluate(seconds)? * 1000),
        (_, Some(milliseconds), _) => evaluate(milliseconds),
        (_, _, Some((amount, shift))) => Some(evaluate(amount.trim())? << evaluate(shift.trim())?),
        _ => source.split('*').map(|factor| factor.trim().parse::<u64>().ok()).product(),
    }
}

/// `4 MiB`, `10,000`, `60 s`.
fn read(text: &str) -> Option<u64> {
    let (amount, unit) = text.split_once(' ').unwrap_or((text, ""));
    let amount: u64 = amount.replace(',', "").parse().ok()?;
    Some(match unit {
        "KiB" => amount << 10,
        "MiB" => amount << 20,
        "s" => amount * 1000,
        _ => amount,
    })
}
