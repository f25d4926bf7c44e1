//! State-space scans, whole and one token at a time, and the Mamba-2 layer around one.

use crate::Failure;
use crate::golden::Golden;
use crate::model::values;
use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Gradients, Tensor, TensorData};
use longburn::attention::{Linear, Mamba2, Mamba2Config, MixContext, Phase, SequenceMixer};
use longburn::kernel::fused::{GatedNorm, gated_rms_norm};
use longburn::kernel::{
    Implementation, SelectiveScan, Ssd, SsdDiscrete, TokenMeta, selective_scan, ssd, ssd_discrete,
};
use longburn::models::keymap::params;
use longburn::streams::Streams;

/// An input with a gradient, in a shape of its own where the file has another.
fn leaf<const D: usize>(
    golden: &Golden,
    name: &str,
    shape: [usize; D],
) -> Result<Tensor<D>, Failure> {
    Ok(plain(golden, &format!("in.{name}"), shape)?.autodiff().require_grad())
}

fn plain<const D: usize>(
    golden: &Golden,
    name: &str,
    shape: [usize; D],
) -> Result<Tensor<D>, Failure> {
    let data = golden.floats(name)?;
    if data.len() != shape.iter().product::<usize>() {
        return Err(format!("{name}: {} values for {shape:?}", data.len()).into());
    }
    Ok(Tensor::from_data(TensorData::new(data, shape), &Device::flex()))
}

fn shape<const D: usize>(golden: &Golden, name: &str) -> Result<[usize; D], Failure> {
    Ok(golden.shape(&format!("in.{name}"))?.try_into()?)
}

/// Compares the gradient of a leaf where the file has one.
fn gradient<const D: usize>(
    golden: &Golden,
    name: &str,
    x: &Tensor<D>,
    grads: &Gradients,
) -> Result<(), Failure> {
    let grad = x.grad(grads).ok_or_else(|| format!("{name} has no gradient"))?;
    golden.compare(&format!("grad.{name}"), &values(grad))
}

/// The sum of `x` times what the file holds against it.
fn against<const D: usize>(
    golden: &Golden,
    name: &str,
    x: &Tensor<D>,
) -> Result<Tensor<1>, Failure> {
    Ok((x.clone() * plain(golden, name, x.dims())?.autodiff()).sum())
}

/// Files have channels before tokens, and B and C in three layouts.
pub fn selective(golden: &Golden) -> Result<(), Failure> {
    let [batch, channels, len] = shape(golden, "u")?;
    let rows = [batch, channels, len];
    let [_, n] = shape(golden, "A")?;
    let optional = |name: &str| golden.has(&format!("in.{name}"));
    let (u, delta) = (leaf(golden, "u", rows)?, leaf(golden, "delta", rows)?);
    let a = leaf(golden, "A", [channels, n])?;
    let of_channel = |name: &str| -> Result<Option<Tensor<1>>, Failure> {
        optional(name).then(|| leaf(golden, name, [channels])).transpose()
    };
    let (d, bias) = (of_channel("D")?, of_channel("delta_bias")?);
    let z = optional("z").then(|| leaf(golden, "z", rows)).transpose()?;
    // `[B, G, N, T] -> [B, T, G, N]`; without tokens every channel is a group.
    let stored = match *golden.shape("in.B")? {
        [_, _] => [1, channels, n, 1],
        [_, _, _] => [batch, 1, n, len],
        _ => shape(golden, "B")?,
    };
    let (b, c) = (leaf(golden, "B", stored)?, leaf(golden, "C", stored)?);
    let in_order = |x: &Tensor<4>| {
        let x = x.clone().repeat_dim(0, batch / stored[0]).repeat_dim(3, len / stored[3]);
        x.permute([0, 3, 1, 2])
    };
    let tokens = |x: &Tensor<3>| x.clone().swap_dims(1, 2);
    let all = || SelectiveScan {
        d: d.clone(),
        z: z.as_ref().map(tokens),
        delta_bias: bias.clone(),
        softplus: golden.config()["delta_softplus"] == true,
        keep_state: true,
        ..SelectiveScan::new(tokens(&u), tokens(&delta), a.clone(), in_order(&b), in_order(&c))
    };
    for implementation in [Implementation::Auto, Implementation::Tiled, Implementation::Reference] {
        let (y, h) = selective_scan(SelectiveScan { implementation, ..all() })?;
        let (y, h) = (y.swap_dims(1, 2), h.ok_or("no state")?);
        golden.compare("out.out", &values(y.clone()))?;
        golden.compare("out.last_state", &values(h.clone()))?;
        let loss = against(golden, "cot.out", &y)? + against(golden, "cot.last_state", &h)?;
        let grads = loss.backward();
        for (name, x) in [("u", Some(&u)), ("delta", Some(&delta)), ("z", z.as_ref())] {
            x.map_or(Ok(()), |x| gradient(golden, name, x, &grads))?;
        }
        for (name, x) in [("D", &d), ("delta_bias", &bias)] {
            x.as_ref().map_or(Ok(()), |x| gradient(golden, name, x, &grads))?;
        }
        gradient(golden, "A", &a, &grads)?;
        gradient(golden, "B", &b, &grads)?;
        gradient(golden, "C", &c, &grads)?;
    }
    Ok(())
}

/// x already times Δ, and logarithms of decays.
pub fn discrete(golden: &Golden) -> Result<(), Failure> {
    let [batch, len, heads, p] = shape(golden, "X")?;
    let [.., n] = shape::<4>(golden, "B")?;
    let (x, a) =
        (leaf(golden, "X", [batch, len, heads, p])?, leaf(golden, "A", [batch, len, heads])?);
    let of_head = [batch, len, heads, n];
    let (b, c) = (leaf(golden, "B", of_head)?, leaf(golden, "C", of_head)?);
    let h0 = golden
        .has("in.initial_states")
        .then(|| leaf(golden, "initial_states", [batch, heads, p, n]))
        .transpose()?;
    for implementation in [Implementation::Auto, Implementation::Tiled, Implementation::Reference] {
        let (y, h) = ssd_discrete(SsdDiscrete {
            x: x.clone(),
            weight: a.ones_like(),
            log_decay: a.clone(),
            b: b.clone(),
            c: c.clone(),
            d: None,
            h0: h0.clone(),
            steps: None,
            chunk: golden.number("chunk")?,
            keep_state: true,
            implementation,
        })?;
        let h = h.ok_or("no state")?;
        golden.compare("out.Y", &values(y.clone()))?;
        golden.compare("out.final_state", &values(h.clone()))?;
        let loss = against(golden, "cot.Y", &y)? + against(golden, "cot.final_state", &h)?;
        let grads = loss.backward();
        for (name, x) in [("X", &x), ("B", &b), ("C", &c)] {
            gradient(golden, name, x, &grads)?;
        }
        gradient(golden, "A", &a, &grads)?;
        h0.as_ref().map_or(Ok(()), |h0| gradient(golden, "initial_states", h0, &grads))?;
    }
    Ok(())
}

/// The whole of Mamba-2's scan; some files hold the states between chunks, too.
pub fn duality(golden: &Golden) -> Result<(), Failure> {
    let [batch, len, heads, p] = shape(golden, "x")?;
    let [_, _, groups, n] = shape(golden, "B")?;
    let x = leaf(golden, "x", [batch, len, heads, p])?;
    let dt = leaf(golden, "dt", [batch, len, heads])?;
    let (a, bias) = (leaf(golden, "A", [heads])?, leaf(golden, "dt_bias", [heads])?);
    let of_group = [batch, len, groups, n];
    let (b, c) = (leaf(golden, "B", of_group)?, leaf(golden, "C", of_group)?);
    let d = leaf(golden, "D", [golden.floats("in.D")?.len()])?;
    let rows = [batch, len, heads, p];
    let z = golden.has("in.z").then(|| leaf(golden, "z", rows)).transpose()?;
    let h0 = golden
        .has("in.initial_states")
        .then(|| leaf(golden, "initial_states", [batch, heads, p, n]))
        .transpose()?;
    let dt_limit = golden.config()["dt_limit"].as_array().map(|limit| {
        let number = |x: &serde_json::Value| x.as_str().map_or(x.as_f64(), |x| x.parse().ok());
        (number(&limit[0]).unwrap_or(f64::NAN), number(&limit[1]).unwrap_or(f64::NAN))
    });
    let has_chunks = golden.has("out.chunk_states");
    let chunk = if has_chunks { golden.number("chunk")? } else { 8 };
    let run =
        |tokens: std::ops::Range<usize>, h0: Option<&Tensor<4>>, implementation: Implementation| {
            let rows = |x: &Tensor<4>| x.clone().narrow(1, tokens.start, tokens.len());
            ssd(Ssd {
                d: Some(d.clone()),
                z: z.as_ref().map(rows),
                dt_bias: Some(bias.clone()),
                softplus: true,
                dt_limit,
                h0: h0.cloned(),
                chunk,
                keep_state: true,
                implementation,
                ..Ssd::new(
                    rows(&x),
                    dt.clone().narrow(1, tokens.start, tokens.len()),
                    a.clone(),
                    rows(&b),
                    rows(&c),
                )
            })
        };
    for implementation in [Implementation::Auto, Implementation::Tiled, Implementation::Reference] {
        let (y, h) = run(0..len, None, implementation)?;
        let h = h.ok_or("no state")?;
        golden.compare("out.out", &values(y.clone()))?;
        let mut loss = against(golden, "cot.out", &y)?;
        if has_chunks {
            golden.compare("out.combined", &values(y))?;
            golden.compare("out.final_state", &values(h.clone()))?;
            let h = h.reshape([batch, heads, p * n]);
            loss = loss + against(golden, "cot.final_state", &h)?;
            let (_, h) = run(0..len, h0.as_ref(), implementation)?;
            let h = h.ok_or("no state")?.reshape([batch, heads, p * n]);
            golden.compare("out.final_state_h0", &values(h.clone()))?;
            loss = loss + against(golden, "cot.final_state_h0", &h)?;
            let state = |tokens: std::ops::Range<usize>,
                         h0: Option<&Tensor<4>>|
             -> Result<Tensor<5>, Failure> {
                let (_, h) = run(tokens, h0, implementation)?;
                Ok(h.ok_or("no state")?.unsqueeze_dim(1))
            };
            let before = |h0: Option<&Tensor<4>>| -> Result<Vec<f32>, Failure> {
                let first = match h0 {
                    Some(h0) => h0.clone(),
                    None => Tensor::zeros([batch, heads, p, n], &x.device()),
                };
                let mut all = vec![first.unsqueeze_dim(1)];
                for end in (chunk..len).step_by(chunk) {
                    all.push(state(0..end, h0)?);
                }
                Ok(values(Tensor::cat(all, 1)))
            };
            golden.compare("out.prev_states", &before(None)?)?;
            golden.compare("out.prev_states_h0", &before(h0.as_ref())?)?;
            let alone = (0..len).step_by(chunk).map(|start| state(start..start + chunk, None));
            let alone = alone.collect::<Result<Vec<_>, _>>()?;
            golden.compare("out.chunk_states", &values(Tensor::cat(alone, 1)))?;
            // They are what the states above are made of.
            golden.ignore("out.dt_softplus");
            golden.ignore("out.dA_cumsum");
        }
        let grads = loss.backward();
        for (name, x) in [("x", Some(&x)), ("B", Some(&b)), ("C", Some(&c)), ("z", z.as_ref())] {
            x.map_or(Ok(()), |x| gradient(golden, name, x, &grads))?;
        }
        for (name, x) in [("A", &a), ("dt_bias", &bias), ("D", &d)] {
            gradient(golden, name, x, &grads)?;
        }
        gradient(golden, "dt", &dt, &grads)?;
        h0.as_ref().map_or(Ok(()), |h0| gradient(golden, "initial_states", h0, &grads))?;
    }
    Ok(())
}

/// Decoding: one token at a time from a state. Every channel has its own A and Δ here, so that it is
/// the selective scan; where they are tied inside a head, Mamba-2's gives the same.
pub fn steps(golden: &Golden) -> Result<(), Failure> {
    let x = golden.shape("in.x")?;
    let (steps, batch, channels) = (x[0], x[1], x[2..].iter().product::<usize>());
    let (heads, p) = if x.len() == 4 { (x[2], x[3]) } else { (1, channels) };
    let b = golden.shape("in.B")?;
    let (groups, n) = if b.len() == 4 { (b[2], b[3]) } else { (1, b[2]) };
    let all =
        |name: &str, width: usize| plain(golden, &format!("in.{name}"), [steps, batch, width]);
    let (x, dt, z) = (all("x", channels)?, all("dt", channels)?, all("z", channels)?);
    let (b, c) = (all("B", groups * n)?, all("C", groups * n)?);
    let (a, d) = (plain(golden, "in.A", [channels, n])?, plain(golden, "in.D", [channels])?);
    let bias = plain(golden, "in.dt_bias", [channels])?;
    let state0 = plain(golden, "in.state0", [batch, channels, n])?;
    let tied = golden.config()["A_dt_tied_over_head"] == true;
    for duality in if tied { vec![false, true] } else { vec![false] } {
        let (mut out, mut states) = (Vec::new(), Vec::new());
        let mut h = state0.clone();
        for t in 0..steps {
            let row = |x: &Tensor<3>| x.clone().narrow(0, t, 1).swap_dims(0, 1);
            let of_group = |x: &Tensor<3>| row(x).reshape([batch, 1, groups, n]);
            let of_head = |x: Tensor<3>| x.reshape([batch, 1, heads, p]);
            // Of the first channel of each head.
            let first = |x: Tensor<1>| x.reshape([heads, p]).narrow(1, 0, 1).reshape([heads]);
            let (y, next) = match duality {
                false => selective_scan(SelectiveScan {
                    d: Some(d.clone()),
                    z: Some(row(&z)),
                    delta_bias: Some(bias.clone()),
                    softplus: true,
                    h0: Some(h),
                    keep_state: true,
                    ..SelectiveScan::new(row(&x), row(&dt), a.clone(), of_group(&b), of_group(&c))
                })?,
                true => {
                    let (y, h) = ssd(Ssd {
                        d: Some(d.clone()),
                        z: Some(of_head(row(&z))),
                        dt_bias: Some(first(bias.clone())),
                        softplus: true,
                        h0: Some(h.reshape([batch, heads, p, n])),
                        keep_state: true,
                        ..Ssd::new(
                            of_head(row(&x)),
                            of_head(row(&dt)).narrow(3, 0, 1).squeeze_dim(3),
                            first(a.clone().narrow(1, 0, 1).reshape([channels])),
                            of_group(&b),
                            of_group(&c),
                        )
                    })?;
                    (y.reshape([batch, 1, channels]), h.map(|h| h.reshape([batch, channels, n])))
                }
            };
            h = next.ok_or("no state")?;
            out.extend(values(y));
            states.extend(values(h.clone()));
        }
        golden.compare("out.out", &out)?;
        golden.compare("out.states", &states)?;
    }
    Ok(())
}

/// The norm at the end of Mamba-2's layer.
pub fn gated_norm(golden: &Golden) -> Result<(), Failure> {
    let rows: [usize; 3] = shape(golden, "x")?;
    let (x, z) = (leaf(golden, "x", rows)?, leaf(golden, "z", rows)?);
    let weight = leaf(golden, "weight", [rows[2]])?;
    let bias = golden.has("in.bias").then(|| leaf(golden, "bias", [rows[2]])).transpose()?;
    let options = GatedNorm {
        groups: golden.config()["group_size"].as_u64().map_or(1, |size| rows[2] / size as usize),
        before_gate: golden.config()["norm_before_gate"] == true,
        eps: golden.config()["eps"].as_f64().ok_or("config.eps")?,
    };
    let y = gated_rms_norm(x.clone(), z.clone(), weight.clone(), bias.clone(), options);
    golden.compare("out.out", &values(y.clone()))?;
    let grads = against(golden, "cot.out", &y)?.backward();
    gradient(golden, "x", &x, &grads)?;
    gradient(golden, "z", &z, &grads)?;
    gradient(golden, "weight", &weight, &grads)?;
    bias.map_or(Ok(()), |bias| gradient(golden, "bias", &bias, &grads))
}

/// Mamba-2's layer between its projections; the one in front is made the identity.
pub fn mixer(golden: &Golden) -> Result<(), Failure> {
    let [batch, len, width] = shape(golden, "zxbcdt")?;
    let (heads, p) = (golden.number("heads")?, golden.number("head_dim")?);
    let inner = heads * p;
    let config = Mamba2Config::new()
        .with_d_inner(inner)
        .with_head_dim(p)
        .with_d_state(golden.number("d_state")?)
        .with_d_conv(golden.number("d_conv")?)
        .with_n_groups(golden.number("groups")?)
        .with_chunk(4)
        .with_norm(Some(inner / golden.number("norm_group_size")?), false);
    let mut mixer = config.init(width, 1, &Streams::new(0), 0, &Device::flex())?;
    let identity = (0..width * width).map(|i| if i % (width + 1) == 0 { 1.0 } else { 0.0 });
    let identity = TensorData::new(identity.collect::<Vec<f32>>(), [width, width]);
    let linear = |weight| Linear { weight: Param::from_tensor(weight), bias: None, lora: None };
    mixer.in_proj = linear(Tensor::from_data(identity, &Device::flex()));
    mixer.out_proj = linear(plain(golden, "in.out_proj", shape(golden, "out_proj")?)?);
    let [channels, k] = shape(golden, "conv_weight")?;
    let weight = plain(golden, "in.conv_weight", [channels, 1, k])?;
    mixer.conv1d.weight = Param::from_tensor(weight);
    let of = |name: &str, n: usize| -> Result<Param<Tensor<1>>, Failure> {
        Ok(Param::from_tensor(plain(golden, &format!("in.{name}"), [n])?))
    };
    mixer.conv1d.bias = Some(of("conv_bias", channels)?);
    (mixer.dt_bias, mixer.D) = (of("dt_bias", heads)?, of("D", heads)?);
    let a = golden.floats("in.A")?;
    mixer.A_log = of("A", heads)?.map(|a| a.neg().log());
    mixer.norm.as_mut().ok_or("no norm")?.weight = of("norm_weight", inner)?;
    let mixer: Mamba2 = mixer.train();

    let x = leaf(golden, "zxbcdt", [batch, len, width])?;
    let tokens = TokenMeta::contiguous(batch, len, 0);
    let ctx = MixContext { phase: Phase::Train, ..MixContext::infer(&tokens) };
    let y = mixer.forward(x.clone(), &ctx, None)?.y;
    golden.compare("out.out", &values(y.clone()))?;
    let grads = against(golden, "cot.out", &y)?.backward();
    gradient(golden, "zxbcdt", &x, &grads)?;
    let of = params(&mixer);
    let grads = GradientsParams::from_grads(grads, &mixer);
    for (path, name) in [
        ("conv1d.weight", "conv_weight"),
        ("conv1d.bias", "conv_bias"),
        ("dt_bias", "dt_bias"),
        ("A_log", "A"),
        ("D", "D"),
        ("norm.weight", "norm_weight"),
        ("out_proj.weight", "out_proj"),
    ] {
        let param = of.iter().find(|p| p.path == path).ok_or(path)?;
        let grad = match param.shape.len() {
            1 => grads.get::<1>(param.id).map(values),
            2 => grads.get::<2>(param.id).map(values),
            _ => grads.get::<3>(param.id).map(values),
        };
        let mut grad = grad.ok_or("no gradient")?;
        if path == "A_log" {
            // A = −e^A_log, so that dA = dA_log / A.
            grad.iter_mut().zip(&a).for_each(|(grad, a)| *grad /= a);
        }
        golden.compare(&format!("grad.{name}"), &grad)?;
    }
    Ok(())
}
