//! The demo as a page: pure.

use super::{Found, dns::Round, flood::Row};
use crate::flame::Drawn;
use std::fmt::Write;

/// One HTML file that needs nothing else.
pub(super) fn html(found: &Found, flames: &[Drawn]) -> String {
    let mut page = String::from(HEAD);
    page.push_str(
        "<h2>A UDP receiver at rising rates</h2>\n<table><tr><th>offered, Mpps</th><th>plain: received</th><th>lost</th>\
         <th>hoisted: received</th><th>lost</th></tr>\n",
    );
    found.udp.iter().for_each(|row| udp(&mut page, row));
    page.push_str(
        "</table>\n<h2>A DNS server (knotd, dnsperf)</h2>\n<table><tr><th>round</th><th>plain: answers/s</th><th>hoisted: \
         answers/s</th></tr>\n",
    );
    (1..).zip(&found.dns).for_each(|(number, round)| dns(&mut page, number, round));
    page.push_str("</table>\n");
    for drawn in flames {
        let _ = writeln!(
            page,
            "<h2>{}</h2>\n{}<pre>{}</pre>",
            escaped(&drawn.title),
            drawn.svg,
            escaped(&drawn.table)
        );
    }
    page.push_str("</body>\n</html>\n");
    page
}

const HEAD: &str = "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>hoist demo</title>\n\
    <style>body{font-family:sans-serif;max-width:1220px;margin:2em auto}table{border-collapse:collapse}\
    th,td{border:1px solid #bbb;padding:.3em .8em;text-align:right}svg{max-width:100%;height:auto}</style>\n</head>\n<body>\n\
    <h1>hoist demo</h1>\n<p>The same programs plain and under <code>hoist run</code>, on a veth pair. What is quoted elsewhere is measured by \
    <code>hoist bench</code>, not here.</p>\n";

fn udp(page: &mut String, row: &Row) {
    let side =
        |goodput: f64, loss: f64| format!("<td>{:.2}</td><td>{:.1} %</td>", goodput / 1e6, 100.0 * loss);
    let (plain, hoisted) = (&row.plain, &row.hoisted);
    let cells = side(plain.goodput_pps, plain.loss()) + &side(hoisted.goodput_pps, hoisted.loss());
    let _ = writeln!(page, "<tr><td>{:.2}</td>{cells}</tr>", row.offered_pps / 1e6);
}

fn dns(page: &mut String, number: usize, round: &Round) {
    let (plain, hoisted) = (round.plain.queries_per_second, round.hoisted.queries_per_second);
    let _ = writeln!(page, "<tr><td>{number}</td><td>{plain:.0}</td><td>{hoisted:.0}</td></tr>");
}

fn escaped(text: &str) -> String {
    crate::bench::page::escaped(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::{Counted, dns::Answered};

    #[test]
    fn the_page_holds_what_was_found_and_drawn() {
        let side = |queries_per_second| Answered { queries_per_second, sent: 1, lost: 0, counted: None };
        let dns = vec![Round { plain: side(100.0), hoisted: side(130.0) }];
        let found = Found { udp: Vec::new(), dns, hoisted: Counted::default(), report: None };
        let drawn = Drawn { title: "plain & simple".into(), svg: "<svg/>".into(), table: "a < b".into() };
        let page = html(&found, &[drawn]);
        assert!(page.contains("<td>1</td><td>100</td><td>130</td>"), "{page}");
        assert!(page.contains("<h2>plain &amp; simple</h2>\n<svg/><pre>a &lt; b</pre>"), "{page}");
        assert!(page.ends_with("</html>\n"));
    }
}
