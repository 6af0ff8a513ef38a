//! What the benches share: medians, and results as a table and as the JSON of `benches/results`.
//!
//! ```
//! let mut rates = [3.0, 1.0, 2.0];
//! assert_eq!(airllm_benches::median(&mut rates), 2.0);
//! let row = airllm_benches::Row::new("ring", 2.0, "GB/s").against(0.5, "best raw method");
//! assert_eq!(row.ratio, Some(0.5));
//! ```

pub mod gpu;

use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One thing measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What.
    pub case: String,
    /// The median.
    pub value: f64,
    /// Of which unit.
    pub unit: &'static str,
    /// The share of what `against` names, measured in the same run.
    pub ratio: Option<f64>,
    /// See `ratio`.
    pub against: &'static str,
}

impl Row {
    /// A row without comparison.
    pub fn new(case: &str, value: f64, unit: &'static str) -> Self {
        Self { case: case.to_owned(), value, unit, ratio: None, against: "" }
    }

    /// Adds a comparison.
    pub fn against(self, ratio: f64, against: &'static str) -> Self {
        Self { ratio: Some(ratio), against, ..self }
    }
}

/// The middle value; NaN if there is none.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The largest value that is a number.
pub fn best(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NAN, f64::max)
}

/// Whether benches are to run once through with small sizes, to see that they run: `AIRLLM_BENCH_QUICK` is set.
pub fn quick() -> bool {
    std::env::var_os("AIRLLM_BENCH_QUICK").is_some()
}

/// Prints a table, and writes the result file that `cargo xtask report` renders: into the folder that `AIRLLM_BENCH_OUT`
/// names, or to `json`.
///
/// # Panics
/// When the file cannot be written.
pub fn report(name: &str, command: &str, rows: &[Row], json: Option<&Path>) {
    report_on(None, name, command, rows, json);
}

/// As [`report`], of what was measured on a GPU of this name.
///
/// # Panics
/// When the file cannot be written.
pub fn report_on(gpu: Option<&str>, name: &str, command: &str, rows: &[Row], json: Option<&Path>) {
    for row in rows {
        let ratio = row.ratio.map_or(String::new(), |r| format!("   {r:.2} of {}", row.against));
        println!("{:>40}  {:9.3} {}{ratio}", row.case, row.value, row.unit);
    }
    let date = first_line("date", &["-u", "+%Y-%m-%d"]);
    let folder = std::env::var_os("AIRLLM_BENCH_OUT").map(PathBuf::from);
    let named = folder.map(|folder| folder.join(format!("{date}-{name}.json")));
    let Some(path) = json.map(Path::to_owned).or(named) else { return };
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            let mut value = json!({ "case": row.case, "value": round(row.value), "unit": row.unit });
            if let Some(ratio) = row.ratio {
                value["ratio"] = json!(round(ratio));
                value["against"] = json!(row.against);
            }
            value
        })
        .collect();
    let mut result = json!({
        "name": name,
        "date": date,
        "machine": machine(gpu),
        "command": command,
        "commit": commit(),
        "rows": rows,
    });
    if quick() {
        // No measurement, and not taken for one.
        result["quick"] = json!(true);
    }
    let text = serde_json::to_string_pretty(&result).expect("a result is JSON");
    std::fs::write(path, text + "\n").expect("the result file can be written");
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// The commit, also where the program is away from its repository: `AIRLLM_BENCH_COMMIT` names it there.
fn commit() -> String {
    std::env::var("AIRLLM_BENCH_COMMIT")
        .unwrap_or_else(|_| first_line("git", &["rev-parse", "--short", "HEAD"]))
}

fn first_line(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").trim().to_owned()
}

fn machine(gpu: Option<&str>) -> serde_json::Value {
    let field = |file: &str, key: &str| -> Option<String> {
        let text = std::fs::read_to_string(file).ok()?;
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let kib = field("/proc/meminfo", "MemTotal").and_then(|v| v.split(' ').next()?.parse::<u64>().ok());
    let mut machine = json!({
        "cpu": field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.into()),
        "cores": std::thread::available_parallelism().map_or(1, |n| n.get()),
        "ram": kib.map_or("unknown".into(), |kib| format!("{:.0} GB", kib as f64 * 1024.0 / 1e9)),
        "disk": first_line("findmnt", &["-n", "-o", "SOURCE,FSTYPE", "-T", "."]),
        "kernel": first_line("uname", &["-sr"]),
    });
    if let Some(gpu) = gpu {
        machine["gpu"] = json!(gpu);
    }
    machine
}
