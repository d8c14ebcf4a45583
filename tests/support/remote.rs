//! Pushes to any registry over HTTP.

use bytes::Bytes;
use http::{StatusCode, header};
use portcullis::image::Digest;
use reqwest::{Certificate, Client, Response, redirect};
use url::Url;

/// A registry and a client that may push to it.
pub(crate) struct Remote {
    pub(crate) url: String,
    pub(crate) client: Client,
}

impl Remote {
    /// A client that trusts only this CA (PEM), where one is given, uses no proxy and follows
    /// no redirect.
    pub(crate) fn new(url: &str, ca: Option<&str>) -> Self {
        let builder = Client::builder().no_proxy().redirect(redirect::Policy::none());
        let roots = ca.map(|pem| Certificate::from_pem(pem.as_bytes()).unwrap());
        let builder = match roots {
            Some(root) => builder.tls_certs_only([root]),
            None => builder,
        };
        Self { url: url.to_owned(), client: builder.build().unwrap() }
    }

    /// Begins an upload; the address to send the bytes to.
    pub(crate) async fn begin_upload(&self, repo: &str) -> Url {
        let url = format!("{}/v2/{repo}/blobs/uploads/", self.url);
        let answer = self.client.post(url).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::ACCEPTED, "POST for an upload to {repo}");
        location(&answer)
    }

    /// Sends the last bytes of an upload and its digest.
    pub(crate) async fn finish_upload(&self, mut at: Url, digest: &str, rest: Bytes) -> Response {
        at.query_pairs_mut().append_pair("digest", digest);
        let put = self.client.put(at).header(header::CONTENT_TYPE, "application/octet-stream");
        put.body(rest).send().await.unwrap()
    }

    pub(crate) async fn push_blob(&self, repo: &str, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        let at = self.begin_upload(repo).await;
        let answer = self.finish_upload(at, &digest.to_string(), bytes).await;
        assert_eq!(answer.status(), StatusCode::CREATED, "blob {digest} to {repo}");
        digest
    }

    /// Sends a manifest; the answer is the caller's to judge.
    pub(crate) async fn put_manifest(
        &self,
        repo: &str,
        reference: &str,
        media_type: &str,
        bytes: impl Into<Bytes>,
    ) -> Response {
        let url = format!("{}/v2/{repo}/manifests/{reference}", self.url);
        let put = self.client.put(url).header(header::CONTENT_TYPE, media_type);
        put.body(bytes.into()).send().await.unwrap()
    }
}

/// The `Location` of an answer, which may be relative.
pub(crate) fn location(answer: &Response) -> Url {
    let location = answer.headers()[header::LOCATION].to_str().unwrap();
    answer.url().join(location).unwrap()
}
