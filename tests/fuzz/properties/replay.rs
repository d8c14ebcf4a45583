//! The properties without a fuzzer: over every seed, and over mutations of seeds.

use std::{collections::BTreeSet, fs, path::PathBuf};

use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};

use super::{ALL, hold};

/// Mutated inputs for each property.
const CASES: u32 = 400;

fn folder(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz").join(path)
}

/// The seeds of a property, in the order of their names.
fn seeds(name: &str) -> Vec<(String, Vec<u8>)> {
    let folder = folder("seeds").join(name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let seed = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.unwrap().path();
        (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(path).unwrap())
    };
    let mut seeds: Vec<_> = entries.map(seed).collect();
    seeds.sort();
    assert!(!seeds.is_empty(), "{name} has no seeds");
    seeds
}

/// One change of a text. Places and lengths are fractions of what is there.
#[derive(Clone, Debug)]
enum Change {
    Set(u16, u8),
    Insert(u16, Vec<u8>),
    Remove(u16, u8),
    Repeat(u16, u8),
    /// A piece of another seed.
    Splice(u16, usize, u16, u8),
    End(u16),
}

fn change() -> impl Strategy<Value = Change> {
    // What many a parser stumbles over, and any byte.
    let bytes = prop_oneof![
        vec(any::<u8>(), 1..4),
        prop::sample::select(vec![
            "\"", "\\", "\n", "\t", "{", "[", ",", ":", "/", "@", "\0", "\u{17f}", "é", "null",
            "=", " ", "-", "9", "A"
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
    ];
    prop_oneof![
        (any::<u16>(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        (any::<u16>(), bytes).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        (any::<u16>(), any::<u8>()).prop_map(|(at, length)| Change::Remove(at, length)),
        (any::<u16>(), any::<u8>()).prop_map(|(at, length)| Change::Repeat(at, length)),
        (any::<u16>(), any::<usize>(), any::<u16>(), any::<u8>())
            .prop_map(|(at, seed, from, length)| Change::Splice(at, seed, from, length)),
        any::<u16>().prop_map(Change::End),
    ]
}

fn apply(input: &mut Vec<u8>, change: &Change, seeds: &[(String, Vec<u8>)]) {
    let place = |text: &[u8], at: u16| text.len() * usize::from(at) / usize::from(u16::MAX);
    let piece = |text: &[u8], at: u16, length: u8| {
        let from = place(text, at);
        from..text.len().min(from + usize::from(length))
    };
    match change {
        Change::Set(at, byte) => {
            let at = place(input, *at);
            if let Some(there) = input.get_mut(at) {
                *there = *byte;
            }
        }
        Change::Insert(at, bytes) => {
            let at = place(input, *at);
            input.splice(at..at, bytes.iter().copied());
        }
        Change::Remove(at, length) => drop(input.drain(piece(input, *at, *length))),
        Change::Repeat(at, length) => {
            let range = piece(input, *at, *length);
            let bytes = input[range.clone()].to_vec();
            input.splice(range.end..range.end, bytes);
        }
        Change::Splice(at, seed, from, length) => {
            let other = &seeds[seed % seeds.len()].1;
            let bytes = other[piece(other, *from, *length)].to_vec();
            let at = place(input, *at);
            input.splice(at..at, bytes);
        }
        Change::End(at) => {
            let at = place(input, *at);
            input.truncate(at);
        }
    }
}

#[track_caller]
fn replay(name: &str) {
    let seeds = seeds(name);
    for (file, seed) in &seeds {
        let held = std::panic::catch_unwind(|| hold(name, seed));
        assert!(held.is_ok(), "tests/fuzz/seeds/{name}/{file}: the property does not hold");
    }
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let strategy = (any::<usize>(), vec(change(), 1..6));
    let mutations = TestRunner::new(config).run(&strategy, |(seed, changes)| {
        let mut input = seeds[seed % seeds.len()].1.clone();
        changes.iter().for_each(|change| apply(&mut input, change, &seeds));
        hold(name, &input);
        Ok(())
    });
    mutations.unwrap_or_else(|failure| panic!("{name}: {failure}"));
}

macro_rules! replayed {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                replay(stringify!($name));
            }
        )*

        const REPLAYED: &[&str] = &[$(stringify!($name)),*];
    };
}

replayed! {
    audit bundle challenge dsse evidence hosts manifest pack policy reference sealed simple wire
}

#[test]
fn every_property_is_replayed_and_fuzzed() {
    let names: BTreeSet<_> = ALL.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names, REPLAYED.iter().map(|name| (*name).to_owned()).collect());
    let with_seeds = fs::read_dir(folder("seeds")).unwrap();
    let with_seeds = with_seeds.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(names, with_seeds.collect());
    let package = fs::read_to_string(folder("Cargo.toml")).unwrap();
    let targets = package.split("[[bin]]\nname = \"").skip(1);
    let targets = targets.map(|rest| rest.split('"').next().unwrap().to_owned());
    assert_eq!(names, targets.collect());
}
