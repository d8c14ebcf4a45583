//! Where a registry's images come from: the directories of `hosts.toml`, searched and read as
//! containerd does it (`docs/hosts.md`).

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::hosts_file::{self, Host, TlsFiles};

/// Largest `hosts.toml` and largest PEM file, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Most entries of a directory that are looked at for certificates.
const MAX_ENTRIES: usize = 1024;

/// The directories of `runtime.registry_config`, in order.
#[derive(Clone, Debug, Default)]
pub struct HostsDirectories(Vec<PathBuf>);

impl HostsDirectories {
    /// These directories, in this order.
    pub fn new(directories: Vec<PathBuf>) -> Self {
        Self(directories)
    }

    /// Reads a colon-separated list, as containerd's `config_path` has it. Empty parts are passed
    /// over; an empty list asks each registry itself.
    pub fn parse(list: &str) -> Self {
        Self(list.split(':').filter(|part| !part.is_empty()).map(PathBuf::from).collect())
    }

    /// The hosts to ask for the images of this registry, in their order. Reads files.
    pub(super) fn hosts(&self, registry: &str) -> Result<Vec<Host>, String> {
        match self.find(registry)? {
            Some(directory) => load(&directory, registry),
            None => Ok(vec![Host::registry_itself(registry, TlsFiles::default())?]),
        }
    }

    /// The first directory that exists for this registry, be it empty.
    fn find(&self, registry: &str) -> Result<Option<PathBuf>, String> {
        let underscored = registry.rsplit_once(':').map(|(host, port)| format!("{host}_{port}_"));
        let names: Vec<&str> =
            underscored.as_deref().into_iter().chain([registry, "_default"]).collect();
        for directory in self.0.iter().flat_map(|root| names.iter().map(|name| root.join(name))) {
            if directory.try_exists().map_err(|e| cannot_read(&directory, &e))? {
                return Ok(Some(directory));
            }
        }
        Ok(None)
    }
}

fn load(directory: &Path, registry: &str) -> Result<Vec<Host>, String> {
    let path = directory.join("hosts.toml");
    let text = match read_bounded(&path) {
        Ok(bytes) => String::from_utf8(bytes).map_err(|_| "not UTF-8".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => return Err(cannot_read(&path, &error)),
    };
    match text.map(|text| (!text.is_empty()).then_some(text)) {
        Ok(Some(text)) => match hosts_file::parse(&text, directory, registry) {
            Ok(hosts) => return Ok(hosts),
            Err(why) => warn_unread(&path, &why),
        },
        Ok(None) => {}
        Err(why) => warn_unread(&path, &why),
    }
    Ok(vec![Host::registry_itself(registry, certificate_files(directory)?)?])
}

/// containerd goes on as if there were no file; to ask another host than it asks would judge
/// another image than it pulls.
fn warn_unread(path: &Path, why: &str) {
    tracing::warn!(
        file = %path.display(), why,
        "hosts.toml cannot be read; like containerd, the registry itself is asked instead"
    );
}

/// Docker's layout: `*.crt` are trusted, `*.cert` with `*.key` are client certificates.
fn certificate_files(directory: &Path) -> Result<TlsFiles, String> {
    let mut names = Vec::new();
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(TlsFiles::default()),
        Err(error) => return Err(cannot_read(directory, &error)),
    };
    for entry in entries.take(MAX_ENTRIES) {
        let path = entry.map_err(|e| cannot_read(directory, &e))?.path();
        if !path.is_dir() {
            names.push(path);
        }
    }
    names.sort();
    let mut files = TlsFiles::default();
    for path in names {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => files.ca.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                let key = key.try_exists().map_err(|e| cannot_read(&key, &e))?.then_some(key);
                files.client.push((path, key));
            }
            _ => {}
        }
    }
    Ok(files)
}

/// Reads a regular file of at most [`MAX_FILE`] bytes.
pub(super) fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > MAX_FILE {
        true => Err(io::Error::other(format!("more than {MAX_FILE} bytes"))),
        false => Ok(bytes),
    }
}

pub(super) fn cannot_read(path: &Path, error: &io::Error) -> String {
    format!("{} cannot be read: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Roots(tempfile::TempDir);

    impl Roots {
        fn new(files: &[(&str, &str)]) -> Self {
            let root = tempfile::tempdir().unwrap();
            for (name, text) in files {
                let path = root.path().join(name);
                if name.ends_with('/') {
                    fs::create_dir_all(path).unwrap();
                    continue;
                }
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            Self(root)
        }

        fn list(&self, names: &[&str]) -> HostsDirectories {
            let paths: Vec<_> =
                names.iter().map(|n| self.0.path().join(n).display().to_string()).collect();
            HostsDirectories::parse(&paths.join(":"))
        }

        #[track_caller]
        fn bases(&self, roots: &[&str], registry: &str) -> Vec<String> {
            let hosts = self.list(roots).hosts(registry).unwrap();
            hosts.iter().map(|host| host.base.to_string()).collect()
        }
    }

    #[test]
    fn the_first_directory_wins() {
        let roots = Roots::new(&[
            ("a/r.example_5000_/hosts.toml", "server = \"underscored.example\""),
            ("a/r.example:5000/hosts.toml", "server = \"colon.example\""),
            ("a/s.example:5000/hosts.toml", "server = \"colon.example\""),
            ("a/empty.example/", ""),
            ("a/_default/hosts.toml", "server = \"default.example\""),
            ("b/t.example/hosts.toml", "server = \"b.example\""),
        ]);
        for (registry, base) in [
            ("r.example:5000", "https://underscored.example/v2"),
            ("s.example:5000", "https://colon.example/v2"),
            ("s.example", "https://default.example/v2"),
            ("empty.example", "https://empty.example/v2"),
            ("t.example", "https://default.example/v2"),
        ] {
            assert_eq!(roots.bases(&["a", "b"], registry), [base], "{registry}");
        }
        assert_eq!(roots.bases(&["b", "a"], "t.example"), ["https://b.example/v2"]);
        assert_eq!(roots.bases(&["", "none"], "t.example"), ["https://t.example/v2"]);
    }

    #[test]
    fn a_list_has_empty_parts() {
        assert_eq!(
            HostsDirectories::parse(":/a::/b:").0,
            [PathBuf::from("/a"), PathBuf::from("/b")]
        );
        assert!(HostsDirectories::parse("").0.is_empty());
    }

    #[test]
    fn docker_certificates_where_the_file_is_absent_empty_or_broken() {
        for text in [None, Some(""), Some("server ="), Some("capabilities = [\"x\"]")] {
            let mut files = vec![
                ("a/r.example/b.crt", ""),
                ("a/r.example/a.crt", ""),
                ("a/r.example/c.cert", ""),
                ("a/r.example/c.key", ""),
                ("a/r.example/d.cert", ""),
                ("a/r.example/x.crt/", ""),
            ];
            files.extend(text.map(|text| ("a/r.example/hosts.toml", text)));
            let roots = Roots::new(&files);
            let hosts = roots.list(&["a"]).hosts("r.example").unwrap();
            let dir = roots.0.path().join("a/r.example");
            assert_eq!(hosts.len(), 1);
            assert_eq!(hosts[0].base.as_str(), "https://r.example/v2");
            assert_eq!(hosts[0].tls.ca, [dir.join("a.crt"), dir.join("b.crt")]);
            assert_eq!(
                hosts[0].tls.client,
                [(dir.join("c.cert"), Some(dir.join("c.key"))), (dir.join("d.cert"), None)]
            );
        }
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let roots = Roots::new(&[("a/r.example/hosts.toml/", ""), ("b/r.example", "a file")]);
        let path = roots.0.path().join("a/r.example/hosts.toml");
        assert_eq!(
            roots.list(&["a"]).hosts("r.example").unwrap_err(),
            format!("{} cannot be read: not a regular file", path.display())
        );
        assert!(roots.list(&["b"]).hosts("r.example").is_err());
    }

    #[test]
    fn large_files_are_refused() {
        let roots = Roots::new(&[("exact", ""), ("over", "")]);
        let write = |name: &str, size: u64| {
            let path = roots.0.path().join(name);
            File::create(&path).unwrap().set_len(size).unwrap();
            read_bounded(&path)
        };
        assert_eq!(write("exact", MAX_FILE).unwrap().len() as u64, MAX_FILE);
        assert_eq!(write("over", MAX_FILE + 1).unwrap_err().to_string(), "more than 1048576 bytes");
    }
}
