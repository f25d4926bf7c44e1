//! Rotary scalings against numbers computed elsewhere, and against each other.

use crate::tiny;
use burn::tensor::Device;
use longburn::Error;
use longburn::kernel::TokenMeta;
use longburn::models::{Blocks, ForwardOptions, ModelConfig, ids_tensor};
use longburn::positional::{LengthHistory, LongRope, Positions, Rope, RopeConfig, RopeKind, Yarn};

/// Relative error that a table may have, of numbers known to eight digits.
const KNOWN: f64 = 2e-5;

fn rope(theta: f64, dim: usize, kind: RopeKind) -> Rope {
    RopeConfig::new(theta, dim).with_kind(kind).init().unwrap()
}

/// Frequencies within `length` tokens.
fn at(theta: f64, dim: usize, kind: RopeKind, length: usize) -> Vec<f64> {
    rope(theta, dim, kind).inv_freq(length)
}

fn close(got: f64, want: f64, what: &str) {
    assert!((got / want - 1.0).abs() <= KNOWN, "{what}: {got}, expected {want}");
}

fn assert_known(frequencies: &[f64], known: &[(usize, f64)]) {
    for (i, want) in known {
        close(frequencies[*i], *want, &format!("f'_{i}"));
    }
}

fn llama3(factor: f64, low: f64, high: f64, original: usize) -> RopeKind {
    RopeKind::Llama3 {
        factor,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_position_embeddings: original,
    }
}

fn dynamic(factor: f64, original: usize) -> RopeKind {
    RopeKind::Dynamic { factor, original_max_position_embeddings: original }
}

fn by_parts(factor: f64, slow: f64, fast: f64) -> RopeKind {
    RopeKind::ByParts {
        factor,
        beta_slow: slow,
        beta_fast: fast,
        original_max_position_embeddings: 4096,
    }
}

fn longrope(factor: f64, short: &[f64], long: &[f64]) -> RopeKind {
    RopeKind::LongRope(LongRope {
        factor,
        original_max_position_embeddings: 64,
        short_factor: short.to_vec(),
        long_factor: long.to_vec(),
        attention_factor: None,
    })
}

#[test]
fn llama3_frequencies_are_those_of_the_reference() {
    let scaled = at(5e5, 128, llama3(8.0, 1.0, 4.0, 8192), 1);
    assert_known(
        &scaled,
        &[
            (29, 0.0021665708),
            (32, 0.00052484616),
            (34, 0.00017850781),
            (35, 9.5562124e-5),
            (63, 3.068926e-7),
        ],
    );
    // Kept in front of the blended band, divided by 8 behind it.
    let plain = at(5e5, 128, RopeKind::Default, 1);
    for i in 0..64 {
        let (ratio, band) = (plain[i] / scaled[i], (29..=34).contains(&i));
        assert_eq!(ratio > 1.0 + 1e-9 && ratio < 8.0 - 1e-9, band, "{i}: {ratio}");
        assert!(band || (ratio - if i < 29 { 1.0 } else { 8.0 }).abs() < 1e-9, "{i}: {ratio}");
    }
}

#[test]
fn yarn_frequencies_are_those_of_the_reference() {
    let four = RopeKind::Yarn(Yarn::new(4.0, 4096));
    let scaled = at(1e4, 128, four.clone(), 1);
    let known = [(24, 0.027973995), (32, 0.0065384615), (40, 0.0013378867), (63, 2.886955e-5)];
    assert_known(&scaled, &known);
    // The ramp runs from pair 20 to pair 46.
    let plain = at(1e4, 128, RopeKind::Default, 1);
    let whole = |i: usize| (plain[i] / scaled[i] - 1.0).abs() < 1e-12;
    let quarter = |i: usize| (plain[i] / scaled[i] - 4.0).abs() < 1e-12;
    assert!(whole(20) && !whole(21) && !quarter(45) && quarter(46));
    close(rope(1e4, 128, four).attention_factor(), 1.1386294, "a");

    let qwen = at(1e6, 128, RopeKind::Yarn(Yarn::new(4.0, 32_768)), 1);
    let plain = at(1e6, 128, RopeKind::Default, 1);
    assert_known(&qwen, &[(32, 0.00060294118)]);
    let ratio = |i: usize| plain[i] / qwen[i];
    assert!(ratio(23) < 1.0 + 1e-12 && ratio(24) > 1.001);
    assert!(ratio(39) < 3.99 && ratio(40) > 4.0 - 1e-12);
}

#[test]
fn yarn_attention_factor_has_its_precedence() {
    let a = |change: fn(&mut Yarn)| {
        let mut yarn = Yarn::new(4.0, 4096);
        change(&mut yarn);
        rope(1e4, 128, RopeKind::Yarn(yarn)).attention_factor()
    };
    let m = |s: f64, x: f64| 0.1 * x * s.ln() + 1.0;
    close(a(|_| ()), m(4.0, 1.0), "none");
    assert_eq!(a(|y| (y.mscale, y.mscale_all_dim) = (Some(1.0), Some(1.0))), 1.0);
    let pair = a(|y| (y.mscale, y.mscale_all_dim) = (Some(1.0), Some(0.707)));
    close(pair, m(4.0, 1.0) / m(4.0, 0.707), "the pair");
    // One of the two, or a zero, is no pair.
    close(a(|y| y.mscale = Some(2.0)), m(4.0, 1.0), "mscale alone");
    let zero = a(|y| (y.mscale, y.mscale_all_dim) = (Some(1.0), Some(0.0)));
    close(zero, m(4.0, 1.0), "a zero");
    let explicit = a(|y| {
        (y.mscale, y.mscale_all_dim) = (Some(1.0), Some(0.5));
        y.attention_factor = Some(1.0);
    });
    assert_eq!(explicit, 1.0);
}

#[test]
fn yarn_without_rounding_moves_the_ends_of_the_ramp() {
    let ends = |truncate: bool| {
        let scaled = at(1e4, 128, RopeKind::Yarn(Yarn { truncate, ..Yarn::new(4.0, 4096) }), 1);
        let plain = at(1e4, 128, RopeKind::Default, 1);
        (plain[21] / scaled[21], plain[45] / scaled[45])
    };
    // 20.944 to 45.027: pair 21 has hardly begun, pair 45 is all but done.
    let kept = |i: f64| 1.0 - (i - 20.943_970_7) / (45.026_852 - 20.943_970_7);
    let ratio = |k: f64| 1.0 / ((1.0 - k) / 4.0 + k);
    let (first, last) = ends(false);
    close(first, ratio(kept(21.0)), "pair 21");
    close(last, ratio(kept(45.0)), "pair 45");
    assert!(ends(true).0 > first);
}

#[test]
fn dynamic_frequencies_follow_the_length() {
    let kind = || dynamic(2.0, 64);
    let plain = at(1e4, 8, RopeKind::Default, 1);
    for length in [1, 63, 64] {
        assert_eq!(at(1e4, 8, kind(), length), plain, "{length}");
    }
    let base = |f: &[f64]| f[1].powi(-4);
    let grown = at(1e4, 8, kind(), 128);
    close(base(&grown), 43_267.487, "base at 128");
    assert_known(&grown, &[(0, 1.0), (1, 0.069336127), (2, 0.0048074986), (3, 0.00033333333)]);
    close(base(&at(1e4, 8, kind(), 256)), 133_905.18, "base at 256");
}

/// The state that a module of `transformers` keeps between calls.
#[test]
fn dynamic_history_grows_stays_and_is_reset() {
    let mut history = LengthHistory::new(64);
    for (length, table) in
        [(10, 64), (128, 128), (100, 128), (256, 256), (64, 256), (63, 64), (65, 65), (64, 65)]
    {
        assert_eq!(history.observe(length), table, "{length}");
    }
}

/// Keys that were rotated when they came keep their frequencies; unrotated, they are rotated anew as
/// the sequence grows, which in a model of one layer is one pass over it.
#[test]
fn unrotated_cache_equals_one_pass_where_frequencies_follow_the_length() {
    let long = longrope(4.0, &[1.0, 1.2, 1.5], &[1.0, 2.0, 4.0]);
    let RopeKind::LongRope(settings) = long else { unreachable!() };
    let long = LongRope { original_max_position_embeddings: 16, ..settings };
    let kinds = [
        (RopeKind::Linear { factor: 2.0 }, false),
        (dynamic(2.0, 16), true),
        (RopeKind::LongRope(long), true),
    ];
    for (kind, differs) in kinds {
        let rope = RopeConfig::new(1e4, 6).with_kind(kind.clone());
        let config = ModelConfig::llama(61, 24, 1, 4).with_max_positions(16).with_rope(rope);
        let model = tiny::model(&config, &Device::flex());
        let ids = tiny::ids(24);
        let whole = tiny::logits(&model, &ids);
        let cached = |unrotated: bool| {
            let options = ForwardOptions::infer().with_state(true).with_unrotated_cache(unrotated);
            let (mut states, mut seen, mut last) = (vec![], 0, vec![]);
            for piece in [13, 1, 1, 1, 1, 7] {
                let tokens = TokenMeta::contiguous(1, piece, seen);
                let input = ids_tensor(&ids[seen..seen + piece], 1, &Device::flex());
                let out = model.forward_ids(input, &tokens, &options, states).unwrap();
                last = model.logits(out.last).into_data().iter::<f32>().collect::<Vec<_>>();
                (states, seen) = (out.states, seen + piece);
            }
            tiny::ratio(&last, &whole[17 * 61..])
        };
        assert!(cached(true) < 1e-5, "{kind:?}: {}", cached(true));
        assert_eq!(cached(false) > 1e-2, differs, "{kind:?}: {}", cached(false));
    }
}

/// Every row of a batch has its own length, and positions, not slots, count.
#[test]
fn length_is_that_of_the_row() {
    let dynamic = rope(1e4, 8, dynamic(2.0, 4));
    let table = |rows: &[[i64; 3]]| {
        let flat = rows.iter().flatten().copied().collect();
        let positions = Positions::new(rows.len(), 3, flat, 1).unwrap();
        let all: Vec<f32> =
            dynamic.table(&positions, &Device::flex()).sin.into_data().iter::<f32>().collect();
        all[..12].to_vec()
    };
    let short = table(&[[0, 1, 2]]);
    assert_eq!(table(&[[0, 1, 2], [1, 2, 3]]), short);
    assert_eq!(table(&[[0, 1, 2], [7, 8, 9]]), short);
    assert_ne!(table(&[[0, 1, 9], [0, 1, 2]])[..8], short[..8]);
    // One length for all, as `transformers` has it.
    let positions = Positions::new(2, 3, vec![0, 1, 2, 9, 0, 0], 1).unwrap();
    assert_eq!((positions.row_length(0), positions.length()), (3, 10));
    let shared = dynamic.table_at(&positions, positions.length(), &Device::flex());
    let shared: Vec<f32> = shared.sin.into_data().iter::<f32>().collect();
    assert_eq!(shared[..8], table(&[[0, 1, 9], [0, 1, 2]])[..8]);
    assert_eq!(Positions::new(1, 3, vec![0, 4, 9], 2).unwrap().length(), 5);
    assert_eq!(Positions::new(1, 0, vec![], 1).unwrap().length(), 0);
}

#[test]
fn longrope_takes_the_long_list_beyond_its_length() {
    let (short, long) = ([1.0, 1.5, 2.0, 3.0], [1.0, 2.0, 4.0, 8.0]);
    let kind = longrope(4.0, &short, &long);
    let plain = at(1e4, 8, RopeKind::Default, 1);
    for (length, divisors) in [(1, short), (64, short), (65, long), (1000, long)] {
        for (i, f) in at(1e4, 8, kind.clone(), length).into_iter().enumerate() {
            close(f, plain[i] / divisors[i], &format!("length {length}, pair {i}"));
        }
    }
    let a = rope(1e4, 8, kind.clone()).attention_factor();
    close(a, (1.0 + 4f64.ln() / 64f64.ln()).sqrt(), "a");
    let RopeKind::LongRope(settings) = kind else { unreachable!() };
    let set = RopeKind::LongRope(LongRope { attention_factor: Some(0.9), ..settings });
    assert_eq!(rope(1e4, 8, set).attention_factor(), 0.9);
}

#[test]
fn static_ntk_and_by_parts_are_those_of_the_reference() {
    let parts = at(1e4, 128, by_parts(4.0, 1.0, 32.0), 1);
    let known = [(20, 0.056234133), (32, 0.0038352387), (40, 8.7178011e-4), (46, 3.3338036e-4)];
    assert_known(&parts, &known);

    let ntk = RopeConfig::new(1e4, 128).ntk(4.0).unwrap();
    assert_eq!(ntk.kind, RopeKind::Default);
    let ntk = ntk.init().unwrap().inv_freq(1);
    assert_known(&ntk, &[(0, 1.0), (1, 0.84711715), (32, 0.0049452898), (63, 2.886955e-5)]);
    let plain = at(1e4, 128, RopeKind::Default, 1);
    assert!((plain[63] / ntk[63] - 4.0).abs() < 1e-9);
}

#[test]
fn factor_one_equals_no_scaling() {
    let plain = at(1e4, 8, RopeKind::Default, 1);
    let ones = [1.0; 4];
    let kinds = [
        RopeKind::Linear { factor: 1.0 },
        dynamic(1.0, 64),
        RopeKind::Yarn(Yarn::new(1.0, 64)),
        RopeKind::Yarn(Yarn { truncate: false, ..Yarn::new(1.0, 64) }),
        by_parts(1.0, 1.0, 32.0),
        longrope(1.0, &ones, &ones),
        llama3(1.0, 1.0, 4.0, 64),
        RopeKind::Proportional { factor: 1.0, partial_rotary_factor: 1.0 },
    ];
    for kind in kinds {
        let lengths: &[usize] = if kind.name() == "dynamic" { &[1, 64] } else { &[1, 64, 640] };
        for length in lengths {
            let rope = rope(1e4, 8, kind.clone());
            assert_eq!(rope.attention_factor(), 1.0, "{kind:?}");
            for (a, b) in rope.inv_freq(*length).iter().zip(&plain) {
                assert!((a / b - 1.0).abs() <= 1e-7, "{kind:?} at {length}: {a}, {b}");
            }
        }
    }
    assert_eq!(RopeConfig::new(1e4, 8).ntk(1.0).unwrap(), RopeConfig::new(1e4, 8));
    // Beyond L, dynamic scaling stretches with a factor of 1 too.
    let beyond = at(1e4, 8, dynamic(1.0, 64), 128);
    close(beyond[1].powi(-4), 25_198.421, "base at 2L");
}

#[test]
fn linear_scaling_equals_divided_positions() {
    let linear = rope(1e4, 16, RopeKind::Linear { factor: 4.0 });
    let plain = rope(1e4, 16, RopeKind::Default);
    let table = |rope: &Rope, denominator| {
        let positions = Positions::new(1, 5, vec![0, 1, 7, 1000, 99_999], denominator).unwrap();
        let table = rope.table(&positions, &Device::flex());
        [table.cos, table.sin].map(|x| x.into_data().iter::<f32>().collect::<Vec<_>>())
    };
    assert_eq!(table(&linear, 1), table(&plain, 4));
}

#[test]
fn proportional_rotates_the_first_pairs_with_the_whole_width_s_frequencies() {
    let kind = RopeKind::Proportional { factor: 2.0, partial_rotary_factor: 0.3 };
    // 0.3 · 16 / 2 is 2.4: two pairs.
    let scaled = at(1e4, 16, kind, 1);
    let plain = at(1e4, 16, RopeKind::Default, 1);
    assert_eq!(scaled[..2], [plain[0] / 2.0, plain[1] / 2.0]);
    assert_eq!(scaled[2..], [0.0; 6]);
}

/// Cosines and sines carry the factor; channels that do not rotate do not.
#[test]
fn attention_factor_scales_the_rotated_channels_only() {
    use burn::tensor::{Tensor, TensorData};
    let kind = RopeKind::Yarn(Yarn { attention_factor: Some(1.5), ..Yarn::new(4.0, 64) });
    let table = rope(1e4, 4, kind).table(&Positions::range(1, 3, 5), &Device::flex());
    let x: Vec<f32> = (0..18).map(|i| i as f32 - 7.5).collect();
    let x = Tensor::<4>::from_data(TensorData::new(x, [1, 1, 3, 6]), &Device::flex());
    let got: Vec<f32> = table.rotate(x.clone()).into_data().iter::<f32>().collect();
    let x: Vec<f32> = x.into_data().iter::<f32>().collect();
    for (got, x) in got.chunks(6).zip(x.chunks(6)) {
        let norm = |a: f32, b: f32| f64::from(a).hypot(f64::from(b));
        for i in 0..2 {
            let ratio = norm(got[i], got[i + 2]) / norm(x[i], x[i + 2]);
            assert!((ratio - 1.5).abs() < 1e-6, "{ratio}");
        }
        assert_eq!(got[4..], x[4..]);
    }
}

/// Against numbers of 50 digits: (θ, d, position, pair, cosine, sine).
#[test]
fn n8_angles_at_a_million_positions() {
    let known = [
        (1e4, 128, 1_048_576, 0, 0.943_808_393_901_312, 0.330_493_140_021_734_7),
        (1e4, 128, 1_048_576, 1, -0.677_602_420_272_102_7, 0.735_428_419_386_542_9),
        (1e4, 128, 1_048_576, 7, -0.981_062_698_376_205_7, 0.193_690_427_886_351_7),
        (1e4, 128, 1_048_576, 32, 0.640_015_658_147_934_9, -0.768_361_866_131_750_3),
        (1e4, 128, 1_048_575, 0, 0.788_042_239_528_927_5, -0.615_621_173_058_750_9),
        (1e4, 128, 1_048_575, 1, 0.121_168_248_860_222_97, 0.992_631_983_903_474_2),
        (1e4, 128, 1_048_575, 63, -0.135_813_769_454_661_5, 0.990_734_384_195_136_4),
        (5e5, 64, 1_048_576, 1, 0.259_192_300_217_998_8, -0.965_825_735_579_510_6),
        (5e5, 64, 1_048_576, 7, -0.682_172_925_730_79, 0.731_190_877_541_489_9),
        (5e5, 64, 1_048_575, 16, 0.997_017_418_971_562_7, 0.077_176_850_591_892_98),
        (5e5, 64, 1_048_575, 31, -0.999_825_838_985_203_7, -0.018_662_574_783_068_295),
    ];
    for (theta, dim, position, pair, cos, sin) in known {
        let positions = Positions::new(1, 1, vec![position], 1).unwrap();
        let table = rope(theta, dim, RopeKind::Default).table(&positions, &Device::flex());
        let value = |x: burn::tensor::Tensor<4>| x.into_data().iter::<f32>().nth(pair).unwrap();
        for (got, want) in [(value(table.cos), cos), (value(table.sin), sin)] {
            // One rounding to f32; angles in f32 would be off by up to 0.06.
            assert!((f64::from(got) - want).abs() < 1.2e-7, "{position}, {pair}: {got}, {want}");
        }
    }
    // Scaled kinds go the same way: a stretch of 4 reaches the angle of a quarter of the position.
    let linear = rope(1e4, 128, RopeKind::Linear { factor: 4.0 });
    let quarter = rope(1e4, 128, RopeKind::Default);
    let table = |rope: &Rope, p| {
        let positions = Positions::new(1, 1, vec![p], 1).unwrap();
        rope.table(&positions, &Device::flex()).cos.into_data().iter::<f32>().collect::<Vec<_>>()
    };
    for (a, b) in table(&linear, 4_194_304).into_iter().zip(table(&quarter, 1_048_576)) {
        assert!((a - b).abs() < 1.2e-7, "{a}, {b}");
    }
}

#[test]
fn settings_that_make_no_table_are_refused_by_field() {
    let refused = |theta: f64, dim: usize, kind: RopeKind| match RopeConfig::new(theta, dim)
        .with_kind(kind)
        .init()
    {
        Err(Error::Config { field, value, expected, .. }) => {
            assert!(!value.is_empty() && !expected.is_empty());
            field
        }
        other => panic!("expected a refusal, got {other:?}"),
    };
    let (ones, three) = ([1.0; 4], [1.0; 3]);
    let yarn = |change: fn(&mut Yarn)| {
        let mut yarn = Yarn::new(4.0, 64);
        change(&mut yarn);
        RopeKind::Yarn(yarn)
    };
    let cases = [
        ("factor", RopeKind::Linear { factor: 0.5 }),
        ("factor", RopeKind::Linear { factor: f64::NAN }),
        ("factor", dynamic(0.99, 64)),
        ("factor", dynamic(f64::INFINITY, 64)),
        ("factor", yarn(|y| y.factor = 0.0)),
        ("factor", llama3(-8.0, 1.0, 4.0, 64)),
        ("factor", longrope(0.9, &ones, &ones)),
        ("factor", by_parts(0.5, 1.0, 32.0)),
        ("factor", RopeKind::Proportional { factor: 0.5, partial_rotary_factor: 1.0 }),
        ("original_max_position_embeddings", dynamic(2.0, 0)),
        ("original_max_position_embeddings", yarn(|y| y.original_max_position_embeddings = 1)),
        ("beta_fast", yarn(|y| y.beta_fast = 0.5)),
        ("beta_fast", yarn(|y| y.beta_slow = 0.0)),
        ("beta_fast", by_parts(4.0, 32.0, 1.0)),
        ("attention_factor", yarn(|y| y.attention_factor = Some(-1.0))),
        ("mscale", yarn(|y| y.mscale = Some(f64::NAN))),
        ("mscale_all_dim", yarn(|y| y.mscale_all_dim = Some(-1.0))),
        ("high_freq_factor", llama3(8.0, 4.0, 4.0, 64)),
        ("high_freq_factor", llama3(8.0, 4.0, 1.0, 64)),
        ("short_factor", longrope(4.0, &three, &ones)),
        ("long_factor", longrope(4.0, &ones, &three)),
        ("long_factor", longrope(4.0, &ones, &[1.0, 1.0, 0.0, 1.0])),
        (
            "partial_rotary_factor",
            RopeKind::Proportional { factor: 1.0, partial_rotary_factor: 2.0 },
        ),
    ];
    for (field, kind) in cases {
        assert_eq!(refused(1e4, 8, kind.clone()), field, "{kind:?}");
    }
    for dim in [0, 7] {
        assert_eq!(refused(1e4, dim, RopeKind::Default), "dim");
    }
    assert_eq!(refused(1e4, 2, dynamic(2.0, 64)), "dim");
    assert_eq!(refused(0.0, 8, RopeKind::Default), "rope_theta");
    assert_eq!(refused(1.0, 8, yarn(|_| ())), "rope_theta");
    let ntk = |config: RopeConfig, alpha| config.ntk(alpha).unwrap_err().to_string();
    assert!(ntk(RopeConfig::new(1e4, 8), 0.5).contains("alpha"));
    assert!(ntk(RopeConfig::new(1e4, 2), 2.0).contains("dim"));
    let scaled = RopeConfig::new(1e4, 8).with_kind(RopeKind::Linear { factor: 2.0 });
    assert!(ntk(scaled, 2.0).contains("linear"));
}
