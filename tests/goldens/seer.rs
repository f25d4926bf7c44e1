//! The gates of SeerAttention: scores, targets, loss and its gradients, selections, sparse
//! attention; and the cache of compressed keys, step by step.

use crate::Failure;
use crate::golden::Golden;
use crate::model::values;
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor, TensorData};
use longburn::attention::SeerConfig;
use longburn::attention::seer::*;
use longburn::kernel::*;
use longburn::models::keymap::{map_params, params};
use longburn::positional::{Positions, Rope, RopeConfig};
use longburn::streams::Streams;

/// Blocks for blocks.
pub fn gate(golden: &Golden) -> Result<(), Failure> {
    let class = golden.config()["class"].as_str().ok_or("config.class")?;
    let (queries, keys) = class.split_once("_K").ok_or("config.class has no _K")?;
    let pools = |text: &str| {
        let named = |pool: &Pool| text.contains(&format!("{pool:?}").to_lowercase());
        Pool::ALL.into_iter().filter(named).collect::<Vec<_>>()
    };
    let block = golden.number("block")?;
    let config = SeerConfig {
        force_double: golden.config()["force_double"] == true,
        ..SeerConfig::new()
            .with_block(block)
            .with_gate_dim(Some(golden.number("gate_dim")?))
            .with_pools(&pools(queries), &pools(keys))
    };
    let device = Device::flex().autodiff();
    let (q, k) = (heads_first(golden, "in.q", &device)?, heads_first(golden, "in.k", &device)?);
    let ([b, heads, t, d], rope) = (q.dims(), rope(golden, "D")?);
    let gate = with_weights(golden, &config, [heads, k.dims()[1], d])?.train();
    let AttnGate::Prefill(scores) = &gate else { return Err("no prefill gate".into()) };
    let tokens = TokenMeta::contiguous(b, t, 0);
    let layout = BlockLayout::of(&tokens, block)?;
    let logits = scores.logits(q.clone(), k.clone(), &layout, Some(&rope))?;
    let scored = scores.blocks(q.clone(), k.clone(), &layout, Some(&rope))?;
    let n = layout.blocks();
    let later = |i: usize| i % n > i / n % n;
    let seen = |values: Vec<f32>| -> Vec<f32> {
        values.into_iter().enumerate().map(|(i, x)| if later(i) { 0.0 } else { x }).collect()
    };
    golden.compare("out.logits", &seen(values(logits.clone())))?;
    let hidden: Vec<f32> =
        (0..b * heads * n * n).map(|i| if later(i) { -1e20 } else { 0.0 }).collect();
    let hidden = Tensor::from_data(TensorData::new(hidden, [b, heads, n, n]), &device);
    golden.compare("out.softmax", &values(softmax(logits.clone() + hidden, 3)))?;

    let table = rope.table(&Positions::of(&tokens), &device);
    let (q, k) = (table.rotate(q), table.rotate(k));
    let branch = Branch { q, k: k.clone(), mask: Mask::causal(b, t, heads) };
    let options = AttentionOptions::default();
    let lse = masked_attention(std::slice::from_ref(&branch), k.clone(), &options)?.lse;
    let teacher =
        Teacher { branch: branch.clone(), lse, layout: &layout, options: options.clone() };
    golden.compare("out.ground_truth", &values(teacher.block_targets(0..n)?))?;
    let loss = teacher.block_loss(&config, scored)?;
    golden.compare("out.loss", &values(loss.clone()))?;
    let cotangent = golden.floats("cot.loss")?[0];
    let grads = GradientsParams::from_grads(loss.mul_scalar(cotangent).backward(), &gate);
    for param in params(&gate) {
        let grad = grads.get::<3>(param.id).ok_or("no gradient")?;
        golden.compare(&format!("grad.{}", param.path), &values(grad))?;
    }

    let chosen = |name: &str| -> Result<BlockList, Failure> {
        let (kind, last) = name.split_once("_last").ok_or("a mask's name has no _last")?;
        let select = match kind.strip_prefix("ratio") {
            Some(ratio) => Select::NzRatio(ratio.parse()?),
            None => Select::Threshold(golden.config()["threshold"].as_f64().ok_or("threshold")?),
        };
        let config = SeerConfig { keep_best: false, ..config.clone() };
        let config = config.with_last_block_dense(last == "1");
        Ok(block_list(&config, select, logits.clone(), &layout)?)
    };
    for name in golden.names("out.mask_") {
        let list = chosen(name.trim_start_matches("out.mask_"))?;
        let sees = |i: usize| list.sees(i / (n * n * heads), i / (n * n) % heads, i / n % n, i % n);
        let got: Vec<i64> = (0..b * heads * n * n).map(|i| i64::from(sees(i))).collect();
        golden.compare_integers(name, &got)?;
    }
    for name in golden.names("out.sparse_attention_") {
        let list = chosen(name.trim_start_matches("out.sparse_attention_"))?;
        let mask = branch.mask.clone().with_blocks(list)?;
        let branch = Branch { mask, ..branch.clone() };
        let out = masked_attention(&[branch], k.clone(), &options)?.out;
        // The file gives it no tolerance of its own.
        golden.compare_within("out.logits", name, &values(out))?;
    }
    Ok(())
}

/// Blocks for single queries, with a cache that grows token by token.
pub fn decode(golden: &Golden) -> Result<(), Failure> {
    let (block, prefill) = (golden.number("block")?, golden.number("prefill")?);
    let settings = golden.config();
    let head_pool = settings["head_pooling"].as_str().ok_or("config.head_pooling")?.to_lowercase();
    let at_start = settings["new_block_rope"] == "block start";
    let config = SeerConfig {
        head_pool: serde_json::from_value(head_pool.into())?,
        qk_norm: settings["qk_norm"] == true,
        rope_at: if at_start { RopeAt::BlockStart } else { RopeAt::CurrentToken },
        ..SeerConfig::decode().with_block(block).with_gate_dim(Some(golden.number("gate_dim")?))
    };
    let device = Device::flex();
    let (q, k) = (heads_first(golden, "in.q", &device)?, heads_first(golden, "in.k", &device)?);
    let ([b, heads, steps, d], rope) = (q.dims(), rope(golden, "gate_dim")?);
    let gate = with_weights(golden, &config, [heads, k.dims()[1], d])?;
    let AttnGate::Decode(gate) = &gate else { return Err("no decode gate".into()) };
    let sizes = (block, config.rope_at);
    let append = |old, from: usize, len: usize| {
        let keys = k.clone().narrow(2, from, len);
        GateCache::append(old, gate, sizes, keys, &TokenMeta::contiguous(b, len, from), Some(&rope))
    };
    let compressed = |cache: &GateCache| values(cache.blocks.clone().swap_dims(1, 2));
    let mut cache = append(None, 0, prefill)?;
    golden.compare("out.k_compressed_prefill", &compressed(&cache))?;
    for step in 0..steps {
        let len = prefill + step + 1;
        cache = append(Some(cache), len - 1, 1)?;
        let table = rope.table(&Positions::range(b, 1, len - 1), &device);
        let q = gate.queries(q.clone().narrow(2, step, 1), Some(&table));
        let logits = gate.logits(q, cache.blocks.clone());
        golden.compare(&format!("out.scores_{len}"), &values(softmax(logits.clone(), 3)))?;
        let name = format!("out.mask_{len}");
        if golden.has(&name) {
            let budget = Select::Budget(golden.number("budget_blocks")? * block);
            let chosen = cache.choose(logits, budget, block)?.concat();
            let chosen: Vec<i64> = chosen.into_iter().map(i64::from).collect();
            golden.compare_integers(&name, &chosen)?;
        }
    }
    golden.compare("out.k_compressed_final", &compressed(&cache))
}

/// `[B, T, H, D]` in the file, `[B, H, T, D]` here.
fn heads_first(golden: &Golden, name: &str, device: &Device) -> Result<Tensor<4>, Failure> {
    let shape: [usize; 4] = golden.shape(name)?.try_into()?;
    let x = TensorData::new(golden.floats(name)?, shape);
    Ok(Tensor::from_data(x, device).swap_dims(1, 2))
}

fn rope(golden: &Golden, width: &str) -> Result<Rope, Failure> {
    let theta = golden.config()["rope_theta"].as_f64().ok_or("config.rope_theta")?;
    Ok(RopeConfig::new(theta, golden.number(width)?).init()?)
}

/// A gate for heads `[H, K, D]` with the weights of the file.
fn with_weights(
    golden: &Golden,
    config: &SeerConfig,
    [heads, kv_heads, head_dim]: [usize; 3],
) -> Result<AttnGate, Failure> {
    let shape = GateShape { heads, kv_heads, head_dim };
    let gate = AttnGate::new(config, shape, (&Streams::new(0), 0), &Device::flex())?;
    let mut loaded = std::collections::HashMap::new();
    for param in params(&gate) {
        let name = format!("in.{}", param.path);
        if golden.shape(&name)? != param.shape {
            return Err(format!("{name}: {:?} here", param.shape).into());
        }
        loaded.insert(param.path, golden.floats(&name)?);
    }
    Ok(map_params(gate, |path| loaded.remove(path), |_| None))
}
