//! A run as files: the JSON, one SVG a bench, and one page that needs nothing else.

use super::{
    about, date,
    document::Document,
    draw, figure,
    grid::{self, Grid},
    losses,
    table::READING,
};
use anyhow::{Context, Result};
use std::{fs, path::Path};

pub(crate) const RUN: &str = "run.json";

/// Stores the run itself: at no time is there a part of one.
pub(crate) fn keep(document: &Document, directory: &Path) -> Result<()> {
    let (path, new) = (directory.join(RUN), directory.join(".run.json.new"));
    store(&new, &serde_json::to_string_pretty(document)?)?;
    fs::rename(&new, &path).with_context(|| format!("renaming {} (rename)", new.display()))
}

/// Puts the run itself beside its page, unless it is there.
pub(crate) fn copy(run: &Path, directory: &Path) -> Result<()> {
    let (from, to) = (Document::file(run), directory.join(RUN));
    if !to.exists() {
        fs::copy(&from, &to).with_context(|| format!("copying {}", from.display()))?;
    }
    Ok(())
}

/// Writes the pictures and the page into `directory`.
pub(crate) fn write(document: &Document, directory: &Path) -> Result<()> {
    let figures = figures(document)?;
    for (bench, svg) in &figures {
        store(&directory.join(format!("{bench}.svg")), svg)?;
    }
    store(&directory.join("index.html"), &html(document, &figures))
}

fn store(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

fn figures(document: &Document) -> Result<Vec<(String, String)>> {
    let source = format!("{} · commit {}", document.host.line(), document.commit);
    let figure = |bench: &str| figure::of(document, bench).map(|figure| (bench.to_owned(), figure));
    let figures = document.benches().into_iter().filter_map(figure);
    figures.map(|(bench, figure)| Ok((bench, draw::svg(&figure, &source)?))).collect()
}

fn html(document: &Document, figures: &[(String, String)]) -> String {
    let sections: String = document.benches().iter().map(|bench| section(document, bench, figures)).collect();
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>hoist bench: {name}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <h1>hoist bench: {name}</h1>\n{facts}<p>{READING}</p>\n{losses}{sections}{end}</body>\n</html>\n",
        name = escaped(&document.name),
        facts = facts(document),
        losses = losses_of(document),
        end = end(document),
    )
}

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;max-width:1160px;margin:2em auto;padding:0 1em;color:#222;background:#fff}\
h1{font-size:1.5em}h2{font-size:1.2em;margin-top:2em}table{border-collapse:collapse;margin:1em 0;font-size:13px}\
th,td{padding:.2em .7em;text-align:left;white-space:nowrap;border-bottom:1px solid #ddd;font-variant-numeric:tabular-nums}\
.wide{overflow-x:auto}svg{max-width:100%;height:auto}code,pre{font-size:13px;background:#f4f4f4;padding:.1em .3em}\
pre{overflow-x:auto;padding:.7em}.losses{border-left:4px solid #d55e00;padding:.1em 1em}";

fn facts(document: &Document) -> String {
    let lines = [
        ("Command", format!("<code>{}</code>", escaped(&document.command))),
        ("Machine", escaped(&document.host.line())),
        ("Commit", escaped(&document.commit)),
        ("Taken", date::of(document.host.unix_time)),
        ("Disturbed", format!("{} of {} trials", document.disturbed.trials, document.disturbed.of)),
    ];
    let cells = lines.map(|(name, value)| format!("<tr><th>{name}</th><td>{value}</td></tr>\n"));
    format!("<table>\n{}</table>\n", cells.concat())
}

fn losses_of(document: &Document) -> String {
    let lines = losses::of(document);
    let (first, rest) = lines.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    let items: String = rest.iter().map(|line| format!("<li>{}</li>\n", escaped(line.trim()))).collect();
    let list = if items.is_empty() { items } else { format!("<ul>\n{items}</ul>\n") };
    format!("<div class=\"losses\">\n<h2>Where Hoist loses</h2>\n<p>{}</p>\n{list}</div>\n", escaped(first))
}

fn section(document: &Document, bench: &str, figures: &[(String, String)]) -> String {
    let svg = figures.iter().find(|(name, _)| name == bench).map_or("", |(_, svg)| svg);
    let grids = grid::of_bench(document, bench);
    let tables: String = grids.iter().map(table).collect();
    let title = grids.first().map_or(bench, |grid| &grid.title);
    let sides: String =
        about::sides(document, bench).iter().map(|side| format!("<li>{}</li>\n", escaped(side))).collect();
    format!("<h2>{}</h2>\n<ul>\n{sides}</ul>\n<div class=\"wide\">{svg}</div>\n{tables}", escaped(title))
}

fn table(grid: &Grid) -> String {
    let cells = |line: &[String], tag: &str| {
        let cells: String = line.iter().map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell))).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let lines: String = grid.lines.iter().map(|line| cells(line, "td")).collect();
    let remarks: String = grid.remarks.iter().map(|remark| format!("<p>{}</p>\n", escaped(remark))).collect();
    format!("<div class=\"wide\"><table>\n{}{lines}</table></div>\n{remarks}", cells(&grid.header, "th"))
}

fn end(document: &Document) -> String {
    let notes: String = document.notes.iter().map(|note| format!("<li>{}</li>\n", escaped(note))).collect();
    let notes = if notes.is_empty() { "<p>None.</p>\n".into() } else { format!("<ul>\n{notes}</ul>\n") };
    let settings = serde_json::to_string_pretty(&document.settings).unwrap_or_default();
    format!(
        "<h2>Notes</h2>\n{notes}<h2>Settings</h2>\n<pre>{}</pre>\n\
         <p>Every sample is in <a href=\"run.json\">run.json</a>.</p>\n",
        escaped(&settings)
    )
}

pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::made_up;

    fn page() -> String {
        let run = made_up::document();
        html(&run, &figures(&run).unwrap())
    }

    #[test]
    fn the_page_has_every_picture_and_every_figure() {
        let page = page();
        assert_eq!(page.matches("<svg ").count(), 4);
        for text in [
            "Where Hoist loses",
            "abc1234",
            "2026-11-22T19:28:28Z",
            "at most 0.1 % lost",
            "recvmmsg(2) of 32",
            "hoist bench udp-lossless",
            "breaking point",
            "native, copy",
            "\u{a0}",
        ] {
            assert_eq!(page.contains(text), text != "\u{a0}", "{text}");
        }
    }

    #[test]
    fn the_page_asks_nobody_for_anything() {
        let page = page().replace("http://www.w3.org/2000/svg", "");
        for other in ["http:", "https:", "<script", "@import", "url("] {
            assert!(!page.contains(other), "{other}");
        }
    }

    #[test]
    fn what_the_machine_says_is_text_and_no_markup() {
        let page = page();
        assert!(page.contains("Some &lt;CPU&gt;") && !page.contains("Some <CPU>"));
    }
}
