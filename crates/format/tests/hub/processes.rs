//! Downloads that are stopped, killed, or not alone.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use airllm_format::Error;
use airllm_format::hub::Hub;
use tempfile::TempDir;

use crate::server::{COMMIT, Files, ID, Server};
use crate::{SIZE, assert_whole, fetch, get, settings};

#[test]
fn cancelling_is_prompt_and_keeps_what_was_fetched() {
    let files = Files::model(SIZE);
    let calls = Arc::new(Mutex::new(0));
    let server = Server::start(files.clone(), move |seen, mut reply| {
        let mut calls = calls.lock().unwrap();
        if seen.cdn {
            *calls += 1;
            if *calls == 1 {
                reply = reply.cut(500_000);
                reply.silent = true;
            }
        }
        reply
    });
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new(settings(dir.path(), &server.url)).unwrap();
    let cancel = AtomicBool::new(false);
    let mut since = Instant::now();
    let error = hub
        .snapshot(ID, None, &cancel, &mut |p| {
            if p.done >= 200_000 && !cancel.swap(true, Ordering::Relaxed) {
                since = Instant::now();
            }
        })
        .unwrap_err();
    assert!(matches!(error, Error::Cancelled { .. }), "{error}");
    assert!(since.elapsed() < Duration::from_millis(500), "{:?}", since.elapsed());
    assert_eq!(hub.cached(ID, Some(COMMIT)).unwrap(), None);

    let mut first = None;
    cancel.store(false, Ordering::Relaxed);
    let folder = hub
        .snapshot(ID, None, &cancel, &mut |p| {
            first.get_or_insert(p.done);
        })
        .unwrap();
    assert_whole(&dir, &folder, &files);
    assert!(first.unwrap() >= 200_000);
    assert!(server.sent("/stored/") <= 500_000 + SIZE - 200_000);
}

/// Not a test of its own: the process that the tests below start. The variables are theirs.
#[test]
fn child_process() {
    let var = |name: &str| std::env::var(name).ok();
    if let (Some(home), Some(url)) = (var("AIRLLM_TEST_HUB_HOME"), var("AIRLLM_TEST_HUB_URL")) {
        get(settings(Path::new(&home), &url)).unwrap();
    }
}

fn child(dir: &TempDir, server: &Server) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "processes::child_process"])
        .env("AIRLLM_TEST_HUB_HOME", dir.path())
        .env("AIRLLM_TEST_HUB_URL", &server.url)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_killed_process_is_gone_on_with() {
    let files = Files::model(SIZE);
    let server = Server::start(files.clone(), |seen, mut reply| {
        // Slow until the child is dead: some 3 seconds for the whole.
        reply.slow = Duration::from_millis(if seen.cdn && seen.nth == 0 { 50 } else { 0 });
        reply
    });
    let dir = tempfile::tempdir().unwrap();
    let mut child = child(&dir, &server);
    let until = Instant::now() + Duration::from_secs(20);
    while server.sent("/stored/") < 700_000 && Instant::now() < until {
        thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let hub = Hub::new(settings(dir.path(), &server.url)).unwrap();
    assert_eq!(hub.cached(ID, Some(COMMIT)).unwrap(), None);
    assert_whole(&dir, &fetch(&dir, &server).unwrap(), &files);
    let last = server.seen("/stored/").last().unwrap().range.unwrap();
    assert!(last.0 > 200_000, "the second run began at {}", last.0);
}

#[test]
fn processes_share_the_work() {
    let files = Files::model(SIZE);
    let server = Server::start(files.clone(), |seen, mut reply| {
        reply.slow = Duration::from_millis(if seen.cdn { 10 } else { 0 });
        reply
    });
    let dir = tempfile::tempdir().unwrap();
    let mut children = [child(&dir, &server), child(&dir, &server)];
    let folder = fetch(&dir, &server).unwrap();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    assert_whole(&dir, &folder, &files);
    assert_eq!(server.sent("/stored/"), SIZE, "the weights were fetched once");
}
