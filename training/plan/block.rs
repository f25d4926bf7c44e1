//! A block, forward and backward, as the autodiff graph keeps and frees it.
//!
//! What an op keeps for its backward pass is what its gradient is a function of: a norm its input,
//! a matrix product the input whose other side is tracked (so a frozen layer keeps none), the
//! rotation nothing but its tables, attention q, k, v, its output and one number per query and
//! head, the gated activation gate and up, GELU its input. LayerNorm, and GELU by the tangens
//! hyperbolicus, are made of tensor ops, each of which keeps its own. Reshapes and sums keep
//! nothing; joining several heads copies. Mixers that are not attention alone have a trace of their
//! own, see `tape`.

use super::layout::{Layer, Layout, Weights};
use super::ledger::{Ledger, Part, Use};
use super::own::Own;

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

/// What the graph of a block keeps, in numbers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Kept {
    pub first_norm: u64,
    pub mixer: u64,
    pub second_norm: u64,
    pub mlp: u64,
}

impl Walk<'_> {
    /// Hold `width` numbers per token.
    pub(super) fn keep(&mut self, part: Part, width: u64) {
        self.hold(part, self.tokens * width);
    }

    pub(super) fn free(&mut self, part: Part, width: u64) {
        self.let_go(part, self.tokens * width);
    }

    /// Hold so many numbers in every micro-batch that is computed.
    fn hold(&mut self, part: Part, floats: u64) {
        self.ledger.keep(part, Use::Activations, self.workers * floats);
    }

    fn let_go(&mut self, part: Part, floats: u64) {
        self.ledger.free(part, Use::Activations, self.workers * floats);
    }

    /// Gradients of weights, one set per worker.
    pub(super) fn learn(&mut self, part: Part, weights: Weights) {
        self.ledger.keep(part, Use::Gradients, self.workers * weights.trained);
    }

    /// Forward through a block whose input carries a gradient or not. The input itself is held by
    /// the norm that reads it. Returns whether the output carries a gradient.
    pub(super) fn forward(&mut self, block: usize, tracked: bool) -> bool {
        let (kept, (_, out)) = (self.kept(block, tracked), self.tracked(block, tracked));
        if !out {
            self.pass(block);
        }
        self.hold(Part::Norms, kept.first_norm);
        if let Some(own) = self.layout.mixers[block].clone() {
            let most = own.trace(self.inside(tracked)).forward;
            self.hold(Part::Attention, most);
            self.ledger.moment(|| format!("forward, mixer, block {block}"));
            self.let_go(Part::Attention, most);
        }
        self.hold(Part::Attention, kept.mixer);
        self.hold(Part::Norms, kept.second_norm);
        self.hold(Part::Mlp, kept.mlp);
        out
    }

    /// What a block without a graph holds for a moment: the residual stream, and what is computed
    /// out of it.
    fn pass(&mut self, block: usize) {
        let l = self.layout;
        self.keep(Part::Norms, l.hidden);
        if self.layout.mixers[block].is_none() {
            self.keep(Part::Attention, l.hidden + 3 * l.q + 3 * l.kv);
            self.ledger.moment(|| format!("forward, attention, block {block}"));
            self.free(Part::Attention, l.hidden + 3 * l.q + 3 * l.kv);
        }
        self.keep(Part::Mlp, l.hidden + 3 * l.inner);
        self.ledger.moment(|| format!("forward, mlp, block {block}"));
        self.free(Part::Mlp, l.hidden + 3 * l.inner);
        self.free(Part::Norms, l.hidden);
    }

    /// Whether what the first norm says carries a gradient.
    fn inside(&self, x: bool) -> bool {
        x || self.layout.norm.trained > 0
    }

    /// Whether the output of the mixer's half of the block, and that of the block, is tracked.
    fn tracked(&self, block: usize, x: bool) -> (bool, bool) {
        let layout = self.layout;
        let learns = |layer: &Layer| layer.learns() || layer.weights().trained > 0;
        let middle = self.inside(x)
            || match &layout.mixers[block] {
                Some(own) => own.answers,
                None => {
                    layout.qk_norms.trained > 0
                        || layout.qkv.iter().any(learns)
                        || learns(&layout.o)
                }
            };
        let of_mlp = || layout.gate_up.iter().any(learns) || learns(&layout.down);
        (middle, middle || layout.has_mlp && of_mlp())
    }

    /// What the graph of a block keeps.
    pub(super) fn kept(&self, block: usize, tracked: bool) -> Kept {
        let l = self.layout;
        let (middle, _) = self.tracked(block, tracked);
        let norm = l.norm.trained > 0;
        let when = |condition: bool, width: u64| if condition { width } else { 0 };
        let ranks = |layers: &[Layer]| layers.iter().map(|layer| layer.rank).sum::<u64>();
        let mixer = match &l.mixers[block] {
            Some(own) => own.trace(self.inside(tracked)).kept,
            None => {
                let learns = l.qkv.iter().any(Layer::learns);
                let inside = tracked || norm || learns;
                let width = when(learns, l.hidden)
                    + ranks(&l.qkv)
                    + when(inside && l.qk_norm, l.q + l.kv)
                    + when(inside, 2 * l.q + 2 * l.kv + l.heads)
                    + when(l.o.learns(), self.joined() + l.o.rank);
                self.tokens * width
            }
        };
        let first_norm = self.tokens * l.norm_keeps(tracked);
        if !l.has_mlp {
            return Kept { first_norm, mixer, ..Kept::default() };
        }
        // What the feed-forward layer's norm reads.
        let seen = if l.parallel { tracked } else { middle };
        let learns = l.gate_up.iter().any(Layer::learns);
        let mlp = when(learns, l.hidden)
            + ranks(&l.gate_up)
            + when(seen || norm || learns, l.activation * l.inner)
            + when(l.down.learns(), l.inner + l.down.rank);
        Kept {
            first_norm,
            mixer,
            second_norm: self.tokens * l.norm_keeps(seen),
            mlp: self.tokens * mlp,
        }
    }

    /// Attention's output with the heads side by side: a copy where there are several.
    fn joined(&self) -> u64 {
        if self.layout.heads > 1 { self.layout.q } else { 0 }
    }

    /// Backward through a block whose output's gradient is held, as part of the residual stream;
    /// at the end it is the input's gradient that is.
    pub(super) fn backward(&mut self, block: usize, tracked: bool, at: &str) {
        let (kept, (_, out)) = (self.kept(block, tracked), self.tracked(block, tracked));
        if out && self.layout.has_mlp {
            self.mlp(kept, at);
        }
        match self.layout.mixers[block].clone() {
            Some(own) => {
                self.own(&own, tracked, at);
                let left = if out { self.layout.hidden } else { 0 };
                self.keep(Part::Attention, left);
            }
            None if out => self.attention(kept, at),
            None => {}
        }
        if out {
            self.norm(kept.first_norm, Part::Attention);
        }
    }

    fn moment(&mut self, part: &str, at: &str) {
        self.ledger.moment(|| format!("backward, {part}, {at}"));
    }

    /// Backward through a mixer that has a trace.
    fn own(&mut self, own: &Own, tracked: bool, at: &str) {
        let trace = *own.trace(self.inside(tracked));
        let (most, learned) = trace.backward;
        let gradients = |walk: &mut Self, floats: u64| {
            walk.ledger.keep(Part::Attention, Use::Gradients, walk.workers * floats);
        };
        self.let_go(Part::Attention, trace.kept);
        self.hold(Part::Attention, most);
        gradients(self, learned);
        self.moment("mixer", at);
        self.let_go(Part::Attention, most);
        gradients(self, trace.learned - learned);
    }

    fn mlp(&mut self, kept: Kept, at: &str) {
        let l = self.layout;
        let mut mlp = kept.mlp / self.tokens;
        // d(gate · up), or d(gelu(up)), beside what it is the gradient of and the copy that the
        // gradient of the weights is made from.
        let copied = if l.down.learns() { l.inner } else { 0 };
        self.keep(Part::Mlp, l.inner + copied);
        self.learn(Part::Mlp, l.down.weights());
        self.moment("mlp", at);
        let of_down = if l.down.learns() { l.inner + l.down.rank } else { 0 };
        self.free(Part::Mlp, of_down + copied);
        mlp -= of_down;
        // d gate and d up, beside both and the gradient of their product.
        let read = l.gate_up.len() as u64;
        self.keep(Part::Mlp, read * l.inner);
        self.moment("mlp", at);
        let of_activation = (l.activation * l.inner).min(mlp);
        self.free(Part::Mlp, l.inner + of_activation);
        mlp -= of_activation;
        // The two add up in the gradient of what they both read.
        for layer in &l.gate_up {
            self.keep(Part::Mlp, l.hidden);
            self.learn(Part::Mlp, layer.weights());
        }
        self.moment("mlp", at);
        self.free(Part::Mlp, mlp + read * l.inner + (read - 1) * l.hidden);
        self.norm(kept.second_norm, Part::Mlp);
    }

    fn attention(&mut self, kept: Kept, at: &str) {
        let l = self.layout;
        let mut attention = kept.mixer / self.tokens;
        // Of the joined heads.
        self.keep(Part::Attention, l.q);
        self.learn(Part::Attention, l.o.weights());
        let of_o = if l.o.learns() { self.joined() + l.o.rank } else { 0 };
        self.free(Part::Attention, of_o);
        attention -= of_o;
        let of_heads = (2 * l.q + 2 * l.kv + l.heads).min(attention);
        if of_heads > 0 {
            self.keep(Part::Attention, l.q + 2 * l.kv);
            let scratch = self.workers * self.scratch;
            self.ledger.keep(Part::Attention, Use::Activations, scratch);
            self.moment("attention", at);
            self.ledger.free(Part::Attention, Use::Activations, scratch);
            self.free(Part::Attention, of_heads + l.q);
            attention -= of_heads;
        } else {
            self.free(Part::Attention, l.q);
        }
        // Rotated back, one after the other.
        self.keep(Part::Attention, l.q);
        self.moment("attention", at);
        self.free(Part::Attention, l.q);
        self.learn(Part::Attention, l.qk_norms);
        for layer in l.qkv {
            self.learn(Part::Attention, layer.weights());
        }
        let into = if of_heads > 0 { l.q + 2 * l.kv } else { 0 };
        self.keep(Part::Attention, 2 * l.hidden);
        self.moment("attention", at);
        self.free(Part::Attention, attention + into + l.hidden);
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
        self.let_go(Part::Norms, kept);
        self.free(Part::Norms, l.hidden);
        self.free(of, l.hidden);
    }
}
