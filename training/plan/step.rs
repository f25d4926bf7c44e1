//! A training step as an account: what is allocated and freed, in the order in which it happens.

use super::PlanConfig;
use super::block::Walk;
use super::layout::{Layout, Weights};
use super::ledger::{Ledger, Part, Use};
use crate::kernel::attention::scratch;
use crate::kernel::loss::{chunk_len, packs_head};
use crate::training::Strategy;
use std::collections::BTreeMap;

/// Longest run of rows that the matrix product packs at a time.
const PANEL: u64 = 512;

/// A step in which the optimizer has its moments already.
pub(super) fn step(config: &PlanConfig, layout: &Layout) -> Ledger {
    let tokens = (config.batch * config.length) as u64;
    let workers = u64::from(config.workers.min(config.micro_batches)).max(1);
    let of_queries = [config.batch, layout.heads as usize, config.length, layout.head_dim as usize];
    // None in a family without attention.
    let key_heads = layout.kv.checked_div(layout.head_dim).unwrap_or(0) as usize;
    let scratch = match key_heads {
        0 => 0,
        _ => scratch(of_queries, key_heads, config.length) as u64,
    };
    let mut walk = Walk { layout, ledger: Ledger::default(), tokens, workers, scratch };
    let all = weights(layout);
    for (part, weights) in &all {
        walk.ledger.keep(*part, Use::Parameters, weights.all);
        walk.ledger.keep(*part, Use::Optimizer, weights.moments);
        if u64::from(config.micro_batches) > workers {
            // The sum over the micro-batches before.
            walk.ledger.keep(*part, Use::Gradients, weights.trained);
        }
    }
    // Cosines and sines, one row for all.
    let angles = 2 * config.length as u64 * (layout.head_dim / 2) * workers;
    walk.ledger.keep(Part::Attention, Use::Activations, angles);
    match config.strategy {
        Strategy::Plain => walk.plain(),
        Strategy::Recompute => walk.recompute(),
    }
    walk.ledger.free(Part::Attention, Use::Activations, angles);
    debug_assert_eq!(walk.ledger.activations(), 0, "every activation is freed once");

    // One set of gradients is left; the optimizer scales them one tensor at a time.
    let extra = workers - 1 + u64::from(u64::from(config.micro_batches) > workers);
    for (part, weights) in &all {
        walk.ledger.free(*part, Use::Gradients, extra * weights.trained);
    }
    // Muon has the means before and after, the step, and three of it in the iteration.
    let at_once = if config.muon { 5 } else { 1 };
    walk.ledger.keep(Part::Norms, Use::Gradients, at_once * layout.largest());
    walk.ledger.moment(|| "update of the weights".into());
    walk.ledger
}

/// Weights by part.
pub(super) fn weights(layout: &Layout) -> Vec<(Part, Weights)> {
    let mut all = vec![
        (Part::Embedding, layout.embedding),
        (Part::Loss, layout.head.unwrap_or_default()),
        (Part::Norms, layout.norm),
    ];
    for own in &layout.mixers {
        all.push((Part::Attention, layout.mixer(own.as_deref())));
        all.push((Part::Norms, layout.norm));
        if layout.has_mlp {
            all.extend([(Part::Mlp, layout.mlp()), (Part::Norms, layout.norm)]);
        }
    }
    all
}

impl Walk<'_> {
    fn plain(&mut self) {
        let l = self.layout;
        let mut tracked = l.embedding.trained > 0;
        let blocks = l.mixers.len();
        let mut inputs = Vec::with_capacity(blocks);
        for block in 0..blocks {
            inputs.push(tracked);
            tracked = self.forward(block, tracked);
        }
        self.top(tracked);
        for (block, tracked) in inputs.into_iter().enumerate().rev() {
            self.backward(block, tracked, &format!("block {block}"));
        }
        self.bottom();
        if self.passes_gradients(tracked) {
            self.free(Part::Norms, l.hidden);
        }
    }

    fn recompute(&mut self) {
        let l = self.layout;
        // Inputs of the blocks, and of the final norm, which is held to the end.
        for _ in 0..=l.mixers.len() {
            self.keep(Part::Norms, l.hidden);
        }
        // `top` accounts for the input that an RMS norm keeps; here it is the one above.
        let in_graph = if l.layer_norm { 0 } else { l.hidden };
        self.free(Part::Norms, in_graph);
        self.top(true);
        self.keep(Part::Norms, in_graph);
        for block in (0..l.mixers.len()).rev() {
            // The block's input is in its graph from here on.
            self.free(Part::Norms, in_graph);
            self.forward(block, true);
            // ⟨y, dy⟩: both and their product.
            self.keep(Part::Norms, 2 * l.hidden);
            self.ledger.moment(|| format!("forward again, block {block}"));
            self.free(Part::Norms, 2 * l.hidden);
            self.backward(block, true, &format!("block {block}"));
            self.free(Part::Norms, l.hidden - in_graph);
        }
        self.bottom();
        self.free(Part::Norms, 2 * l.hidden);
    }

    /// Final norm and loss, forward and backward; what is left is the gradient of the residual
    /// stream.
    fn top(&mut self, tracked: bool) {
        let l = self.layout;
        let of_weights = if l.head_trains() { self.workers * l.vocab * l.hidden } else { 0 };
        let of_norm = l.norm_keeps(tracked);
        self.keep(Part::Norms, of_norm);
        // The hidden states and their gradient, which the forward pass computes with the loss.
        let passes = self.passes_gradients(tracked);
        let gradient = if passes { l.hidden } else { 0 };
        self.keep(Part::Loss, l.hidden + gradient);
        let head = if l.tied { Part::Embedding } else { Part::Loss };
        self.ledger.keep(head, Use::Gradients, of_weights);
        let rows = (chunk_len(l.vocab as usize) as u64).min(self.tokens);
        let mut logits = rows * l.vocab;
        if packs_head(l.hidden as usize) {
            logits += l.vocab * l.hidden;
        }
        if l.head_trains() {
            // The product that gives the head's gradient packs the logits.
            logits += l.vocab * rows.div_ceil(rows.div_ceil(PANEL));
        }
        let logits = logits * self.workers;
        self.ledger.keep(Part::Loss, Use::Activations, logits);
        self.ledger.moment(|| "loss".into());
        self.ledger.free(Part::Loss, Use::Activations, logits);
        // Both gradients are scaled, each into a new tensor.
        self.ledger.keep(head, Use::Gradients, of_weights);
        self.ledger.moment(|| "backward, loss".into());
        self.ledger.free(head, Use::Gradients, of_weights);
        self.free(Part::Loss, l.hidden);
        // The hidden states' gradient becomes that of the residual stream.
        self.learn(Part::Norms, l.norm);
        self.free(Part::Loss, gradient);
        self.free(Part::Norms, of_norm);
        self.keep(Part::Norms, gradient);
    }

    /// Whether the loss has a gradient by the hidden states, where the blocks' output has one or not.
    fn passes_gradients(&self, tracked: bool) -> bool {
        tracked || self.layout.norm.trained > 0
    }

    /// Gradient of the embedding: zeros with the tokens' rows added, which is a copy.
    fn bottom(&mut self) {
        let table = self.workers * self.layout.embedding.trained;
        self.ledger.keep(Part::Embedding, Use::Gradients, 2 * table);
        self.ledger.moment(|| "backward, embedding".into());
        // Where the embedding is the head, the sum replaces the loss's share.
        let left = if self.layout.tied { 2 } else { 1 };
        self.ledger.free(Part::Embedding, Use::Gradients, left * table);
    }
}

/// What the graph of one block keeps, in bytes, for a block that is not the first.
pub(super) fn kept_by_block(config: &PlanConfig, layout: &Layout) -> BTreeMap<Part, u64> {
    let tokens = (config.batch * config.length) as u64;
    let walk = Walk { layout, ledger: Ledger::default(), tokens, workers: 1, scratch: 0 };
    // Where blocks differ, the one that keeps most.
    let all = (0..layout.mixers.len()).map(|block| walk.kept(block, true));
    let kept = all.max_by_key(|kept| kept.mixer).unwrap_or_default();
    let norms = kept.first_norm + kept.second_norm;
    let parts = [(Part::Attention, kept.mixer), (Part::Mlp, kept.mlp), (Part::Norms, norms)];
    BTreeMap::from(parts.map(|(part, floats)| (part, 4 * floats)))
}
