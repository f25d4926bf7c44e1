//! What AnchorAttention must show: packing, positions, mask, and why.

mod needles;

use burn::tensor::{Device, Tensor, TensorData};
use longburn::attention::*;
use longburn::datasets::*;
use longburn::kernel::*;
use longburn::models::{Blocks, Decoder, ForwardOptions, ModelConfig, ids_tensor};
use longburn::positional::{Positions, RopeConfig};
use longburn::streams::{Draw, Purpose, Streams};
use longburn::testing::ratio;
use longburn::training::eval::{RopePrecision, rope_shift_probe};
use longburn::training::report::Progress;
use longburn::training::{Recipe, RunOptions, run_recipe};
use proptest::prelude::*;

const BOS: u32 = 1;

fn normal<const D: usize>(shape: [usize; D], stream: u32) -> Tensor<D> {
    let mut rng = Streams::new(9).rng(Purpose::Synthetic, 0, 0, stream);
    let data: Vec<f32> = (0..shape.iter().product()).map(|_| rng.normal() as f32).collect();
    Tensor::from_data(TensorData::new(data, shape), &Device::flex().autodiff())
}

fn host<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.inner().into_data().iter::<f32>().collect()
}

/// Documents of these lengths, every second one with a BOS of its own.
fn documents(lengths: &[usize]) -> Vec<TokenDocument> {
    let document = |(d, n): (usize, &usize)| {
        let mut ids: Vec<u32> = (0..*n).map(|t| (2 + (d * 13 + t * 7) % 50) as u32).collect();
        if d % 2 == 0 {
            ids.insert(0, BOS);
        }
        TokenDocument { id: format!("doc{d}"), ids: ids.into() }
    };
    lengths.iter().enumerate().map(document).collect()
}

fn anchor(engine: AnchorEngine) -> AnchorPacking {
    AnchorPacking::new(BOS).with_engine(engine)
}

fn config(len: usize, engine: AnchorEngine) -> PackConfig {
    PackConfig::new(len).with_anchor(anchor(engine)).with_epochs(Some(1))
}

fn rows(config: &PackConfig, documents: Vec<TokenDocument>) -> Vec<TokenBatch> {
    let mut source = config.init(documents, 1, Streams::new(0)).unwrap();
    std::iter::from_fn(|| source.next_batch().unwrap()).collect()
}

fn model(layers: usize, mixer: &MixerConfig) -> Decoder {
    let config = ModelConfig::llama(64, 24, layers, 4).with_kv_heads(2).with_max_positions(512);
    let model = Decoder::new(&config, &MixerConfig::Dense, 4, &Device::flex()).unwrap();
    let model = crate::tiny::scattered(model, 5, |_| true);
    model.swap_mixer(mixer).unwrap()
}

/// Hidden states, `[T, D]`.
fn hidden(model: &Decoder, ids: &[u32], tokens: &TokenMeta) -> Vec<Vec<f32>> {
    let ids = ids_tensor(ids, tokens.batch(), &Device::flex());
    let options = ForwardOptions::train();
    let last = model.forward_ids(ids, tokens, &options, vec![]).unwrap().last;
    host(last).chunks(24).map(<[f32]>::to_vec).collect()
}

/// Item 1: with the same positions, one shared anchor and one in front of every document give the
/// same hidden states.
#[test]
fn both_engines_are_equal_where_positions_are() {
    let lengths = [9, 1, 30, 14];
    let min = |engine| anchor(engine).with_min_len(1);
    let pack = |len, engine| {
        let config = PackConfig::new(len).with_anchor(min(engine)).with_epochs(Some(1));
        rows(&config, documents(&lengths)).remove(0)
    };
    let shared = pack(1 + 54, AnchorEngine::Shared);
    let own = pack(4 + 54, AnchorEngine::PerDocument);
    let is_anchor = |batch: &TokenBatch, t: usize| batch.ids[t] == BOS;
    let texts = |batch: &TokenBatch| -> Vec<usize> {
        (0..batch.len()).filter(|t| !is_anchor(batch, *t)).collect()
    };
    let (a, b) = (texts(&shared), texts(&own));
    assert_eq!(a.len(), 54);
    assert_eq!(
        a.iter().map(|t| shared.ids[*t]).collect::<Vec<_>>(),
        b.iter().map(|t| own.ids[*t]).collect::<Vec<_>>()
    );
    let mut positions = vec![0; own.len()];
    for (a, b) in a.iter().zip(&b) {
        positions[*b] = shared.tokens.rotary()[*a];
    }
    let forced = own.tokens.clone().with_rotary(positions).unwrap();
    let of_shared = hidden(&model(3, &MixerConfig::Anchor), &shared.ids, &shared.tokens);
    let dense = model(3, &MixerConfig::Dense);
    let of_own = hidden(&dense, &own.ids, &forced);
    let published = hidden(&dense, &own.ids, &own.tokens);
    let pick = |of: &[Vec<f32>], at: &[usize]| -> Vec<f32> {
        at.iter().flat_map(|t| of[*t].clone()).collect()
    };
    let r = ratio(&pick(&of_own, &b), &pick(&of_shared, &a));
    assert!(r <= 1e-5, "{r:e}");
    // By themselves the distances to the anchor differ.
    assert!(ratio(&pick(&published, &b), &pick(&of_shared, &a)) > 1e-4);
    // The mixer for shared anchors takes rows without one, too.
    let r = ratio(
        &pick(&hidden(&model(3, &MixerConfig::Anchor), &own.ids, &forced), &b),
        &pick(&of_own, &b),
    );
    assert!(r <= 1e-6, "{r:e}");
}

/// Item 2: a single document is the dense causal one.
#[test]
fn a_single_document_equals_dense_attention() {
    let ids: Vec<u32> =
        std::iter::once(BOS).chain(documents(&[3, 60])[1].ids.iter().copied()).collect();
    let plain = TokenMeta::contiguous(1, ids.len(), 0);
    let want = hidden(&model(2, &MixerConfig::Dense), &ids, &plain).concat();
    for (engine, mixer) in [
        (AnchorEngine::Shared, MixerConfig::Anchor),
        (AnchorEngine::PerDocument, MixerConfig::Anchor),
        (AnchorEngine::PerDocument, MixerConfig::Dense),
    ] {
        for positions in [PackPositions::Continuous, PackPositions::Reset] {
            let document = TokenDocument { id: "one".into(), ids: ids.clone().into() };
            let config = config(ids.len(), engine).with_positions(positions);
            let batch = rows(&config, vec![document]).remove(0);
            assert_eq!(batch.ids, ids);
            assert_eq!(batch.tokens.rotary(), plain.pos());
            let got = hidden(&model(2, &mixer), &batch.ids, &batch.tokens).concat();
            assert!(ratio(&got, &want) <= 1e-6, "{engine:?}");
        }
    }
}

/// Item 3: a document changes nothing in another, bit for bit; the anchor changes all.
#[test]
fn documents_are_isolated_and_the_anchor_reaches_all() {
    let model = model(3, &MixerConfig::Anchor);
    let batch = rows(&config(60, AnchorEngine::Shared), documents(&[9, 20, 12, 18])).remove(0);
    let base = hidden(&model, &batch.ids, &batch.tokens);
    let segments = batch.tokens.segment();
    for changed in 0..4 {
        let other = |(id, s): (&u32, &i32)| if *s == changed { 63 - id } else { *id };
        let ids: Vec<u32> = batch.ids.iter().zip(segments).map(other).collect();
        let got = hidden(&model, &ids, &batch.tokens);
        for (t, segment) in segments.iter().enumerate() {
            assert_eq!(got[t] != base[t], *segment == changed, "document {changed}, token {t}");
        }
    }
    let mut ids = batch.ids.clone();
    ids[0] = 40;
    let got = hidden(&model, &ids, &batch.tokens);
    assert!(got.iter().zip(&base).all(|(a, b)| a != b));
}

/// Item 4: outputs and gradients equal attention document by document, also for documents of one
/// token and one that ends with the row.
#[test]
fn the_mask_equals_its_reference() {
    for lengths in [vec![1, 62], vec![1, 1, 30, 67], vec![64], vec![100, 1, 155]] {
        let t = 1 + lengths.iter().sum::<usize>();
        let tokens = TokenMeta::anchored(&[lengths.clone(), lengths.clone()], t).unwrap();
        let run = |reference: bool| {
            let leaf = |heads, stream| normal([2, heads, t, 6], stream).require_grad();
            let (q, k, v) = (leaf(4, 1), leaf(2, 2), leaf(2, 3));
            let (a, b, c) = (q.clone(), k.clone(), v.clone());
            let out = if reference {
                reference::anchor::attention(a, b, c, &lengths)
            } else {
                let spec = AnchorConfig::new().spec();
                let mask = Mask::new(spec, tokens.clone(), tokens.clone(), 4).unwrap();
                let branch = Branch { q: a, k: b, mask };
                masked_attention(&[branch], c, &AttentionOptions::default()).unwrap().out
            };
            let grads = (out.clone() * normal([2, 4, t, 6], 4)).sum().backward();
            let grad = |x: &Tensor<4>| host(x.grad(&grads).unwrap());
            [host(out), grad(&q), grad(&k), grad(&v)]
        };
        for (i, (got, want)) in run(false).iter().zip(&run(true)).enumerate() {
            let r = ratio(got, want);
            assert!(r <= 1e-5, "{lengths:?}, tensor {i}: {r:e}");
        }
    }
}

/// Decoding behind a row with an anchor goes on with its last document.
#[test]
fn a_cache_knows_the_anchor() {
    let device = Device::flex();
    let shape = AttnShape {
        hidden: 12,
        heads: 4,
        kv_heads: 2,
        head_dim: 6,
        qkv_bias: false,
        o_bias: false,
        qk_norm: None,
    };
    let proj = shape.init((0.4, 0.4), &Streams::new(2), 0, &device);
    let mixer = AnchorConfig::new().init(proj, None).unwrap();
    let tokens = TokenMeta::anchored(&[vec![20, 30]], 51).unwrap();
    let tokens = tokens.with_rotary((0..51).collect()).unwrap();
    let rope = RopeConfig::new(1e4, 6).init().unwrap();
    let x = normal([1, 51, 12], 6).inner();
    let go = |sizes: &[usize]| {
        let (mut state, mut start, mut ys) = (None, 0, Vec::new());
        for size in sizes {
            let part = tokens.slice(start..start + size).unwrap();
            let table = rope.table(&Positions::of(&part), &device);
            let ctx =
                MixContext { rope: Some(&table), keep_state: true, ..MixContext::infer(&part) };
            let out = mixer.forward(x.clone().narrow(1, start, *size), &ctx, state).unwrap();
            (state, start) = (out.state, start + size);
            ys.push(out.y);
        }
        host(Tensor::cat(ys, 1))
    };
    let r = ratio(&go(&[1, 5, 1, 30, 1, 13]), &go(&[51]));
    assert!(r <= 1e-5, "{r:e}");
}

/// Item 6: a row of 16 equal documents costs about a sixteenth of dense attention.
#[test]
fn the_cost_is_that_of_the_documents() {
    let t = 1 + 16 * 128;
    let tokens = TokenMeta::anchored(&[vec![128; 16]], t).unwrap();
    let mask = Mask::new(AnchorConfig::new().spec(), tokens.clone(), tokens, 2).unwrap();
    assert_eq!(mask.pairs(), 2 * (16 * 128 * 129 / 2 + t as u64));
    let share = mask.pairs() as f64 / Mask::causal(1, t, 2).pairs() as f64;
    assert!((share - 1.0 / 16.0).abs() < 0.002, "{share}");
    // Beside those of documents apart from each other, the anchor's tile in every line.
    let visited = mask.blocks(64, 64).visited();
    let apart = TokenMeta::packed(&[[vec![1], vec![128; 16]].concat()], t).unwrap();
    let apart = Mask::new(MaskSpec::causal(), apart.clone(), apart, 2).unwrap().blocks(64, 64);
    assert!(visited <= apart.visited() + 2 * 33, "{visited}, apart {}", apart.visited());
    assert!(visited < Mask::causal(1, t, 2).blocks(64, 64).visited() / 3);
}

/// As published: targets cross borders, unless they are masked; positions go on through the row.
#[test]
fn rows_are_packed_as_published() {
    let lengths = [4, 2, 5, 3];
    // doc0 has BOS and four tokens, doc1 two tokens (left out), doc2 BOS and five, doc3 three.
    let texts: Vec<Vec<u32>> = documents(&lengths)
        .iter()
        .map(|d| d.ids.iter().copied().filter(|id| *id != BOS).collect())
        .collect();
    let pack = |engine, mask| {
        let anchor = anchor(engine).with_mask_borders(mask);
        let config = PackConfig::new(10).with_anchor(anchor).with_epochs(Some(1));
        rows(&config, documents(&lengths))
    };
    let labels = |ids: &[u32], next: Option<u32>| -> Vec<i64> {
        let next = next.map_or(IGNORE, i64::from);
        ids[1..].iter().map(|id| i64::from(*id)).chain([next]).collect()
    };
    let [a, c, d] = [&texts[0], &texts[2], &texts[3]];

    let shared = pack(AnchorEngine::Shared, false);
    let first = [vec![BOS], a.clone(), c.clone()].concat();
    assert_eq!(shared[0].ids, first);
    assert_eq!(shared[0].labels, labels(&first, Some(d[0])));
    assert_eq!(shared[0].tokens.rotary(), (0..10).collect::<Vec<_>>());
    let anchor_segment = TokenMeta::ANCHOR;
    assert_eq!(shared[0].tokens.segment(), [anchor_segment, 0, 0, 0, 0, 1, 1, 1, 1, 1]);
    let second = [vec![BOS], d.clone()].concat();
    assert_eq!(shared[1].ids[..4], second);
    assert_eq!(shared[1].labels, [labels(&second, None), vec![IGNORE; 6]].concat());
    assert_eq!(shared[1].tokens.segment()[4..], [-1; 6]);
    let masked = pack(AnchorEngine::Shared, true);
    assert_eq!(masked[0].ids, first);
    let mut expected = labels(&first, None);
    expected[4] = IGNORE;
    assert_eq!(masked[0].labels, expected);

    let own = pack(AnchorEngine::PerDocument, false);
    let first = [vec![BOS], a.clone(), vec![BOS], c[..4].to_vec()].concat();
    assert_eq!(own[0].ids, first);
    assert_eq!(own[0].labels, labels(&first, Some(c[4])));
    assert_eq!(own[0].tokens.rotary(), [0, 1, 2, 3, 4, 0, 6, 7, 8, 9]);
    assert_eq!(own[0].tokens.pos(), [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]);
    // The tail goes on in the next row, behind an anchor of its own.
    let second = [vec![BOS], c[4..].to_vec(), vec![BOS], d.clone()].concat();
    assert_eq!(own[1].ids[..6], second);
    assert_eq!(own[1].labels, [labels(&second, None), vec![IGNORE; 4]].concat());
    let masked = pack(AnchorEngine::PerDocument, true);
    let mut expected = labels(&first, Some(c[4]));
    expected[4] = IGNORE;
    assert_eq!(masked[0].labels, expected);

    // Positions that begin anew, with and without anchors; and continuous ones without.
    let reset = config(10, AnchorEngine::Shared).with_positions(PackPositions::Reset);
    let reset = rows(&reset, documents(&lengths)).remove(0);
    assert_eq!(reset.tokens.rotary(), [0, 1, 2, 3, 4, 1, 2, 3, 4, 5]);
    let plain = PackConfig::new(10).with_segments(true).with_epochs(Some(1));
    let continuous = plain.with_positions(PackPositions::Continuous);
    let continuous = rows(&continuous, documents(&[3, 4, 5])).remove(0);
    assert_eq!(continuous.tokens.rotary(), (0..10).collect::<Vec<_>>());
    assert_eq!(continuous.tokens.pos(), [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the lengths: every token of a usable document is in one row, predicted once in its
    /// own document, in both engines, and rows are those that a source gives from any cursor on.
    #[test]
    fn nothing_is_lost_in_packing(
        lengths in proptest::collection::vec(1usize..40, 1..12),
        len in 2usize..50,
        shared: bool,
        pack in 0usize..2,
    ) {
        let engine = if shared { AnchorEngine::Shared } else { AnchorEngine::PerDocument };
        let pack = [Pack::Concat, Pack::Split][pack];
        let config = config(len, engine).with_pack(pack);
        let documents = documents(&lengths);
        let used = |d: &&TokenDocument| d.ids.len() >= 3;
        let expected: Vec<u32> = documents
            .iter()
            .filter(used)
            .flat_map(|d| d.ids.iter().copied().filter(|id| *id != BOS))
            .collect();
        let Ok(mut source) = config.init(documents.clone(), 1, Streams::new(0)) else {
            prop_assert!(expected.is_empty());
            return Ok(());
        };
        let mut got = Vec::new();
        loop {
            let cursor = source.cursor();
            let mut other = config.init(documents.clone(), 1, Streams::new(0)).unwrap();
            other.seek(cursor).unwrap();
            let Some(row) = source.next_batch().unwrap() else { break };
            prop_assert_eq!(&other.next_batch().unwrap().unwrap(), &row);
            prop_assert_eq!(row.len(), len);
            let real = |t: &usize| row.tokens.segment()[*t] >= 0;
            let own = (0..len).filter(real).map(|t| row.ids[t]).filter(|id| *id != BOS);
            got.extend(own);
            let anchors = (0..len).filter(|t| row.ids[*t] == BOS && real(t)).count();
            prop_assert!(!shared || anchors == 1);
            prop_assert_eq!(row.tokens.has_anchor(), shared);
            // A token's label is what follows it in the row.
            for t in 0..len - 1 {
                if real(&t) && real(&(t + 1)) {
                    prop_assert_eq!(row.labels[t], i64::from(row.ids[t + 1]));
                }
            }
        }
        prop_assert_eq!(got, expected);
    }
}

/// Item 8, and rows that a mixer would get wrong.
#[test]
fn what_cannot_be_right_is_refused() {
    let text = |got: longburn::Result<PackedSource>| got.unwrap_err().to_string();
    let inside = || vec![TokenDocument { id: "a.txt".into(), ids: vec![BOS, 5, 6, BOS, 7].into() }];
    let init = |config: PackConfig, documents| config.init(documents, 1, Streams::new(0));
    let error = text(init(config(8, AnchorEngine::Shared), inside()));
    assert!(error.contains("a.txt: token 3 is the anchor 1"), "{error}");
    assert!(init(config(8, AnchorEngine::PerDocument), inside()).is_ok());
    let short = config(1, AnchorEngine::PerDocument);
    assert!(text(init(short, documents(&[5]))).contains("`len` is 1; expected at least 2"));
    let joined = config(8, AnchorEngine::Shared).with_segments(false);
    assert!(text(init(joined, documents(&[5]))).contains("`segments` is false"));
    let none = PackConfig::new(8).with_anchor(AnchorPacking::new(BOS).with_min_len(0));
    assert!(text(init(none, documents(&[5]))).contains("`anchor.min_len` is 0"));
    let targets = init(config(8, AnchorEngine::Shared), documents(&[5])).unwrap();
    assert!(targets.with_targets(vec![vec![true; 6]]).is_err());
    let error = AnchorPacking::of_tokenizer(None, None).unwrap_err().to_string();
    assert!(error.contains("neither a BOS nor an EOS"), "{error}");
    assert_eq!(AnchorPacking::of_tokenizer(None, Some(7)).unwrap().id, 7);
    assert_eq!(AnchorPacking::of_tokenizer(Some(3), Some(7)).unwrap().id, 3);

    // Mixers that would hide a shared anchor.
    let batch = rows(&config(40, AnchorEngine::Shared), documents(&[9, 20, 8])).remove(0);
    let groups = LongLoraConfig::new().with_group_size(8).with_ragged(true);
    let near = LongGenConfig::new().with_block(8).with_local_blocks(2);
    for mixer in
        [MixerConfig::Dense, MixerConfig::LongLora(groups), MixerConfig::LongGen(near.clone())]
    {
        let model = model(2, &mixer);
        let ids = ids_tensor(&batch.ids, 1, &Device::flex());
        let run = model.forward_ids(ids, &batch.tokens, &ForwardOptions::train(), vec![]);
        let error = run.unwrap_err().to_string();
        assert!(error.contains("shared anchor, which the mixer of layer 0 hides"), "{error}");
    }
    let window = ModelConfig::llama(64, 24, 1, 4);
    let mixer = Decoder::with_mixer(&window, 0, &Device::flex(), |_, proj| {
        AnchorConfig::new().init(proj, Some(9))
    });
    assert!(mixer.unwrap_err().to_string().contains("sliding window of 9"));
}

/// Item 5: in f32 moving all positions changes nothing, in bf16 it does; a rotation in bf16 more so.
#[test]
fn bf16_breaks_what_rotation_promises() {
    let model = model(2, &MixerConfig::Dense);
    let ids: Vec<u32> = (0..150).map(|t| 2 + t * 7 % 60).collect();
    let probe = |shifts, precision| rope_shift_probe(&model, &ids, shifts, precision).unwrap();
    assert_eq!(probe((16, 16), RopePrecision::Bf16Dot).total(), 0.0);
    let f32 = probe((0, 16), RopePrecision::F32);
    let worst = f32.mean_per_key().into_iter().fold(0.0, f64::max);
    assert!(worst < 1e-5, "{worst:e}");
    assert_eq!((f32.per_key.len(), f32.heads), (150, 8));
    let dot = probe((0, 16), RopePrecision::Bf16Dot);
    assert!(dot.total() > 100.0 * f32.total(), "{} {}", dot.total(), f32.total());
    let rotation = probe((0, 16), RopePrecision::Bf16Rotation);
    assert!(rotation.total() > dot.total(), "{} {}", rotation.total(), dot.total());
    let logits = |of: &longburn::training::eval::RopeShift| of.logits_per_key.iter().sum::<f64>();
    assert!(logits(&dot) > 100.0 * logits(&f32));
    assert!(rope_shift_probe(&model, &[3], (0, 1), RopePrecision::F32).is_err());
    assert!(rope_shift_probe(&model, &[3, 99], (0, 1), RopePrecision::F32).is_err());
}

/// What a recipe says of anchors, and what it may not.
#[test]
fn recipes_name_anchors() {
    let recipe = |mixer: &str, data: &str| {
        let text = format!(
            "[model]\ntokenizer = \"tokenizer.json\"\n[model.new]\nvocab_size = 300\nhidden_size = 16\n\
             layers = 1\nheads = 2\n[mixer]\nname = \"{mixer}\"\n[data]\ntrain = \"texts\"\n{data}\n\
             [train]\nsteps = 3\nlength = 32\nlr = 1e-3\n"
        );
        Recipe::parse(&text, "run.toml")
    };
    let shared = "[data.anchor]\nengine = \"shared\"";
    let read = recipe("anchor", shared).unwrap();
    assert_eq!(read.mixer, MixerConfig::Anchor.into());
    let section = read.data.anchor.clone().unwrap();
    assert_eq!(
        (section.engine, section.min_len, section.mask_borders),
        (AnchorEngine::Shared, 3, false)
    );
    assert!(read.data.segments());
    assert!(recipe("dense", "[data.anchor]").is_ok());
    assert!(recipe("longgen", "[data.anchor]\nmask_borders = true").is_ok());
    assert!(recipe("dense", "segments = true\npositions = \"continuous\"").is_ok());
    for (mixer, data, word) in [
        ("dense", shared, "data.anchor.engine"),
        ("longgen", shared, "data.anchor.engine"),
        ("dense", "[data.anchor]\nmin_len = 0", "data.anchor.min_len"),
        ("dense", "rows = \"windows\"\n[data.anchor]", "data.anchor"),
        ("dense", "kind = \"chat\"\n[data.anchor]", "data.anchor"),
        ("dense", "positions = \"reset\"", "data.positions"),
    ] {
        let error = recipe(mixer, data).unwrap_err().to_string();
        assert!(error.contains(&format!("`{word}` is")), "{mixer}, {data}: {error}");
    }
    let unknown = recipe("dense", "[data.anchor]\nid = 3").unwrap_err().to_string();
    assert!(unknown.contains("unknown field `id`"), "{unknown}");
}

/// A run on texts with an anchor trains, with either engine.
#[test]
fn a_recipe_with_an_anchor_trains() {
    let place = tempfile::tempdir().unwrap();
    let texts = place.path().join("texts.jsonl");
    let lines: Vec<String> = (0..40)
        .map(|i| format!("{{\"text\": \"{}\"}}", format!("story {i} ").repeat(3 + i % 7)))
        .collect();
    std::fs::write(&texts, lines.join("\n")).unwrap();
    let run = |mixer: &str, anchor: &str, name: &str| {
        let text = format!(
            "[model.new]\nvocab_size = 300\nhidden_size = 16\nlayers = 2\nheads = 2\n\
             [mixer]\nname = \"{mixer}\"\n[data]\ntrain = {texts:?}\n{anchor}\n\
             [train]\nsteps = 30\nlength = 64\nbatch = 2\nlr = 1e-2\n"
        );
        let recipe = Recipe::parse(&text, "run.toml").unwrap();
        let options = RunOptions::new(Device::flex()).with_out(Some(place.path().join(name)));
        run_recipe(&recipe, &options, &Progress::quiet()).unwrap()
    };
    let own = run("dense", "[data.anchor]", "own");
    let shared = run("anchor", "[data.anchor]\nengine = \"shared\"", "shared");
    for summary in [own, shared] {
        let (first, last) = (summary.first_loss, summary.last_loss);
        assert!(last < 0.8 * first, "{first} to {last}");
    }
}
