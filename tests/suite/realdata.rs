//! Real checkpoints against logits and texts that other programs made of them. They are not part
//! of the repository: `LONGBURN_REALDATA` names the folder that holds `stories260k-hf` and
//! `hf-written-random-llama-bf16`; without it these tests say that they were skipped.

use burn::tensor::Device;
use longburn::attention::MixerConfig;
use longburn::datasets::Tokenizer;
use longburn::kernel::TokenMeta;
use longburn::models::weights::read_safetensors;
use longburn::models::{Blocks, Decoder, ForwardOptions, ids_tensor};
use longburn::training::eval::{
    ChoiceItem, ChoiceReport, LastWordItem, LastWordReport, LoglikelihoodEval, Perplexity, choices,
    last_words, read_rows,
};
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The folder of a checkpoint, or a line that says why there is none.
fn checkpoint(name: &str) -> Option<PathBuf> {
    match std::env::var_os("LONGBURN_REALDATA") {
        Some(root) => Some(Path::new(&root).join(name)),
        None => {
            // Past the capturing of output: a skip shows in every run.
            let _ = writeln!(std::io::stderr(), "skipped {name}: LONGBURN_REALDATA is not set");
            None
        }
    }
}

fn load(dir: &Path) -> (Decoder, Value) {
    let text = std::fs::read_to_string(dir.join("golden.json")).unwrap();
    let model = Decoder::load(dir, &MixerConfig::Dense, &Device::flex()).unwrap();
    (model, serde_json::from_str(&text).unwrap())
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn logits(model: &Decoder, ids: &[u32]) -> Vec<f32> {
    let tokens = TokenMeta::contiguous(1, ids.len(), 0);
    let input = ids_tensor(ids, 1, &Device::flex());
    let out = model.forward_ids(input, &tokens, &ForwardOptions::infer(), vec![]).unwrap();
    model.logits(out.last).into_data().iter::<f32>().collect()
}

fn furthest(got: &[f32], want: impl ExactSizeIterator<Item = f64>) -> f64 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max)
}

#[test]
fn stories260k_logits_text_and_loss() {
    let Some(dir) = checkpoint("stories260k-hf") else { return };
    let (model, golden) = load(&dir);
    let (tensors, _) = read_safetensors(&dir.join("golden.safetensors")).unwrap();

    let got = logits(&model, &ids(&golden["prompt32_ids"]));
    let all = tensors["all_logits_f32"].to_f32().unwrap();
    let far = furthest(&got, all.into_iter().map(f64::from));
    assert!(far <= 2e-5, "logits differ by {far}");
    let exact = tensors["last_logits_f64"].data.as_chunks::<8>().0;
    let far = furthest(&got[31 * 512..], exact.iter().map(|b| f64::from_le_bytes(*b)));
    assert!(far <= 2e-5, "last logits differ by {far}");

    let (mut input, mut start, mut states, mut text) =
        (ids(&golden["prompt_ids"]), 0, vec![], vec![]);
    while text.len() < 64 {
        let tokens = TokenMeta::contiguous(1, input.len(), start);
        let options = ForwardOptions::infer().with_state(true);
        let x = ids_tensor(&input, 1, &Device::flex());
        let out = model.forward_ids(x, &tokens, &options, states).unwrap();
        let last = model.logits(out.last.narrow(1, input.len() - 1, 1));
        let best = last.argmax(2).into_data().iter::<i64>().next().unwrap() as u32;
        start += input.len();
        (input, states) = (vec![best], out.states);
        text.push(best);
    }
    assert_eq!(text, ids(&golden["greedy64_ids"]));

    let paragraph = ids(&golden["paragraph_ids"]);
    let report = Perplexity::strided(512, 512).eval(&model, &[paragraph]).unwrap();
    let want = golden["paragraph_mean_nll_nats"].as_f64().unwrap();
    assert!((report.mean_nll - want).abs() < 5e-5, "{} for {want}", report.mean_nll);
}

#[test]
fn bf16_checkpoint_written_by_transformers() {
    let Some(dir) = checkpoint("hf-written-random-llama-bf16") else { return };
    let (model, golden) = load(&dir);
    let got = logits(&model, &ids(&golden["ids"]));
    let rows = golden["logits_all_f64"].as_array().unwrap();
    let want: Vec<f64> =
        rows.iter().flat_map(|r| r.as_array().unwrap()).map(|x| x.as_f64().unwrap()).collect();
    let far = furthest(&got, want.into_iter());
    assert!(far <= 2e-5, "logits differ by {far}");
}

/// Figures that `tests/interop/check_scores.py` found with `transformers`, one row at a time.
#[test]
fn short_tasks_score_as_another_program_scores_them() {
    let Some(dir) = checkpoint("stories260k-hf") else { return };
    let model = Decoder::load(&dir, &MixerConfig::Dense, &Device::flex()).unwrap();
    let tokenizer = Tokenizer::from_file(&dir).unwrap();
    let eval = LoglikelihoodEval::new(512);
    let rows = dir.with_file_name("eval").join("lambada_test.jsonl");
    let items = read_rows(&rows, 500, LastWordItem::from_row).unwrap();
    let scores = last_words(&model, &tokenizer, &items, &eval).unwrap();
    let report = LastWordReport::of(&scores).unwrap();
    assert_eq!((report.items, report.joined, report.cut), (500, 0, 0));
    assert_eq!(scores.iter().filter(|score| score.word.greedy).count(), 6);
    let sum: f64 = scores.iter().map(|score| score.word.sum).sum();
    assert!((sum - -8_261.805_724).abs() < 1e-2, "{sum}");
    assert!((scores[0].word.sum - -11.366_122).abs() < 1e-4);

    let rows = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tasks/choices.jsonl");
    let row = |row: &Value| ChoiceItem::from_row(row, "Q: {question}\nA:");
    let items = read_rows(Path::new(rows), usize::MAX, row).unwrap();
    let scores = choices(&model, &tokenizer, &items, &eval).unwrap();
    let report = ChoiceReport::of(&scores).unwrap();
    let right = [report.acc, report.acc_norm, report.acc_bytes].map(|share| share.value * 24.0);
    assert_eq!(right.map(f64::round), [17.0, 19.0, 19.0]);
    for (got, want) in
        scores[0].choices.iter().zip([-0.348_371, -7.691_283, -7.161_144, -9.260_073])
    {
        assert!((got.sum - want).abs() < 1e-4, "{}", got.sum);
    }
}
