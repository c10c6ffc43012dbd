//! The console: pages that a voter serves to browsers. They only read, through the same API as everybody else.
//!
//! Must stay true: a page needs nothing from any other machine, and may run or load nothing else; text from the cluster is
//! never markup (`console/dom.js`); what is encrypted or for its owner alone is not shown (`console/words.js`).
//! The files in `console/` are served as they are written: there is nothing to build.

use axum::Router;
use axum::body::Bytes;
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;

use crate::answer::Fault;
use crate::api::Api;
use crate::problem::{self, Code};

/// Where it is.
const AT: &str = "/console/";

/// What a page may do: run, load and ask what comes from the voter that served it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A file of it: name, kind, content.
type File = (&'static str, &'static str, &'static str);

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// All of it. The first one is the page.
const FILES: [File; 18] = [
    ("", "text/html; charset=utf-8", include_str!("../console/index.html")),
    ("console.css", "text/css; charset=utf-8", include_str!("../console/console.css")),
    ("icon.svg", "image/svg+xml", include_str!("../console/icon.svg")),
    ("console.js", SCRIPT, include_str!("../console/console.js")),
    ("address.js", SCRIPT, include_str!("../console/address.js")),
    ("config.js", SCRIPT, include_str!("../console/config.js")),
    ("difference.js", SCRIPT, include_str!("../console/difference.js")),
    ("dom.js", SCRIPT, include_str!("../console/dom.js")),
    ("events.js", SCRIPT, include_str!("../console/events.js")),
    ("keys.js", SCRIPT, include_str!("../console/keys.js")),
    ("lines.js", SCRIPT, include_str!("../console/lines.js")),
    ("member.js", SCRIPT, include_str!("../console/member.js")),
    ("overview.js", SCRIPT, include_str!("../console/overview.js")),
    ("quorum.js", SCRIPT, include_str!("../console/quorum.js")),
    ("running.js", SCRIPT, include_str!("../console/running.js")),
    ("state.js", SCRIPT, include_str!("../console/state.js")),
    ("voter.js", SCRIPT, include_str!("../console/voter.js")),
    ("words.js", SCRIPT, include_str!("../console/words.js")),
];

/// Returns the console, with the way to it from the top.
pub(crate) fn routes() -> Router<Api> {
    let top = || async { Redirect::to(AT) };
    Router::new()
        .route("/", get(top))
        .route("/console", get(top))
        .route(AT, get(|headers: HeaderMap| async move { file(&headers, "") }))
        .route(
            "/console/{name}",
            get(|Path(name): Path<String>, headers: HeaderMap| async move { file(&headers, &name) }),
        )
}

fn file(headers: &HeaderMap, name: &str) -> Response {
    let Some((_, kind, text)) = FILES.iter().find(|(found, ..)| *found == name) else {
        return Fault::from(problem::of(Code::Route, format!("there is no route {AT}{name}"))).into_response();
    };
    let tag = format!("\"{}\"", &blake3::hash(text.as_bytes()).to_hex()[..16]);
    let known = headers.get(header::IF_NONE_MATCH).and_then(|tag| tag.to_str().ok());
    let always: [(HeaderName, &str); 5] = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // A voter that was upgraded serves other files: a browser asks each time, and is mostly told that nothing changed.
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_TYPE, kind),
    ];
    let tagged = [(header::ETAG, tag.clone())];
    if known == Some(tag.as_str()) {
        return (StatusCode::NOT_MODIFIED, always, tagged).into_response();
    }
    (always, tagged, Bytes::from_static(text.as_bytes())).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Returns what stands between `from` and a quotation mark, each time.
    fn named<'a>(text: &'a str, from: &str) -> BTreeSet<&'a str> {
        text.split(from).skip(1).filter_map(|rest| rest.split('"').next()).collect()
    }

    #[test]
    fn the_pages_name_files_that_there_are_and_nothing_elsewhere() {
        let all: BTreeSet<&str> = FILES.iter().map(|(name, ..)| *name).filter(|name| !name.is_empty()).collect();
        let mut used: BTreeSet<&str> = named(FILES[0].2, "src=\"");
        used.extend(named(FILES[0].2, "href=\"").into_iter().filter(|target| !target.starts_with("#/")));
        for (name, _, text) in FILES {
            used.extend(named(text, "from \"./"));
            let elsewhere = text.replace("http://www.w3.org/2000/svg", "");
            for foreign in ["http://", "https://", "\"//", "@import", "url(", "innerHTML = ", "eval(", "style="] {
                assert!(!elsewhere.contains(foreign), "{name} has {foreign}");
            }
            assert!(!text.contains("<script>") && !text.contains("<style"), "{name} has what the policy forbids");
        }
        assert_eq!(used, all);
    }
}
