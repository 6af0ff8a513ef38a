//! `cargo xtask tidy`: the rules of the house that the compiler does not know.

mod graph;
mod licence;
mod source;

use anyhow::{Context, Result, ensure};
use cargo_metadata::MetadataCommand;
use std::path::Path;

/// Prints every breach on standard error and fails if there is one.
pub fn run(root: &Path) -> Result<()> {
    let metadata =
        MetadataCommand::new().manifest_path(root.join("Cargo.toml")).exec().context("cargo metadata")?;
    let allowed = licence::allowed(&crate::read(&root.join("deny.toml"))?)?;
    let mut findings = graph::check(&metadata);
    findings.extend(licence::check(&metadata, &allowed));
    findings.extend(source::check(root, &metadata)?);
    findings.sort();
    for finding in &findings {
        eprintln!("tidy: {finding}");
    }
    ensure!(findings.is_empty(), "tidy: {} finding(s)", findings.len());
    let packages = metadata.packages.len();
    println!("tidy: layering, docs, lengths, unsafe and the licences of {packages} packages are in order");
    Ok(())
}
