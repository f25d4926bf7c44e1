//! Perplexity, loss by position and pass keys against closed forms and slow loops.

mod grids;
mod questions;
mod rows;
mod tasks;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use longburn::attention::{MixOutput, MixerConfig, State};
use longburn::kernel::TokenMeta;
use longburn::models::keymap::map_params;
use longburn::models::{Blocks, Decoder, ForwardOptions, ModelConfig, Place, ids_tensor};
use longburn::positional::{Positions, RopeConfig};
use longburn::training::eval::{
    EvalWindow, PasskeyEval, PasskeyItem, Perplexity, Protocol, by_position, document_starts,
    doubling_buckets, wilson,
};
use longburn::{Error, Result};

const VOCABULARY: usize = 23;

fn decoder(seed: u64) -> Decoder {
    let config = ModelConfig::llama(VOCABULARY, 16, 2, 2);
    Decoder::new(&config, &MixerConfig::Dense, seed, &Device::flex()).unwrap()
}

fn uniform() -> Decoder {
    let zero = |path: &str| path.starts_with("norm").then(|| vec![0.0; 16]);
    map_params(decoder(0), zero, |_| None)
}

fn text(seed: u32, len: usize) -> Vec<u32> {
    let step = |x: &u32| Some(x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    std::iter::successors(Some(seed), step)
        .map(|x| (x >> 16) % VOCABULARY as u32)
        .take(len)
        .collect()
}

/// A model whose loss is known: the logit of id 0 after `p` tokens is ln(1 + p), all others are
/// 0. On a text of zeros its loss falls with every token of context.
#[derive(Module, Debug)]
struct Known {
    head: Tensor<2>,
    #[module(skip)]
    config: ModelConfig,
}

impl Known {
    fn new() -> Self {
        let mut head = vec![0f32; VOCABULARY];
        head[0] = 1.0;
        let head = TensorData::new(head, [VOCABULARY, 1]);
        let head = Tensor::from_data(head, &Device::flex());
        Self { head, config: ModelConfig::llama(VOCABULARY, 16, 1, 2) }
    }

    /// Loss of a zero in front of which the window holds `p` tokens.
    fn loss(p: usize) -> f64 {
        let logit = (1.0 + p as f64).ln();
        (logit.exp() + VOCABULARY as f64 - 1.0).ln() - logit
    }
}

impl Blocks for Known {
    fn embed(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let [b, t] = ids.dims();
        let row: Vec<f32> = (0..t).map(|i| (2.0 + i as f32).ln()).collect();
        let x = Tensor::<1>::from_data(TensorData::new(row, [t]), &Device::flex());
        x.reshape([1, t, 1]).repeat_dim(0, b)
    }
    fn place(&self, tokens: &TokenMeta, device: &Device) -> Place {
        let rope = RopeConfig::new(1e4, 2).init().unwrap().table(&Positions::of(tokens), device);
        Place { tokens: tokens.clone(), rope }
    }
    fn num_blocks(&self) -> usize {
        0
    }
    fn block(
        &self,
        _: usize,
        x: Tensor<3>,
        _: &Place,
        _: &ForwardOptions,
        _: Option<State>,
    ) -> Result<MixOutput> {
        Ok(MixOutput::new(x))
    }
    fn finish(&self, x: Tensor<3>) -> Tensor<3> {
        x
    }
    fn head(&self) -> Tensor<2> {
        self.head.clone()
    }
    fn config(&self) -> &ModelConfig {
        &self.config
    }
}

fn close(got: f64, want: f64, tolerance: f64) {
    assert!((got - want).abs() <= tolerance, "got {got}, want {want}");
}

#[test]
fn uniform_logits_give_the_vocabulary_size_in_every_protocol() {
    let documents = [text(1, 100), text(2, 57)];
    for eval in [Perplexity::strided(32, 8), Perplexity::longlora(20, 7)] {
        let report = eval.eval(&uniform(), &documents).unwrap();
        close(report.ppl / VOCABULARY as f64, 1.0, 1e-6);
        close(report.token_mean_nll, (VOCABULARY as f64).ln(), 1e-6);
        assert!(report.by_position.iter().all(|b| b.count > 0 && b.se.unwrap() < 1e-6));
    }
}

/// The guide's loop, window by window, on a text whose losses are known in closed form.
#[test]
fn strided_form_counts_as_the_guide_does() {
    for (n, max_len, stride) in
        [(100, 32, 8), (100, 32, 20), (97, 32, 32), (64, 64, 16), (40, 64, 32), (7, 3, 2)]
    {
        let (mut sum, mut count, mut previous, mut begin) = (0.0, 0, 0, 0);
        loop {
            let end: usize = (begin + max_len).min(n);
            let new = end - previous;
            let scored: Vec<f64> = (begin.max(end - new) - begin..end - begin)
                .filter(|p| *p > 0)
                .map(Known::loss)
                .collect();
            if new > 1 {
                sum += scored.iter().sum::<f64>() / scored.len() as f64 * (new - 1) as f64;
                count += new - 1;
            }
            previous = end;
            if end == n {
                break;
            }
            begin += stride;
        }
        let report =
            Perplexity::strided(max_len, stride).eval(&Known::new(), &[vec![0; n]]).unwrap();
        close(report.mean_nll, sum / count as f64, 1e-6);
        close(report.ppl, (sum / count as f64).exp(), 1e-5);
        // Every token but the first of the text (and, without overlap, of each window) is scored.
        let unscored = if stride == max_len { n.div_ceil(stride) } else { 1 };
        assert_eq!(report.tokens, n - unscored, "{n} {max_len} {stride}");
    }
}

#[test]
fn strided_form_of_a_short_text_is_the_plain_mean() {
    let model = decoder(3);
    let document = text(5, 30);
    let report = Perplexity::strided(64, 16).eval(&model, &[&document[..]]).unwrap();
    assert_eq!((report.windows.len(), report.tokens), (1, 29));
    let device = Device::flex();
    let hidden = model
        .forward_ids(
            ids_tensor(&document, 1, &device),
            &TokenMeta::contiguous(1, 30, 0),
            &ForwardOptions::infer(),
            vec![],
        )
        .unwrap();
    let logits: Vec<f32> = model.logits(hidden.last).into_data().iter::<f32>().collect();
    let mut sum = 0.0;
    for (row, next) in logits.chunks(VOCABULARY).zip(&document[1..]) {
        let total: f64 = row.iter().map(|l| f64::from(*l).exp()).sum();
        sum += total.ln() - f64::from(row[*next as usize]);
    }
    close(report.mean_nll, sum / 29.0, 1e-5);

    // Stride = window: disjoint windows, each on its own.
    let disjoint = Perplexity::strided(10, 10).eval(&model, &[&document[..]]).unwrap();
    let parts: Vec<&[u32]> = document.chunks(10).collect();
    let alone = Perplexity::strided(10, 10).eval(&model, &parts).unwrap();
    close(disjoint.mean_nll, alone.mean_nll, 1e-6);
}

#[test]
fn a_smaller_stride_never_raises_perplexity_of_a_model_that_uses_context() {
    let document = [vec![0; 257]];
    let report = |stride| Perplexity::strided(64, stride).eval(&Known::new(), &document).unwrap();
    // Smaller strides still are at the mercy of the guide's counting, which drops one token of
    // every window but the first from the weights.
    let ppl: Vec<f64> = [64, 32, 16, 8].map(|stride| report(stride).ppl).into();
    assert!(ppl.windows(2).all(|p| p[1] < p[0]), "{ppl:?}");
    let mean: Vec<f64> = [64, 32, 16, 4, 1].map(|stride| report(stride).token_mean_nll).into();
    assert!(mean.windows(2).all(|m| m[1] < m[0]), "{mean:?}");
}

#[test]
fn longlora_form_windows_and_mean() {
    let count = |n: usize, len, step| {
        let report = Perplexity::longlora(len, step).eval(&Known::new(), &[vec![0; n]]).unwrap();
        let mean: f64 = (1..len).map(Known::loss).sum::<f64>() / (len - 1) as f64;
        close(report.mean_nll, mean, 1e-6);
        report.windows.iter().map(|w| w.start).collect::<Vec<_>>()
    };
    assert_eq!(count(1000, 256, 256), [0, 256]);
    assert_eq!(count(100, 32, 16), [0, 16, 32, 48]);
    assert_eq!(count(100, 20, 20), [0, 20, 40]);
}

#[test]
fn documents_are_never_joined() {
    let model = decoder(4);
    let (a, b) = (text(6, 41), text(7, 29));
    let eval = Perplexity::strided(16, 8).with_batch_size(3);
    let both = eval.eval(&model, &[a.clone(), b.clone()]).unwrap();
    let (a, b) = (eval.eval(&model, &[a]).unwrap(), eval.eval(&model, &[b]).unwrap());
    assert_eq!(both.tokens, a.tokens + b.tokens);
    let alone: Vec<_> = a.windows.iter().chain(&b.windows).collect();
    assert_eq!(both.windows.len(), alone.len());
    for (together, alone) in both.windows.iter().zip(alone) {
        assert_eq!((together.start, together.len), (alone.start, alone.len));
        close(together.mean_nll, alone.mean_nll, 1e-6);
    }
    assert_eq!(both.windows.iter().filter(|w| w.document == 1).count(), b.windows.len());
}

#[test]
fn loss_by_position_and_its_standard_error() {
    let documents = [vec![0; 40], vec![0; 40], text(8, 40), text(9, 12)];
    let windows = document_starts(&documents, 32);
    assert_eq!(windows.iter().map(|w| w.document).collect::<Vec<_>>(), [0, 1, 2]);
    let buckets = [1..4, 16..32];
    let report = by_position(&Known::new(), &windows, &buckets, 2).unwrap();
    let (expected, means) = ((16..32).map(Known::loss).sum::<f64>() / 16.0, report.window_means(1));
    close(means[0], expected, 1e-6);
    close(means[1], expected, 1e-6);
    assert_eq!((report.buckets[0].count, report.buckets[1].count), (9, 48));
    let mean = means.iter().sum::<f64>() / 3.0;
    close(report.buckets[1].mean_nll, mean, 1e-12);
    let variance = means.iter().map(|m| (m - mean).powi(2)).sum::<f64>() / 2.0;
    close(report.buckets[1].se.unwrap(), (variance / 3.0).sqrt(), 1e-12);
    assert_eq!(doubling_buckets(20), [1..2, 2..4, 4..8, 8..16, 16..20]);
}

#[test]
fn windows_of_one_document_are_one_observation() {
    let documents = [vec![0; 40], text(8, 40)];
    let window = |document, start| EvalWindow {
        document,
        start,
        ids: &documents[document][start..start + 16],
        first: 1,
    };
    let report = |windows: &[EvalWindow<'_>]| {
        let report = by_position(&Known::new(), windows, &[1..16, 4..8], 4).unwrap();
        (report.window_means(0), report.buckets[0].clone())
    };
    let (means, both) = report(&[window(0, 0), window(0, 16), window(1, 0)]);
    close(both.mean_nll, (2.0 * means[0] + means[2]) / 3.0, 1e-9);
    // Two documents, whose weighted residuals are equal and opposite.
    let residual = (means[2] - both.mean_nll) / 3.0;
    close(both.se.unwrap(), 2.0 * residual.abs(), 1e-9);
    assert_eq!(report(&[window(0, 0)]).1.se, None);
    let (means, within) = report(&[window(1, 0), window(1, 20)]);
    close(within.se.unwrap(), (means[0] - means[1]).abs() / 2.0, 1e-9);
}

#[test]
fn bits_per_byte() {
    let report = Perplexity::strided(16, 8).eval(&uniform(), &[text(1, 33)]).unwrap();
    close(report.bits_per_byte(64).unwrap(), (VOCABULARY as f64).log2() * 32.0 / 64.0, 1e-6);
    let report = Perplexity::longlora(16, 8).eval(&uniform(), &[text(1, 33)]).unwrap();
    assert_eq!(report.bits_per_byte(64), None);
}

#[test]
fn perplexity_refuses_what_it_cannot_score() {
    let model = decoder(0);
    let document = [text(1, 40)];
    let config = |eval: Perplexity, name: &str| match eval.eval(&model, &document) {
        Err(Error::Config { field, .. }) => assert_eq!(field, name),
        other => panic!("{name}: {other:?}"),
    };
    config(Perplexity::strided(8, 9), "stride");
    config(Perplexity::strided(8, 0), "stride");
    config(Perplexity::strided(1, 1), "max_len");
    config(Perplexity::longlora(8, 0), "step");
    config(Perplexity::longlora(1, 1), "len");
    config(Perplexity::strided(8, 8).with_batch_size(0), "batch_size");
    config(Perplexity::strided(8, 8).with_buckets(vec![1..4, 4..4]), "buckets");

    let eval = Perplexity::strided(8, 8);
    assert!(matches!(eval.eval(&model, &[vec![1]]), Err(Error::Data(_))));
    assert!(matches!(eval.eval(&model, &[] as &[Vec<u32>]), Err(Error::Data(_))));
    assert!(matches!(Perplexity::longlora(40, 1).eval(&model, &document), Err(Error::Data(_))));
    let outside = eval.eval(&model, &[vec![1, VOCABULARY as u32]]).unwrap_err().to_string();
    assert!(outside.contains("id 23") && outside.contains("vocabulary of 23"), "{outside}");
}

#[test]
fn n1_nan_logits_are_an_error_of_evaluation() {
    let value = |path: &str| path.starts_with("norm").then(|| vec![f32::NAN; 16]);
    let model = map_params(decoder(0), value, |_| None);
    let error = Perplexity::strided(8, 8).eval(&model, &[text(1, 20)]).unwrap_err();
    assert!(matches!(error, Error::Evaluation { value, .. } if value.is_nan()), "{error}");
    let item = PasskeyItem::new(vec![1, 2], vec![3], 0.5);
    let error = PasskeyEval::new().eval(&model, &[item]).unwrap_err();
    assert!(matches!(error, Error::Evaluation { .. }), "{error}");
}

#[test]
fn protocols_are_named_in_recipes() {
    let text = serde_json::to_string(&Protocol::LongLora { len: 8, step: 2 }).unwrap();
    assert_eq!(text, r#"{"name":"longlora","len":8,"step":2}"#);
    let wrong = r#"{"name":"strided","max_len":8,"stride":2,"step":1}"#;
    assert!(serde_json::from_str::<Protocol>(wrong).is_err());
}

/// Greedy decoding with a cache, one token at a time.
fn greedy(model: &Decoder, prompt: &[u32], count: usize) -> Vec<u32> {
    let device = Device::flex();
    let options = ForwardOptions::infer().with_state(true);
    let (mut input, mut start, mut states, mut out) = (prompt.to_vec(), 0, vec![], vec![]);
    while out.len() < count {
        let tokens = TokenMeta::contiguous(1, input.len(), start);
        let ids = ids_tensor(&input, 1, &device);
        let hidden = model.forward_ids(ids, &tokens, &options, states).unwrap();
        let last = hidden.last.narrow(1, input.len() - 1, 1);
        let best = model.logits(last).argmax(2).into_data().iter::<i64>().next().unwrap() as u32;
        start += input.len();
        (input, states) = (vec![best], hidden.states);
        out.push(best);
    }
    out
}

#[test]
fn passkey_scoring_equals_cached_greedy_decoding() {
    let model = decoder(11);
    let mut items = Vec::new();
    for i in 0..12 {
        let prompt = text(100 + i as u32, 9 + 5 * (i % 3));
        let mut answer = greedy(&model, &prompt, 4);
        if i % 2 == 1 {
            let wrong = (i / 2) % 4;
            answer[wrong] = (answer[wrong] + 1) % VOCABULARY as u32;
        }
        let depth = i as f64 / 11.0;
        items.push(PasskeyItem::new(prompt, answer, depth).with_length(32 * (1 + i % 3)));
    }
    let report =
        PasskeyEval::new().with_batch_size(5).with_depth_buckets(2).eval(&model, &items).unwrap();
    for (item, exact) in items.iter().zip(&report.exact) {
        let decoded = greedy(&model, &item.prompt, item.answer.len());
        assert_eq!(*exact, decoded == item.answer);
    }
    assert_eq!(report.exact.iter().filter(|e| **e).count(), 6);
    close(report.rate(), 0.5, 0.0);
    let lengths: Vec<_> = report.by_length.iter().map(|c| (c.length, c.exact, c.total)).collect();
    assert_eq!(lengths, [(32, 2, 4), (64, 2, 4), (96, 2, 4)]);
    assert_eq!(report.cells.len(), 6);
    assert!(report.cells.iter().all(|c| c.total == 2 && c.exact == 1));
    assert_eq!((report.cells[1].depth_start, report.cells[1].depth_end), (0.5, 1.0));
}

#[test]
fn passkey_refuses_bad_items() {
    let refused = |item: PasskeyItem| PasskeyEval::new().eval(&decoder(0), &[item]).is_err();
    assert!(refused(PasskeyItem::new(vec![], vec![1], 0.0)));
    assert!(refused(PasskeyItem::new(vec![1], vec![], 0.0)));
    assert!(refused(PasskeyItem::new(vec![1], vec![1], 1.5)));
    assert!(refused(PasskeyItem::new(vec![1], vec![VOCABULARY as u32], 0.5)));
    assert!(PasskeyEval::new().eval(&decoder(0), &[]).is_err());
}

#[test]
fn wilson_intervals() {
    // Agresti and Coull (1998), table of the score interval: 0 of 10, 5 of 10.
    let (low, high) = wilson(0, 10);
    close(low, 0.0, 1e-12);
    close(high, 0.27753, 1e-4);
    let (low, high) = wilson(5, 10);
    close(low, 0.23659, 1e-4);
    close(high, 0.76341, 1e-4);
    assert_eq!(wilson(0, 0), (0.0, 1.0));
}
