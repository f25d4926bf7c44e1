//! Which tokens can be drawn, and how often they are.

use longburn::models::GenerateConfig;
use longburn::models::generate::Sampler;
use serde_json::Value;

/// Made by `tests/fixtures/sampling/make_sampling.py`.
const EXPECTED: &str = include_str!("../../fixtures/sampling/sampling.json");

/// Probabilities of transformers are those of f32 scores.
const PROBABILITY: f64 = 2e-6;

fn config(settings: &Value) -> GenerateConfig {
    let number = |name: &str| settings.get(name).and_then(Value::as_f64);
    GenerateConfig::new()
        .with_temperature(number("temperature").unwrap_or(1.0))
        .with_top_k(number("top_k").unwrap_or(0.0) as usize)
        .with_top_p(number("top_p").unwrap_or(1.0))
        .with_min_p(number("min_p").unwrap_or(0.0))
        .with_repetition_penalty(number("repetition_penalty").unwrap_or(1.0))
}

#[test]
fn candidates_equal_those_of_transformers() {
    let expected: Value = serde_json::from_str(EXPECTED).unwrap();
    let cases = expected["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 20);
    for case in cases {
        let settings = &case["settings"];
        let logits: Vec<f32> =
            case["logits"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
        let before: Vec<u32> =
            case["before"].as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect();
        let sampler = Sampler::new(&config(settings)).unwrap();
        let mut got = sampler.candidates(&logits, &before, 0).unwrap();
        assert!(got.windows(2).all(|pair| pair[0].1 >= pair[1].1), "{settings}: not in order");
        got.sort_by_key(|(id, _)| *id);
        let kept: Vec<(u32, f64)> = serde_json::from_value(case["kept"].clone()).unwrap();
        let ids = |list: &[(u32, f64)]| list.iter().map(|(id, _)| *id).collect::<Vec<_>>();
        assert_eq!(ids(&got), ids(&kept), "{settings}");
        for ((id, got), (_, want)) in got.iter().zip(&kept) {
            assert!((got - want).abs() < PROBABILITY, "{settings}: {got} for {want} of {id}");
        }
    }
}

/// How often each of four ids is drawn, of 4000.
fn drawn(config: GenerateConfig) -> [u32; 4] {
    // Probabilities 0.5, 0.3, 0.15, 0.05 at temperature 1, out of order.
    let logits = [0.15f32, 0.5, 0.05, 0.3].map(f32::ln);
    let sampler = Sampler::new(&config.with_seed(5)).unwrap();
    let mut counts = [0; 4];
    (0..4000).for_each(|step| counts[sampler.pick(&logits, &[], step, 0).unwrap() as usize] += 1);
    counts
}

#[test]
fn draws_have_the_softmax_frequencies() {
    let near = |config: GenerateConfig, expected: [f64; 4]| {
        let counts = drawn(config);
        for (count, share) in counts.iter().zip(expected) {
            let spread = 4.0 * (4000.0 * share * (1.0 - share)).sqrt();
            assert!((*count as f64 - 4000.0 * share).abs() <= spread, "{counts:?} {expected:?}");
        }
    };
    let at = |temperature| GenerateConfig::new().with_temperature(temperature);
    near(at(1.0), [0.15, 0.5, 0.05, 0.3]);
    // Temperature 1/2 squares the probabilities.
    near(at(0.5), [0.0225, 0.25, 0.0025, 0.09].map(|p| p / 0.365));
    near(at(1.0).with_top_p(0.75), [0.0, 0.625, 0.0, 0.375]);
    near(at(1.0).with_top_p(0.45), [0.0, 1.0, 0.0, 0.0]);
    near(at(1.0).with_top_p(0.9), [0.15, 0.5, 0.0, 0.3].map(|p| p / 0.95));
    near(at(1.0).with_top_k(2), [0.0, 0.625, 0.0, 0.375]);
    near(at(1.0).with_min_p(0.25), [0.15, 0.5, 0.0, 0.3].map(|p| p / 0.95));
    near(at(0.0), [0.0, 1.0, 0.0, 0.0]);
}

#[test]
fn rows_and_steps_have_draws_of_their_own() {
    let sampler = Sampler::new(&GenerateConfig::new().with_temperature(1.0)).unwrap();
    let draws = |row| -> Vec<u32> {
        (0..40).map(|step| sampler.pick(&[0.0; 16], &[], step, row).unwrap()).collect()
    };
    assert_eq!(draws(0), draws(0));
    assert_ne!(draws(0), draws(1));
    assert!(draws(0).windows(2).any(|pair| pair[0] != pair[1]));
}
