//! Needle grids, heat maps, and results files that go on.

use longburn::Error;
use longburn::datasets::synthetic::NeedleConfig;
use longburn::datasets::{BpeConfig, Tokenizer, train_bpe};
use longburn::streams::{Purpose, Streams};
use longburn::training::eval::{PasskeyEval, PasskeyItem, ResultsFile, model_stamp, resumable};
use longburn::training::report::Heatmap;
use serde_json::json;
use std::fs;

const SENTENCES: &str = "The boats lay in the harbour. Nobody counted them! Was the tide low? ";

fn tokenizer() -> Tokenizer {
    let config = BpeConfig::new(300).with_special(vec!["<|endoftext|>".into()]);
    train_bpe(std::iter::once(SENTENCES.repeat(20)), &config).unwrap()
}

#[test]
fn needles_stand_between_sentences_at_their_depth() {
    let tokenizer = tokenizer();
    let needle = NeedleConfig::new().init(&tokenizer, [SENTENCES.repeat(5)]).unwrap();
    let rng = |i| Streams::new(3).rng(Purpose::Synthetic, i, 0, 0);
    let len = 700;
    let mut before = 0;
    for (i, depth) in [0.0, 0.25, 0.5, 0.75, 1.0].into_iter().enumerate() {
        let sample = needle.sample(len, depth, &mut rng(i as u64)).unwrap();
        assert_eq!(sample.ids.len() + sample.answer_ids.len(), len);
        let prompt = tokenizer.decode(&sample.ids, true).unwrap();
        assert_eq!(prompt.matches(&sample.answer).count(), 1);
        let (hay, rest) = prompt.split_once("\nThe keeper").unwrap();
        assert!(rest.ends_with("The number of the lighthouse is"));
        assert_eq!(tokenizer.decode(&sample.answer_ids, true).unwrap().trim(), sample.answer);
        assert!(i == 0 || i == 4 || hay.trim_end().ends_with(['.', '!', '?']), "{hay}");
        assert!(i == 0 || sample.place > before);
        before = sample.place;
        match i {
            0 => assert_eq!(sample.place, 0),
            4 => assert!(rest.contains("is ") && !rest.contains("boats")),
            _ => {}
        }
        assert_eq!(sample, needle.sample(len, depth, &mut rng(i as u64)).unwrap());
    }
    let short = needle.sample(20, 0.5, &mut rng(0)).unwrap_err().to_string();
    assert!(short.contains("tokens of 20") && short.contains("remedy"), "{short}");
    assert!(needle.sample(len, 1.1, &mut rng(0)).is_err());
    let config = NeedleConfig::new;
    assert!(config().with_needle("no number").init(&tokenizer, [SENTENCES]).is_err());
    assert!(config().with_digits(0).init(&tokenizer, [SENTENCES]).is_err());
    assert!(config().init(&tokenizer, [""]).is_err());
}

#[test]
fn heat_maps_say_what_they_show() {
    let items: Vec<PasskeyItem> = (0..6)
        .map(|i| {
            PasskeyItem::new(vec![1], vec![2], (i % 3) as f64 / 2.0).with_length(100 * (1 + i / 3))
        })
        .collect();
    let eval = PasskeyEval::new().with_depth_buckets(3);
    let report = eval.report(&items, vec![true, false, true, true, true, false]).unwrap();
    assert_eq!(report.cells.len(), 6);
    let svg = report.heatmap("Found <all>").render();
    assert_eq!(svg.matches("<rect").count(), 6);
    assert_eq!((svg.matches(">100<").count(), svg.matches(">0<").count()), (4 + 2, 2 + 1));
    assert!(svg.contains(">200<") && svg.contains(">50<") && svg.contains("Found &lt;all&gt;"));
    assert!(svg.contains("100, 50: 0"), "in words: {svg}");
    assert!(eval.report(&items, vec![true]).is_err());
    // What lies outside of the map or is no number is left out.
    let odd = Heatmap::new("x").x("a", ["1"]).y("b", ["1"]);
    let odd = odd.cell(0, 0, f64::NAN).cell(3, 0, 1.0).render();
    assert_eq!(odd.matches("<rect").count(), 0);
}

#[test]
fn results_are_not_made_twice() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("results.jsonl");
    let settings = json!({"model": "a", "what": {"limit": 7}});
    let items: Vec<u64> = (0..7).collect();
    let mut asked = Vec::new();
    let mut run = |settings: &serde_json::Value, fail_at: u64| {
        let mut file = ResultsFile::open(&path, settings)?;
        resumable(&items, Some(&mut file), 2, |items| {
            if items.iter().any(|i| **i == fail_at) {
                return Err(Error::Data("interrupted".into()));
            }
            asked.extend(items.iter().map(|i| **i));
            Ok(items.iter().map(|i| **i as f64 / 3.0).collect::<Vec<f64>>())
        })
    };
    assert!(run(&settings, 4).is_err());
    // The next line was cut short by the interruption.
    let mut torn = fs::read_to_string(&path).unwrap();
    torn.push_str("{\"item\": 4, \"resu");
    fs::write(&path, torn).unwrap();
    let expected: Vec<f64> = items.iter().map(|i| *i as f64 / 3.0).collect();
    assert_eq!(run(&settings, 99).unwrap(), expected);
    assert_eq!(run(&settings, 0).unwrap(), expected);

    for (other, field) in [
        (json!({"model": "b", "what": {"limit": 7}}), "settings.model"),
        (json!({"model": "a", "what": {"limit": 8}}), "settings.what.limit"),
        (json!({"model": "a", "what": {"limit": 7, "seed": 1}}), "settings.what.seed"),
    ] {
        let error = run(&other, 99).unwrap_err();
        let Error::Config { field: named, .. } = &error else { panic!("{error}") };
        assert_eq!(named, field);
        assert!(error.to_string().contains("remedy"));
    }
    assert_eq!(asked, items);

    let held = ResultsFile::open(&path, &settings).unwrap();
    assert_eq!(held.len(), 7);
    assert!(matches!(ResultsFile::open(&path, &settings), Err(Error::Io { .. })));
    drop(held);
    for broken in ["not json\n", "somebody's notes", "{\"longburn_results\": 2}\n", "{}\n"] {
        fs::write(&path, broken).unwrap();
        let error = ResultsFile::open(&path, &settings).unwrap_err();
        assert!(matches!(error, Error::Parse { .. }), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), broken);
    }
}

#[test]
fn a_models_stamp_is_its_content() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    put("config.json", b"{}");
    put("model.safetensors", &vec![7; 200_000]);
    put("notes.txt", b"x");
    let stamp = || model_stamp(folder.path(), None).unwrap();
    let first = stamp();
    put("notes.txt", b"y");
    put("config.json", b"{}");
    assert_eq!(stamp(), first);
    let mut weights = vec![7; 200_000];
    weights[199_999] = 8;
    put("model.safetensors", &weights);
    assert_ne!(stamp(), first);
}
