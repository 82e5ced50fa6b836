//! Figures as SVG.

use super::figure::{Axis, Figure, Mark, Panel, Series, Shape};
use anyhow::{Result, anyhow};
use plotters::{
    coord::{
        Shift,
        ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter},
    },
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};
use std::ops::Range;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Axis, Axis>>;

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let share = (value - self.from) / (self.to - self.from).max(f64::MIN_POSITIVE);
        from + (share * f64::from(to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.iter().map(|(at, _)| *at).collect()
    }

    fn range(&self) -> Range<f64> {
        self.from..self.to
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, at: &f64) -> String {
        self.ticks.iter().find(|(tick, _)| tick == at).map_or_else(String::new, |(_, name)| name.clone())
    }
}

/// The figure as an SVG document, with a line below that says where it comes from.
pub(crate) fn svg(figure: &Figure, source: &str) -> Result<String> {
    let mut text = String::new();
    draw(figure, source, &mut text).map_err(|error| anyhow!("drawing {:?}: {error}", figure.title))?;
    Ok(text)
}

const PANEL: (u32, u32) = (560, 380);
const WIDE: u32 = 820;
const HEAD: u32 = 72;
const FOOT: u32 = 26;

type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw(figure: &Figure, source: &str, text: &mut String) -> Drawn {
    let columns = figure.panels.len().min(2);
    let rows = figure.panels.len().div_ceil(columns.max(1));
    let width = if columns == 1 { WIDE } else { columns as u32 * PANEL.0 };
    let root =
        SVGBackend::with_string(text, (width, HEAD + FOOT + rows as u32 * PANEL.1)).into_drawing_area();
    root.fill(&WHITE)?;
    let (head, rest) = root.split_vertically(HEAD);
    let (body, foot) = rest.split_vertically(rows as u32 * PANEL.1);
    draw_head(&head, figure)?;
    for (area, panel) in body.split_evenly((rows, columns)).iter().zip(&figure.panels) {
        draw_panel(area, panel, &figure.sides)?;
    }
    foot.draw(&Text::new(source.to_owned(), (16, 2), font(11, GREY)))?;
    root.present()?;
    Ok(())
}

fn draw_head(area: &Area, figure: &Figure) -> Drawn {
    area.draw(&Text::new(figure.title.clone(), (16, 12), font(18, BLACK)))?;
    let mut x = 16;
    for (index, side) in figure.sides.iter().enumerate() {
        area.draw(&PathElement::new(vec![(x, 54), (x + 26, 54)], look(side, index).stroke_width(2)))?;
        draw_symbol(area, (x + 13, 54), side, index)?;
        area.draw(&Text::new(side.clone(), (x + 34, 47), font(13, BLACK)))?;
        x += 34 + 8 * side.len() as i32 + 28;
    }
    let note = "whiskers: least to most of all samples".to_owned();
    area.draw(&Text::new(note, (x, 47), font(12, GREY)))?;
    Ok(())
}

fn draw_panel(area: &Area, panel: &Panel, sides: &[String]) -> Drawn {
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, font(14, BLACK))
        .margin(12)
        .margin_right(28)
        .x_label_area_size(48)
        .y_label_area_size(66)
        .build_cartesian_2d(panel.x.clone(), panel.y.clone())?;
    draw_mesh(&mut chart, panel)?;
    if let Some(guide) = panel.guide {
        draw_guide(&mut chart, guide)?;
    }
    for series in &panel.series {
        let index = sides.iter().position(|side| *side == series.side).unwrap_or(0);
        match panel.shape {
            Shape::Lines => draw_line(&mut chart, panel, series, (index, sides.len()))?,
            Shape::Bars => draw_bar(&mut chart, panel, series, index)?,
        }
    }
    Ok(())
}

fn draw_mesh(chart: &mut Chart, panel: &Panel) -> Drawn {
    let mut mesh = chart.configure_mesh();
    mesh.x_desc(&panel.x.label).y_desc(&panel.y.label).axis_desc_style(font(13, BLACK));
    mesh.label_style(font(12, BLACK)).bold_line_style(RGBColor(225, 225, 225)).light_line_style(TRANSPARENT);
    if panel.shape == Shape::Bars {
        mesh.disable_x_mesh();
    }
    mesh.draw()?;
    Ok(())
}

fn draw_guide(chart: &mut Chart, guide: [(f64, f64); 2]) -> Drawn {
    chart.draw_series(DashedLineSeries::new(guide, 4, 4, GREY.stroke_width(1)))?;
    let label = Text::new(
        "all that is offered",
        (guide[1].0, guide[1].1),
        font(11, GREY).pos(Pos::new(HPos::Right, VPos::Bottom)),
    );
    chart.draw_series([label])?;
    Ok(())
}

/// Median to median, and the ranges side by side, so that one does not hide the other.
fn draw_line(chart: &mut Chart, panel: &Panel, series: &Series, (index, sides): (usize, usize)) -> Drawn {
    let style = look(&series.side, index);
    let apart = (panel.x.to - panel.x.from) * 0.005;
    let shift = (index as f64 - (sides as f64 - 1.0) / 2.0) * apart;
    let places = series.marks.iter().map(|mark| (mark.x + shift, mark.y));
    chart.draw_series([PathElement::new(places.collect::<Vec<_>>(), style.stroke_width(2))])?;
    for mark in &series.marks {
        draw_range(chart, mark, shift, apart * 0.8, style)?;
        draw_mark(chart, (mark.x + shift, mark.y), &series.side, index)?;
    }
    Ok(())
}

fn draw_bar(chart: &mut Chart, panel: &Panel, series: &Series, index: usize) -> Drawn {
    for mark in &series.marks {
        let style = look(&series.side, index);
        let bar = Rectangle::new([(mark.x - 0.3, 0.0), (mark.x + 0.3, mark.y)], style.mix(0.75).filled());
        chart.draw_series([bar])?;
        draw_range(chart, mark, 0.0, 0.06, BLACK)?;
        let above = mark.high + (panel.y.to - panel.y.from) * 0.012;
        let text = Text::new(
            mark.text.clone(),
            (mark.x, above),
            font(13, BLACK).pos(Pos::new(HPos::Center, VPos::Bottom)),
        );
        chart.draw_series([text])?;
    }
    Ok(())
}

/// A line from the least to the most with a stroke at each end.
fn draw_range(chart: &mut Chart, mark: &Mark, shift: f64, wing: f64, color: RGBColor) -> Drawn {
    let x = mark.x + shift;
    let stroke = |from: (f64, f64), to: (f64, f64)| PathElement::new(vec![from, to], color.stroke_width(1));
    let cap = |y: f64| stroke((x - wing, y), (x + wing, y));
    chart.draw_series([stroke((x, mark.low), (x, mark.high)), cap(mark.low), cap(mark.high)])?;
    Ok(())
}

fn draw_mark(chart: &mut Chart, at: (f64, f64), side: &str, index: usize) -> Drawn {
    let (color, here) = (look(side, index), || EmptyElement::at(at));
    match rank(side, index) % 4 {
        0 => chart.draw_series([here() + Circle::new((0, 0), SYMBOL, color.filled())])?,
        1 => chart.draw_series([here() + square((0, 0), color)])?,
        2 => chart.draw_series([here() + TriangleMarker::new((0, 0), SYMBOL + 2, color.filled())])?,
        _ => chart.draw_series([here() + Cross::new((0, 0), SYMBOL, color.stroke_width(2))])?,
    };
    Ok(())
}

/// A symbol of its own for every side, for those who see colours alike.
fn draw_symbol(area: &Area, at: (i32, i32), side: &str, index: usize) -> Drawn {
    let color = look(side, index);
    match rank(side, index) % 4 {
        0 => area.draw(&Circle::new(at, SYMBOL, color.filled()))?,
        1 => area.draw(&square(at, color))?,
        2 => area.draw(&TriangleMarker::new(at, SYMBOL + 2, color.filled()))?,
        _ => area.draw(&Cross::new(at, SYMBOL, color.stroke_width(2)))?,
    }
    Ok(())
}

fn square((x, y): (i32, i32), color: RGBColor) -> Rectangle<(i32, i32)> {
    Rectangle::new([(x - SYMBOL, y - SYMBOL), (x + SYMBOL, y + SYMBOL)], color.filled())
}

/// Half of its width in pixels.
const SYMBOL: i32 = 4;

/// A colour that people who see few colours can tell from the others (Okabe and Ito, 2008).
fn look(side: &str, index: usize) -> RGBColor {
    const COLORS: [RGBColor; 8] = [
        RGBColor(0xd5, 0x5e, 0x00),
        RGBColor(0xe6, 0x9f, 0x00),
        RGBColor(0x00, 0x72, 0xb2),
        RGBColor(0x55, 0x55, 0x55),
        RGBColor(0x00, 0x9e, 0x73),
        RGBColor(0xcc, 0x79, 0xa7),
        RGBColor(0x56, 0xb4, 0xe9),
        RGBColor(0xb0, 0xa0, 0x00),
    ];
    COLORS[rank(side, index) % COLORS.len()]
}

/// The same in every plot, whichever sides it has; peers come after them.
fn rank(side: &str, index: usize) -> usize {
    match side {
        "kernel" | "hash" => 0,
        "kernel-tuned" | "rfs" => 1,
        "hoist" => 2,
        "hoist-lift" | "hoist-wait" => 4,
        "hoist-chunks" | "two-choices" => 5,
        "rss++" => 6,
        "limit" => 3,
        _ => 4 + index % 4,
    }
}

const GREY: RGBColor = RGBColor(0x70, 0x70, 0x70);

fn font(size: u32, color: RGBColor) -> TextStyle<'static> {
    // The SVG backend divides by 1.24: it takes sizes for those of a line.
    ("sans-serif", f64::from(size) * 1.24).into_font().color(&color)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{figure, made_up};

    fn drawn(bench: &str) -> String {
        svg(&figure::of(&made_up::document(), bench).unwrap(), "made up").unwrap()
    }

    #[test]
    fn a_figure_is_drawn_as_kept() {
        made_up::assert_same(&drawn("udp-overload"), include_str!("golden/udp-overload.svg"));
    }

    #[test]
    fn every_side_has_its_colour_wherever_it_stands() {
        assert_eq!(look("hoist", 0), look("hoist", 2));
        let looks: Vec<_> =
            ["kernel", "kernel-tuned", "hoist", "limit", "a peer"].iter().map(|side| look(side, 0)).collect();
        assert!((0..5).all(|a| (0..a).all(|b| looks[a] != looks[b])));
    }

    #[test]
    fn all_shapes_can_be_drawn() {
        for bench in ["udp-lossless", "flows", "udp-rr"] {
            let text = drawn(bench);
            assert!(text.starts_with("<svg ") && text.trim_end().ends_with("</svg>"), "{bench}");
        }
    }
}
