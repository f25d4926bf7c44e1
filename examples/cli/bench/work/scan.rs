//! State-space scans, forward and backward.

use super::{Lazy, Work, calls, handed, lazy};
use crate::bench::inputs;
use crate::bench::job::{ScanJob, ScanKind};
use burn::tensor::activation::{silu, softplus};
use burn::tensor::{Device, Tensor};
use longburn::Result;
use longburn::kernel::{SelectiveScan, Ssd, selective_scan, ssd};

/// Tokens per chunk where tensor operations compute Mamba-2's scan.
const CHUNK: usize = 64;

/// What both kinds of scan take. Heads of one channel each are Mamba-1's.
struct Inputs {
    /// `[B, T, E]`
    u: Tensor<3>,
    /// Before softplus, `[B, T, E]` or `[B, T, H]`
    delta: Tensor<3>,
    /// Its negative exponential is A: `[E, N]` or `[H, 1]`
    a: Tensor<2>,
    /// `[B, T, N]`
    b: Tensor<3>,
    c: Tensor<3>,
    /// `[E]` or `[H]`
    d: Tensor<1>,
    /// `[B, T, E]`
    z: Tensor<3>,
    dy: Tensor<3>,
}

impl Inputs {
    fn new(job: &ScanJob, device: &Device) -> Self {
        let (rows, states) = ([job.batch, job.len, job.width], [job.batch, job.len, job.states]);
        let (steps, of_a) = match job.kind {
            ScanKind::Selective => (job.width, [job.width, job.states]),
            ScanKind::Ssd => (job.heads(), [job.heads(), 1]),
        };
        Self {
            u: inputs::tensor(rows, 1, 1.0, device),
            delta: inputs::tensor([job.batch, job.len, steps], 2, 1.0, device),
            a: inputs::tensor(of_a, 3, 0.5, device),
            b: inputs::tensor(states, 4, 0.5, device),
            c: inputs::tensor(states, 5, 0.5, device),
            d: inputs::tensor([steps], 6, 1.0, device),
            z: inputs::tensor(rows, 7, 1.0, device),
            dy: inputs::tensor(rows, 8, 1.0, device),
        }
    }

    /// Leaves of a graph.
    fn leaves(&self) -> Self {
        let leaf = |x: &Tensor<3>| x.clone().autodiff().require_grad();
        Self {
            u: leaf(&self.u),
            delta: leaf(&self.delta),
            a: self.a.clone().autodiff().require_grad(),
            b: leaf(&self.b),
            c: leaf(&self.c),
            d: self.d.clone().autodiff().require_grad(),
            z: leaf(&self.z),
            dy: self.dy.clone().autodiff(),
        }
    }

    fn found(&self, y: Tensor<3>) -> Vec<Lazy> {
        let value = y.clone().inner();
        let grads = handed::backward(y, self.dy.clone());
        let mut found = vec![lazy("y", value)];
        let leaves = [
            ("du", &self.u),
            ("ddelta", &self.delta),
            ("db", &self.b),
            ("dc", &self.c),
            ("dz", &self.z),
        ];
        for (name, leaf) in leaves {
            found.extend(leaf.grad(&grads).map(|grad| lazy(name, grad)));
        }
        found.extend(self.a.grad(&grads).map(|grad| lazy("da", grad)));
        found
    }
}

fn run(
    job: ScanJob,
    device: &Device,
    scan: impl Fn(&Inputs) -> Result<Tensor<3>> + 'static,
) -> Box<dyn Work> {
    let all = Inputs::new(&job, device);
    let backward = job.backward;
    calls(device, move || {
        if !backward {
            return Ok(vec![lazy("y", scan(&all)?)]);
        }
        let x = all.leaves();
        let y = scan(&x)?;
        Ok(x.found(y))
    })
}

pub fn ours(job: ScanJob, device: &Device) -> Box<dyn Work> {
    let [batch, len, width, states] = [job.batch, job.len, job.width, job.states];
    run(job, device, move |x| {
        let a = x.a.clone().exp().neg();
        let of_group = |x: &Tensor<3>| x.clone().reshape([batch, len, 1, states]);
        let (b, c) = (of_group(&x.b), of_group(&x.c));
        match job.kind {
            ScanKind::Selective => Ok(selective_scan(SelectiveScan {
                d: Some(x.d.clone()),
                z: Some(x.z.clone()),
                softplus: true,
                ..SelectiveScan::new(x.u.clone(), x.delta.clone(), a, b, c)
            })?
            .0),
            ScanKind::Ssd => {
                let heads =
                    |x: &Tensor<3>| x.clone().reshape([batch, len, job.heads(), job.head_dim]);
                let y = ssd(Ssd {
                    d: Some(x.d.clone()),
                    z: Some(heads(&x.z)),
                    softplus: true,
                    chunk: CHUNK,
                    ..Ssd::new(heads(&x.u), x.delta.clone(), a.squeeze_dim(1), b, c)
                })?;
                Ok(y.0.reshape([batch, len, width]))
            }
        }
    })
}

/// Tensor operations alone: all states at once by doubling, or all chunks at once.
pub fn stock(job: ScanJob, device: &Device) -> Box<dyn Work> {
    let read = match job.kind {
        ScanKind::Selective => doubled,
        ScanKind::Ssd => chunked,
    };
    run(job, device, move |x| Ok(operations(job, x, read)))
}

/// Tensor operations alone, one token after another: the recurrence as papers write it.
pub fn recurrence(job: ScanJob, device: &Device) -> Box<dyn Work> {
    run(job, device, move |x| Ok(operations(job, x, one_by_one)))
}

/// What `read` makes of Delta and A, with what passes by the state, and the gate.
fn operations(
    job: ScanJob,
    x: &Inputs,
    read: fn(&Inputs, Tensor<3>, Tensor<2>) -> Tensor<3>,
) -> Tensor<3> {
    let d = x.d.clone().unsqueeze_dim::<2>(1).expand([job.heads(), job.head_dim]);
    let y = read(x, softplus(x.delta.clone(), 1.0), x.a.clone().exp().neg());
    (y + x.u.clone() * d.reshape([1, 1, job.width])) * silu(x.z.clone())
}

/// Delta `[B, T, H]`, A `[H, N or 1]` -> y `[B, T, E]`
fn one_by_one(x: &Inputs, delta: Tensor<3>, a: Tensor<2>) -> Tensor<3> {
    let ([batch, len, width], heads) = (x.u.dims(), delta.dims()[2]);
    let (n, p) = (x.b.dims()[2], width / heads);
    let token = |x: &Tensor<3>, t: usize| x.clone().narrow(1, t, 1);
    // `[B, H, P, N]`
    let mut h = Tensor::<4>::zeros([batch, heads, p, n], &delta.device());
    let of_a = a.dims()[1];
    let a = a.reshape([1, heads, 1, of_a]);
    let mut y = Vec::with_capacity(len);
    for t in 0..len {
        let delta = token(&delta, t).reshape([batch, heads, 1, 1]);
        let input = token(&x.u, t).reshape([batch, heads, p, 1]) * delta.clone();
        h = (delta * a.clone()).exp() * h + input * token(&x.b, t).reshape([batch, 1, 1, n]);
        let read = h.clone() * token(&x.c, t).reshape([batch, 1, 1, n]);
        y.push(read.sum_dim(3).reshape([batch, 1, width]));
    }
    Tensor::cat(y, 1)
}

/// Delta `[B, T, E]`, A `[E, N]` -> y `[B, T, E]`
fn doubled(x: &Inputs, delta: Tensor<3>, a: Tensor<2>) -> Tensor<3> {
    let len = delta.dims()[1];
    let mut decay = (delta.clone().unsqueeze_dim::<4>(3) * a.unsqueeze()).exp();
    let input = (delta * x.u.clone()).unsqueeze_dim::<4>(3);
    let mut h = input * x.b.clone().unsqueeze_dim(2);
    let mut step = 1;
    while step < len {
        let rest = len - step;
        let late = decay.clone().narrow(1, step, rest);
        let sum = h.clone().narrow(1, step, rest) + late.clone() * h.clone().narrow(1, 0, rest);
        h = Tensor::cat(vec![h.narrow(1, 0, step), sum], 1);
        let both = late * decay.clone().narrow(1, 0, rest);
        decay = Tensor::cat(vec![decay.narrow(1, 0, step), both], 1);
        step *= 2;
    }
    (h * x.c.clone().unsqueeze_dim(2)).sum_dim(3).squeeze_dim(3)
}

/// Delta `[B, T, H]`, A `[H, 1]`, for whole chunks -> y `[B, T, E]`
fn chunked(x: &Inputs, delta: Tensor<3>, a: Tensor<2>) -> Tensor<3> {
    let ([batch, len, width], heads) = (x.u.dims(), delta.dims()[2]);
    let (n, p, q) = (x.b.dims()[2], width / heads, CHUNK.min(len));
    let chunks = len / q;
    // `[B, chunks, H, Q, ..]`
    let split = |x: Tensor<3>| {
        let each = x.dims()[2] / heads;
        x.reshape([batch, chunks, q, heads, each]).swap_dims(2, 3)
    };
    let of_group = |x: &Tensor<3>| x.clone().reshape([batch, chunks, 1, q, n]);
    let (b, c) = (of_group(&x.b), of_group(&x.c));
    let log_decay = split(delta.clone() * a.reshape([1, 1, heads]));
    let input = split(x.u.clone()) * split(delta);
    let up_to = Tensor::<2>::ones([q, q], &input.device()).tril(0);
    let sums = log_decay.clone().cumsum(3);
    let apart = sums.clone() - sums.clone().swap_dims(3, 4);
    let decay = apart.clamp_max(0.0).exp() * up_to.unsqueeze();
    let mixed = c.clone().matmul(b.clone().swap_dims(3, 4)) * decay.clone();
    let within = mixed.matmul(input.clone());
    let left = decay.narrow(3, q - 1, 1).swap_dims(3, 4);
    let added = b.swap_dims(3, 4).repeat_dim(2, heads).matmul(input * left);
    let entered = sums.exp();
    let all = entered.clone().narrow(3, q - 1, 1);
    let mut h = Tensor::zeros([batch, 1, heads, n, p], &added.device());
    let mut before = Vec::with_capacity(chunks);
    for i in 0..chunks {
        before.push(h.clone());
        h = h * all.clone().narrow(1, i, 1) + added.clone().narrow(1, i, 1);
    }
    let across = c.repeat_dim(2, heads).matmul(Tensor::cat(before, 1)) * entered;
    (within + across).swap_dims(2, 3).reshape([batch, len, width])
}
