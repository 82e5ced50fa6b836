//! A run on the terminal.

use super::{
    document::Document,
    grid::{self, Grid},
    losses,
};

/// Everything that a reader needs to judge the figures.
pub(crate) fn of(document: &Document) -> String {
    let mut parts = vec![head(document)];
    parts.extend(grid::of(document).iter().map(show));
    parts.push(losses::of(document).join("\n"));
    parts.extend(end(document));
    parts.join("\n\n")
}

fn head(document: &Document) -> String {
    format!("{}\ncommit {}\n{SIDES}\n{READING}", document.host.line(), document.commit)
}

/// What the sides are.
pub(crate) const SIDES: &str = "kernel and hoist run the program as is: nice 0, default SO_RCVBUF. kernel-tuned has the best \
                                tuning from outside\nthat was found: 4 MiB of SO_RCVBUF, program and NAPI at nice -20. limit \
                                is a raw AF_XDP sink.";
/// How to read the figures.
pub(crate) const READING: &str =
    "Figures: median (least to most) of n samples; x is the ratio to the kernel's median.";

fn end(document: &Document) -> Option<String> {
    let mut lines: Vec<String> = document.notes.iter().map(|note| format!("note: {note}")).collect();
    let disturbed = document.disturbed;
    if disturbed.trials > 0 {
        lines.push(format!(
            "{} of {} trials were disturbed by other programs, although they were taken again: run it on a quiet machine",
            disturbed.trials, disturbed.of
        ));
    }
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// Columns of the widths that they need.
fn show(grid: &Grid) -> String {
    let mut lines = vec![grid.title.clone()];
    let all = || std::iter::once(&grid.header).chain(&grid.lines);
    let width = |column: usize| all().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..grid.header.len()).map(width).collect();
    lines.extend(all().map(|line| show_line(line, &widths)));
    lines.extend(grid.remarks.iter().map(|remark| format!("  {remark}")));
    lines.join("\n")
}

fn show_line(line: &[String], widths: &[usize]) -> String {
    let cells = line.iter().zip(widths).map(|(cell, width)| format!("  {cell:width$}"));
    cells.collect::<String>().trim_end().to_owned()
}
