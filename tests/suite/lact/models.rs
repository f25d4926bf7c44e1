//! LaCT in models and recipes.

use super::*;

/// Some tokens of a row that repeats itself.
fn rows(step: u64, rows: usize, len: usize) -> TokenBatch {
    let mut rng = Streams::new(step).rng(Purpose::Synthetic, 1, 0, 0);
    let row = |_| {
        let part: Vec<u32> = (0..6).map(|_| rng.below(20) as u32).collect();
        part.iter().cycle().take(len).copied().collect()
    };
    TokenBatch::from_rows((0..rows).map(row).collect(), Side::Right, 0).unwrap()
}

fn logits(model: &Decoder, batch: &TokenBatch, options: &ForwardOptions) -> Vec<f32> {
    let ids = ids_tensor(&batch.ids, batch.batch(), &Device::flex());
    let out = model.forward_ids(ids, &batch.tokens, options, vec![]).unwrap();
    host(model.logits(out.last))
}

/// In a model, beside dense layers: trains by both strategies alike, with Muon, comes back from its
/// files with the same bits, and decodes as it reads.
#[test]
fn models_train_save_load_and_decode() {
    let lact = config().with_chunk(4).with_base_lr(0.01);
    let config = ModelConfig::llama(20, HIDDEN, 3, 3).with_max_positions(64);
    let mixers = || {
        MixerSchedule::new(MixerConfig::Lact(lact.clone()))
            .with_layers(Layers::parse("1"), MixerConfig::Dense)
    };
    let train = |strategy: Strategy| {
        let model = Decoder::new(&config, mixers(), 4, &Device::flex()).unwrap();
        let train =
            TrainConfig::new(6, 1e-2).with_strategy(strategy).with_muon(Some(Muon::default()));
        let (mut losses, mut data) = (Vec::new(), |step, _| Ok(Some(rows(step, 2, 21))));
        let trained = Trainer::new(train)
            .unwrap()
            .fit(model, &NextToken, &mut data, &mut |step| {
                losses.push(step.report.loss);
                Ok(())
            })
            .unwrap();
        (trained.model, losses)
    };
    let (model, losses) = train(Strategy::Plain);
    assert!(losses[5] < losses[0] - 0.1, "{losses:?}");
    let (_, again) = train(Strategy::Recompute);
    for (a, b) in losses.iter().zip(&again) {
        assert!((a - b).abs() < 1e-3, "{losses:?} {again:?}");
    }

    let dir = tempfile::tempdir().unwrap();
    model.save(dir.path(), &SaveOptions::default()).unwrap();
    let batch = rows(99, 2, 17);
    let want = logits(&model, &batch, &ForwardOptions::infer());
    let read = Decoder::load(dir.path(), MixerSchedule::Own, &Device::flex()).unwrap();
    assert_eq!(logits(&read, &batch, &ForwardOptions::infer()), want);
    assert!(matches!(read.layers[0].self_attn, Mixer::Lact(_)));

    let options = ForwardOptions::infer().with_state(true);
    let (mut states, mut decoded) = (Vec::new(), vec![Vec::new(); 2]);
    for t in 0..17 {
        let ids: Vec<u32> = (0..2).map(|b| batch.ids[b * 17 + t]).collect();
        let tokens = batch.tokens.slice(t..t + 1).unwrap();
        let ids = ids_tensor(&ids, 2, &Device::flex());
        let out = read.forward_ids(ids, &tokens, &options, states).unwrap();
        states = out.states;
        let last = host(read.logits(out.last));
        for (b, row) in decoded.iter_mut().enumerate() {
            row.extend_from_slice(&last[b * 20..(b + 1) * 20]);
        }
    }
    let r = ratio(&decoded.concat(), &want);
    assert!(r < 1e-4, "{r:.1e}");

    // Other chunks need no other weights, another width does.
    let wider = MixerConfig::Lact(lact.clone().with_chunk(7).with_window(9));
    assert!(read.clone().swap_mixer(schedule_of(wider)).is_ok());
    let other = MixerConfig::Lact(lact.with_inter_multi(2.0));
    let error = read.swap_mixer(schedule_of(other)).err().unwrap().to_string();
    assert!(error.contains("layer 0") && error.contains("other weights"), "{error}");
}

fn schedule_of(lact: MixerConfig) -> MixerSchedule {
    MixerSchedule::new(lact).with_layers(Layers::parse("1"), MixerConfig::Dense)
}

#[test]
fn recipes_are_told_which_field_does_not_fit() {
    let read = |mixer: &str| {
        let text = format!(
            "[model.new]\nvocab_size = 300\nhidden_size = 16\nlayers = 2\nheads = 2\n{mixer}\n\
             [data]\ntrain = \"t\"\n[train]\nsteps = 1\nlength = 8\nlr = 1e-3\n\
             [train.muon]\nscale = \"original\"\n[output]\ndir = \"o\"\n"
        );
        Recipe::parse(&text, "run.toml").map(drop).map_err(|e| e.to_string())
    };
    read("[mixer]\nname = \"lact\"\nchunk = 4\nlow_rank = 0\noptimizer = \"sgd\"").unwrap();
    for (mixer, field) in [
        ("[mixer]\nname = \"lact\"\nfast_heads = 3", "mixer.fast_heads"),
        ("[mixer]\nname = \"lact\"\nlow_rank = 5", "mixer.low_rank"),
        ("[mixer]\nname = \"lact\"\nchunks = 5", "chunks"),
        (
            "[[mixer]]\nname = \"dense\"\nlayers = [0]\n[[mixer]]\nname = \"lact\"\nchunk = 0",
            "mixer[1].chunk",
        ),
    ] {
        let error = read(mixer).unwrap_err();
        assert!(error.contains(field), "{mixer}: {error}");
    }
}

/// Full matrices at 1/√columns, low-rank ones at the gain's share of it beside half of the identity,
/// every one from a stream of its own.
#[test]
fn initial_weights_are_those_of_the_authors() {
    let shape = AttnShape { hidden: 64, heads: 2, kv_heads: 2, head_dim: 32, ..shape(2) };
    let all = |config: LactConfig| -> std::collections::HashMap<String, Vec<f32>> {
        let layer = config.init(&shape, (0.02, 0.02), &Streams::new(5), 0, &device()).unwrap();
        read_params(&layer, |_| true).into_iter().map(|(path, _, data)| (path, data)).collect()
    };
    let config = LactConfig::new().with_fast_heads(2).with_inter_multi(1.5);
    let check = |values: &[f32], want: f64| {
        let square = values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        let std = (square / values.len() as f64).sqrt();
        assert!((std / want - 1.0).abs() < 0.1, "{std}, expected {want}");
    };
    let full = all(config.clone().with_low_rank(0));
    let (d, d_h, r) = (32f64, 48f64, 8f64);
    for (name, columns) in [("w0", d), ("w1", d_h), ("w2", d)] {
        check(&full[name], 1.0 / columns.sqrt());
    }
    assert_ne!(full["w0"][..9], full["w2"][..9]);
    let low = all(config.clone().with_low_rank(8));
    for name in ["w0", "w2"] {
        let [left, right] = ["left", "right"].map(|side| &low[&format!("{name}.w_{side}")]);
        check(left, 0.5 / r.sqrt());
        check(right, 0.5 / d.sqrt());
        assert!((right[0] / left[0] - right[1] / left[1]).abs() > 1e-3, "{name}: one stream");
    }
}

/// Whether lengths of the initial rows are constants decides what they teach.
#[test]
fn detached_norms_pass_no_gradient() {
    let [w0, w1, w2] = [1, 2, 3].map(|stream| normal([1, 2, 6, 6], stream));
    let taught = |detach_norms: bool| {
        let rule = UpdateRule { detach_norms, ..config().with_momentum(false).rule() };
        let leaves = [&w0, &w1, &w2].map(|w| w.clone().detach().require_grad());
        let learner = Learner::new(rule, &FastWeights::new(leaves.clone(), &rule));
        // The only way from the leaves to the result is by their lengths.
        let weights = FastWeights::new(leaves.clone().map(Tensor::detach), &rule);
        let [k, v] = [4, 5].map(|stream| normal([1, 2, 7, 6], stream));
        let after = learner.update(weights, k, v, normal([1, 2, 7, 3], 6).abs());
        let [a, b, c] = after.w;
        let grads = (a.sum() + b.sum() + c.sum() + leaves[0].clone().sum() * 0.0).backward();
        let grad = leaves[0].grad(&grads).map(host).unwrap_or_default();
        grad.iter().fold(0f32, |most, g| most.max(g.abs()))
    };
    assert_eq!(taught(true), 0.0);
    assert!(taught(false) > 1e-3);
}
