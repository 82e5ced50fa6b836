//! Folded stacks: a line each, frames root first with `;` between them, a space, and how many samples. Pure.

use anyhow::{Context, Result, ensure};
use std::{collections::BTreeMap, fmt::Write};

/// How often each stack was seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Folded(pub(super) BTreeMap<Vec<String>, u64>);

/// No stack is deeper (perf's own limit is 127).
const DEEPEST: usize = 1024;

impl Folded {
    pub(super) fn add(&mut self, stack: Vec<String>, samples: u64) {
        *self.0.entry(stack).or_default() += samples;
    }

    pub(super) fn samples(&self) -> u64 {
        self.0.values().sum()
    }

    pub(super) fn write(&self) -> String {
        let mut text = String::new();
        for (stack, samples) in &self.0 {
            let _ = writeln!(text, "{} {samples}", stack.join(";"));
        }
        text
    }

    /// # Errors
    /// A line that is not one, with its number; nothing at all.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut folded = Self::default();
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
            let parsed = parse_line(line).with_context(|| format!("line {number} is no folded stack"));
            let (stack, samples) = parsed?;
            folded.add(stack, samples);
        }
        ensure!(folded.samples() > 0, "there are no samples in it");
        ensure!(
            folded.0.values().try_fold(0_u64, |sum, n| sum.checked_add(*n)).is_some(),
            "more samples than can be counted"
        );
        Ok(folded)
    }
}

fn parse_line(line: &str) -> Result<(Vec<String>, u64)> {
    let (stack, samples) = line.trim_end().rsplit_once(' ').context("it should be FRAME;FRAME;… SAMPLES")?;
    let samples = samples.parse().with_context(|| format!("'{samples}' is no number of samples"))?;
    ensure!(samples < 1 << 48, "{samples} samples cannot be");
    let frames: Vec<String> = stack.split(';').map(str::to_owned).collect();
    ensure!(frames.iter().all(|frame| !frame.is_empty()), "a frame has no name");
    ensure!(frames.len() <= DEEPEST, "it is deeper than {DEEPEST} frames");
    Ok((frames, samples))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read_again() {
        let text = "a;main;recv 3\nb;start_[k] 1\n";
        assert_eq!(Folded::parse(text).unwrap().write(), text);
        assert_eq!(Folded::parse("a;b 1\n\na;b 2\n").unwrap().samples(), 3);
        assert_eq!(Folded::parse("a b c;d e 4").unwrap().write(), "a b c;d e 4\n", "names may have spaces");
    }

    #[test]
    fn what_is_no_folded_stack_is_told_with_its_line() {
        let error = |text: &str| format!("{:#}", Folded::parse(text).unwrap_err());
        assert!(
            error("a;b 1\nnonsense").starts_with("line 2 is no folded stack"),
            "{}",
            error("a;b 1\nnonsense")
        );
        assert!(error("a;b x").contains("'x' is no number"));
        assert!(error("a;;b 1").contains("no name"));
        assert!(error("").contains("no samples"));
        assert!(error("a;b -1").contains("'-1'"));
        assert!(error(&format!("a {}", u64::MAX)).contains("cannot be"));
        assert!(error(&format!("{}a 1", "a;".repeat(2000))).contains("deeper"));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in ".{0,200}") {
            let _ = Folded::parse(&text);
        }
    }
}
