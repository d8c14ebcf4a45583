//! The distribution specification, as a registry without faults answers it.

use std::io;

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use portcullis::image::Digest;
use serde_json::{Value, json};
use url::form_urlencoded;

use super::{Options, store::Store};

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DIGEST: &str = "docker-content-digest";

pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub(super) fn json_answer(status: StatusCode, value: &Value) -> Response<Body> {
    content(status, "application/json", value.to_string())
}

/// An error in the form of the specification ("Error Codes").
pub(super) fn error(status: StatusCode, code: &str) -> Response<Body> {
    let message = code.to_lowercase().replace('_', " ");
    json_answer(status, &json!({"errors": [{"code": code, "message": message, "detail": null}]}))
}

fn content(status: StatusCode, media_type: &str, bytes: impl Into<Bytes>) -> Response<Body> {
    let bytes = bytes.into();
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, media_type)
        .header(header::CONTENT_LENGTH, bytes.len())
        .body(full(bytes))
        .unwrap()
}

fn empty(status: StatusCode, headers: &[(&str, String)]) -> Response<Body> {
    let answer = Response::builder().status(status).header(header::CONTENT_LENGTH, 0);
    let answer = headers.iter().fold(answer, |answer, (name, value)| answer.header(*name, value));
    answer.body(full("")).unwrap()
}

/// What a path under `/v2/` names.
pub(super) enum Route<'a> {
    Base,
    Manifest(&'a str, &'a str),
    Blob(&'a str, &'a str),
    Uploads(&'a str),
    Upload(&'a str, &'a str),
    Referrers(&'a str, &'a str),
    Tags(&'a str),
    Unknown,
}

impl<'a> Route<'a> {
    pub(super) fn of(path: &'a str) -> Self {
        let Some(path) = path.strip_prefix("/v2") else { return Route::Unknown };
        let Some(path) = path.strip_prefix('/').filter(|rest| !rest.is_empty()) else {
            return Route::Base;
        };
        let mut parts = path.rsplitn(3, '/');
        let (last, kind, repo) = (parts.next(), parts.next(), parts.next());
        let (Some(last), Some(kind), Some(repo)) = (last, kind, repo) else {
            return Route::Unknown;
        };
        match (kind, last, repo.strip_suffix("/blobs")) {
            ("uploads", "", Some(repo)) => Route::Uploads(repo),
            ("uploads", id, Some(repo)) => Route::Upload(repo, id),
            ("blobs", "uploads", _) => Route::Uploads(repo),
            ("blobs", digest, _) => Route::Blob(repo, digest),
            ("manifests", reference, _) => Route::Manifest(repo, reference),
            ("referrers", digest, _) => Route::Referrers(repo, digest),
            ("tags", "list", _) => Route::Tags(repo),
            _ => Route::Unknown,
        }
    }

    /// The scope a token must have; empty for the base.
    pub(super) fn scope(&self, method: &Method) -> String {
        let repo = match self {
            Route::Base | Route::Unknown => return String::new(),
            Route::Manifest(repo, _) | Route::Blob(repo, _) | Route::Upload(repo, _) => repo,
            Route::Uploads(repo) | Route::Referrers(repo, _) | Route::Tags(repo) => repo,
        };
        let reads = method == Method::GET || method == Method::HEAD;
        format!("repository:{repo}:{}", if reads { "pull" } else { "push" })
    }
}

/// One request whose body has arrived.
pub(super) struct Call<'a> {
    pub(super) method: &'a Method,
    pub(super) path: &'a str,
    pub(super) query: &'a str,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: Bytes,
}

impl Call<'_> {
    fn parameter(&self, name: &str) -> Option<String> {
        form_urlencoded::parse(self.query.as_bytes())
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
    }

    /// Answers; HEAD as GET, whose body the caller drops.
    pub(super) fn answer(self, store: &mut Store, options: &Options) -> Response<Body> {
        let reads = matches!(*self.method, Method::GET | Method::HEAD);
        match (Route::of(self.path), self.method.as_str()) {
            (Route::Base, _) if reads => json_answer(StatusCode::OK, &json!({})),
            (Route::Manifest(repo, reference), _) if reads => self.manifest(store, repo, reference),
            (Route::Manifest(repo, reference), "PUT") => {
                self.put_manifest(store, options, repo, reference)
            }
            (Route::Blob(repo, digest), _) if reads => get_blob(store, repo, digest),
            (Route::Uploads(repo), "POST") => self.begin_upload(store, repo),
            (Route::Upload(repo, id), "PATCH") => self.append(store, repo, id),
            (Route::Upload(repo, id), "PUT") => self.finish_upload(store, repo, id),
            (Route::Referrers(repo, digest), _) if reads && options.referrers_api => {
                self.referrers(store, options, repo, digest)
            }
            (Route::Tags(repo), _) if reads => match store.repos.get(repo) {
                None => error(StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
                Some(held) => {
                    let tags: Vec<_> = held.tags.keys().collect();
                    json_answer(StatusCode::OK, &json!({"name": repo, "tags": tags}))
                }
            },
            _ => content(StatusCode::NOT_FOUND, "text/plain", "404 page not found\n"),
        }
    }

    fn manifest(&self, store: &Store, repo: &str, reference: &str) -> Response<Body> {
        let unknown = || error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN");
        let found = store.repos.get(repo).and_then(|repo| repo.manifest(reference));
        let Some(found) = found else { return unknown() };
        // docker-registry does not show a manifest to those who do not name its type.
        let accepted = self.headers.get_all(header::ACCEPT).iter().any(|accept| {
            let types = accept.to_str().unwrap_or("").split(',');
            types.map(|t| t.split(';').next().unwrap_or(t).trim()).any(|t| t == found.media_type)
        });
        if !accepted {
            return unknown();
        }
        let mut answer = content(StatusCode::OK, &found.media_type, found.bytes.clone());
        answer.headers_mut().insert(DIGEST, found.digest.to_string().try_into().unwrap());
        answer
    }

    fn put_manifest(
        &self,
        store: &mut Store,
        options: &Options,
        repo: &str,
        reference: &str,
    ) -> Response<Body> {
        let digest = Digest::of(&self.body);
        if reference.contains(':') && reference != digest.to_string() {
            return error(StatusCode::BAD_REQUEST, "DIGEST_INVALID");
        }
        let media_type = self.headers.get(header::CONTENT_TYPE).and_then(|t| t.to_str().ok());
        let (Some(media_type), Ok(json)) =
            (media_type, serde_json::from_slice::<Value>(&self.body))
        else {
            return error(StatusCode::BAD_REQUEST, "MANIFEST_INVALID");
        };
        if json.get("mediaType").is_some_and(|inside| inside != media_type) {
            return error(StatusCode::BAD_REQUEST, "MANIFEST_INVALID");
        }
        let held = store.repo(repo);
        let digests = |list: &Value| -> Vec<Value> {
            list.as_array().into_iter().flatten().map(|entry| entry["digest"].clone()).collect()
        };
        let has_blob = |digest: &Value| {
            let digest = digest.as_str().and_then(|digest| digest.parse().ok());
            digest.is_some_and(|digest: Digest| held.blobs.contains_key(&digest))
        };
        let has_child =
            |digest: &Value| digest.as_str().is_some_and(|d| held.manifest(d).is_some());
        let config = json.get("config").map(|config| config["digest"].clone());
        if !config.iter().chain(&digests(&json["layers"])).all(has_blob)
            || !digests(&json["manifests"]).iter().all(has_child)
        {
            return error(StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN");
        }
        held.push_manifest(media_type, self.body.clone());
        if !reference.contains(':') {
            held.tags.insert(reference.to_owned(), digest);
        }
        let mut headers = vec![
            ("location", format!("/v2/{repo}/manifests/{digest}")),
            (DIGEST, digest.to_string()),
        ];
        if let Some(subject) = json["subject"]["digest"].as_str().filter(|_| options.referrers_api)
        {
            headers.push(("oci-subject", subject.to_owned()));
        }
        empty(StatusCode::CREATED, &headers)
    }

    fn begin_upload(&self, store: &mut Store, repo: &str) -> Response<Body> {
        if let (Some(mount), Some(from)) = (self.parameter("mount"), self.parameter("from")) {
            let blob = mount.parse().ok().and_then(|d| store.repos.get(&from)?.blobs.get(&d));
            if let Some(blob) = blob.cloned() {
                return blob_created(repo, store.repo(repo).push_blob(blob));
            }
        }
        if let Some(digest) = self.parameter("digest") {
            return finish(store, repo, &digest, self.body.clone());
        }
        store.uploads_begun += 1;
        let id = format!("{}-{}", repo.replace('/', "."), store.uploads_begun);
        store.uploads.insert(id.clone(), Vec::new());
        // The query belongs to the address: clients must add to it, not replace it.
        empty(
            StatusCode::ACCEPTED,
            &[("location", format!("/v2/{repo}/blobs/uploads/{id}?_state=begun"))],
        )
    }

    fn append(&self, store: &mut Store, repo: &str, id: &str) -> Response<Body> {
        let Some(upload) = self.upload(store, id) else {
            return error(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN");
        };
        upload.extend_from_slice(&self.body);
        let headers = [
            ("location", format!("/v2/{repo}/blobs/uploads/{id}?_state=begun")),
            ("range", format!("0-{}", upload.len().saturating_sub(1))),
        ];
        empty(StatusCode::ACCEPTED, &headers)
    }

    fn finish_upload(&self, store: &mut Store, repo: &str, id: &str) -> Response<Body> {
        if self.upload(store, id).is_none() {
            return error(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN");
        }
        let mut bytes = store.uploads.remove(id).unwrap_or_default();
        bytes.extend_from_slice(&self.body);
        finish(store, repo, &self.parameter("digest").unwrap_or_default(), bytes.into())
    }

    fn upload<'s>(&self, store: &'s mut Store, id: &str) -> Option<&'s mut Vec<u8>> {
        self.parameter("_state").and_then(|_| store.uploads.get_mut(id))
    }

    fn referrers(
        &self,
        store: &Store,
        options: &Options,
        repo: &str,
        subject: &str,
    ) -> Response<Body> {
        if subject.parse::<Digest>().is_err() {
            return error(StatusCode::BAD_REQUEST, "DIGEST_INVALID");
        }
        let filter = self.parameter("artifactType");
        let held = store.repos.get(repo);
        let all = held.map(|repo| repo.referrers(subject, filter.as_deref())).unwrap_or_default();
        let from = self.parameter("from").and_then(|from| from.parse().ok()).unwrap_or(0);
        let size = options.page_size.unwrap_or(usize::MAX);
        let page: Vec<_> = all.iter().skip(from).take(size).collect();
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": page});
        let mut answer = content(StatusCode::OK, INDEX, index.to_string());
        if from + page.len() < all.len() {
            let mut next = form_urlencoded::Serializer::new(String::new());
            next.append_pair("from", &(from + page.len()).to_string());
            next.extend_pairs(filter.iter().map(|filter| ("artifactType", filter)));
            let link = format!("</v2/{repo}/referrers/{subject}?{}>; rel=\"next\"", next.finish());
            answer.headers_mut().insert(header::LINK, link.try_into().unwrap());
        }
        if filter.is_some() {
            answer.headers_mut().insert("oci-filters-applied", "artifactType".try_into().unwrap());
        }
        answer
    }
}

fn get_blob(store: &Store, repo: &str, digest: &str) -> Response<Body> {
    let wanted = digest.parse().ok();
    match wanted.and_then(|wanted| store.repos.get(repo)?.blobs.get(&wanted)) {
        None => error(StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
        Some(blob) => {
            let mut answer = content(StatusCode::OK, "application/octet-stream", blob.clone());
            answer.headers_mut().insert(DIGEST, digest.try_into().unwrap());
            answer
        }
    }
}

fn finish(store: &mut Store, repo: &str, digest: &str, bytes: Bytes) -> Response<Body> {
    if digest != Digest::of(&bytes).to_string() {
        return error(StatusCode::BAD_REQUEST, "DIGEST_INVALID");
    }
    blob_created(repo, store.repo(repo).push_blob(bytes))
}

fn blob_created(repo: &str, digest: Digest) -> Response<Body> {
    let location = format!("/v2/{repo}/blobs/{digest}");
    empty(StatusCode::CREATED, &[("location", location), (DIGEST, digest.to_string())])
}
