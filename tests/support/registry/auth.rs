//! Basic authentication, and the token server of the distribution specification
//! ("Token Authentication" and "OAuth2 token" of the Distribution project).

use std::{collections::HashMap, sync::Mutex};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, Method, Response, StatusCode, header};
use serde_json::json;
use url::form_urlencoded;

use super::api::{Body, error, json_answer};

pub(super) const TOKEN_PATH: &str = "/token";

#[derive(PartialEq)]
pub(super) enum Scheme {
    Basic,
    Bearer,
}

pub(super) struct Auth {
    pub(super) scheme: Scheme,
    pub(super) user: String,
    pub(super) password: String,
    pub(super) refresh_token: String,
    /// The token server gives tokens to pull to those who give no credentials.
    pub(super) anonymous: bool,
    /// `expires_in` of an answer, in seconds; nothing expires by itself.
    pub(super) lifetime: u32,
    /// Another realm than our own.
    pub(super) realm: Option<String>,
    /// Tokens that are good now, with what they are for.
    pub(super) tokens: Mutex<HashMap<String, Vec<String>>>,
    pub(super) issued: Mutex<usize>,
}

impl Auth {
    pub(super) fn new(scheme: Scheme, user: &str, password: &str) -> Self {
        Self {
            scheme,
            user: user.to_owned(),
            password: password.to_owned(),
            refresh_token: "refresh-".to_owned() + password,
            anonymous: false,
            lifetime: 300,
            realm: None,
            tokens: Mutex::default(),
            issued: Mutex::default(),
        }
    }

    /// The challenge if this request may not do `scope` (`repository:app:pull`; empty for
    /// the base).
    pub(super) fn refusal(
        &self,
        headers: &HeaderMap,
        url: &str,
        scope: &str,
    ) -> Option<Response<Body>> {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let challenge = match self.scheme {
            Scheme::Basic if given == Some(&self.basic()) => return None,
            Scheme::Basic => "Basic realm=\"registry\"".to_owned(),
            Scheme::Bearer => {
                let token = given.and_then(|value| value.strip_prefix("Bearer "));
                let granted = token.and_then(|token| {
                    let tokens = self.tokens.lock().unwrap();
                    tokens.get(token).map(|granted| scope.is_empty() || covers(granted, scope))
                });
                let why = match granted {
                    Some(true) => return None,
                    Some(false) => ",error=\"insufficient_scope\"",
                    None if token.is_some() => ",error=\"invalid_token\"",
                    None => "",
                };
                let realm = self.realm.clone().unwrap_or_else(|| format!("{url}{TOKEN_PATH}"));
                let service = service(url);
                let scope = match scope {
                    "" => String::new(),
                    scope => format!(",scope=\"{scope}\""),
                };
                format!("Bearer realm=\"{realm}\",service=\"{service}\"{scope}{why}")
            }
        };
        let mut answer = error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED");
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, challenge.try_into().unwrap());
        Some(answer)
    }

    fn basic(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{}:{}", self.user, self.password)))
    }

    /// A token for these scopes (`repository:app:pull,push`).
    pub(super) fn issue(&self, scopes: Vec<String>) -> String {
        let mut issued = self.issued.lock().unwrap();
        *issued += 1;
        let token = format!("token-{}", *issued);
        self.tokens.lock().unwrap().insert(token.clone(), scopes);
        token
    }

    /// The token server: GET with Basic or nothing, POST with an OAuth2 form.
    pub(super) fn token(
        &self,
        method: &Method,
        query: &str,
        headers: &HeaderMap,
        body: &[u8],
        url: &str,
    ) -> Response<Body> {
        let bad = |why| json_answer(StatusCode::BAD_REQUEST, &json!({"error": why}));
        let denied = || error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED");
        let source = if method == Method::POST { body } else { query.as_bytes() };
        let fields: Vec<(String, String)> = form_urlencoded::parse(source).into_owned().collect();
        let field = |name: &str| fields.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str());
        if field("service") != Some(service(url)) {
            return bad("unknown service");
        }
        let mut scopes: Vec<String> = fields
            .iter()
            .filter(|(name, _)| name == "scope")
            .flat_map(|(_, value)| value.split(' ').map(str::to_owned))
            .collect();
        if method == Method::POST {
            if headers.get(header::CONTENT_TYPE).is_none_or(|t| t != FORM) {
                return bad("not a form");
            }
            if field("client_id").is_none_or(str::is_empty) {
                return bad("client_id is missing");
            }
            let proven = match field("grant_type") {
                Some("refresh_token") => field("refresh_token") == Some(&self.refresh_token),
                Some("password") => {
                    field("username") == Some(&self.user)
                        && field("password") == Some(&self.password)
                }
                _ => return bad("unsupported_grant_type"),
            };
            if !proven {
                return denied();
            }
            let scope = scopes.join(" ");
            let token = self.issue(scopes);
            return json_answer(
                StatusCode::OK,
                &json!({"access_token": token, "scope": scope, "expires_in": self.lifetime}),
            );
        }
        match headers.get(header::AUTHORIZATION) {
            Some(given) if given.as_bytes() == self.basic().as_bytes() => {}
            None if self.anonymous => {
                scopes.retain(|scope| covers(std::slice::from_ref(scope), &to_pull(scope)));
                scopes.iter_mut().for_each(|scope| *scope = to_pull(scope));
            }
            _ => return denied(),
        }
        let token = self.issue(scopes);
        json_answer(StatusCode::OK, &json!({"token": token, "expires_in": self.lifetime}))
    }
}

const FORM: &str = "application/x-www-form-urlencoded";

/// The name of the service in tokens: host and port.
fn service(url: &str) -> &str {
    url.split_once("//").map_or(url, |(_, host)| host)
}

/// The same scope with the one action `pull`.
fn to_pull(scope: &str) -> String {
    let on = scope.rsplit_once(':').map_or(scope, |(on, _)| on);
    format!("{on}:pull")
}

/// Whether one of these scopes allows the one action that `wanted` names.
fn covers(granted: &[String], wanted: &str) -> bool {
    let (wanted, action) = wanted.rsplit_once(':').unwrap();
    granted.iter().any(|scope| {
        let scope = scope.rsplit_once(':');
        scope.is_some_and(|(on, actions)| on == wanted && actions.split(',').any(|a| a == action))
    })
}
