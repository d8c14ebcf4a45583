//! Credentials that a file in the form of Docker's `config.json` holds: for commands, which nobody
//! hands the credentials of a pull, and for policies in a registry.

use std::{
    collections::BTreeMap,
    env, fs,
    io::Read,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;

use crate::image::Repository;

use super::Credentials;

/// Largest credentials file, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The part of Docker's configuration that is read. Credential helpers are programs, which a
/// verifier does not run.
#[derive(Default, Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    identitytoken: String,
    #[serde(default)]
    registrytoken: String,
}

/// Credentials for registries: from the file that is named, or from Docker's usual place, where
/// the file may be absent.
pub struct AuthFile(Option<(PathBuf, File)>);

impl AuthFile {
    /// Reads it.
    ///
    /// # Errors
    ///
    /// A sentence: it is not there though it is named, or it is not such a file.
    pub fn load(named: Option<&Path>) -> Result<Self, String> {
        let (path, must_exist) = match named {
            Some(path) => (path.to_owned(), true),
            None => match usual() {
                Some(path) => (path, false),
                None => return Ok(Self(None)),
            },
        };
        let mut text = String::new();
        match fs::File::open(&path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text)) {
            Ok(_) => match parse(&text) {
                Ok(file) => Ok(Self(Some((path, file)))),
                Err(why) => Err(format!("{}: {why}", path.display())),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must_exist => {
                Ok(Self(None))
            }
            Err(error) => Err(format!("{}: cannot be read: {error}", path.display())),
        }
    }

    /// The credentials for a repository's registry.
    ///
    /// # Errors
    ///
    /// A sentence: there is an entry, and it cannot be used.
    pub fn credentials(&self, repository: &Repository) -> Result<Credentials, String> {
        let Some((path, file)) = &self.0 else { return Ok(Credentials::Anonymous) };
        find(file, repository).map_err(|why| format!("{}: {why}", path.display()))
    }
}

fn usual() -> Option<PathBuf> {
    let directory = env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    directory
        .or_else(|| Some(env::home_dir()?.join(".docker")))
        .map(|directory| directory.join("config.json"))
}

fn parse(text: &str) -> Result<File, String> {
    // serde_json quotes the text around an error; that may be a password.
    serde_json::from_str(text).map_err(|error| {
        format!("not Docker's config.json: line {}, column {}", error.line(), error.column())
    })
}

fn find(file: &File, repository: &Repository) -> Result<Credentials, String> {
    let names: &[&str] = match repository.registry() {
        "docker.io" => &["https://index.docker.io/v1/", "index.docker.io", "docker.io"],
        other => &[other],
    };
    let entry = file.auths.iter().find(|(server, _)| {
        let host = server.split_once("://").map_or(server.as_str(), |(_, rest)| rest);
        names.contains(&server.as_str()) || names.contains(&host.trim_end_matches('/'))
    });
    let Some((server, entry)) = entry else { return Ok(Credentials::Anonymous) };
    if !entry.identitytoken.is_empty() {
        return Ok(Credentials::IdentityToken(entry.identitytoken.clone()));
    }
    if !entry.registrytoken.is_empty() {
        return Ok(Credentials::RegistryToken(entry.registrytoken.clone()));
    }
    if entry.auth.is_empty() {
        return Err(format!(
            "the entry {server:?} holds no credentials (a credential helper has them, which is not run here); \
             write an \"auth\" field into a file of its own"
        ));
    }
    let decoded =
        STANDARD.decode(&entry.auth).ok().and_then(|decoded| String::from_utf8(decoded).ok());
    let pair = decoded.as_deref().and_then(|decoded| decoded.split_once(':'));
    let (username, password) = pair
        .ok_or_else(|| format!("the \"auth\" of {server:?} is not base64 of \"user:password\""))?;
    Ok(Credentials::Basic { username: username.to_owned(), password: password.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(text: &str, repository: &str) -> Result<Credentials, String> {
        find(&parse(text)?, &repository.parse().unwrap())
    }

    #[test]
    fn the_entry_of_the_registry_is_used() {
        let file = r#"{"auths": {"r.example.com": {"auth": "dTpwOnc="}, "https://index.docker.io/v1/": {"identitytoken": "t"}, "https://x.example.com/": {"auth": "dTpwOnc="}}, "credsStore": "x"}"#;
        let basic = Credentials::Basic { username: "u".into(), password: "p:w".into() };
        assert_eq!(look(file, "r.example.com/a"), Ok(basic.clone()));
        assert_eq!(look(file, "x.example.com/a"), Ok(basic));
        assert_eq!(look(file, "nginx"), Ok(Credentials::IdentityToken("t".into())));
        assert_eq!(look(file, "other.example.com/a"), Ok(Credentials::Anonymous));
    }

    #[test]
    fn a_file_that_cannot_be_used_is_told_without_its_secrets() {
        let error = look(r#"{"auths": {"r.example.com": {"auth": 7}}} hunter2"#, "r.example.com/a")
            .unwrap_err();
        assert_eq!(error, "not Docker's config.json: line 1, column 38");
        let error = look(r#"{"auths": {"r.example.com": {}}}"#, "r.example.com/a").unwrap_err();
        assert!(error.contains("credential helper"), "{error}");
        let error = look(r#"{"auths": {"r.example.com": {"auth": "eDp5x"}}}"#, "r.example.com/a")
            .unwrap_err();
        assert_eq!(error, "the \"auth\" of \"r.example.com\" is not base64 of \"user:password\"");
    }
}
