//! Evaluation: windows, perplexities under three protocols, and the draws of LongLoRA's pass keys.

use crate::Failure;
use crate::golden::Golden;
use crate::model::values;
use burn::tensor::Device;
use longburn::attention::MixerConfig;
use longburn::datasets::synthetic::{PasskeyTemplate, longlora_filler};
use longburn::kernel::TokenMeta;
use longburn::models::{Blocks, Decoder, ForwardOptions, ids_tensor};
use longburn::training::eval::{
    LoglikelihoodEval, Perplexity, RollingItem, RollingReport, rolling_windows,
};
use serde_json::Value;

/// Windows of the harness, ids by ids.
pub fn rolling(golden: &Golden) -> Result<(), Failure> {
    let cases = golden.config()["cases"].as_array().ok_or("config.cases is no list")?;
    let prefix = golden.number("prefix_token")? as u32;
    for (i, case) in cases.iter().enumerate() {
        let number = |key: &str| {
            let value = case[key].as_u64().ok_or_else(|| format!("case {i}: {key}"))?;
            Ok::<_, Failure>(value as usize)
        };
        let ids: Vec<u32> = (0..number("tokens")? as u32).collect();
        let windows = rolling_windows(&ids, prefix, number("max_len")?, number("context")?)?;
        let name = format!("out.window_sizes.{i}");
        let sizes = windows.iter().flat_map(|window| {
            let seen = window.context.len() + window.continuation.len() - 1;
            [seen as i64, window.continuation.len() as i64]
        });
        match golden.shape(&name)?[0] {
            // No windows at all; such a tensor has no integers.
            0 if windows.is_empty() => {}
            _ => golden.compare_integers(&name, &sizes.collect::<Vec<_>>())?,
        }
        let overlapping = windows.iter().map(|window| {
            let all = [&window.context[..], &window.continuation].concat();
            serde_json::json!([all[..all.len() - 1], window.continuation])
        });
        let disjoint =
            windows.iter().map(|window| serde_json::json!([window.context, window.continuation]));
        for (key, got) in
            [("windows", overlapping.collect::<Value>()), ("disjoint", disjoint.collect::<Value>())]
        {
            if case[key] != got {
                return Err(format!("case {i}, {key}: {got} where {} was wanted", case[key]).into());
            }
        }
    }
    Ok(())
}

/// Draws and lengths. The prompts' wording is not ours to repeat, so that their hashes are not
/// compared; a template of the same lengths stands in for it.
pub fn passkey(golden: &Golden) -> Result<(), Failure> {
    let of_length = |n: usize| "x".repeat(n);
    let template = PasskeyTemplate {
        task: of_length(148),
        filler: of_length(89),
        information: format!("{}{{key}}{{key}}", of_length(48)),
        question: of_length(37),
    };
    let (mut prefixes, mut keys, mut chars) = (Vec::new(), Vec::new(), Vec::new());
    for (n, seed) in golden.integers("in.n")?.into_iter().zip(golden.integers("in.seed")?) {
        let (prompt, key, prefix) = template.longlora(n as usize, seed as u32)?;
        prefixes.push(prefix as i64);
        keys.push(i64::from(key));
        chars.push(prompt.chars().count() as i64);
    }
    if template.longlora(0, 0).is_ok() {
        return Err("a prompt without filler, which the original rejects".into());
    }
    golden.compare_integers("out.prefix", &prefixes)?;
    golden.compare_integers("out.key", &keys)?;
    golden.compare_integers("out.chars", &chars)?;
    let schedule: Vec<i64> = (1..=32).map(|step| longlora_filler(step, 1000) as i64).collect();
    golden.compare_integers("out.n_schedule_1000", &schedule)
}

/// One model on one text under all protocols.
pub fn perplexity(golden: &Golden) -> Result<(), Failure> {
    let model = Decoder::load(&golden.folder("model_dir"), &MixerConfig::Dense, &Device::flex())?;
    let ids = golden.ids("in.input_ids")?;
    let n = ids.len();
    golden.compare("out.logits_33", &logits(&model, &ids[..33])?)?;
    let whole = Perplexity::strided(n, n).with_buckets((1..n).map(|t| t..t + 1).collect());
    let report = whole.eval(&model, &[&ids[..]])?;
    let nll: Vec<f32> = report.by_position.iter().map(|b| b.mean_nll as f32).collect();
    golden.compare("out.nll_whole", &nll)?;

    for name in names(golden, "out.strided.", ".ppl") {
        let [max_len, stride] = numbers(&name)?;
        let report = Perplexity::strided(max_len, stride).eval(&model, &[&ids[..]])?;
        let windows = &report.windows;
        let plain = windows.iter().map(|w| w.mean_nll).sum::<f64>() / windows.len() as f64;
        let all = [report.ppl, plain.exp(), report.token_mean_nll.exp()].map(|p| p as f32);
        golden.compare(&format!("out.strided.{name}.ppl"), &all)?;
        let rows = windows.iter().flat_map(|w| {
            // A window weighs one token less than it adds.
            [w.start, w.start + w.len, w.weight as usize + 1, w.weight as usize]
        });
        let rows: Vec<i64> = rows.map(|x| x as i64).collect();
        golden.compare_integers(&format!("out.strided.{name}.windows"), &rows)?;
    }
    for name in names(golden, "out.longlora.", ".starts") {
        let [len, step] = numbers(&name)?;
        let report = Perplexity::longlora(len, step).eval(&model, &[&ids[..]])?;
        let starts: Vec<i64> = report.windows.iter().map(|w| w.start as i64).collect();
        golden.compare_integers(&format!("out.longlora.{name}.starts"), &starts)?;
        // The original averages batches, so that a short last one weighs more.
        let batch = golden.number(&format!("longlora_batch.{name}"))?;
        let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
        let of_batch = |windows: &[longburn::training::eval::WindowNll]| {
            mean(windows.iter().map(|w| w.mean_nll).collect())
        };
        let loss = mean(report.windows.chunks(batch).map(of_batch).collect());
        let mut right = Vec::new();
        for start in &starts {
            let start = *start as usize;
            right.push(accuracy(&model, &ids[start..start + len + 1])?);
        }
        // It divides a batch's hits by the length of one window.
        let of_batch = |right: &[f64]| right.iter().sum::<f64>();
        let accuracy = mean(right.chunks(batch).map(of_batch).collect());
        // Its e has five decimals.
        let ppl = (271_828.0_f64 / 100_000.0).powf(loss);
        let all = [loss, ppl, accuracy, report.mean_nll].map(|x| x as f32);
        golden.compare(&format!("out.longlora.{name}.loss_ppl_acc_windowmean"), &all)?;
    }
    let windows = rolling_windows(&ids, 1, 32, 1)?;
    let sum = LoglikelihoodEval::new(32).eval(&model, &windows)?.iter().map(|s| s.sum).sum();
    let item = RollingItem { id: String::new(), sum, tokens: n, words: 1, bytes: 1 };
    let report = RollingReport::of(vec![item]);
    golden.compare("out.rolling.32.sum_and_ppl", &[-sum as f32, report.token_perplexity as f32])
}

/// Share of tokens whose successor is the likeliest, the last one of `ids` not being seen.
fn accuracy(model: &Decoder, ids: &[u32]) -> Result<f64, Failure> {
    let seen = &ids[..ids.len() - 1];
    let logits = logits(model, seen)?;
    let rows = logits.chunks(model.config().vocab_size).zip(&ids[1..]);
    let hits = rows.filter(|(row, next)| row.iter().all(|l| *l <= row[**next as usize]));
    Ok(hits.count() as f64 / seen.len() as f64)
}

fn logits(model: &Decoder, ids: &[u32]) -> Result<Vec<f32>, Failure> {
    let tokens = TokenMeta::contiguous(1, ids.len(), 0);
    let input = ids_tensor(ids, 1, &Device::flex());
    let out = model.forward_ids(input, &tokens, &ForwardOptions::infer(), vec![])?;
    Ok(values(model.logits(out.last)))
}

/// What stands between `head` and `tail` in the names of tensors.
fn names(golden: &Golden, head: &str, tail: &str) -> Vec<String> {
    let names = golden.names(head).into_iter();
    let middle = |name: &str| Some(name.strip_prefix(head)?.strip_suffix(tail)?.to_string());
    names.filter_map(middle).collect()
}

fn numbers(name: &str) -> Result<[usize; 2], Failure> {
    let (a, b) = name.split_once('.').ok_or("a name without two numbers")?;
    Ok([a.parse()?, b.parse()?])
}
