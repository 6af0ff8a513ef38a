//! Servers that cut, stall, lie or fail.

use std::fs;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use airllm_format::Error;
use airllm_format::hub::Hub;

use crate::server::{COMMIT, Files, ID, Reply, Server, listing, noise};
use crate::{SIZE, WEIGHTS, assert_whole, fetch, get, message, repo, settings, tree};

#[test]
fn a_cut_connection_goes_on_at_its_byte() {
    let files = Files::model(SIZE);
    let cuts = [400_000, 100_000, 0];
    let server = Server::start(files.clone(), move |seen, reply| match cuts.get(seen.nth) {
        Some(&at) if seen.cdn => reply.cut(at),
        _ => reply,
    });
    let dir = tempfile::tempdir().unwrap();
    assert_whole(&dir, &fetch(&dir, &server).unwrap(), &files);
    let starts: Vec<usize> = server.seen("/stored/").iter().map(|s| s.range.unwrap().0).collect();
    assert_eq!(starts, [0, 400_000, 500_000, 500_000]);
    assert_eq!(server.sent("/stored/"), SIZE, "no byte was sent twice");
}

#[test]
fn busy_servers_are_asked_again_and_dead_ones_given_up() {
    let files = Files::model(1000);
    let server = Server::start(files.clone(), |seen, reply| {
        if seen.cdn {
            return reply;
        }
        match (seen.nth, seen.path.contains("tokenizer")) {
            (0, true) => Reply::status(429).with("Retry-After", 1),
            (0, false) => Reply::status(500),
            (1, _) => Reply::status(503),
            _ => reply,
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let start = Instant::now();
    assert_whole(&dir, &fetch(&dir, &server).unwrap(), &files);
    assert!(start.elapsed() >= Duration::from_secs(1), "the server asked for a second");

    let dead = Server::start(files, |seen, reply| if seen.cdn { Reply::status(502) } else { reply });
    let dir = tempfile::tempdir().unwrap();
    let text = message(fetch(&dir, &dead));
    assert!(text.contains("502") && text.contains("run again"), "{text}");
    assert_eq!(dead.seen("/stored/").len(), 4, "one request and three retries");
}

#[test]
fn a_wrong_checksum_is_never_accepted() {
    let files = Files::model(SIZE);
    for name in [WEIGHTS, "config.json"] {
        let mut lies = files.clone();
        lies.0.get_mut(name).unwrap().0[0] ^= 1;
        let honest = listing(&files);
        // The content changed, the list and the tags did not.
        let server = Server::start(lies, move |seen, mut reply| {
            reply.headers.retain(|(name, _)| name != "X-Linked-Etag");
            if seen.path.contains("/revision/") { Reply::status(200).body(honest.clone()) } else { reply }
        });
        let dir = tempfile::tempdir().unwrap();
        let text = message(fetch(&dir, &server));
        assert!(text.contains(&files.etag(name)) && text.contains("expected"), "{text}");
        assert!(!tree(&repo(&dir).join("blobs")).iter().any(|b| b.contains(&files.etag(name))));
        let hub = Hub::new(settings(dir.path(), &server.url)).unwrap();
        assert_eq!(hub.cached(ID, Some(COMMIT)).unwrap(), None);
        assert!(!repo(&dir).join("refs/main").exists());
    }
    // A server that says beforehand that it has another content is not even read from.
    let honest = listing(&files);
    let mut lies = files;
    lies.large(WEIGHTS, noise(SIZE, 9));
    let server = Server::start(lies, move |seen, reply| {
        if seen.path.contains("/revision/") { Reply::status(200).body(honest.clone()) } else { reply }
    });
    let text = message(fetch(&tempfile::tempdir().unwrap(), &server));
    assert!(text.contains("it listed"), "{text}");
}

#[test]
fn servers_without_ranges() {
    for cut in [false, true] {
        let files = Files::model(SIZE);
        let inner = files.clone();
        let server = Server::start(files.clone(), move |seen, reply| {
            if !seen.cdn {
                return reply;
            }
            let whole = Reply::status(200).body(inner.bytes(WEIGHTS));
            if cut && seen.nth == 0 { whole.cut(300_000) } else { whole }
        });
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(dir.path(), &server.url);
        settings.segment = 100_000;
        assert_whole(&dir, &get(settings).unwrap(), &files);
        assert_eq!(server.seen("/stored/").len(), 1 + usize::from(cut));
    }
}

#[test]
fn answers_of_another_length_are_refused() {
    let other = |change: fn(Reply) -> Reply| {
        let server = Server::start(
            Files::model(SIZE),
            move |seen, reply| {
                if seen.cdn { change(reply) } else { reply }
            },
        );
        message(fetch(&tempfile::tempdir().unwrap(), &server))
    };
    let shorter = other(|_| Reply::status(200).body(noise(10, 1)));
    assert!(shorter.contains("10 bytes") && shorter.contains(WEIGHTS), "{shorter}");
    let moved = other(|_| Reply::status(206).with("Content-Range", "bytes 5-9/1000000").body("12345"));
    assert!(moved.contains("bytes 5-9"), "{moved}");
    let bare = other(|_| Reply::status(206).body("12345"));
    assert!(bare.contains("expected bytes 0 to 1000000"), "{bare}");
    let lost = other(|_| Reply::status(302).with("Location", "/stored/model.safetensors"));
    assert!(lost.contains("redirects"), "{lost}");
}

#[test]
fn hostile_names_touch_nothing() {
    for name in ["../../evil.safetensors", "/evil.json", "a\\..\\evil.model", "tokenizer\n.json"] {
        let server = Server::start(Files::model(1000), move |_, _| {
            let mut files = Files::model(1000);
            files.small(name, b"evil");
            Reply::status(200).body(listing(&files))
        });
        let dir = tempfile::tempdir().unwrap();
        let text = message(fetch(&dir, &server));
        assert!(text.contains("refused"), "{text}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
    let server = Server::plain(Files::model(1000));
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new(settings(dir.path(), &server.url)).unwrap();
    for (id, revision) in [("../../etc", None), ("org/..", None), ("org/tiny", Some("../../main"))] {
        let error = hub.snapshot(id, revision, &AtomicBool::new(false), &mut |_| {}).unwrap_err();
        assert!(matches!(error, Error::Hub { .. }), "{error}");
        assert!(hub.cached(id, revision).is_err());
    }
    assert!(server.log().is_empty());
}

#[test]
fn no_room_and_no_folder_are_said_before_the_first_byte() {
    let server = Server::start(Files::model(1000), |seen, reply| {
        if !seen.path.contains("/revision/") {
            return reply;
        }
        let text =
            String::from_utf8(reply.body).unwrap().replace("\"size\":1000", "\"size\":9000000000000000");
        Reply::status(200).body(text)
    });
    let dir = tempfile::tempdir().unwrap();
    let error = fetch(&dir, &server).unwrap_err();
    assert!(matches!(error, Error::NoSpace { needed: 9_000_000_000_000_000.., .. }), "{error}");
    assert!(server.seen("/resolve/").is_empty());

    let server = Server::plain(Files::model(1000));
    fs::write(dir.path().join("file"), "").unwrap();
    let text = message(get(settings(&dir.path().join("file/home"), &server.url)));
    assert!(text.contains("creating the folder"), "{text}");
}

#[test]
fn a_silent_server_is_left_after_a_while() {
    let files = Files::model(SIZE);
    let server = Server::start(files.clone(), |seen, mut reply| {
        if seen.cdn && seen.nth == 0 {
            reply = reply.cut(200_000);
            reply.silent = true;
        }
        reply
    });
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(dir.path(), &server.url);
    settings.timeout = Duration::from_millis(300);
    let start = Instant::now();
    assert_whole(&dir, &get(settings).unwrap(), &files);
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(server.seen("/stored/")[1].range, Some((200_000, SIZE)));
}

#[test]
fn damage_in_what_was_kept_is_found_and_repaired() {
    let files = Files::model(SIZE);
    let server = Server::plain(files.clone());
    let dir = tempfile::tempdir().unwrap();
    let blobs = repo(&dir).join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let etag = files.etag(WEIGHTS);
    fs::write(blobs.join(format!("{etag}.airllm.incomplete")), vec![7; SIZE]).unwrap();
    let journal = format!(r#"{{"size":{SIZE},"done":[[0,600000]]}}"#);
    fs::write(blobs.join(format!("{etag}.airllm.journal")), journal).unwrap();
    assert_whole(&dir, &fetch(&dir, &server).unwrap(), &files);
    let ranges: Vec<_> = server.seen("/stored/").iter().map(|s| s.range.unwrap()).collect();
    assert_eq!(ranges, [(600_000, SIZE), (0, SIZE)]);
}
