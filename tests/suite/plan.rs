//! The memory plan beside what a counting allocator measures.

use super::alloc;
use burn::module::Module;
use burn::tensor::Device;
use longburn::attention::lact::{FastOptimizer, WeightNorm};
use longburn::attention::seer::{HeadPool, Pool, Select};
use longburn::attention::{
    LactConfig, Layers, Mamba1Config, Mamba2Config, MixerConfig, MixerSchedule, SeerConfig,
};
use longburn::datasets::{Side, TokenBatch};
use longburn::kernel::TokenMeta;
use longburn::models::lora::{self, LoraConfig, Role, Target, TrainableReport};
use longburn::models::{
    Activation, Blocks, Decoder, ForwardOptions, ModelConfig, gates, ids_tensor,
};
use longburn::training::plan::{PlanConfig, Resident};
use longburn::training::{Muon, NextToken, Strategy, TrainConfig, Trainer};
use std::ops::RangeInclusive;

/// Peak of model, optimizer and three steps, bytes.
fn measured(config: &PlanConfig) -> u64 {
    let config = config.clone();
    alloc::measure(move || three_steps(&config)).peak as u64
}

fn three_steps(config: &PlanConfig) -> Decoder {
    let PlanConfig { ref model, muon, length, batch, .. } = *config;
    let vocab = model.vocab_size;
    let train = TrainConfig::new(3, 1e-3)
        .with_strategy(config.strategy)
        .with_micro_batches(config.micro_batches)
        .with_workers(config.workers)
        .with_muon(muon.then(Muon::default));
    let decoder = untrained(config);
    let mut data = |step: u64, micro: u32| {
        let first = step as usize + micro as usize;
        let row = |n: usize| (0..length).map(move |i| ((i * 7 + n + first) % vocab) as u32);
        let rows = (0..batch).map(|n| row(n).collect()).collect();
        TokenBatch::from_rows(rows, Side::Right, 0).map(Some)
    };
    let trainer = Trainer::new(train).unwrap();
    trainer.fit(decoder, &NextToken, &mut data, &mut |_| Ok(())).unwrap().model
}

/// The model that is planned, as it begins.
fn untrained(config: &PlanConfig) -> Decoder {
    let mut decoder = Decoder::new(&config.model, &config.mixer, 1, &Device::flex()).unwrap();
    if let Some(lora) = &config.lora {
        decoder = lora::apply(decoder, lora).unwrap();
    }
    match config.mixer.seer() {
        Some(_) => gates::prepare(decoder, 1).unwrap(),
        None => decoder,
    }
}

/// Run a test in a process of its own: Burn keeps the graphs of all threads in one place, and what
/// is freed there for a test beside would be counted here.
fn alone(test: &str, work: impl FnOnce()) {
    alone_on(None, test, work);
}

/// The same on one thread, for working space of threads that do not always work at once.
fn alone_on_one(test: &str, work: impl FnOnce()) {
    alone_on(Some(1), test, work);
}

fn alone_on(threads: Option<usize>, test: &str, work: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some() {
        return work();
    }
    let out = std::process::Command::new(std::env::current_exe().unwrap())
        .args([&format!("plan::{test}"), "--exact", "--nocapture"])
        .env(ALONE, "1")
        .envs(threads.map(|n| (THREADS, n.to_string())))
        .output()
        .unwrap();
    let text = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    println!("{}", text.join("\n"));
    assert!(out.status.success());
    assert!(text[0].contains("1 passed"), "the test did not run");
}

/// Tells a process that it was started by [`alone`].
const ALONE: &str = "LONGBURN_TEST_ALONE";

/// How many threads `alloc::measure` has.
const THREADS: &str = "RAYON_NUM_THREADS";

#[track_caller]
fn check(name: &str, config: PlanConfig) {
    check_within(-0.15..=0.15, name, config);
}

/// On one thread and without the library's products nothing depends on the machine: what is left is the
/// working space, which is planned for the widest vectors.
#[track_caller]
fn check_closely(name: &str, config: PlanConfig) {
    check_within(-0.03..=0.10, name, config);
}

#[track_caller]
fn check_within(allowed: RangeInclusive<f64>, name: &str, config: PlanConfig) {
    // As many threads as `measure` has.
    let asked = std::env::var(THREADS).ok().and_then(|n| n.parse().ok());
    let cores = || std::thread::available_parallelism().map_or(1, |n| n.get());
    let config = config.with_threads(asked.unwrap_or_else(cores));
    for strategy in [Strategy::Plain, Strategy::Recompute] {
        let config = config.clone().with_strategy(strategy);
        compare(allowed.clone(), name, &config, measured(&config));
    }
}

/// How far the plan is from the measurement.
#[track_caller]
fn compare(allowed: RangeInclusive<f64>, name: &str, config: &PlanConfig, measured: u64) {
    let plan = config.init().unwrap();
    let off = plan.peak as f64 / measured as f64 - 1.0;
    println!(
        "{name}, {}: planned {}, measured {measured}, {:+.1} % ({})",
        config.strategy.name(),
        plan.peak,
        100.0 * off,
        plan.moment
    );
    assert!(allowed.contains(&off), "{name}, {:?}: {plan}\nmeasured {measured}", config.strategy);
}

fn llama(vocab: usize, hidden: usize, layers: usize, inner: usize) -> ModelConfig {
    ModelConfig::llama(vocab, hidden, layers, 4)
        .with_kv_heads(2)
        .with_intermediate(inner)
        .with_max_positions(4096)
}

#[test]
fn plan_is_what_is_measured_where_activations_outweigh_weights() {
    alone("plan_is_what_is_measured_where_activations_outweigh_weights", || {
        check("long rows", PlanConfig::new(llama(300, 64, 3, 168), 1536));
        check("several rows", PlanConfig::new(llama(300, 64, 2, 168), 384).with_batch(3));
        check("narrow mlp", PlanConfig::new(llama(60, 72, 3, 40), 1024));
        check("wide mlp", PlanConfig::new(llama(60, 72, 3, 400), 1024));
        let one_head = ModelConfig::llama(200, 32, 3, 1).with_max_positions(2048);
        check("one head", PlanConfig::new(one_head, 1024));
    });
}

#[test]
fn plan_is_what_is_measured_where_weights_outweigh_activations() {
    alone("plan_is_what_is_measured_where_weights_outweigh_activations", || {
        check("short rows", PlanConfig::new(llama(500, 160, 3, 512), 16));
        check("large vocabulary", PlanConfig::new(llama(8000, 96, 2, 256), 200));
        check(
            "large tied vocabulary",
            PlanConfig::new(llama(8000, 96, 2, 256).with_tied(true), 100),
        );
    });
}

#[test]
fn plan_is_what_is_measured_with_muon() {
    alone("plan_is_what_is_measured_with_muon", || {
        check("short rows", PlanConfig::new(llama(300, 160, 3, 512), 16).with_muon(true));
        check("long rows", PlanConfig::new(llama(300, 64, 2, 168), 768).with_muon(true));
    });
}

/// Models so small that the working space of Muon's products is a third of all.
#[test]
fn plan_is_what_is_measured_of_small_models_with_muon() {
    alone_on_one("plan_is_what_is_measured_of_small_models_with_muon", || {
        let model = mamba(MixerConfig::Mamba1(Mamba1Config::new()));
        check("mamba", PlanConfig::new(model.clone(), 16).with_muon(true));
        check("mamba, longer rows", PlanConfig::new(model, 256).with_muon(true));
        let model = mamba(MixerConfig::Mamba2(Mamba2Config::new().with_head_dim(16)));
        check("mamba2", PlanConfig::new(model, 64).with_muon(true));
        check("llama", PlanConfig::new(llama(60, 64, 2, 168), 16).with_muon(true));
    });
}

#[test]
fn plan_is_what_is_measured_with_lora() {
    alone("plan_is_what_is_measured_with_lora", || {
        let dense = PlanConfig::new(llama(500, 72, 3, 168), 1024);
        let with = |lora| dense.clone().with_lora(Some(lora));
        check("lora", with(LoraConfig::new()));
        check("lora, embedding and norms", with(LoraConfig::longlora()));
        let all = LoraConfig::new()
            .with_targets(&Target::TRANSFORMER)
            .with_rank(32)
            .with_extra(&[Role::Head]);
        check("lora everywhere, and the head", with(all));
        check("lora on q alone", with(LoraConfig::new().with_targets(&[Target::Q])));
    });
}

#[test]
fn plan_is_what_is_measured_over_micro_batches_and_with_other_mixers() {
    alone("plan_is_what_is_measured_over_micro_batches_and_with_other_mixers", || {
        let dense = PlanConfig::new(llama(500, 72, 3, 168), 512);
        check("micro-batches", dense.clone().with_micro_batches(3, 1));
        check("longlora", dense.clone().with_mixer(MixerConfig::LongLora(Default::default())));
        let mut normed = dense.clone();
        normed.model = super::tiny::qwen3();
        normed.model.max_position_embeddings = 4096;
        check("norms on q and k", normed.with_length(1536));
    });
}

/// LayerNorms, and a feed-forward layer without a gate.
#[test]
fn plan_is_what_is_measured_of_gpt_neox() {
    alone("plan_is_what_is_measured_of_gpt_neox", || {
        let neox = |inner: usize| {
            ModelConfig::gpt_neox(300, 64, 3, 4).with_intermediate(inner).with_max_positions(4096)
        };
        check("gpt-neox", PlanConfig::new(neox(256), 1536));
        check("gpt-neox, wide", PlanConfig::new(neox(640), 1024));
        let sequential = neox(256).with_parallel_residual(false);
        check("gpt-neox, one after the other", PlanConfig::new(sequential, 1536));
        let mut tanh = neox(256);
        tanh.activation = Activation::GeluTanh;
        check("gpt-neox, other activation", PlanConfig::new(tanh, 1536));
        check(
            "gpt-neox, lora",
            PlanConfig::new(neox(256), 1536).with_lora(Some(LoraConfig::new())),
        );
    });
}

fn mamba(mixer: MixerConfig) -> ModelConfig {
    ModelConfig::state_space(300, 48, 3, mixer)
}

#[test]
fn plan_is_what_is_measured_of_mamba() {
    alone_on_one("plan_is_what_is_measured_of_mamba", || {
        let config = Mamba1Config::new();
        let of = |config: &Mamba1Config| mamba(MixerConfig::Mamba1(config.clone()));
        check_closely("mamba", PlanConfig::new(of(&config), 1024));
        check_closely("mamba, several rows", PlanConfig::new(of(&config), 300).with_batch(3));
        let wide = config.clone().with_d_state(64).with_dt_rank(20);
        check_closely("mamba, large states", PlanConfig::new(of(&wide), 700));
        let many = config.clone().with_d_state(256);
        check_closely("mamba, very large states", PlanConfig::new(of(&many), 256));
        let few = config.clone().with_d_state(4).with_d_conv(3).with_biases(false, true);
        check_closely("mamba, small states and biases", PlanConfig::new(of(&few), 1024));
        check_closely("mamba, short rows", PlanConfig::new(of(&few), 16));
        check_closely(
            "mamba, micro-batches",
            PlanConfig::new(of(&few), 512).with_micro_batches(3, 1),
        );
        let lora = LoraConfig::new().with_targets(&Target::STATE_SPACE).with_rank(16);
        check_closely("mamba, lora", PlanConfig::new(of(&config), 1024).with_lora(Some(lora)));
    });
}

#[test]
fn plan_is_what_is_measured_of_mamba2() {
    alone_on_one("plan_is_what_is_measured_of_mamba2", || {
        let config = Mamba2Config::new().with_head_dim(16).with_d_state(32);
        let of = |config: &Mamba2Config| mamba(MixerConfig::Mamba2(config.clone()));
        check_closely("mamba2", PlanConfig::new(of(&config), 1024));
        check_closely("mamba2, several rows", PlanConfig::new(of(&config), 300).with_batch(3));
        let grouped = config.clone().with_n_groups(3).with_dt_limit(Some((0.01, 0.5)));
        check_closely("mamba2, groups and bounds", PlanConfig::new(of(&grouped), 700));
        let wide = config.clone().with_d_state(128);
        check_closely("mamba2, large states", PlanConfig::new(of(&wide), 700));
        let lora = LoraConfig::new().with_targets(&[Target::In, Target::Out]).with_rank(16);
        check_closely("mamba2, lora", PlanConfig::new(of(&config), 1024).with_lora(Some(lora)));
    });
}

/// Fast weights, chunk by chunk, in all their forms.
#[test]
fn plan_is_what_is_measured_of_lact() {
    alone_on_one("plan_is_what_is_measured_of_lact", || {
        let model = || ModelConfig::llama(300, 64, 2, 4).with_max_positions(4096);
        let small = LactConfig::new().with_fast_heads(2).with_low_rank(4).with_window(64);
        let of = |config: LactConfig, length| {
            PlanConfig::new(model(), length).with_mixer(MixerConfig::Lact(config))
        };
        check("lact", of(small.clone().with_chunk(128), 1000));
        check("lact, several rows", of(small.clone().with_chunk(64), 300).with_batch(3));
        check("lact, one chunk", of(small.clone().with_chunk(2048), 700));
        let plain = small.clone().with_optimizer(FastOptimizer::Sgd).with_momentum(false);
        check("lact, gradient steps", of(plain.with_chunk(128), 1000));
        let other = small.with_norm(WeightNorm::Pre).with_low_rank(0).with_qk_norm(true);
        check("lact, other forms", of(other.with_chunk(100).with_inter_multi(2.0), 1000));
    });
}

/// Nothing but gates trains.
#[test]
fn plan_is_what_is_measured_of_gates_that_learn() {
    alone_on_one("plan_is_what_is_measured_of_gates_that_learn", || {
        let of = |config: SeerConfig, length| {
            let model = llama(300, 64, 3, 168);
            PlanConfig::new(model, length).with_mixer(MixerConfig::Seer(config))
        };
        check("gates of blocks", of(SeerConfig::new(), 1536));
        check("gates of blocks, several rows", of(SeerConfig::new(), 500).with_batch(3));
        let pools = SeerConfig::new().with_pools(&Pool::ALL, &[Pool::Avg]).with_block(16);
        check("gates of blocks, more pools", of(pools, 1024));
        check("gates of tokens", of(SeerConfig::decode(), 1536));
        let averaged = SeerConfig::decode().with_head_pool(HeadPool::Qavgproj).with_block(32);
        check("gates of tokens, averaged", of(averaged, 1000));
    });
}

/// Layers of several kinds, each by itself.
#[test]
fn plan_is_what_is_measured_where_layers_differ() {
    alone("plan_is_what_is_measured_where_layers_differ", || {
        let schedule = MixerSchedule::new(MixerConfig::Dense)
            .with_layers(Layers::parse("0"), MixerConfig::Mamba1(Mamba1Config::new()))
            .with_layers(Layers::parse("2"), MixerConfig::Mamba2(Mamba2Config::new()));
        let model = llama(300, 64, 4, 168);
        check("mamba, attention, mamba2", PlanConfig::new(model, 1024).with_mixer(schedule));
    });
}

/// Two micro-batches at the same time, the third after them.
fn with_workers(strategy: Strategy) -> PlanConfig {
    PlanConfig::new(llama(500, 72, 3, 168), 512).with_micro_batches(3, 2).with_strategy(strategy)
}

/// Tells the process that `plan_is_what_is_measured_with_workers` starts what to measure.
const CHILD: &str = "LONGBURN_TEST_PLAN";

/// The threads of workers are made by the trainer, and so unknown to `measure`.
#[test]
fn plan_is_what_is_measured_with_workers() {
    for strategy in [Strategy::Plain, Strategy::Recompute] {
        let run = || {
            let out = std::process::Command::new(std::env::current_exe().unwrap())
                .args([
                    "plan::child_of_plan_is_what_is_measured_with_workers",
                    "--exact",
                    "--nocapture",
                ])
                .env(CHILD, strategy.name())
                .output()
                .unwrap();
            let text = String::from_utf8(out.stdout).unwrap();
            let peak = text.lines().find_map(|line| line.split_once("peak: ")).unwrap().1;
            peak.parse::<u64>().unwrap()
        };
        // On a busy machine workers take turns, and need less than side by side: the most of some
        // runs is what the plan speaks of.
        let peak = (0..5).map(|_| run()).max().unwrap();
        compare(-0.15..=0.15, "workers", &with_workers(strategy), peak);
    }
}

#[test]
fn child_of_plan_is_what_is_measured_with_workers() {
    let Ok(name) = std::env::var(CHILD) else { return };
    let strategy = [Strategy::Plain, Strategy::Recompute].into_iter().find(|s| s.name() == name);
    let config = with_workers(strategy.unwrap());
    println!("\npeak: {}", alloc::measure_process(|| three_steps(&config)).peak);
}

#[test]
fn what_a_step_computes_at_once_is_counted_so_many_times() {
    let one = PlanConfig::new(llama(500, 72, 3, 168), 512).with_micro_batches(4, 1);
    let four = one.clone().with_micro_batches(4, 4).init().unwrap();
    let one = one.init().unwrap();
    let activations = |plan: &longburn::training::plan::MemoryPlan| plan.total().activations;
    assert_eq!(activations(&four), 4 * activations(&one));
    assert_eq!(four.total().optimizer, one.total().optimizer);
}

#[test]
fn parameters_are_those_of_the_checkpoint() {
    for model in [
        llama(300, 64, 3, 168),
        llama(300, 64, 3, 168).with_tied(true),
        ModelConfig::gpt_neox(300, 64, 3, 4).with_max_positions(64),
        mamba(MixerConfig::Mamba1(Mamba1Config::new())),
        mamba(MixerConfig::Mamba2(Mamba2Config::new().with_head_dim(16))),
    ] {
        let shapes = model.tensor_shapes();
        let numbers: usize = shapes.values().map(|shape| shape.iter().product::<usize>()).sum();
        let plan = PlanConfig::new(model, 32).init().unwrap();
        assert_eq!(plan.total().parameters, 4 * numbers as u64);
    }
}

#[test]
fn parameters_of_other_mixers_are_those_of_the_model() {
    let small = LactConfig::new().with_fast_heads(2).with_low_rank(4).with_qkv_bias(true);
    let mixers = [
        MixerConfig::Lact(small.clone()),
        MixerConfig::Lact(small.with_low_rank(0).with_momentum(false).with_qk_norm(true)),
        MixerConfig::Seer(SeerConfig::new()),
        MixerConfig::Seer(SeerConfig::new().with_pools(&Pool::ALL, &[Pool::Avg])),
        MixerConfig::Seer(SeerConfig::decode()),
        MixerConfig::Seer(SeerConfig::decode().with_head_pool(HeadPool::Qavgproj)),
        MixerConfig::Seer(SeerConfig::decode().with_head_pool(HeadPool::Qorig)),
    ];
    for mixer in mixers {
        let model = match mixer {
            MixerConfig::Seer(_) => llama(300, 64, 3, 168),
            _ => ModelConfig::llama(300, 64, 3, 4),
        };
        let config = PlanConfig::new(model, 32).with_mixer(mixer.clone());
        let decoder = untrained(&config);
        let (all, trained) = (decoder.num_params(), TrainableReport::of(&decoder).trainable);
        let total = config.init().unwrap().total();
        assert_eq!(total.parameters, 4 * all as u64, "{mixer:?}");
        assert_eq!(total.optimizer, 2 * 4 * trained as u64, "{mixer:?}");
    }
}

/// Keys and values, or states, after as many tokens.
#[test]
fn what_generation_remembers_is_what_the_states_hold() {
    let small = LactConfig::new().with_fast_heads(2).with_low_rank(4).with_chunk(8);
    let decode = SeerConfig::decode().with_block(8).with_gate_dim(Some(8));
    for (mixer, length) in [
        (MixerConfig::Dense, 20),
        (MixerConfig::Mamba1(Mamba1Config::new()), 20),
        (MixerConfig::Mamba2(Mamba2Config::new().with_head_dim(8).with_n_groups(2)), 20),
        (MixerConfig::Lact(small.clone().with_window(5)), 24),
        (MixerConfig::Lact(small.with_window(50).with_norm(WeightNorm::Pre)), 16),
        (MixerConfig::Seer(decode.clone()), 20),
        (MixerConfig::Seer(decode.clone().with_select(Some(Select::Budget(8)))), 20),
        // A block longer than the text.
        (MixerConfig::Seer(decode.with_block(64).with_select(Some(Select::Budget(8)))), 20),
    ] {
        let model = ModelConfig::llama(300, 64, 2, 4).with_max_positions(64);
        let config = PlanConfig::new(model, length).with_mixer(mixer.clone());
        let decoder = untrained(&config);
        let (tokens, options) =
            (TokenMeta::contiguous(1, length, 0), ForwardOptions::infer().with_state(true));
        let ids: Vec<u32> = (0..length as u32).collect();
        let ids = ids_tensor(&ids, 1, &Device::flex());
        let states = decoder.forward_ids(ids, &tokens, &options, vec![]).unwrap().states;
        let held: usize = states.iter().map(|state| state.bytes()).sum();
        assert_eq!(config.init().unwrap().kv_cache, held as u64, "{mixer:?}");
    }
}

#[test]
fn sizes_that_cannot_be_counted_are_refused() {
    for mixer in [
        MixerConfig::Mamba1(Mamba1Config::new().with_d_state(1 << 40)),
        MixerConfig::Mamba2(Mamba2Config::new().with_d_state(1 << 40)),
    ] {
        assert!(PlanConfig::new(mamba(mixer), 1 << 20).init().is_err());
    }
    let wide = LactConfig::new().with_fast_heads(1).with_inter_multi(10_000.0);
    let model = ModelConfig::llama(300, 64, 2, 4);
    let wide = PlanConfig::new(model, usize::MAX >> 20).with_mixer(MixerConfig::Lact(wide));
    assert!(wide.init().is_err());
    for (length, batch) in [(usize::MAX, 1), (32, usize::MAX), (1 << 40, 1 << 20)] {
        let config = PlanConfig::new(llama(300, 64, 3, 168), length).with_batch(batch);
        assert!(config.init().is_err(), "{length} x {batch}");
    }
}

#[test]
fn resident_memory_is_read() {
    let Some(before) = Resident::read() else {
        return println!("skipped: the system does not say what is resident");
    };
    assert!(before.now > 1 << 20 && before.peak >= before.now, "{before:?}");
}
