//! The README, English and Chinese, says what the program does: tables and commands are held against it.

use airllm_tests::checkpoint::{Checkpoint, Shape};
use airllm_tests::program::Airllm;
use airllm_tests::shared::repository;
use std::collections::{BTreeMap, BTreeSet};

fn readme() -> String {
    read("README.md")
}

/// Both languages say the same commands, codes and variables.
fn chinese() -> String {
    read("README.zh-CN.md")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(repository().join(name)).unwrap()
}

fn airllm(args: &[&str]) -> airllm_tests::program::Outcome {
    let home = tempfile::tempdir().unwrap();
    Airllm::new(home.path()).args(args).run()
}

/// The section under a heading.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let (_, rest) =
        text.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no section {heading}"));
    rest.split("\n## ").next().unwrap()
}

/// Words such as `HF_TOKEN`.
fn variables(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_uppercase() && c != '_');
    words.filter(|w| ["AIRLLM_", "HF_", "XDG_"].iter().any(|start| w.starts_with(start))).collect()
}

/// The words of a command line: quotes hold spaces together, `#` begins a comment.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            '#' if !quoted => break,
            ' ' if !quoted => words.extend(Some(std::mem::take(&mut word)).filter(|w| !w.is_empty())),
            _ => word.push(c),
        }
    }
    words.extend(Some(word).filter(|w| !w.is_empty()));
    words
}

#[test]
fn exit_codes_are_those_of_the_help() {
    let readme = readme();
    let rows = section(&readme, "Exit codes").lines().filter_map(|line| {
        let mut cells = line.split('|').map(str::trim).skip(1);
        Some((cells.next()?.parse::<i32>().ok()?, cells.next()?.to_owned()))
    });
    let help = airllm(&["--help"]).success();
    let (_, list) = help.text().split_once("Exit codes:\n").expect("the help lists exit codes");
    // Help is wrapped to the terminal: lines that do not begin with a code go on with the one before.
    let mut codes: BTreeMap<i32, String> = BTreeMap::new();
    for line in list.lines().take_while(|line| !line.trim().is_empty()) {
        let (first, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        match first.parse() {
            Ok(code) => drop(codes.insert(code, rest.trim().to_owned())),
            Err(_) => *codes.last_entry().unwrap().get_mut() += &format!(" {}", line.trim()),
        }
    }
    assert_eq!(rows.collect::<BTreeMap<_, _>>(), codes);
    let chinese = chinese();
    let rows = section(&chinese, "退出码").lines();
    let rows = rows.filter_map(|line| line.split('|').nth(1)?.trim().parse::<i32>().ok());
    assert_eq!(rows.collect::<Vec<_>>(), codes.keys().copied().collect::<Vec<_>>());
    assert!(codes.len() > 3, "{codes:?}");
}

#[test]
fn environment_variables_are_those_of_the_help() {
    let readme = readme();
    let help = airllm(&["--help"]).success();
    assert_eq!(variables(section(&readme, "Environment")), variables(help.text()));
    assert_eq!(variables(section(&chinese(), "环境变量")), variables(help.text()));
}

#[test]
fn every_command_in_the_readme_is_one() {
    for (name, text) in [("README.md", readme()), ("README.zh-CN.md", chinese())] {
        let count = commands(name, &text);
        assert!(count > 8, "{name}: {count} commands");
    }
    airllm(&["generate", "--no-such-option", "--help"]).refused(2, &["--no-such-option"]);
}

/// Runs the help of every command in a text's blocks of shell, and says how many there were.
fn commands(name: &str, text: &str) -> usize {
    let mut count = 0;
    let blocks = text.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap());
    for line in blocks.flat_map(str::lines) {
        let line = line.trim().replace("cargo run --release -- ", "airllm ");
        let Some(command) = line.strip_prefix("airllm ") else { continue };
        let words = words(command);
        // Asked for its help, a command still refuses options that it does not have.
        let args: Vec<&str> = words.iter().map(String::as_str).chain(["--help"]).collect();
        let outcome = airllm(&args);
        assert!(outcome.status.success(), "{name}: {command}: {outcome}");
        count += 1;
    }
    count
}

#[test]
fn the_readmes_name_each_other_and_the_chats_commands() {
    assert!(readme().contains("(README.zh-CN.md)"));
    let chinese = chinese();
    assert!(chinese.contains("(README.md)"));
    let written: BTreeSet<&str> = section(&chinese, "对话")
        .split('`')
        .filter_map(|code| code.strip_prefix('/'))
        .map(|code| code.split(' ').next().unwrap())
        .collect();
    assert!(written.len() > 7, "{written:?}");
    // The chat's own help names them all.
    let place = tempfile::tempdir().unwrap();
    let model = place.path().join("model");
    Checkpoint::new(Shape::TINY).write(&model).unwrap();
    std::fs::write(model.join("chat_template.jinja"), "{{ messages[0].content }}").unwrap();
    let model = model.to_str().unwrap();
    let help = Airllm::new(place.path()).args(["chat", "-m", model]).stdin("/help\n").run().success();
    for command in written {
        assert!(help.stderr.contains(&format!("/{command} ")), "/{command}: {help}");
    }
}
