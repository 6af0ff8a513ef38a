//! `cargo xtask report`: benchmark results as tables.

mod bars;

use crate::read;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fmt::Write;
use std::path::Path;

const BEGIN: &str = "<!-- begin: cargo xtask report -->";
const END: &str = "<!-- end -->";

/// Renders every `benches/results/*.json` between the markers of the page beside them.
pub fn run(root: &Path, check: bool, add: Option<&Path>) -> Result<()> {
    let dir = root.join("benches/results");
    if let Some(from) = add {
        take(from, &dir)?;
    }
    let mut files = Vec::new();
    for entry in dir.read_dir().with_context(|| format!("listing {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "json") {
            files.push(path);
        }
    }
    files.sort();
    let mut tables = String::new();
    let mut results = Vec::new();
    for file in &files {
        let result: Value =
            serde_json::from_str(&read(file)?).with_context(|| format!("parsing {}", file.display()))?;
        tables += &table(&result).with_context(|| format!("in {}", file.display()))?;
        results.push(result);
    }
    tables = bars::table(&results)? + &tables;
    let page = dir.join("README.md");
    let old = read(&page)?;
    let new = between_markers(&old, &tables).with_context(|| format!("in {}", page.display()))?;
    if check {
        ensure!(old == new, "{} is not up to date: run `cargo xtask report`", page.display());
    } else if old != new {
        std::fs::write(&page, new).with_context(|| format!("writing {}", page.display()))?;
    }
    println!("{}: {} result(s)", page.display(), files.len());
    Ok(())
}

/// Copies results, after a look at whether they are any.
fn take(from: &Path, to: &Path) -> Result<()> {
    let mut count = 0;
    for entry in from.read_dir().with_context(|| format!("listing {}", from.display()))? {
        let path = entry?.path();
        let Some(name) = path.file_name().filter(|_| path.extension().is_some_and(|e| e == "json")) else {
            continue;
        };
        let result: Value =
            serde_json::from_str(&read(&path)?).with_context(|| format!("parsing {}", path.display()))?;
        table(&result).with_context(|| format!("in {}", path.display()))?;
        ensure!(
            result["quick"] != true,
            "{}: measured with AIRLLM_BENCH_QUICK: small sizes, to see that it runs",
            path.display()
        );
        std::fs::copy(&path, to.join(name)).with_context(|| format!("copying {}", path.display()))?;
        count += 1;
    }
    ensure!(count > 0, "no results in {}", from.display());
    Ok(())
}

/// One result as a heading, a paragraph on the circumstances and a table.
fn table(result: &Value) -> Result<String> {
    let machine = &result["machine"];
    let mut out = format!(
        "\n### {}\n\n{}, commit `{}`, on {}{}, {} cores, {} RAM, {}, {}:\n`{}`\n\n",
        text(result, "name")?,
        text(result, "date")?,
        text(result, "commit")?,
        machine["gpu"].as_str().map_or(String::new(), |gpu| format!("**{gpu}** and ")),
        text(machine, "cpu")?,
        machine["cores"].as_u64().context("machine.cores: expected a whole number")?,
        text(machine, "ram")?,
        text(machine, "disk")?,
        text(machine, "kernel")?,
        text(result, "command")?,
    );
    out += "| case | value | unit | ratio | against |\n|---|---:|---|---:|---|\n";
    for row in result["rows"].as_array().context("rows: expected a list")? {
        let value = row["value"].as_f64().context("value: expected a number")?;
        let ratio = match &row["ratio"] {
            Value::Null => String::new(),
            ratio => number(ratio.as_f64().context("ratio: expected a number")?),
        };
        let against = row["against"].as_str().unwrap_or_default();
        let (case, unit) = (text(row, "case")?, text(row, "unit")?);
        writeln!(out, "| {case} | {} | {unit} | {ratio} | {against} |", number(value))?;
    }
    Ok(out)
}

fn text<'a>(object: &'a Value, key: &str) -> Result<&'a str> {
    object[key].as_str().with_context(|| format!("{key}: expected a text, found {}", object[key]))
}

/// Three figures: nothing measured here is known better.
fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 || v == 0.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn between_markers(page: &str, tables: &str) -> Result<String> {
    let (head, rest) = page.split_once(BEGIN).with_context(|| format!("no line {BEGIN}"))?;
    let (_, tail) = rest.split_once(END).with_context(|| format!("no line {END}"))?;
    let tables = if tables.is_empty() { "\nNo results yet.\n" } else { tables };
    Ok(format!("{head}{BEGIN}\n{tables}\n{END}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn result() -> Value {
        json!({
            "name": "disk", "date": "2026-01-02", "command": "cargo bench --bench disk", "commit": "abc",
            "machine": { "cpu": "a cpu", "cores": 2, "ram": "16 GB", "disk": "a disk", "kernel": "Linux" },
            "rows": [
                { "case": "ring", "value": 1.2345, "unit": "GB/s", "ratio": 0.91, "against": "O_DIRECT" },
                { "case": "mmap", "value": 512, "unit": "MB/s" },
            ],
        })
    }

    #[test]
    fn rows_are_rendered() {
        let table = table(&result()).unwrap();
        assert!(table.contains("| ring | 1.23 | GB/s | 0.910 | O_DIRECT |"), "{table}");
        assert!(table.contains("| mmap | 512 | MB/s |  |  |"), "{table}");
    }

    #[test]
    fn a_gpu_is_named() {
        let mut result = result();
        assert!(table(&result).unwrap().contains(", on a cpu, 2 cores"));
        result["machine"]["gpu"] = json!("a gpu");
        assert!(table(&result).unwrap().contains(", on **a gpu** and a cpu, 2 cores"));
    }

    #[test]
    fn results_are_taken_if_they_are_any() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        take(from.path(), to.path()).unwrap_err();
        std::fs::write(from.path().join("2026-01-02-disk.json"), result().to_string()).unwrap();
        std::fs::write(from.path().join("disk.log"), "not a result").unwrap();
        take(from.path(), to.path()).unwrap();
        assert_eq!(to.path().read_dir().unwrap().count(), 1);
        std::fs::write(from.path().join("2026-01-02-token.json"), "{}").unwrap();
        take(from.path(), to.path()).unwrap_err();
    }

    #[test]
    fn quick_results_are_none() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut result = result();
        result["quick"] = json!(true);
        std::fs::write(from.path().join("2026-01-02-disk.json"), result.to_string()).unwrap();
        let error = take(from.path(), to.path()).unwrap_err().to_string();
        assert!(error.contains("AIRLLM_BENCH_QUICK"), "{error}");
    }

    #[test]
    fn a_result_without_its_machine_is_refused() {
        let mut result = result();
        result["machine"] = Value::Null;
        assert!(table(&result).unwrap_err().to_string().contains("cpu: expected a text"));
    }

    #[test]
    fn the_page_keeps_what_is_around_the_markers() {
        let page = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let new = between_markers(&page, "\ntable\n").unwrap();
        assert_eq!(new, format!("before\n{BEGIN}\n\ntable\n\n{END}\nafter\n"));
        assert_eq!(between_markers(&new, "\ntable\n").unwrap(), new);
        assert!(between_markers("no markers", "").is_err());
    }
}
