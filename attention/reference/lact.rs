//! A LaCT layer document by document, head by head, gradient token by token.

use crate::attention::lact::{InitialWeight, Lact, WeightNorm};
use crate::attention::newton_schulz::NewtonSchulz;
use crate::attention::{Linear, RmsNorm};
use crate::positional::RopeTable;
use burn::tensor::activation::{sigmoid, silu, softmax};
use burn::tensor::{Bool, Tensor, TensorData};
use longburn_kernels::TokenMeta;

type Matrix = Tensor<2>;

/// `[B, T, D]` -> `[B, T, D]`: what `layer` must answer.
pub fn lact(layer: &Lact, x: Tensor<3>, tokens: &TokenMeta, rope: Option<&RopeTable>) -> Tensor<3> {
    let [b, t, d] = x.dims();
    let mut rows = Vec::new();
    for row in 0..b {
        let segment = &tokens.segment()[row * t..(row + 1) * t];
        let token = |i: usize| x.clone().narrow(0, row, 1).narrow(1, i, 1).reshape([1, d]);
        let mut answers: Vec<Matrix> = (0..t).map(|i| token(i).zeros_like()).collect();
        let mut i = 0;
        while i < t {
            let end = (i..t).find(|j| segment[*j] != segment[i]).unwrap_or(t);
            if segment[i] >= 0 {
                let document = Tensor::cat((i..end).map(token).collect(), 0);
                let angles = rope.map(|rope| {
                    let of = |x: &Tensor<4>| {
                        let row = if x.dims()[0] == 1 { 0 } else { row };
                        let half = x.dims()[3];
                        let of_row = x.clone().narrow(0, row, 1).narrow(2, i, end - i);
                        of_row.reshape([end - i, half])
                    };
                    (of(&rope.cos), of(&rope.sin))
                });
                let mixed = of_document(layer, document, angles.as_ref());
                #[allow(clippy::needless_range_loop)]
                for j in i..end {
                    answers[j] = mixed.clone().narrow(0, j - i, 1);
                }
            }
            i = end;
        }
        rows.push(linear(&layer.out_proj, Tensor::cat(answers, 0)).unsqueeze_dim(0));
    }
    Tensor::cat(rows, 0)
}

fn linear(layer: &Linear, x: Matrix) -> Matrix {
    let y = x.matmul(layer.weight.val().transpose());
    match &layer.bias {
        Some(bias) => y + bias.val().unsqueeze(),
        None => y,
    }
}

fn rms(norm: &RmsNorm, x: Matrix) -> Matrix {
    let scale = x.clone().square().mean_dim(1).add_scalar(1e-5).sqrt();
    x / scale * norm.weight.val().unsqueeze()
}

fn columns(x: &Matrix, head: usize, heads: usize) -> Matrix {
    let width = x.dims()[1] / heads;
    x.clone().narrow(1, head * width, width)
}

/// Turn each head's halves by the token's angles.
fn turn(x: Matrix, heads: usize, (cos, sin): &(Matrix, Matrix)) -> Matrix {
    let half = cos.dims()[1];
    let turned = (0..heads).map(|head| {
        let x = columns(&x, head, heads);
        let (a, b) = (x.clone().narrow(1, 0, half), x.narrow(1, half, half));
        let left = a.clone() * cos.clone() - b.clone() * sin.clone();
        Tensor::cat(vec![left, b * cos.clone() + a * sin.clone()], 1)
    });
    Tensor::cat(turned.collect(), 1)
}

/// Tokens `[n, D]` of one document -> both branches together, `[n, D]`.
fn of_document(layer: &Lact, x: Matrix, angles: Option<&(Matrix, Matrix)>) -> Matrix {
    let config = layer.config();
    let [n, width] = x.dims();
    let (heads, fast_heads) = (layer.heads, config.fast_heads);
    let qkv = linear(&layer.qkv, x.clone());
    let [mut q, mut k, v] = [0, 1, 2].map(|i| columns(&qkv, i, 3));
    if let (Some(norm_q), Some(norm_k)) = (&layer.norm_q, &layer.norm_k) {
        (q, k) = (rms(norm_q, q), rms(norm_k, k));
    }

    let of_fast = |x: &Matrix, i: usize| {
        let channel = |of: Matrix| of.narrow(1, i, 1).transpose();
        let x = x.clone() * channel(layer.qk_scale.val()) + channel(layer.qk_offset.val());
        let unit = (0..fast_heads).map(|head| {
            let x = silu(columns(&x, head, fast_heads));
            x.clone() / x.square().sum_dim(1).sqrt().add_scalar(1e-5)
        });
        let x = Tensor::cat(unit.collect(), 1);
        match angles.filter(|_| config.rotate) {
            Some(angles) => turn(x, heads, angles),
            None => x,
        }
    };
    let (fast_q, fast_k) = (of_fast(&q, 0), of_fast(&k, 1));
    let fast_v = if config.silu_v { silu(v.clone()) } else { v.clone() };

    if let Some(angles) = angles {
        (q, k) = (turn(q, heads, angles), turn(k, heads, angles));
    }
    let hidden = |i: usize, j: usize| j > i || i - j >= config.window;
    let hidden: Vec<bool> = (0..n * n).map(|at| hidden(at / n, at % n)).collect();
    let hidden = Tensor::<2, Bool>::from_data(TensorData::new(hidden, [n, n]), &x.device());
    let attended = (0..heads).map(|head| {
        let [q, k, v] = [&q, &k, &v].map(|x| columns(x, head, heads));
        let scores = q.matmul(k.transpose()).div_scalar((width as f64 / heads as f64).sqrt());
        softmax(scores.mask_fill(hidden.clone(), -1e30), 1).matmul(v)
    });
    let attended = Tensor::cat(attended.collect(), 1);

    // ln(1 + e^(z + r)) with r such that z = 0 gives the base.
    let inverse = (config.base_lr.exp() - 1.0).ln();
    let rates = linear(&layer.lr_proj, x.clone()).add_scalar(inverse).exp().log1p();
    let shares = layer.momentum_proj.as_ref().map(|proj| sigmoid(linear(proj, x.clone())));
    let scales = layer.ttt_scale_proj.as_ref().map(|proj| silu(linear(proj, x.clone())));
    let read = (0..fast_heads).map(|head| {
        let [q, k, v] = [&fast_q, &fast_k, &fast_v].map(|x| columns(x, head, fast_heads));
        let rates = columns(&rates, head, fast_heads);
        let share = shares.as_ref().map(|shares| columns(shares, head, fast_heads));
        let read = of_head(layer, head, [q, k, v], rates, share);
        let read = rms(&layer.ttt_norm, read);
        match &scales {
            Some(scales) => read * columns(scales, head, fast_heads),
            None => read,
        }
    });
    attended + Tensor::cat(read.collect(), 1)
}

/// `W1·(silu(W0·x) ⊙ W2·x)` of rows x.
fn network([w0, w1, w2]: &[Matrix; 3], x: Matrix) -> Matrix {
    let gate = silu(x.clone().matmul(w0.clone().transpose()));
    (gate * x.matmul(w2.clone().transpose())).matmul(w1.clone().transpose())
}

/// What one head reads, `[n, d]`, learning chunk after chunk.
fn of_head(
    layer: &Lact,
    head: usize,
    [q, k, v]: [Matrix; 3],
    rates: Matrix,
    shares: Option<Matrix>,
) -> Matrix {
    let config = layer.config();
    let initial = |w: &InitialWeight| {
        let w = w.weights().narrow(1, head, 1);
        let [_, _, rows, columns] = w.dims();
        w.reshape([rows, columns])
    };
    let initial = [&layer.w0, &layer.w1, &layer.w2].map(initial);
    let rule = config.rule();
    let n = q.dims()[0];
    let length = |w: &Matrix| w.clone().square().sum_dim(1).sqrt();
    let (mut w, mut main) = (initial.clone(), initial.clone());
    let mut last: Option<[Matrix; 3]> = None;
    let mut read = Vec::new();
    let mut start = 0;
    loop {
        let end = n.min(start + config.chunk);
        read.push(network(&w, q.clone().narrow(0, start, end - start)));
        if end == n {
            return Tensor::cat(read, 0);
        }
        let token = |i: usize| {
            let row = |x: &Matrix| x.clone().narrow(0, i, 1);
            gradient(&w, row(&k), row(&v), row(&rates))
        };
        let mut step = (start..end)
            .map(token)
            .reduce(|a, b| [0, 1, 2].map(|i| a[i].clone() + b[i].clone()))
            .expect("a chunk has tokens");
        if let Some(shares) = &shares {
            let share = shares.clone().narrow(0, start, end - start).mean_dim(0);
            if let Some(last) = &last {
                step = [0, 1, 2].map(|i| step[i].clone() + last[i].clone() * share.clone());
            }
            last = Some(step.clone());
        }
        if rule.orthogonal.is_some() {
            step = step.map(|step| NewtonSchulz::LACT.orthogonalize(step));
        }
        main = [0, 1, 2].map(|i| match rule.norm {
            WeightNorm::Post => w[i].clone() + step[i].clone(),
            WeightNorm::Pre => main[i].clone() + step[i].clone(),
        });
        w = [0, 1, 2]
            .map(|i| main[i].clone() / length(&main[i]).add_scalar(1e-5) * length(&initial[i]));
        start = end;
    }
}

/// Gradients of `rate·⟨f(k), v⟩` of one token, k and v `[1, d]`.
fn gradient([w0, w1, w2]: &[Matrix; 3], k: Matrix, v: Matrix, rates: Matrix) -> [Matrix; 3] {
    let rate = |i: usize| rates.clone().narrow(1, i, 1);
    let gate = k.clone().matmul(w0.clone().transpose());
    let up = k.clone().matmul(w2.clone().transpose());
    let back = v.clone().matmul(w1.clone());
    let s = sigmoid(gate.clone());
    let slope = s.clone() * (gate.clone() * (s.neg().add_scalar(1.0))).add_scalar(1.0);
    [
        (back.clone() * up.clone() * slope).transpose().matmul(k.clone()) * rate(0),
        v.transpose().matmul(silu(gate.clone()) * up) * rate(1),
        (back * silu(gate)).transpose().matmul(k) * rate(2),
    ]
}
