//! Names that come from people and servers: model ids, revisions, file names.

use std::fmt;

use crate::{Error, Result};

/// The name of a model on the hub: `org/name`, or a bare `name` as a few old models have.
///
/// ```
/// use airllm_format::hub::RepoId;
///
/// let (id, revision) = RepoId::parse("Qwen/Qwen2.5-0.5B@v1")?;
/// assert_eq!(id.to_string(), "Qwen/Qwen2.5-0.5B");
/// assert_eq!(revision.as_deref(), Some("v1"));
/// assert!(RepoId::parse("../etc/passwd").is_err());
/// # Ok::<(), airllm_format::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RepoId {
    org: Option<String>,
    name: String,
}

impl RepoId {
    /// Takes `org/name` or `org/name@revision` apart. Refuses anything that could not be a model's name,
    /// so that an id never leaves the cache folder or the server's models.
    pub fn parse(text: &str) -> Result<(RepoId, Option<String>)> {
        let refuse = |what: &str| Error::Hub {
            url: printable(text, 120),
            what: format!("not a model id: {what}; expected org/name or org/name@revision"),
        };
        let (path, revision) = match text.split_once('@') {
            Some((path, revision)) => (path, Some(revision)),
            None => (text, None),
        };
        if let Some(revision) = revision {
            check_revision(revision).map_err(|what| refuse(&what))?;
        }
        let mut parts: Vec<&str> = path.split('/').collect();
        if parts.len() > 2 {
            return Err(refuse("it has more than two parts"));
        }
        for part in &parts {
            if part.is_empty() {
                return Err(refuse("a part is empty"));
            }
            if part.len() > 96 {
                return Err(refuse("a part is longer than 96 characters"));
            }
            let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if !part.chars().all(allowed) {
                return Err(refuse("only letters, digits and - _ . may be used"));
            }
            // `--` joins the parts of a folder's name in the cache.
            if part.contains("--") || part.contains("..") {
                return Err(refuse("`--` and `..` may not be used"));
            }
            if part.starts_with(['-', '.']) || part.ends_with(['-', '.']) {
                return Err(refuse("a part may not begin or end with - or ."));
            }
        }
        let name = parts.pop().unwrap_or_default().to_owned();
        let org = parts.pop().map(str::to_owned);
        Ok((RepoId { org, name }, revision.map(str::to_owned)))
    }

    /// The folder of this model in the cache: `models--org--name`.
    pub fn folder(&self) -> String {
        match &self.org {
            Some(org) => format!("models--{org}--{}", self.name),
            None => format!("models--{}", self.name),
        }
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.org {
            Some(org) => write!(f, "{org}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// Checks a branch, tag, commit or `refs/pr/1`. It becomes a path in the cache.
pub(super) fn check_revision(revision: &str) -> std::result::Result<(), String> {
    check_path(revision).map_err(|what| format!("the revision {}: {what}", printable(revision, 80)))
}

/// Checks the name of a file that a server told, before it becomes a path.
pub(super) fn check_path(name: &str) -> std::result::Result<(), String> {
    if name.is_empty() || name.len() > 512 {
        return Err("the name is empty or longer than 512 bytes".to_owned());
    }
    if name.chars().any(|c| c.is_control() || c == '\\') {
        return Err("the name has control characters or backslashes".to_owned());
    }
    if name.starts_with('/') || name.as_bytes().get(1) == Some(&b':') {
        return Err("the name is an absolute path".to_owned());
    }
    if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err("the name has an empty part, `.` or `..`".to_owned());
    }
    Ok(())
}

/// Whether a file of a repository is one that an engine needs. Only files at the top are: the weights in
/// `original/`, `onnx/` and their like are copies in other formats.
pub(super) fn wanted(name: &str) -> bool {
    if name.contains('/') {
        return false;
    }
    let lower = name.to_ascii_lowercase();
    let suffix = |list: &[&str]| list.iter().any(|s| lower.ends_with(s));
    if suffix(&[".bin", ".pth", ".pt", ".gguf", ".h5", ".msgpack", ".onnx", ".py"]) {
        return false;
    }
    let exact = [
        "config.json",
        "generation_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
    ];
    exact.contains(&name)
        || suffix(&[".safetensors", ".safetensors.index.json", ".model", ".tiktoken"])
        || lower.starts_with("tokenizer")
        || lower.starts_with("chat_template")
}

/// Percent-encodes a path, keeping its slashes.
pub(super) fn encode_path(path: &str) -> String {
    path.split('/').map(encode_segment).collect::<Vec<_>>().join("/")
}

/// Percent-encodes everything but the characters that are free in a URL (RFC 3986, section 2.3).
pub(super) fn encode_segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for &byte in text.as_bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Text of a stranger, cut and cleaned for a message on a terminal.
pub(super) fn printable(text: &str, limit: usize) -> String {
    let mut out: String = text.chars().take(limit).map(|c| if c.is_control() { '?' } else { c }).collect();
    if text.chars().nth(limit).is_some() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        let (id, revision) = RepoId::parse("org/na-me_1.5").unwrap();
        assert_eq!(id.folder(), "models--org--na-me_1.5");
        assert_eq!(revision, None);
        assert_eq!(RepoId::parse("gpt2").unwrap().0.folder(), "models--gpt2");
        let pr = RepoId::parse("a/b@refs/pr/1").unwrap().1;
        assert_eq!(pr.as_deref(), Some("refs/pr/1"));
        for bad in [
            "", "/", "a/", "/b", "a/b/c", "../b", "a/..", "a/.b", "a--b/c", "a b/c", "a/b\n", "a/b@",
            "a/b@../c", "a/b@/c", "a/b@c//d", "ä/b", "a\\b", "C:/b", "a/b@c\\d",
        ] {
            let error = RepoId::parse(bad).expect_err(bad);
            assert!(error.to_string().contains("model id"), "{bad}: {error}");
        }
    }

    #[test]
    fn hostile_file_names() {
        for bad in ["", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a\\b", "C:/x", "a\0b", "a/."] {
            assert!(check_path(bad).is_err(), "{bad:?}");
        }
        for good in ["config.json", "a/b.c", "模型.safetensors", "..a", "a b"] {
            check_path(good).unwrap();
        }
    }

    #[test]
    fn only_what_is_needed() {
        for yes in [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
            "tokenizer.model",
            "tokenizer_config.json",
            "qwen.tiktoken",
            "chat_template.jinja",
            "special_tokens_map.json",
        ] {
            assert!(wanted(yes), "{yes}");
        }
        for no in [
            "pytorch_model.bin",
            "original/model.safetensors",
            "consolidated.00.pth",
            "model.gguf",
            "README.md",
            ".gitattributes",
            "tokenizer.bin",
            "tokenizer.py",
        ] {
            assert!(!wanted(no), "{no}");
        }
    }

    #[test]
    fn encoding() {
        assert_eq!(encode_segment("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(encode_path("a b/ü?.json"), "a%20b/%C3%BC%3F.json");
        assert_eq!(printable("a\x1b[31mb", 99), "a?[31mb");
    }
}
