//! The page about a compiled or trained model.

use std::fmt::Write;

use super::{Cell, card, end, escaped, list, number, start, table, text};
use crate::report::weights::Weight;
use crate::report::{Activation, Report};

/// Writes the page.
pub fn html(report: &Report) -> String {
    let title = format!("{} · {}", report.model, report.mode);
    let mut page = start(&title, &format!("for {}, by qonnx {}", report.target, report.version));
    cards(&mut page, report);
    list(&mut page, "Warnings", report.warnings.iter().map(|w| escaped(w)));
    outputs(&mut page, report);
    training(&mut page, report);
    steps(&mut page, report);
    map(&mut page, report);
    activations(&mut page, &report.quantized.activations);
    weights(&mut page, report);
    layers(&mut page, report);
    nodes(&mut page, report);
    passes(&mut page, report);
    origin(&mut page, report);
    end(page)
}

fn cards(page: &mut String, report: &Report) {
    let mb = |bytes: usize| format!("{:.2} MB", bytes as f64 / 1e6);
    let quantized = &report.quantized;
    let ratio = report.size_after as f64 / report.size_before.max(1) as f64;
    let mut card = |name: &str, value: String, more: String| card(page, name, &value, &more);
    card(
        "size",
        format!("{:.0} %", 100.0 * ratio),
        format!("{} → {}", mb(report.size_before), mb(report.size_after)),
    );
    let already =
        quantized.float.iter().filter(|(_, why)| why == crate::quantize::candidate::ALREADY).count();
    let float = quantized.float.len() - already;
    let done = quantized.nodes.len() + quantized.stored.len();
    card("operators quantized", format!("{done}"), format!("{float} stay float, {already} came quantized"));
    if let Some(worst) = report.outputs.iter().filter_map(|o| o.sqnr_db).min_by(f64::total_cmp) {
        card("worst output", format!("{worst:.1} dB"), "signal to noise on the samples".into());
    }
    if let Some(output) = report.outputs.iter().find(|o| o.rows > 0) {
        let share = format!("{:.1} %", 100.0 * output.argmax_agreement);
        card("same largest element", share, format!("{} of {} rows", output.agreeing, output.rows));
    }
    if let Some(time) = quantized.time {
        card(
            "estimated speed",
            format!("{:.2} ×", 1.0 / time.max(1e-3)),
            "of the float model's arithmetic".into(),
        );
    }
    if let Some(mark) = &quantized.mark {
        card("bound", if mark.met { "kept".into() } else { "missed".into() }, escaped(&mark.summary()));
    }
    card("time", format!("{:.1} s", report.seconds), format!("{} samples", report.samples));
}

/// The model by depth.
fn map(page: &mut String, report: &Report) {
    let places = &report.quantized.map;
    if places.is_empty() {
        return;
    }
    let _ = writeln!(
        page,
        "<section><h2>Map</h2><p>Every operator of the written model, from left to right; red where quantizing its output \
         alone loses most, grey where it stays float.</p><div class=\"wide\">{}</div></section>",
        crate::report::map::svg(places, &escaped)
    );
}

fn outputs(page: &mut String, report: &Report) {
    let row = |o: &crate::compare::closeness::Closeness| {
        vec![
            text(&o.output),
            Cell::Quality(o.sqnr_db.unwrap_or(200.0)),
            o.cosine.map_or_else(|| text("–"), |c| Cell::Number(c, format!("{c:.6}"))),
            number(o.max_error),
            Cell::Number(o.argmax_agreement, format!("{:.1} %", 100.0 * o.argmax_agreement)),
        ]
    };
    let rows: Vec<_> = report.outputs.iter().map(row).collect();
    let head = ["output", "SQNR", "cosine", "greatest error", "same largest"];
    table(page, "Outputs", "The written model beside the one that was read, on the samples.", &head, &rows);
}

/// The losses over the epochs as a picture and as a table.
fn training(page: &mut String, report: &Report) {
    let Some(training) = &report.training else { return };
    let (width, height) = (640.0, 200.0);
    let losses = training.epochs.iter().flat_map(|e| [e.loss, e.held_out]).filter(|l| l.is_finite());
    let (low, high) = losses.fold((f64::INFINITY, 0.0), |(a, b): (f64, f64), l| (a.min(l), b.max(l)));
    let x = |i: usize| 8.0 + (width - 16.0) * i as f64 / (training.epochs.len() - 1).max(1) as f64;
    let y = |loss: f64| height - 8.0 - (height - 16.0) * (loss - low) / (high - low).max(1e-12);
    let line = |of: &dyn Fn(&crate::train::Epoch) -> f64| {
        let point = |(i, e): (usize, &crate::train::Epoch)| format!("{:.1},{:.1}", x(i), y(of(e)));
        training.epochs.iter().enumerate().map(point).collect::<Vec<_>>().join(" ")
    };
    let _ = writeln!(
        page,
        "<section><h2>Training</h2><p>{}</p><svg viewBox=\"0 0 {width} {height}\" role=\"img\" \
         aria-label=\"loss by epoch\"><polyline class=\"a\" points=\"{}\"/><polyline class=\"b\" points=\"{}\"/>\
         <circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"5\"/></svg><p><span class=\"a\">loss on what is learned from</span>, \
         <span class=\"b\">on held-out samples by the integer model</span>; the dot is the epoch that was written.</p></section>",
        escaped(training.summary().trim()),
        line(&|e| e.loss),
        line(&|e| e.held_out),
        x(training.written),
        y(training.epochs.get(training.written).map_or(0.0, |e| e.held_out)),
    );
    let row = |(i, e): (usize, &crate::train::Epoch)| {
        vec![Cell::Number(i as f64, i.to_string()), number(e.loss), number(e.held_out), number(e.metric)]
    };
    let rows: Vec<_> = training.epochs.iter().enumerate().map(row).collect();
    table(
        page,
        "Epochs",
        "0 is the starting point.",
        &["epoch", "loss", "held-out loss", "held-out metric"],
        &rows,
    );
}

fn steps(page: &mut String, report: &Report) {
    let row = |s: &crate::tune::Step| {
        vec![
            text(s.name),
            Cell::Quality(s.before_db),
            Cell::Quality(s.after_db),
            text(if s.kept { "kept" } else { "taken back" }),
            Cell::Number(s.seconds, format!("{:.1} s", s.seconds)),
        ]
    };
    let rows: Vec<_> = report.quantized.steps.iter().map(row).collect();
    let about = "Each step is judged on samples and taken back if the outputs are not closer.";
    table(page, "Tuning", about, &["step", "before", "after", "", "time"], &rows);
}

fn activations(page: &mut String, all: &[Activation]) {
    let row = |a: &Activation| {
        let group = if a.group == a.value {
            String::new()
        } else {
            format!("<br><small>as {}</small>", escaped(&a.group))
        };
        vec![
            Cell::Text(format!("{}{group}", escaped(&a.value))),
            Cell::Quality(a.sqnr_db),
            Cell::Text(picture(a)),
            number(a.seen.0.into()),
            number(a.seen.1.into()),
            number(a.scale.into()),
            Cell::Number(a.zero_point.into(), a.zero_point.to_string()),
            text(&a.dtype),
            Cell::Number(a.clipped, format!("{:.3} %", 100.0 * a.clipped)),
            Cell::Number(a.saturated, format!("{:.3} %", 100.0 * a.saturated)),
            text(&a.method),
        ]
    };
    let rows: Vec<_> = all.iter().map(row).collect();
    let about = "Every quantized value: the noise of quantizing it alone, what was seen of it with the range that was chosen \
                 (bright), its scale and type, the share of elements beyond the range, and that of those at its ends.";
    let head = [
        "value",
        "SQNR",
        "distribution",
        "least",
        "greatest",
        "scale",
        "zero",
        "type",
        "clipped",
        "saturated",
        "range",
    ];
    table(page, "Activations", about, &head, &rows);
}

/// A histogram on a logarithmic scale, bright within the range that was chosen.
fn picture(a: &Activation) -> String {
    let most = a.histogram.iter().max().copied().unwrap_or(0);
    if most == 0 {
        return String::new();
    }
    let (count, span) = (a.histogram.len() as f64, f64::from(a.seen.1) - f64::from(a.seen.0));
    let (mut within, mut beyond) = (String::new(), String::new());
    for (i, &n) in a.histogram.iter().enumerate().filter(|(_, n)| **n > 0) {
        let height = (2.0 + 26.0 * libm::log1p(n as f64) / libm::log1p(most as f64)).min(28.0);
        let middle = f64::from(a.seen.0) + span * (i as f64 + 0.5) / count;
        let bars = if middle < a.range.0 || middle > a.range.1 { &mut beyond } else { &mut within };
        let _ = write!(bars, "M{} 28v-{height:.0}", 3 * i + 1);
    }
    let width = 3 * a.histogram.len();
    format!(
        "<svg class=\"h\" viewBox=\"0 0 {width} 28\"><path d=\"{within}\"/><path class=\"o\" d=\"{beyond}\"/></svg>"
    )
}

/// Integer weights with the steps of their channels.
fn weights(page: &mut String, report: &Report) {
    let picture = |w: &Weight| {
        let mut bars = String::new();
        for (i, scale) in w.profile.iter().enumerate() {
            let height = (2.0 + 26.0 * f64::from(*scale) / f64::from(w.extremes.1).max(1e-30)).min(28.0);
            let _ = write!(bars, "M{} 28v-{height:.0}", 3 * i + 1);
        }
        format!("<svg class=\"h\" viewBox=\"0 0 144 28\"><path d=\"{bars}\"/></svg>")
    };
    let row = |w: &Weight| {
        vec![
            text(&w.name),
            text(&w.dtype),
            text(&format!("{:?}", w.shape)),
            Cell::Number(w.scales as f64, w.scales.to_string()),
            Cell::Text(picture(w)),
            number(w.extremes.0.into()),
            number(w.extremes.1.into()),
        ]
    };
    let rows: Vec<_> = report.quantized.weights.iter().map(row).collect();
    let about = "Integers, and the steps between them, channel by channel.";
    let head = ["weight", "type", "shape", "scales", "steps by channel", "least", "greatest"];
    table(page, "Weights", about, &head, &rows);
}

fn layers(page: &mut String, report: &Report) {
    let db = |share: f64| if share > 0.0 { -10.0 * libm::log10(share) } else { 200.0 };
    let row = |g: &crate::tune::reconstruct::Gain| {
        vec![text(&g.node), Cell::Quality(db(g.before)), Cell::Quality(db(g.after))]
    };
    let rows: Vec<_> = report.quantized.layers.iter().map(row).collect();
    let about = "Layers whose weights were rounded anew: signal to noise of their outputs, all before them quantized.";
    table(page, "Rounding", about, &["layer", "nearest integers", "written"], &rows);
}

fn nodes(page: &mut String, report: &Report) {
    let quantized = &report.quantized;
    let wide = |n: &String| if quantized.wide.contains(n) { "quantized, on 16 bits" } else { "quantized" };
    let done = quantized.nodes.iter().map(|n| vec![text(n), text(wide(n)), text("")]);
    let stored = quantized.stored.iter().map(|n| vec![text(n), text("integer weight"), text("")]);
    let float = quantized.float.iter().map(|(n, why)| vec![text(n), text("float"), text(why)]);
    let rows: Vec<_> = done.chain(stored).chain(float).collect();
    table(page, "Operators", "What became of each, and why not more.", &["operator", "", "why"], &rows);
}

fn passes(page: &mut String, report: &Report) {
    let applied = report.applied.iter().map(|(pass, node)| vec![text(pass), text(node), text("applied")]);
    let refused = report.refused.iter().map(|(pass, node, why)| vec![text(pass), text(node), text(why)]);
    let rows: Vec<_> = applied.chain(refused).collect();
    table(page, "Passes", "Rewrites ahead of quantization.", &["pass", "node", ""], &rows);
}

fn origin(page: &mut String, report: &Report) {
    let data = report.data_digest.as_deref().unwrap_or("–");
    let facts = [
        ("options", escaped(&report.command)),
        ("model", format!("sha256 {}…", report.model_digest.get())),
        ("samples", format!("sha256 {data}…")),
        ("qonnx", report.version.to_string()),
    ];
    list(page, "Made from", facts.iter().map(|(name, value)| format!("{name}: <code>{value}</code>")));
}
