//! Mamba's layers document by document and token by token.

use crate::attention::{Conv1d, Linear, Mamba1, Mamba2, Mamba2Config};
use burn::tensor::Tensor;
use burn::tensor::activation::silu;
use longburn_kernels::TokenMeta;

type Matrix = Tensor<2>;

/// What a [`Mamba1`] layer must answer, `[B, T, D]` -> `[B, T, D]`.
pub fn mamba1(layer: &Mamba1, x: Tensor<3>, tokens: &TokenMeta) -> Tensor<3> {
    let ([e, n], (rank, _)) = (layer.A_log.dims(), layer.dt_proj.features());
    let mixed = documents(x, tokens, e, |x| {
        let xz = linear(&layer.in_proj, x);
        let (stream, gate) = (columns(&xz, 0, e), columns(&xz, e, e));
        let mut h = layer.A_log.val().zeros_like();
        let answer = |t: usize| {
            let u = convolved(&layer.conv1d, &stream, t);
            let made = linear(&layer.x_proj, u.clone());
            let step = softplus(linear(&layer.dt_proj, columns(&made, 0, rank)));
            let (b, c) = (columns(&made, rank, n), columns(&made, rank + n, n));
            let decay = (layer.A_log.val().exp().neg() * step.clone().transpose()).exp();
            h = decay * h.clone() + (step * u.clone()).transpose().matmul(b);
            let y = h.clone().matmul(c.transpose()).transpose() + layer.D.val().unsqueeze() * u;
            y * silu(row(&gate, t))
        };
        (0..gate.dims()[0]).map(answer).collect()
    });
    project(&layer.out_proj, mixed)
}

/// What a [`Mamba2`] layer with this configuration must answer, `[B, T, D]` -> `[B, T, D]`.
pub fn mamba2(
    layer: &Mamba2,
    config: &Mamba2Config,
    x: Tensor<3>,
    tokens: &TokenMeta,
) -> Tensor<3> {
    let (heads, p) = (layer.A_log.dims()[0], config.head_dim);
    let (e, n, groups) = (heads * p, config.d_state, config.n_groups);
    let mixed = documents(x, tokens, e, |x| {
        let all = linear(&layer.in_proj, x);
        let gate = columns(&all, 0, e);
        let stream = columns(&all, e, e + 2 * groups * n);
        let steps = columns(&all, 2 * e + 2 * groups * n, heads);
        let mut states = vec![Matrix::zeros([p, n], &gate.device()); heads];
        let answer = |t: usize| {
            let xbc = convolved(&layer.conv1d, &stream, t);
            let step = softplus(row(&steps, t) + layer.dt_bias.val().unsqueeze());
            let of_head = |(head, h): (usize, &mut Matrix)| {
                let number = |of: Matrix| columns(&of, head, 1);
                let mut step = number(step.clone());
                if let Some((low, high)) = config.dt_limit {
                    step = step.clamp(low, high);
                }
                let group = head / (heads / groups);
                let x = columns(&xbc, head * p, p).transpose();
                let b = columns(&xbc, e + group * n, n);
                let c = columns(&xbc, e + (groups + group) * n, n);
                let a = number(layer.A_log.val().exp().neg().unsqueeze());
                *h = (step.clone() * a).exp() * h.clone() + (x.clone() * step).matmul(b);
                let skip = match config.d_has_head_dim {
                    true => columns(&layer.D.val().unsqueeze(), head * p, p).transpose(),
                    false => number(layer.D.val().unsqueeze()),
                };
                (h.clone().matmul(c.transpose()) + x * skip).transpose()
            };
            let y = Tensor::cat(states.iter_mut().enumerate().map(of_head).collect(), 1);
            ended(layer, config, y, silu(row(&gate, t)))
        };
        (0..gate.dims()[0]).map(answer).collect()
    });
    project(&layer.out_proj, mixed)
}

/// Gate and norm of one token, `[1, E]` each.
fn ended(layer: &Mamba2, config: &Mamba2Config, y: Matrix, gate: Matrix) -> Matrix {
    let Some(norm) = &layer.norm else { return y * gate };
    let y = if config.norm_before_gate { y } else { y * gate.clone() };
    let groups = config.norm_groups.unwrap_or(config.n_groups);
    let width = y.dims()[1] / groups;
    let normed = (0..groups).map(|group| {
        let part = columns(&y, group * width, width);
        let size = part.clone().square().mean_dim(1).add_scalar(config.norm_eps).sqrt();
        part / size
    });
    let y = Tensor::cat(normed.collect(), 1) * norm.weight.val().unsqueeze();
    if config.norm_before_gate { y * gate } else { y }
}

/// Every document by itself, zeros for padding: `[B, T, D] -> [B, T, width]`.
fn documents(
    x: Tensor<3>,
    tokens: &TokenMeta,
    width: usize,
    alone: impl Fn(Matrix) -> Vec<Matrix>,
) -> Tensor<3> {
    let [batch, len, d] = x.dims();
    let mut rows = Vec::new();
    for b in 0..batch {
        let segment = &tokens.segment()[b * len..(b + 1) * len];
        let token = |t: &usize| x.clone().narrow(0, b, 1).narrow(1, *t, 1).reshape([1, d]);
        let mut answers = vec![Matrix::zeros([1, width], &x.device()); len];
        for document in 0..=segment.iter().copied().max().unwrap_or(-1) {
            let places: Vec<usize> = (0..len).filter(|t| segment[*t] == document).collect();
            if !places.is_empty() {
                let found = alone(Tensor::cat(places.iter().map(token).collect(), 0));
                places.into_iter().zip(found).for_each(|(t, y)| answers[t] = y);
            }
        }
        rows.push(Tensor::cat(answers, 0).unsqueeze_dim(0));
    }
    Tensor::cat(rows, 0)
}

/// Token t of the convolved stream, after silu.
fn convolved(conv: &Conv1d, stream: &Matrix, t: usize) -> Matrix {
    let [channels, _, taps] = conv.weight.dims();
    let mut sum = match &conv.bias {
        Some(bias) => bias.val().unsqueeze(),
        None => Matrix::zeros([1, channels], &stream.device()),
    };
    for j in (0..taps).filter(|j| t + j + 1 >= taps) {
        let weight = conv.weight.val().narrow(2, j, 1).reshape([1, channels]);
        sum = sum + row(stream, t + j + 1 - taps) * weight;
    }
    silu(sum)
}

fn linear(layer: &Linear, x: Matrix) -> Matrix {
    let y = x.matmul(layer.weight.val().transpose());
    match &layer.bias {
        Some(bias) => y + bias.val().unsqueeze(),
        None => y,
    }
}

fn project(layer: &Linear, x: Tensor<3>) -> Tensor<3> {
    let [batch, len, width] = x.dims();
    let y = linear(layer, x.reshape([batch * len, width]));
    let out = y.dims()[1];
    y.reshape([batch, len, out])
}

fn row(x: &Matrix, t: usize) -> Matrix {
    x.clone().narrow(0, t, 1)
}

fn columns(x: &Matrix, first: usize, count: usize) -> Matrix {
    x.clone().narrow(1, first, count)
}

fn softplus(x: Matrix) -> Matrix {
    x.exp().log1p()
}
