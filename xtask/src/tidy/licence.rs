//! Licences of everything the workspace is built from, against the list in `deny.toml`.

use anyhow::{Context, Result, ensure};
use cargo_metadata::Metadata;

/// The `allow` list of the `[licenses]` section.
pub fn allowed(deny_toml: &str) -> Result<Vec<String>> {
    let (_, section) = deny_toml.split_once("[licenses]").context("deny.toml: no [licenses] section")?;
    let (_, list) = section.split_once("allow = [").context("deny.toml: no `allow = [` under [licenses]")?;
    let (list, _) = list.split_once(']').context("deny.toml: the allow list does not end")?;
    let code = list.lines().map(|line| line.split('#').next().unwrap_or_default());
    let names: Vec<String> =
        code.flat_map(|line| line.split('"').skip(1).step_by(2)).map(str::to_owned).collect();
    ensure!(!names.is_empty(), "deny.toml: the allow list is empty");
    Ok(names)
}

/// Packages under a licence that is not allowed.
pub fn check(metadata: &Metadata, allowed: &[String]) -> Vec<String> {
    let check = |package: &cargo_metadata::Package| match &package.license {
        None => Some(format!("{}: declares no licence", package.name)),
        Some(expression) => match satisfied(expression, allowed) {
            Ok(true) => None,
            Ok(false) => {
                Some(format!("{}: licence {expression:?} is not allowed by deny.toml", package.name))
            }
            Err(error) => Some(format!("{}: licence {expression:?}: {error}", package.name)),
        },
    };
    metadata.packages.iter().filter_map(check).collect()
}

/// Whether an SPDX expression can be met with the allowed licences alone. The old spelling
/// `MIT/Apache-2.0` means OR.
fn satisfied(expression: &str, allowed: &[String]) -> Result<bool> {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let result = any(&words, &mut at, allowed)?;
    ensure!(at == words.len(), "unexpected {:?}", words[at]);
    Ok(result)
}

fn any(words: &[&str], at: &mut usize, allowed: &[String]) -> Result<bool> {
    let mut result = all(words, at, allowed)?;
    while eat(words, at, "OR") {
        result |= all(words, at, allowed)?;
    }
    Ok(result)
}

fn all(words: &[&str], at: &mut usize, allowed: &[String]) -> Result<bool> {
    let mut result = one(words, at, allowed)?;
    while eat(words, at, "AND") {
        result &= one(words, at, allowed)?;
    }
    Ok(result)
}

fn one(words: &[&str], at: &mut usize, allowed: &[String]) -> Result<bool> {
    if eat(words, at, "(") {
        let result = any(words, at, allowed)?;
        ensure!(eat(words, at, ")"), "a parenthesis is not closed");
        return Ok(result);
    }
    let word = words.get(*at).context("ends too early")?;
    *at += 1;
    let mut name = (*word).to_owned();
    if eat(words, at, "WITH") {
        let exception = words.get(*at).context("ends after WITH")?;
        *at += 1;
        name = format!("{name} WITH {exception}");
    }
    Ok(allowed.contains(&name))
}

fn eat(words: &[&str], at: &mut usize, word: &str) -> bool {
    let found = words.get(*at) == Some(&word);
    *at += usize::from(found);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_read_without_its_comments() {
        let toml =
            "[bans]\nallow = [\"x\"]\n[licenses]\nallow = [\n  \"MIT\", # \"GPL-3.0\"\n  \"ISC\",\n]\n";
        assert_eq!(allowed(toml).unwrap(), ["MIT", "ISC"]);
        assert!(allowed("[licenses]\nallow = []\n").is_err());
        assert!(allowed("[bans]\n").is_err());
    }

    #[test]
    fn expressions() {
        let allowed = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned);
        for good in [
            "MIT",
            "GPL-3.0 OR MIT",
            "Unlicense/MIT",
            "MIT AND Apache-2.0",
            "(MIT OR GPL-3.0) AND Apache-2.0",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert!(satisfied(good, &allowed).unwrap(), "{good}");
        }
        for bad in ["GPL-3.0", "MIT AND GPL-3.0", "MIT WITH LLVM-exception", "(GPL-3.0 OR ISC) AND MIT"] {
            assert!(!satisfied(bad, &allowed).unwrap(), "{bad}");
        }
        for broken in ["", "MIT OR", "(MIT", "MIT Apache-2.0"] {
            assert!(satisfied(broken, &allowed).is_err(), "{broken}");
        }
    }
}
