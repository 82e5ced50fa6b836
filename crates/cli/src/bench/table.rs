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
    format!("{}\ncommit {}\n{READING}", document.host.line(), document.commit)
}

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

fn show(grid: &Grid) -> String {
    let all: Vec<_> = std::iter::once(&grid.header).chain(&grid.lines).cloned().collect();
    let indented = |line: &String| format!("  {line}");
    let (sides, remarks) = (grid.sides.iter().map(indented), grid.remarks.iter().map(indented));
    std::iter::once(grid.title.clone())
        .chain(sides)
        .chain(columns(&all))
        .chain(remarks)
        .collect::<Vec<_>>()
        .join("\n")
}

/// Columns of the widths that they need.
pub(crate) fn columns(lines: &[Vec<String>]) -> Vec<String> {
    let count = lines.first().map_or(0, Vec::len);
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count).map(width).collect();
    lines.iter().map(|line| columns_of(line, &widths)).collect()
}

fn columns_of(line: &[String], widths: &[usize]) -> String {
    let cells = line.iter().zip(widths).map(|(cell, width)| format!("  {cell:width$}"));
    cells.collect::<String>().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::made_up;

    #[test]
    fn the_table_of_a_run_reads_as_kept() {
        made_up::assert_same(&of(&made_up::document()), include_str!("golden/table.txt"));
    }

    #[test]
    fn a_quiet_run_without_notes_ends_with_the_losses() {
        let mut run = made_up::document();
        (run.disturbed.trials, run.notes) = (0, vec![]);
        run.rows.retain(|row| row.bench == "udp-lossless");
        assert!(of(&run).ends_with("hoist loses nowhere in this run"));
    }
}
