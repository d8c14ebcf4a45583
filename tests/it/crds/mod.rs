//! The CRDs: the files are what the code makes, and an API server that has them judges objects
//! as the parser does.

mod corpus;
mod properties;
mod server;
mod yaml;

use std::{env, fs, path::Path};

use portcullis::policy::crd;

/// Says who wrote the file, and how it is written anew.
const HEAD: &str = "\
# Generated from the constants of the policy parser by src/policy/crd.rs. Do not edit; run
# PORTCULLIS_WRITE=1 cargo test --test it crds::the_files
";

#[test]
fn the_files_are_what_the_code_makes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/kubernetes/crds");
    let definitions = crd::definitions();
    for (plural, definition) in &definitions {
        let path = folder.join(format!("{plural}.yaml"));
        let made = format!("{HEAD}{}", yaml::text(definition));
        let read: serde_json::Value = serde_saphyr::from_str(&made).unwrap();
        assert_eq!(read, *definition, "{plural}: the text says something else");
        if env::var_os("PORTCULLIS_WRITE").is_some() {
            fs::create_dir_all(&folder).unwrap();
            fs::write(&path, &made).unwrap();
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert!(found == made, "{} is not what the code makes; see its head", path.display());
    }
    assert_eq!(fs::read_dir(folder).unwrap().count(), definitions.len());
}
