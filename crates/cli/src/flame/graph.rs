//! A flame graph as SVG. Pure.
//!
//! Boxes are as wide as their part of the samples and stand on their callers. Colours are stages, or in a comparison how much the
//! part of a function grew (red) or shrank (blue).

use super::{
    fold::Folded,
    stage::{self, KERNEL_MARK, Stage},
};
use std::{collections::BTreeMap, fmt::Write};

const WIDTH: f64 = 1200.0;
const MARGIN: f64 = 10.0;
const ROW: f64 = 17.0;
/// Narrower boxes are left out, pixels.
const NARROWEST: f64 = 0.4;
/// Of a letter, pixels.
const LETTER: f64 = 6.7;
const HEAD: f64 = 78.0;

#[derive(Default)]
struct Node {
    samples: u64,
    before: f64,
    children: BTreeMap<String, Node>,
}

impl Node {
    fn of(folded: &Folded) -> Self {
        let mut root = Self::default();
        for (stack, samples) in &folded.0 {
            let mut node = &mut root;
            node.samples += samples;
            for frame in stack {
                node = node.children.entry(frame.clone()).or_default();
                node.samples += samples;
            }
        }
        root
    }

    /// Notes the part that each had in `other`, in samples of this.
    fn compare(&mut self, other: Option<&Self>, scale: f64) {
        self.before = other.map_or(0.0, |other| other.samples as f64 * scale);
        for (name, child) in &mut self.children {
            child.compare(other.and_then(|other| other.children.get(name)), scale);
        }
    }

    fn depth(&self, narrowest: u64) -> usize {
        let deep = self.children.values().filter(|child| child.samples >= narrowest);
        deep.map(|child| 1 + child.depth(narrowest)).max().unwrap_or(0)
    }
}

/// Stages with their part of the samples, for the legend.
pub(super) type Parts = Vec<(Stage, f64)>;

pub(super) fn svg(title: &str, folded: &Folded, parts: &Parts) -> String {
    draw(title, &Node::of(folded), Some(parts))
}

/// What became of `before`.
pub(super) fn diff(title: &str, before: &Folded, after: &Folded) -> String {
    let mut root = Node::of(after);
    root.compare(Some(&Node::of(before)), after.samples() as f64 / before.samples().max(1) as f64);
    draw(title, &root, None)
}

struct Picture<'a> {
    out: String,
    scale: f64,
    height: f64,
    root: &'a Node,
    stages: bool,
}

fn draw(title: &str, root: &Node, parts: Option<&Parts>) -> String {
    let scale = (WIDTH - 2.0 * MARGIN) / root.samples.max(1) as f64;
    let depth = root.depth((NARROWEST / scale).ceil() as u64);
    let height = HEAD + depth as f64 * ROW + 24.0;
    let mut picture = Picture { out: String::new(), scale, height, root, stages: parts.is_some() };
    picture.head(title, parts);
    let mut path = Vec::new();
    picture.children(root, 0, 0, &mut path);
    picture.out.push_str("</svg>\n");
    picture.out
}

impl Picture<'_> {
    fn head(&mut self, title: &str, parts: Option<&Parts>) {
        let _ = writeln!(
            self.out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {h}\" width=\"{WIDTH}\" height=\"{h}\" \
             font-family=\"Verdana, DejaVu Sans, sans-serif\" font-size=\"11\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
             <text x=\"{MARGIN}\" y=\"20\" font-size=\"15\" font-weight=\"bold\">{}</text>",
            escaped(title),
            h = self.height
        );
        match parts {
            Some(parts) => self.legend(parts),
            None => {
                let _ = writeln!(
                    self.out,
                    "<text x=\"{MARGIN}\" y=\"44\">red: a larger part than before; blue: a smaller one; white: the same. \
                     Width: the part after</text>"
                );
            }
        }
    }

    fn legend(&mut self, parts: &Parts) {
        for (at, (stage, part)) in parts.iter().enumerate() {
            let (x, y) = (MARGIN + (at % 6) as f64 * 196.0, 32.0 + (at / 6) as f64 * 20.0);
            let _ = writeln!(
                self.out,
                "<rect x=\"{x}\" y=\"{y}\" width=\"13\" height=\"13\" fill=\"{}\" stroke=\"#777777\" stroke-width=\"0.5\"/>\
                 <text x=\"{}\" y=\"{}\">{} {:.1}&#160;%</text>",
                stage.colour(),
                x + 18.0,
                y + 11.0,
                escaped(stage.name()),
                100.0 * part
            );
        }
    }

    /// Those of a node that begins at sample `from`, `level` rows up.
    fn children<'n>(&mut self, node: &'n Node, mut from: u64, level: usize, path: &mut Vec<&'n str>) {
        for (name, child) in &node.children {
            path.push(name);
            if child.samples as f64 * self.scale >= NARROWEST {
                self.frame(name, child, from, level, path);
                self.children(child, from, level + 1, path);
            }
            path.pop();
            from += child.samples;
        }
    }

    fn frame(&mut self, name: &str, node: &Node, from: u64, level: usize, path: &[&str]) {
        let (x, width) = (MARGIN + from as f64 * self.scale, node.samples as f64 * self.scale);
        let y = self.height - 22.0 - (level + 1) as f64 * ROW;
        let all = self.root.samples.max(1) as f64;
        let part = 100.0 * node.samples as f64 / all;
        let (fill, more) = match self.stages {
            true => (stage::of_stack(path).colour().to_owned(), String::new()),
            false => grown(node.samples as f64 / all, node.before / all),
        };
        let shown = name.strip_suffix(KERNEL_MARK).unwrap_or(name);
        let _ = write!(
            self.out,
            "<g><title>{} ({} samples, {part:.2} %{more})</title><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{}\" fill=\"{fill}\" rx=\"1\"/>",
            escaped(name),
            node.samples,
            (width - 0.3).max(0.1),
            ROW - 1.0
        );
        if let Some(label) = fitting(shown, width) {
            let _ = write!(
                self.out,
                "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                x + 3.0,
                y + 12.0,
                escaped(&label)
            );
        }
        self.out.push_str("</g>\n");
    }
}

/// A colour for parts now and before, and words.
fn grown(now: f64, before: f64) -> (String, String) {
    let change = now - before;
    let strength = (change.abs() * 8.0).min(1.0);
    let fade = (255.0 - 175.0 * strength) as u8;
    let colour =
        if change >= 0.0 { format!("#ff{fade:02x}{fade:02x}") } else { format!("#{fade:02x}{fade:02x}ff") };
    (colour, format!(", before {:.2} %", 100.0 * before))
}

/// As much of a name as a box has room for.
fn fitting(name: &str, width: f64) -> Option<String> {
    let room = ((width - 6.0) / LETTER).max(0.0) as usize;
    match name.chars().count() {
        len if len <= room => Some(name.into()),
        _ if room < 4 => None,
        _ => Some(name.chars().take(room - 1).chain(['\u{2026}']).collect()),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    const STACKS: &str = "a;net_rx_action_[k];ip_rcv_[k] 60\na;net_rx_action_[k] 20\nb;main<u8> 20\n";

    fn folded(text: &str) -> Folded {
        Folded::parse(text).unwrap()
    }

    #[test]
    fn a_graph_is_drawn_to_the_letter() {
        let parts = vec![(Stage::Ip, 0.6), (Stage::Driver, 0.2), (Stage::Program, 0.2)];
        let drawn = svg("two programs", &folded(STACKS), &parts);
        let golden = include_str!("golden.svg");
        assert!(drawn == golden, "if it is meant: {drawn}");
    }

    #[test]
    fn a_comparison_shows_what_grew() {
        let drawn = diff("change", &folded("a;f 50\na;g 50\n"), &folded("a;f 30\na;g 70\n"));
        let of = |name: &str| {
            drawn.lines().find(|line| line.contains(&format!("<title>{name} "))).unwrap().to_owned()
        };
        assert!(of("g").contains("fill=\"#ff") && of("g").contains("70.00 %, before 50.00 %"), "{}", of("g"));
        assert!(of("f").contains("ff\" rx"), "{}", of("f"));
        assert!(of("a").contains("#ffffff"), "{}", of("a"));
    }

    #[test]
    fn labels_fit_their_boxes() {
        assert_eq!(fitting("udp_rcv", 100.0).as_deref(), Some("udp_rcv"));
        assert_eq!(fitting("a_very_long_function_name", 60.0).as_deref(), Some("a_very_\u{2026}"));
        assert_eq!(fitting("long_name", 20.0), None);
    }
}
