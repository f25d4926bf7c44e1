//! A block, forward and backward, as the autodiff graph keeps and frees it.
//!
//! What an op keeps for its backward pass is what its gradient is a function of: a norm its input,
//! a matrix product the input whose other side is tracked (so a frozen layer keeps none), the
//! rotation nothing but its tables, attention q, k, v, its output and one number per query and
//! head, the gated activation gate and up, GELU its input. LayerNorm, and GELU by the tangens
//! hyperbolicus, are made of tensor ops, each of which keeps its own. Reshapes and sums keep
//! nothing; joining several heads copies.

use super::layout::{Layer, Layout, Weights};
use super::ledger::{Ledger, Part, Use};

/// The account of one step, and what stands in it.
pub(super) struct Walk<'a> {
    pub layout: &'a Layout,
    pub ledger: Ledger,
    /// Tokens of a micro-batch.
    pub tokens: u64,
    /// Micro-batches that are computed at the same time, each with a graph of its own.
    pub workers: u64,
    /// What attention holds in its backward pass beside what is read and written.
    pub scratch: u64,
}

impl Walk<'_> {
    /// Hold `width` numbers per token.
    pub(super) fn keep(&mut self, part: Part, width: u64) {
        self.ledger.keep(part, Use::Activations, self.workers * self.tokens * width);
    }

    pub(super) fn free(&mut self, part: Part, width: u64) {
        self.ledger.free(part, Use::Activations, self.workers * self.tokens * width);
    }

    /// Gradients of weights, one set per worker.
    pub(super) fn learn(&mut self, part: Part, weights: Weights) {
        self.ledger.keep(part, Use::Gradients, self.workers * weights.trained);
    }

    /// Forward through a block whose input carries a gradient or not. The input itself is held by
    /// the norm that reads it. Returns whether the output carries a gradient.
    pub(super) fn forward(&mut self, tracked: bool) -> bool {
        for (part, width) in self.kept(tracked) {
            self.keep(part, width);
        }
        self.tracked(tracked).1
    }

    /// Whether the output of attention's half of the block, and that of the block, is tracked.
    fn tracked(&self, x: bool) -> (bool, bool) {
        let layout = self.layout;
        let norm = layout.norm.trained > 0;
        let learns = |layer: &Layer| layer.learns || layer.weights.trained > 0;
        let middle = x
            || norm
            || layout.qk_norms.trained > 0
            || layout.qkv.iter().any(learns)
            || learns(&layout.o);
        (middle, middle || layout.gate_up.iter().any(learns) || learns(&layout.down))
    }

    /// What the graph of a block keeps, in numbers per token.
    pub(super) fn kept(&self, tracked: bool) -> Vec<(Part, u64)> {
        let l = self.layout;
        let (middle, _) = self.tracked(tracked);
        // What the feed-forward layer's norm reads.
        let seen = if l.parallel { tracked } else { middle };
        let norm = l.norm.trained > 0;
        let when = |condition: bool, width: u64| if condition { width } else { 0 };
        let ranks = |layers: &[Layer]| layers.iter().map(|layer| layer.rank).sum::<u64>();
        let inside = tracked || norm || l.qkv.iter().any(|layer| layer.learns);
        let attention = when(l.qkv.iter().any(|layer| layer.learns), l.hidden)
            + ranks(&l.qkv)
            + when(inside && l.qk_norm, l.q + l.kv)
            + when(inside, 2 * l.q + 2 * l.kv + l.heads)
            + when(l.o.learns, self.joined() + l.o.rank);
        let learns = l.gate_up.iter().any(|layer| layer.learns);
        let mlp = when(learns, l.hidden)
            + ranks(&l.gate_up)
            + when(seen || norm || learns, l.activation * l.inner)
            + when(l.down.learns, l.inner + l.down.rank);
        vec![
            (Part::Norms, l.norm_keeps(tracked)),
            (Part::Attention, attention),
            (Part::Norms, l.norm_keeps(seen)),
            (Part::Mlp, mlp),
        ]
    }

    /// Attention's output with the heads side by side: a copy where there are several.
    fn joined(&self) -> u64 {
        if self.layout.heads > 1 { self.layout.q } else { 0 }
    }

    /// Backward through a block whose output's gradient is held, as part of the residual stream;
    /// at the end it is the input's gradient that is.
    pub(super) fn backward(&mut self, tracked: bool, at: &str) {
        let l = self.layout;
        let mut kept = self.kept(tracked).into_iter().map(|(_, width)| width);
        let mut next = || kept.next().unwrap_or(0);
        let (first_norm, mut attention, second_norm, mut mlp) = (next(), next(), next(), next());
        let moment = |walk: &mut Self, part: &str| {
            walk.ledger.moment(|| format!("backward, {part}, {at}"));
        };

        // d(gate · up), or d(gelu(up)), beside what it is the gradient of and the copy that the
        // gradient of the weights is made from.
        let copied = if l.down.learns { l.inner } else { 0 };
        self.keep(Part::Mlp, l.inner + copied);
        self.learn(Part::Mlp, l.down.weights);
        moment(self, "mlp");
        let of_down = if l.down.learns { l.inner + l.down.rank } else { 0 };
        self.free(Part::Mlp, of_down + copied);
        mlp -= of_down;
        // d gate and d up, beside both and the gradient of their product.
        let read = l.gate_up.len() as u64;
        self.keep(Part::Mlp, read * l.inner);
        moment(self, "mlp");
        let of_activation = (l.activation * l.inner).min(mlp);
        self.free(Part::Mlp, l.inner + of_activation);
        mlp -= of_activation;
        // The two add up in the gradient of what they both read.
        for layer in &l.gate_up {
            self.keep(Part::Mlp, l.hidden);
            self.learn(Part::Mlp, layer.weights);
        }
        moment(self, "mlp");
        self.free(Part::Mlp, mlp + read * l.inner + (read - 1) * l.hidden);
        self.norm(second_norm, Part::Mlp);

        // Of the joined heads.
        self.keep(Part::Attention, l.q);
        self.learn(Part::Attention, l.o.weights);
        let of_o = if l.o.learns { self.joined() + l.o.rank } else { 0 };
        self.free(Part::Attention, of_o);
        attention -= of_o;
        let of_heads = (2 * l.q + 2 * l.kv + l.heads).min(attention);
        if of_heads > 0 {
            self.keep(Part::Attention, l.q + 2 * l.kv);
            let scratch = self.workers * self.scratch;
            self.ledger.keep(Part::Attention, Use::Activations, scratch);
            moment(self, "attention");
            self.ledger.free(Part::Attention, Use::Activations, scratch);
            self.free(Part::Attention, of_heads + l.q);
            attention -= of_heads;
        } else {
            self.free(Part::Attention, l.q);
        }
        // Rotated back, one after the other.
        self.keep(Part::Attention, l.q);
        moment(self, "attention");
        self.free(Part::Attention, l.q);
        self.learn(Part::Attention, l.qk_norms);
        for layer in l.qkv {
            self.learn(Part::Attention, layer.weights);
        }
        let into = if of_heads > 0 { l.q + 2 * l.kv } else { 0 };
        self.keep(Part::Attention, 2 * l.hidden);
        moment(self, "attention");
        self.free(Part::Attention, attention + into + l.hidden);
        self.norm(first_norm, Part::Attention);
    }

    /// Backward through a norm: frees what it kept and the gradient of its output, which `of`
    /// holds, and adds to the residual stream's gradient.
    fn norm(&mut self, kept: u64, of: Part) {
        let l = self.layout;
        if l.layer_norm {
            // Gradients of the normed and of the centred input, and of what divides it.
            self.keep(Part::Norms, 3 * l.hidden);
            self.ledger.moment(|| "backward, norm".into());
            self.free(Part::Norms, 3 * l.hidden);
        }
        self.keep(Part::Norms, l.hidden);
        self.learn(Part::Norms, l.norm);
        self.free(Part::Norms, kept + l.hidden);
        self.free(of, l.hidden);
    }
}
