//! The `airllm` binary, built once a test run and run under watch.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a running program is looked at.
const TICK: Duration = Duration::from_millis(4);

/// The path of the `airllm` binary, built with the profile and into the folder of the running test.
///
/// # Panics
/// When the build fails.
pub fn path() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        // <target>/<profile>/deps/<test>
        let test = std::env::current_exe().expect("a running test has a path");
        let folder = test.ancestors().nth(2).expect("tests lie in <target>/<profile>/deps");
        let profile = match folder.file_name().and_then(OsStr::to_str) {
            Some("debug") | None => "dev",
            Some(name) => name,
        };
        let status = cargo()
            .args(["build", "--quiet", "--package", "airllm-cli", "--bin", "airllm", "--profile", profile])
            .arg("--target-dir")
            .arg(folder.parent().unwrap_or(folder))
            .status()
            .expect("cargo runs");
        assert!(status.success(), "cargo build -p airllm-cli: {status}");
        folder.join(format!("airllm{}", std::env::consts::EXE_SUFFIX))
    })
}

/// `cargo` in the repository, as from a shell: without what an outer cargo has set for the package it runs.
///
/// Build scripts that look at such variables (ring's does) would run again otherwise, and everything that
/// depends on them be compiled anew, back and forth.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into()));
    command.current_dir(crate::shared::repository());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|start| text.starts_with(start)) {
            command.env_remove(&name);
        }
    }
    command
}

/// A run of the binary about to start. The caller's `AIRLLM_*`, `HF_*` and `XDG_*` variables are not
/// passed on, and its cache is the `home` given to [`Airllm::new`], so runs do not depend on the machine.
#[derive(Debug)]
pub struct Airllm {
    command: Command,
    input: Vec<u8>,
    limit: Duration,
}

/// A finished run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
    /// Time from start to end.
    pub wall: Duration,
    /// The largest resident set seen, in bytes: `VmHWM` of `/proc/PID/status`, read until the end. It
    /// is the high-water mark of this program alone; `ru_maxrss` would start from the parent's size.
    /// 0 where there is no `/proc`.
    pub peak_rss: u64,
}

/// A run under way.
#[derive(Debug)]
pub struct Running {
    child: Child,
    started: Instant,
    limit: Duration,
    peak_rss: u64,
    writer: Option<JoinHandle<()>>,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
}

impl Airllm {
    /// A run with `home` as its cache folder (`AIRLLM_HOME`).
    pub fn new(home: &Path) -> Self {
        let mut command = Command::new(path());
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["AIRLLM_", "HF_", "XDG_", "RUST_LOG"].iter().any(|prefix| text.starts_with(prefix)) {
                command.env_remove(&name);
            }
        }
        command.env("AIRLLM_HOME", home).env("HF_HUB_OFFLINE", "1");
        // What is tested are budgets and bits of the processor.
        command.env("CUDA_VISIBLE_DEVICES", "");
        Self { command, input: Vec::new(), limit: Duration::from_secs(120) }
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.command.env(name, value.into());
        self
    }

    /// Sets what standard input holds; it is empty otherwise.
    pub fn stdin(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    /// Sets the longest time the run may take, two minutes otherwise.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs to the end.
    ///
    /// # Panics
    /// When the program does not start or takes longer than its limit.
    pub fn run(self) -> Outcome {
        self.spawn().wait()
    }

    /// Starts the program.
    ///
    /// # Panics
    /// When it does not start.
    pub fn spawn(mut self) -> Running {
        let piped = self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().expect("the airllm binary starts");
        let writer = child.stdin.take().map(|mut pipe| {
            let input = std::mem::take(&mut self.input);
            // A program that does not read its input closes the pipe: no failure of the test.
            std::thread::spawn(move || drop(pipe.write_all(&input)))
        });
        Running {
            stdout: child.stdout.take().map(collect),
            stderr: child.stderr.take().map(collect),
            writer,
            child,
            started: Instant::now(),
            limit: self.limit,
            peak_rss: 0,
        }
    }
}

impl Running {
    /// True while the program has not ended.
    pub fn is_running(&mut self) -> bool {
        self.peak_rss = self.peak_rss.max(high_water(self.child.id()));
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Asks the program to stop, as Ctrl-C does.
    pub fn interrupt(&self) -> io::Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        Ok(rustix::process::kill_process(pid, rustix::process::Signal::INT)?)
    }

    /// Kills the program without warning, as `kill -9` does, and waits for its end.
    pub fn kill(mut self) -> Outcome {
        // It may have ended by itself: then there is nothing to kill.
        let _ = self.child.kill();
        self.wait()
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// When the time limit passes; the program is killed and what it wrote is shown.
    pub fn wait(mut self) -> Outcome {
        let mut late = false;
        while self.is_running() {
            if !late && self.started.elapsed() > self.limit {
                late = true;
                self.child.kill().expect("a running child can be killed");
            }
            std::thread::sleep(TICK);
        }
        let wall = self.started.elapsed();
        let status = self.child.wait().expect("the child has ended");
        if let Some(writer) = self.writer.take() {
            drop(writer.join());
        }
        let outcome = Outcome {
            status,
            stdout: gather(self.stdout.take()),
            stderr: String::from_utf8_lossy(&gather(self.stderr.take())).into_owned(),
            wall,
            peak_rss: self.peak_rss,
        };
        assert!(!late, "no end within {:?}: {outcome}", self.limit);
        outcome
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // After `wait` both fail, harmlessly: the child is gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Outcome {
    /// The exit code; `None` after a signal.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Standard output as text.
    ///
    /// # Panics
    /// When it is not UTF-8.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("standard output is UTF-8")
    }

    /// The one JSON object that the last line of standard output holds.
    ///
    /// # Panics
    /// When it holds something else.
    pub fn json(&self) -> serde_json::Value {
        let last = self.text().trim_end().lines().last().unwrap_or_default();
        serde_json::from_str(last)
            .or_else(|_| serde_json::from_str(self.text()))
            .unwrap_or_else(|error| panic!("no JSON at the end ({error}): {self}"))
    }

    /// This outcome, provided the program was content.
    ///
    /// # Panics
    /// When it was not.
    pub fn success(self) -> Self {
        assert!(self.status.success(), "{self}");
        self
    }

    /// This outcome, provided the program refused with `code` and said all of `words` on standard error.
    ///
    /// # Panics
    /// When it did not.
    pub fn refused(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code(), Some(code), "{self}");
        for word in words {
            assert!(self.stderr.contains(word), "standard error should say {word:?}: {self}");
        }
        assert!(!self.stderr.contains("panicked"), "{self}");
        self
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Outcome { status, wall, .. } = self;
        let stdout = String::from_utf8_lossy(&self.stdout);
        write!(f, "{status} after {wall:?}\n--- stdout\n{stdout}\n--- stderr\n{}", self.stderr)
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is still worth showing.
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

fn gather(reader: Option<JoinHandle<Vec<u8>>>) -> Vec<u8> {
    reader.and_then(|thread| thread.join().ok()).unwrap_or_default()
}

/// `VmHWM` of a process in bytes; 0 when it has ended or there is no `/proc`.
fn high_water(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
