//! Item 6 of what LongLoRA must show, on this repository's own sources as bytes: a model of 64
//! positions extended to 256, with and without embedding and norms among the trained parameters.
#![cfg(feature = "slow")]

use burn::tensor::Device;
use longburn::attention::{LongLoraConfig, MixerConfig};
use longburn::datasets::{TokenDocument, WindowSampler, source};
use longburn::models::lora::{self, LoraConfig};
use longburn::models::{Decoder, ModelConfig};
use longburn::positional::{RopeConfig, RopeKind};
use longburn::streams::Streams;
use longburn::training::eval::{by_position, document_starts};
use longburn::training::{NextToken, Schedule, TrainConfig, Trainer, Warmup};

const SHORT: usize = 64;
const LONG: usize = 256;

fn texts() -> (Vec<TokenDocument>, Vec<TokenDocument>) {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/training");
    let documents = source::open(folder).unwrap().read_all().unwrap();
    let ids = |text: &str| text.bytes().map(u32::from).collect();
    let all: Vec<_> = documents
        .into_iter()
        .map(|d| TokenDocument { ids: ids(&d.text), id: d.id })
        .filter(|d| d.ids.len() > LONG)
        .collect();
    let held_out = all.iter().step_by(5).cloned().collect();
    let train = all.into_iter().enumerate().filter(|(i, _)| i % 5 != 0).map(|(_, d)| d).collect();
    (train, held_out)
}

fn train(model: Decoder, data: &[TokenDocument], len: usize, steps: u64, lr: f64) -> Decoder {
    let mut data =
        WindowSampler::new(data.to_vec(), len, 512 / len, Streams::new(len as u64)).unwrap();
    let config = TrainConfig::new(steps, lr)
        .with_schedule(Schedule::Linear { warmup: Warmup::Steps(10), last: 0.0 })
        .with_clip(1.0)
        .with_micro_batches(2)
        .with_workers(2);
    let trainer = Trainer::new(config).unwrap();
    trainer.fit(model, &NextToken, &mut data, &mut |_| Ok(())).unwrap().model
}

fn loss(model: &Decoder, held_out: &[TokenDocument]) -> f64 {
    let ids: Vec<_> = held_out.iter().map(|d| &d.ids[..]).collect();
    let windows = document_starts(&ids, LONG);
    let beyond = SHORT..LONG;
    let report = by_position(model, &windows, std::slice::from_ref(&beyond), 8).unwrap();
    report.buckets[0].mean_nll
}

#[test]
fn embedding_and_norms_help_beyond_the_trained_length() {
    let (data, held_out) = texts();
    let rope = |factor: f64| RopeConfig::new(500.0, 16).with_kind(RopeKind::Linear { factor });
    let config = ModelConfig::llama(256, 64, 2, 4).with_rope(RopeConfig::new(500.0, 16));
    let config = config.with_tied(true).with_max_positions(SHORT);
    let base = Decoder::new(&config, &MixerConfig::Dense, 0, &Device::flex()).unwrap();
    let base = train(base, &data, SHORT, 600, 5e-3);
    let extend = |policy: LoraConfig| {
        let mixer = MixerConfig::LongLora(LongLoraConfig::new());
        let model = base.clone().with_rope(rope(4.0), SHORT).unwrap();
        let model = lora::apply(model.swap_mixer(&mixer).unwrap(), &policy).unwrap();
        let model = lora::merge(train(model, &data, LONG, 150, 1e-3));
        loss(&model.swap_mixer(&MixerConfig::Dense).unwrap(), &held_out)
    };
    let (plain, long) = (extend(LoraConfig::new()), extend(LoraConfig::longlora()));
    let untrained = loss(&base.clone().with_rope(rope(4.0), SHORT).unwrap(), &held_out);
    println!(
        "loss at {SHORT} to {LONG}: untrained {untrained:.4}, LoRA {plain:.4}, LongLoRA {long:.4}"
    );
    assert!(long < plain, "LongLoRA {long}, plain LoRA {plain}");
    assert!(plain < untrained, "plain LoRA {plain}, untrained {untrained}");
}
