//! Findings for people (80 columns) and for programs (JSON).

use super::judge::{Finding, Severity};
use anyhow::Result;
use serde::Serialize;
use std::fmt::Write;

const WIDTH: usize = 80;
/// Where the text of a finding begins: severity and topic stand before it.
const TEXT: usize = 24;
const MEND: usize = 8;

/// One line a finding that is fine; else what it means and how to mend it as well.
pub(super) fn terminal(findings: &[Finding]) -> String {
    let mut out = String::new();
    let mut place = None;
    for finding in findings {
        if place != Some(&finding.device) {
            let gap = if place.is_some() { "\n" } else { "" };
            place = Some(&finding.device);
            line(&mut out, format_args!("{gap}{}", finding.device.as_deref().unwrap_or("machine")));
        }
        describe(&mut out, finding);
    }
    line(&mut out, format_args!("\n{}", verdict(findings)));
    out
}

fn describe(out: &mut String, finding: &Finding) {
    let indent = " ".repeat(TEXT);
    let mut found = wrapped(&finding.found, WIDTH - TEXT).into_iter();
    let first = found.next().unwrap_or_default();
    line(out, format_args!("  {:<4}  {:<14}  {first}", word(finding.severity), finding.topic));
    found.for_each(|rest| line(out, format_args!("{indent}{rest}")));
    if finding.severity == Severity::Ok {
        return;
    }
    for means in wrapped(&finding.means, WIDTH - TEXT) {
        line(out, format_args!("{indent}{means}"));
    }
    for command in &finding.mend {
        out.push_str(&shell(command));
    }
}

/// A command that can be pasted: where it is too long, the shell's own line breaks.
fn shell(command: &str) -> String {
    let lines = wrapped(command, WIDTH - MEND - "$ ".len() - " \\".len());
    let indent = " ".repeat(MEND);
    format!("{indent}$ {}\n", lines.join(&format!(" \\\n{indent}  ")))
}

fn verdict(findings: &[Finding]) -> String {
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let (bad, warn, note) = (count(Severity::Bad), count(Severity::Warn), count(Severity::Note));
    let says = match (bad, warn) {
        (0, 0) => "Hoist can run here.",
        (0, _) => "Hoist can run here; see the warnings.",
        _ => "Hoist cannot run as things are: mend what is bad.",
    };
    format!("{bad} bad, {warn} warn, {note} note. {says}\nEach line has a section in docs/tuning.md.")
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Ok => "ok",
        Severity::Note => "note",
        Severity::Warn => "warn",
        Severity::Bad => "bad",
    }
}

/// Words in lines of at most `width` columns; a word that is longer has a line of its own.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(last) if last.chars().count() + 1 + word.chars().count() <= width => {
                last.push(' ');
                last.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{text}");
}

#[derive(Serialize)]
struct Report<'a> {
    /// Nothing is bad.
    runs: bool,
    findings: &'a [Finding],
}

pub(super) fn json(findings: &[Finding]) -> Result<String> {
    let runs = findings.iter().all(|finding| finding.severity < Severity::Bad);
    Ok(serde_json::to_string_pretty(&Report { runs, findings })? + "\n")
}

#[cfg(test)]
mod tests {
    use super::super::judge::{judge, made_up};
    use super::*;
    use std::path::Path;

    /// HOIST_GOLDEN=write renews the files.
    fn golden(name: &str, expected: &str, rendered: &str) {
        if std::env::var_os("HOIST_GOLDEN").is_some_and(|what| what == "write") {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/doctor/golden");
            std::fs::write(folder.join(name), rendered).unwrap();
        } else {
            assert_eq!(rendered, expected, "{name} differs; HOIST_GOLDEN=write renews it");
        }
    }

    #[test]
    fn a_good_server_looks_like_this() {
        let text = terminal(&judge(&made_up::server()));
        golden("server.txt", include_str!("golden/server.txt"), &text);
    }

    #[test]
    fn a_machine_with_everything_wrong_looks_like_this() {
        let text = terminal(&judge(&made_up::wreck()));
        golden("wreck.txt", include_str!("golden/wreck.txt"), &text);
    }

    #[test]
    fn a_machine_seen_by_an_ordinary_user_looks_like_this() {
        let text = terminal(&judge(&made_up::by_a_stranger()));
        golden("stranger.txt", include_str!("golden/stranger.txt"), &text);
    }

    #[test]
    fn json_holds_what_the_terminal_says() {
        let text = json(&judge(&made_up::wreck())).unwrap();
        golden("wreck.json", include_str!("golden/wreck.json"), &text);
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for facts in [made_up::server(), made_up::wreck(), made_up::by_a_stranger()] {
            let text = terminal(&judge(&facts));
            let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(widest <= WIDTH, "{widest} columns:\n{text}");
        }
    }

    #[test]
    fn a_broken_command_is_still_one_command() {
        let command = format!("ethtool -L {}", "word ".repeat(30).trim_end());
        let shown = shell(&command);
        let joined = shown.trim_start().trim_start_matches("$ ").replace("\\\n", "");
        assert_eq!(
            joined.split_whitespace().collect::<Vec<_>>(),
            command.split_whitespace().collect::<Vec<_>>()
        );
        assert!(shown.lines().count() > 1);
    }

    #[test]
    fn a_word_longer_than_the_line_is_kept_whole() {
        assert_eq!(wrapped("a unbreakable-word b", 8), ["a", "unbreakable-word", "b"]);
        assert!(wrapped("", 8).is_empty());
    }
}
