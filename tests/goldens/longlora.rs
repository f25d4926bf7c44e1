//! Shifted sparse attention as a layer: output, visible keys, gradients.

use crate::Failure;
use crate::golden::Golden;
use crate::model::values;
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use longburn::attention::longlora::LongLoraForm;
use longburn::attention::{
    AttnProjections, AttnShape, LongLoraConfig, MixContext, Phase, SequenceMixer, Tap,
};
use longburn::kernel::{Implementation, TokenMeta};
use longburn::models::keymap::{map_params, params};
use longburn::positional::{Positions, RopeConfig, RopeTable};
use longburn::streams::Streams;

pub fn check(golden: &Golden) -> Result<(), Failure> {
    let shape: [usize; 3] = golden.shape("in.hidden")?.try_into()?;
    let [batch, len, hidden] = shape;
    let heads = golden.number("H")?;
    let config = config(golden, heads, len)?;

    let rope = golden.config()["rope_theta"].as_f64().ok_or("config.rope_theta")?;
    let rope = RopeConfig::new(rope, golden.number("D")?).init()?;
    let rope = rope.table(&Positions::range(batch, len, 0), &Device::flex());
    let sizes = AttnShape {
        hidden,
        heads,
        kv_heads: golden.number("Hkv")?,
        head_dim: golden.number("D")?,
        qkv_bias: golden.has("in.q_proj.bias"),
        o_bias: golden.has("in.o_proj.bias"),
        qk_norm: None,
    };
    let proj = projections(&sizes, |path| golden.floats(&format!("in.{path}")))?;
    let mixer = config.init(proj, None)?.train();
    let tensor = |data| Tensor::<3>::from_data(TensorData::new(data, shape), &Device::flex());
    let x = tensor(golden.floats("in.hidden")?).autodiff().require_grad();
    let tokens = TokenMeta::contiguous(batch, len, 0);
    let y = mixer.forward(x.clone(), &context(&tokens, Some(&rope), &[]), None)?.y;
    golden.compare("out.out", &values(y.clone()))?;

    let mut grads = (y * tensor(golden.floats("cot.out")?)).sum().backward();
    let grad = x.grad_remove(&mut grads).ok_or("no gradient of the input")?;
    golden.compare("grad.hidden", &values(grad))?;
    let all = params(&mixer);
    let grads = GradientsParams::from_grads(grads, &mixer);
    for param in all {
        let name = param.path.strip_prefix("proj.").unwrap_or(&param.path);
        let grad = match param.shape.len() {
            1 => grads.get::<1>(param.id).map(values),
            _ => grads.get::<2>(param.id).map(values),
        };
        golden.compare(&format!("grad.{name}"), &grad.ok_or("no gradient")?)?;
    }
    golden.compare_integers("out.mask", &visible_keys(&config, heads, len)?)
}

/// Settings from the file. The rolled form is the one in which a query sees a later key.
fn config(golden: &Golden, heads: usize, len: usize) -> Result<LongLoraConfig, Failure> {
    let group = golden.number("group")?;
    let shift =
        if golden.config()["shift"].is_null() { group / 2 } else { golden.number("shift")? };
    if shift != 0 && shift != group / 2 {
        return Err(format!("a shift of {shift} with groups of {group}").into());
    }
    let mask = golden.integers("out.mask")?;
    if mask.len() != heads * len * len {
        return Err("out.mask is not [H, T, T]".into());
    }
    let leaks = mask.iter().enumerate().any(|(i, m)| *m != 0 && i % len > i / len % len);
    let form = if leaks { LongLoraForm::Rolled } else { LongLoraForm::Segment };
    Ok(LongLoraConfig::new()
        .with_group_size(group)
        .with_shift(shift > 0)
        .with_form(form)
        .with_ragged(!len.is_multiple_of(group)))
}

fn context<'a>(
    tokens: &'a TokenMeta,
    rope: Option<&'a RopeTable>,
    taps: &'a [Tap],
) -> MixContext<'a> {
    MixContext {
        tokens,
        rope,
        unrotated_cache: None,
        layer: 0,
        phase: Phase::Train,
        keep_state: false,
        implementation: Implementation::Auto,
        taps,
    }
}

/// Projections with the weights that `weights` has for each parameter's path.
fn projections(
    shape: &AttnShape,
    weights: impl Fn(&str) -> Result<Vec<f32>, Failure>,
) -> Result<AttnProjections, Failure> {
    let proj = shape.init((1.0, 1.0), &Streams::new(0), 0, &Device::flex());
    let mut values = std::collections::HashMap::new();
    for param in params(&proj) {
        let data = weights(&param.path)?;
        if data.len() != param.numel() {
            return Err(format!("{}: {} values", param.path, data.len()).into());
        }
        values.insert(param.path, data);
    }
    Ok(map_params(proj, |path| values.remove(path), |_| None))
}

/// `[H, T, T]`: which keys each query attends to, seen from outside. With equal scores and token
/// j's value the j-th unit vector, a query's result is non-zero at exactly the keys it sees.
fn visible_keys(config: &LongLoraConfig, heads: usize, len: usize) -> Result<Vec<i64>, Failure> {
    let shape = AttnShape {
        hidden: len,
        heads,
        kv_heads: 1,
        head_dim: len,
        qkv_bias: false,
        o_bias: false,
        qk_norm: None,
    };
    let unit = |i: usize| if i % len == i / len { 1.0 } else { 0.0 };
    let unit: Vec<f32> = (0..len * len).map(unit).collect();
    let proj = projections(&shape, |path| {
        Ok(match path {
            "v_proj.weight" => unit.clone(),
            "k_proj.weight" => vec![0.0; len * len],
            _ => vec![0.0; heads * len * len],
        })
    })?;
    let x = Tensor::from_data(TensorData::new(unit.clone(), [1, len, len]), &Device::flex());
    let tokens = TokenMeta::contiguous(1, len, 0);
    let out = config.init(proj, None)?.forward(x, &context(&tokens, None, &[Tap::Mixed]), None)?;
    let mixed = out.taps.mixed.ok_or("the mixer returned no tap")?;
    Ok(values(mixed).into_iter().map(|share| i64::from(share > 0.0)).collect())
}
