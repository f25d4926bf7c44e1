//! Causal softmax attention over everything before (Vaswani et al., 1706.03762), with grouped
//! key heads (2305.13245) and an optional sliding window (Mistral, 2310.06825).

use super::projections::Projected;
use super::{AttnProjections, KvCache, MixContext, MixOutput, SequenceMixer, State, Tap, Taps};
use crate::Result;
use crate::positional::Positions;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use longburn_kernels::{AttentionOptions, Branch, Mask, MaskSpec, masked_attention};

/// Configuration of [`Dense`].
#[derive(Clone, Debug, Default)]
pub struct DenseConfig {
    window: Option<usize>,
}

impl DenseConfig {
    /// No window.
    pub fn new() -> Self {
        Self::default()
    }

    /// See the last `window` positions only.
    pub fn with_window(mut self, window: Option<usize>) -> Self {
        self.window = window;
        self
    }

    /// Build around projections.
    pub fn init(&self, proj: AttnProjections) -> Dense {
        Dense { proj, window: self.window }
    }
}

/// Dense causal attention.
#[derive(Module, Debug)]
pub struct Dense {
    /// q, k, v, o
    pub proj: AttnProjections,
    #[module(skip)]
    pub(crate) window: Option<usize>,
}

impl SequenceMixer for Dense {
    fn forward(
        &self,
        x_BTD: Tensor<3>,
        ctx: &MixContext<'_>,
        state: Option<State>,
    ) -> Result<MixOutput> {
        attend(&self.proj, self.window, x_BTD, ctx, state)
    }

    fn explain(&self, ctx: &MixContext<'_>, device: &Device) -> String {
        let what = match self.window {
            Some(window) => format!("causal attention, window {window}"),
            None => "causal attention".into(),
        };
        format!("{what}: {}", code(ctx, device))
    }
}

/// Dense attention with a cache: what every mixer that is sparse in training only runs in
/// inference.
pub(crate) fn attend(
    proj: &AttnProjections,
    window: Option<usize>,
    x_BTD: Tensor<3>,
    ctx: &MixContext<'_>,
    state: Option<State>,
) -> Result<MixOutput> {
    let cache = state.map(|state| state.into_kv("dense attention")).transpose()?;
    let ready = ready(proj.project_unrotated(x_BTD, ctx)?, ctx, cache)?;
    let spec = MaskSpec::causal().with_window(window);
    let mask = Mask::new(spec, ctx.tokens.clone(), ready.cache.tokens.clone(), proj.heads())?;
    Ok(ready.attend(proj, mask, ctx)?.0)
}

/// New queries, and all keys and values so far.
pub(crate) struct Ready {
    /// `[B, H, T, D]`, rotated
    pub q: Tensor<4>,
    /// `[B, K, S, D]`, rotated
    pub k: Tensor<4>,
    /// Old and new keys and values.
    pub cache: KvCache,
    /// What was asked for.
    pub taps: Taps,
}

/// Rotate new queries and keys, and append the keys to the cache.
pub(crate) fn ready(
    mut new: Projected,
    ctx: &MixContext<'_>,
    cache: Option<KvCache>,
) -> Result<Ready> {
    if let Some(rope) = ctx.rope {
        new.q = rope.rotate(new.q);
        if ctx.unrotated_cache.is_none() {
            new.k = rope.rotate(new.k);
        }
    }
    let cache = match cache {
        Some(cache) => cache.append(new.k, new.v, ctx.tokens)?,
        None => KvCache { k: new.k, v: new.v, tokens: ctx.tokens.clone() },
    };
    let k = match ctx.unrotated_cache {
        Some(rope) => {
            let table = rope.table(&Positions::of(&cache.tokens), &cache.k.device());
            table.rotate(cache.k.clone())
        }
        None => cache.k.clone(),
    };
    Ok(Ready { q: new.q, k, cache, taps: new.taps })
}

impl Ready {
    /// Attend as `mask` says: the mixer's output, and the lse `[B, H, T]`.
    pub(crate) fn attend(
        self,
        proj: &AttnProjections,
        mask: Mask,
        ctx: &MixContext<'_>,
    ) -> Result<(MixOutput, Tensor<3>)> {
        let Self { q, k, cache, taps } = self;
        let options = AttentionOptions::default().with_implementation(ctx.implementation);
        let done = masked_attention(&[Branch { q, k, mask }], cache.v.clone(), &options)?;
        Ok((finish(proj, done.out, (cache, taps), ctx), done.lse))
    }
}

/// Taps, state and output projection of what attention gave, `[B, H, T, D]`.
pub(crate) fn finish(
    proj: &AttnProjections,
    out: Tensor<4>,
    (cache, mut taps): (KvCache, Taps),
    ctx: &MixContext<'_>,
) -> MixOutput {
    if ctx.taps.contains(&Tap::Mixed) {
        taps.mixed = Some(out.clone());
    }
    let state = ctx.keep_state.then_some(State::Kv(cache));
    MixOutput { y: proj.output(out), state, aux: None, taps }
}

/// Which attention code runs on `device`.
pub(crate) fn code(ctx: &MixContext<'_>, device: &Device) -> String {
    let probe = Tensor::<4>::zeros([1, 1, 1, 1], device);
    match longburn_kernels::attention::implementation_for(ctx.implementation, &probe) {
        Ok(chosen) => format!("kernel `{chosen:?}` on {device:?}"),
        Err(error) => error.to_string(),
    }
}
