//! What a run leaves for its reader: metrics, plots, tables, the page, the progress lines.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use longburn::Error;
use longburn::training::report::{
    Cell, Estimate, EvalRecord, Figure, Finding, Findings, Metrics, MetricsLog, NoteRecord, Plot,
    Progress, Record, Report, Section, Series, Table, TornLine, TrainRecord, mean_se,
    paired_difference, read_metrics,
};

const NASTY: &str = "a<b>&\"c\"'d'\u{0}\u{7}\u{fffe}</text></svg><script>alert(1)</script>";

/// Fails unless every tag is closed in order: an unescaped `<` does not survive this.
fn assert_well_formed(text: &str) {
    let mut open = Vec::new();
    let text = text.strip_prefix("<!DOCTYPE html>").unwrap_or(text);
    for tag in text.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').expect("a tag ends");
        let name = tag.split([' ', '\n']).next().unwrap_or_default();
        if let Some(name) = name.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "closing tag in {tag}");
        } else if !tag.ends_with('/') && name != "meta" {
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "tag name {name}");
            open.push(name);
        }
    }
    assert!(open.is_empty(), "left open: {open:?}");
    let stray = text.chars().find(|c| (c.is_control() && *c != '\n') || *c == '\u{fffe}');
    assert_eq!(stray, None, "a character that XML forbids");
}

fn train(run: &str, step: u64, loss: f64) -> Record {
    Record::Train(TrainRecord { run: run.into(), step, loss, lr: 1e-3, ..Default::default() })
}

#[test]
fn metrics_round_trip_and_stay_valid_json() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let records = vec![
        Record::Train(TrainRecord {
            run: "base".into(),
            step: 12,
            tokens: 6144,
            loss: 0.1 + 0.2,
            lr: 5e-3,
            grad_norm: Some(f64::INFINITY),
            tokens_per_second: Some(33_100.0),
            extra: BTreeMap::from([("gate".into(), f64::NEG_INFINITY)]),
        }),
        Record::Eval(EvalRecord {
            run: "longlora".into(),
            name: "perplexity_by_position".into(),
            x: vec![64.0, 192.0],
            y: vec![41.5, f64::INFINITY],
            se: vec![1.4, 0.0],
        }),
        Record::Note(NoteRecord {
            name: "data".into(),
            value: serde_json::json!({"sha256": "9f86", "documents": 168}),
            ..Default::default()
        }),
    ];
    let mut log = MetricsLog::open(&path).unwrap();
    for record in &records {
        log.write(record).unwrap();
    }
    // Read while the log is still open: every line is there at once.
    assert_eq!(read_metrics(&path).unwrap(), Metrics { records, torn: Vec::new() });
    log.write(&train("base", 13, f64::NAN)).unwrap();

    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("valid JSON")).collect();
    assert_eq!(lines.len(), 4);
    assert_eq!(lines[0]["kind"], "train");
    assert_eq!(lines[0]["grad_norm"], "Infinity");
    assert_eq!(lines[1]["y"], serde_json::json!([41.5, "Infinity"]));
    assert_eq!(lines[3]["loss"], "NaN");
    assert!(lines[3].get("grad_norm").is_none(), "an unknown value is left out");
    let Record::Train(last) = &read_metrics(&path).unwrap().records[3] else { panic!("kind") };
    assert!(last.loss.is_nan());
}

#[test]
fn metrics_torn_last_line_is_reported_and_cut_off_before_appending() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let whole = serde_json::to_string(&train("base", 1, 2.0)).unwrap();
    for cut in 1..whole.len() {
        std::fs::write(&path, format!("{whole}\n{}", &whole[..cut])).unwrap();
        let metrics = read_metrics(&path).unwrap();
        assert_eq!(metrics.records.len(), 1);
        assert_eq!(metrics.torn, [TornLine { line: 2, bytes: cut }]);
    }
    let mut log = MetricsLog::open(&path).unwrap();
    log.write(&train("base", 2, 1.5)).unwrap();
    let metrics = read_metrics(&path).unwrap();
    assert_eq!(
        metrics,
        Metrics { records: vec![train("base", 1, 2.0), train("base", 2, 1.5)], torn: Vec::new() }
    );

    // Only the line end is missing: nothing is lost.
    std::fs::write(&path, &whole).unwrap();
    MetricsLog::open(&path).unwrap().write(&train("base", 2, 1.5)).unwrap();
    assert_eq!(read_metrics(&path).unwrap(), metrics);
}

/// As a disk leaves them that was full for a while.
#[test]
fn metrics_torn_lines_before_the_end_are_passed_over_and_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let [one, two] = [1, 2].map(|step| serde_json::to_string(&train("base", step, 2.0)).unwrap());
    for cut in [1, 9, one.len() - 1] {
        std::fs::write(&path, format!("{one}\n{}\n{two}\n", &one[..cut])).unwrap();
        let metrics = read_metrics(&path).unwrap();
        assert_eq!(metrics.records, [train("base", 1, 2.0), train("base", 2, 2.0)]);
        assert_eq!(metrics.torn, [TornLine { line: 2, bytes: cut }]);
    }
}

#[test]
fn metrics_damage_before_the_end_is_an_error_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let whole = serde_json::to_string(&train("base", 1, 2.0)).unwrap();
    for damaged in [
        // Whole JSON that is no record is not what a kill leaves.
        format!("{whole}\n{{\"kind\":\"train\",\"run\":3}}\n"),
        format!("{whole}\n{{\"kind\":\"surprise\"}}\n"),
    ] {
        std::fs::write(&path, &damaged).unwrap();
        let error = read_metrics(&path).unwrap_err();
        assert!(matches!(error, Error::Parse { .. }), "{error}");
        assert!(error.to_string().contains("line 2"), "{error}");
    }
    assert!(matches!(read_metrics(folder.path().join("none")), Err(Error::Io { .. })));
}

#[test]
fn metrics_of_a_resumed_run_count_each_step_once() {
    let steps = [
        ("base", 1, 4.0),
        ("base", 2, 3.0),
        ("lora", 1, 9.0),
        ("base", 3, 2.0),
        ("base", 2, 2.9),
        ("base", 3, 1.9),
    ];
    let records = steps.iter().map(|(run, step, loss)| train(run, *step, *loss)).collect();
    let metrics = Metrics { records, torn: Vec::new() };
    let curve: Vec<(u64, f64)> = metrics.train("base").iter().map(|r| (r.step, r.loss)).collect();
    assert_eq!(curve, [(1, 4.0), (2, 2.9), (3, 1.9)]);
}

#[test]
fn means_and_paired_differences() {
    let of = mean_se(&[1.0, 2.0, 3.0, 4.0]);
    assert_eq!((of.mean, of.n), (2.5, 4));
    assert!((of.se.unwrap() - (5.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-15);
    assert_eq!(mean_se(&[7.0]), Estimate { mean: 7.0, se: None, n: 1 });
    assert_eq!(mean_se(&[]).n, 0);
    // The arms vary a lot from seed to seed, their difference does not.
    let paired = paired_difference(&[10.0, 20.0, 30.0], &[9.0, 19.1, 28.9]).unwrap();
    assert!((paired.mean - 1.0).abs() < 1e-12);
    assert!((paired.se.unwrap() - 0.1 / 3f64.sqrt()).abs() < 1e-12);
    assert!(matches!(paired_difference(&[1.0], &[]), Err(Error::Shape { .. })));
}

#[test]
fn estimates_show_the_digits_their_error_supports() {
    let show = |mean, se| Estimate { mean, se, n: 3 }.to_string();
    assert_eq!(show(41.5263, Some(1.4204)), "41.5 ± 1.4");
    assert_eq!(show(0.09812, Some(0.0171)), "0.098 ± 0.017");
    assert_eq!(show(55.61, Some(0.52)), "55.6 ± 0.5");
    assert_eq!(show(217_344.4, Some(1.9e4)), "217,344 ± 19,000");
    assert_eq!(show(41.5263, None), "41.5");
    assert_eq!(show(4096.0, None), "4096");
    assert_eq!(show(-0.04, Some(0.5)), "0.0 ± 0.5");
    assert_eq!(show(-2.5e-9, None), "−2.50e−9");
    assert_eq!(show(f64::NAN, None), "NaN");
}

fn results() -> Table {
    let cell = |mean, se| Cell::from(Estimate { mean, se: Some(se), n: 3 });
    Table::new(["arm", "perplexity", "recall"])
        .row(["base | in length".into(), cell(35.7, 0.31), 0.87.into()])
        .row(["LongLoRA".into(), cell(141.53, 12.42), Cell::Missing])
        .row(["<untrained>".into(), 55.6.into()])
}

#[test]
fn table_text_lines_up() {
    let expected = "\
arm                 perplexity  recall
----------------  ------------  ------
base | in length   35.7 ±  0.3   0.870
LongLoRA          141.5 ± 12.4       –
<untrained>        55.6              –
";
    assert_eq!(results().to_text(), expected);
}

#[test]
fn table_markdown_and_html_escape_and_align() {
    let table = results().decimals(1, 2);
    assert_eq!(
        table.to_markdown(),
        "| arm | perplexity | recall |\n| --- | ---: | ---: |\n\
         | base \\| in length | 35.70 ± 0.31 | 0.870 |\n| LongLoRA | 141.53 ± 12.42 | – |\n\
         | <untrained> | 55.60 | – |\n"
    );
    let html = table.to_html("caption & more");
    assert_well_formed(&html);
    assert!(html.contains("<caption>caption &amp; more</caption>"));
    assert!(html.contains("<th scope=\"row\">&lt;untrained&gt;</th>"));
    assert!(html.contains("<td class=\"num\">35.70\u{a0}±\u{a0}0.31</td>"));
    // A figure without error keeps the room of the widest one, unseen.
    assert!(html.contains(
        ">55.60<span style=\"visibility:hidden\" aria-hidden=\"true\">\u{a0}±\u{a0}12.42</span>"
    ));
}

fn perplexity() -> Plot {
    let x: Vec<f64> = (0..16).map(|i| 16.0 + 32.0 * f64::from(i)).collect();
    let mut plot = Plot::lines("Perplexity by position")
        .x("position (tokens)")
        .y("perplexity")
        .log_y()
        .marker_x(128.0, "trained length");
    for (i, name) in ["base", "interpolated", "plain LoRA", "LongLoRA", "dense", "full", "last"]
        .iter()
        .enumerate()
    {
        let y: Vec<f64> = x.iter().map(|x| 30.0 + 5.0 * i as f64 + x / 50.0).collect();
        plot = plot.series(Series::new(*name).points(&x, &y).band(&[1.0; 16]));
    }
    plot
}

#[test]
fn plot_follows_the_theme_and_names_every_series() {
    let svg = perplexity().render().unwrap();
    assert_well_formed(&svg);
    let (root, body) = svg.split_once('>').unwrap();
    assert!(root.contains("viewBox=\"0 0 ") && root.contains("max-width:100%"), "{root}");
    assert!(root.contains("aria-label=\"Perplexity by position: perplexity over position"));
    for name in [
        "base",
        "interpolated",
        "plain LoRA",
        "LongLoRA",
        "dense",
        "full",
        "last",
        "trained length",
        "position (tokens)",
        "perplexity (log scale)",
    ] {
        assert!(body.contains(&format!(">\n{name}\n</text>")), "{name} is missing");
    }
    assert!(body.contains("prefers-color-scheme:dark"));
    for text in body.split("<text ").skip(1) {
        assert!(text.contains("fill=\"currentColor\""), "{text}");
        assert!(!text.contains("font-family"));
    }
    // Every colour is the reader's text colour or readable on white and on near-black.
    let style_ends = body.find("</style>").unwrap();
    let mut colors: Vec<&str> = body[style_ends..].split("\"#").skip(1).map(|c| &c[..6]).collect();
    colors.sort();
    colors.dedup();
    assert_eq!(colors.len(), 6, "{colors:?}");
    for color in colors {
        for page in ["ffffff", "16181c"] {
            let contrast = contrast(color, page);
            assert!(contrast >= 3.0, "#{color} on #{page}: {contrast:.2}");
        }
    }
    // Series are told apart without colour: six dash patterns, one of them solid.
    let mut dashes: Vec<&str> =
        body.split("stroke-dasharray=\"").skip(1).map(|d| d.split('"').next().unwrap()).collect();
    dashes.sort();
    dashes.dedup();
    assert_eq!(dashes.len(), 5, "{dashes:?}");
}

fn contrast(a: &str, b: &str) -> f64 {
    let luminance = |hex: &str| {
        let channel = |i: usize| {
            let v = f64::from(u8::from_str_radix(&hex[i..i + 2], 16).unwrap()) / 255.0;
            if v <= 0.04045 { v / 12.92 } else { ((v + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * channel(0) + 0.7152 * channel(2) + 0.0722 * channel(4)
    };
    let (a, b) = (luminance(a), luminance(b));
    (a.max(b) + 0.05) / (a.min(b) + 0.05)
}

/// The y coordinates of the texts in `svg` that are `text`, in canvas pixels.
fn text_y(svg: &str, text: &str) -> f64 {
    let end = svg.find(&format!(">\n{text}\n</text>")).unwrap_or_else(|| panic!("no {text}"));
    let tag = &svg[svg[..end].rfind("<text ").unwrap()..end];
    tag.split(" y=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap()
}

#[test]
fn plot_legend_stands_above_the_data() {
    let svg = perplexity().render().unwrap();
    let highest = svg
        .split("<polygon ")
        .skip(1)
        .filter_map(|p| p.split("/>").next())
        .filter(|p| p.contains("opacity"))
        .flat_map(|p| {
            p.split("points=\"")
                .nth(1)
                .unwrap()
                .split('"')
                .next()
                .unwrap()
                .split(' ')
                .collect::<Vec<_>>()
        })
        .filter_map(|point| point.split_once(',')?.1.parse::<f64>().ok())
        .fold(f64::INFINITY, f64::min);
    assert!(highest.is_finite(), "no error bands");
    for name in ["base", "last", "trained length"] {
        assert!(text_y(&svg, name) < highest, "{name} covers data");
    }
}

#[test]
fn plot_log_axis_spaces_equal_ratios_equally() {
    let svg = Plot::lines("t")
        .log_y()
        .series(Series::new("s").points(&[0.0, 1.0], &[1.0, 1000.0]))
        .render()
        .unwrap();
    let [a, b, c] = ["10", "100", "1000"].map(|t| text_y(&svg, t));
    assert!(((a - b) - (b - c)).abs() < 11.0, "{a} {b} {c}");
    assert!(a > b);
}

#[test]
fn plot_survives_any_values() {
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    let cases: [(&[f64], &[f64], &[f64]); 8] = [
        (&[], &[], &[]),
        (&[3.0], &[5.0], &[1.0]),
        (&[3.0], &[nan], &[nan]),
        (&[nan, 1.0, inf], &[1.0, 2.0, 3.0], &[]),
        (&[1.0, 2.0, 3.0], &[-1.0, 0.0, 1.0], &[inf, 2.0, 2.0]),
        (&[1.0, 1.0, 1.0], &[7.0, 7.0, 7.0], &[]),
        (&[0.0, f64::MAX], &[f64::MIN, f64::MAX], &[f64::MAX, 0.0]),
        (&[1e-320, 1e300], &[1e-320, 1e140], &[]),
    ];
    for (x, y, se) in cases {
        for log in [false, true] {
            let mut plot =
                Plot::lines(NASTY).x(NASTY).y(NASTY).marker_x(nan, "nowhere").x_ticks(&[nan, 1.0]);
            plot = plot.series(Series::new(NASTY).points(x, y).band(se).style(usize::MAX));
            plot = if log { plot.log_y() } else { plot };
            let svg = plot.render().unwrap();
            assert_well_formed(&svg);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }
    let one = Plot::lines("t").series(Series::new("s").points(&[3.0], &[5.0])).render().unwrap();
    let _ = (text_y(&one, "3"), text_y(&one, "5"));
    let none: [&str; 0] = [];
    assert!(Plot::categories("t", none).render().unwrap().contains("no data"));
    let uneven = Plot::lines("t").series(Series::new("s").points(&[1.0], &[1.0, 2.0])).render();
    assert!(matches!(uneven, Err(Error::Shape { .. })));
}

#[test]
fn plot_leaves_a_gap_at_nan_and_bins_by_mean() {
    let lines = |series: Series| {
        let svg = Plot::lines("t").series(series).render().unwrap();
        // The legend's sample and grid are lines of two points as well; count longer ones.
        let points = |p: &str| {
            p.split("points=\"")
                .nth(1)
                .unwrap()
                .split('"')
                .next()
                .unwrap()
                .trim()
                .split(' ')
                .count()
        };
        svg.split("<polyline ").skip(1).map(points).filter(|n| *n > 2).collect::<Vec<_>>()
    };
    let x: Vec<f64> = (0..8).map(f64::from).collect();
    let mut y = x.clone();
    assert_eq!(lines(Series::new("s").points(&x, &y)), [8]);
    y[3] = f64::NAN;
    assert_eq!(lines(Series::new("s").points(&x, &y)), [3, 4]);
    assert_eq!(lines(Series::new("s").points(&x, &y).binned(4)), [4], "a bin with one value holds");
    (y[2], y[5], y[7]) = (f64::NAN, f64::NAN, f64::NAN);
    assert_eq!(lines(Series::new("s").points(&x, &y).binned(3)), [3]);
}

#[test]
fn plot_categories_show_points_side_by_side() {
    let plot = Plot::categories("Recall", ["128", "256"])
        .y_covers(0.0, 1.0)
        .series(Series::new("a").values(&[0.9, 0.5]).band(&[0.02, 0.0]))
        .series(Series::new("b").values(&[0.8, f64::NAN]).style(0));
    let svg = plot.render().unwrap();
    assert_well_formed(&svg);
    let x: Vec<i32> = svg
        .split("<circle cx=\"")
        .skip(1)
        .map(|c| c.split('"').next().unwrap().parse().unwrap())
        .collect();
    // Two legend entries, then a's two points and b's one.
    assert_eq!(x.len(), 5);
    assert!(x[2] < x[4] && x[4] < x[3], "b stands right of a in the first category: {x:?}");
    assert!(text_y(&svg, "0") > text_y(&svg, "1"));
    let wrong =
        Plot::categories("t", ["128"]).series(Series::new("s").values(&[1.0, 2.0])).render();
    assert!(matches!(wrong, Err(Error::Shape { .. })));
}

#[test]
fn report_is_one_safe_page() {
    let findings = Findings {
        shows: vec![
            Finding::check(true, "lower by 0.098 ± 0.017 nats[^seeds]"),
            Finding::check(false, NASTY),
        ],
        does_not: vec![Finding::limit("a `lone backtick, and ` `code <i>`")],
    };
    assert_eq!(findings.failures(), 1);
    let text = findings.to_string();
    assert!(text.contains("  ok      lower by 0.098 ± 0.017 nats\n"), "{text}");
    assert!(text.contains("  failed  a<b>"), "{text}");
    let page = Report::new(NASTY, NASTY)
        .fact("41.5 ± 1.4", NASTY)
        .section(Section::new(NASTY).text(NASTY).findings(findings).table(NASTY, results()))
        .section(
            Section::new("Plots").figure(Figure::new(&perplexity().alt(NASTY), NASTY).unwrap()),
        )
        .section(
            Section::new("Reproduce")
                .command("longburn train --data 'a & b'")
                .pairs([("seed", NASTY)]),
        )
        .footnote("seeds", NASTY)
        .render();
    assert_well_formed(&page);
    assert!(!page.contains("<script"));
    for outside in ["src=", "@import", "url(", "<link", "href=\"http"] {
        assert!(!page.contains(outside), "{outside} reaches outside the page");
    }
    for needed in [
        "width=device-width",
        "color-scheme\" content=\"light dark",
        "prefers-color-scheme: dark",
        "default-src 'none'",
        "<div class=\"scroll\" role=\"region\"",
        "What this run shows",
        "What it does not show",
        "role=\"img\" aria-label=\"a&lt;b&gt;",
    ] {
        assert!(page.contains(needed), "{needed} is missing");
    }
    assert!(page.contains(
        ">ok</b> lower by 0.098\u{a0}±\u{a0}0.017 nats<sup><a href=\"#note-1\">1</a></sup>"
    ));
    assert!(page.contains(">failed</b>") && page.contains(">limit</b>"));
    assert!(page.contains("id=\"note-1\""));
    assert!(page.contains("<code>code &lt;i&gt;</code>"), "code is marked up");
    assert!(page.contains("longburn train --data &#39;a &amp; b&#39;"));
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Sink {
    fn lines(&self) -> Vec<String> {
        String::from_utf8(self.0.lock().unwrap().clone())
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect()
    }
}

#[test]
fn progress_logs_stages_of_known_and_unknown_length() {
    let sink = Sink::default();
    let progress = Progress::log(2, sink.clone(), Duration::ZERO);
    let mut stage = progress.stage("base model", Some(4), "steps");
    std::thread::sleep(Duration::from_millis(5));
    stage.work(512, "tokens");
    stage.message("loss 2.310");
    stage.advance(1);
    stage.finish();
    let mut stage = progress.stage("held-out", None, "documents");
    stage.advance(3);
    drop(stage);
    let lines = sink.lines();
    assert_eq!(lines.len(), 6, "{lines:#?}");
    assert_eq!(lines[0], "[1/2] base model");
    assert!(lines[1].starts_with("[1/2] base model: 1/4 steps, "), "{}", lines[1]);
    assert!(
        lines[1].contains(" tokens/s, 0:0") && lines[1].ends_with(" left, loss 2.310"),
        "{}",
        lines[1]
    );
    assert!(lines[2].starts_with("[1/2] base model: 1 steps in 0:0"), "{}", lines[2]);
    assert!(lines[4].starts_with("[2/2] held-out: 3 documents"), "{}", lines[4]);
    assert!(!lines[4].contains("left"), "{}", lines[4]);
}

#[test]
fn progress_is_sparing_in_a_log_and_silent_when_quiet() {
    let sink = Sink::default();
    let progress = Progress::log(0, sink.clone(), Duration::from_secs(3600));
    let mut stage = progress.stage("eval", Some(1000), "windows");
    (0..1000).for_each(|_| stage.advance(1));
    stage.finish();
    let lines = sink.lines();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert_eq!(lines[0], "eval");
    let mut stage = Progress::quiet().stage("eval", Some(1), "windows");
    stage.advance(1);
}
