//! One attention layer with the weights of a golden file.

use crate::Failure;
use crate::golden::Golden;
use crate::model::values;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Gradients};
use longburn::attention::{AttnProjections, AttnShape, MixContext, Phase, SequenceMixer, Tap};
use longburn::kernel::TokenMeta;
use longburn::models::keymap::{map_params, params};
use longburn::positional::RopeTable;
use longburn::streams::Streams;
use std::collections::HashMap;

/// Sizes as the file names them.
pub fn shape(golden: &Golden, hidden: usize) -> Result<AttnShape, Failure> {
    Ok(AttnShape {
        hidden,
        heads: golden.number("H")?,
        kv_heads: golden.number("Hkv")?,
        head_dim: golden.number("D")?,
        qkv_bias: golden.has("in.q_proj.bias"),
        o_bias: golden.has("in.o_proj.bias"),
        qk_norm: None,
    })
}

/// Projections with the weights that `weights` has for each parameter's path.
pub fn projections(
    shape: &AttnShape,
    weights: impl Fn(&str) -> Result<Vec<f32>, Failure>,
) -> Result<AttnProjections, Failure> {
    let proj = shape.init((1.0, 1.0), &Streams::new(0), 0, &Device::flex());
    let mut values = HashMap::new();
    for param in params(&proj) {
        let data = weights(&param.path)?;
        if data.len() != param.numel() {
            return Err(format!("{}: {} values", param.path, data.len()).into());
        }
        values.insert(param.path, data);
    }
    Ok(map_params(proj, |path| values.remove(path), |_| None))
}

/// Training, without a state.
pub fn context<'a>(
    tokens: &'a TokenMeta,
    rope: Option<&'a RopeTable>,
    taps: &'a [Tap],
) -> MixContext<'a> {
    MixContext { rope, phase: Phase::Train, taps, ..MixContext::infer(tokens) }
}

/// Gradients of all parameters by the names that files have for them.
pub fn gradients<M: SequenceMixer>(
    mixer: &M,
    grads: Gradients,
) -> Result<Vec<(String, Vec<f32>)>, Failure> {
    let all = params(mixer);
    let grads = GradientsParams::from_grads(grads, mixer);
    let of = |param: longburn::models::keymap::ParamInfo| {
        let name = param.path.strip_prefix("proj.").unwrap_or(&param.path).to_string();
        let grad = match param.shape.len() {
            1 => grads.get::<1>(param.id).map(values),
            _ => grads.get::<2>(param.id).map(values),
        };
        Ok((name, grad.ok_or("no gradient")?))
    };
    all.into_iter().map(of).collect()
}
