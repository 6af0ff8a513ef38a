//! A hub on the loopback device: HTTP/1.1 with ranges and redirects, and whatever misbehaviour a test asks for.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use sha2::Digest;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const ID: &str = "org/tiny";

/// A request as it came in.
#[derive(Clone, Debug)]
pub struct Seen {
    pub cdn: bool,
    pub method: String,
    pub path: String,
    pub range: Option<(usize, usize)>,
    pub authorization: Option<String>,
    /// How many requests with this method and path came before.
    pub nth: usize,
    /// Bytes of the body that were sent.
    pub sent: usize,
}

#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The connection is cut after this many bytes of the body.
    pub cut: Option<usize>,
    /// Pause before each 16 KiB of the body.
    pub slow: Duration,
    /// After the cut the connection stays open and silent.
    pub silent: bool,
}

impl Reply {
    pub fn status(status: u16) -> Reply {
        Reply { status, ..Reply::default() }
    }

    pub fn with(mut self, name: &str, value: impl ToString) -> Reply {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Reply {
        self.body = body.into();
        self
    }

    pub fn cut(mut self, at: usize) -> Reply {
        self.cut = Some(at);
        self
    }
}

type Twist = dyn Fn(&Seen, Reply) -> Reply + Send + Sync;

/// Files of the one model that the server has.
#[derive(Clone, Default)]
pub struct Files(pub BTreeMap<String, (Vec<u8>, bool)>);

impl Files {
    /// A model: small files, and weights in large-file storage of `size` bytes.
    pub fn model(size: usize) -> Files {
        let mut files = Files::default();
        files.small("config.json", b"{\"architectures\":[]}");
        files.small("tokenizer.json", b"{}");
        files.small("README.md", b"# not needed");
        files.large("model.safetensors", noise(size, 1));
        files.large("pytorch_model.bin", noise(100, 2));
        files.large("original/model.safetensors", noise(100, 3));
        files
    }

    pub fn small(&mut self, name: &str, bytes: &[u8]) {
        self.0.insert(name.to_owned(), (bytes.to_vec(), false));
    }

    pub fn large(&mut self, name: &str, bytes: Vec<u8>) {
        self.0.insert(name.to_owned(), (bytes, true));
    }

    pub fn bytes(&self, name: &str) -> &[u8] {
        &self.0[name].0
    }

    pub fn etag(&self, name: &str) -> String {
        let (bytes, large) = &self.0[name];
        if *large { sha256(bytes) } else { git_id(bytes) }
    }
}

/// The hub and its storage server, on two ports.
pub struct Server {
    pub url: String,
    log: Arc<Mutex<Vec<Seen>>>,
    running: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Server {
    /// Serves `files`; `twist` may change each answer.
    pub fn start(files: Files, twist: impl Fn(&Seen, Reply) -> Reply + Send + Sync + 'static) -> Server {
        let hub = TcpListener::bind("127.0.0.1:0").unwrap();
        let cdn = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", hub.local_addr().unwrap());
        let cdn_url = format!("http://{}", cdn.local_addr().unwrap());
        let server = Server {
            url,
            log: Arc::default(),
            running: Arc::default(),
            most: Arc::default(),
            stop: Arc::default(),
        };
        let twist: Arc<Twist> = Arc::new(twist);
        let files = Arc::new(files);
        for (listener, is_cdn) in [(hub, false), (cdn, true)] {
            listener.set_nonblocking(true).unwrap();
            let (files, twist, cdn_url) = (files.clone(), twist.clone(), cdn_url.clone());
            let (log, running, most) = (server.log.clone(), server.running.clone(), server.most.clone());
            let stop = server.stop.clone();
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let Ok((stream, _)) = listener.accept() else {
                        thread::sleep(Duration::from_millis(2));
                        continue;
                    };
                    stream.set_nonblocking(false).unwrap();
                    let (files, twist, cdn_url) = (files.clone(), twist.clone(), cdn_url.clone());
                    let (log, running, most) = (log.clone(), running.clone(), most.clone());
                    let stop = stop.clone();
                    thread::spawn(move || {
                        let answer = |seen: &Seen| twist(seen, usual(&files, &cdn_url, seen));
                        connection(stream, is_cdn, &answer, &log, (&running, &most), &stop);
                    });
                }
            });
        }
        server
    }

    /// A server that does all as it should.
    pub fn plain(files: Files) -> Server {
        Server::start(files, |_, reply| reply)
    }

    pub fn log(&self) -> Vec<Seen> {
        self.log.lock().unwrap().clone()
    }

    /// Requests whose path has `part` in it.
    pub fn seen(&self, part: &str) -> Vec<Seen> {
        self.log().into_iter().filter(|s| s.path.contains(part)).collect()
    }

    /// Bytes of bodies that were sent for paths with `part` in it.
    pub fn sent(&self, part: &str) -> usize {
        self.seen(part).iter().map(|s| s.sent).sum()
    }

    /// The most answers that were on their way at once.
    pub fn most_at_once(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// What a proper hub says.
fn usual(files: &Files, cdn: &str, seen: &Seen) -> Reply {
    let json = |text: String| Reply::status(200).with("Content-Type", "application/json").body(text);
    if seen.cdn {
        let name = seen.path.trim_start_matches("/stored/");
        return match files.0.get(name) {
            Some((bytes, _)) => content(bytes, seen.range).with("ETag", "\"storage\""),
            None => Reply::status(404),
        };
    }
    if seen.path.starts_with(&format!("/api/models/{ID}/revision/")) {
        return json(listing(files));
    }
    let Some(name) = seen.path.strip_prefix(&format!("/{ID}/resolve/{COMMIT}/")) else {
        return Reply::status(404);
    };
    let Some((bytes, large)) = files.0.get(name) else {
        return Reply::status(404);
    };
    let etag = files.etag(name);
    let reply = if *large {
        Reply::status(302)
            .with("Location", format!("{cdn}/stored/{name}"))
            .with("X-Linked-Etag", format!("\"{etag}\""))
            .with("X-Linked-Size", bytes.len())
    } else {
        content(bytes, seen.range).with("ETag", format!("\"{etag}\""))
    };
    reply.with("X-Repo-Commit", COMMIT)
}

/// The answer of `/api/models/…` with sizes and checksums.
pub fn listing(files: &Files) -> String {
    let siblings: Vec<serde_json::Value> = files
        .0
        .iter()
        .map(|(name, (bytes, large))| {
            let mut entry = serde_json::json!({
                "rfilename": name, "size": bytes.len(), "blobId": git_id(bytes),
            });
            if *large {
                entry["lfs"] = serde_json::json!({ "sha256": sha256(bytes), "size": bytes.len() });
            }
            entry
        })
        .collect();
    serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string()
}

fn content(bytes: &[u8], range: Option<(usize, usize)>) -> Reply {
    match range {
        None => Reply::status(200).body(bytes),
        Some((start, end)) if start < bytes.len() => {
            let end = end.min(bytes.len());
            Reply::status(206)
                .with("Content-Range", format!("bytes {start}-{}/{}", end - 1, bytes.len()))
                .body(&bytes[start..end])
        }
        Some(_) => Reply::status(416),
    }
}

fn connection(
    mut stream: TcpStream,
    cdn: bool,
    answer: &dyn Fn(&Seen) -> Reply,
    log: &Mutex<Vec<Seen>>,
    (running, most): (&AtomicUsize, &AtomicUsize),
    stop: &AtomicBool,
) {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some(mut seen) = request(&mut reader, cdn) {
        let index = {
            let mut log = log.lock().unwrap();
            let same = |s: &&Seen| s.method == seen.method && s.path == seen.path && s.cdn == cdn;
            seen.nth = log.iter().filter(same).count();
            log.push(seen.clone());
            log.len() - 1
        };
        most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let reply = answer(&seen);
        let open = send(&mut stream, &seen, &reply, &|sent| log.lock().unwrap()[index].sent = sent);
        running.fetch_sub(1, Ordering::SeqCst);
        if reply.silent {
            while !stop.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(10));
            }
        }
        if !open {
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
    }
}

fn request(reader: &mut impl BufRead, cdn: bool) -> Option<Seen> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.by_ref().take(16384).read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let mut first = lines.first()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: HashMap<String, String> = lines[1..]
        .iter()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let range = headers.get("range").map(|text| {
        let (start, end) = text.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        (start.parse().unwrap(), end.parse::<usize>().unwrap() + 1)
    });
    let authorization = headers.get("authorization").cloned();
    Some(Seen { cdn, method, path, range, authorization, nth: 0, sent: 0 })
}

/// Sends an answer; false if the connection is to be closed.
fn send(stream: &mut TcpStream, seen: &Seen, reply: &Reply, note: &dyn Fn(usize)) -> bool {
    let mut head = format!("HTTP/1.1 {} X\r\nContent-Length: {}\r\n", reply.status, reply.body.len());
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    if stream.write_all(head.as_bytes()).is_err() || seen.method == "HEAD" {
        return seen.method == "HEAD";
    }
    let end = reply.cut.unwrap_or(reply.body.len()).min(reply.body.len());
    let mut sent = 0;
    while sent < end {
        thread::sleep(reply.slow);
        let stop = end.min(sent + (16 << 10));
        if stream.write_all(&reply.body[sent..stop]).is_err() {
            return false;
        }
        sent = stop;
        note(sent);
    }
    end == reply.body.len()
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&sha2::Sha256::digest(bytes))
}

fn git_id(bytes: &[u8]) -> String {
    let mut hash = sha1::Sha1::new_with_prefix(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Bytes that compress badly and repeat nowhere.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}
