//! Causal softmax attention over everything before (Vaswani et al., 1706.03762), with grouped
//! key heads (2305.13245) and an optional sliding window (Mistral, 2310.06825).

use super::projections::Projected;
use super::{AttnProjections, Compute, KvCache, MixContext, MixOutput, SequenceMixer, State, Taps};
use crate::Result;
use crate::positional::Positions;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use longburn_kernels::{Branch, Implementation, Mask, MaskSpec, masked_attention};

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

    fn computes_in(&self, _: Compute) -> bool {
        true
    }

    fn plain_attention(&self) -> Option<&AttnProjections> {
        self.window.is_none().then_some(&self.proj)
    }

    fn explain(&self, ctx: &MixContext<'_>, device: &Device) -> String {
        let what = match self.window {
            Some(window) => format!("causal attention, window {window}"),
            None => "causal attention".into(),
        };
        format!("{what}: {}", code(ctx, self.proj.head_dim(), device))
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
    attend_under(MaskSpec::causal().with_window(window), proj, x_BTD, ctx, state)
}

/// The same under the rules of `spec`.
pub(crate) fn attend_under(
    spec: MaskSpec,
    proj: &AttnProjections,
    x_BTD: Tensor<3>,
    ctx: &MixContext<'_>,
    state: Option<State>,
) -> Result<MixOutput> {
    let (q, new, taps) = project(proj, x_BTD, ctx)?;
    let cache = match KvCache::of(state)? {
        Some(cache) => cache.append(new.k, new.v, ctx.tokens)?,
        None => new,
    };
    let mixed = over(&cache, spec, q, ctx)?;
    let state = ctx.keep_state.then_some(State::Kv(cache));
    Ok(output(proj, mixed, ctx, taps, state))
}

/// Rotated queries of the new tokens, and what a cache is to hold of them.
pub(super) fn project(
    proj: &AttnProjections,
    x_BTD: Tensor<3>,
    ctx: &MixContext<'_>,
) -> Result<(Tensor<4>, KvCache, Taps)> {
    Ok(rotated(proj.project_unrotated(x_BTD, ctx)?, ctx))
}

/// Queries to attend with, and what a cache is to hold, of what was projected.
pub(super) fn rotated(mut new: Projected, ctx: &MixContext<'_>) -> (Tensor<4>, KvCache, Taps) {
    if let Some(rope) = ctx.rope {
        new.q = rope.rotate(new.q);
        if ctx.unrotated_cache.is_none() {
            new.k = rope.rotate(new.k);
        }
    }
    let cache = KvCache::new(new.k, new.v, ctx.tokens.clone());
    (new.q, cache, new.taps)
}

/// Rotated keys of `cache`, `[B, K, S, D]`.
pub(super) fn keys(cache: &KvCache, ctx: &MixContext<'_>) -> Tensor<4> {
    match ctx.unrotated_cache {
        Some(rope) => {
            let table = rope.table(&Positions::of(&cache.tokens), &cache.k.device());
            table.rotate(cache.k.clone())
        }
        None => cache.k.clone(),
    }
}

/// Attention of the new tokens over `cache`: q `[B, H, T, D]` -> `[B, H, T, E]`.
pub(super) fn over(
    cache: &KvCache,
    spec: MaskSpec,
    q_BHTD: Tensor<4>,
    ctx: &MixContext<'_>,
) -> Result<Tensor<4>> {
    let heads = q_BHTD.dims()[1];
    let mask = Mask::new(spec, ctx.tokens.clone(), cache.tokens.clone(), heads)?;
    let branch = Branch { q: q_BHTD, k: keys(cache, ctx), mask };
    Ok(masked_attention(&[branch], cache.v.clone(), &ctx.attention())?.out)
}

/// The output projection, with the taps that were asked for.
pub(super) fn output(
    proj: &AttnProjections,
    mixed_BHTD: Tensor<4>,
    ctx: &MixContext<'_>,
    taps: Taps,
    state: Option<State>,
) -> MixOutput {
    let taps = taps.with_mixed(ctx, || mixed_BHTD.clone());
    MixOutput { y: proj.output(mixed_BHTD), state, aux: None, taps }
}

/// Which attention code runs on `device` for heads of so many channels.
pub(crate) fn code(ctx: &MixContext<'_>, head_dim: usize, device: &Device) -> String {
    let probe = Tensor::<4>::zeros([1, 1, 1, head_dim], (device, ctx.compute.dtype()));
    let chosen = longburn_kernels::attention::implementation_for(ctx.implementation, &probe);
    let order = if ctx.deterministic { ", the same bits in every run" } else { "" };
    let reason = longburn_kernels::attention::passed_over(ctx.implementation, &probe);
    let reason = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    kernel_on(chosen, device) + &reason + order
}

/// What `--explain` says of the code that a kernel has chosen.
pub(super) fn kernel_on(
    chosen: std::result::Result<Implementation, longburn_kernels::Error>,
    device: &Device,
) -> String {
    match chosen {
        Ok(chosen) => format!("kernel `{chosen:?}` on {device:?}"),
        Err(error) => error.to_string(),
    }
}
