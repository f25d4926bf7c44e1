//! LongLoRA: Efficient Fine-tuning of Long-Context Large Language Models (arXiv 2309.12307).
//!
//! Shifted sparse attention (S²-Attn, §3.2): in training, tokens attend within groups, and half
//! of the heads use groups shifted by half a group. In inference attention is dense, which is the
//! point of the method.
//!
//! *Deviations.* The default is the leak-free form (segments, no wrap-around), as the authors'
//! own variable-length path has it; the rolled form of the paper's pseudo-code, in which the
//! first half group sees the end of the sequence, is [`LongLoraForm::Rolled`]. Groups follow each
//! document's own length, so that batches with padding and packed rows are right.

use super::{AttnProjections, Compute, MixContext, MixOutput, Phase, SequenceMixer, State};
use crate::attention::dense;
use crate::{Error, Result};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use longburn_kernels::{Branch, GroupSize, Groups, Mask, MaskSpec, TokenMeta, masked_attention};
use serde::{Deserialize, Serialize};

/// How the shifted heads treat the two ends of the sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LongLoraForm {
    /// The first and the last half group are groups of their own: nothing leaks.
    #[default]
    Segment,
    /// Compatibility: roll by half a group and attend in whole groups, so that the last group
    /// of the shifted heads holds the tail *and* the first half group, which sees the tail.
    Rolled,
}

/// Configuration of [`LongLora`]; defaults as in the paper (group = a quarter of the length).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LongLoraConfig {
    /// One group in this many of the length; used where `group_size` is not set.
    pub group_ratio: usize,
    /// Tokens per group, whatever the length.
    pub group_size: Option<usize>,
    /// Shift half of the heads.
    pub shift: bool,
    /// Treatment of the ends.
    pub form: LongLoraForm,
    /// Accept lengths that are no multiple of the group; the last group is then shorter.
    pub ragged: bool,
}

impl Default for LongLoraConfig {
    fn default() -> Self {
        Self {
            group_ratio: 4,
            group_size: None,
            shift: true,
            form: LongLoraForm::Segment,
            ragged: false,
        }
    }
}

impl LongLoraConfig {
    /// The paper's settings.
    pub fn new() -> Self {
        Self::default()
    }

    /// A fixed group instead of a share of the length.
    pub fn with_group_size(mut self, tokens: usize) -> Self {
        self.group_size = Some(tokens);
        self
    }

    /// One group in `parts` of the length.
    pub fn with_group_ratio(mut self, parts: usize) -> Self {
        (self.group_size, self.group_ratio) = (None, parts);
        self
    }

    /// Switch the shift of half of the heads.
    pub fn with_shift(mut self, shift: bool) -> Self {
        self.shift = shift;
        self
    }

    /// Choose the form.
    pub fn with_form(mut self, form: LongLoraForm) -> Self {
        self.form = form;
        self
    }

    /// Accept lengths that are no multiple of the group.
    pub fn with_ragged(mut self, ragged: bool) -> Self {
        self.ragged = ragged;
        self
    }

    /// The groups as mask data.
    pub fn groups(&self) -> Groups {
        let size = match self.group_size {
            Some(size) => GroupSize::Fixed(size),
            None => GroupSize::Ratio(self.group_ratio),
        };
        Groups { size, shift: self.shift, ragged: self.ragged }
    }

    /// Build around projections; `window` is the checkpoint's own sliding window.
    ///
    /// # Errors
    /// Group or ratio 0, an odd group or an odd number of heads with a shift, the rolled form
    /// with ragged lengths.
    pub fn init(&self, proj: AttnProjections, window: Option<usize>) -> Result<LongLora> {
        self.check(proj.heads())?;
        Ok(LongLora { proj, window, config: self.clone() })
    }

    /// Whether it goes into a layer with so many query heads.
    pub(super) fn check(&self, heads: usize) -> Result<()> {
        let bad = |field: &str, value: &dyn std::fmt::Display, expected: &str| {
            Err(Error::config("mixer longlora", field, value, expected))
        };
        match self.group_size {
            Some(0) => return bad("group_size", &0, "at least 1 token"),
            Some(size) if self.shift && size % 2 != 0 => {
                return bad("group_size", &size, "an even number (half a group is the shift)");
            }
            None if self.group_ratio == 0 => return bad("group_ratio", &0, "at least 1"),
            _ => {}
        }
        if self.shift && !heads.is_multiple_of(2) {
            return bad("heads", &heads, "an even number (half of the heads are shifted)");
        }
        if self.form == LongLoraForm::Rolled && self.ragged {
            return bad("ragged", &true, "false with form = \"rolled\"");
        }
        Ok(())
    }
}

/// Shifted sparse attention in training, dense attention in inference.
#[derive(Module, Debug)]
pub struct LongLora {
    /// q, k, v, o
    pub proj: AttnProjections,
    #[module(skip)]
    pub(crate) window: Option<usize>,
    #[module(skip)]
    config: LongLoraConfig,
}

impl SequenceMixer for LongLora {
    fn forward(
        &self,
        x_BTD: Tensor<3>,
        ctx: &MixContext<'_>,
        state: Option<State>,
    ) -> Result<MixOutput> {
        if ctx.phase == Phase::Infer {
            return dense::attend(&self.proj, self.window, x_BTD, ctx, state);
        }
        let remedy = "it is for training on whole sequences; run inference (dense) instead";
        ctx.refuse_state(state.as_ref(), "shifted sparse attention with a cache", remedy)?;
        let new = self.proj.project(x_BTD, ctx)?;
        let out = match self.config.form {
            LongLoraForm::Segment => {
                let spec =
                    MaskSpec::causal().with_window(self.window).with_groups(self.config.groups());
                let tokens = ctx.tokens.clone();
                let mask = Mask::new(spec, tokens.clone(), tokens, self.proj.heads())?;
                let branch = Branch { q: new.q, k: new.k, mask };
                masked_attention(&[branch], new.v, &ctx.attention())?.out
            }
            LongLoraForm::Rolled => self.rolled(new.q, new.k, new.v, ctx)?,
        };
        Ok(dense::output(&self.proj, out, ctx, new.taps, None))
    }

    fn computes_in(&self, _: Compute) -> bool {
        true
    }

    fn plain_attention(&self) -> Option<&AttnProjections> {
        self.window.is_none().then_some(&self.proj)
    }

    fn explain(&self, ctx: &MixContext<'_>, device: &Device) -> String {
        let code = dense::code(ctx, self.proj.head_dim(), device);
        match ctx.phase {
            Phase::Train => format!("shifted sparse attention (training): {code}"),
            Phase::Infer => format!("causal attention (inference): {code}"),
        }
    }
}

impl LongLora {
    /// The paper's pseudo-code: the second half of the heads is rolled left by half a group,
    /// attends in whole groups by its rolled index, and is rolled back.
    fn rolled(
        &self,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
        ctx: &MixContext<'_>,
    ) -> Result<Tensor<4>> {
        let [b, h, t, d] = q.dims();
        if ctx.tokens.has_segments() || self.window.is_some() {
            return Err(Error::Unsupported {
                what: "the rolled form with packed documents, padding or a sliding window".into(),
                remedy: "use form = \"segment\"".into(),
            });
        }
        let groups = Groups { shift: false, ..self.config.groups() };
        // Checks what `shift` would, which the unshifted groups below no longer see.
        let group = self.config.groups().size_for(t)?;
        let index = TokenMeta::contiguous(b, t, 0);
        let repeat = |x: Tensor<4>| {
            let kv = x.dims()[1];
            x.reshape([b, kv, 1, t, d]).repeat_dim(2, h / kv).reshape([b, h, t, d])
        };
        let (k, v) = (repeat(k), repeat(v));
        let attend = |heads: std::ops::Range<usize>, shift: usize| -> Result<Tensor<4>> {
            let part =
                |x: &Tensor<4>| roll_left(x.clone().narrow(1, heads.start, heads.len()), shift);
            let spec = MaskSpec::causal().with_groups(groups);
            let mask = Mask::new(spec, index.clone(), index.clone(), heads.len())?;
            let branch = Branch { q: part(&q), k: part(&k), mask };
            let out = masked_attention(&[branch], part(&v), &ctx.attention())?.out;
            Ok(roll_left(out, t - shift))
        };
        if !self.config.shift {
            return attend(0..h, 0);
        }
        Ok(Tensor::cat(vec![attend(0..h / 2, 0)?, attend(h / 2..h, group / 2)?], 1))
    }
}

/// Token `t` of the result is token `t + shift` of `x`, around the end.
fn roll_left(x_BHTD: Tensor<4>, shift: usize) -> Tensor<4> {
    let t = x_BHTD.dims()[2];
    match shift % t {
        0 => x_BHTD,
        shift => {
            let head = x_BHTD.clone().narrow(2, 0, shift);
            Tensor::cat(vec![x_BHTD.narrow(2, shift, t - shift), head], 2)
        }
    }
}
