//! `longburn bench`: what rows say, that sides which differ are found out, comparisons, the page.
//! Nothing here says how fast anything is.

mod files;
mod recall;
mod refusals;
mod torch;

use assert_cmd::Command;
use longburn::kernel::{BlockStride, GroupSize, Groups, Mask, MaskSpec, TokenMeta};
use serde_json::Value;

/// `longburn bench` with few samples and a small ceiling.
fn bench(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longburn"));
    command.env("NO_COLOR", "1").arg("bench").args(args);
    command
}

fn quick(args: &[&str]) -> Command {
    bench(&[args, &["--repeats", "2", "--ceiling-side", "64", "--json"]].concat())
}

/// The rows of a run that succeeds.
fn rows(args: &[&str]) -> Vec<Value> {
    let out = quick(args).assert().success();
    let said: Value = serde_json::from_slice(&out.get_output().stdout).unwrap();
    said["rows"].as_array().unwrap().clone()
}

/// The one row of a run that succeeds.
fn row(args: &[&str]) -> Value {
    let rows = rows(args);
    assert_eq!(rows.len(), 1, "{rows:?}");
    rows[0].clone()
}

fn number(row: &Value, field: &str) -> f64 {
    row[field].as_f64().unwrap_or_else(|| panic!("{field} of {row}"))
}

fn near(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-9 * b.abs(), "{a} is not {b}");
}

#[test]
fn a_row_tells_everything_and_its_ratios_are_the_peers_over_ours() {
    let args = ["attention", "--len", "100", "--heads", "4", "--kv-heads", "2", "--head-dim", "16"];
    let more = ["--mask", "window", "--window", "7", "--sinks", "2", "--backward"];
    let peers = ["--peer", "stock", "--peer", "dense", "--threads", "2"];
    let row = row(&[&args[..], &more, &peers].concat());
    assert_eq!(row["what"], "attention");
    assert_eq!(row["case"], "window 7, 2 sinks, forward + backward");
    assert_eq!(row["shape"], "B1 H4 K2 D16 T100");
    assert_eq!((&row["dtype"], &row["device"]), (&"f32".into(), &"flex".into()));
    assert_eq!(row["threads"], 2);
    assert_eq!(row["machine"]["longburn"], env!("CARGO_PKG_VERSION"));
    assert!(row["machine"]["cores"].as_u64().unwrap() >= 1);
    near(number(&row, "flops_per_second"), number(&row, "flops") / number(&row, "seconds"));
    let ceiling = &row["ceiling"];
    let roof = (number(ceiling, "bytes_per_second") * number(&row, "flops")
        / number(&row, "bytes"))
    .min(number(ceiling, "gemm_flops_per_second"));
    near(number(&row, "share"), number(&row, "flops_per_second") / roof);

    let peers = row["peers"].as_array().unwrap();
    assert_eq!(peers.len(), 2);
    for peer in peers {
        assert_eq!(peer["samples"].as_array().unwrap().len(), 2);
        near(number(peer, "ratio"), number(peer, "seconds") / number(&row, "seconds"));
        if let (Some(ours), Some(theirs)) =
            (row["peak_bytes"].as_f64().filter(|peak| *peak > 0.0), peer["peak_bytes"].as_f64())
        {
            near(number(peer, "memory_ratio"), theirs / ours);
        }
    }
    assert!(number(&peers[0], "difference") < 1e-5, "{peers:?}");
    // It computes something else.
    assert!(peers[1]["difference"].is_null());
}

#[test]
fn operations_and_densities_are_those_of_the_masks_pairs() {
    let groups = Groups { size: GroupSize::Ratio(4), shift: true, ragged: false };
    for (mask, spec) in [
        (&["--mask", "dense"][..], MaskSpec::causal()),
        (
            &["--mask", "window", "--window", "30", "--sinks", "3"],
            MaskSpec::causal().with_window(Some(30)).with_sinks(3),
        ),
        (&["--mask", "longlora", "--groups", "4"], MaskSpec::causal().with_groups(groups)),
        (
            &["--mask", "stride", "--block", "8", "--local-blocks", "2", "--stride", "3"],
            MaskSpec::causal().with_stride(BlockStride::new(8, 2, 3, 4)),
        ),
        (
            &["--mask", "longgen", "--block", "8", "--local-blocks", "2", "--sink-blocks", "3"],
            MaskSpec::causal().with_stride(BlockStride::near(8, 2, 4)).with_sinks(24),
        ),
        (
            &["--mask", "longgen", "--block", "8", "--local-blocks", "2", "--stride", "3"],
            MaskSpec::causal().with_stride(BlockStride::new(8, 2, 3, 4)),
        ),
    ] {
        let tokens = TokenMeta::contiguous(2, 96, 0);
        let mask_of_it = Mask::new(spec, tokens.clone(), tokens, 4).unwrap();
        let sizes = ["--len", "96", "--batch", "2", "--heads", "4", "--head-dim", "8"];
        let args = [&["attention", "--no-memory"][..], &sizes, mask].concat();
        let forward = row(&args);
        let pairs = mask_of_it.pairs();
        assert_eq!(forward["pairs"].as_u64(), Some(pairs), "{mask:?}");
        near(number(&forward, "density"), mask_of_it.density());
        let causal = (2 * 4 * 96 * 97 / 2) as f64;
        near(number(&forward, "causal_share"), pairs as f64 / causal);
        near(number(&forward, "flops"), 4.0 * 8.0 * pairs as f64);
        assert!(forward["peak_bytes"].is_null());
        // q, k, v and out.
        near(number(&forward, "bytes"), 4.0 * 4.0 * (2 * 4 * 96 * 8) as f64);
        let both = row(&[&args[..], &["--backward"]].concat());
        near(number(&both, "flops"), 3.5 * 4.0 * 8.0 * pairs as f64);
    }
}

/// Random blocks: the share that was asked for, and the same results as Burn's own.
#[test]
fn lists_of_blocks_have_the_share_that_was_asked_for() {
    let sizes = ["attention", "--no-memory", "--len", "1000", "--heads", "4", "--kv-heads", "2"];
    let share = |density: &str, more: &[&str]| {
        let mask = ["--head-dim", "4", "--mask", "blocks", "--block", "16", "--density", density];
        let row = row(&[&sizes[..], &mask, more].concat());
        if let Some(peer) = row["peers"].get(0) {
            assert!(number(peer, "difference") < 1e-5, "{row}");
        }
        number(&row, "causal_share")
    };
    near(share("1", &[]), 1.0);
    for density in ["0.05", "0.25"] {
        let wanted: f64 = density.parse().unwrap();
        let found = share(density, &["--backward", "--peer", "stock"]);
        assert!((0.98 * wanted..1.1 * wanted).contains(&found), "{density}: {found}");
    }
}

#[test]
fn stock_burn_takes_the_memory_of_the_scores() {
    if longburn::training::plan::Resident::read().is_none() {
        return println!("skipped: the system does not say what is resident");
    }
    let row = row(&["attention", "--len", "700", "--heads", "8", "--backward", "--peer", "stock"]);
    let scores = (8 * 700 * 700 * 4) as f64;
    let stock = number(&row["peers"][0], "peak_bytes");
    // Scores and weights are there at one time; without a mask's help no more than ten of them.
    assert!((2.0 * scores..10.0 * scores).contains(&stock), "{row}");
    assert!(number(&row, "peak_bytes") < scores, "{row}");
}

#[test]
fn products_losses_and_models_are_counted() {
    let product = row(&["matmul", "--m", "6", "--k", "5", "--n", "7", "--layout", "nt"]);
    near(number(&product, "flops"), 2.0 * 6.0 * 5.0 * 7.0);
    near(number(&product, "bytes"), 4.0 * (30 + 35 + 42) as f64);
    assert_eq!(product["shape"], "6 x 5 x 7");

    let sizes = ["--tokens", "33", "--width", "8", "--vocab", "50"];
    let loss = row(&[&["linear-loss", "--no-memory", "--peer", "stock"][..], &sizes].concat());
    near(number(&loss, "flops"), 6.0 * 33.0 * 8.0 * 50.0);
    assert!(number(&loss["peers"][0], "difference") < 1e-5, "{loss}");

    let sizes = ["--len", "32", "--width", "16", "--heads", "2", "--no-memory"];
    let masked = ["--mask", "longlora", "--peer", "dense"];
    let block = row(&[&["block"][..], &sizes, &masked].concat());
    // Inner width 48; pairs of 32 tokens in groups of 8, shifted: 4 groups, or 3 and two halves.
    let products = 4.0 * 16.0 * 16.0 + 3.0 * 16.0 * 48.0;
    let pairs = (4 * 36 + 3 * 36 + 2 * 10) as f64;
    near(number(&block, "flops"), 6.0 * 32.0 * products + 3.5 * 4.0 * 8.0 * pairs);

    let step = row(&[&["train-step", "--layers", "3", "--vocab", "40"][..], &sizes].concat());
    let pairs = (2 * 32 * 33 / 2) as f64;
    let flops = 6.0 * 32.0 * (3.0 * products + 40.0 * 16.0) + 3.0 * 3.5 * 4.0 * 8.0 * pairs;
    near(number(&step, "flops"), flops);
    near(number(&step, "tokens_per_second"), 32.0 / number(&step, "seconds"));
}

/// A third of the layers in the middle sees all pairs, unless another number is asked for.
#[test]
fn longgens_schedule_counts_the_pairs_of_each_layer() {
    let sizes = ["--len", "32", "--width", "16", "--heads", "2", "--vocab", "40", "--no-memory"];
    let mask = ["--mask", "longgen", "--block", "8", "--local-blocks", "2", "--layers", "3"];
    let products = 4.0 * 16.0 * 16.0 + 3.0 * 16.0 * 48.0;
    // Four diagonal blocks, three beside them, and the first one seen by the last two.
    let (sparse, dense) = ((2 * (4 * 36 + 3 * 64 + 2 * 64)) as f64, (32 * 33) as f64);
    for (full, text) in [(0, ""), (1, ", 1 layer dense"), (3, ", 3 layers dense")] {
        let number_of = ["--full-layers".to_string(), full.to_string()];
        let number_of = number_of.each_ref().map(String::as_str);
        let asked: &[&str] = if full == 1 { &[] } else { &number_of };
        let step = row(&[&["train-step", "--peer", "dense"][..], &sizes, &mask, asked].concat());
        assert_eq!(step["case"], format!("LongGen, 2 near, 1 first, blocks of 8{text}"));
        let pairs = f64::from(full) * dense + f64::from(3 - full) * sparse;
        let flops = 6.0 * 32.0 * (3.0 * products + 40.0 * 16.0) + 3.5 * 4.0 * 8.0 * pairs;
        near(number(&step, "flops"), flops);
        near(number(&step, "pairs"), sparse);
    }
}

#[test]
fn generation_and_growth_give_rows() {
    let sizes = ["--prompt", "5", "--new", "4"];
    let texts = row(&[&["generate", "--random-llama", "20k"][..], &sizes].concat());
    assert_eq!(texts["case"], "random Llama 20k");
    near(number(&texts, "tokens_per_second"), 4.0 / number(&texts, "seconds"));

    let growth = row(&["growth", "--steps", "12", "--early", "8", "--longest", "64"]);
    // What the early steps leave behind may be freed later.
    assert!((0.9..1.5).contains(&number(&growth, "growth")), "{growth}");
    assert!(growth["ceiling"].is_null() && number(&growth, "peak_bytes") > 0.0);
}

/// Every run feeds a token: the cache of the next one is longer, and nothing else.
#[test]
fn a_token_behind_a_cache_gives_rows() {
    let sizes =
        ["--width", "16", "--heads", "4", "--kv-heads", "2", "--vocab", "40", "--batch", "3"];
    for dtype in ["f32", "bf16"] {
        let token = row(&[&["decode", "--len", "70", "--dtype", dtype][..], &sizes].concat());
        assert_eq!(
            (&token["case"], &token["dtype"]),
            (&"a token behind a cache".into(), &dtype.into())
        );
        assert_eq!(token["shape"], "L2 W16 H4 K2 V40 B3 T70");
        near(number(&token, "tokens_per_second"), 3.0 / number(&token, "seconds"));
        // 3072 weights per layer and 640 of the head, keys and values of 71 tokens, 8 numbers each.
        let numbers = 2.0 * 3072.0 + 640.0 + 2.0 * 2.0 * 3.0 * 71.0 * 8.0;
        near(number(&token, "bytes"), if dtype == "f32" { 4.0 } else { 2.0 } * numbers);
    }
}

/// Both scans by all the ways that this program has: of the three results none differs.
#[test]
fn scans_equal_tensor_operations_and_the_recurrence() {
    let sizes = ["--batch", "2", "--width", "12", "--head-dim", "4", "--states", "5"];
    for kind in ["selective", "ssd"] {
        let args = [&["scan", "--no-memory", "--kind", kind][..], &sizes].concat();
        // Plain Burn wants whole chunks, of 64 tokens or of all.
        for (len, peers) in [
            ("1,192", &["--peer", "stock", "--peer", "recurrence"][..]),
            ("100", &["--peer", "recurrence"]),
        ] {
            for row in rows(&[&args[..], &["--len", len], peers].concat()) {
                let peers = row["peers"].as_array().unwrap();
                assert_eq!(peers.last().unwrap()["name"], "recurrence");
                for peer in peers {
                    assert!(peer["version"].as_str().unwrap().starts_with("burn "), "{row}");
                    assert!(number(peer, "difference") < 1e-5, "{row}");
                    near(number(peer, "ratio"), number(peer, "seconds") / number(&row, "seconds"));
                }
            }
        }
    }
}

/// States of all tokens at once against states at the ends of spans.
#[test]
fn a_scan_takes_less_memory_than_tensor_operations() {
    let sizes = ["scan", "--len", "1024", "--width", "64", "--memory", "--peer", "stock"];
    let row = row(&sizes);
    // Only Linux says.
    if !row["peak_bytes"].is_null() {
        // 1024 tokens of 64 channels with 16 states are 4 MiB, which several operations hold.
        assert!(number(&row["peers"][0], "peak_bytes") > 8e6, "{row}");
        assert!(number(&row["peers"][0], "memory_ratio") > 4.0, "{row}");
    }
}

#[test]
fn a_list_of_lengths_gives_a_row_each_and_a_file_holds_what_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("rows.json");
    let sizes = ["--len", "3,64", "--heads", "2", "--head-dim", "8,4", "--no-memory"];
    let rows = rows(&[&["attention", "--out", out.to_str().unwrap()][..], &sizes].concat());
    let shapes: Vec<&str> = rows.iter().map(|row| row["shape"].as_str().unwrap()).collect();
    let expected = ["B1 H2 K2 D8 T3", "B1 H2 K2 D8 T64", "B1 H2 K2 D4 T3", "B1 H2 K2 D4 T64"];
    assert_eq!(shapes, expected);
    let written: Value = serde_json::from_str(&std::fs::read_to_string(out).unwrap()).unwrap();
    assert_eq!(written["rows"].as_array().unwrap(), &rows);
}
