//! The layer: one projection for window attention and fast weights, two branches, their sum.

use super::fast::{EPS, FastWeights, Learner, norms};
use super::memory::LactState;
use super::plan::Plan;
use super::scan::{Inputs, scan};
use super::{FastOptimizer, InitialWeight, LactConfig};
use crate::attention::compute::wide;
use crate::attention::projections::{join_heads, split_heads};
use crate::attention::softplus::{inverse_softplus, softplus};
use crate::attention::{
    Compute, KvCache, Linear, MixContext, MixOutput, RmsNorm, SequenceMixer, State, Taps, dense,
};
use crate::{Error, Result};
use burn::module::{Module, Param};
use burn::tensor::activation::{sigmoid, silu};
use burn::tensor::{Device, Tensor};
use longburn_kernels::{MaskSpec, TokenMeta};

/// Window attention and fast weights in one layer.
#[derive(Module, Debug)]
pub struct Lact {
    /// `hidden -> 3·hidden`: q, k and v of both branches.
    pub qkv: Linear,
    /// `hidden -> hidden`
    pub out_proj: Linear,
    /// Of q, over the whole width.
    pub norm_q: Option<RmsNorm>,
    /// Of k.
    pub norm_k: Option<RmsNorm>,
    /// `[hidden, 2]`, factors of the q and k of the fast weights, per channel.
    pub qk_scale: Param<Tensor<2>>,
    /// `[hidden, 2]`, what is added to them.
    pub qk_offset: Param<Tensor<2>>,
    /// `[H_f, d_h, d]`
    pub w0: InitialWeight,
    /// `[H_f, d, d_h]`
    pub w1: InitialWeight,
    /// `[H_f, d_h, d]`
    pub w2: InitialWeight,
    /// `hidden -> 3·H_f`, head by head the rates of W0, W1 and W2.
    pub lr_proj: Linear,
    /// `hidden -> H_f`
    pub momentum_proj: Option<Linear>,
    /// Of what was read, per head; one weight for all heads.
    pub ttt_norm: RmsNorm,
    /// `hidden -> H_f`
    pub ttt_scale_proj: Option<Linear>,
    #[module(skip)]
    pub(crate) heads: usize,
    #[module(skip)]
    pub(super) config: LactConfig,
}

/// What the two branches say, before they are added and projected.
#[derive(Clone, Debug)]
pub struct Branches {
    /// Of window attention, `[B, T, D]`.
    pub window: Tensor<3>,
    /// Of the fast weights, normalised and weighed, `[B, T, D]`.
    pub fast: Tensor<3>,
    /// What the next call needs, where a state is wanted.
    pub state: Option<LactState>,
    /// q and k before rotation, where asked for.
    pub taps: Taps,
}

impl Lact {
    /// The settings.
    pub fn config(&self) -> &LactConfig {
        &self.config
    }

    /// The same weights with other settings.
    ///
    /// # Errors
    /// Settings that cannot work, or that other weights belong to.
    pub fn with_config(mut self, config: &LactConfig) -> Result<Self> {
        if !self.config.shares_weights_with(config) {
            return Err(Error::Unsupported {
                what: "settings of a LaCT layer that other weights belong to".into(),
                remedy: "change chunk, window, optimizer, norm or rates alone, or train new \
                         weights (Decoder::convert)"
                    .into(),
            });
        }
        config.widths(self.qkv.features().0)?;
        self.config = config.clone();
        Ok(self)
    }

    /// The weights with which every document begins.
    pub fn initial(&self) -> FastWeights {
        let weights = [&self.w0, &self.w1, &self.w2].map(InitialWeight::weights);
        FastWeights::new(weights, &self.config.rule())
    }

    /// Multiplications and additions in matrix products of the fast-weight branch, forward:
    /// `18·d·d_h` per head and token, `6·d·d_h` in the last chunk of a document, and about
    /// `30·d³` per matrix and step for the orthogonalisation.
    pub fn fast_operations(&self, tokens: &TokenMeta) -> u64 {
        let [_, heads, d_h, d] = self.w0.weights().dims();
        let muon = self.config.optimizer == FastOptimizer::Muon;
        let plan = Plan::new(tokens, self.config.chunk, None);
        heads as u64 * plan.operations(d, d_h, muon)
    }

    /// Both branches.
    ///
    /// # Shapes
    /// x_BTD `[B, T, D]`
    ///
    /// # Errors
    /// As [`SequenceMixer::forward`].
    pub fn branches(
        &self,
        x_BTD: Tensor<3>,
        ctx: &MixContext<'_>,
        state: Option<LactState>,
    ) -> Result<Branches> {
        let ([b, t, hidden], dtype) = (x_BTD.dims(), x_BTD.dtype());
        self.check(&x_BTD, ctx, state.as_ref())?;
        let part = |qkv: &Tensor<3>, i: usize| qkv.clone().narrow(2, i * hidden, hidden);
        let qkv = self.qkv.forward(x_BTD.clone());
        let (mut q, mut k, v) = (part(&qkv, 0), part(&qkv, 1), part(&qkv, 2));
        if let (Some(norm_q), Some(norm_k)) = (&self.norm_q, &self.norm_k) {
            (q, k) = (norm_q.forward(q), norm_k.forward(k));
        }
        // What learns is in f32, and so is what it learns from.
        let x_BTD = wide(x_BTD);
        let inputs = Inputs {
            q: self.fast(q.clone(), Some(0), ctx),
            k: self.fast(k.clone(), Some(1), ctx),
            v: self.fast(v.clone(), None, ctx),
            rates: self.rates(x_BTD.clone()),
        };
        let (cache, memory) = match state {
            Some(LactState { window, memory }) => (Some(window), Some(memory)),
            None => (None, None),
        };
        let [q, k, v] = [q, k, v].map(|x| self.split(x));
        let taps = Taps::of(ctx, &q, &k);
        let (window, cache) = self.attend(q, k, v, ctx, cache)?;

        let initial = self.initial();
        let learner = Learner::new(self.config.rule(), &initial);
        let chunk = self.config.chunk;
        let (read, memory) =
            scan(ctx.tokens, chunk, &initial, &learner, inputs, memory, ctx.keep_state);
        let heads = self.config.fast_heads;
        let mut fast = self.ttt_norm.forward(read.reshape([b * t, heads, hidden / heads]));
        if let Some(proj) = &self.ttt_scale_proj {
            fast = fast * silu(proj.forward(x_BTD)).reshape([b * t, heads, 1]);
        }
        let state = cache.zip(memory).map(|(window, memory)| LactState { window, memory });
        let fast = fast.reshape([b, t, hidden]).cast(dtype);
        Ok(Branches { window, fast, state, taps })
    }

    fn check(&self, x: &Tensor<3>, ctx: &MixContext<'_>, state: Option<&LactState>) -> Result<()> {
        let [b, _, hidden] = x.dims();
        let bad = |reason: String| Err(Error::shape("LaCT", reason));
        ctx.check_tokens("LaCT", x)?;
        if hidden != self.qkv.features().0 {
            let width = self.qkv.features().0;
            return bad(format!("{hidden} channels where the layer has {width}"));
        }
        if let Some(rows) = state.map(|s| s.memory.segment.len()).filter(|rows| *rows != b) {
            return bad(format!("{b} rows with a state of {rows}"));
        }
        if ctx.unrotated_cache.is_some() {
            return Err(Error::Unsupported {
                what: "an unrotated cache in a LaCT layer, whose weights learn from keys as they \
                       were rotated when they came"
                    .into(),
                remedy: "decode without `unrotated_cache`".into(),
            });
        }
        Ok(())
    }

    /// `[B, T, D] -> [B, H, T, D/H]`
    fn split(&self, x: Tensor<3>) -> Tensor<4> {
        split_heads(x, self.heads)
    }

    /// Queries (0), keys (1) or values (none) as the fast weights take them, `[B·T, D]`.
    fn fast(&self, x: Tensor<3>, which: Option<usize>, ctx: &MixContext<'_>) -> Tensor<2> {
        let ([b, t, hidden], x) = (x.dims(), wide(x));
        let flat = |x: Tensor<3>| x.reshape([b * t, hidden]);
        let Some(which) = which else {
            return flat(if self.config.silu_v { silu(x) } else { x });
        };
        let channels = |of: &Param<Tensor<2>>| of.val().narrow(1, which, 1).reshape([1, 1, hidden]);
        let x = silu(x * channels(&self.qk_scale) + channels(&self.qk_offset));
        let heads = self.config.fast_heads;
        let x = x.reshape([b, t, heads, hidden / heads]);
        let x = (x.clone() / norms(x).add_scalar(EPS)).reshape([b, t, hidden]);
        match ctx.rope.filter(|_| self.config.rotate) {
            // The rotation is that of the attention, and so are its heads.
            Some(rope) => flat(join_heads(rope.rotate(self.split(x)))),
            None => flat(x),
        }
    }

    /// Per head the rates of W0, W1 and W2, and the share of the step before: `[B·T, H·(3 or 4)]`.
    fn rates(&self, x: Tensor<3>) -> Tensor<2> {
        let [b, t, _] = x.dims();
        let heads = self.config.fast_heads;
        let base = inverse_softplus(self.config.base_lr);
        let rates = softplus(self.lr_proj.forward(x.clone()).add_scalar(base));
        let rates = rates.reshape([b * t, heads, 3]);
        match &self.momentum_proj {
            Some(proj) => {
                let share = sigmoid(proj.forward(x)).reshape([b * t, heads, 1]);
                Tensor::cat(vec![rates, share], 2).reshape([b * t, heads * 4])
            }
            None => rates.reshape([b * t, heads * 3]),
        }
    }

    /// Window attention and, where a state is wanted, the keys and values that the window still reaches.
    fn attend(
        &self,
        mut q: Tensor<4>,
        mut k: Tensor<4>,
        v: Tensor<4>,
        ctx: &MixContext<'_>,
        cache: Option<KvCache>,
    ) -> Result<(Tensor<3>, Option<KvCache>)> {
        if let Some(rope) = ctx.rope {
            (q, k) = (rope.rotate(q), rope.rotate(k));
        }
        let cache = match cache {
            Some(cache) => cache.append(k, v, ctx.tokens)?,
            None => KvCache::new(k, v, ctx.tokens.clone()),
        };
        let spec = MaskSpec::causal().with_window(Some(self.config.window));
        let out = dense::over(&cache, spec.clone(), q, ctx)?;
        // The rule is the same for all heads.
        let kept = ctx.keep_state.then(|| cache.evict(&spec, 1)).transpose()?;
        Ok((join_heads(out), kept))
    }
}

impl SequenceMixer for Lact {
    fn forward(
        &self,
        x_BTD: Tensor<3>,
        ctx: &MixContext<'_>,
        state: Option<State>,
    ) -> Result<MixOutput> {
        let state = match state {
            None => None,
            Some(State::Lact(state)) => Some(*state),
            Some(other) => return Err(other.foreign("LaCT")),
        };
        let Branches { window, fast, state, taps } = self.branches(x_BTD, ctx, state)?;
        let mixed = window + fast;
        let taps = taps.with_mixed(ctx, || self.split(mixed.clone()));
        let state = state.map(|state| State::Lact(Box::new(state)));
        Ok(MixOutput { y: self.out_proj.forward(mixed), state, aux: None, taps })
    }

    fn computes_in(&self, _: Compute) -> bool {
        true
    }

    fn explain(&self, ctx: &MixContext<'_>, device: &Device) -> String {
        let LactConfig { chunk, window, .. } = self.config;
        let how = match self.config.optimizer {
            FastOptimizer::Sgd => "gradient steps",
            FastOptimizer::Muon => "orthogonalised steps",
        };
        let code = dense::code(ctx, self.out_proj.features().0 / self.heads, device);
        format!(
            "fast weights, {how} by chunks of {chunk}, on {device:?}, beside attention over a \
             window of {window}: {code}"
        )
    }
}
