//! One list of all objects of a kind.

use http::{Method, StatusCode};

use super::{
    client::Server,
    failure::{self, Failure},
    kinds::Kind,
    wire::{self, Item},
};

/// How many objects a page is asked to hold.
const PAGE: usize = 500;
/// Most pages of a list.
const MAX_PAGES: usize = 1000;
/// Most objects of a kind.
pub(super) const MAX_OBJECTS: usize = 20_000;

/// All objects of a kind, as they were at this version.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) items: Vec<Item>,
    pub(super) version: u64,
}

/// Lists a kind as it is now: without a version in the question, no server may answer with less
/// than what any reader was told before.
pub(super) async fn list(server: &Server, kind: &Kind) -> Result<Listed, Failure> {
    let mut listed = Listed { items: Vec::new(), version: 0 };
    let mut more = String::new();
    for number in 1.. {
        let path = match &*more {
            "" => format!("{}?limit={PAGE}", kind.path()),
            more => format!("{}?limit={PAGE}&continue={more}", kind.path()),
        };
        let answer = server.send(Method::GET, &path, None).await?;
        let (address, status, after) = (answer.address.clone(), answer.status, answer.after);
        if status != StatusCode::OK {
            answer.discard(server.times.answer).await;
            return Err(failure::of_status(&address, kind, status, after));
        }
        let body = answer.whole(server.times.answer).await.inspect_err(|_| server.forget())?;
        let broken = |why: &str| failure::broken(&address, kind, "a list", why);
        let page = wire::page(kind, &body).map_err(|why| broken(&why))?;
        if number > 1 && page.version != listed.version {
            return Err(broken("its pages are of different times"));
        }
        listed.version = page.version;
        listed.items.extend(page.items);
        if listed.items.len() > MAX_OBJECTS {
            return Err(broken(&format!("it has more than {MAX_OBJECTS} objects")));
        }
        let Some(token) = page.more else { break };
        if number == MAX_PAGES {
            return Err(broken(&format!("it has more than {MAX_PAGES} pages")));
        }
        more = token;
    }
    Ok(listed)
}
