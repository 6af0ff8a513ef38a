//! The layering of the crates.

use cargo_metadata::{DependencyKind, Metadata};

/// Each crate may use any before it.
const LAYERS: [&str; 7] = [
    "airllm-format",
    "airllm-quant",
    "airllm-kernels",
    "airllm-stream",
    "airllm-model",
    "airllm",
    "airllm-cli",
];
/// Stands beside `airllm-model`: uses none of ours, and is used by the facade and the program.
const TEXT: &str = "airllm-text";
/// Outside the layers: may use any of the crates, and is used by none of them.
const OUTSIDE: [&str; 3] = [HELPERS, STANDIN, "airllm-benches"];
/// Test helpers, and the writer of random checkpoints.
const HELPERS: &str = "airllm-tests";
/// The stand-in for the CUDA driver.
const STANDIN: &str = "airllm-standin";
/// Chores: uses no crate of the engine, so that it builds fast and checks them from outside.
const XTASK: &str = "xtask";

/// Breaches of the layering among the workspace's packages.
pub fn check(metadata: &Metadata) -> Vec<String> {
    let members = metadata.workspace_packages();
    let ours = |name: &str| members.iter().any(|p| p.name == name);
    let mut findings = Vec::new();
    for package in &members {
        let name = package.name.as_str();
        let known = LAYERS.contains(&name) || OUTSIDE.contains(&name) || [TEXT, XTASK].contains(&name);
        if !known {
            findings
                .push(format!("{name}: no place in the layering; give it one in xtask/src/tidy/graph.rs"));
            continue;
        }
        for dependency in package.dependencies.iter().filter(|d| ours(&d.name)) {
            // Test helpers may serve any crate's tests; they are no part of what it builds.
            let helpers = dependency.kind == DependencyKind::Development
                && [HELPERS, STANDIN].contains(&dependency.name.as_str());
            if !helpers && !may_use(name, &dependency.name) {
                findings.push(format!("{name} uses {}, which is not below it", dependency.name));
            }
        }
    }
    findings
}

fn may_use(user: &str, used: &str) -> bool {
    let place = |name: &str| LAYERS.iter().position(|layer| *layer == name);
    if OUTSIDE.contains(&user) {
        return used != XTASK;
    }
    if user == XTASK {
        return used == HELPERS;
    }
    match (place(user), place(used)) {
        (Some(user), Some(used)) => used < user,
        (Some(_), None) => used == TEXT && ["airllm", "airllm-cli"].contains(&user),
        (None, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers() {
        assert!(may_use("airllm-quant", "airllm-format"));
        assert!(may_use("airllm-cli", "airllm-format"));
        assert!(may_use("airllm", "airllm-text"));
        assert!(may_use("airllm-tests", "airllm"));
        assert!(may_use("xtask", "airllm-tests"));
        assert!(!may_use("airllm-format", "airllm-quant"));
        assert!(!may_use("airllm-model", "airllm-text"));
        assert!(!may_use("airllm-text", "airllm-format"));
        assert!(!may_use("airllm-cli", "airllm-tests"));
        assert!(!may_use("xtask", "airllm-format"));
    }
}
