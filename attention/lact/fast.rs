//! The small gated networks whose weights are the memory: how they are read, the direction in
//! which a chunk of keys and values moves them, and the step itself.

use super::WeightNorm;
use crate::attention::newton_schulz::{NewtonSchulz, TINY};
use burn::tensor::{Tensor, activation::sigmoid};
use longburn_kernels::fused::swiglu;

/// Added to every norm that divides.
pub(super) const EPS: f64 = 1e-5;

/// One tensor for each of W0 `[N, H, d_h, d]`, W1 `[N, H, d, d_h]` and W2 `[N, H, d_h, d]`.
pub type Triple = [Tensor<4>; 3];

fn zip(a: Triple, b: Triple, f: impl Fn(Tensor<4>, Tensor<4>) -> Tensor<4>) -> Triple {
    let ([a0, a1, a2], [b0, b1, b2]) = (a, b);
    [f(a0, b0), f(a1, b1), f(a2, b2)]
}

/// Length of the last dimension, with a gradient of 0 at 0: `[.., D] -> [.., 1]`.
pub(super) fn norms<const N: usize>(x: Tensor<N>) -> Tensor<N> {
    x.square().sum_dim(N - 1).add_scalar(TINY).sqrt()
}

/// How fast weights learn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpdateRule {
    /// Orthogonalise the step; the size of the rates then drops out, and only what they are to
    /// each other within a chunk counts.
    pub orthogonal: Option<NewtonSchulz>,
    /// Add a share of the step before, which every chunk chooses.
    pub momentum: bool,
    /// Which weights are kept at the length of the initial ones.
    pub norm: WeightNorm,
    /// Take the lengths of the initial rows as constants.
    pub detach_norms: bool,
}

/// Weights of N networks of H heads, `f(x) = W1·(silu(W0·x) ⊙ W2·x)`.
#[derive(Clone, Debug)]
pub struct FastWeights {
    /// What tokens are read with.
    pub w: Triple,
    /// The sum of the initial weights and all steps, with [`WeightNorm::Pre`].
    pub main: Option<Triple>,
    /// The last step, with momentum.
    pub momentum: Option<Triple>,
}

impl FastWeights {
    /// Networks that have seen nothing yet.
    pub fn new(w: Triple, rule: &UpdateRule) -> Self {
        let main = (rule.norm == WeightNorm::Pre).then(|| w.clone());
        let momentum = rule.momentum.then(|| w.clone().map(|w| w.zeros_like()));
        Self { w, main, momentum }
    }

    /// N and H.
    pub fn dims(&self) -> [usize; 2] {
        let [n, h, ..] = self.w[0].dims();
        [n, h]
    }

    /// f of every token.
    ///
    /// # Shapes
    /// x_NHTD `[N, H, T, d]` -> the same
    pub fn apply(&self, x_NHTD: Tensor<4>) -> Tensor<4> {
        let [w0, w1, w2] = self.w.clone();
        let gate = x_NHTD.clone().matmul(w0.transpose());
        let up = x_NHTD.matmul(w2.transpose());
        swiglu(gate, up).matmul(w1.transpose())
    }

    /// Gradients of `Σ rate·⟨f(k), v⟩` by W0, W1 and W2, each with a rate of its own per token:
    /// steps are *added*, as the inner loss is its negative.
    ///
    /// # Shapes
    /// k, v `[N, H, C, d]`, rates `[N, H, C, >= 3]`
    pub fn gradients(&self, k: Tensor<4>, v: Tensor<4>, rates: &Tensor<4>) -> Triple {
        let [w0, w1, w2] = self.w.clone();
        let rate = |i: usize| rates.clone().narrow(3, i, 1);
        let gate = k.clone().matmul(w0.transpose());
        let up = k.clone().matmul(w2.transpose());
        let back = v.clone().matmul(w1);
        let s = sigmoid(gate.clone());
        let act = gate * s.clone();
        // silu'(g) = s + g·s·(1 − s)
        let slope = s.clone() + act.clone() * s.neg().add_scalar(1.0);
        let hidden = act.clone() * up.clone();
        [
            (back.clone() * up * slope).transpose().matmul(k.clone() * rate(0)),
            v.transpose().matmul(hidden * rate(1)),
            (back * act).transpose().matmul(k * rate(2)),
        ]
    }

    /// The same weights through `f`.
    pub(super) fn each(self, f: impl Fn(Tensor<4>) -> Tensor<4> + Copy) -> Self {
        Self {
            w: self.w.map(f),
            main: self.main.map(|t| t.map(f)),
            momentum: self.momentum.map(|t| t.map(f)),
        }
    }

    /// The first `n` networks.
    pub(super) fn first(self, n: usize) -> Self {
        if self.dims()[0] == n { self } else { self.each(|t| t.narrow(0, 0, n)) }
    }

    /// The networks from `n` on.
    pub(super) fn from(self, n: usize) -> Self {
        if n == 0 {
            return self;
        }
        self.each(|t| {
            let rest = t.dims()[0] - n;
            t.narrow(0, n, rest)
        })
    }

    /// All networks of several.
    pub(super) fn cat(mut parts: Vec<Self>) -> Self {
        if parts.len() == 1 {
            return parts.remove(0);
        }
        let of = |part: fn(&Self) -> Option<&Triple>| {
            let all: Option<Vec<&Triple>> = parts.iter().map(part).collect();
            all.map(|all| {
                [0, 1, 2].map(|i| Tensor::cat(all.iter().map(|t| t[i].clone()).collect(), 0))
            })
        };
        let (main, momentum) = (of(|p| p.main.as_ref()), of(|p| p.momentum.as_ref()));
        let w = [0, 1, 2].map(|i| Tensor::cat(parts.iter().map(|p| p.w[i].clone()).collect(), 0));
        Self { w, main, momentum }
    }

    /// All tensors, in a fixed order.
    pub(super) fn tensors(&self) -> Vec<Tensor<4>> {
        let parts = [Some(&self.w), self.main.as_ref(), self.momentum.as_ref()];
        parts.into_iter().flatten().flatten().cloned().collect()
    }

    /// The same with other tensors; none where there are too few.
    pub(super) fn with_tensors(&self, from: &mut impl Iterator<Item = Tensor<4>>) -> Option<Self> {
        let mut triple = || Some([from.next()?, from.next()?, from.next()?]);
        let w = triple()?;
        let main = if self.main.is_some() { Some(triple()?) } else { None };
        let momentum = if self.momentum.is_some() { Some(triple()?) } else { None };
        Some(Self { w, main, momentum })
    }
}

/// Moves fast weights, and keeps their rows at the length that the initial ones have.
#[derive(Clone, Debug)]
pub struct Learner {
    rule: UpdateRule,
    /// `[N or 1, H, rows, 1]`
    lengths: Triple,
}

impl Learner {
    /// Steps from these initial weights on.
    pub fn new(rule: UpdateRule, initial: &FastWeights) -> Self {
        let length = |w: Tensor<4>| {
            let length = norms(w);
            if rule.detach_norms { length.detach() } else { length }
        };
        Self { rule, lengths: initial.w.clone().map(length) }
    }

    /// One step for a chunk of C tokens.
    ///
    /// # Shapes
    /// k, v `[N, H, C, d]`; rates `[N, H, C, 3]`, with momentum `[N, H, C, 4]`
    pub fn update(
        &self,
        weights: FastWeights,
        k: Tensor<4>,
        v: Tensor<4>,
        rates: Tensor<4>,
    ) -> FastWeights {
        let mut step = weights.gradients(k, v, &rates);
        let FastWeights { w, main, momentum } = weights;
        let momentum = momentum.map(|last| {
            let share = rates.narrow(3, 3, 1).mean_dim(2);
            step = zip(step.clone(), last, |step, last| step + last * share.clone());
            step.clone()
        });
        if let Some(newton_schulz) = self.rule.orthogonal {
            step = step.map(|step| newton_schulz.orthogonalize(step));
        }
        let sum = zip(main.unwrap_or(w), step, |w, step| w + step);
        let main = (self.rule.norm == WeightNorm::Pre).then(|| sum.clone());
        let w = zip(sum, self.lengths.clone(), |w, length| {
            let scale = length / norms(w.clone()).add_scalar(EPS);
            w * scale
        });
        FastWeights { w, main, momentum }
    }
}
