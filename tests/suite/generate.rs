//! Generation: caches change nothing, and bad input is refused.

mod batch;
mod sampling;
mod stop;

use crate::tiny::{self, ids, logits, ratio};
use burn::tensor::{DType, Device};
use longburn::Error;
use longburn::attention::{Compute, LactConfig, Mamba1Config, MixerConfig};
use longburn::models::generate::{Finish, Generator, Sampler};
use longburn::models::{Decoder, GenerateConfig, LoraConfig, ModelConfig, generate, lora};

/// Full heads, grouped heads with a tied head, norms on q and k, a window.
fn models() -> Vec<Decoder> {
    let full = ModelConfig::llama(61, 24, 2, 4);
    let configs = [full, tiny::llama(true), tiny::qwen3(), tiny::mistral()];
    configs.iter().map(|config| tiny::model(config, &Device::flex())).collect()
}

fn greedy(tokens: usize) -> GenerateConfig {
    GenerateConfig::new().with_max_new_tokens(tokens)
}

/// Row `row` of `[T * V]` logits.
fn row(logits: &[f32], row: usize) -> &[f32] {
    &logits[row * 61..(row + 1) * 61]
}

fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32
}

#[test]
fn cached_equals_uncached() {
    for model in models() {
        let text = ids(37);
        let whole = logits(&model, &text);
        let mut generator = Generator::new(&model);
        for (at, id) in text.iter().enumerate() {
            let apart = ratio(&generator.feed(&[*id]).unwrap(), row(&whole, at));
            assert!(apart < 1e-5, "{apart} at {at}");
        }
        assert_eq!(generator.len(), 37);

        let mut text = ids(7);
        let generated = generate(&model, &text, &greedy(20), |_| {}).unwrap();
        for id in &generated.ids {
            let all = logits(&model, &text);
            assert_eq!(*id, argmax(row(&all, text.len() - 1)));
            text.push(*id);
        }
    }
}

/// Rounding weights once is what every pass does; in bf16 caches are of it, too.
#[test]
fn rounded_models_compute_the_same() {
    let text = ids(23);
    let low_rank = LoraConfig::longlora();
    let mut all = models();
    all.push(lora::apply(all[1].clone(), &low_rank).unwrap());
    let config = ModelConfig::llama(61, 24, 2, 4);
    // The last one is not attention.
    let attend = all.len();
    for mixer in [
        MixerConfig::Mamba1(Mamba1Config::new()),
        MixerConfig::Lact(
            LactConfig::new().with_fast_heads(2).with_chunk(8).with_window(8).with_low_rank(4),
        ),
    ] {
        all.push(Decoder::new(&config, &mixer, 3, &Device::flex()).unwrap());
    }
    for (i, model) in all.into_iter().enumerate() {
        let feed = |model: &Decoder| {
            let mut generator = Generator::new(model).with_compute(Compute::Bf16);
            [generator.feed(&text[..20]).unwrap(), generator.feed(&text[20..]).unwrap()]
        };
        let rounded = model.clone().rounded(Compute::Bf16);
        assert_eq!(
            rounded.layers[0].mlp.as_ref().unwrap().up_proj.weight.val().dtype(),
            DType::BF16
        );
        assert_eq!(rounded.norm.weight.val().dtype(), DType::F32);
        assert_eq!(feed(&rounded), feed(&model));
        let exact = logits(&model, &text);
        let apart = ratio(&feed(&rounded)[1], row(&exact, 22));
        // Fast weights of so few channels go far from each other in 23 steps; the two above are the same.
        assert!(apart > 1e-4 && (i > attend || apart < 3e-2), "{apart}");
        let config = greedy(5).with_compute(Compute::Bf16);
        let of = |model: &Decoder| generate(model, &text, &config, |_| {}).unwrap().ids;
        assert_eq!(of(&rounded), of(&model));
        let same = model.clone().rounded(Compute::F32);
        assert_eq!(logits(&same, &text), logits(&model, &text));
    }
}

#[test]
fn prefill_in_pieces_equals_the_whole() {
    for model in models() {
        let text = ids(37);
        let whole = Generator::new(&model).feed(&text).unwrap();
        let all_at_once = generate(&model, &text, &greedy(8), |_| {}).unwrap();
        for piece in [1, 7, 36, 37, 100] {
            let mut generator = Generator::new(&model);
            let mut last = Vec::new();
            for part in text.chunks(piece) {
                last = generator.feed(part).unwrap();
            }
            let apart = ratio(&last, &whole);
            assert!(apart < 1e-5, "{apart} in pieces of {piece}");
            let config = greedy(8).with_prefill_chunk(Some(piece));
            assert_eq!(generate(&model, &text, &config, |_| {}).unwrap().ids, all_at_once.ids);
        }
    }
}

#[test]
fn generation_is_dense_and_the_same_with_gradients_on_or_adapters_merged() {
    let model = tiny::model(&tiny::llama(false), &Device::flex());
    let expected = generate(&model, &ids(9), &greedy(12), |_| {}).unwrap().ids;
    let same = |other: &Decoder| {
        assert_eq!(generate(other, &ids(9), &greedy(12), |_| {}).unwrap().ids, expected);
    };
    same(&model.clone().swap_mixer(MixerConfig::LongLora(Default::default())).unwrap());
    same(&tiny::model(&tiny::llama(false), &Device::flex().autodiff()));

    let adapted = lora::apply(model, &lora::LoraConfig::new()).unwrap();
    let adapted = tiny::scattered(adapted, 3, |path| path.contains(".lora."));
    let with = generate(&adapted, &ids(9), &greedy(12), |_| {}).unwrap().ids;
    assert_ne!(with, expected);
    assert_eq!(generate(&lora::merge(adapted), &ids(9), &greedy(12), |_| {}).unwrap().ids, with);
}

#[test]
fn it_ends_at_a_stop_id_or_the_limit_and_hands_out_every_id() {
    let model = &models()[1];
    let mut heard = Vec::new();
    let free = generate(model, &ids(5), &greedy(10), |id| heard.push(id)).unwrap();
    assert_eq!((free.new_tokens, free.prompt_tokens, free.finish), (10, 5, Finish::Length));
    assert_eq!(heard, free.ids);
    assert!(free.tokens_per_second > 0.0 && free.seconds_prefill > 0.0);

    let stop = free.ids[4];
    let first = free.ids.iter().position(|id| *id == stop).unwrap();
    let config = greedy(10).with_stop(&[60, stop]);
    let stopped = generate(model, &ids(5), &config, |_| {}).unwrap();
    assert_eq!(stopped.finish, Finish::StopId);
    assert_eq!(stopped.ids, free.ids[..=first]);

    let none = generate(model, &ids(5), &greedy(0), |_| panic!("no id was asked for")).unwrap();
    assert_eq!((none.ids.len(), none.tokens_per_second), (0, 0.0));
}

#[test]
fn bad_input_is_refused_and_explained() {
    let model = &models()[1];
    let data = |prompt: &[u32]| match generate(model, prompt, &greedy(3), |_| {}) {
        Err(Error::Data(text)) => text,
        other => panic!("{other:?}"),
    };
    assert!(data(&[]).contains("empty"));
    let text = data(&[1, 2, 61]);
    assert!(text.contains("id 61 at position 2") && text.contains("vocabulary of 61"), "{text}");

    let field = |config: GenerateConfig| match generate(model, &[1], &config, |_| {}) {
        Err(Error::Config { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(field(greedy(3).with_temperature(-0.5)), "temperature");
    assert_eq!(field(greedy(3).with_temperature(f64::NAN)), "temperature");
    assert_eq!(field(greedy(3).with_top_p(0.0)), "top_p");
    assert_eq!(field(greedy(3).with_top_p(1.5)), "top_p");
    assert_eq!(field(greedy(3).with_min_p(-0.1)), "min_p");
    assert_eq!(field(greedy(3).with_min_p(1.1)), "min_p");
    assert_eq!(field(greedy(3).with_repetition_penalty(0.0)), "repetition_penalty");
    assert_eq!(field(greedy(3).with_repetition_penalty(f64::INFINITY)), "repetition_penalty");
    assert_eq!(field(greedy(3).with_prefill_chunk(Some(0))), "prefill_chunk");
}

#[test]
fn n1_logits_that_are_no_numbers_are_an_error() {
    let model = tiny::model(&tiny::llama(false), &Device::flex());
    let broken = longburn::models::keymap::map_params(
        model,
        |path| (path == "norm.weight").then(|| vec![f32::NAN; 24]),
        |_| None,
    );
    let error = generate(&broken, &ids(4), &greedy(3), |_| {}).unwrap_err();
    assert!(matches!(error, Error::Logits { step: 0, .. }), "{error}");

    let sampler = Sampler::new(&GenerateConfig::new()).unwrap();
    let pick = |logits: &[f32], step| sampler.pick(logits, &[], step, 0);
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    for bad in [&[0.0, nan][..], &[inf, 0.0], &[-inf, -inf], &[]] {
        assert!(matches!(pick(bad, 3), Err(Error::Logits { step: 3, .. })), "{bad:?}");
    }
    assert_eq!(pick(&[-inf, -4.0, -4.0, -9.0], 0).unwrap(), 1);
}

#[test]
fn draws_depend_on_seed_and_step_alone() {
    let model = &models()[0];
    let config = greedy(24).with_temperature(3.0).with_top_p(0.95);
    let text =
        |seed| generate(model, &ids(3), &config.clone().with_seed(seed), |_| {}).unwrap().ids;
    assert_eq!(text(1), text(1));
    assert_ne!(text(1), text(2));
}
