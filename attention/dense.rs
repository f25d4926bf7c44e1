//! Causal softmax attention over everything before (Vaswani et al., 1706.03762), with grouped
//! key heads (2305.13245) and an optional sliding window (Mistral, 2310.06825).

use super::{AttnProjections, KvCache, MixContext, MixOutput, SequenceMixer, State, Tap};
use crate::positional::Positions;
use crate::Result;
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
    let mut new = proj.project_unrotated(x_BTD, ctx)?;
    if let Some(rope) = ctx.rope {
        new.q = rope.rotate(new.q);
        if ctx.unrotated_cache.is_none() {
            new.k = rope.rotate(new.k);
        }
    }
    let cache = match KvCache::of(state)? {
        Some(cache) => cache.append(new.k, new.v, ctx.tokens)?,
        None => KvCache { k: new.k, v: new.v, tokens: ctx.tokens.clone() },
    };
    let spec = MaskSpec::causal().with_window(window);
    let mask = Mask::new(spec, ctx.tokens.clone(), cache.tokens.clone(), proj.heads())?;
    let k = match ctx.unrotated_cache {
        Some(rope) => {
            let table = rope.table(&Positions::of(&cache.tokens), &cache.k.device());
            table.rotate(cache.k.clone())
        }
        None => cache.k.clone(),
    };
    let branch = Branch { q: new.q, k, mask };
    let options = AttentionOptions::default().with_implementation(ctx.implementation);
    let out = masked_attention(&[branch], cache.v.clone(), &options)?.out;
    let mut taps = new.taps;
    if ctx.taps.contains(&Tap::Mixed) {
        taps.mixed = Some(out.clone());
    }
    let state = ctx.keep_state.then_some(State::Kv(cache));
    Ok(MixOutput { y: proj.output(out), state, aux: None, taps })
}

/// Which attention code runs on `device`.
pub(crate) fn code(ctx: &MixContext<'_>, device: &Device) -> String {
    let probe = Tensor::<4>::zeros([1, 1, 1, 1], device);
    match longburn_kernels::attention::implementation_for(ctx.implementation, &probe) {
        Ok(chosen) => format!("kernel `{chosen:?}` on {device:?}"),
        Err(error) => error.to_string(),
    }
}
