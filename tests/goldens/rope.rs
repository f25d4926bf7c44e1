//! Rotary tables and rotations: frequencies, cosines, sines, q, k and their gradients.

use crate::Failure;
use crate::golden::Golden;
use crate::model::values;
use burn::tensor::{Device, Tensor, TensorData};
use longburn::models::ModelConfig;
use longburn::positional::{LengthHistory, Positions, Rope, RopeConfig, RopeTable};
use serde_json::{Value, json};

pub fn check(golden: &Golden) -> Result<(), Failure> {
    // What the other library computes in f32, angles rounded at far positions: information.
    golden.ignore("f32.");

    let rope = read(golden.config())?;
    let positions = positions(golden)?;
    // One length for all rows, as the official library has it.
    let table = rope.table_at(&positions, positions.length(), &Device::flex());
    let batch = positions.batch();
    let (cos, sin) = (both_halves(&table.cos, batch), both_halves(&table.sin, batch));
    golden.compare("out.cos", &cos)?;
    golden.compare("out.sin", &sin)?;
    compare_frequencies(golden, "out.", &rope, positions.length())?;
    rotations(golden, &table)
}

/// Rotation of the first channels of a head; the file has no tables.
pub fn partial(golden: &Golden) -> Result<(), Failure> {
    let number = |key: &str| golden.config()[key].as_f64().ok_or(format!("config.{key}"));
    let width = golden.number("head_dim")? as f64 * number("partial_rotary_factor")?;
    let rope = RopeConfig::new(number("rope_theta")?, width as usize).init()?;
    let positions = positions(golden)?;
    golden.compare("out.inv_freq", &floats(&rope.inv_freq(positions.length())))?;
    rotations(golden, &rope.table(&positions, &Device::flex()))
}

/// Frequencies with the fields of published checkpoints.
pub fn tables(golden: &Golden) -> Result<(), Failure> {
    let configs = golden.config().as_object().ok_or("config is no object")?;
    for (name, config) in configs {
        compare_frequencies(golden, &format!("out.{name}."), &read(config)?, 1)?;
    }
    Ok(())
}

/// Frequencies after each of a series of calls.
pub fn state(golden: &Golden) -> Result<(), Failure> {
    let rope = read(golden.config())?;
    let mut history = LengthHistory::new(golden.number("max_position_embeddings")?);
    let lengths = golden.integers("in.lengths")?;
    let after = |length| rope.inv_freq(history.observe(length as usize));
    let all: Vec<f64> = lengths.into_iter().flat_map(after).collect();
    golden.compare("out.inv_freq", &floats(&all))
}

/// The encoding of a Llama whose `config.json` has the settings of a golden.
fn read(settings: &Value) -> Result<Rope, Failure> {
    let head_dim = &settings["head_dim"];
    let config = json!({
        "model_type": "llama", "vocab_size": 2, "hidden_size": head_dim, "intermediate_size": 2,
        "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": head_dim,
        "max_position_embeddings": settings["max_position_embeddings"],
        "rope_parameters": settings["rope_parameters"], "bos_token_id": null,
        "eos_token_id": null,
    });
    let config = ModelConfig::from_json_str(&config.to_string(), "the golden's settings")?;
    Ok(config.rope.init()?)
}

fn positions(golden: &Golden) -> Result<Positions, Failure> {
    let [batch, len] = *golden.shape("in.positions")? else {
        return Err("in.positions is not [B, T]".into());
    };
    Ok(Positions::new(batch, len, golden.integers("in.positions")?, 1)?)
}

fn compare_frequencies(
    golden: &Golden,
    prefix: &str,
    rope: &Rope,
    length: usize,
) -> Result<(), Failure> {
    golden.compare(&format!("{prefix}inv_freq"), &floats(&rope.inv_freq(length)))?;
    let factor = [rope.attention_factor() as f32];
    golden.compare(&format!("{prefix}attention_factor"), &factor)
}

fn floats(x: &[f64]) -> Vec<f32> {
    x.iter().map(|x| *x as f32).collect()
}

/// `[B or 1, 1, T, D/2] -> [B, T, D]`, the form of the goldens.
fn both_halves(half: &Tensor<4>, batch: usize) -> Vec<f32> {
    let rows = half.clone().repeat_dim(0, batch / half.dims()[0]);
    values(Tensor::cat(vec![rows.clone(), rows], 3))
}

fn rotations(golden: &Golden, table: &RopeTable) -> Result<(), Failure> {
    rotation(golden, table, "q")?;
    rotation(golden, table, "k")
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
