//! What a GPU has to reach, beside what was measured on one.

use anyhow::{Context, Result};
use serde_json::Value;
use std::fmt::Write;

/// A line of the table.
struct Bar {
    work: &'static str,
    bar: &'static str,
    command: &'static str,
    /// Name of the result that has it.
    result: &'static str,
    checks: &'static [Check],
}

/// One number of a result.
struct Check {
    case: &'static str,
    number: Number,
    limit: Limit,
}

enum Number {
    Value,
    Ratio,
}

enum Limit {
    Least(f64),
    Most(f64),
    None,
}

const fn ratio(case: &'static str, least: f64) -> Check {
    Check { case, number: Number::Ratio, limit: Limit::Least(least) }
}

const fn most(case: &'static str, number: Number, most: f64) -> Check {
    Check { case, number, limit: Limit::Most(most) }
}

const fn told(case: &'static str, number: Number) -> Check {
    Check { case, number, limit: Limit::None }
}

const MEMORY: &str = "most device memory, by the driver, of all programs";
/// Within ten percent of the time.
const WITHIN_A_TENTH: f64 = 1.0 / 1.1;

const BARS: [Bar; 9] = [
    Bar {
        work: "conformance and goldens on the device",
        bar: "pass",
        command: "`run.sh` of `cargo xtask gpu-bundle`",
        result: "checks",
        checks: &[ratio("conformance: passed", 1.0), ratio("goldens: passed", 1.0)],
    },
    Bar {
        work: "the same under compute-sanitizer: memcheck, racecheck",
        bar: "clean",
        command: "`run.sh`, with compute-sanitizer in the path",
        result: "checks",
        checks: &[
            ratio("memcheck: passed", 1.0),
            ratio("memcheck-model: passed", 1.0),
            ratio("racecheck: passed", 1.0),
            ratio("racecheck-model: passed", 1.0),
        ],
    },
    Bar {
        work: "q4 times one column, 8192 x 8192 and 28672 x 8192",
        bar: ">= 85 % of the measured device memory bandwidth",
        command: "`cargo bench --bench gemv -- --cuda`",
        result: "gemv",
        checks: &[ratio("q4 8192 x 8192, 1 columns", 0.85), ratio("q4 28672 x 8192, 1 columns", 0.85)],
    },
    Bar {
        work: "q4 times 512 columns",
        bar: ">= 60 % of cuBLAS f16",
        command: "`cargo bench --bench gemm`, with libcublas in the path",
        result: "gemm",
        checks: &[
            ratio("q4 8192 x 8192, 512 columns, time", 0.6),
            ratio("q4 28672 x 8192, 512 columns, time", 0.6),
        ],
    },
    Bar {
        work: "70B in `--vram 4GB`, weights in page-locked RAM, one sequence",
        bar: ">= 95 % of what the copied bytes allow, <= 4.0 GiB by the driver",
        command: "`cargo bench --bench token -- --cuda --case pinned`",
        result: "token-pinned",
        checks: &[ratio("layers", 1.0), ratio("one sequence", 0.95), most(MEMORY, Number::Value, 4.0)],
    },
    Bar {
        work: "the same from disk",
        bar: ">= 90 % of the slower of disk and copies",
        command: "`cargo bench --bench token -- --cuda --case disk --dir FOLDER`",
        result: "token-disk",
        checks: &[ratio("layers", 1.0), ratio("one sequence", 0.9), most(MEMORY, Number::Value, 4.0)],
    },
    Bar {
        work: "32 sequences; a prompt of 1024 tokens",
        bar: "within 10 % of the time of streaming, while that is the larger term",
        command: "`cargo bench --bench token -- --cuda --case pinned`",
        result: "token-pinned",
        checks: &[
            ratio("32 sequences, a pass", WITHIN_A_TENTH),
            ratio("prompt of 1024 tokens, a pass", WITHIN_A_TENTH),
        ],
    },
    Bar {
        work: "405B layers in `--vram 2GB`, as many as RAM holds",
        bar: "runs within the budget",
        command: "`cargo bench --bench token -- --cuda --case large`",
        result: "token-large",
        checks: &[
            told("layers", Number::Value),
            told("one sequence", Number::Value),
            most(MEMORY, Number::Ratio, 1.0),
        ],
    },
    Bar {
        work: "the original (`airllm` 4.0) on the same 7B checkpoint and GPU",
        bar: "ratio reported, 16-bit and 4-bit",
        command: "`benches/compare/compare.py --name original original CHECKPOINT --device cuda:0 --vram 4GB --bits 16 4 …`",
        result: "original",
        checks: &[told("16-bit", Number::Ratio), told("4-bit", Number::Ratio)],
    },
];

/// The table of all bars. `results` are in the order of their dates: of several of a name, the last one counts.
pub fn table(results: &[Value]) -> Result<String> {
    let mut out =
        String::from("\n### Bars on a GPU\n\n| work | bar | measured | command |\n|---|---|---|---|\n");
    for bar in &BARS {
        let named = |result: &&Value| result["name"] == bar.result && result["machine"]["gpu"].is_string();
        let measured = match results.iter().rev().find(named) {
            Some(result) => bar.measured(result).with_context(|| format!("in the result {}", bar.result))?,
            None => "**owed**".to_owned(),
        };
        writeln!(out, "| {} | {} | {measured} | {} |", bar.work, bar.bar, bar.command)?;
    }
    Ok(out)
}

impl Bar {
    /// What a result says of it, with a word for each number.
    fn measured(&self, result: &Value) -> Result<String> {
        let rows = result["rows"].as_array().context("rows: expected a list")?;
        let mut numbers = Vec::new();
        for check in self.checks {
            let key = match check.number {
                Number::Value => "value",
                Number::Ratio => "ratio",
            };
            let row = rows.iter().find(|row| row["case"] == check.case);
            let Some(number) = row.and_then(|row| row[key].as_f64()) else {
                numbers.push(format!("{}: **owed**", check.case));
                continue;
            };
            let unit = match check.number {
                Number::Value => row.and_then(|row| row["unit"].as_str()).unwrap_or_default(),
                Number::Ratio => "",
            };
            let verdict = match check.limit {
                Limit::Least(least) if number < least => ", **missed**",
                Limit::Most(most) if number > most => ", **missed**",
                Limit::Least(_) | Limit::Most(_) => ", reached",
                Limit::None => "",
            };
            let number = super::number(number);
            numbers.push(format!("{}: {}{verdict}", check.case, format!("{number} {unit}").trim_end()));
        }
        if numbers.iter().all(|number| number.ends_with("**owed**")) {
            return Ok("**owed**".to_owned());
        }
        let gpu = result["machine"]["gpu"].as_str().unwrap_or_default();
        Ok(format!("{} ({gpu})", numbers.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn line<'a>(table: &'a str, work: &str) -> &'a str {
        table.lines().find(|line| line.contains(work)).unwrap()
    }

    fn pinned(share: f64, gib: f64) -> Value {
        json!({
            "name": "token-pinned", "machine": { "gpu": "a gpu" }, "rows": [
                { "case": "layers", "value": 80.0, "unit": "layers", "ratio": 1.0 },
                { "case": "one sequence", "value": 1.4, "unit": "tokens/s", "ratio": share },
                { "case": "one sequence, waits of the host in a pass", "value": 1.0, "unit": "waits" },
                { "case": MEMORY, "value": gib, "unit": "GiB", "ratio": 0.9 },
            ],
        })
    }

    #[test]
    fn without_results_all_is_owed() {
        let table = table(&[]).unwrap();
        assert_eq!(table.matches("| **owed** |").count(), BARS.len());
        // What was measured on a processor, or goes by another name, is no answer.
        let mut other = pinned(0.99, 3.0);
        other["machine"] = json!({});
        let mut named = pinned(0.99, 3.0);
        named["name"] = json!("token");
        assert_eq!(super::table(&[other, named]).unwrap(), table);
    }

    #[test]
    fn numbers_stand_beside_their_bars() {
        let table = table(&[pinned(0.2, 3.0), pinned(0.96, 4.25)]).unwrap();
        let line = line(&table, "page-locked RAM, one sequence");
        for part in ["one sequence: 0.960, reached;", "4.25 GiB, **missed** (a gpu)", "layers: 1.00, reached"]
        {
            assert!(line.contains(part), "{part}: {line}");
        }
        // The same result has nothing of the other rows, so those stay owed.
        assert!(super::tests::line(&table, "32 sequences").contains("| **owed** |"));
    }

    #[test]
    fn a_part_may_be_owed() {
        let checks = json!({
            "name": "checks", "machine": { "gpu": "a gpu" }, "rows": [
                { "case": "conformance: passed", "value": 40.0, "unit": "tests passed", "ratio": 1.0 },
                { "case": "goldens: FAILED (101)", "value": 9.0, "unit": "tests passed", "ratio": 0.9 },
            ],
        });
        let table = table(&[checks]).unwrap();
        let line = line(&table, "goldens on the device");
        assert!(
            line.contains("conformance: passed: 1.00, reached; goldens: passed: **owed** (a gpu)"),
            "{line}"
        );
    }
}
