//! What ptxas says of kernels: read from its output, kept as a table.

use super::ARCHS;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fmt::Write;

/// What a thread or a block of a kernel takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub registers: u64,
    /// Bytes of shared memory beside what is given at launch.
    pub shared: u64,
    /// Bytes of local memory.
    pub stack: u64,
    /// Bytes written to local memory for want of registers, and read back.
    pub spilled: u64,
}

/// By kernel and architecture (`"75"`).
pub type Usages = BTreeMap<(String, String), Usage>;

/// The output of `-Xptxas -v`: three lines a kernel and architecture.
pub fn parse(log: &str) -> Result<Usages> {
    let mut found = Usages::new();
    let mut at = None;
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let words: Vec<&str> = rest.split('\'').collect();
            let [kernel, _, arch, ..] = words[..] else { continue };
            at = Some((kernel.to_owned(), arch.trim_start_matches("sm_").to_owned()));
            continue;
        }
        let Some(at) = &at else { continue };
        let usage = found.entry(at.clone()).or_default();
        for part in line.split(',') {
            let part = part.trim().trim_start_matches("ptxas info").trim_start_matches([' ', ':']);
            let number = || part.split(' ').find_map(|word| word.parse().ok());
            if part.ends_with("bytes stack frame") {
                usage.stack = number().with_context(|| format!("no number in {line:?}"))?;
            } else if part.ends_with("spill stores") || part.ends_with("spill loads") {
                usage.spilled += number().with_context(|| format!("no number in {line:?}"))?;
            } else if part.starts_with("Used ") {
                usage.registers = number().with_context(|| format!("no number in {line:?}"))?;
            } else if part.ends_with("bytes smem") {
                usage.shared = number().with_context(|| format!("no number in {line:?}"))?;
            }
        }
    }
    ensure!(!found.is_empty(), "ptxas said nothing of any kernel");
    Ok(found)
}

/// A line for each kernel, a column for each architecture.
pub fn table(found: &Usages, version: &str) -> String {
    let mut out = format!("# {version}\n# registers/shared/stack/spilled, the last three in bytes\n# kernel");
    for arch in ARCHS {
        let _ = write!(out, " sm_{arch}");
    }
    let mut last = "";
    for (kernel, _) in found.keys() {
        if kernel == last {
            continue;
        }
        last = kernel;
        let _ = write!(out, "\n{kernel}");
        for arch in ARCHS {
            match found.get(&(kernel.clone(), arch.to_owned())) {
                Some(u) => {
                    let _ = write!(out, " {}/{}/{}/{}", u.registers, u.shared, u.stack, u.spilled);
                }
                None => out.push_str(" -"),
            }
        }
    }
    out.push('\n');
    out
}

/// The inverse of [`table`].
pub fn read_table(text: &str) -> Result<Usages> {
    let mut found = Usages::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let mut words = line.split(' ');
        let kernel = words.next().unwrap_or_default();
        for (arch, word) in ARCHS.into_iter().zip(words).filter(|(_, word)| *word != "-") {
            let numbers: Result<Vec<u64>, _> = word.split('/').map(str::parse).collect();
            let numbers = numbers.with_context(|| format!("ptxas.txt: {kernel}: {word:?}"))?;
            let [registers, shared, stack, spilled] = numbers[..] else {
                anyhow::bail!("ptxas.txt: {kernel}: expected four numbers, found {word:?}");
            };
            let usage = Usage { registers, shared, stack, spilled };
            found.insert((kernel.to_owned(), arch.to_owned()), usage);
        }
    }
    Ok(found)
}

/// Kernels that spill more than they did. New ones may not spill at all.
pub fn worse(before: &Usages, now: &Usages) -> Vec<String> {
    let mut worse = Vec::new();
    for (at, usage) in now {
        let allowed = before.get(at).map_or(0, |usage| usage.spilled);
        if usage.spilled > allowed {
            worse.push(format!("{} on sm_{} spills {} bytes, not {allowed}", at.0, at.1, usage.spilled));
        }
    }
    worse
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
ptxas info    : 64 bytes gmem
ptxas info    : Compiling entry function 'gemm_q4' for 'sm_75'
ptxas info    : Function properties for gemm_q4
    512 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 47 registers, used 1 barriers, 512 bytes cumulative stack size, 13312 bytes smem
ptxas info    : Compile time = 12.3 ms
ptxas info    : Compiling entry function 'add' for 'sm_120'
ptxas info    : Function properties for add
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 0 barriers
";

    #[test]
    fn what_ptxas_says() {
        let found = parse(LOG).unwrap();
        let usage = |kernel: &str, arch: &str| found[&(kernel.to_owned(), arch.to_owned())];
        assert_eq!(usage("gemm_q4", "75"), Usage { registers: 47, shared: 13312, stack: 512, spilled: 12 });
        assert_eq!(usage("add", "120"), Usage { registers: 10, ..Usage::default() });
        assert_eq!(found.len(), 2);
        assert!(parse("nothing").is_err());

        let table = table(&found, "release 13.0");
        assert!(table.contains("\ngemm_q4 47/13312/512/12 - - - - -\n"), "{table}");
        assert_eq!(read_table(&table).unwrap(), found);
        assert!(read_table("add 1/2/3").is_err());
    }

    #[test]
    fn a_spill_more_is_found() {
        let found = parse(LOG).unwrap();
        assert_eq!(worse(&found, &found), [""; 0]);
        let mut more = found.clone();
        more.values_mut().for_each(|usage| usage.spilled += 4);
        assert_eq!(
            worse(&found, &more),
            ["add on sm_120 spills 4 bytes, not 0", "gemm_q4 on sm_75 spills 16 bytes, not 12"]
        );
        assert_eq!(worse(&Usages::new(), &found), ["gemm_q4 on sm_75 spills 12 bytes, not 0"]);
    }
}
