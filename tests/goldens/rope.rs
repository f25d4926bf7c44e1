//! Rotary tables and rotations: frequencies, cosines, sines, q, k and their gradients.

use crate::Failure;
use crate::golden::Golden;
use crate::model::values;
use burn::tensor::{Device, Tensor, TensorData};
use longburn::positional::{Positions, RopeConfig, RopeKind, RopeTable};
use serde::Deserialize;

pub fn check(golden: &Golden) -> Result<(), Failure> {
    // What the other library computes in f32, angles rounded at far positions: information.
    golden.ignore("f32.");

    let parameters = &golden.config()["rope_parameters"];
    let theta = parameters["rope_theta"].as_f64().ok_or("config.rope_parameters.rope_theta")?;
    let rope = RopeConfig::new(theta, golden.number("head_dim")?)
        .with_kind(RopeKind::deserialize(parameters)?)
        .init()?;
    let inv_freq: Vec<f32> = rope.inv_freq().iter().map(|f| *f as f32).collect();
    golden.compare("out.inv_freq", &inv_freq)?;

    let [batch, len] = *golden.shape("in.positions")? else {
        return Err("in.positions is not [B, T]".into());
    };
    let positions = Positions::new(batch, len, golden.integers("in.positions")?, 1)?;
    let table = rope.table(&positions, &Device::flex());
    let (cos, sin) = (both_halves(&table.cos, batch), both_halves(&table.sin, batch));
    golden.compare("out.cos", &cos)?;
    golden.compare("out.sin", &sin)?;
    // cos and sin carry the factor, so their length shows it.
    let length = |(c, s): (&f32, &f32)| f64::from(*c).hypot(f64::from(*s));
    let factor = cos.iter().zip(&sin).map(length).sum::<f64>() / cos.len() as f64;
    golden.compare("out.attention_factor", &[factor as f32])?;

    for name in ["q", "k"] {
        rotation(golden, &table, name)?;
    }
    Ok(())
}

/// `[B or 1, 1, T, D/2] -> [B, T, D]`, the form of the goldens.
fn both_halves(half: &Tensor<4>, batch: usize) -> Vec<f32> {
    let rows = half.clone().repeat_dim(0, batch / half.dims()[0]);
    values(Tensor::cat(vec![rows.clone(), rows], 3))
}

fn rotation(golden: &Golden, table: &RopeTable, name: &str) -> Result<(), Failure> {
    let (input, cotangent) = (format!("in.{name}"), format!("cot.{name}"));
    let shape: [usize; 4] = golden.shape(&input)?.try_into()?;
    let tensor = |data| Tensor::<4>::from_data(TensorData::new(data, shape), &Device::flex());
    let x = tensor(golden.floats(&input)?).autodiff().require_grad();
    let y = table.rotate(x.clone());
    golden.compare(&format!("out.{name}"), &values(y.clone()))?;
    let grads = (y * tensor(golden.floats(&cotangent)?)).sum().backward();
    let grad = x.grad(&grads).ok_or("no gradient")?;
    golden.compare(&format!("grad.{name}"), &values(grad))
}
