//! What is right by the letter in a configuration, and may not be what was meant.

use std::path::Path;

use jiff::Timestamp;

use crate::{
    cli::judge::no_directory,
    config::{Config, PolicySource},
    image::shorten,
    policy::{check_floor, source::shown},
    problem::Problems,
    sources::keys,
};

/// Notes on a configuration that is well; what is wrong with it otherwise. Looks at this machine,
/// which may be another than the node, so a directory that is not here is no error.
pub(super) fn notes(path: &Path) -> Result<Vec<String>, Problems> {
    let text = Config::text(path)?;
    let config = Config::parse(&shown(path), &text)?;
    // What was read once is a table. It has the words, where the configuration has their meaning.
    let written: toml::Table = toml::from_str(&text).unwrap_or_default();
    let written = |key| written.get("runtime")?.get(key)?.as_str();
    let mut notes = Vec::new();
    let directories = [
        match &config.policy.source {
            PolicySource::Directory(source) => Some(("policy.source", source)),
            _ => None,
        },
        config.policy.floor.as_ref().map(|floor| ("policy.floor", floor)),
    ];
    for (field, directory) in directories.into_iter().flatten() {
        match no_directory(directory) {
            Some(why) => notes.push(format!("{field}: {why}")),
            None if !directory.exists() => {
                notes.push(format!("{field}: {} is not there", shown(directory)));
            }
            None => {}
        }
    }
    let files = config.policy.bundle.keys.iter().map(|key| ("policy.keys", key));
    let ca = config.policy.bundle.certificate_authority.iter();
    let files = files.chain(ca.map(|ca| ("policy.certificate_authority", ca)));
    let missing = files.filter(|(_, path)| !path.is_file());
    notes.extend(missing.map(|(field, path)| format!("{field}: {} is no file", shown(path))));
    // A file that is there is one that the daemon will read.
    if config.policy.bundle.keys.iter().all(|key| key.is_file()) && config.policy.source.is_bundle()
    {
        notes.extend(keys(&config).err());
    }
    if let Some(floor) = config.policy.floor.as_ref().filter(|floor| floor.is_dir()) {
        let problems = check_floor(floor, Timestamp::now()).err();
        notes.extend(problems.map(|problems| format!("policy.floor: {problems}")));
    }
    // Many a node has no such directory: only one that somebody asked for is missed.
    if written("registry_config").is_some() {
        let missing = config.runtime.registry_config.iter().filter(|path| !path.is_dir());
        notes.extend(missing.map(|path| {
            let why = "is not there: no mirrors and CAs are used";
            format!("runtime.registry_config: {} {why}", shown(path))
        }));
    }
    if let (Some(image), Some(text)) = (&config.runtime.sandbox_image, written("sandbox_image"))
        && image.to_string() != text
    {
        notes.push(format!("runtime.sandbox_image: \"{}\" means {image}", shorten(text)));
    }
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Notes on this text, in which `D` is a directory with a file `a.yaml`.
    fn noted(text: &str) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().to_str().unwrap();
        fs::write(directory.path().join("a.yaml"), "").unwrap();
        fs::create_dir(directory.path().join("empty")).unwrap();
        let path = directory.path().join("c.toml");
        fs::write(&path, text.replace("D", place)).unwrap();
        notes(&path).unwrap().into_iter().map(|note| note.replace(place, "D")).collect()
    }

    #[test]
    fn a_source_that_the_daemon_cannot_read_is_noted() {
        assert_eq!(noted("policy.source = 'file://D'"), [""; 0]);
        let note = "policy.source: D/gone is not there";
        assert_eq!(noted("policy.source = 'file://D/gone'"), [note]);
        let note = "policy.source: D/a.yaml is a file; name its directory";
        assert_eq!(noted("policy.source = 'file://D/a.yaml'"), [note]);
    }

    #[test]
    fn files_of_a_bundle_that_are_not_there_are_noted() {
        let bundle = "policy.source = 'https://a.example/b'\npolicy.keys = ['D/a.yaml', 'D/b.pub']\n\
                      policy.certificate_authority = 'D/ca.pem'\npolicy.floor = 'D/floor'";
        assert_eq!(
            noted(bundle),
            [
                "policy.floor: D/floor is not there",
                "policy.keys: D/b.pub is no file",
                "policy.certificate_authority: D/ca.pem is no file"
            ]
        );
    }

    #[test]
    fn what_the_daemon_cannot_use_of_a_bundles_files_is_noted() {
        let bundle = "policy.source = 'https://a.example/b'\npolicy.keys = ['D/a.yaml']\n\
                      policy.floor = 'D/empty'";
        assert_eq!(
            noted(bundle),
            [
                "policy.keys: D/a.yaml holds no public key: no PEM block: \"-----BEGIN PUBLIC \
                 KEY-----\" and its end are expected",
                "policy.floor: D/empty: holds no policy (*.yaml, *.yml)"
            ]
        );
    }

    #[test]
    fn mirrors_that_are_not_there_are_noted() {
        let of = |value: &str| {
            let runtime = format!("runtime.registry_config = '{value}'");
            noted(&format!("policy.source = 'file://D'\n{runtime}"))
        };
        assert_eq!(of(""), [""; 0]);
        assert_eq!(of("D"), [""; 0]);
        let note = "runtime.registry_config: D/gone is not there: no mirrors and CAs are used";
        assert_eq!(of("D:D/gone"), [note]);
        let note = "runtime.registry_config: D/a.yaml is not there: no mirrors and CAs are used";
        assert_eq!(of("D/a.yaml"), [note]);
    }

    #[test]
    fn what_a_short_name_means_is_noted() {
        let of = |value: &str| {
            let runtime = format!("runtime.sandbox_image = '{value}'");
            noted(&format!("policy.source = 'file://D'\n{runtime}"))
        };
        assert_eq!(of("registry.k8s.io/pause:3.10"), [""; 0]);
        let note = "runtime.sandbox_image: \"pause\" means docker.io/library/pause:latest";
        assert_eq!(of("pause"), [note]);
    }
}
