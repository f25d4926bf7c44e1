//! Item 7: the example's comparison of needles, in short, and its counting of positions.

#[allow(dead_code, reason = "the example uses all of it")]
#[path = "../../../examples/anchor/coverage.rs"]
mod coverage;
#[path = "../../../examples/anchor/needle.rs"]
mod needle;
#[allow(dead_code, reason = "the example uses all of it")]
#[path = "../../../examples/anchor/packing.rs"]
mod packing;
#[path = "../../../examples/anchor/parts.rs"]
mod parts;
#[path = "../../../examples/seeds.rs"]
mod seeds;

use coverage::Coverage;
use longburn::datasets::IGNORE;
use longburn::kernel::TokenMeta;
use needle::NeedlePart;
use packing::Arm;

/// Documents of up to 32 tokens in rows of 64.
const SHORT: &str = "
shortest = 16
longest = 32
rows = 16
embedding = 0.5
[task]
length = 64
pairs = [1, 2]
keys = 4
values = 4
filler = 2
[model]
width = 32
layers = 2
heads = 2
rope_theta = 10000.0
[train]
length = 64
batch = 8
steps = 300
lr = 8e-3
warmup = 0.05
";

fn short() -> NeedlePart {
    toml::from_str(SHORT).unwrap()
}

/// Documents of 2 and 3 tokens and padding, at positions that were laid down by hand.
fn rows(rotary: [i32; 6], segment: [i32; 6]) -> TokenMeta {
    let pos = vec![0, 1, 0, 1, 2, 0];
    TokenMeta::new(1, 6, pos, segment.to_vec()).unwrap().with_rotary(rotary.to_vec()).unwrap()
}

#[test]
fn positions_are_counted_as_queries_see_them() {
    let count = |tokens: &TokenMeta| {
        let mut coverage = Coverage::new(6);
        coverage.add(tokens).unwrap();
        coverage
    };
    // Pairs within the documents: three and six. Padding is counted nowhere.
    let apart = [0, 0, 1, 1, 1, -1];
    let reset = count(&rows([0, 1, 0, 1, 2, 0], apart));
    assert_eq!(reset.relative, [5, 3, 1, 0, 0, 0]);
    assert_eq!(reset.absolute, [2, 2, 1, 0, 0, 0]);
    let continuous = count(&rows([0, 1, 2, 3, 4, 0], apart));
    assert_eq!(continuous.relative, reset.relative);
    assert_eq!(continuous.absolute, [1, 1, 1, 1, 1, 0]);
    // The second document's first token is an anchor at 0, which two tokens see from 3 and 4.
    let anchor = count(&rows([0, 1, 0, 3, 4, 0], apart));
    assert_eq!(anchor.relative, [5, 2, 0, 1, 1, 0]);
    assert_eq!(anchor.absolute, [2, 1, 0, 1, 1, 0]);
    // A shared anchor in front of documents of 1 and 3 tokens, which all see.
    let shared = count(&rows([0, 1, 2, 3, 4, 0], [TokenMeta::ANCHOR, 0, 1, 1, 1, -1]));
    assert_eq!(shared.relative, [5, 3, 2, 1, 1, 0]);
    assert_eq!(Coverage::seen(&anchor.relative), 4);
    assert_eq!(Coverage::share_from(&anchor.relative, 3), 2.0 / 9.0);
    assert_eq!(Coverage::share_from(&anchor.relative, 7), 0.0);
    let mut both = anchor.clone();
    both.join(&reset);
    assert_eq!(both.relative, [10, 5, 1, 1, 1, 0]);
    assert_eq!(both.absolute, [4, 3, 1, 1, 1, 0]);
    // Longer rows than were announced.
    assert!(Coverage::new(4).add(&rows([0, 1, 2, 3, 4, 0], apart)).is_err());
    assert!(count(&rows([5, 1, 2, 3, 4, 0], [-1, 0, 1, 1, 1, -1])).absolute[5] == 0);
    assert!(Coverage::new(6).add(&rows([3, 1, 2, 3, 4, 0], apart)).is_err());
}

/// What is compared differs in the positions of first tokens alone, and in no target.
#[test]
fn packings_of_needles_are_equal_but_for_the_positions_of_anchors() {
    let part = short();
    part.check().unwrap();
    for step in 0..4 {
        let [apart, anchor] =
            [Arm::Continuous, Arm::Anchor].map(|arm| part.batch(arm, 3, (step, 1)).unwrap());
        assert_eq!((&apart.ids, &apart.labels), (&anchor.ids, &anchor.labels));
        assert_eq!(apart.tokens.segment(), anchor.tokens.segment());
        assert_eq!(apart.tokens.len(), 64);
        let mut anchors = 0;
        for (t, id) in apart.ids.iter().enumerate().filter(|(t, _)| apart.tokens.segment()[*t] >= 0)
        {
            let (a, b) = (apart.tokens.rotary()[t], anchor.tokens.rotary()[t]);
            assert_eq!(a, (t % 64) as i32);
            // Behind filler, keys and values.
            let is_anchor = *id == 2 + 4 + 4;
            assert_eq!(b, if is_anchor { 0 } else { a }, "token {t}");
            anchors += usize::from(is_anchor);
        }
        assert!(anchors >= 8, "{anchors} documents in 4 rows");
        // Each answer is what the pair in front says.
        let segment = apart.tokens.segment();
        let asked: Vec<usize> =
            (0..apart.ids.len()).filter(|t| apart.labels[*t] != IGNORE).collect();
        assert!(asked.len() >= anchors);
        for t in asked {
            let row = t / 64 * 64;
            let pair =
                (row..t).find(|s| segment[*s] == segment[t] && apart.ids[*s] == apart.ids[t]);
            let value = apart.ids[pair.expect("the key stands in front") + 1];
            assert_eq!(apart.labels[t], i64::from(value), "token {t}");
        }
    }
}

/// The whole comparison: what is certain beforehand holds, and files are written.
#[test]
fn the_comparison_of_needles_runs_in_short() {
    let out = tempfile::tempdir().unwrap();
    let claims = short().run(&[0, 1], false, out.path()).unwrap();
    for claim in &claims {
        println!("{}: {}", claim.holds, claim.text);
    }
    assert_eq!(claims.len(), 4);
    assert!(claims[2].holds, "{}", claims[2].text);
    for name in ["needle.md", "needle.svg", "coverage.md", "coverage.svg"] {
        assert!(std::fs::metadata(out.path().join(name)).unwrap().len() > 200, "{name}");
    }
    let read = |name: &str| std::fs::read_to_string(out.path().join(name)).unwrap();
    let cells = |name: &str, row: &str| -> Vec<String> {
        let text = read(name);
        let line = text.lines().find(|line| line.contains(row)).unwrap().to_string();
        line.split('|').map(|cell| cell.trim().to_string()).collect()
    };
    // Positions of tokens, relative ones, pairs beyond the longest document.
    let anchor = cells("coverage.md", Arm::Anchor.name());
    assert_eq!(anchor[2..4], ["64".to_string(), "64".to_string()]);
    assert!(anchor[4].parse::<f64>().unwrap() > 0.0);
    assert_eq!(cells("coverage.md", Arm::Continuous.name())[2..5], ["64", "32", "0.00"]);
    assert_eq!(cells("coverage.md", Arm::Reset.name())[2..5], ["32", "32", "0.00"]);
    let found = |arm: Arm| cells("needle.md", arm.name())[2].parse::<f64>().unwrap();
    // Chance is 25 %.
    for arm in [Arm::Continuous, Arm::Anchor] {
        assert!(found(arm) > 60.0, "{}: {}", arm.name(), found(arm));
    }
}

#[test]
fn sizes_of_needles_that_do_not_go_together_are_refused() {
    let with = |from: &str, to: &str| {
        assert!(SHORT.contains(from));
        toml::from_str::<NeedlePart>(&SHORT.replace(from, to)).unwrap().check()
    };
    assert!(with("rows = 16", "rows = 9").is_ok());
    for (from, to) in [
        ("shortest = 16", "shortest = 0"),
        ("shortest = 16", "shortest = 33"),
        ("shortest = 16", "shortest = 8"),
        ("longest = 32", "longest = 65"),
        ("[task]\nlength = 64", "[task]\nlength = 32"),
        ("rows = 16", "rows = 0"),
    ] {
        assert!(with(from, to).is_err(), "{to}");
    }
}
