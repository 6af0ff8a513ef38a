//! The one place where the libraries look at the environment.
//!
//! No other library code reads environment variables: everything else takes what it needs as
//! arguments. [`AutoModel::from_pretrained`](crate::AutoModel::from_pretrained) and
//! [`Builder::default`](crate::Builder) look here once, so that a program gets the places its user
//! expects without code of its own; a program that wants other rules sets them on the builder.
//!
//! | variable | says |
//! |---|---|
//! | `AIRLLM_HOME` | where prepared shards are cached; else `XDG_CACHE_HOME/airllm`, else `~/.cache/airllm` |
//! | `HF_HOME`, `HF_HUB_CACHE` | where downloads are kept |
//! | `HF_ENDPOINT` | the server to download from |
//! | `HF_TOKEN` | the token for models that ask for one |
//! | `HF_HUB_OFFLINE` | 1: never use the network |

use std::ffi::OsString;
use std::path::PathBuf;

/// A variable of the process's environment; `None` when unset, empty or not valid UTF-8.
pub fn var(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The folder for prepared shards, from the environment of this process.
pub fn home() -> Option<PathBuf> {
    home_from(|name| std::env::var_os(name))
}

/// The folder for prepared shards, by the rules above, from any set of variables.
///
/// The XDG rules want absolute paths and ignore relative ones; `AIRLLM_HOME` may be relative. `None`
/// when nothing is set, not even `HOME`.
///
/// ```
/// let home = airllm::env::home_from(|name| (name == "HOME").then(|| "/home/ann".into()));
/// assert_eq!(home, Some("/home/ann/.cache/airllm".into()));
/// ```
pub fn home_from(var: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name: &str| var(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    path("AIRLLM_HOME")
        .or_else(|| path("XDG_CACHE_HOME").filter(|p| p.is_absolute()).map(|p| p.join("airllm")))
        .or_else(|| path("HOME").map(|p| p.join(".cache").join("airllm")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_the_rules() {
        let home = |vars: &[(&str, &str)]| {
            let find = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into());
            home_from(find).map(|p| p.display().to_string())
        };
        let all = [("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("AIRLLM_HOME", "a")];
        assert_eq!(home(&all).unwrap(), "a");
        assert_eq!(home(&all[..2]).unwrap(), "/x/airllm");
        assert_eq!(home(&all[..1]).unwrap(), "/h/.cache/airllm");
        assert_eq!(home(&[("HOME", "/h"), ("XDG_CACHE_HOME", "rel")]).unwrap(), "/h/.cache/airllm");
        assert_eq!(home(&[("HOME", "/h"), ("AIRLLM_HOME", "")]).unwrap(), "/h/.cache/airllm");
        assert_eq!(home(&[]), None);
    }
}
