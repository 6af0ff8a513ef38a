//! What a repository holds at a revision.

use serde_json::Value;

use super::http::{Linked, is_hex};
use super::names::{check_path, printable, wanted};

/// How the content of a file is checked before it is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Check {
    /// sha256 of the content: files in large-file storage.
    Sha256(String),
    /// Git's object id: sha1 of `blob LEN\0` and the content.
    Git(String),
    /// Nothing but the length is known.
    Length,
}

/// A file, and what its blob in the cache is called.
#[derive(Clone, Debug)]
pub(super) struct RemoteFile {
    pub name: String,
    pub size: u64,
    pub etag: String,
    pub check: Check,
}

/// A line of the listing; size and tag are there if the server gave them.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub name: String,
    pub known: Option<RemoteFile>,
}

/// The answer of `/api/models/{id}/revision/{revision}?blobs=true`, reduced to the files that are needed.
#[derive(Clone, Debug)]
pub(super) struct Listing {
    pub commit: String,
    pub entries: Vec<Entry>,
}

impl Listing {
    /// Reads the answer. One hostile file name spoils it all.
    pub fn parse(json: &[u8]) -> Result<Listing, String> {
        let value: Value =
            serde_json::from_slice(json).map_err(|e| format!("the list of files is not JSON: {e}"))?;
        let commit = text(&value, "sha")
            .filter(|sha| is_hex(sha, 40) || is_hex(sha, 64))
            .ok_or("the list of files has no commit (`sha`, 40 hexadecimal digits)")?;
        let siblings =
            value.get("siblings").and_then(Value::as_array).ok_or("the list of files has no `siblings`")?;
        let mut entries: Vec<Entry> = Vec::new();
        let mut names: Vec<&str> = Vec::new();
        for sibling in siblings {
            let name = sibling
                .get("rfilename")
                .and_then(Value::as_str)
                .ok_or("a file in the list has no `rfilename`")?;
            check_path(name)
                .map_err(|what| format!("the file name {:?} is refused: {what}", printable(name, 120)))?;
            names.push(name);
            if wanted(name) && !entries.iter().any(|e| e.name == name) {
                entries.push(Entry { name: name.to_owned(), known: known(name, sibling) });
            }
        }
        let weights = |e: &Entry| e.name.ends_with(".safetensors");
        // Some repositories hold the same weights a second time in their maker's own layout.
        let second = |e: &Entry| weights(e) && e.name.starts_with("consolidated");
        if entries.iter().any(|e| weights(e) && !second(e)) {
            entries.retain(|e| !second(e));
        }
        if !entries.iter().any(|e| e.name == "config.json") {
            return Err(format!("there is no config.json; {}", found(&names)));
        }
        if !entries.iter().any(weights) {
            return Err(format!(
                "there are no .safetensors files, and no others are read; {}",
                found(&names)
            ));
        }
        // Small files first: a wrong model is noticed before its weights are there.
        entries.sort_by_key(weights);
        Ok(Listing { commit, entries })
    }
}

impl RemoteFile {
    /// A file from the headers of its own address.
    pub fn from_headers(name: &str, linked: &Linked) -> Result<RemoteFile, String> {
        let size = linked.size.ok_or_else(|| format!("the server does not say how long {name} is"))?;
        let (etag, check) = match (&linked.sha256, &linked.etag) {
            (Some(sha256), _) => (sha256.clone(), Check::Sha256(sha256.clone())),
            (None, Some(etag)) => (etag.clone(), Check::Length),
            (None, None) => return Err(format!("the server gives no entity tag for {name}")),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if etag.is_empty() || etag.len() > 128 || !etag.chars().all(plain) {
            return Err(format!("the entity tag {:?} of {name} is refused", printable(&etag, 80)));
        }
        Ok(RemoteFile { name: name.to_owned(), size, etag, check })
    }
}

fn known(name: &str, sibling: &Value) -> Option<RemoteFile> {
    let file =
        |size: u64, etag: String, check: Check| RemoteFile { name: name.to_owned(), size, etag, check };
    let size = sibling.get("size").and_then(Value::as_u64);
    if let Some(lfs) = sibling.get("lfs").filter(|lfs| lfs.is_object()) {
        let sha256 = text(lfs, "sha256").filter(|s| is_hex(s, 64))?;
        let size = lfs.get("size").and_then(Value::as_u64).or(size)?;
        return Some(file(size, sha256.clone(), Check::Sha256(sha256)));
    }
    let id = text(sibling, "blobId").filter(|s| is_hex(s, 40))?;
    Some(file(size?, id.clone(), Check::Git(id)))
}

fn text(value: &Value, key: &str) -> Option<String> {
    value.get(key).and_then(Value::as_str).map(str::to_owned)
}

fn found(names: &[&str]) -> String {
    if names.is_empty() {
        return "the repository is empty".to_owned();
    }
    let shown: Vec<String> = names.iter().take(8).map(|n| printable(n, 60)).collect();
    let more = if names.len() > shown.len() { ", …" } else { "" };
    format!("found {}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn parse(files: &str) -> Result<Listing, String> {
        Listing::parse(format!(r#"{{"sha":"{COMMIT}","siblings":[{files}]}}"#).as_bytes())
    }

    #[test]
    fn sizes_and_tags() {
        let sha = "a".repeat(64);
        let list = parse(&format!(
            r#"{{"rfilename":"model.safetensors","size":9,"blobId":"{COMMIT}","lfs":{{"sha256":"{sha}","size":9}}}},
               {{"rfilename":"config.json","size":3,"blobId":"{COMMIT}"}},
               {{"rfilename":"consolidated.safetensors"}},{{"rfilename":"tokenizer.json"}}"#
        ))
        .unwrap();
        let names: Vec<&str> = list.entries.iter().map(|e| e.name.as_str()).collect();
        assert_eq!(names, ["config.json", "tokenizer.json", "model.safetensors"]);
        let config = list.entries[0].known.clone().unwrap();
        assert_eq!((config.size, config.check), (3, Check::Git(COMMIT.to_owned())));
        assert!(list.entries[1].known.is_none());
        let model = list.entries[2].known.clone().unwrap();
        assert_eq!((model.size, model.etag, model.check), (9, sha.clone(), Check::Sha256(sha)));
    }

    #[test]
    fn hostile_and_useless_lists() {
        let config = r#"{"rfilename":"config.json"}"#;
        for (files, part) in [
            (r#"{"rfilename":"../../x.safetensors"}"#, "refused"),
            (r#"{"rfilename":"/etc/tokenizer.json"}"#, "refused"),
            (r#"{"name":"x"}"#, "rfilename"),
            (config, "no .safetensors"),
            (r#"{"rfilename":"model.safetensors"}"#, "no config.json"),
            ("", "empty"),
        ] {
            let error = parse(files).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        let escaped = br#"{"sha":"../../../../etc","siblings":[]}"#;
        assert!(Listing::parse(escaped).unwrap_err().contains("commit"));
        assert!(Listing::parse(b"<html>").unwrap_err().contains("not JSON"));
    }

    #[test]
    fn tags_that_are_no_file_names() {
        let with = |etag: &str| {
            let linked = Linked { etag: Some(etag.to_owned()), size: Some(1), ..Linked::default() };
            RemoteFile::from_headers("x", &linked)
        };
        assert!(with("../x").is_err() && with("").is_err() && with("a.lock").is_err());
        assert_eq!(with("abc-1").unwrap().check, Check::Length);
    }
}
