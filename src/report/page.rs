//! HTML pages: no network, no fonts of their own, light and dark, narrow and wide, on paper.
//!
//! Tables sort by a click on a heading and can be filtered; without JavaScript they are plain tables in the order of the
//! model.

mod compiled;

use std::fmt::Write;

pub use compiled::html;

/// The page's looks.
const STYLE: &str = include_str!("page.css");
/// Sorting and filtering.
const SCRIPT: &str = include_str!("page.js");

/// Starts a page.
pub fn start(title: &str, about: &str) -> String {
    let (title, about) = (escaped(title), escaped(about));
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>\n{STYLE}</style>\n<header><h1>{title}</h1><p>{about}</p></header>\n<main>\n"
    )
}

/// Ends a page.
pub fn end(mut page: String) -> String {
    let _ = write!(page, "</main>\n<script>\n{SCRIPT}</script>\n</html>\n");
    page
}

/// Text that is no markup.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '&' => out += "&amp;",
            '"' => out += "&quot;",
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

/// A fact that stands out.
pub fn card(page: &mut String, name: &str, value: &str, more: &str) {
    let _ =
        writeln!(page, "<div class=\"card\"><span>{name}</span><b>{value}</b><small>{more}</small></div>");
}

/// A list whose items are HTML.
pub fn list(page: &mut String, title: &str, items: impl ExactSizeIterator<Item = String>) {
    if items.len() == 0 {
        return;
    }
    let _ = writeln!(page, "<section><h2>{title}</h2><ul>");
    items.for_each(|item| *page += &format!("<li>{item}</li>\n"));
    page.push_str("</ul></section>\n");
}

/// A table whose cells are HTML; numbers carry the value that they are sorted by.
pub fn table(page: &mut String, title: &str, about: &str, head: &[&str], rows: &[Vec<Cell>]) {
    if rows.is_empty() {
        return;
    }
    let filter = if rows.len() > 12 {
        "<input type=\"search\" placeholder=\"filter\" aria-label=\"filter\">"
    } else {
        ""
    };
    let _ = writeln!(
        page,
        "<section><h2>{title}</h2><p>{about}</p>{filter}<div class=\"wide\"><table><thead><tr>"
    );
    head.iter().for_each(|h| *page += &format!("<th>{h}</th>\n"));
    page.push_str("</tr></thead><tbody>\n");
    for row in rows {
        page.push_str("<tr>");
        for cell in row {
            let _ = match cell {
                Cell::Text(html) => write!(page, "<td>{html}</td>"),
                Cell::Number(value, html) => write!(page, "<td class=\"n\" data-v=\"{value}\">{html}</td>"),
                Cell::Quality(db) => write!(
                    page,
                    "<td class=\"n\" data-v=\"{db}\"><i style=\"--q:{:.2}\"></i>{}</td>",
                    (db / 60.0).clamp(0.0, 1.0),
                    decibel(*db)
                ),
            };
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody></table></div></section>\n");
}

/// A cell of a table.
pub enum Cell {
    /// HTML.
    Text(String),
    /// A number to sort by, and HTML.
    Number(f64, String),
    /// Signal to noise in dB, with a colour.
    Quality(f64),
}

/// A cell with this text.
pub fn text(value: &str) -> Cell {
    Cell::Text(escaped(value))
}

/// A cell with this number.
pub fn number(value: f64) -> Cell {
    let shown = match value.abs() {
        a if value == 0.0 || (1e-3..1e5).contains(&a) => format!("{value:.4}"),
        _ => format!("{value:.3e}"),
    };
    Cell::Number(value, shown)
}

/// Decibels for people.
pub fn decibel(db: f64) -> String {
    if db >= 199.0 { "exact".into() } else { format!("{db:.1} dB") }
}

/// What lies in the model one after the other, a block each with its colour: where the noise is.
pub fn strip(page: &mut String, title: &str, about: &str, blocks: &[(String, f64)]) {
    if blocks.is_empty() {
        return;
    }
    let _ = writeln!(page, "<section><h2>{title}</h2><p>{about}</p><div class=\"strip\">");
    for (label, db) in blocks {
        let quality = (db / 60.0).clamp(0.0, 1.0);
        let _ = writeln!(
            page,
            "<i style=\"--q:{quality:.2}\" title=\"{}: {}\"></i>",
            escaped(label),
            decibel(*db)
        );
    }
    page.push_str("</div></section>\n");
}

/// Points in the plane, joined in their order; each with a text for whoever points at it.
pub fn curve(page: &mut String, title: &str, axes: [&str; 2], points: &[(f64, f64, String)]) {
    let (width, height, margin) = (640.0, 240.0, 30.0);
    let ends = |of: fn(&(f64, f64, String)) -> f64| {
        let all = points.iter().map(of);
        all.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)))
    };
    let ((left, right), (low, high)) = (ends(|p| p.0), ends(|p| p.1));
    if points.len() < 2 {
        return;
    }
    let x = |v: f64| margin + (width - 2.0 * margin) * (v - left) / (right - left).max(1e-12);
    let y = |v: f64| height - margin - (height - 2.0 * margin) * (v - low) / (high - low).max(1e-12);
    let line: Vec<String> = points.iter().map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
    let _ = write!(
        page,
        "<section><h2>{title}</h2><svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{title}\">\
         <polyline class=\"a\" points=\"{}\"/>",
        line.join(" ")
    );
    for (px, py, label) in points {
        let _ = write!(
            page,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"5\"><title>{}</title></circle>",
            x(*px),
            y(*py),
            escaped(label)
        );
    }
    let _ = writeln!(
        page,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text><text x=\"4\" y=\"16\">{}</text></svg></section>",
        width - 4.0,
        height - 6.0,
        format_args!("{}: {left:.2} to {right:.2}", axes[0]),
        format_args!("{}: {low:.1} to {high:.1}", axes[1])
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_the_page() {
        assert_eq!(escaped("<b>&\"\n"), "&lt;b&gt;&amp;&quot;\\n");
        let mut page = String::new();
        table(&mut page, "T", "", &["a"], &[vec![text("</table><script>")]]);
        assert!(!page.contains("</table><script>"));
    }

    #[test]
    fn numbers_are_short() {
        let shown = |v| match number(v) {
            Cell::Number(_, shown) => shown,
            _ => String::new(),
        };
        assert_eq!(
            (shown(0.0), shown(1.5), shown(1e-6)),
            ("0.0000".into(), "1.5000".into(), "1.000e-6".into())
        );
        assert_eq!((decibel(20.04), decibel(200.0)), ("20.0 dB".into(), "exact".into()));
    }
}
