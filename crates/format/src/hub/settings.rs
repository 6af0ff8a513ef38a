//! Where the cache is and which server is asked.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::{Error, Result};

/// The server that is asked when nothing else is said.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Everything a [`Hub`](super::Hub) needs to know. Plain values: nothing in this crate reads the environment.
///
/// The names of the variables and the order in which they win are those of Hugging Face's own tools, so
/// that one cache serves both.
#[derive(Clone)]
#[non_exhaustive]
pub struct Settings {
    /// Folder of the tools' common state (`HF_HOME`, else `$XDG_CACHE_HOME/huggingface`, else
    /// `~/.cache/huggingface`).
    pub home: PathBuf,
    /// Folder of the downloaded repositories (`HF_HUB_CACHE`, else `home/hub`).
    pub cache: PathBuf,
    /// The server, with scheme and without a slash at the end (`HF_ENDPOINT`).
    pub endpoint: String,
    /// The access token (`HF_TOKEN`). Sent to the endpoint's own host only; never printed.
    pub token: Option<String>,
    /// File that holds the token if `token` is empty (`HF_TOKEN_PATH`, else `home/token`).
    pub token_file: Option<PathBuf>,
    /// Use what is in the cache and open no connection (`HF_HUB_OFFLINE`).
    pub offline: bool,
    /// Proxy for all connections (`HTTPS_PROXY`, `ALL_PROXY`, `HTTP_PROXY`), possibly with a password.
    pub proxy: Option<String>,
    /// Hosts that are reached without the proxy, separated by commas (`NO_PROXY`).
    pub no_proxy: Option<String>,
    /// PEM file of the certificates to trust instead of the built-in list (`SSL_CERT_FILE`,
    /// `REQUESTS_CA_BUNDLE`), for networks with their own authority.
    pub certificates: Option<PathBuf>,
    /// Requests that run at the same time, 1 to 64.
    pub connections: usize,
    /// Bytes that one request asks for. At least 1.
    pub segment: u64,
    /// How long a connection may stay silent (`HF_HUB_DOWNLOAD_TIMEOUT`, seconds). A host that cannot be
    /// connected to within 10 seconds counts as not there, whatever this says.
    pub timeout: Duration,
    /// How often in a row a request may fail without a new byte before the download is given up.
    pub retries: u32,
    /// The pause after the first failure; it doubles with each further one.
    pub backoff: Duration,
}

impl Settings {
    /// Settings with this cache folder and the built-in endpoint, without a token.
    pub fn new(home: impl Into<PathBuf>) -> Settings {
        let home = home.into();
        Settings {
            cache: home.join("hub"),
            home,
            endpoint: DEFAULT_ENDPOINT.to_owned(),
            token: None,
            token_file: None,
            offline: false,
            proxy: None,
            no_proxy: None,
            certificates: None,
            connections: 8,
            segment: 64 << 20,
            timeout: Duration::from_secs(30),
            retries: 5,
            backoff: Duration::from_millis(500),
        }
    }

    /// Reads the settings from variables, which the caller looks up. A variable that is empty counts as unset.
    ///
    /// Fails if no variable says where the cache is.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Settings> {
        let get = |name: &str| var(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let any = |names: &[&str]| names.iter().find_map(|n| get(n));
        let user = get("HOME").or_else(|| get("USERPROFILE"));
        // A shell leaves `~` alone inside quotes; the other tools expand it too.
        let path = |text: String| match (text.strip_prefix("~/"), &user) {
            (Some(rest), Some(user)) => PathBuf::from(user).join(rest),
            _ => PathBuf::from(text),
        };
        let cache = any(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).map(path);
        let home = get("HF_HOME")
            .map(path)
            .or_else(|| get("XDG_CACHE_HOME").map(|dir| path(dir).join("huggingface")))
            .or_else(|| user.as_ref().map(|dir| PathBuf::from(dir).join(".cache/huggingface")))
            .or_else(|| cache.clone())
            .ok_or_else(|| Error::Hub {
                url: "cache folder".to_owned(),
                what:
                    "none of HF_HOME, HF_HUB_CACHE, XDG_CACHE_HOME and HOME is set; set HF_HOME to a folder \
                       with room for models"
                        .to_owned(),
            })?;

        let mut settings = Settings::new(home);
        settings.cache = cache.unwrap_or(settings.cache);
        if let Some(endpoint) = get("HF_ENDPOINT") {
            settings.endpoint = endpoint.trim_end_matches('/').to_owned();
        }
        let implicit = !get("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(|v| truthy(&v));
        if implicit {
            settings.token = any(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]);
            settings.token_file =
                get("HF_TOKEN_PATH").map(path).or_else(|| Some(settings.home.join("token")));
        }
        settings.offline = any(&["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]).is_some_and(|v| truthy(&v));
        settings.proxy =
            any(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"]);
        settings.no_proxy = any(&["NO_PROXY", "no_proxy"]);
        settings.certificates = any(&["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]).map(path);
        if let Some(seconds) = get("HF_HUB_DOWNLOAD_TIMEOUT") {
            settings.timeout = seconds
                .parse()
                .ok()
                .filter(|s| (1..=86_400).contains(s))
                .map(Duration::from_secs)
                .ok_or_else(|| Error::Hub {
                    url: "HF_HUB_DOWNLOAD_TIMEOUT".to_owned(),
                    what: format!("expected whole seconds from 1 to 86400, found {seconds:?}"),
                })?;
        }
        Ok(settings)
    }
}

/// Shows everything but the token and the proxy, which may carry a password.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = |set: bool| if set { "set" } else { "not set" };
        f.debug_struct("Settings")
            .field("home", &self.home)
            .field("cache", &self.cache)
            .field("endpoint", &self.endpoint)
            .field("token", &hidden(self.token.is_some()))
            .field("token_file", &self.token_file)
            .field("offline", &self.offline)
            .field("proxy", &hidden(self.proxy.is_some()))
            .field("no_proxy", &self.no_proxy)
            .field("certificates", &self.certificates)
            .field("connections", &self.connections)
            .field("segment", &self.segment)
            .field("timeout", &self.timeout)
            .field("retries", &self.retries)
            .field("backoff", &self.backoff)
            .finish()
    }
}

fn truthy(value: &str) -> bool {
    matches!(value.to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(list: &[(&str, &str)]) -> Result<Settings> {
        Settings::from_vars(|name| list.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn folders_follow_the_usual_order() {
        let plain = vars(&[("HOME", "/home/u")]).unwrap();
        assert_eq!(plain.home, PathBuf::from("/home/u/.cache/huggingface"));
        assert_eq!(plain.cache, PathBuf::from("/home/u/.cache/huggingface/hub"));
        assert_eq!(plain.endpoint, DEFAULT_ENDPOINT);
        assert_eq!(plain.token_file, Some(plain.home.join("token")));

        let xdg = vars(&[("HOME", "/home/u"), ("XDG_CACHE_HOME", "/x")]).unwrap();
        assert_eq!(xdg.cache, PathBuf::from("/x/huggingface/hub"));
        let home = vars(&[("HOME", "/home/u"), ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "~/hf")]).unwrap();
        assert_eq!(home.cache, PathBuf::from("/home/u/hf/hub"));
        let cache = vars(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h")]).unwrap();
        assert_eq!((cache.cache, cache.home), ("/c".into(), "/h".into()));
    }

    #[test]
    fn no_folder_is_an_error_that_says_what_to_set() {
        let error = vars(&[("HF_TOKEN", "hf_x"), ("HOME", "")]).unwrap_err();
        assert!(error.to_string().contains("HF_HOME"), "{error}");
    }

    #[test]
    fn flags_and_endpoint() {
        let set = vars(&[
            ("HF_HOME", "/h"),
            ("HF_ENDPOINT", "https://hf-mirror.com/"),
            ("HF_HUB_OFFLINE", "TRUE"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "7"),
            ("HF_TOKEN", " hf_secret\n"),
            ("HF_TOKEN_PATH", "/t"),
        ])
        .unwrap();
        assert_eq!(set.endpoint, "https://hf-mirror.com");
        assert!(set.offline);
        assert_eq!(set.timeout, Duration::from_secs(7));
        assert_eq!(set.token.as_deref(), Some("hf_secret"));
        assert_eq!(set.token_file, Some("/t".into()));
        assert!(!format!("{set:?}").contains("secret"));

        let unset = vars(&[("HF_HOME", "/h"), ("HF_HUB_OFFLINE", "0")]).unwrap();
        assert!(!unset.offline && unset.token.is_none());
        let barred =
            vars(&[("HF_HOME", "/h"), ("HF_TOKEN", "hf_x"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).unwrap();
        assert!(barred.token.is_none() && barred.token_file.is_none());
        assert!(vars(&[("HF_HOME", "/h"), ("HF_HUB_DOWNLOAD_TIMEOUT", "soon")]).is_err());
    }
}
