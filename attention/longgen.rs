//! A Little Goes a Long Way: Efficient Long Context Training and Inference with Partial Contexts
//! (arXiv 2410.01485), LongGen for short.
//!
//! About the middle third of the layers keeps full attention ([`LayerSchedule`]), the others attend
//! by a static pattern over blocks of positions, in training and in inference alike: the nearest
//! blocks, and either the first ones or one in so many, another set in every key head. A query in
//! block m = position / `block` sees a key in block n ≤ m, not later than itself, when
//! m − n < `local_blocks`, or n < `sink_blocks`, or, with a stride, n + h·`step` + `offset` is a
//! multiple of it (S2-Attention, 2407.17678) with h the *key* head, so that the saving is one of
//! the cache. Whatever leaves a head's view never comes back, and [`LongGen`] drops it.
//!
//! *Deviations.* The paper does not state its sizes: the defaults here are its 2048 of 131072 tokens
//! in blocks of 64. Patterns go by position within the document, so that packed documents and padded
//! rows have those of their own runs (the authors' library has no documents). Pieces of a prefill may
//! begin anywhere, not on the borders of blocks alone. Strided heads may have sinks, too, if asked to.

use super::dense::{self, output, over, project};
use super::rows::indices;
use super::{
    AttnProjections, Compute, KvCache, MixContext, MixOutput, MixerConfig, SequenceMixer, State,
};
use crate::error::check_sizes;
use crate::{Error, Result};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use longburn_kernels::{BlockStride, MaskSpec};
use serde::{Deserialize, Serialize};

/// Configuration of [`LongGen`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LongGenConfig {
    /// Positions per block.
    pub block: usize,
    /// Nearest blocks that are seen whole, the query's own included.
    pub local_blocks: usize,
    /// First blocks that stay visible; one where not given, none beside a stride.
    pub sink_blocks: Option<usize>,
    /// One in so many of the blocks before the nearest is seen; none where not given.
    pub stride: Option<usize>,
    /// Phase of the stride between neighbouring key heads, 0 for heads that are all alike; the stride
    /// over the number of query heads, at least 1, where not given.
    pub step: Option<usize>,
    /// Phase of the first key head.
    pub offset: usize,
    /// So many of the last key heads see everything, beside a stride.
    pub dense_heads: usize,
}

impl Default for LongGenConfig {
    fn default() -> Self {
        Self {
            block: 64,
            local_blocks: 31,
            sink_blocks: None,
            stride: None,
            step: None,
            offset: 0,
            dense_heads: 0,
        }
    }
}

impl LongGenConfig {
    /// A window and its sinks, 2048 tokens together.
    pub fn new() -> Self {
        Self::default()
    }

    /// Choose the positions per block.
    pub fn with_block(mut self, positions: usize) -> Self {
        self.block = positions;
        self
    }

    /// Choose the number of nearest blocks.
    pub fn with_local_blocks(mut self, blocks: usize) -> Self {
        self.local_blocks = blocks;
        self
    }

    /// Choose the number of first blocks that stay visible.
    pub fn with_sink_blocks(mut self, blocks: usize) -> Self {
        self.sink_blocks = Some(blocks);
        self
    }

    /// See one in `stride` of the blocks before the nearest.
    pub fn with_stride(mut self, stride: usize) -> Self {
        self.stride = Some(stride);
        self
    }

    /// Choose the phase between key heads.
    pub fn with_step(mut self, step: usize) -> Self {
        self.step = Some(step);
        self
    }

    /// Choose the phase of the first key head.
    pub fn with_offset(mut self, offset: usize) -> Self {
        self.offset = offset;
        self
    }

    /// Let the last key heads see everything.
    pub fn with_dense_heads(mut self, heads: usize) -> Self {
        self.dense_heads = heads;
        self
    }

    /// First blocks that stay visible.
    fn sinks(&self) -> usize {
        self.sink_blocks.unwrap_or(usize::from(self.stride.is_none()))
    }

    /// The blocks beside the sinks as mask data.
    fn blocks(&self, key_heads: usize) -> BlockStride {
        let Some(stride) = self.stride else {
            return BlockStride::near(self.block, self.local_blocks, key_heads);
        };
        let blocks = BlockStride::new(self.block, self.local_blocks, stride, key_heads)
            .with_offset(self.offset)
            .with_dense_heads(self.dense_heads);
        BlockStride { step: self.step, ..blocks }
    }

    /// The pattern as mask data, for a layer with `key_heads`.
    pub fn spec(&self, key_heads: usize) -> MaskSpec {
        let sinks = self.sinks().saturating_mul(self.block);
        MaskSpec::causal().with_stride(self.blocks(key_heads)).with_sinks(sinks)
    }

    /// Most keys that each key head holds at one time while a document of `len` tokens is decoded,
    /// for `heads` query heads.
    ///
    /// ```
    /// use longburn::attention::LongGenConfig;
    /// let strided = LongGenConfig::new().with_block(8).with_local_blocks(4).with_stride(4);
    /// assert_eq!(strided.peak_tokens(256, 8, 1), [88]);
    /// ```
    pub fn peak_tokens(&self, len: usize, heads: usize, key_heads: usize) -> Vec<usize> {
        let (block, near) = (self.block.max(1), self.local_blocks.max(1));
        let blocks = self.blocks(key_heads);
        let of_head = |h: usize| {
            let Some(phase) = blocks.phase(h, heads) else { return len };
            // Blocks below n that the stride keeps.
            let multiples = |n: u128| n.div_ceil(blocks.stride as u128);
            let kept = |n: usize| {
                (multiples(n as u128 + phase as u128) - multiples(phase as u128)) as usize
            };
            // While the tokens of block m come.
            let held = |m: usize| {
                let gone = (m + 1).saturating_sub(near);
                let sinks = self.sinks().min(gone);
                let far = sinks + kept(gone) - kept(sinks);
                (far + near.min(m + 1) - 1) * block + (len - m * block).min(block)
            };
            match len.div_ceil(block) {
                0 => 0,
                1 => held(0),
                // The last block may be a short one.
                n => held(n - 1).max(held(n - 2)),
            }
        };
        (0..key_heads).map(of_head).collect()
    }

    /// Build around projections; `window` is the checkpoint's own sliding window.
    ///
    /// # Errors
    /// A block, a number of nearest blocks or a stride of 0, settings of a stride without one, more
    /// dense heads than there are, or a window.
    pub fn init(&self, proj: AttnProjections, window: Option<usize>) -> Result<LongGen> {
        self.check(proj.kv_heads(), window)?;
        let parts = self.parts(proj.heads(), proj.kv_heads());
        Ok(LongGen { proj, config: self.clone(), parts })
    }

    /// Whether it goes into a layer with so many key heads.
    pub(super) fn check(&self, key_heads: usize, window: Option<usize>) -> Result<()> {
        let bad = |field: &str, value: usize, expected: &str| {
            Err(Error::config("mixer longgen", field, value, expected))
        };
        let sizes = &[
            ("block", self.block),
            ("local_blocks", self.local_blocks),
            ("stride", self.stride.unwrap_or(1)),
        ];
        check_sizes("mixer longgen", sizes)?;
        if self.stride.is_none() {
            for (field, value) in [
                ("step", self.step),
                ("offset", nonzero(self.offset)),
                ("dense_heads", nonzero(self.dense_heads)),
            ] {
                if let Some(value) = value {
                    return bad(field, value, "nothing without a `stride`");
                }
            }
        }
        if self.dense_heads > key_heads {
            let expected = format!("at most the {key_heads} key heads");
            return bad("dense_heads", self.dense_heads, &expected);
        }
        if let Some(window) = window {
            return Err(Error::Unsupported {
                what: format!("longgen in a layer with a sliding window of {window}"),
                remedy: "its own nearest blocks are the window; leave this layer dense".into(),
            });
        }
        Ok(())
    }

    /// Key heads that keep the same keys, in the order of their first.
    fn parts(&self, heads: usize, key_heads: usize) -> Vec<Part> {
        let all = self.blocks(key_heads);
        let mut phases: Vec<(Option<usize>, Vec<usize>)> = Vec::new();
        for head in 0..key_heads {
            let phase = all.phase(head, heads);
            match phases.iter_mut().find(|(of, _)| *of == phase) {
                Some((_, heads)) => heads.push(head),
                None => phases.push((phase, vec![head])),
            }
        }
        let part = |(phase, heads): (Option<usize>, Vec<usize>)| {
            let blocks = |phase| BlockStride {
                key_heads: heads.len(),
                step: Some(0),
                offset: phase,
                dense_heads: 0,
                ..all
            };
            let spec = match phase {
                Some(phase) => self.spec(1).with_stride(blocks(phase)),
                None => MaskSpec::causal(),
            };
            Part { heads, spec }
        };
        phases.into_iter().map(part).collect()
    }
}

fn nonzero(value: usize) -> Option<usize> {
    (value > 0).then_some(value)
}

/// Key heads that see the same blocks.
#[derive(Clone, Debug)]
struct Part {
    heads: Vec<usize>,
    /// The mask of these heads alone.
    spec: MaskSpec,
}

/// Static sparse attention with a cache that drops what it will not need again.
#[derive(Module, Debug)]
pub struct LongGen {
    /// q, k, v, o
    pub proj: AttnProjections,
    #[module(skip)]
    config: LongGenConfig,
    #[module(skip)]
    parts: Vec<Part>,
}

impl SequenceMixer for LongGen {
    fn forward(
        &self,
        x_BTD: Tensor<3>,
        ctx: &MixContext<'_>,
        state: Option<State>,
    ) -> Result<MixOutput> {
        let (q, new, taps) = project(&self.proj, x_BTD, ctx)?;
        let (mixed, caches) = match state {
            None => {
                let mixed = over(&new, self.config.spec(self.proj.kv_heads()), q, ctx)?;
                let caches = match self.parts.len() {
                    _ if !ctx.keep_state => Vec::new(),
                    1 => vec![new],
                    _ => self.parts.iter().map(|part| new.heads(&part.heads)).collect(),
                };
                (mixed, caches)
            }
            Some(State::Heads(old)) if old.len() == self.parts.len() => {
                self.continued(q, new, old, ctx)?
            }
            Some(other) => return Err(other.foreign("longgen")),
        };
        let state = match ctx.keep_state {
            true => {
                let parts = caches.into_iter().zip(&self.parts);
                let kept = parts.map(|(cache, part)| {
                    let heads = cache.k.dims()[1];
                    cache.evict(&part.spec, heads)
                });
                Some(State::Heads(kept.collect::<Result<_>>()?))
            }
            false => None,
        };
        Ok(output(&self.proj, mixed, ctx, taps, state))
    }

    fn computes_in(&self, _: Compute) -> bool {
        true
    }

    fn explain(&self, ctx: &MixContext<'_>, device: &Device) -> String {
        let LongGenConfig { block, local_blocks, stride, .. } = &self.config;
        let far = match (self.config.sinks(), stride) {
            (0, None) => String::new(),
            (sinks, None) => format!(" and the first {sinks}"),
            (0, Some(stride)) => format!(" and one in {stride} per key head"),
            (sinks, Some(stride)) => {
                format!(", the first {sinks} and one in {stride} per key head")
            }
        };
        let code = dense::code(ctx, self.proj.head_dim(), device);
        format!("the {local_blocks} nearest blocks of {block}{far}: {code}")
    }
}

impl LongGen {
    /// Attention behind caches: out `[B, H, T, E]` and the caches with the new keys.
    fn continued(
        &self,
        q: Tensor<4>,
        new: KvCache,
        old: Vec<KvCache>,
        ctx: &MixContext<'_>,
    ) -> Result<(Tensor<4>, Vec<KvCache>)> {
        if let [part] = self.parts.as_slice() {
            let joined =
                old.into_iter().map(|old| old.append(new.k.clone(), new.v.clone(), ctx.tokens));
            let caches = joined.collect::<Result<Vec<_>>>()?;
            return Ok((over(&caches[0], part.spec.clone(), q, ctx)?, caches));
        }
        let group = self.proj.heads() / self.proj.kv_heads();
        let (mut outs, mut caches, mut order) = (Vec::new(), Vec::new(), Vec::new());
        for (part, old) in self.parts.iter().zip(old) {
            let queries = || part.heads.iter().flat_map(|h| h * group..(h + 1) * group);
            let new = new.heads(&part.heads);
            let cache = old.append(new.k, new.v, ctx.tokens)?;
            let q = q.clone().select(1, indices(queries(), &q.device()));
            outs.push(over(&cache, part.spec.clone(), q, ctx)?);
            caches.push(cache);
            order.extend(queries());
        }
        // Where query head h lies among the parts.
        let mut places: Vec<usize> = (0..order.len()).collect();
        places.sort_by_key(|place| order[*place]);
        let out = Tensor::cat(outs, 1);
        let index = indices(places.into_iter(), &out.device());
        Ok((out.select(1, index), caches))
    }
}

/// Which layers of a model keep full attention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerSchedule {
    full: Vec<bool>,
}

impl LayerSchedule {
    /// `full` neighbouring layers in the middle; of an odd number of others one more lies above.
    ///
    /// # Errors
    /// More full layers than layers, or no layer.
    ///
    /// ```
    /// use longburn::attention::{LayerSchedule, LongGenConfig};
    /// // Llama 2 7B at 128 k: the published saving of 62 % is that of 12 full layers.
    /// let schedule = LayerSchedule::middle_full(32, 12)?;
    /// let held = schedule.cached_keys(&LongGenConfig::new(), 131_072, 32, 32);
    /// let share = held as f64 / (32.0 * 32.0 * 131_072.0);
    /// assert!((share - 0.385).abs() < 5e-4);
    /// # Ok::<(), longburn::Error>(())
    /// ```
    pub fn middle_full(layers: usize, full: usize) -> Result<Self> {
        if full > layers {
            let expected = format!("at most the {layers} layers");
            return Err(Error::config("layer schedule", "full", full, expected));
        }
        let first = (layers - full) / 2;
        Self::from_list(layers, &(first..first + full).collect::<Vec<_>>())
    }

    /// The third in the middle, rounded to the nearest.
    ///
    /// # Errors
    /// No layer.
    pub fn middle_third(layers: usize) -> Result<Self> {
        Self::middle_full(layers, (layers + 1) / 3)
    }

    /// These layers, from 0. Other places than the middle are another method than the paper's.
    ///
    /// # Errors
    /// A layer that is not there or named twice, or no layer.
    pub fn from_list(layers: usize, list: &[usize]) -> Result<Self> {
        if layers == 0 {
            return Err(Error::config("layer schedule", "layers", 0, "at least 1"));
        }
        let mut full = vec![false; layers];
        for (i, &layer) in list.iter().enumerate() {
            let bad = |expected: String| {
                Err(Error::config("layer schedule", format!("full[{i}]"), layer, expected))
            };
            match full.get_mut(layer) {
                None => return bad(format!("below the number of layers, {layers}")),
                Some(true) => return bad("each layer once".into()),
                Some(seen) => *seen = true,
            }
        }
        Ok(Self { full })
    }

    /// Whether layer `layer` keeps full attention; layers that are not there do.
    pub fn is_full(&self, layer: usize) -> bool {
        self.full.get(layer).copied().unwrap_or(true)
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.full.len()
    }

    /// The mixer of every layer: dense where full, else `sparse`.
    pub fn mixers(&self, sparse: &MixerConfig) -> Vec<MixerConfig> {
        let of = |full: &bool| if *full { MixerConfig::Dense } else { sparse.clone() };
        self.full.iter().map(of).collect()
    }

    /// Most keys in all caches together, over layers and key heads, while a document of `len` tokens
    /// is decoded. Each takes 2 · head width numbers.
    pub fn cached_keys(
        &self,
        sparse: &LongGenConfig,
        len: usize,
        heads: usize,
        key_heads: usize,
    ) -> usize {
        let of_sparse: usize = sparse.peak_tokens(len, heads, key_heads).iter().sum();
        self.full.iter().map(|full| if *full { len * key_heads } else { of_sparse }).sum()
    }
}
