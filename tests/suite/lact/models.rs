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
