//! bf16 compute with f32 weights: whole models beside f32, what stays f32, recompute, resuming,
//! rotations far out.

use crate::tiny;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use longburn::attention::lact::FastOptimizer;
use longburn::attention::{
    Compute, DenseConfig, LactConfig, Layers, LongGenConfig, LongLoraConfig, Mamba1Config,
    Mamba2Config, MixContext, MixOutput, MixerConfig, MixerSchedule, SeerConfig, SequenceMixer,
    State,
};
use longburn::datasets::{Side, TokenBatch};
use longburn::models::keymap::{map_params, params, read_params};
use longburn::models::lora::{self, LoraConfig};
use longburn::models::{Blocks, Decoder, ForwardOptions, ModelConfig, gates};
use longburn::positional::{Positions, RopeConfig};
use longburn::training::eval::Perplexity;
use longburn::training::plan::PlanConfig;
use longburn::training::strategy::{Plain, Recompute};
use longburn::training::{
    GradientSum, LossParts, NextToken, Recipe, Strategy, TrainConfig, TrainStrategy, Trainer,
};
use longburn::{Error, Result};
use std::collections::BTreeMap;

/// One rounding to bf16 is wrong by 2⁻⁸ / √6 of the number, in the mean square.
const ROUNDING: f64 = 0.0016;
/// How much more a pass in bf16 is off, forward and backward, than one in f32 whose weights were rounded:
/// beside seven matrices in a block it rounds about ten tensors forward, and as many backward.
const TIMES: [f64; 2] = [2.0, 4.0];

/// Values by path, and the loss.
type Pass = (BTreeMap<String, Vec<f32>>, f64);

fn rows() -> TokenBatch {
    let row = |n: u32, len: u32| (0..len).map(|i| (i * i * n + 3 * i) % 61).collect::<Vec<u32>>();
    TokenBatch::from_rows(vec![row(1, 40), row(2, 23)], Side::Right, 0).unwrap()
}

fn options(compute: Compute) -> ForwardOptions {
    ForwardOptions::train().with_compute(compute)
}

struct Walk<'a>(&'a GradientSum, Vec<(DType, Vec<f32>)>);

impl ModuleVisitor for Walk<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        assert_eq!(param.val().dtype(), DType::F32);
        if let Some(grad) = self.0.get::<D>(param.id) {
            self.1.push((grad.dtype(), grad.into_data().iter::<f32>().collect()));
        }
    }
}

/// Gradients by path, which have to be in f32, and the mean loss.
fn pass<M: SequenceMixer>(
    model: &Decoder<M>,
    strategy: &impl TrainStrategy<Decoder<M>, NextToken>,
    compute: Compute,
) -> Pass {
    let mut sum = GradientSum::new();
    let batch = rows();
    let parts: LossParts =
        strategy.accumulate(model, &NextToken, &batch, &options(compute), &mut sum).unwrap();
    assert_eq!(parts.sum.dtype(), DType::F32);
    let loss = f64::from(parts.sum.into_scalar::<f32>()) / parts.weight;
    let mut walk = Walk(&sum, Vec::new());
    model.visit(&mut walk);
    let paths: Vec<String> =
        params(model).into_iter().filter(|p| p.trainable).map(|p| p.path).collect();
    assert_eq!(paths.len(), walk.1.len());
    let of = |(path, (dtype, grad)): (String, (DType, Vec<f32>))| {
        assert_eq!(dtype, DType::F32, "gradient of {path}");
        (path, grad)
    };
    (paths.into_iter().zip(walk.1).map(of).collect(), loss)
}

fn hidden(model: &Decoder, compute: Compute) -> Vec<f32> {
    let batch = rows();
    let ids = longburn::models::ids_tensor(&batch.ids, batch.batch(), &model.head().device());
    let last = model.forward_ids(ids, &batch.tokens, &options(compute), vec![]).unwrap().last;
    assert_eq!(last.dtype(), compute.dtype());
    last.inner().into_data().iter::<f32>().collect()
}

fn llama(mixer: impl Into<MixerSchedule>) -> Decoder {
    let model = Decoder::new(&tiny::llama(true), mixer, 1, &Device::flex()).unwrap();
    tiny::scattered(model, 2, |path| !path.ends_with("A_log") && !path.contains("dt_"))
}

fn adapted(model: Decoder) -> Decoder {
    let model = lora::apply(model, &LoraConfig::longlora().with_rank(2)).unwrap();
    // B starts at zero, where A has no gradient.
    tiny::scattered(model, 5, |path| path.contains(".lora."))
}

fn sparse() -> MixerConfig {
    MixerConfig::LongLora(LongLoraConfig::new().with_group_size(8).with_ragged(true))
}

/// Norms of a model that are not all one.
fn initial(config: &ModelConfig, mixer: impl Into<MixerSchedule>) -> Decoder {
    let model = Decoder::new(config, mixer, 1, &Device::flex()).unwrap();
    tiny::scattered(model, 2, |path| path.contains("norm"))
}

/// Models, and how often they may be off by more than that backward: gradients of keys' biases would be
/// nothing at all but for the rotation, and chunks that learn enlarge what is wrong with their input.
fn models() -> Vec<(&'static str, Decoder, f64)> {
    let of = |mixer| initial(&tiny::llama(true), mixer);
    let longgen = LongGenConfig::new().with_block(4).with_local_blocks(2).with_stride(3);
    let state_space =
        |mixer| initial(&ModelConfig::state_space(61, 24, 2, mixer), MixerSchedule::Own);
    let mamba1 = MixerConfig::Mamba1(Mamba1Config::new().with_d_state(4).with_dt_rank(3));
    let mamba2 = Mamba2Config::new().with_d_state(5).with_head_dim(8).with_n_groups(2);
    let mamba2 = MixerConfig::Mamba2(mamba2.with_chunk(4));
    let neox = ModelConfig::gpt_neox(61, 32, 2, 4).with_max_positions(64);
    let mixed = MixerSchedule::new(MixerConfig::Dense).with_layers(Layers::parse("0"), sparse());
    let lact = LactConfig::new().with_fast_heads(2).with_chunk(8).with_window(16);
    let lact = lact.with_low_rank(4).with_optimizer(FastOptimizer::Sgd);
    let wide = ModelConfig::llama(61, 24, 2, 4).with_max_positions(64);
    let seer = |config: SeerConfig| {
        let mixer = MixerConfig::Seer(config.with_block(8));
        gates::prepare(of(MixerConfig::Dense).swap_mixer(mixer).unwrap(), 3).unwrap()
    };
    vec![
        ("llama, tied", of(MixerConfig::Dense), 1.0),
        ("llama", initial(&tiny::llama(false), MixerConfig::Dense), 1.0),
        ("qwen3", initial(&tiny::qwen3(), MixerSchedule::Own), 1.0),
        ("mistral", initial(&tiny::mistral(), MixerSchedule::Own), 1.0),
        ("gpt-neox", initial(&neox, MixerSchedule::Own), 2.0),
        ("longlora", of(sparse()), 1.0),
        ("longgen", of(MixerConfig::LongGen(longgen)), 1.0),
        ("two mixers", initial(&tiny::llama(true), mixed), 1.0),
        ("lora", adapted(of(MixerConfig::Dense)), 1.0),
        ("mamba", state_space(mamba1), 1.0),
        ("mamba2", state_space(mamba2), 1.0),
        ("lact", initial(&wide, MixerConfig::Lact(lact)), 2.0),
        ("seer, prefill", seer(SeerConfig::new()), 1.0),
        ("seer, decode", seer(SeerConfig::decode()), 1.0),
    ]
}

/// The model with weights that bf16 has.
fn rounded(model: &Decoder) -> Decoder {
    let values: BTreeMap<String, Vec<f32>> = read_params(model, |_| true)
        .into_iter()
        .map(|(path, _, data)| {
            let all = Tensor::<1>::from_data(data.as_slice(), &Device::flex()).cast(DType::BF16);
            (path, all.into_data().iter::<f32>().collect())
        })
        .collect();
    map_params(model.clone(), |path| values.get(path).cloned(), |_| None)
}

/// Hidden states, loss and all gradients of a pass in bf16 are those of the reference in f32 but for
/// rounding: off by little more than the reference itself with rounded weights.
#[test]
fn a_pass_in_bf16_equals_the_reference_but_for_rounding() {
    for (name, model, times) in models() {
        let model = model.train();
        let rounded = rounded(&model).train();
        let compare = |what: &str, times: f64, [narrow, near, wide]: [&[f32]; 3]| {
            let (off, near) = (tiny::ratio(narrow, wide), tiny::ratio(near, wide));
            let most = times * near.max(ROUNDING);
            assert!(off <= most, "{name}: {what} is off by {off:.1e}, more than {most:.1e}");
            off
        };
        let sides = [(&model, Compute::Bf16), (&rounded, Compute::F32), (&model, Compute::F32)];
        let hidden = sides.map(|(model, compute)| hidden(model, compute));
        let off = compare("hidden", TIMES[0], hidden.each_ref().map(|x| &x[..]));
        assert!(off > ROUNDING / 2.0, "{name}: {off:.1e}, which is a pass in f32");
        let passes = sides.map(|(model, compute)| pass(model, &Plain, compute));
        let losses = passes.each_ref().map(|(_, loss)| [*loss as f32]);
        compare("loss", TIMES[0], losses.each_ref().map(|x| &x[..]));
        for path in passes[2].0.keys() {
            let gradients = passes.each_ref().map(|(gradients, _)| &gradients[path][..]);
            compare(path, times * TIMES[1], gradients);
        }
    }
}

fn bits(values: &BTreeMap<String, Vec<f32>>) -> BTreeMap<&str, Vec<u32>> {
    let of = |(name, x): (_, &Vec<f32>)| {
        let name: &String = name;
        (name.as_str(), x.iter().map(|x| x.to_bits()).collect())
    };
    values.iter().map(of).collect()
}

/// The same operations on the same numbers: no bit differs.
#[test]
fn recompute_is_plain_bit_for_bit() {
    for model in [llama(MixerConfig::Dense), llama(sparse()), adapted(llama(MixerConfig::Dense))] {
        let model = model.train();
        let (plain, again) =
            (pass(&model, &Plain, Compute::Bf16), pass(&model, &Recompute, Compute::Bf16));
        assert_eq!(plain.1.to_bits(), again.1.to_bits());
        assert_eq!(bits(&plain.0), bits(&again.0));
    }
}

/// Losses, final weights and the state of a run.
fn train(config: TrainConfig) -> (Vec<f64>, Decoder, longburn::training::TrainState) {
    let batch = rows();
    let mut data = |_: u64, _: u32| Ok(Some(batch.clone()));
    let mut losses = Vec::new();
    let model = Decoder::new(&tiny::llama(true), MixerConfig::Dense, 1, &Device::flex()).unwrap();
    let done = Trainer::new(config)
        .unwrap()
        .fit(model, &NextToken, &mut data, &mut |step| {
            losses.push(step.report.loss);
            Ok(())
        })
        .unwrap();
    let state = done.state().unwrap();
    (losses, done.model, state)
}

/// Twenty steps learn as much as in f32, with accumulation and either strategy, while weights and
/// moments are f32.
#[test]
fn a_run_in_bf16_learns_as_one_in_f32() {
    let config = TrainConfig::new(20, 1e-2).with_micro_batches(2);
    let (wide, ..) = train(config.clone());
    for strategy in [Strategy::Plain, Strategy::Recompute] {
        let config = config.clone().with_compute(Compute::Bf16).with_strategy(strategy);
        let (narrow, model, state) = train(config);
        assert!(wide[19] < 0.5 * wide[0] && narrow[19] < 0.5 * narrow[0], "{wide:?} {narrow:?}");
        for (step, (a, b)) in narrow.iter().zip(&wide).enumerate() {
            assert!((a - b).abs() <= 0.02 * wide[0], "step {step}: {a} and {b}");
        }
        assert_ne!(narrow, wide);
        let moments = &state.optimizer.tensors;
        assert!(moments.len() >= 2 * 20, "{}", moments.len());
        for (name, tensor) in moments {
            assert_eq!(tensor.dtype, longburn::models::weights::Dtype::F32, "{name}");
        }
        model.visit(&mut Walk(&GradientSum::new(), Vec::new()));
    }
}

/// A run that was stopped ends with the bits of one that was not.
#[test]
fn resuming_in_bf16_is_exact() {
    let config = TrainConfig::new(6, 1e-2).with_micro_batches(2).with_compute(Compute::Bf16);
    let (_, whole, end) = train(config.clone());
    let batch = rows();
    let mut data = |_: u64, _: u32| Ok(Some(batch.clone()));
    let mut middle = None;
    let fresh = Decoder::new(&tiny::llama(true), MixerConfig::Dense, 1, &Device::flex()).unwrap();
    let all = Trainer::new(config.clone()).unwrap();
    all.fit(fresh, &NextToken, &mut data, &mut |step| {
        if step.report.step == 3 {
            middle = Some((step.model.valid(), step.state()?));
        }
        Ok(())
    })
    .unwrap();
    let (model, state) = middle.unwrap();
    let dir = tempfile::tempdir().unwrap();
    model.save(dir.path(), &Default::default()).unwrap();
    state.write(dir.path()).unwrap();
    let model = Decoder::load(dir.path(), &MixerConfig::Dense, &Device::flex()).unwrap();
    let state = longburn::training::TrainState::read(dir.path()).unwrap();
    let rest = Trainer::new(config).unwrap().resume(state);
    let done = rest.fit(model, &NextToken, &mut data, &mut |_| Ok(())).unwrap();
    assert_eq!(done.state().unwrap().optimizer, end.optimizer);
    let of = |model: &Decoder| -> BTreeMap<String, Vec<f32>> {
        let all = longburn::models::keymap::read_params(model, |_| true);
        all.into_iter().map(|(path, _, data)| (path, data)).collect()
    };
    assert_eq!(bits(&of(&done.model)), bits(&of(&whole)));
}

/// Angles and tables are not rounded, however far out a token is: a rotation in bf16 is the exact one,
/// rounded once.
#[test]
fn rotations_far_out_are_rounded_once() {
    let device = Device::flex();
    let rope = RopeConfig::new(1e4, 64).init().unwrap();
    let at: Vec<i64> = vec![0, 1, 4095, 131_071, 1_000_003, 16_777_215];
    let positions = Positions::new(1, at.len(), at.clone(), 1).unwrap();
    let table = rope.table(&positions, &device);
    // Numbers that bf16 has.
    let x: Vec<f32> = (0..at.len() * 64).map(|i| ((i * 37) % 129) as f32 / 64.0 - 1.0).collect();
    let input = Tensor::<4>::from_data(TensorData::new(x.clone(), [1, 1, at.len(), 64]), &device);
    let y = table.rotate(input.cast(DType::BF16));
    assert_eq!(y.dtype(), DType::BF16);
    let y: Vec<f32> = y.into_data().iter::<f32>().collect();
    let frequencies = rope.inv_freq(0);
    for (t, p) in at.iter().enumerate() {
        for (i, f) in frequencies.iter().enumerate() {
            let (sin, cos) = (*p as f64 * f).sin_cos();
            let (a, b) = (f64::from(x[t * 64 + i]), f64::from(x[t * 64 + 32 + i]));
            for (got, exact) in
                [(y[t * 64 + i], a * cos - b * sin), (y[t * 64 + 32 + i], b * cos + a * sin)]
            {
                let most = exact.abs() / 256.0 + 1e-6;
                let off = (f64::from(got) - exact).abs();
                assert!(off <= most, "position {p}, pair {i}: {got} for {exact}");
            }
        }
    }
}

/// Attention with a gain of its own, in f32, which says nothing of bf16.
#[derive(Module, Debug)]
struct Gained {
    inner: longburn::attention::Dense,
    gain: Param<Tensor<1>>,
}

impl SequenceMixer for Gained {
    fn forward(
        &self,
        x: Tensor<3>,
        ctx: &MixContext<'_>,
        state: Option<State>,
    ) -> Result<MixOutput> {
        assert_eq!((x.dtype(), ctx.compute), (DType::F32, Compute::F32));
        let x = x * self.gain.val().unsqueeze();
        let aux = x.clone().square().mean().mul_scalar(0.3);
        Ok(MixOutput { aux: Some(aux), ..self.inner.forward(x, ctx, state)? })
    }
}

/// A mixer that knows nothing of bf16 is given f32, and the rest of the model is in bf16; its own loss
/// terms count under either strategy.
#[test]
fn a_mixer_that_does_not_know_bf16_computes_in_f32() {
    let device = Device::flex();
    let model = Decoder::with_mixer(&tiny::llama(true), 3, &device, |_, proj| {
        let gain = Param::from_tensor(Tensor::full([24], 0.7, &device));
        Ok(Gained { inner: DenseConfig::new().init(proj), gain })
    });
    let model = model.unwrap().train();
    let (plain, again) =
        (pass(&model, &Plain, Compute::Bf16), pass(&model, &Recompute, Compute::Bf16));
    let wide = pass(&model, &Plain, Compute::F32);
    for (path, wanted) in &wide.0 {
        // What is summed in f32 is so in another order.
        let r = tiny::ratio(&again.0[path], &plain.0[path]);
        assert!(r <= 1e-6, "{path}: {r:.1e} between the strategies");
        // Measured: 1.8e-2, on a projection of keys.
        let r = tiny::ratio(&plain.0[path], wanted);
        assert!((1e-4..4e-2).contains(&r), "{path}: {r:.1e}");
    }
}

/// One token at a time with a cache in bf16 is the whole pass, but for rounding.
#[test]
fn a_cache_in_bf16_goes_on_with_the_whole() {
    let model = tiny::model(&tiny::qwen3(), &Device::flex());
    let options = ForwardOptions::infer().with_compute(Compute::Bf16);
    let ids = tiny::ids(20);
    let run = |options: &ForwardOptions, from: usize, to: usize, states| {
        let part = longburn::models::ids_tensor(&ids[from..to], 1, &Device::flex());
        let tokens = longburn::kernel::TokenMeta::contiguous(1, to - from, from);
        model.forward_ids(part, &tokens, options, states).unwrap()
    };
    let whole = model.logits(run(&options, 0, 20, vec![]).last);
    assert_eq!(whole.dtype(), DType::F32);
    let (options, mut states, mut parts) = (options.with_state(true), vec![], vec![]);
    for t in 0..20 {
        let out = run(&options, t, t + 1, states);
        states = out.states;
        assert!(states[0].tensors().iter().all(|x| x.dtype() == DType::BF16));
        parts.push(model.logits(out.last));
    }
    let host = |x: Tensor<3>| x.into_data().iter::<f32>().collect::<Vec<_>>();
    let r = tiny::ratio(&host(Tensor::cat(parts, 1)), &host(whole));
    assert!(r <= 2e-2, "{r:.1e}");
}

const RECIPE: &str = r#"
    [model.new]
    vocab_size = 300
    hidden_size = 16
    layers = 1
    heads = 2
    [data]
    train = "texts"
    [train]
    steps = 1
    length = 16
    lr = 1e-3
    compute = "bf16"
    [output]
    dir = "run"
"#;

#[test]
fn recipes_say_it_and_plans_refuse_it() {
    let recipe = Recipe::parse(RECIPE, "run.toml").unwrap();
    assert_eq!(recipe.train.config(0).compute, Compute::Bf16);
    let f32s = Recipe::parse(&RECIPE.replace("compute = \"bf16\"", ""), "run.toml").unwrap();
    assert_eq!(f32s.train.compute, Compute::F32);
    let repeats = RECIPE.replace("compute = \"bf16\"", "deterministic = true");
    let repeats = Recipe::parse(&repeats, "run.toml").unwrap().train.config(0).deterministic;
    assert!(repeats && !f32s.train.config(0).deterministic);
    for (name, words) in [("f16", "use \"bf16\""), ("fp8", "expected `f32` or `bf16`")] {
        let text = RECIPE.replace("\"bf16\"", &format!("{name:?}"));
        let error = Recipe::parse(&text, "run.toml").unwrap_err();
        assert!(matches!(error, Error::Parse { .. }), "{error:?}");
        assert!(format!("{error:?} {error}").contains(words), "{error:?}");
    }
    let Err(error @ Error::Unsupported { .. }) = recipe.plan(None) else { panic!("a plan") };
    assert!(error.to_string().contains("train.compute = \"f32\""), "{error}");
    let config = PlanConfig::new(tiny::llama(true), 64);
    assert!(config.init().is_ok());
    assert!(config.with_compute(Compute::Bf16).init().is_err());
}

/// Perplexity in bf16 is that in f32 but for rounding, and another number.
#[test]
fn perplexity_in_bf16() {
    let model = tiny::model(&tiny::llama(true), &Device::flex());
    let of = |compute| {
        let report =
            Perplexity::strided(16, 8).with_compute(compute).eval(&model, &[tiny::ids(60)]);
        report.unwrap().mean_nll
    };
    let (wide, narrow) = (of(Compute::F32), of(Compute::Bf16));
    assert!((wide - narrow).abs() <= 0.01 * wide && wide != narrow, "{wide} {narrow}");
}
