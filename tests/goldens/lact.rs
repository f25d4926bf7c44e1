//! LaCT: Newton-Schulz, the fast-weight branch, the whole layer.

use crate::Failure;
use crate::golden::Golden;
use crate::model::values;
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Gradients, Tensor, TensorData};
use longburn::attention::lact::{
    FastOptimizer, FastWeights, Learner, UpdateRule, WeightNorm, read_and_learn,
};
use longburn::attention::newton_schulz::NewtonSchulz;
use longburn::attention::{AttnShape, Lact, LactConfig, MixContext, Phase, SequenceMixer};
use longburn::kernel::TokenMeta;
use longburn::models::keymap::{map_params, params};
use longburn::positional::{Positions, RopeConfig};
use longburn::streams::Streams;

/// A leaf with the values of tensor `name`, in another shape of as many.
fn leaf<const D: usize>(
    golden: &Golden,
    name: &str,
    shape: [usize; D],
) -> Result<Tensor<D>, Failure> {
    let data = TensorData::new(golden.floats(name)?, shape);
    Ok(Tensor::from_data(data, &Device::flex().autodiff()).require_grad())
}

/// Gradient of a leaf; zeros where the result does not depend on it.
fn gradient<const D: usize>(leaf: &Tensor<D>, grads: &mut Gradients) -> Vec<f32> {
    let zeros = vec![0.0; leaf.shape().num_elements()];
    leaf.grad_remove(grads).map_or(zeros, values)
}

pub fn newton_schulz(golden: &Golden) -> Result<(), Failure> {
    let shape: [usize; 3] = golden.shape("in.G")?.try_into()?;
    let g = leaf(golden, "in.G", shape)?;
    if golden.has("mid.X_f64") {
        let x = NewtonSchulz::LACT.with_bf16(true).orthogonalize(g.clone());
        golden.compare("out.X", &values(x.cast(DType::F32)))?;
        let exact = values(NewtonSchulz::LACT.orthogonalize(g));
        let want = golden.floats("mid.X_f64")?;
        let apart = longburn::testing::ratio(&exact, &want);
        return match apart < 1e-5 {
            true => Ok(()),
            false => Err(format!("mid.X_f64: {apart:e} apart").into()),
        };
    }
    let x = NewtonSchulz::LACT.orthogonalize(g.clone());
    let y = values(x.clone());
    golden.compare("out.X", &y)?;
    golden.compare("out.singular_values", &singular_values(&y, shape))?;
    let mut grads = (x * leaf(golden, "cot.X", shape)?).sum().backward();
    golden.compare("grad.G", &gradient(&g, &mut grads))
}

/// Of every matrix, the largest first.
fn singular_values(x: &[f32], [batch, rows, columns]: [usize; 3]) -> Vec<f32> {
    let mut all = Vec::new();
    for matrix in x.chunks(rows * columns).take(batch) {
        let at = |i: usize, j: usize| f64::from(matrix[i * columns + j]);
        // The Gram matrix of the shorter side, its eigenvalues by Jacobi's rotations.
        let (n, m) = (rows.min(columns), rows.max(columns));
        let entry = |i: usize, k: usize| if rows <= columns { at(i, k) } else { at(k, i) };
        let mut a: Vec<Vec<f64>> = (0..n)
            .map(|i| (0..n).map(|j| (0..m).map(|k| entry(i, k) * entry(j, k)).sum()).collect())
            .collect();
        for _ in 0..60 {
            for p in 0..n {
                for q in p + 1..n {
                    if a[p][q].abs() < 1e-300 {
                        continue;
                    }
                    let theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
                    let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                    let c = 1.0 / (t * t + 1.0).sqrt();
                    let s = t * c;
                    for row in &mut a {
                        (row[p], row[q]) = (c * row[p] - s * row[q], s * row[p] + c * row[q]);
                    }
                    #[allow(clippy::needless_range_loop)]
                    for k in 0..n {
                        (a[p][k], a[q][k]) = (c * a[p][k] - s * a[q][k], s * a[p][k] + c * a[q][k]);
                    }
                }
            }
        }
        let mut found: Vec<f32> = (0..n).map(|i| a[i][i].max(0.0).sqrt() as f32).collect();
        found.sort_by(|a, b| b.total_cmp(a));
        all.extend(found);
    }
    all
}

/// The branch alone. Every row has weights of its own, which is what heads have.
pub fn branch(golden: &Golden) -> Result<(), Failure> {
    let flag = |key: &str| golden.config()[key].as_bool().ok_or(format!("config.{key}"));
    let [rows, len, d, d_h] =
        [golden.number("rows")?, golden.number("T")?, golden.number("d")?, golden.number("d_h")?];
    let rule = UpdateRule {
        orthogonal: flag("muon")?.then_some(NewtonSchulz::LACT),
        momentum: flag("momentum")?,
        norm: match golden.config()["norm"].as_str() {
            Some("post") => WeightNorm::Post,
            Some("pre") => WeightNorm::Pre,
            other => return Err(format!("config.norm is {other:?}").into()),
        },
        detach_norms: false,
    };
    let of = |name: &str, a: usize, b: usize| leaf(golden, &format!("in.{name}"), [1, rows, a, b]);
    let weights = [of("w0", d_h, d)?, of("w1", d, d_h)?, of("w2", d_h, d)?];
    let tokens = [of("q", len, d)?, of("k", len, d)?, of("v", len, d)?];
    let mut names = vec!["lr0", "lr1", "lr2"];
    names.extend(rule.momentum.then_some("momentum"));
    let rates: Vec<Tensor<4>> = names.iter().map(|n| of(n, len, 1)).collect::<Result<_, _>>()?;

    let initial = FastWeights::new(weights.clone(), &rule);
    let learner = Learner::new(rule, &initial);
    let all = Tensor::cat(rates.clone(), 3);
    let chunk = golden.number("chunk")?;
    let o = read_and_learn(&initial, &learner, tokens.clone(), all, chunk)?;
    golden.compare("out.o", &values(o.clone()))?;
    let mut grads = (o * leaf(golden, "cot.o", [1, rows, len, d])?).sum().backward();
    let leaves = weights.iter().chain(&tokens).chain(&rates);
    for (name, leaf) in ["w0", "w1", "w2", "q", "k", "v"].iter().chain(&names).zip(leaves) {
        golden.compare(&format!("grad.{name}"), &gradient(leaf, &mut grads))?;
    }
    Ok(())
}

/// The whole layer with its official parameters.
pub fn layer(golden: &Golden) -> Result<(), Failure> {
    let shape: [usize; 3] = golden.shape("in.x")?.try_into()?;
    let [batch, len, hidden] = shape;
    let layer = read_layer(golden, hidden)?.train();
    let theta = golden.config()["rope_theta"].as_f64().ok_or("config.rope_theta")?;
    let rope = RopeConfig::new(theta, hidden / golden.number("num_attn_heads")?).init()?;
    let device = Device::flex().autodiff();
    let table = rope.table(&Positions::range(batch, len, 0), &device);
    let tokens = TokenMeta::contiguous(batch, len, 0);
    let ctx = MixContext { rope: Some(&table), phase: Phase::Train, ..MixContext::infer(&tokens) };
    let x = leaf(golden, "in.x", shape)?;
    let y = layer.forward(x.clone(), &ctx, None)?.y;
    golden.compare("out.y", &values(y.clone()))?;
    let mut grads = (y * leaf(golden, "cot.y", shape)?).sum().backward();
    golden.compare("grad.x", &gradient(&x, &mut grads))?;
    let all = params(&layer);
    let grads = GradientsParams::from_grads(grads, &layer);
    for param in all {
        let grad = match param.shape.len() {
            1 => grads.get::<1>(param.id).map(values),
            2 => grads.get::<2>(param.id).map(values),
            _ => grads.get::<3>(param.id).map(values),
        };
        let name = format!("grad.w.{}", official(&param.path));
        golden.compare(&name, &grad.ok_or(format!("{}: no gradient", param.path))?)?;
    }
    Ok(())
}

/// The official name of a parameter. Ours are none of those that other attention has in files.
fn official(path: &str) -> String {
    path.replace("momentum_proj.", "momentum_proj.0.")
        .replace("out_proj.", "o_proj.")
        .replace("norm_q.", "q_norm.")
        .replace("norm_k.", "k_norm.")
}

fn read_layer(golden: &Golden, hidden: usize) -> Result<Lact, Failure> {
    let flag = |key: &str| golden.config()[key].as_bool().unwrap_or(false);
    let number = |key: &str| golden.config()[key].as_f64().ok_or(format!("config.{key}"));
    if !flag("qkv_silu") || number("norm_eps")? != 1e-5 {
        return Err("settings that the layer does not have".into());
    }
    let config = LactConfig {
        fast_heads: golden.number("num_lact_heads")?,
        inter_multi: number("inter_multi")?,
        chunk: golden.number("lact_chunk_size")?,
        window: golden.number("window_size")?,
        optimizer: if flag("use_muon") { FastOptimizer::Muon } else { FastOptimizer::Sgd },
        momentum: flag("use_momentum"),
        norm: if flag("ttt_prenorm") { WeightNorm::Pre } else { WeightNorm::Post },
        low_rank: golden.number("w0_w2_low_rank").unwrap_or(0),
        base_lr: number("base_lr")?,
        qk_norm: flag("attn_qk_norm"),
        qkv_bias: flag("qkv_bias"),
        silu_v: !flag("no_v_silu"),
        rotate: !flag("ttt_nope"),
        learnable_scale: flag("learnable_ttt_scale"),
        ..LactConfig::new()
    };
    let heads = golden.number("num_attn_heads")?;
    let shape = AttnShape {
        hidden,
        heads,
        kv_heads: heads,
        head_dim: hidden / heads,
        qkv_bias: false,
        o_bias: false,
        qk_norm: None,
    };
    let layer = config.init(&shape, (1.0, 1.0), &Streams::new(0), 0, &Device::flex())?;
    let mut weights = std::collections::HashMap::new();
    for param in params(&layer) {
        let name = format!("in.w.{}", official(&param.path));
        if golden.shape(&name)? != param.shape {
            return Err(format!("{name} is not {:?}", param.shape).into());
        }
        weights.insert(param.path, golden.floats(&name)?);
    }
    Ok(map_params(layer, |path| weights.remove(path), |_| None))
}
