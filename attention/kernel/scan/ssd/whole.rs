//! Whole rows out of tensor operations, any device: all chunks of a run of tokens at once, so that a pass
//! is a few dozen operations however many chunks there are.
//!
//! Sums of logarithms of decays are products with triangles of ones: each is of the tokens that it spans
//! and no others. States go from chunk to chunk by a product, too: decays between chunks are those between
//! tokens, with what a chunk leaves in the place of a token's input. What heads share is multiplied once
//! for all heads of a group, with their channels side by side. A run is no more tokens than make tensors of
//! [`MOST`] numbers; longer rows are several runs, each of which goes on from the one before.

mod across;
mod within;

use super::{Inputs, Plan};
use crate::linear::products_on_card as products;
use crate::scan::wide;
use burn::tensor::{DType, Tensor, TensorData};

/// Numbers of the largest tensors.
const MOST: usize = 1 << 25;
/// Chunks of a run: a product hands states from each to all later ones.
const CHUNKS: usize = 128;
/// Tokens of a chunk: with more, pairs of tokens are more numbers than states.
const TOKENS: usize = 128;

/// y and the state behind it, `[B, T (+ N), E]`.
pub(super) fn forward(x: Inputs, plan: &Plan) -> Tensor<3> {
    let rows = Rows::new(x, plan);
    let mut h = rows.of_states(rows.x.h0.clone().cast(rows.kind));
    let mut out = Vec::new();
    let runs = rows.runs();
    for (i, (first, tokens)) in runs.iter().enumerate() {
        let run = rows.at(*first, *tokens);
        let states = run.states(h);
        let y = run.within() + run.of_before(&run.before(&states));
        let y = match rows.skip() {
            Some(d) => y + run.x.clone() * d,
            None => y,
        };
        out.push(run.rows(y, rows.x.x.dtype()));
        let last = i + 1 == runs.len();
        h = run.behind(states);
        if last && plan.keep_state {
            out.push(rows.to_states(h.clone()).cast(rows.x.x.dtype()));
        }
    }
    joined(out)
}

/// Gradients of all inputs, from the last run to the first.
pub(super) fn gradients(x: Inputs, dout: Tensor<3>, plan: &Plan) -> Inputs {
    let rows = Rows::new(x, plan);
    let (x, kind) = (&rows.x, rows.kind);
    let dout = dout.cast(kind);
    let runs = rows.runs();
    // What each run goes on from, and what that of the last run leaves.
    let mut before = vec![rows.of_states(x.h0.clone().cast(kind))];
    for (first, tokens) in &runs[..runs.len() - 1] {
        let run = rows.at(*first, *tokens);
        let states = run.states(before[before.len() - 1].clone());
        before.push(run.behind(states));
    }
    let mut carry = match plan.keep_state {
        true => rows.of_states(dout.clone().narrow(1, rows.len, rows.n)),
        false => before[0].zeros_like(),
    };
    let mut found = Vec::new();
    let mut dd: Option<Tensor<4>> = None;
    for ((first, tokens), h) in runs.iter().zip(before).rev() {
        let run = rows.at(*first, *tokens);
        let dy = run.cut(&dout, *first, *tokens, kind);
        let dy: Tensor<4> = dy.reshape([run.many(), run.q, run.heads, run.p]);
        let mut of = run.within_gradients(&dy);
        carry = run.across_gradients(&dy, h, carry, &mut of);
        let mut dx = of.input.clone() * run.weight.clone();
        if let Some(d) = rows.skip() {
            dx = dx + dy.clone() * d;
            let of_run = (dy * run.x.clone()).sum_dim(1).sum_dim(0);
            dd = Some(match dd {
                Some(sum) => sum + of_run,
                None => of_run,
            });
        }
        let dweight = (of.input * run.x.clone()).sum_dim(3);
        found.push([
            run.rows(dx, x.x.dtype()),
            run.rows(dweight, x.weight.dtype()),
            run.rows(of.log_decay, x.log_decay.dtype()),
            run.rows(run.from_groups(of.b), x.b.dtype()),
            run.rows(run.from_groups(of.c), x.c.dtype()),
        ]);
    }
    found.reverse();
    let mut parts: [Vec<Tensor<3>>; 5] = Default::default();
    for of_run in found {
        for (part, of_run) in parts.iter_mut().zip(of_run) {
            part.push(of_run);
        }
    }
    let [dx, weight, log_decay, b, c] = parts.map(joined);
    Inputs {
        x: dx,
        weight,
        log_decay,
        b,
        c,
        d: match dd {
            Some(dd) => dd.reshape([rows.heads * rows.p]).cast(x.d.dtype()),
            None => x.d.zeros_like(),
        },
        h0: rows.to_states(carry).cast(x.h0.dtype()),
    }
}

fn joined(mut parts: Vec<Tensor<3>>) -> Tensor<3> {
    if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, 1) }
}

/// A call's tensors, to be cut into runs.
struct Rows<'a> {
    x: Inputs,
    plan: &'a Plan,
    kind: DType,
    batch: usize,
    len: usize,
    heads: usize,
    groups: usize,
    n: usize,
    p: usize,
    /// Tokens per chunk, Q.
    q: usize,
    ones: Triangle,
    /// With as many rows as a run's chunks and one, which is what it goes on from.
    of_chunks: Triangle,
}

/// Ones `[Q, Q]` where the first token is not behind the second, and where it is before it.
struct Triangle {
    up_to: Tensor<2>,
    before: Tensor<2>,
}

impl Triangle {
    fn new(q: usize, like: &Tensor<3>, kind: DType) -> Self {
        let make = |is: fn(usize, usize) -> bool| {
            let data: Vec<f32> = (0..q * q).map(|i| f32::from(is(i / q, i % q))).collect();
            let data = TensorData::new(data, [q, q]);
            Tensor::<2>::from_data(data, (&like.device(), DType::F32)).cast(kind)
        };
        Self { up_to: make(|i, j| i <= j), before: make(|i, j| i < j) }
    }

    /// Decays between tokens of logarithms `[R, Q]`: from j to i at (j, i), zero where i is before j,
    /// `[R, Q, Q]`.
    fn decays(&self, log: Tensor<2>) -> Tensor<3> {
        let [rows, q] = log.dims();
        // At (j, k) the logarithm of k where it is behind j.
        let behind = log.unsqueeze_dim::<3>(1) * self.before.clone().unsqueeze();
        let sums = by_matrix(behind, self.up_to.clone());
        sums.reshape([rows, q, q]).exp() * self.up_to.clone().unsqueeze()
    }
}

/// Each row of the last dimension times a matrix.
fn by_matrix(x: Tensor<3>, matrix: Tensor<2>) -> Tensor<3> {
    let ([s, q, k], n) = (x.dims(), matrix.dims()[1]);
    products(x.reshape([s * q, k]), matrix).reshape([s, q, n])
}

/// A matrix times each `[S, Q, X]`.
fn matrix_by(matrix: Tensor<2>, x: Tensor<3>) -> Tensor<3> {
    let s = x.dims()[0];
    let [rows, k] = matrix.dims();
    products(matrix.unsqueeze::<3>().expand([s, rows, k]), x)
}

impl<'a> Rows<'a> {
    fn new(x: Inputs, plan: &'a Plan) -> Self {
        let ([batch, len, channels], kind) = (x.x.dims(), wide(x.x.dtype()));
        let (heads, groups) = (plan.heads, plan.groups);
        let n = x.b.dims()[2] / groups;
        let q = plan.chunk.min(len).min(TOKENS);
        let most = (len.div_ceil(q)).min(chunks_of_run([batch, heads, q], n * channels));
        let ones = Triangle::new(q, &x.x, kind);
        let of_chunks = Triangle::new(most + 1, &x.x, kind);
        let p = channels / heads;
        Self { x, plan, kind, batch, len, heads, groups, n, p, q, ones, of_chunks }
    }

    /// D, `[1, 1, H, P]`
    fn skip(&self) -> Option<Tensor<4>> {
        let d = self.plan.skip.then(|| self.x.d.clone().cast(self.kind));
        d.map(|d| d.reshape([1, 1, self.heads, self.p]))
    }

    /// First token and tokens of each run.
    fn runs(&self) -> Vec<(usize, usize)> {
        let tokens = (self.of_chunks.up_to.dims()[0] - 1) * self.q;
        let run = |first| (first, tokens.min(self.len - first));
        (0..self.len).step_by(tokens).map(run).collect()
    }

    /// `[B, N, E] -> [B·H, 1, N·P]`
    fn of_states(&self, h: Tensor<3>) -> Tensor<3> {
        let h = h.reshape([self.batch, self.n, self.heads, self.p]).swap_dims(1, 2);
        h.reshape([self.batch * self.heads, 1, self.n * self.p])
    }

    /// `[B·H, 1, N·P] -> [B, N, E]`
    fn to_states(&self, h: Tensor<3>) -> Tensor<3> {
        let h = h.reshape([self.batch, self.heads, self.n, self.p]).swap_dims(1, 2);
        h.reshape([self.batch, self.n, self.heads * self.p])
    }

    fn at(&self, first: usize, tokens: usize) -> Run<'_> {
        Run::new(self, first, tokens)
    }
}

/// Chunks of a run: of B, H, Q, and numbers N·E of a row's state.
fn chunks_of_run([batch, heads, q]: [usize; 3], state: usize) -> usize {
    let of_chunk = batch * (heads * q * q).max(state);
    (MOST / of_chunk).clamp(1, CHUNKS)
}

/// Chunks of Q tokens of all rows, S of them: M of each row. Behind the last token x, B, C and logarithms
/// of decays are zero.
struct Run<'a> {
    of: &'a Rows<'a>,
    chunks: usize,
    tokens: usize,
    q: usize,
    heads: usize,
    groups: usize,
    n: usize,
    p: usize,
    /// `[S, Q, H, P]`
    x: Tensor<4>,
    /// `[S, Q, H, 1]`
    weight: Tensor<4>,
    /// x times weight.
    input: Tensor<4>,
    /// The same by heads, `[S·H, Q, P]`
    by_heads: Tensor<3>,
    /// `[S·G, Q, N]`
    b: Tensor<3>,
    c: Tensor<3>,
    /// From token j to i at (j, i), `[S·H, Q, Q]`
    decay: Tensor<3>,
    /// From before the chunk to each token, `[S, Q, H, 1]`
    entered: Tensor<4>,
    /// From each token to the chunk's end, `[S, Q, H, 1]`
    left: Tensor<4>,
    /// Between the beginnings of chunks, and the end of the last: from c to z at (c, z),
    /// `[B·H, M + 1, M + 1]`
    passed: Tensor<3>,
    /// Over each chunk, `[B·H, M, 1]`
    whole: Tensor<3>,
}

/// Gradients of a run's tensors.
struct OfRun {
    /// Of x times weight, `[S, Q, H, P]`
    input: Tensor<4>,
    /// `[S, Q, H, 1]`
    log_decay: Tensor<4>,
    /// `[S·G, Q, N]`
    b: Tensor<3>,
    c: Tensor<3>,
}

impl<'a> Run<'a> {
    fn new(of: &'a Rows<'a>, first: usize, tokens: usize) -> Self {
        let Rows { batch, heads, groups, n, p, q, kind, .. } = *of;
        let chunks = tokens.div_ceil(q);
        let many = batch * chunks;
        let cut = |x: &Tensor<3>| cut(x, first, tokens, chunks * q).cast(kind);
        let x = cut(&of.x.x).reshape([many, q, heads, p]);
        let weight = cut(&of.x.weight).reshape([many, q, heads, 1]);
        let input = x.clone() * weight.clone();
        let log = cut(&of.x.log_decay).reshape([many, q, heads]);
        let entered = matrix_by(of.ones.up_to.clone().transpose(), log.clone());
        let left = matrix_by(of.ones.before.clone(), log.clone());
        let by_heads = |x: Tensor<4>| {
            let width = x.dims()[3];
            x.swap_dims(1, 2).reshape([many * heads, q, width])
        };
        let decay = of.ones.decays(by_heads(log.unsqueeze_dim(3)).squeeze_dim(2));
        // Over whole chunks, `[B·H, M]`.
        let whole = entered.clone().narrow(1, q - 1, 1).reshape([batch, chunks, heads]);
        let whole = whole.swap_dims(1, 2).reshape([batch * heads, chunks]);
        let beginning = Tensor::zeros([batch * heads, 1], (&whole.device(), kind));
        let ones = of.of_chunks.first(chunks + 1);
        let passed = ones.decays(Tensor::cat(vec![beginning, whole.clone()], 1));
        let of_groups = |x: &Tensor<3>| {
            let x = cut(x).reshape([many, q, groups, n]);
            x.swap_dims(1, 2).reshape([many * groups, q, n])
        };
        Self {
            of,
            chunks,
            tokens,
            q,
            heads,
            groups,
            n,
            p,
            by_heads: by_heads(input.clone()),
            x,
            weight,
            input,
            b: of_groups(&of.x.b),
            c: of_groups(&of.x.c),
            decay,
            entered: entered.exp().unsqueeze_dim(3),
            left: left.exp().unsqueeze_dim(3),
            passed,
            whole: whole.exp().unsqueeze_dim(2),
        }
    }

    /// S
    fn many(&self) -> usize {
        self.of.batch * self.chunks
    }

    /// As the tensors of a run are cut.
    fn cut(&self, x: &Tensor<3>, first: usize, tokens: usize, kind: DType) -> Tensor<3> {
        cut(x, first, tokens, self.chunks * self.q).cast(kind)
    }

    /// `[S, Q, H, X] -> [B, t, H·X]`
    fn rows(&self, x: Tensor<4>, dtype: DType) -> Tensor<3> {
        let [_, q, heads, width] = x.dims();
        let x = x.reshape([self.of.batch, self.chunks * q, heads * width]);
        x.narrow(1, 0, self.tokens).cast(dtype)
    }

    /// `[S·H, Q, X] -> [S, Q, H, X]`
    fn from_heads(&self, x: Tensor<3>) -> Tensor<4> {
        let width = x.dims()[2];
        x.reshape([self.many(), self.heads, self.q, width]).swap_dims(1, 2)
    }

    /// `[S, Q, H, X] -> [S·H, Q, X]`
    fn to_heads(&self, x: Tensor<4>) -> Tensor<3> {
        let width = x.dims()[3];
        x.swap_dims(1, 2).reshape([self.many() * self.heads, self.q, width])
    }

    /// `[S·G, Q, X] -> [S, Q, G, X]`
    fn from_groups(&self, x: Tensor<3>) -> Tensor<4> {
        let width = x.dims()[2];
        x.reshape([self.many(), self.groups, self.q, width]).swap_dims(1, 2)
    }

    /// The channels of a group's heads side by side: `[S, Q, H, P] -> [S·G, Q, H/G·P]`
    fn side_by_side(&self, x: Tensor<4>) -> Tensor<3> {
        let width = self.heads / self.groups * self.p;
        let x = x.reshape([self.many(), self.q, self.groups, width]).swap_dims(1, 2);
        x.reshape([self.many() * self.groups, self.q, width])
    }

    /// `[S·G, Q, H/G·P] -> [S, Q, H, P]`
    fn apart(&self, x: Tensor<3>) -> Tensor<4> {
        self.from_groups(x).reshape([self.many(), self.q, self.heads, self.p])
    }
}

impl Triangle {
    /// Of the first tokens.
    fn first(&self, q: usize) -> Self {
        let first = |x: &Tensor<2>| x.clone().narrow(0, 0, q).narrow(1, 0, q);
        Self { up_to: first(&self.up_to), before: first(&self.before) }
    }
}

/// Tokens of all rows, zeros behind the last: `[B, T, X] -> [B, whole, X]`
fn cut(x: &Tensor<3>, first: usize, tokens: usize, whole: usize) -> Tensor<3> {
    let [batch, _, width] = x.dims();
    let x = x.clone().narrow(1, first, tokens);
    if tokens == whole {
        return x;
    }
    let zeros = Tensor::zeros([batch, whole - tokens, width], (&x.device(), x.dtype()));
    Tensor::cat(vec![x, zeros], 1)
}
