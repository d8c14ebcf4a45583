//! Makes the pinned image that every later stage speaks of.

use crate::{
    image::{Digest, ImageRef, PinnedImage, Repository, Version},
    named::ImageId,
    refusal::{Code, Refusal},
};

use super::{
    Fetched, Repo,
    manifest::{Index, MAX_MANIFEST, Manifest, ManifestError, Platform},
};

/// An image whose manifest was fetched and hashed by us.
#[derive(Debug)]
pub struct Resolved {
    /// The image by the digest of its manifest or index.
    pub image: PinnedImage,
    /// For an index: the one child that this platform's containerd will choose. Absent where
    /// the choice is not unique: then only claims about the index count.
    pub child: Option<Digest>,
    /// The runtime's ID of what it will start, where the manifests that were read say so: that of
    /// an image manifest, or of the child that is known.
    pub id: Option<ImageId>,
}

impl Resolved {
    /// The digests that a claim may be about: the image's own, then its child's.
    pub fn subjects(&self) -> impl Iterator<Item = Digest> {
        std::iter::once(self.image.digest).chain(self.child)
    }
}

/// Fetches the manifest, hashes it, and picks the child for this platform.
///
/// Refuses what the registry does not have or send, what is no manifest, and checkpoints.
pub async fn pin(repo: &Repo, image: &ImageRef) -> Result<(Resolved, Fetched), Refusal> {
    let fetched = repo.manifest(&image.version, MAX_MANIFEST).await?;
    if let Version::Digest(asked) = image.version
        && asked != fetched.digest
    {
        return Err(Refusal::new(
            Code::DigestMismatch,
            format!("the registry sent {} instead", fetched.digest),
        ));
    }
    Ok((resolved(&image.repository, &fetched)?, fetched))
}

/// The image that a manifest or index is, in this repository: a function of its bytes.
///
/// Refuses what is no manifest, and checkpoints.
pub fn resolved(repository: &Repository, fetched: &Fetched) -> Result<Resolved, Refusal> {
    let manifest = Manifest::read(&fetched.media_type, &fetched.body)?;
    if manifest.is_checkpoint() {
        return Err(ManifestError::Checkpoint.into());
    }
    let child = match (&manifest, goarch(std::env::consts::ARCH)) {
        (Manifest::Index(index), Some(architecture)) => only_child(index, architecture),
        _ => None,
    };
    let id = match &manifest {
        Manifest::Image(manifest) => Some(ImageId::of_config(manifest.config.digest)),
        Manifest::Index(_) => None,
    };
    let image = PinnedImage { repository: repository.clone(), digest: fetched.digest };
    Ok(Resolved { image, child, id })
}

/// This build's architecture as Go names it, for those where containerd looks for no variant.
///
/// On 32-bit ARM containerd takes the variant from the CPU and falls back to older ones, so
/// which child it takes is not known here. Nor is it to a 32-bit x86 program, whose containerd
/// may well be one for amd64.
fn goarch(arch: &str) -> Option<&'static str> {
    match arch {
        "x86_64" => Some("amd64"),
        "aarch64" => Some("arm64"),
        "riscv64" => Some("riscv64"),
        "s390x" => Some("s390x"),
        "loongarch64" => Some("loong64"),
        "powerpc64" if cfg!(target_endian = "little") => Some("ppc64le"),
        _ => None,
    }
}

/// The child that containerd pulls on this platform, if that is beyond doubt.
///
/// A signature on the child lets the whole index through, and containerd chooses the child again
/// by itself: it sorts the entries that fit and takes the first, looks into nested indexes, takes
/// an entry without platform when nothing fits better, reads `os.features` or not depending on
/// its version, and falls back from amd64 to 386 and from arm64 to arm when there is no exact
/// match (containerd/platforms `compare.go`, core/images `LimitManifests`). Whoever can push an
/// index can put a signed child into it beside another of his own making. So the child counts
/// only where no version of containerd can choose another: exactly one entry of this
/// architecture, whatever its variant, and that an exact match, which sorts before every
/// fallback.
fn only_child(index: &Index, architecture: &str) -> Option<Digest> {
    let mut child = None;
    for entry in &index.manifests {
        if entry.is_index() {
            return None;
        }
        let platform = entry.platform.as_ref()?;
        // Go lowers `lİnux` to `linux`, and Rust does not.
        if ![&platform.os, &platform.architecture, &platform.variant].iter().all(|s| s.is_ascii()) {
            return None;
        }
        let (os, found, variant) = normalize(platform);
        if os != "linux" || found != architecture {
            continue;
        }
        let exact = variant.is_empty() && platform.os_features.is_empty() && entry.is_image();
        if child.is_some() || !exact {
            return None;
        }
        child = Some(entry.digest);
    }
    child
}

/// Operating system, architecture and variant as containerd compares them
/// (containerd/platforms `database.go`), for the architectures of [`goarch`].
fn normalize(platform: &Platform) -> (String, String, String) {
    let os = match platform.os.to_ascii_lowercase() {
        empty if empty.is_empty() => "linux".to_owned(),
        os => os,
    };
    let variant = platform.variant.to_ascii_lowercase();
    let (architecture, variant) = match &*platform.architecture.to_ascii_lowercase() {
        "x86_64" | "x86-64" | "amd64" => ("amd64", if variant == "v1" { "" } else { &*variant }),
        "aarch64" | "arm64" => match &*variant {
            "8" | "v8" | "v8.0" => ("arm64", ""),
            other => ("arm64", other),
        },
        other => return (os, other.to_owned(), variant),
    };
    (os, architecture.to_owned(), variant.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";

    /// An entry of a kind, with a platform as JSON; its number is its digest.
    fn entry((number, (kind, platform)): (usize, &(&str, &str))) -> String {
        format!(
            r#"{{"mediaType":"{kind}","digest":"sha256:{number:064x}","size":1,"platform":{platform}}}"#
        )
    }

    /// The number of the entry that is chosen.
    #[track_caller]
    fn choice(architecture: &str, entries: &[(&str, &str)]) -> Option<usize> {
        let entries: Vec<_> = entries.iter().enumerate().map(entry).collect();
        let json = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
        let Ok(Manifest::Index(index)) = Manifest::read(INDEX, json.as_bytes()) else {
            panic!("{json}")
        };
        let child = only_child(&index, architecture)?;
        Some(usize::from_str_radix(&child.hex(), 16).unwrap())
    }

    const AMD64: &str = r#"{"os":"linux","architecture":"amd64"}"#;
    const ARM64: &str = r#"{"os":"linux","architecture":"arm64","variant":"v8"}"#;
    const ARM: &str = r#"{"os":"linux","architecture":"arm","variant":"v7"}"#;
    const I386: &str = r#"{"os":"linux","architecture":"386"}"#;
    const WINDOWS: &str = r#"{"os":"windows","architecture":"amd64","os.version":"10.0.1"}"#;
    const ATTESTATION: &str = r#"{"os":"unknown","architecture":"unknown"}"#;

    #[test]
    fn one_exact_entry_is_the_child() {
        let usual =
            [WINDOWS, I386, ARM, AMD64, ARM64, ATTESTATION, ATTESTATION].map(|p| (IMAGE, p));
        assert_eq!(choice("amd64", &usual), Some(3));
        assert_eq!(choice("arm64", &usual), Some(4));
        assert_eq!(choice("s390x", &usual), None);
        for spelling in [
            r#"{"os":"Linux","architecture":"x86_64"}"#,
            r#"{"os":"","architecture":"AMD64","variant":"V1"}"#,
            r#"{"architecture":"x86-64","variant":null}"#,
        ] {
            assert_eq!(choice("amd64", &[(IMAGE, spelling)]), Some(0), "{spelling}");
        }
    }

    #[test]
    fn a_choice_that_containerd_could_make_otherwise_is_none() {
        for other in [
            (IMAGE, AMD64),
            (IMAGE, r#"{"os":"LINUX","architecture":"X86_64"}"#),
            (IMAGE, r#"{"architecture":"amd64"}"#),
            (IMAGE, r#"{"os":"linux","architecture":"amd64","variant":"v3"}"#),
            (IMAGE, r#"{"os":"linux","architecture":"amd64","os.features":["x"]}"#),
            // "linux", "amd64" and "386" to Go.
            (IMAGE, r#"{"os":"l\u0130nux","architecture":"amd64"}"#),
            (IMAGE, r#"{"os":"linux","architecture":"\u0130386"}"#),
            (IMAGE, r#"{"os":"linux","architecture":"arm64","variant":"\u212a"}"#),
            (IMAGE, "null"),
            (INDEX, ATTESTATION),
            (INDEX, AMD64),
        ] {
            assert_eq!(choice("amd64", &[(IMAGE, AMD64), other]), None, "{other:?}");
            assert_eq!(choice("amd64", &[other, (IMAGE, AMD64)]), None, "{other:?}");
        }
        for single in [
            (IMAGE, r#"{"os":"linux","architecture":"amd64","variant":"v2"}"#),
            (IMAGE, r#"{"os":"linux","architecture":"amd64","os.features":["x"]}"#),
            (IMAGE, I386),
            (IMAGE, "{}"),
            ("application/json", AMD64),
        ] {
            assert_eq!(choice("amd64", &[single]), None, "{single:?}");
        }
        assert_eq!(choice("arm64", &[(IMAGE, ARM)]), None);
        assert_eq!(choice("amd64", &[]), None);
    }

    #[test]
    fn architectures_with_a_guessed_variant_have_no_child() {
        assert_eq!(goarch("x86_64"), Some("amd64"));
        assert_eq!(goarch("aarch64"), Some("arm64"));
        assert_eq!(goarch("arm"), None);
        assert_eq!(goarch("x86"), None);
    }
}
