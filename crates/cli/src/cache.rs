//! `airllm cache`: the prepared shards.

use crate::args::{Cache as CacheArgs, CacheAction, Common};
use crate::exit::Result;
use crate::output;
use airllm::{AutoModel, Cache, CacheEntry, Size};
use std::time::SystemTime;

pub fn run(common: &Common, args: &CacheArgs) -> Result<()> {
    let cache = AutoModel::builder().cache()?;
    match &args.action {
        CacheAction::List => list(&cache, common.json),
        CacheAction::Clean { keys, all } => clean(&cache, keys, *all, common.json),
        CacheAction::Dir if common.json => output::json(&serde_json::json!({ "dir": cache.home() })),
        CacheAction::Dir => output::line(&cache.home().display().to_string()),
    }
}

fn list(cache: &Cache, json: bool) -> Result<()> {
    let entries = cache.list()?;
    if json {
        let objects: Vec<_> = entries.iter().map(object).collect();
        return output::json(&serde_json::json!({ "dir": cache.dir(), "entries": objects }));
    }
    let rows: Vec<Vec<String>> = entries
        .iter()
        .map(|entry| {
            let state = if entry.complete { "complete" } else { "unfinished" };
            vec![entry.key.clone(), Size(entry.bytes).to_string(), state.to_owned()]
        })
        .collect();
    output::text(&output::table(&["key", "size", "state"], &rows))?;
    let total = entries.iter().map(|entry| entry.bytes).sum();
    output::note(&format!("{} in {}", Size(total), cache.dir().display()));
    Ok(())
}

fn object(entry: &CacheEntry) -> serde_json::Value {
    let modified = entry.modified.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    serde_json::json!({
        "key": entry.key,
        "path": entry.path,
        "bytes": entry.bytes,
        "complete": entry.complete,
        "modified": modified.map(|time| time.as_secs()),
    })
}

fn clean(cache: &Cache, keys: &[String], all: bool, json: bool) -> Result<()> {
    let mut named = keys.to_vec();
    if keys.is_empty() {
        named =
            cache.list()?.into_iter().filter(|entry| all || !entry.complete).map(|entry| entry.key).collect();
    }
    let (mut bytes, mut removed) = (0, Vec::new());
    for key in named {
        bytes += cache.remove(&key)?;
        if !json {
            output::line(&key)?;
        }
        removed.push(key);
    }
    if json {
        return output::json(&serde_json::json!({ "removed": removed, "bytes": bytes }));
    }
    output::note(&format!("{} removed", Size(bytes)));
    Ok(())
}
