//! How much of what attention gives to blocks lies in those that are chosen.

use crate::recipe::Recipe;
use burn::tensor::Tensor;
use longburn::attention::seer::{AttnGate, BlockLayout, Pool, Select, Teacher};
use longburn::attention::{Mixer, Tap};
use longburn::datasets::TokenBatch;
use longburn::kernel::{AttentionOptions, Branch, Mask, masked_attention};
use longburn::models::{Blocks, Decoder, ForwardOptions, ids_tensor};
use longburn::{Error, Result};
use std::collections::BTreeMap;

/// Share of the targets' mass in the chosen blocks, mean over rows, heads, layers and windows: of
/// the gate, of scores without weights (pooled means, rotated), and of chance.
pub fn recall(
    model: &Decoder,
    windows: &[TokenBatch],
    recipe: &Recipe,
    sparsity: f64,
) -> Result<BTreeMap<&'static str, f64>> {
    let select = Select::NzRatio(1.0 - sparsity);
    let mut sums = BTreeMap::from([("gate", 0.0), ("means", 0.0), ("random", 0.0)]);
    let mut rows = 0.0;
    for batch in windows {
        let device = model.head().device();
        let options = ForwardOptions::infer().with_taps(vec![Tap::QueriesAndKeys]);
        let ids = ids_tensor(&batch.ids, batch.batch(), &device);
        let taps = model.forward_ids(ids, &batch.tokens, &options, Vec::new())?.taps;
        let place = model.place(&batch.tokens, &device);
        let layout = BlockLayout::of(&batch.tokens, recipe.gate.block)?;
        let n = layout.blocks();
        for (taps, block) in taps.into_iter().zip(&model.layers) {
            let (Some(q), Some(k), Mixer::Seer(seer)) = (taps.q, taps.k, &block.self_attn) else {
                return Err(Error::Training("a layer without taps or gate".into()));
            };
            let Some(AttnGate::Prefill(gate)) = &seer.attn_gate else {
                return Err(Error::Training("a layer without a gate".into()));
            };
            let learned = gate.logits(q.clone(), k.clone(), &layout, Some(place.rope.rope()))?;
            let [b, heads, t, _] = q.dims();
            let mean = |x: &Tensor<4>| layout.pool(x.clone(), &[Pool::Avg]);
            let starts = place.rope.rope().table(&layout.starts()?, &device);
            let (mean_q, mean_k) = (starts.rotate(mean(&q)), starts.rotate(mean(&k)));
            let [_, kv, _, d] = mean_k.dims();
            let mean_k: Tensor<5> = mean_k.reshape([b, kv, 1, n, d]);
            let mean_k = mean_k.repeat_dim(2, heads / kv).reshape([b, heads, n, d]);
            let unlearned = mean_q.matmul(mean_k.transpose());

            let (q, k) = (place.rope.rotate(q), place.rope.rotate(k));
            let branch = Branch { q, k: k.clone(), mask: Mask::causal(b, t, heads) };
            let options = AttentionOptions::default();
            let lse = masked_attention(std::slice::from_ref(&branch), k, &options)?.lse;
            let teacher = Teacher { branch, lse, layout: &layout, options };
            let host = |x: Tensor<4>| x.into_data().iter::<f32>().collect::<Vec<f32>>();
            let targets = host(teacher.block_targets(0..n)?);
            for (name, logits) in [("gate", host(learned)), ("means", host(unlearned))] {
                for (row, seen) in (0..b * heads * n).map(|row| (row, row % n + 1)) {
                    let at = row * n..row * n + seen;
                    let chosen = select.choose(&logits[at.clone()], n, recipe.gate.block)?;
                    let mass = targets[at].iter().zip(chosen).filter(|(_, chosen)| *chosen);
                    *sums.entry(name).or_default() += mass.map(|(x, _)| f64::from(*x)).sum::<f64>();
                }
            }
            let kept = select.kept(n, recipe.gate.block).unwrap_or(n) as f64;
            let chance = |i: usize| (kept / (i + 1) as f64).min(1.0);
            *sums.entry("random").or_default() +=
                (b * heads) as f64 * (0..n).map(chance).sum::<f64>();
            rows += (b * heads * n) as f64;
        }
    }
    Ok(sums.into_iter().map(|(name, sum)| (name, sum / rows)).collect())
}
