//! Models from the Hugging Face hub, or a server that speaks its language, into the cache that all of
//! Hugging Face's tools share.
//!
//! A model is fetched once. Only what an engine needs is: configuration, tokenizer and `.safetensors`
//! weights. Files come in ranges over several connections; a cut connection goes on at the byte where it
//! was cut, a killed program where it was killed. No file gets its name before its checksum is right.
//!
//! ```no_run
//! use std::sync::atomic::AtomicBool;
//!
//! use airllm_format::Repo;
//! use airllm_format::hub::{Hub, Settings};
//!
//! let hub = Hub::new(Settings::from_vars(|name| std::env::var(name).ok())?)?;
//! let cancel = AtomicBool::new(false);
//! let folder = hub.snapshot("Qwen/Qwen2.5-0.5B-Instruct", None, &cancel, &mut |progress| {
//!     eprintln!("{}: {} of {} bytes", progress.file, progress.done, progress.total);
//! })?;
//! let repo = Repo::open(&folder)?;
//! # Ok::<(), airllm_format::Error>(())
//! ```

mod cache;
mod fetch;
mod http;
mod listing;
mod names;
mod part;
mod reader;
mod settings;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, bounded};

pub use names::RepoId;
pub use settings::{DEFAULT_ENDPOINT, Settings};

use crate::disk::need_space;
use crate::{Error, Result};
use cache::Layout;
use fetch::{Order, Stop, fetch, resumable};
use http::{Client, Failure, Kind};
use listing::{Listing, RemoteFile};
use names::{check_revision, encode_path, encode_segment};
use reader::Reader;

/// The branch that is meant when no revision is named.
pub const DEFAULT_REVISION: &str = "main";

/// A list of files longer than this is not a model's.
const LISTING_LIMIT: u64 = 64 << 20;

/// How far a download is.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// The file that last made progress.
    pub file: &'a str,
    /// Bytes that are there, those of earlier runs included.
    pub done: u64,
    /// Bytes of all files that this download is about.
    pub total: u64,
    /// Bytes that came over the network in this run: the base of a rate.
    pub fetched: u64,
    /// Files that are complete and checked.
    pub files_done: usize,
    /// Files that this download is about.
    pub files: usize,
}

/// A hub and a cache.
pub struct Hub {
    settings: Settings,
    client: Arc<Client>,
}

impl Hub {
    /// Prepares to use a hub. Reads the token and certificate files that the settings name; opens no
    /// connection.
    pub fn new(settings: Settings) -> Result<Hub> {
        let token = match (&settings.token, &settings.token_file) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(path)) => match fs::read_to_string(path) {
                Ok(text) => Some(text),
                // Most people have none.
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => None,
                Err(e) => return Err(Error::io(path, "reading the token")(e)),
            },
            (None, None) => None,
        };
        let token = token.as_deref().map(str::trim).filter(|t| !t.is_empty());
        let client = Arc::new(Client::new(&settings, token)?);
        Ok(Hub { settings, client })
    }

    /// The settings that this hub was made with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The folder of a model that was fetched before, if all that an engine needs is in it. Opens no
    /// connection. `id` and `revision` as in [`snapshot`](Self::snapshot).
    pub fn cached(&self, id: &str, revision: Option<&str>) -> Result<Option<PathBuf>> {
        let (id, revision) = model(id, revision)?;
        Ok(self.layout(&id).find(&revision).ok())
    }

    /// Makes sure that a model is in the cache and returns its folder.
    ///
    /// `id` is `org/name` or `org/name@revision`; a revision is a branch, a tag, a commit or `refs/pr/N`,
    /// [`DEFAULT_REVISION`] if none is named. The server is asked what the revision holds now. If it cannot
    /// be reached, or the settings say offline, a complete copy in the cache is used.
    ///
    /// `progress` is called on this thread, several times a second and after each piece of data. When
    /// `cancel` becomes true the call returns [`Error::Cancelled`] within a fraction of a second; what was
    /// fetched stays, and the next call goes on from there. Several processes may fetch the same model into
    /// the same cache: each file is fetched by one of them while the others wait for it.
    ///
    /// # Errors
    /// [`Error::Hub`] says what the server answered and what to do; [`Error::Missing`] is for a model that
    /// is not in the cache while offline; [`Error::NoSpace`] comes before the first byte is written.
    pub fn snapshot(
        &self,
        id: &str,
        revision: Option<&str>,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(&Progress<'_>),
    ) -> Result<PathBuf> {
        let (id, revision) = model(id, revision)?;
        let layout = self.layout(&id);
        let cached = layout.find(&revision);
        if self.settings.offline {
            return cached.map_err(|reason| Error::Missing {
                path: layout.repo().to_owned(),
                what: format!(
                    "{id} cannot be used offline: {reason}; run once with a network and without HF_HUB_OFFLINE, \
                     or name a folder that holds the model"
                ),
            });
        }
        let (commit, files) = match self.list(&id, &revision, cached.is_ok(), cancel)? {
            Ok(list) => list,
            Err(failure) => match cached {
                Ok(folder) if failure.again() => {
                    tracing::warn!(%id, what = failure.what, "the hub cannot be reached; using the copy in the cache");
                    return Ok(folder);
                }
                _ => return Err(self.explain(&id, &revision, failure, None)),
            },
        };
        self.download(&id, &layout, &commit, files, cancel, progress)?;
        layout.write_ref(&revision, &commit)?;
        Ok(layout.snapshot(&commit))
    }

    fn layout(&self, id: &RepoId) -> Layout {
        Layout::new(&self.settings.cache, id)
    }

    fn reader(&self, stop: &Arc<AtomicBool>, retries: u32) -> Reader {
        Reader {
            client: Arc::clone(&self.client),
            stop: Arc::clone(stop),
            retries,
            backoff: self.settings.backoff,
        }
    }

    /// The commit and the files of a revision. Runs beside this thread, which watches the cancel flag.
    #[allow(clippy::type_complexity, reason = "told once, used once")]
    fn list(
        &self,
        id: &RepoId,
        revision: &str,
        cached: bool,
        cancel: &AtomicBool,
    ) -> Result<std::result::Result<(String, Vec<RemoteFile>), Failure>> {
        let stop = Arc::new(AtomicBool::new(false));
        // With a copy at hand there is no reason to insist.
        let retries = if cached { 0 } else { self.settings.retries };
        let reader = self.reader(&stop, retries);
        let url = format!(
            "{}/api/models/{id}/revision/{}?blobs=true",
            self.settings.endpoint,
            encode_segment(revision)
        );
        let (endpoint, id) = (self.settings.endpoint.clone(), id.clone());
        let name = id.to_string();
        let work = move || {
            let refused = |what: String| Failure::new(Kind::Refused, what);
            let json = reader.retry(|| reader.client.text(&url, LISTING_LIMIT))?;
            let listing = Listing::parse(&json).map_err(refused)?;
            let mut files = Vec::new();
            for entry in listing.entries {
                if let Some(known) = entry.known {
                    files.push(known);
                    continue;
                }
                // A server that lists names only is asked file by file.
                let url = file_url(&endpoint, &id, &listing.commit, &entry.name);
                let linked = reader.retry(|| reader.client.head(&url))?;
                files.push(RemoteFile::from_headers(&entry.name, &linked).map_err(refused)?);
            }
            Ok((listing.commit, files))
        };
        let (send, receive) = bounded(1);
        thread::Builder::new()
            .name("hub-list".to_owned())
            .spawn(move || send.send(work()))
            .map_err(Error::io(&self.settings.cache, "starting a thread"))?;
        loop {
            match receive.recv_timeout(Duration::from_millis(50)) {
                Ok(result) => return Ok(result),
                Err(RecvTimeoutError::Timeout) if cancel.load(Ordering::Relaxed) => {
                    stop.store(true, Ordering::Relaxed);
                    return Err(stopped(&name));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let what = "the thread that asked the server failed; please report this";
                    return Ok(Err(Failure::new(Kind::Refused, what)));
                }
            }
        }
    }

    fn download(
        &self,
        id: &RepoId,
        layout: &Layout,
        commit: &str,
        files: Vec<RemoteFile>,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(&Progress<'_>),
    ) -> Result<()> {
        if files.iter().all(|file| layout.linked(commit, file)) {
            return Ok(());
        }
        layout.create()?;
        // Two names may share a content; it takes its room once.
        let needed: BTreeMap<&str, u64> = files
            .iter()
            .filter(|file| !layout.linked(commit, file) && !layout.has_blob(file))
            .map(|file| (file.etag.as_str(), file.size.saturating_sub(resumable(layout, file))))
            .collect();
        let needed = needed.values().fold(0u64, |sum, bytes| sum.saturating_add(*bytes));
        need_space(layout.repo(), needed)?;

        let files = files
            .into_iter()
            .filter(|file| !layout.linked(commit, file))
            .map(|file| {
                let url = file_url(&self.settings.endpoint, id, commit, &file.name);
                (file, url)
            })
            .collect();
        let order = Order {
            layout,
            commit,
            files,
            connections: self.settings.connections.clamp(1, 64),
            segment: self.settings.segment.max(1),
        };
        let stop = Arc::new(AtomicBool::new(false));
        let reader = self.reader(&stop, self.settings.retries);
        fetch(&order, reader, cancel, progress).map_err(|stop| match stop {
            Stop::Cancelled => stopped(&id.to_string()),
            Stop::Error(error) => error,
            Stop::Failure { file, failure } => self.explain(id, commit, failure, Some(&file)),
        })
    }

    /// What a failure means for the person who asked, and what to do.
    fn explain(&self, id: &RepoId, revision: &str, failure: Failure, file: Option<&str>) -> Error {
        let endpoint = &self.settings.endpoint;
        let what = failure.what;
        let help = match failure.kind {
            Kind::Denied if self.client.has_token() => format!(
                "{id} is private or gated, and the token that was sent does not open it: accept the terms at \
                 {endpoint}/{id} with the token's account, or set HF_TOKEN to another token"
            ),
            Kind::Denied => format!(
                "{id} does not exist, or is private or gated: check the name, accept the terms at \
                 {endpoint}/{id}, then set HF_TOKEN to a token from {endpoint}/settings/tokens (or write it to {})",
                self.settings
                    .token_file
                    .clone()
                    .unwrap_or_else(|| self.settings.home.join("token"))
                    .display()
            ),
            Kind::NotFound => match file {
                Some(file) => format!("{id} has no file {file} at {revision}"),
                None => {
                    format!("there is no model {id} with revision {revision}; check the spelling")
                }
            },
            Kind::Busy | Kind::Broken if file.is_some() => {
                "gave up after several attempts; what was fetched is kept, run again to go on".to_owned()
            }
            Kind::Busy | Kind::Broken => format!(
                "{id} is not complete in the cache {} either; check the network, or set HF_ENDPOINT to a mirror",
                self.settings.cache.display()
            ),
            Kind::Refused => "this will not change by trying again".to_owned(),
        };
        let url = match file {
            Some(file) => file_url(endpoint, id, revision, file),
            None => format!("{endpoint}/{id}"),
        };
        Error::Hub { url, what: format!("{what}; {help}") }
    }
}

/// Says nothing of the token.
impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("settings", &self.settings).finish_non_exhaustive()
    }
}

fn model(id: &str, revision: Option<&str>) -> Result<(RepoId, String)> {
    let (repo, inside) = RepoId::parse(id)?;
    let bad = |what: String| Error::Hub { url: repo.to_string(), what };
    if let Some(revision) = revision {
        check_revision(revision).map_err(bad)?;
    }
    match (inside.as_deref(), revision) {
        (Some(one), Some(other)) if one != other => {
            Err(bad(format!("two revisions are named, {one} and {other}")))
        }
        (one, other) => {
            let revision = one.or(other).unwrap_or(DEFAULT_REVISION).to_owned();
            Ok((repo, revision))
        }
    }
}

fn file_url(endpoint: &str, id: &RepoId, commit: &str, name: &str) -> String {
    format!("{endpoint}/{id}/resolve/{}/{}", encode_segment(commit), encode_path(name))
}

fn stopped(id: &str) -> Error {
    Error::Cancelled { what: format!("the download of {id}") }
}
