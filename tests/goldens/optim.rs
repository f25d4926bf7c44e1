//! Optimizers and learning rates, step by step.

use crate::Failure;
use crate::golden::Golden;
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use longburn::models::ForwardOptions;
use longburn::models::keymap::read_params;
use longburn::models::lora::Role;
use longburn::training::strategy::Plain;
use longburn::training::{
    AdamW, LossParts, Muon, MuonScale, Objective, OptimizerState, ParamGroup, Schedule,
    TrainConfig, Trainer, Warmup,
};
use std::collections::BTreeMap;

/// Layers with the golden's parameters.
#[derive(Module, Debug)]
struct Net {
    layers: Vec<Layer>,
}

#[derive(Module, Debug)]
struct Layer {
    weight: Param<Tensor<2>>,
    bias: Option<Param<Tensor<1>>>,
}

/// A loss whose gradient is what the golden says.
struct Given;

/// Gradients by module path.
type Gradients = BTreeMap<String, Vec<f32>>;

impl Objective<Net> for Given {
    type Batch = Gradients;

    fn loss(
        &self,
        net: &Net,
        batch: &Gradients,
        _: &ForwardOptions,
    ) -> longburn::Result<LossParts> {
        fn dot<const D: usize>(param: &Param<Tensor<D>>, grad: &[f32]) -> Tensor<1> {
            let param = param.val();
            let grad = TensorData::new(grad.to_vec(), param.shape());
            (param * Tensor::from_data(grad, &Device::flex())).sum()
        }
        let mut sum = Tensor::<1>::zeros([1], &Device::flex().autodiff());
        for (i, layer) in net.layers.iter().enumerate() {
            sum = sum + dot(&layer.weight, &batch[&format!("layers.{i}.weight")]);
            if let Some(bias) = &layer.bias {
                sum = sum + dot(bias, &batch[&format!("layers.{i}.bias")]);
            }
        }
        Ok(LossParts::new(sum, 1.0, 1))
    }

    fn source(&self, _: &Gradients) -> String {
        "the golden".into()
    }
}

/// After every step the parameters by path and the norm of the gradients; at the end the state.
type Trace = (Vec<(BTreeMap<String, Vec<f32>>, f64)>, OptimizerState);

fn run(
    config: TrainConfig,
    net: Net,
    gradients: impl Fn(u64) -> Result<Gradients, Failure>,
) -> Result<Trace, Failure> {
    let steps: Vec<Gradients> = (0..config.steps).map(gradients).collect::<Result<_, _>>()?;
    let mut data = |step: u64, _| Ok(steps.get(step as usize - 1).cloned());
    let mut seen = Vec::new();
    let outcome = Trainer::new(config)?.fit_with(net, &Given, &Plain, &mut data, &mut |step| {
        let all = read_params(step.model, |_| true);
        let all = all.into_iter().map(|(path, _, data)| (path, data)).collect();
        seen.push((all, step.report.grad_norm));
        Ok(())
    })?;
    Ok((seen, outcome.state()?.optimizer))
}

fn parameter<const D: usize>(golden: &Golden, name: &str) -> Result<Param<Tensor<D>>, Failure> {
    let shape: [usize; D] = golden.shape(name)?.try_into()?;
    let data = TensorData::new(golden.floats(name)?, shape);
    Ok(Param::from_tensor(Tensor::from_data(data, &Device::flex())))
}

fn number(golden: &Golden, key: &str) -> Result<f64, Failure> {
    Ok(golden.config()[key].as_f64().ok_or_else(|| format!("config.{key} is no number"))?)
}

pub fn muon(golden: &Golden) -> Result<(), Failure> {
    let scale = match golden.config()["adjust_lr_fn"].as_str() {
        Some("original") => MuonScale::Original,
        Some("match_rms_adamw") => MuonScale::MatchAdamw,
        other => return Err(format!("config.adjust_lr_fn is {other:?}").into()),
    };
    let coefficients: Vec<f64> =
        serde_json::from_value(golden.config()["ns_coefficients"].clone())?;
    if coefficients != [3.4445, -4.775, 2.0315] || golden.number("ns_steps")? != 5 {
        return Err("another iteration than ours".into());
    }
    let muon = Muon {
        momentum: number(golden, "momentum")? as f32,
        nesterov: golden.config()["nesterov"].as_bool().ok_or("config.nesterov")?,
        weight_decay: number(golden, "weight_decay")? as f32,
        scale,
        lr_factor: 1.0,
    };
    let config = TrainConfig::new(4, number(golden, "lr")?).with_muon(Some(muon));
    let net = Net { layers: vec![Layer { weight: parameter(golden, "in.w")?, bias: None }] };
    let path = "layers.0.weight";
    let (seen, state) = run(config, net, |step| {
        Ok(BTreeMap::from([(path.into(), golden.floats(&format!("in.grad.{step}"))?)]))
    })?;
    for (step, (weights, _)) in seen.iter().enumerate() {
        golden.compare(&format!("out.param.{step}"), &weights[path])?;
    }
    let buffer = state.tensors[&format!("{path}.momentum")].to_f32()?;
    golden.compare("out.momentum_buffer", &buffer)?;
    // As the library has it, in bf16: how far that is from exact.
    golden.compare("mid.param_bf16_ns.3", &seen[3].0[path])
}

pub fn adamw(golden: &Golden) -> Result<(), Failure> {
    let betas: [f32; 2] = serde_json::from_value(golden.config()["betas"].clone())?;
    let adamw = AdamW {
        beta1: betas[0],
        beta2: betas[1],
        eps: number(golden, "eps")? as f32,
        weight_decay: number(golden, "weight_decay_w")? as f32,
    };
    let lr = number(golden, "lr")?;
    let biases = ParamGroup::new(&[Role::Bias])
        .with_lr_factor(number(golden, "lr_b")? / lr)
        .with_weight_decay(number(golden, "weight_decay_b")? as f32);
    let config = TrainConfig::new(golden.number("steps")? as u64, lr)
        .with_adamw(adamw)
        .with_groups(vec![biases])
        .with_clip(number(golden, "clip_grad_norm")?);
    let layer = |i: usize| -> Result<Layer, Failure> {
        let bias = Some(parameter(golden, &format!("in.b{i}"))?);
        Ok(Layer { weight: parameter(golden, &format!("in.w{i}"))?, bias })
    };
    let net = Net { layers: vec![layer(1)?, layer(2)?] };
    let names = [
        ("w1", "layers.0.weight"),
        ("b1", "layers.0.bias"),
        ("w2", "layers.1.weight"),
        ("b2", "layers.1.bias"),
    ];
    let (seen, state) = run(config, net, |step| {
        let of = |(name, path): &(&str, &str)| {
            Ok((path.to_string(), golden.floats(&format!("in.grad.{name}.{step}"))?))
        };
        names.iter().map(of).collect()
    })?;
    for (step, (weights, norm)) in seen.iter().enumerate() {
        golden.compare(&format!("out.total_norm.{step}"), &[*norm as f32])?;
        for (name, path) in names {
            golden.compare(&format!("out.param.{name}.{step}"), &weights[path])?;
        }
    }
    for (name, path) in names {
        for (moment, leaf) in [("exp_avg", "moment_1"), ("exp_avg_sq", "moment_2")] {
            let of = |key: &&String| key.starts_with(path) && key.ends_with(leaf);
            let key = state.tensors.keys().find(of).ok_or(format!("{path}: no {leaf}"))?;
            golden.compare(&format!("out.{moment}.{name}"), &state.tensors[key].to_f32()?)?;
        }
    }
    Ok(())
}

/// Rates of the steps of a run. Theirs count from 0, and the first one of a warm-up is 0; ours count
/// from 1 and lose none: the rise is one step ahead, and the way down is the same.
pub fn schedules(golden: &Golden) -> Result<(), Failure> {
    // Restarts and a floor under the cosine are not in the library.
    golden.ignore("out.cosine_restarts");
    golden.ignore("out.prolong");
    let (steps, rise) = (golden.number("total")? as u64, golden.number("warmup")? as u64);
    let warmup = Warmup::Steps(rise);
    let last = number(golden, "min_lr_rate")?;
    let base = number(golden, "base_lr")?;
    for (name, schedule) in [
        ("out.cosine", Schedule::cosine().with_warmup(warmup)),
        ("out.cosine_min", Schedule::Cosine { warmup, last }),
        ("out.linear", Schedule::linear().with_warmup(warmup)),
    ] {
        let config = TrainConfig::new(steps, base).with_schedule(schedule);
        let rate = |theirs: u64| config.lr_at(if theirs <= rise { theirs } else { theirs + 1 });
        // Index 0 is a step that changes nothing; beyond the run there is no step.
        let ours: Vec<f32> = (1..steps).map(|theirs| rate(theirs) as f32).collect();
        golden.compare_part(name, 1..steps as usize, &ours)?;
    }
    Ok(())
}
