//! Downloads from a server on the loopback device, well-behaved and not.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may end")]

#[path = "hub/faults.rs"]
mod faults;
#[path = "hub/processes.rs"]
mod processes;
#[path = "hub/server.rs"]
mod server;

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use airllm_format::hub::{Hub, Settings};
use airllm_format::{Error, Result};
use rustix::net;
use server::{COMMIT, Files, ID, Reply, Server, sha256};
use tempfile::TempDir;

const WEIGHTS: &str = "model.safetensors";
const SIZE: usize = 1_000_000;

fn settings(dir: &Path, url: &str) -> Settings {
    let mut settings = Settings::new(dir);
    settings.endpoint = url.to_owned();
    settings.connections = 4;
    settings.timeout = Duration::from_secs(5);
    settings.retries = 3;
    settings.backoff = Duration::from_millis(5);
    settings
}

/// A port that refuses connections, and its address. It is bound but not listened on, and so it cannot go to
/// another test's server while the socket is kept.
fn closed() -> (OwnedFd, String) {
    let socket = net::socket(net::AddressFamily::INET, net::SocketType::STREAM, None).unwrap();
    net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = SocketAddr::try_from(net::getsockname(&socket).unwrap()).unwrap();
    (socket, format!("http://{address}"))
}

fn get(settings: Settings) -> Result<PathBuf> {
    Hub::new(settings)?.snapshot(ID, None, &AtomicBool::new(false), &mut |_| {})
}

fn fetch(dir: &TempDir, server: &Server) -> Result<PathBuf> {
    get(settings(dir.path(), &server.url))
}

fn message(result: Result<PathBuf>) -> String {
    result.expect_err("this must fail").to_string()
}

fn repo(dir: &TempDir) -> PathBuf {
    dir.path().join("hub/models--org--tiny")
}

/// Names of all files below a folder.
fn tree(dir: &Path) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            out.extend(tree(&entry.path()).into_iter().map(|inner| format!("{name}/{inner}")));
        } else {
            out.insert(name);
        }
    }
    out
}

/// The snapshot holds exactly what it should, and nothing unfinished lies about.
fn assert_whole(dir: &TempDir, folder: &Path, files: &Files) {
    assert_eq!(folder, repo(dir).join("snapshots").join(COMMIT));
    let names: BTreeSet<String> = ["config.json", "tokenizer.json", WEIGHTS].map(str::to_owned).into();
    assert_eq!(tree(folder), names);
    for name in &names {
        assert!(fs::read(folder.join(name)).unwrap() == files.bytes(name), "{name} differs");
    }
    let blobs: BTreeSet<String> = names.iter().map(|name| files.etag(name)).collect();
    assert_eq!(tree(&repo(dir).join("blobs")), blobs);
}

#[test]
fn a_model_arrives_in_the_usual_layout() {
    let files = Files::model(SIZE);
    let server = Server::plain(files.clone());
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new(settings(dir.path(), &server.url)).unwrap();
    let mut steps = Vec::new();
    let mut watch = |p: &airllm_format::hub::Progress<'_>| steps.push((p.done, p.total, p.files_done));
    let cancel = AtomicBool::new(false);
    assert_eq!(hub.cached(ID, None).unwrap(), None);
    let folder = hub.snapshot(ID, None, &cancel, &mut watch).unwrap();
    assert_whole(&dir, &folder, &files);
    assert_eq!(fs::read_to_string(repo(&dir).join("refs/main")).unwrap(), COMMIT);
    let link = fs::read_link(folder.join(WEIGHTS)).unwrap();
    assert_eq!(link, Path::new("../../blobs").join(sha256(files.bytes(WEIGHTS))));
    let total = (SIZE + files.bytes("config.json").len() + files.bytes("tokenizer.json").len()) as u64;
    assert_eq!(steps.last(), Some(&(total, total, 3)));
    assert!(steps.windows(2).all(|w| w[0].0 <= w[1].0 && w[0].1 == w[1].1));

    // Again: the server is asked what there is, and no file is.
    let before = server.seen("/resolve/").len() + server.seen("/stored/").len();
    assert_eq!(hub.snapshot("org/tiny@main", None, &cancel, &mut |_| {}).unwrap(), folder);
    assert_eq!(server.seen("/resolve/").len() + server.seen("/stored/").len(), before);
    assert_eq!(hub.cached(ID, None).unwrap(), Some(folder.clone()));
    assert_eq!(hub.cached(ID, Some(COMMIT)).unwrap(), Some(folder));
    assert_eq!(hub.cached(ID, Some("dev")).unwrap(), None);
}

#[test]
fn large_files_come_in_ranges_at_the_same_time() {
    let files = Files::model(SIZE);
    let server = Server::start(files.clone(), |seen, mut reply| {
        reply.slow = Duration::from_millis(if seen.cdn { 5 } else { 0 });
        reply
    });
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(dir.path(), &server.url);
    settings.segment = 100_000;
    assert_whole(&dir, &get(settings).unwrap(), &files);
    let ranges: BTreeSet<_> = server.seen("/stored/").iter().map(|s| s.range.unwrap()).collect();
    let expected: BTreeSet<_> = (0..10).map(|i| (i * 100_000, (i + 1) * 100_000)).collect();
    assert_eq!(ranges, expected);
    // The end of an answer may overlap with the next request.
    assert!((2..=8).contains(&server.most_at_once()), "{} at once", server.most_at_once());
    assert_eq!(server.sent("/stored/"), SIZE);
}

#[test]
fn the_token_stays_with_its_host() {
    let files = Files::model(1000);
    let server = Server::start(files.clone(), |seen, reply| match &seen.authorization {
        Some(value) if value == "Bearer hf_secret" && !seen.cdn => {
            // A repository that was renamed: the same server under another path.
            match seen.path.strip_prefix("/api/models/org/tiny/revision/main?") {
                Some(query) => Reply::status(307)
                    .with("Location", format!("/api/models/org/tiny/revision/moved?{query}")),
                None => reply,
            }
        }
        None if seen.cdn => reply,
        _ => Reply::status(401),
    });
    let dir = tempfile::tempdir().unwrap();
    // The token comes from the file that the settings name.
    fs::write(dir.path().join("token"), "hf_secret\n").unwrap();
    let mut with = settings(dir.path(), &server.url);
    with.token_file = Some(dir.path().join("token"));
    assert_whole(&dir, &get(with).unwrap(), &files);
    assert!(server.log().iter().filter(|s| s.cdn).all(|s| s.authorization.is_none()));
    assert!(server.seen("/stored/").len() == 1 && server.seen("/moved").len() == 1);

    let other = tempfile::tempdir().unwrap();
    let text = message(fetch(&other, &server));
    assert!(text.contains("401") && text.contains("HF_TOKEN") && text.contains(ID), "{text}");
    let mut wrong = settings(other.path(), &server.url);
    wrong.token = Some("hf_wrong".to_owned());
    let text = message(get(wrong));
    assert!(text.contains("token that was sent") && !text.contains("hf_wrong"), "{text}");
    assert!(tree(&other.path().join("hub")).is_empty(), "a refusal writes nothing");
}

#[test]
fn a_gated_model_and_a_missing_one() {
    let gated = Server::start(Files::model(1000), |seen, reply| {
        if !seen.path.contains("/resolve/") {
            return reply;
        }
        Reply::status(403).with("X-Error-Message", "Access to model org/tiny is restricted")
    });
    let dir = tempfile::tempdir().unwrap();
    let text = message(fetch(&dir, &gated));
    assert!(text.contains("403") && text.contains("accept the terms"), "{text}");
    assert!(text.contains("is restricted"), "{text}");

    let server = Server::plain(Files::model(1000));
    let hub = Hub::new(settings(dir.path(), &server.url)).unwrap();
    let text = message(hub.snapshot("org/other", Some("v9"), &AtomicBool::new(false), &mut |_| {}));
    assert!(text.contains("404") && text.contains("org/other") && text.contains("v9"), "{text}");
    assert_eq!(server.log().len(), 1, "a refusal is final");
}

#[test]
fn offline_and_unreachable() {
    let files = Files::model(1000);
    let dir = tempfile::tempdir().unwrap();
    let mut offline = settings(dir.path(), "http://127.0.0.1:9");
    offline.offline = true;
    let error = get(offline.clone()).unwrap_err();
    assert!(matches!(error, Error::Missing { .. }), "{error}");
    assert!(error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

    let (_closed, url) = closed();
    let gone = settings(dir.path(), &url);
    let text = message(get(gone.clone()));
    assert!(text.contains("HF_ENDPOINT") && text.contains(ID), "{text}");

    let server = Server::plain(files.clone());
    let folder = fetch(&dir, &server).unwrap();
    let requests = server.log().len();
    offline.endpoint = server.url.clone();
    assert_eq!(get(offline.clone()).unwrap(), folder);
    assert_eq!(server.log().len(), requests, "offline means no request");
    assert_eq!(get(gone.clone()).unwrap(), folder);
    let busy = Server::start(files, |_, _| Reply::status(503));
    assert_eq!(fetch(&dir, &busy).unwrap(), folder);

    fs::remove_file(folder.join(WEIGHTS)).unwrap();
    assert!(message(get(offline)).contains("safetensors"));
    assert!(message(get(gone)).contains("not complete in the cache"));
}

#[test]
fn a_server_that_lists_names_only_is_asked_for_each_file() {
    let files = Files::model(1000);
    let server = Server::start(files.clone(), |seen, reply| {
        if !seen.path.contains("/revision/") {
            return reply;
        }
        let names = ["config.json", "tokenizer.json", WEIGHTS].map(|n| format!(r#"{{"rfilename":"{n}"}}"#));
        Reply::status(200).body(format!(r#"{{"sha":"{COMMIT}","siblings":[{}]}}"#, names.join(",")))
    });
    let dir = tempfile::tempdir().unwrap();
    assert_whole(&dir, &fetch(&dir, &server).unwrap(), &files);
    let heads = server.log().iter().filter(|s| s.method == "HEAD").count();
    assert_eq!(heads, 3);
}

#[test]
fn a_proxy_is_used_unless_the_host_is_excepted() {
    let files = Files::model(1000);
    let server = Server::plain(files.clone());
    let dir = tempfile::tempdir().unwrap();
    let (_closed, url) = closed();
    let closed = url.trim_start_matches("http://");
    let mut settings = settings(dir.path(), &server.url);
    settings.proxy = Some(format!("http://user:pa55@{closed}"));
    let text = message(get(settings.clone()));
    assert!(!text.contains("pa55"), "{text}");
    assert!(server.log().is_empty());
    settings.no_proxy = Some("example.com, 127.0.0.1".to_owned());
    assert_whole(&dir, &get(settings).unwrap(), &files);
}
