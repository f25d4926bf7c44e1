//! LaCT, as `attention/lact/` computes: whole rows of one document each, chunk by chunk.

use super::own::{Parts, Sizes, attend};
use super::state_space::softplus;
use super::tape::{Tape, Trace, Value};
use crate::attention::LactConfig;
use crate::attention::lact::{FastOptimizer, WeightNorm};
use crate::kernel::attention::scratch;

/// A layer and the shape of its input.
pub(super) struct Layer<'a> {
    pub config: &'a LactConfig,
    pub parts: &'a Parts,
    /// Of window attention.
    pub heads: u64,
    /// d and d_h.
    pub widths: (usize, usize),
    pub sizes: Sizes,
}

/// Fast weights of all rows, and what is remembered with them.
#[derive(Clone)]
struct Fast {
    w: [Value; 3],
    main: Option<[Value; 3]>,
    momentum: Option<[Value; 3]>,
}

/// Keys, values and rates of a chunk.
type Taught = [Value; 3];

/// Chunks of a row that are walked through one by one; more go on as these do.
const WALKED: u64 = 256;

impl Layer<'_> {
    /// The trace of the layer.
    pub(super) fn trace(&self, tracked: bool) -> Trace {
        let chunk = self.config.chunk as u64;
        if self.sizes.len.div_ceil(chunk) <= WALKED {
            return self.walked(tracked);
        }
        let of = |chunks: u64| {
            let sizes = Sizes { len: chunks * chunk, ..self.sizes };
            Self { sizes, ..*self }.walked(tracked)
        };
        let (half, all) = (WALKED / 2, WALKED);
        let beyond = self.sizes.len - all * chunk;
        of(all).extended(&of(half), beyond as f64 / (half * chunk) as f64)
    }

    fn walked(&self, tracked: bool) -> Trace {
        let floats = self.sizes.tokens() * self.sizes.hidden;
        Tape::trace(floats, tracked, |tape, x| (self.mix(tape, x), None))
    }

    fn mix(&self, tape: &Tape, x: Value) -> Value {
        let (Sizes { batch, len, hidden, .. }, config) = (self.sizes, self.config);
        let tokens = self.sizes.tokens();
        let wide = tokens * hidden;
        let qkv = tape.linear(&x, tokens, self.parts.layer("qkv"));
        let [mut q, mut k, v] = [wide; 3].map(|floats| tape.narrow(&qkv, floats));
        drop(qkv);
        if config.qk_norm {
            let norm = |x: Value, name| {
                let weight = tape.weights(self.parts.weights(name));
                tape.op(&[&x, &weight], wide, &[&x], (0, 0))
            };
            (q, k) = (norm(q, "norm_q.weight"), norm(k, "norm_k.weight"));
        }
        let (asked, key) = (self.fast(tape, q.clone()), self.fast(tape, k.clone()));
        let value = if config.silu_v { tape.silu(v.clone()) } else { v.clone() };
        let rates = self.rates(tape, &x);
        let window = self.window(tape, [q, k, v]);
        let read = self.scan(tape, asked, [key, value, rates]);
        let norm = tape.weights(self.parts.weights("ttt_norm.weight"));
        let mut fast = tape.op(&[&read, &norm], wide, &[&read], (0, 0));
        drop(read);
        if let Some(layer) = self.parts.maybe("ttt_scale_proj") {
            fast = tape.mul(fast, tape.silu(tape.linear(&x, tokens, layer)));
        }
        drop(x);
        let mixed = tape.add(window, fast);
        debug_assert_eq!(mixed.floats, batch * len * hidden);
        tape.linear(&mixed, tokens, self.parts.layer("out_proj"))
    }

    /// Queries or keys as the fast weights take them.
    fn fast(&self, tape: &Tape, x: Value) -> Value {
        let weights = |name: &str| tape.weights(self.parts.weights(name));
        let channels = |name| tape.narrow(&weights(name), self.sizes.hidden);
        let x = tape.add(tape.mul(x, channels("qk_scale")), channels("qk_offset"));
        let x = tape.silu(x);
        let norm = norms(tape, &x, self.sizes.tokens() * self.config.fast_heads as u64);
        let x = tape.div(x, tape.scaled(norm));
        match self.config.rotate {
            true => tape.copy(&tape.copy(&x)),
            false => x,
        }
    }

    fn rates(&self, tape: &Tape, x: &Value) -> Value {
        let tokens = self.sizes.tokens();
        let rates = tape.scaled(tape.linear(x, tokens, self.parts.layer("lr_proj")));
        let mut rates = softplus(tape, rates);
        if let Some(layer) = self.parts.maybe("momentum_proj") {
            let share = tape.function(tape.linear(x, tokens, layer));
            rates = tape.cat(vec![rates, share]);
        }
        rates
    }

    fn window(&self, tape: &Tape, [q, k, v]: [Value; 3]) -> Value {
        let Sizes { batch, len, hidden, .. } = self.sizes;
        let [q, k] = [q, k].map(|x| tape.copy(&x));
        let heads = self.heads.max(1);
        let shape = [batch, heads, len, hidden / heads].map(|size| size as usize);
        let scratch = scratch(shape, heads as usize, len as usize) as u64;
        let out = attend(tape, [&q, &k, &v], &tape.made(batch * heads * len), scratch);
        tape.copy(&out)
    }

    fn scan(&self, tape: &Tape, asked: Value, taught: Taught) -> Value {
        let Sizes { batch, len, hidden, .. } = self.sizes;
        let chunk = (self.config.chunk as u64).min(len);
        let chunks = len.div_ceil(chunk);
        let of_chunk = |c: u64| batch * chunk.min(len - c * chunk);
        let sizes: Vec<u64> = (0..chunks).map(of_chunk).collect();
        // Rows side by side are brought into the order of their chunks, and back.
        let gathers = batch > 1 && chunks > 1;
        let asked = if gathers { tape.copy(&asked) } else { asked };
        let mut asked = split(tape, &asked, &sizes, hidden).into_iter();
        let learns = &sizes[..sizes.len() - 1];
        let all: u64 = learns.iter().sum();
        let mut taught = taught.map(|x| {
            let each = x.floats / self.sizes.tokens();
            let parts = match all {
                0 => Vec::new(),
                _ => split(tape, &tape.reduced(&x, all * each), learns, each),
            };
            parts.into_iter()
        });
        let initial = self.initial(tape);
        let lengths = initial.w.clone().map(|w| {
            let rows = self.rows(&w);
            norms(tape, &w, rows)
        });
        let mut weights = initial;
        let mut answers = Vec::new();
        for (c, tokens) in sizes.iter().enumerate() {
            if let Some(x) = asked.next() {
                answers.push(self.apply(tape, &weights, x, *tokens));
            }
            let chunk = taught.each_mut().map(|parts| parts.next());
            if let [Some(k), Some(v), Some(rates)] = chunk {
                if c == 0 {
                    weights = self.begin(tape, weights);
                }
                weights = self.update(tape, weights, &lengths, [k, v, rates], *tokens);
            }
        }
        let y = tape.cat(answers);
        if gathers { tape.copy(&y) } else { y }
    }

    /// Numbers of W0, W1 or W2 of one row of tokens.
    fn matrix(&self) -> u64 {
        (self.config.fast_heads * self.widths.0 * self.widths.1) as u64
    }

    /// Rows of a tensor of weights.
    fn rows(&self, w: &Value) -> u64 {
        w.floats / self.widths.0.min(self.widths.1) as u64
    }

    fn initial(&self, tape: &Tape) -> Fast {
        let weights = |name: &str| tape.weights(self.parts.weights(name));
        let inner = |full: &str, left: &str, right: &str| match self.config.low_rank {
            0 => tape.view(&weights(full)),
            _ => {
                let product = tape.matmul(&weights(left), &weights(right), self.matrix());
                tape.add(product, tape.made(self.matrix() / self.config.fast_heads as u64))
            }
        };
        let w = [
            inner("w0", "w0.w_left", "w0.w_right"),
            tape.view(&weights("w1")),
            inner("w2", "w2.w_left", "w2.w_right"),
        ];
        let main = (self.config.norm == WeightNorm::Pre).then(|| w.clone());
        let momentum = self.config.momentum.then(|| w.clone().map(|w| tape.made(w.floats)));
        Fast { w, main, momentum }
    }

    /// Weights for every row, as views of the initial ones.
    fn begin(&self, tape: &Tape, initial: Fast) -> Fast {
        let floats = self.sizes.batch * self.matrix();
        let expanded = |w: Value| match self.sizes.batch {
            1 => w,
            _ => tape.narrow(&w, floats),
        };
        Fast {
            w: initial.w.map(expanded),
            main: initial.main.map(|w| w.map(expanded)),
            momentum: initial.momentum.map(|w| w.map(expanded)),
        }
    }

    fn apply(&self, tape: &Tape, weights: &Fast, x: Value, tokens: u64) -> Value {
        let inner = tokens * (self.config.fast_heads * self.widths.1) as u64;
        let [w0, w1, w2] = &weights.w;
        let (gate, up) = (tape.matmul(&x, w0, inner), tape.matmul(&x, w2, inner));
        let hidden = tape.op(&[&gate, &up], inner, &[&gate, &up], (0, 0));
        drop((gate, up));
        let y = tape.matmul(&hidden, w1, x.floats);
        drop(hidden);
        tape.copy(&y)
    }

    /// Of the kind that `FastWeights::gradients` and `Learner::update` compute.
    fn update(
        &self,
        tape: &Tape,
        weights: Fast,
        lengths: &[Value; 3],
        [k, v, rates]: Taught,
        tokens: u64,
    ) -> Fast {
        let inner = tokens * (self.config.fast_heads * self.widths.1) as u64;
        let floats = self.sizes.batch * self.matrix();
        let rate = || tape.narrow(&rates, tokens * self.config.fast_heads as u64);
        let Fast { w: [w0, w1, w2], main, momentum } = weights;
        let (gate, up) = (tape.matmul(&k, &w0, inner), tape.matmul(&k, &w2, inner));
        let back = tape.matmul(&v, &w1, inner);
        let s = tape.function(gate.clone());
        let act = tape.mul(gate, s.clone());
        let rest = tape.scaled(s.clone());
        let slope = tape.add(s, tape.mul(act.clone(), rest));
        let hidden = tape.mul(act.clone(), up.clone());
        let through = tape.mul(tape.mul(back.clone(), up), slope);
        let mut step = [
            tape.matmul(&through, &tape.mul(k.clone(), rate()), floats),
            tape.matmul(&v, &tape.mul(hidden, rate()), floats),
            tape.matmul(&tape.mul(back, act), &tape.mul(k, rate()), floats),
        ];
        let momentum = momentum.map(|last| {
            let share = tape.reduced(&rate(), self.sizes.batch * self.config.fast_heads as u64);
            step =
                zip(step.clone(), last, |step, last| tape.add(step, tape.mul(last, share.clone())));
            step.clone()
        });
        if self.config.optimizer == FastOptimizer::Muon {
            step = step.map(|step| self.orthogonal(tape, step));
        }
        let sum = zip(main.unwrap_or([w0, w1, w2]), step, |w, step| tape.add(w, step));
        let main = (self.config.norm == WeightNorm::Pre).then(|| sum.clone());
        let w = zip(sum, lengths.clone(), |w, length| {
            let norm = norms(tape, &w, self.rows(&w));
            tape.mul(w, tape.div(length, tape.scaled(norm)))
        });
        Fast { w, main, momentum }
    }

    /// The iteration of Newton and Schulz.
    fn orthogonal(&self, tape: &Tape, step: Value) -> Value {
        let floats = step.floats;
        let (small, large) = (self.widths.0.min(self.widths.1), self.widths.0.max(self.widths.1));
        let square = floats / large as u64 * small as u64;
        let networks = floats / (small * large) as u64;
        let sum = tape.reduced(&tape.mul(step.clone(), step.clone()), networks);
        let norm = tape.scaled(tape.function(tape.scaled(sum)));
        let mut x = tape.div(step, norm);
        for _ in 0..5 {
            let s = tape.matmul(&x, &x, square);
            let twice = tape.scaled(tape.matmul(&s, &s, square));
            let s = tape.add(tape.scaled(s), twice);
            let product = tape.matmul(&s, &x, floats);
            x = tape.add(tape.scaled(x), product);
        }
        x
    }
}

fn zip(a: [Value; 3], b: [Value; 3], f: impl Fn(Value, Value) -> Value) -> [Value; 3] {
    let ([a0, a1, a2], [b0, b1, b2]) = (a, b);
    [f(a0, b0), f(a1, b1), f(a2, b2)]
}

/// Lengths of the rows of x.
fn norms(tape: &Tape, x: &Value, rows: u64) -> Value {
    let square = tape.mul(x.clone(), x.clone());
    tape.function(tape.scaled(tape.reduced(&square, rows)))
}

/// x cut by halves into parts of so many tokens with `each` numbers.
fn split(tape: &Tape, x: &Value, sizes: &[u64], each: u64) -> Vec<Value> {
    if sizes.len() <= 1 {
        return vec![x.clone(); sizes.len()];
    }
    let (left, right) = sizes.split_at(sizes.len() / 2);
    let part = |sizes: &[u64]| {
        let part = tape.narrow(x, sizes.iter().sum::<u64>() * each);
        split(tape, &part, sizes, each)
    };
    let mut parts = part(left);
    parts.extend(part(right));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::MixerConfig;
    use crate::models::ModelConfig;
    use crate::training::plan::PlanConfig;
    use crate::training::plan::layout::Training;

    /// Rows, tokens of each, width, channels of a head and inside, of two heads.
    const B: u64 = 2;
    const T: u64 = 4;
    const D: u64 = 8;
    const H: u64 = 2;
    const WIDTHS: (u64, u64) = (4, 6);

    /// With all weights training.
    fn of<R>(config: &LactConfig, batch: u64, work: impl FnOnce(&Layer<'_>) -> R) -> R {
        let plan = PlanConfig::new(ModelConfig::llama(8, D as usize, 1, 2), 1);
        let mixer = MixerConfig::Lact(config.clone());
        let parts = Parts::new(&mixer, D as usize, &Training::of(&plan, false));
        let sizes = Sizes { batch, len: T, hidden: D, threads: 1 };
        let widths = config.widths(D as usize).unwrap();
        assert_eq!((widths.0 as u64, widths.1 as u64), WIDTHS);
        work(&Layer { config, parts: &parts, heads: 2, widths, sizes })
    }

    /// Full matrices, plain steps in chunks of two tokens.
    fn plain() -> LactConfig {
        LactConfig::new()
            .with_fast_heads(H as usize)
            .with_inter_multi(1.5)
            .with_low_rank(0)
            .with_chunk(2)
            .with_momentum(false)
            .with_optimizer(FastOptimizer::Sgd)
    }

    /// Kept by the iteration beside what it is given: the norm and what it is the root of; each time
    /// the matrix, its square and the polynomial of that.
    fn iteration() -> u64 {
        let (d, inner) = WIDTHS;
        2 * B * H + 5 * (B * H * d * inner + 2 * B * H * d * d)
    }

    #[test]
    fn the_iteration_keeps_three_matrices_each_time() {
        let floats = B * H * WIDTHS.0 * WIDTHS.1;
        of(&plain(), B, |layer| {
            let trace = Tape::trace(floats, true, |tape, x| (layer.orthogonal(tape, x), None));
            assert_eq!(trace.kept, floats + iteration());
            assert!(trace.by_library);
        });
    }

    #[test]
    fn reading_keeps_both_sides_of_the_gate() {
        let (x, inner) = (B * T * D, B * T * H * WIDTHS.1);
        of(&plain(), 1, |layer| {
            let trace = Tape::trace(x, true, |tape, x| {
                let weights = layer.initial(tape);
                (layer.apply(tape, &weights, x, B * T), None)
            });
            assert_eq!(trace.kept, x + 3 * inner);
            // What is read, and its copy in the order of the tokens.
            assert_eq!(trace.forward, x + 3 * inner + 2 * x);
        });
    }

    /// Silu of the scaled input, over its length; rotated, which copies twice.
    #[test]
    fn queries_of_the_fast_weights_are_rotated_in_copies() {
        let (x, lengths) = (B * T * D, B * T * H);
        for (rotate, copies) in [(true, 2), (false, 0)] {
            of(&plain().with_rotate(rotate), B, |layer| {
                let trace = Tape::trace(x, true, |tape, x| (layer.fast(tape, x), None));
                // The input, scaled, its sigmoid, their product; lengths and their squares.
                assert_eq!(trace.kept, 4 * x + 2 * lengths);
                assert_eq!(trace.forward, trace.kept + (1 + copies) * x);
            });
        }
    }

    #[test]
    fn the_window_keeps_rotated_copies() {
        let (x, lse) = (B * T * D, B * T * 2);
        of(&plain(), B, |layer| {
            let trace = Tape::trace(x, true, |tape, x| {
                (layer.window(tape, [x.clone(), x.clone(), x]), None)
            });
            // Values as they are, queries, keys, what is read.
            assert_eq!(trace.kept, 4 * x + lse);
            assert_eq!(trace.forward, 5 * x + lse);
        });
    }

    /// Two chunks: the first teaches the second.
    fn scanned(config: &LactConfig, batch: u64) -> Trace {
        of(config, batch, |layer| {
            let tokens = layer.sizes.tokens();
            let rates = tokens * H * (3 + u64::from(config.momentum));
            Tape::trace(tokens * D, true, |tape, x| {
                let rates = tape.reduced(&x, rates);
                let taught = [x.clone(), x.clone(), rates];
                (layer.scan(tape, x, taught), None)
            })
        })
    }

    /// What a scan of two chunks keeps.
    fn kept(batch: u64) -> u64 {
        let (d, d_h) = WIDTHS;
        let (asked, half) = (batch * T * D, batch * T / 2);
        let (inner, rates) = (half * H * d_h, half * H * 3);
        let weights = 3 * batch * H * d * d_h;
        // Gate, up and hidden of both chunks; the second reads weights that have learned.
        let read = 2 * 3 * inner + weights;
        // Keys and values, keys times a rate twice; twelve between the layers; the sums.
        let learned = 4 * half * D + rates + 12 * inner + weights;
        // Lengths of rows: of the sums, their squares and quotients; of the first weights, twice.
        let (lengths, first) = (3 * batch * H * d_h, 3 * H * d_h);
        asked + read + learned + 3 * lengths + 2 * first
    }

    #[test]
    fn a_chunk_that_teaches_is_kept() {
        assert_eq!(scanned(&plain(), 1).kept, kept(1));
        assert_eq!(scanned(&plain(), B).kept, kept(B));
        // One row more, whose chunks are put in order and back: queries and answers are there twice.
        let rows = scanned(&plain(), B);
        assert_eq!(rows.forward, rows.kept + 3 * B * T * D);
        let row = scanned(&plain(), 1);
        assert_eq!(row.forward, row.kept + 2 * T * D);
    }

    #[test]
    fn momentum_keeps_the_step_before() {
        let config = plain().with_momentum(true);
        let weights = 3 * H * WIDTHS.0 * WIDTHS.1;
        // A share per token; the first momentum is one for all rows.
        assert_eq!(scanned(&config, 1).kept, kept(1) + T / 2 * H + weights);
        assert_eq!(scanned(&config, B).kept, kept(B) + B * T / 2 * H + weights);
    }

    #[test]
    fn steps_are_orthogonal_with_muon() {
        let config = plain().with_optimizer(FastOptimizer::Muon);
        let step = B * H * WIDTHS.0 * WIDTHS.1;
        assert_eq!(scanned(&config, B).kept, kept(B) + 3 * (step + iteration()));
    }

    /// Far beyond what is walked through, the account goes on as it did.
    #[test]
    fn many_chunks_are_counted_as_many() {
        let config = LactConfig::new().with_fast_heads(2).with_low_rank(0).with_chunk(2);
        let peak = |length: usize| {
            let model = ModelConfig::llama(64, 8, 2, 2).with_max_positions(1 << 20);
            let mixer = MixerConfig::Lact(config.clone().with_window(4));
            PlanConfig::new(model, length).with_mixer(mixer).with_threads(1).init().unwrap()
        };
        let chunks = |n: u64| 2 * n as usize;
        let of = |n: u64| peak(chunks(n)).total().activations as f64;
        let within = (of(WALKED) - of(WALKED / 2)) / (WALKED / 2) as f64;
        let beyond = (of(4 * WALKED) - of(2 * WALKED)) / (2 * WALKED) as f64;
        assert!((0.95..1.05).contains(&(beyond / within)), "a chunk takes {within}, {beyond}");
    }
}
