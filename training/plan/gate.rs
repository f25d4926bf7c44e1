//! Attention that a gate of SeerAttention learns from, as `attention/seer/` computes: the model as it
//! is, without a graph unless blocks are recomputed, and beside it the gate's own.

use super::layout::{Layout, Training, Weights};
use super::own::{Sizes, attend};
use super::tape::{Tape, Value};
use crate::attention::SeerConfig;
use crate::attention::seer::{GateKind, HeadPool, SCORES_OF_PIECE};
use crate::kernel::attention::scratch;

/// A layer and the shape of its input.
pub(super) struct Layer<'a> {
    config: &'a SeerConfig,
    layout: &'a Layout,
    sizes: Sizes,
    /// Blocks of a row.
    blocks: u64,
    /// Of queries; none where pooled queries are taken as they are.
    query: Option<Weights>,
    key: Weights,
    /// Heads that the keys' layer has.
    key_heads: u64,
    norms: Weights,
    /// Width of gate queries and keys.
    wide: u64,
}

impl<'a> Layer<'a> {
    pub(super) fn new(
        config: &'a SeerConfig,
        layout: &'a Layout,
        training: &Training<'_>,
        sizes: Sizes,
    ) -> Self {
        let (d, heads) = (layout.head_dim, layout.heads);
        let kv_heads = layout.kv / d;
        let wide = config.gate_dim.map_or(d, |width| width as u64);
        let gate = |heads: u64, from: u64| training.gate((heads * from * wide) as usize);
        let (q_in, k_in) = (config.q_pool.len() as u64 * d, config.k_pool.len() as u64 * d);
        let single = config.q_pool.len() == 1 && wide == d && !config.force_double;
        let (query, key_heads) = match (config.gate, config.head_pool) {
            (GateKind::Prefill, _) if single => (None, heads),
            (GateKind::Prefill, _) => (Some(gate(heads, q_in)), kv_heads),
            (GateKind::Decode, HeadPool::Qproj) => (Some(gate(heads, d)), kv_heads),
            (GateKind::Decode, HeadPool::Qavgproj) => (Some(gate(kv_heads, d)), kv_heads),
            (GateKind::Decode, _) => (None, kv_heads),
        };
        let norms = match (config.gate, config.qk_norm) {
            (GateKind::Decode, true) => {
                let one = training.gate(wide as usize);
                one.and(one)
            }
            _ => Weights::default(),
        };
        let blocks = sizes.len.div_ceil((config.block as u64).max(1));
        let key = gate(key_heads, k_in);
        Self { config, layout, sizes, blocks, query, key, key_heads, norms, wide }
    }

    /// Those of attention, and the gate's.
    pub(super) fn weights(&self) -> Weights {
        let gate = self.query.unwrap_or_default().and(self.key).and(self.norms);
        self.layout.mixer(None).and(gate)
    }

    /// The output, and the gate's loss.
    pub(super) fn mix(&self, tape: &Tape, x: Value) -> (Value, Option<Value>) {
        let (l, tokens) = (self.layout, self.sizes.tokens());
        let [q, k, v] = l.qkv.each_ref().map(|layer| tape.linear(&x, tokens, layer));
        drop(x);
        let normed = |x: Value| match l.qk_norm {
            true => tape.op(&[&x], x.floats, &[&x], (0, 0)),
            false => x,
        };
        let (q, k) = (normed(q), normed(k));
        let rotated = [&q, &k].map(|x| tape.copy(x));
        let (len, heads) = (self.sizes.len as usize, l.heads as usize);
        let shape = [self.sizes.batch as usize, heads, len, l.head_dim as usize];
        let scratch = scratch(shape, (l.kv / l.head_dim) as usize, len) as u64;
        // The loss needs it, too.
        let lse = tape.made(tokens * l.heads);
        let mixed = attend(tape, [&rotated[0], &rotated[1], &v], &lse, scratch);
        drop(v);
        let joined = if l.heads > 1 { tape.copy(&mixed) } else { mixed.clone() };
        drop(mixed);
        let y = tape.linear(&joined, tokens, &l.o);
        drop(joined);
        let (q, k) = (tape.detached(&q), tape.detached(&k));
        let (q, k) = match self.config.gate {
            GateKind::Prefill => self.of_blocks(tape, q, k),
            GateKind::Decode => self.of_tokens(tape, q, k),
        };
        let loss = self.loss(tape, [q, k]);
        drop((rotated, lse));
        (y, Some(loss))
    }

    /// Pooled over blocks; `pools` of them side by side.
    fn pooled(&self, tape: &Tape, x: &Value, pools: usize) -> Value {
        let (n, block) = (self.blocks, (self.config.block as u64).min(self.sizes.len));
        let each = x.floats / self.sizes.len;
        // A last block that is cut off is filled up, and hidden pair by pair.
        let filled = (n * block > self.sizes.len).then(|| tape.made(each * n * block));
        let copied = tape.made(each * n * block);
        let all = tape.made(each * n * pools as u64);
        drop((filled, copied));
        all
    }

    fn linear(&self, tape: &Tape, x: &Value, weights: Weights, floats: u64) -> Value {
        tape.matmul(x, &tape.weights(weights), floats)
    }

    fn of_blocks(&self, tape: &Tape, q: Value, k: Value) -> (Value, Value) {
        let (c, l) = (self.config, self.layout);
        let places = self.sizes.batch * self.blocks;
        let of_heads = places * l.heads * self.wide;
        let mut q = self.pooled(tape, &q, c.q_pool.len());
        let mut k = self.pooled(tape, &k, c.k_pool.len());
        if self.key_heads * l.head_dim != l.kv {
            k = tape.made(places * l.q * c.k_pool.len() as u64);
        }
        if let Some(weights) = self.query {
            q = self.linear(tape, &q, weights, of_heads);
        }
        k = self.linear(tape, &k, self.key, places * self.key_heads * self.wide);
        let (q, k) = (tape.copy(&q), tape.copy(&k));
        let k = if k.floats == of_heads { k } else { tape.reduced(&k, of_heads) };
        (q, k)
    }

    fn of_tokens(&self, tape: &Tape, q: Value, k: Value) -> (Value, Value) {
        let (l, tokens) = (self.layout, self.sizes.tokens());
        let kv_heads = l.kv / l.head_dim;
        let mean = || tape.made(tokens * l.kv);
        let norm =
            Weights { all: self.norms.all / 2, trained: self.norms.trained / 2, ..self.norms };
        let placed = |x: Value| {
            let weights = tape.weights(norm);
            let x = match norm.all {
                0 => x,
                _ => tape.op(&[&x, &weights], x.floats, &[&x], (0, 0)),
            };
            tape.copy(&x)
        };
        let q = match (self.query, self.config.head_pool) {
            (Some(weights), HeadPool::Qproj) => {
                let q = tape.copy(&q);
                self.linear(tape, &q, weights, tokens * kv_heads * self.wide)
            }
            (Some(weights), _) => {
                self.linear(tape, &mean(), weights, tokens * kv_heads * self.wide)
            }
            (None, HeadPool::Qorig) => q,
            (None, _) => mean(),
        };
        let k = self.pooled(tape, &k, self.config.k_pool.len());
        let floats = self.sizes.batch * self.blocks * kv_heads * self.wide;
        let k = self.linear(tape, &k, self.key, floats);
        (placed(q), placed(k))
    }

    /// Pieces one after the other, whose gradients are kept.
    fn loss(&self, tape: &Tape, [q, k]: [Value; 2]) -> Value {
        let rows = match self.config.gate {
            GateKind::Prefill => self.blocks,
            GateKind::Decode => self.sizes.len,
        };
        let asked = q.floats / (self.sizes.batch * rows * self.wide).max(1);
        let of_row = self.sizes.batch * self.layout.heads * self.blocks;
        let rows = (SCORES_OF_PIECE as u64 / of_row.max(1)).clamp(1, rows);
        let gradients = [&q, &k].map(|x| tape.made(x.floats));
        drop(tape.made(self.piece([q.floats, k.floats], asked, rows)));
        let [of_q, of_k] = gradients;
        let sum = |x, gradient| tape.reduced(&tape.mul(x, gradient), 1);
        tape.add(sum(q, of_q), sum(k, of_k))
    }

    /// What the loss and the gradients of a piece of so many rows hold at once, beside gate queries and
    /// keys and their gradients, where `asked` heads have scores. See `attention/seer/target.rs`.
    fn piece(&self, inputs: [u64; 2], asked: u64, rows: u64) -> u64 {
        let of_head = self.sizes.batch * rows * self.blocks;
        let heads = match self.config.gate {
            GateKind::Prefill => self.layout.heads,
            GateKind::Decode => self.layout.kv / self.layout.head_dim,
        };
        let trace = Tape::trace(0, false, |tape, _| {
            let [q, k] = inputs.map(|floats| tape.weights(Weights::new(floats as usize, true)));
            let largest = tape.made(of_head * self.layout.heads);
            let targets = match heads == self.layout.heads {
                true => largest,
                false => tape.made(of_head * heads),
            };
            let mut scores = tape.scaled(tape.matmul(&q, &k, of_head * asked));
            if asked != heads {
                scores = tape.reduced(&scores, of_head * heads);
            }
            // Less the largest of the row, and less the logarithm of the sum.
            let shifted = tape.scaled(scores);
            let sum = tape.reduced(&tape.function(shifted.clone()), of_head / self.blocks * heads);
            let scores = tape.add(shifted, tape.function(sum));
            let entropy = tape.made(targets.floats);
            let divergence = tape.add(entropy, tape.mul(targets, scores));
            (tape.reduced(&divergence, 1), None)
        });
        trace.forward.max(trace.backward.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::MixerConfig;
    use crate::attention::seer::Pool;
    use crate::models::ModelConfig;
    use crate::training::plan::PlanConfig;

    /// Rows, tokens of each, query heads, key heads, channels of a head, tokens of a block, blocks.
    const B: u64 = 2;
    const T: u64 = 10;
    const H: u64 = 4;
    const KV: u64 = 2;
    const P: u64 = 3;
    const BLOCK: u64 = 4;
    const BLOCKS: u64 = 3;
    const SIZES: Sizes = Sizes { batch: B, len: T, hidden: H * P, threads: 1 };

    fn of<R>(config: &SeerConfig, sizes: Sizes, work: impl FnOnce(&Layer<'_>) -> R) -> R {
        let mut model = ModelConfig::llama(8, (H * P) as usize, 1, H as usize);
        model.num_key_value_heads = KV as usize;
        let plan = PlanConfig::new(model, T as usize).with_batch(B as usize);
        let mixer = MixerConfig::Seer(config.clone().with_block(BLOCK as usize));
        let layout = Layout::new(&plan, std::slice::from_ref(&mixer)).unwrap();
        let config = mixer.seer().unwrap();
        work(&Layer::new(config, &layout, &Training::of(&plan, true), sizes))
    }

    #[test]
    fn pooling_copies_blocks_that_are_filled_up() {
        let (each, padded) = (5, BLOCKS * BLOCK * 5);
        let forward = |sizes: Sizes| {
            of(&SeerConfig::new(), sizes, |layer| {
                let floats = sizes.len * each;
                let pool = |tape: &Tape, x| (layer.pooled(tape, &x, 3), None);
                Tape::trace(floats, false, pool).forward
            })
        };
        assert_eq!(forward(SIZES), T * each + 2 * padded + 3 * BLOCKS * each);
        // Whole blocks are not filled up.
        let whole = Sizes { len: BLOCKS * BLOCK, ..SIZES };
        assert_eq!(forward(whole), padded + padded + 3 * BLOCKS * each);
    }

    /// Scores of a piece of so many rows: the targets of all query heads, those that are learned, the
    /// scores, the same less the logarithm of their sums, and the entropy.
    #[test]
    fn a_piece_holds_four_tensors_of_scores_beside_targets() {
        let rows = 2;
        let of_head = B * rows * BLOCKS;
        of(&SeerConfig::new(), SIZES, |layer| {
            let piece = layer.piece([7, 9], H, rows);
            assert_eq!(piece, 4 * H * of_head + H * of_head / BLOCKS);
        });
        of(&SeerConfig::decode(), SIZES, |layer| {
            let piece = layer.piece([7, 9], KV, rows);
            assert_eq!(piece, H * of_head + 4 * KV * of_head + KV * of_head / BLOCKS);
        });
    }

    /// In the loss: the layer's output, queries and keys before and after rotation, a number per query
    /// and head; gate queries and keys with their gradients, the keys that they are made of; a piece.
    #[test]
    fn the_loss_is_beside_all_of_attention() {
        let config = SeerConfig::new().with_pools(&[Pool::Avg], &[Pool::Avg]);
        of(&config, SIZES, |layer| {
            let (tokens, width) = (B * T, H * P);
            let gates = 2 * B * BLOCKS * H * P;
            let piece = layer.piece([gates / 2; 2], H, BLOCKS);
            let trace = Tape::trace(tokens * width, false, |tape, x| layer.mix(tape, x));
            let attention = tokens * width + 2 * tokens * (width + KV * P) + tokens * H;
            let pooled = B * BLOCKS * H * P;
            assert_eq!(trace.forward, attention + pooled + 2 * gates + piece);
        });
    }
}
