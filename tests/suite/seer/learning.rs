//! Targets, loss, and who learns.

use super::*;
use burn::module::Module;
use burn::optim::GradientsParams;
use longburn::datasets::{Side, TokenBatch};
use longburn::models::{Decoder, ForwardOptions, ModelConfig, gates};
use longburn::training::{NextToken, Objective, TrainConfig, Trainer};

/// The gate's loss of a mixer of its own, and its gradients by parameter.
fn loss(mixer: &Seer, x: Tensor<3>, tokens: &TokenMeta) -> (f32, Vec<(String, Vec<f32>)>) {
    let mixer = map_params(mixer.clone(), |_| None, |_| Some(true));
    let out = forward(&mixer, x, tokens, Phase::Train, None).unwrap();
    let aux = out.aux.unwrap();
    let value = host(aux.clone())[0];
    let grads = GradientsParams::from_grads(aux.backward(), &mixer);
    let of = |info: longburn::models::keymap::ParamInfo| {
        let grad = match info.shape.len() {
            1 => grads.get::<1>(info.id).map(host),
            2 => grads.get::<2>(info.id).map(host),
            3 => grads.get::<3>(info.id).map(host),
            _ => grads.get::<4>(info.id).map(host),
        };
        grad.map(|grad| (info.path, grad))
    };
    (value, params(&mixer).into_iter().filter_map(of).collect())
}

/// Items 2 and 8: targets and loss equal the reference made of all attention weights, value and
/// gradients of the gate.
#[test]
fn loss_equals_the_reference() {
    let device = Device::flex().autodiff();
    for (decode, kv_heads) in [(false, 4), (false, 1), (true, 4), (true, 2)] {
        // The last one is learned in several pieces.
        for (t, block) in [(1, 8), (63, 8), (65, 8), (100, 8), (520, 2)] {
            let base = if decode { SeerConfig::decode() } else { SeerConfig::new() };
            let config = base.with_block(block);
            let mixer = seer(&config, &device, kv_heads).unwrap();
            let tokens = TokenMeta::contiguous(2, t, 0);
            let x = normal([2, t, HIDDEN], 1);
            let (got, grads) = loss(&mixer, x.clone(), &tokens);

            let gate = mixer.attn_gate.clone().unwrap();
            let gate = map_params(gate, |_| None, |_| Some(true));
            let (q, k) = unrotated(&mixer, x, &tokens);
            let layout = BlockLayout::of(&tokens, block).unwrap();
            let table = rope().table(&Positions::of(&tokens), &device);
            let weights =
                reference::seer::weights(table.rotate(q.clone()), table.rotate(k.clone()));
            let n = t.div_ceil(block);
            let want = match &gate {
                AttnGate::Prefill(gate) => {
                    let logits = gate.logits(q, k, &layout, Some(&rope())).unwrap();
                    let targets = reference::seer::block_targets(weights, block);
                    let sums = host(targets.clone().sum_dim(3));
                    assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-5));
                    reference::seer::loss(logits, targets, |i, j| j > i, n / 4)
                }
                AttnGate::Decode(gate) => {
                    let (q, k) = gate.tokens_and_blocks(q, k, &layout, Some(&rope())).unwrap();
                    let logits = gate.logits(q, k);
                    let targets = reference::seer::token_targets(weights, kv_heads, block);
                    reference::seer::loss(logits, targets, |i, j| j >= i / block, t / 2)
                }
            };
            let want = want.mul_scalar(10.0);
            let value = host(want.clone())[0];
            let what = format!("decode {decode}, {kv_heads} key heads, {t} tokens");
            assert!((got - value).abs() <= 1e-5 * value.abs().max(1e-3), "{what}: {got} {value}");
            let all = want.backward();
            let all = GradientsParams::from_grads(all, &gate);
            let of_gate: Vec<_> = params(&gate);
            assert!(grads.iter().all(|(path, _)| path.starts_with("attn_gate.")), "{what}");
            assert_eq!(grads.len(), of_gate.len(), "{what}");
            for info in of_gate {
                let want = match info.shape.len() {
                    1 => host(all.get::<1>(info.id).unwrap()),
                    3 => host(all.get::<3>(info.id).unwrap()),
                    _ => host(all.get::<4>(info.id).unwrap()),
                };
                let path = format!("attn_gate.{}", info.path);
                let (_, got) = grads.iter().find(|(known, _)| *known == path).unwrap();
                let size = want.iter().fold(0f32, |most, x| most.max(x.abs()));
                let r = ratio(got, &want);
                assert!(r <= 1e-5 || size < 1e-7, "{what}, {path}: {r:e} of {size:e}");
            }
        }
    }
}

/// The loss of rows of several documents is made of those of the documents alone.
#[test]
fn loss_of_packed_documents_equals_theirs() {
    let device = Device::flex().autodiff();
    let both = |reduction| {
        [SeerConfig::new(), SeerConfig::decode()].map(|base| SeerConfig { reduction, ..base })
    };
    for base in [both(Reduction::Mean), both(Reduction::BatchMean)].concat() {
        let config = base.with_block(8);
        // Blocks for blocks: every score counts alike. Blocks for tokens: every document.
        let elements = |len: usize| match (config.gate, config.reduction, len.div_ceil(8)) {
            (GateKind::Prefill, Reduction::Mean, n) => ((n - n / 4) * n) as f32,
            _ => 1.0,
        };
        let mixer = seer(&config, &device, 2).unwrap();
        let lengths = [21, 9, 30];
        let x = normal([1, 64, HIDDEN], 1);
        for (tokens, first) in [
            (TokenMeta::packed(&[lengths.to_vec()], 64).unwrap(), 0),
            (TokenMeta::new(1, 64, shifted(&lengths).0, shifted(&lengths).1).unwrap(), 4),
        ] {
            let (whole, grads) = loss(&mixer, x.clone(), &tokens);
            let (mut sum, mut weight, mut start) = (0.0, 0.0, first);
            let mut summed: Vec<Vec<f32>> = grads.iter().map(|(_, g)| vec![0.0; g.len()]).collect();
            for len in lengths {
                let alone = TokenMeta::contiguous(1, len, 0);
                let (part, grads) = loss(&mixer, x.clone().narrow(1, start, len), &alone);
                let share = elements(len);
                (sum, weight, start) = (sum + share * part, weight + share, start + len);
                for (all, (_, one)) in summed.iter_mut().zip(&grads) {
                    all.iter_mut().zip(one).for_each(|(all, one)| *all += share * one);
                }
            }
            let want = sum / weight;
            assert!((whole - want).abs() <= 1e-5 * want, "{:?}: {whole} {want}", config.gate);
            for ((path, got), mut want) in grads.into_iter().zip(summed) {
                want.iter_mut().for_each(|x| *x /= weight);
                let r = ratio(&got, &want);
                assert!(r <= 1e-5, "{:?}, {path}: {r:e}", config.gate);
            }
        }
    }
}

/// Positions and segments of documents behind four tokens of padding.
fn shifted(lengths: &[usize]) -> (Vec<i32>, Vec<i32>) {
    let (mut pos, mut segment) = (vec![0; 4], vec![-1; 4]);
    for (s, len) in lengths.iter().enumerate() {
        pos.extend(0..*len as i32);
        segment.extend(vec![s as i32; *len]);
    }
    (pos, segment)
}

fn model(config: &SeerConfig) -> (Decoder, Decoder) {
    let sizes = ModelConfig::llama(61, 24, 2, 4).with_kv_heads(2).with_max_positions(256);
    let dense = Decoder::new(&sizes, &MixerConfig::Dense, 1, &Device::flex()).unwrap();
    let seer = dense.clone().swap_mixer(MixerConfig::Seer(config.clone())).unwrap();
    (dense, gates::prepare(seer, 3).unwrap())
}

fn rows() -> TokenBatch {
    let row = |n: u32, len: u32| (0..len).map(|i| (i * i * n + 3 * i) % 61).collect::<Vec<u32>>();
    TokenBatch::from_rows(vec![row(1, 100), row(2, 77)], Side::Right, 0).unwrap()
}

/// Item 5: while the gate learns, the model computes what it did, bit for bit, and nothing but
/// the gate changes.
#[test]
fn only_the_gate_learns() {
    for config in [SeerConfig::new().with_block(8), SeerConfig::decode().with_block(8)] {
        let (dense, seer) = model(&config);
        let batch = rows();
        let sum = |model: &Decoder| {
            let options = ForwardOptions::train();
            let parts = NextToken.loss(&model.clone().train(), &batch, &options).unwrap();
            host(parts.sum)
        };
        assert_eq!(sum(&dense), sum(&seer), "{:?}", config.gate);

        let before = longburn::models::keymap::read_params(&seer, |_| true);
        let mut data = |_: u64, _: u32| Ok(Some(batch.clone()));
        let mut losses = Vec::new();
        let trainer = Trainer::new(TrainConfig::new(30, 1e-2)).unwrap();
        let trained = trainer
            .fit(seer, &NextToken, &mut data, &mut |step| {
                losses.push((step.report.loss, step.report.aux.unwrap()));
                Ok(())
            })
            .unwrap()
            .model;
        assert!(losses.iter().all(|(loss, _)| *loss == losses[0].0), "the language model moved");
        assert!(losses[29].1 < 0.8 * losses[0].1, "{:?} {:?}", losses[0], losses[29]);
        let after = longburn::models::keymap::read_params(&trained, |_| true);
        for ((path, _, old), (_, _, new)) in before.iter().zip(&after) {
            assert_eq!(old != new, path.contains(".attn_gate."), "{path}");
        }
        assert_eq!(sum(&dense), sum(&trained), "{:?}", config.gate);
    }
}

/// Gates have a file of their own, with the authors' names; the model beside it stays plain.
#[test]
fn gates_are_saved_beside_the_model() {
    for config in [SeerConfig::new().with_block(8), SeerConfig::decode().with_block(8)] {
        let (dense, seer) = model(&config);
        // Every layer's gate is drawn by itself.
        let of_layer = |layer: usize| -> Vec<Vec<f32>> {
            let start = format!("layers.{layer}.self_attn.attn_gate.attngate_linear_k");
            let other = format!("layers.{layer}.self_attn.attn_gate.mask_linear_k");
            let is = |path: &str| path.starts_with(&start) || path.starts_with(&other);
            let found = longburn::models::keymap::read_params(&seer, is);
            found.into_iter().map(|(.., values)| values).collect()
        };
        assert!(of_layer(0).len() == 1 && of_layer(0) != of_layer(1));
        let dir = tempfile::tempdir().unwrap();
        gates::save(&seer, &config, dir.path()).unwrap();
        seer.save(dir.path(), &Default::default()).unwrap();
        let names = |file: &str| -> Vec<String> {
            let files = longburn::models::weights::WeightFiles::open_file(&dir.path().join(file));
            files.unwrap().names().map(String::from).collect()
        };
        let first = match config.gate {
            GateKind::Prefill => "model.layers.0.self_attn.attn_gate.mask_linear_k.weight",
            GateKind::Decode => "model.layers.0.self_attn.attn_gate.attngate_knorm.weight",
        };
        let saved = names(gates::GATE_FILE);
        assert_eq!(saved[0], first);
        assert!(saved.iter().all(|name| name.contains(".attn_gate.")));
        assert!(names("model.safetensors").iter().all(|name| !name.contains("attn_gate")));

        let mixer = MixerConfig::Seer(config.clone());
        let loaded = Decoder::load(dir.path(), &mixer, &Device::flex()).unwrap();
        assert!(!gates::has_gates(&loaded));
        let loaded = gates::load(loaded, dir.path()).unwrap();
        let all = |model: &Decoder| longburn::models::keymap::read_params(model, |_| true);
        assert_eq!(all(&loaded), all(&seer));

        assert_eq!(gates::settings(dir.path()).unwrap(), config);
        // Settings that the shapes do not show.
        let other = MixerConfig::Seer(config.with_block(16));
        let other = dense.swap_mixer(&other).unwrap();
        let text = gates::load(other, dir.path()).unwrap_err().to_string();
        assert!(text.contains("seer.block") && text.contains("16"), "{text}");
    }
}
