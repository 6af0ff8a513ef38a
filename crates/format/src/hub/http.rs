//! Requests: redirects that do not leak the token, and failures sorted by what to do about them.

use std::time::Duration;

use ureq::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, LOCATION, RANGE, RETRY_AFTER};
use ureq::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Body, Proxy};

use super::Settings;
use super::names::printable;
use crate::{Error, Result};

const REDIRECTS: usize = 10;
/// A host that has not answered by then is not there.
const LONGEST_CONNECT: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What a failed request means for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// 401 or 403.
    Denied,
    /// 404 or 410.
    NotFound,
    /// The server is there but cannot answer now: 408, 429, 5xx.
    Busy,
    /// No answer, or one that broke off.
    Broken,
    /// Anything that another attempt would not change.
    Refused,
}

/// A failed request. The text never holds the token or a signed address.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub kind: Kind,
    pub what: String,
    /// The pause that the server asked for.
    pub wait: Option<Duration>,
}

impl Failure {
    pub fn new(kind: Kind, what: impl Into<String>) -> Failure {
        Failure { kind, what: what.into(), wait: None }
    }

    /// Whether another attempt may succeed.
    pub fn again(&self) -> bool {
        matches!(self.kind, Kind::Busy | Kind::Broken)
    }
}

impl From<ureq::Error> for Failure {
    fn from(error: ureq::Error) -> Failure {
        match error {
            // These carry the address, which may be a signed one.
            ureq::Error::BadUri(_) => Failure::new(Kind::Refused, "the address is not valid"),
            ureq::Error::Http(_) => Failure::new(Kind::Refused, "the request is not valid HTTP"),
            other => {
                let mut what = printable(&other.to_string(), 200);
                if what.contains("certificate") {
                    what.push_str(" (in a network with its own certificates, point SSL_CERT_FILE at them)");
                }
                Failure::new(Kind::Broken, what)
            }
        }
    }
}

/// What the hub says about a file, besides sending it.
#[derive(Clone, Debug, Default)]
pub(super) struct Linked {
    /// The sha256 of a file in large-file storage.
    pub sha256: Option<String>,
    /// The entity tag of a small file.
    pub etag: Option<String>,
    pub size: Option<u64>,
    pub commit: Option<String>,
}

/// Scheme, host and port: who may see the token.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin(String, String, u16);

pub(super) struct Client {
    agent: Agent,
    origin: Origin,
    bearer: Option<HeaderValue>,
}

impl Client {
    pub fn new(settings: &Settings, token: Option<&str>) -> Result<Client> {
        let bad = |name: &str, what: String| Error::Hub { url: name.to_owned(), what };
        let uri: Uri = settings.endpoint.parse().map_err(|_| bad("HF_ENDPOINT", "not a URL".to_owned()))?;
        if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
            let what = "a password in the endpoint is not supported; use HF_TOKEN";
            return Err(bad("HF_ENDPOINT", what.to_owned()));
        }
        let origin = origin(&uri).ok_or_else(|| {
            let what = format!("expected http(s)://host, found {}", printable(&settings.endpoint, 120));
            bad("HF_ENDPOINT", what)
        })?;
        let bearer = token
            .map(|token| {
                let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                    .map_err(|_| bad("HF_TOKEN", "the token has characters that no token has".to_owned()))?;
                value.set_sensitive(true);
                Ok(value)
            })
            .transpose()?;
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            // Redirects are followed here, so that the token and the hub's headers are in our hands.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("airllm/", env!("CARGO_PKG_VERSION")))
            // A compressed answer would have another length than the file.
            .accept_encoding("identity")
            .max_idle_connections(settings.connections + 2)
            .max_idle_connections_per_host(settings.connections + 1)
            .timeout_resolve(Some(settings.timeout.min(LONGEST_CONNECT)))
            .timeout_connect(Some(settings.timeout.min(LONGEST_CONNECT)))
            .timeout_per_read(Some(settings.timeout))
            .timeout_per_write(Some(settings.timeout))
            .proxy(proxy(settings)?);
        if let Some(path) = &settings.certificates {
            let pem = std::fs::read(path).map_err(Error::io(path, "reading certificates"))?;
            let certificates: Vec<_> = ureq::tls::parse_pem(&pem)
                .filter_map(|item| match item {
                    Ok(PemItem::Certificate(certificate)) => Some(certificate),
                    _ => None,
                })
                .collect();
            if certificates.is_empty() {
                return Err(Error::malformed(path, "expected PEM certificates, found none"));
            }
            let roots = RootCerts::new_with_certs(&certificates);
            config = config.tls_config(TlsConfig::builder().root_certs(roots).build());
        }
        Ok(Client { agent: config.build().new_agent(), origin, bearer })
    }

    pub fn has_token(&self) -> bool {
        self.bearer.is_some()
    }

    /// Asks what a file is, without its content.
    pub fn head(&self, url: &str) -> std::result::Result<Linked, Failure> {
        let (_, linked) = self.follow(Method::HEAD, url, None)?;
        Ok(linked)
    }

    /// Fetches a short answer whole.
    pub fn text(&self, url: &str, limit: u64) -> std::result::Result<Vec<u8>, Failure> {
        let (response, _) = self.follow(Method::GET, url, None)?;
        let body = response.into_body().into_with_config().limit(limit).read_to_vec()?;
        Ok(body)
    }

    /// Opens the bytes `start..end` of a file of `size` bytes. The flag says whether the server sends just
    /// them; if not, the body begins at byte 0.
    pub fn range(
        &self,
        url: &str,
        (start, end, size): (u64, u64, u64),
    ) -> std::result::Result<(Response<Body>, Linked, bool), Failure> {
        let (response, linked) = self.follow(Method::GET, url, Some((start, end)))?;
        let headers = response.headers();
        let other = |found: String| {
            let what = format!("expected bytes {start} to {end} of {size}, the server sends {found}");
            Failure::new(Kind::Refused, what)
        };
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let text = header(headers, CONTENT_RANGE.as_str()).unwrap_or_default();
            let fits = content_range(&text)
                .is_some_and(|(first, total)| first == start && total.is_none_or(|t| t == size));
            if !fits {
                return Err(other(format!("{:?}", printable(&text, 80))));
            }
            return Ok((response, linked, true));
        }
        match number(headers, CONTENT_LENGTH.as_str()) {
            Some(length) if length != size => Err(other(format!("{length} bytes"))),
            _ => Ok((response, linked, false)),
        }
    }

    fn follow(
        &self,
        method: Method,
        url: &str,
        range: Option<(u64, u64)>,
    ) -> std::result::Result<(Response<Body>, Linked), Failure> {
        let mut url = url.to_owned();
        let mut linked = Linked::default();
        for _ in 0..REDIRECTS {
            let uri: Uri =
                url.parse().map_err(|_| Failure::new(Kind::Refused, "the address is not valid"))?;
            let mut request = Request::builder().method(method.clone()).uri(&uri);
            if let Some((start, end)) = range {
                request = request.header(RANGE, format!("bytes={start}-{}", end.saturating_sub(1)));
            }
            if let Some(bearer) = &self.bearer
                && origin(&uri).as_ref() == Some(&self.origin)
            {
                request = request.header(AUTHORIZATION, bearer);
            }
            let request = request.body(()).map_err(ureq::Error::from)?;
            let response = self.agent.run(request)?;
            let status = response.status();
            let headers = response.headers();
            linked.read(headers, status);
            if !status.is_redirection() {
                return match status {
                    StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok((response, linked)),
                    _ => Err(refusal(status, headers)),
                };
            }
            // The hub answers a HEAD with all there is to know; where the bytes lie does not matter.
            if method == Method::HEAD && linked.sha256.is_some() && linked.size.is_some() {
                return Ok((response, linked));
            }
            let target = header(headers, LOCATION.as_str())
                .ok_or_else(|| Failure::new(Kind::Refused, "a redirect without an address"))?;
            let next = join(&uri, &target)
                .ok_or_else(|| Failure::new(Kind::Refused, "a redirect to an address that is not valid"))?;
            if uri.scheme_str() == Some("https") && !next.starts_with("https:") {
                return Err(Failure::new(Kind::Refused, "a redirect from https to http"));
            }
            url = next;
        }
        Err(Failure::new(Kind::Refused, format!("more than {REDIRECTS} redirects")))
    }
}

impl Linked {
    /// The hub's own headers stand in its first answer; a storage server's entity tag means something else.
    fn read(&mut self, headers: &HeaderMap, status: StatusCode) {
        let last = status == StatusCode::OK;
        self.size = self
            .size
            .or_else(|| number(headers, "x-linked-size"))
            .or_else(|| number(headers, CONTENT_LENGTH.as_str()).filter(|_| last));
        self.commit = self.commit.take().or_else(|| header(headers, "x-repo-commit"));
        if self.etag.is_none() {
            let linked = header(headers, "x-linked-etag").map(|tag| tag_text(&tag));
            self.sha256 = linked.clone().filter(|tag| is_hex(tag, 64));
            self.etag = linked.or_else(|| {
                let own = header(headers, ETAG.as_str()).filter(|_| last)?;
                Some(tag_text(&own))
            });
        }
    }
}

/// Whether a text is `len` lower-case hexadecimal digits.
pub(super) fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn refusal(status: StatusCode, headers: &HeaderMap) -> Failure {
    let kind = match status.as_u16() {
        401 | 403 => Kind::Denied,
        404 | 410 => Kind::NotFound,
        408 | 429 | 500..=599 => Kind::Busy,
        _ => Kind::Refused,
    };
    let mut what = format!("the server says {}", status.as_u16());
    if let Some(reason) = status.canonical_reason() {
        what.push_str(&format!(" ({reason})"));
    }
    if let Some(text) = header(headers, "x-error-message") {
        what.push_str(&format!(": {}", printable(&text, 200)));
    }
    let wait =
        number(headers, RETRY_AFTER.as_str()).map(|seconds| Duration::from_secs(seconds).min(LONGEST_PAUSE));
    Failure { kind, what, wait }
}

/// The pause before attempt `attempt` (from 1), unless the server asked for a longer one.
pub(super) fn pause(backoff: Duration, attempt: u32, wait: Option<Duration>) -> Duration {
    let doubled = backoff.saturating_mul(1u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX));
    doubled.max(wait.unwrap_or_default()).min(LONGEST_PAUSE)
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.trim().to_owned())
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    header(headers, name)?.parse().ok()
}

fn tag_text(tag: &str) -> String {
    tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"').to_owned()
}

/// First byte and total length of `bytes 0-9/10`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (span, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = span.split_once('-')?;
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    Some((first.trim().parse().ok()?, total))
}

fn origin(uri: &Uri) -> Option<Origin> {
    let scheme = uri.scheme_str()?;
    let default = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    let host = uri.host().filter(|h| !h.is_empty())?.to_ascii_lowercase();
    Some(Origin(scheme.to_owned(), host, uri.port_u16().unwrap_or(default)))
}

/// The address that a `Location` header means, seen from `base` (RFC 3986, section 5.2, without `..`).
fn join(base: &Uri, location: &str) -> Option<String> {
    let location = location.split('#').next()?;
    let root = format!("{}://{}", base.scheme_str()?, base.authority()?);
    let lower = location.get(..8).unwrap_or(location).to_ascii_lowercase();
    let url = if lower.starts_with("http://") || lower.starts_with("https://") {
        // The scheme is compared below as text, so it is lowered here.
        let (scheme, rest) = location.split_once("://")?;
        format!("{}://{rest}", scheme.to_ascii_lowercase())
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{}://{rest}", base.scheme_str()?)
    } else if location.starts_with('/') {
        format!("{root}{location}")
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{root}{folder}/{location}")
    };
    let uri: Uri = url.parse().ok()?;
    origin(&uri)?;
    Some(url)
}

fn proxy(settings: &Settings) -> Result<Option<Proxy>> {
    let Some(text) = &settings.proxy else {
        return Ok(None);
    };
    // The text may hold a password, so it is not repeated.
    let bad = |_| Error::Hub {
        url: "proxy".to_owned(),
        what: "the proxy setting is not valid; expected http://host:port or socks5://host:port".to_owned(),
    };
    let plain = Proxy::new(text).map_err(bad)?;
    let mut builder = Proxy::builder(plain.protocol())
        .host(plain.host())
        .port(plain.port())
        .resolve_target(plain.resolve_target());
    if let Some(name) = plain.username() {
        builder = builder.username(name);
    }
    if let Some(password) = plain.password() {
        builder = builder.password(password);
    }
    for host in settings.no_proxy.iter().flat_map(|list| list.split(',')) {
        builder = builder.no_proxy(host.trim());
    }
    builder.build().map(Some).map_err(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        let base: Uri = "https://hub.example:444/a/b?x=1".parse().unwrap();
        let to = |location: &str| join(&base, location);
        assert_eq!(to("/c?d=1").unwrap(), "https://hub.example:444/c?d=1");
        assert_eq!(to("c").unwrap(), "https://hub.example:444/a/c");
        assert_eq!(to("//other/c").unwrap(), "https://other/c");
        assert_eq!(to("HTTP://other/c#frag").unwrap(), "http://other/c");
        assert_eq!(to("http://"), None);
        assert_eq!(to("ftp://other/c").unwrap(), "https://hub.example:444/a/ftp://other/c");
    }

    #[test]
    fn origins_differ_by_scheme_host_and_port() {
        let of = |text: &str| origin(&text.parse().unwrap());
        assert_eq!(of("https://Hub.example/x"), of("https://hub.example:443"));
        assert_ne!(of("https://hub.example"), of("http://hub.example"));
        assert_ne!(of("http://hub.example"), of("http://hub.example:81"));
        assert_ne!(of("http://hub.example"), of("http://hub.example.evil"));
        assert_eq!(of("ftp://hub.example"), None);
    }

    #[test]
    fn ranges_and_pauses() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        assert_eq!(content_range("items 5-9/10"), None);
        let ms = Duration::from_millis;
        assert_eq!(pause(ms(10), 3, None), ms(40));
        assert_eq!(pause(ms(10), 1, Some(ms(500))), ms(500));
        assert_eq!(pause(ms(10), 4000, None), LONGEST_PAUSE);
    }

    #[test]
    fn bad_endpoints_tokens_and_proxies_are_refused() {
        let refused = |change: &dyn Fn(&mut Settings), token: Option<&str>| {
            let mut settings = Settings::new("/h");
            change(&mut settings);
            Client::new(&settings, token).err().map(|e| e.to_string())
        };
        assert!(refused(&|_| (), Some("hf_x")).is_none());
        assert!(refused(&|s| s.endpoint = "hf-mirror.com".into(), None).unwrap().contains("HF_ENDPOINT"));
        assert!(refused(&|s| s.endpoint = "ftp://x".into(), None).unwrap().contains("http(s)"));
        let secret = refused(&|s| s.endpoint = "https://u:pa55@x".into(), None).unwrap();
        assert!(!secret.contains("pa55"), "{secret}");
        let token = refused(&|_| (), Some("hf_\nx")).unwrap();
        assert!(token.contains("HF_TOKEN") && !token.contains("hf_\n"), "{token}");
        let proxy = refused(&|s| s.proxy = Some("gopher://u:pa55@x".into()), None).unwrap();
        assert!(!proxy.contains("pa55"), "{proxy}");
        assert!(refused(&|s| s.proxy = Some("socks5h://localhost:1080".into()), None).is_none());
        assert!(refused(&|s| s.certificates = Some("/nowhere.pem".into()), None).is_some());
    }
}
