//! Shifted sparse attention as a layer: output, visible keys, gradients.

use crate::Failure;
use crate::golden::Golden;
use crate::layer::{context, gradients, projections, shape};
use crate::model::values;
use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use longburn::attention::longlora::LongLoraForm;
use longburn::attention::{AttnShape, LongLoraConfig, SequenceMixer, Tap};
use longburn::kernel::TokenMeta;
use longburn::positional::{Positions, RopeConfig};

pub fn check(golden: &Golden) -> Result<(), Failure> {
    let size: [usize; 3] = golden.shape("in.hidden")?.try_into()?;
    let [batch, len, hidden] = size;
    let heads = golden.number("H")?;
    let config = config(golden, heads, len)?;

    let rope = golden.config()["rope_theta"].as_f64().ok_or("config.rope_theta")?;
    let rope = RopeConfig::new(rope, golden.number("D")?).init()?;
    let rope = rope.table(&Positions::range(batch, len, 0), &Device::flex());
    let sizes = shape(golden, hidden)?;
    let proj = projections(&sizes, |path| golden.floats(&format!("in.{path}")))?;
    let mixer = config.init(proj, None)?.train();
    let tensor = |data| Tensor::<3>::from_data(TensorData::new(data, size), &Device::flex());
    let x = tensor(golden.floats("in.hidden")?).autodiff().require_grad();
    let tokens = TokenMeta::contiguous(batch, len, 0);
    let y = mixer.forward(x.clone(), &context(&tokens, Some(&rope), &[]), None)?.y;
    golden.compare("out.out", &values(y.clone()))?;

    let mut grads = (y * tensor(golden.floats("cot.out")?)).sum().backward();
    let grad = x.grad_remove(&mut grads).ok_or("no gradient of the input")?;
    golden.compare("grad.hidden", &values(grad))?;
    for (name, grad) in gradients(&mixer, grads)? {
        golden.compare(&format!("grad.{name}"), &grad)?;
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
