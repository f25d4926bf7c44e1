//! Chunks of tokens out of tensor operations, any device: `[B, H, Q, Q]` at a time.

use super::{Inputs, Plan};
use crate::scan::wide;
use burn::tensor::{DType, Tensor};

/// y and the state behind it, `[B, T (+ N), E]`.
pub(super) fn forward(x: Inputs, plan: &Plan) -> Tensor<3> {
    let dtype = x.x.dtype();
    let chunks = Chunks::new(x, plan);
    let mut h = chunks.h0.clone();
    let mut out = Vec::new();
    for start in chunks.starts() {
        let chunk = chunks.at(start);
        let y = chunk.mixed().matmul(chunk.input.clone()) + chunk.of_before(&h);
        let mut y = chunks.tokens(y);
        if let Some(d) = chunks.skip() {
            y = y + chunks.tokens(chunk.x.clone()) * d;
        }
        out.push(y.cast(dtype));
        h = chunk.behind(h);
    }
    if plan.keep_state {
        out.push(chunks.flat(h).cast(dtype));
    }
    Tensor::cat(out, 1)
}

/// Gradients of all inputs, from the last chunk to the first.
pub(super) fn gradients(x: Inputs, dout: Tensor<3>, plan: &Plan) -> Inputs {
    let types = [&x.x, &x.weight, &x.log_decay, &x.b, &x.c, &x.h0].map(|x| x.dtype());
    let mut dd = x.d.zeros_like().cast(wide(x.x.dtype()));
    let chunks = Chunks::new(x, plan);
    let dout = dout.cast(chunks.kind);
    let mut states = vec![chunks.h0.clone()];
    let starts = chunks.starts();
    for &start in &starts[..starts.len() - 1] {
        let h = states[states.len() - 1].clone();
        states.push(chunks.at(start).behind(h));
    }
    // Gradient of the state behind the chunk, `[B, H, N, P]`.
    let mut carry = match plan.keep_state {
        true => chunks.split(dout.clone().narrow(1, chunks.len, chunks.n)),
        false => chunks.h0.zeros_like(),
    };
    let mut rows = Vec::new();
    for (&start, h) in starts.iter().zip(states).rev() {
        let chunk = chunks.at(start);
        let tokens = chunk.input.dims()[2];
        let dy = chunks.split(dout.clone().narrow(1, start, tokens));
        let mixed = chunk.mixed();
        // The input's gradient through the chunk's own outputs, and through the state behind it.
        let through = chunk.b.clone().matmul(carry.clone()) * chunk.left.clone();
        let dinput = mixed.clone().transpose().matmul(dy.clone()) + through.clone();
        let dmixed = dy.clone().matmul(chunk.input.clone().transpose());

        // A pair of tokens (i, j) passes the decays of j + 1 ..= i. Sums of pairs, never differences
        // of sums, which would lose what is small.
        let pairs = dmixed.clone() * mixed * chunk.before.clone();
        let crossing = (pairs.clone().cumsum(3) - pairs) * chunk.up_to.clone();
        let within = crossing.sum_dim(2).transpose();
        let early = dy.clone() * chunk.entered.clone();
        let read = early.clone().matmul(h.clone().transpose());
        let ends = (read.clone() * chunk.c.clone()).sum_dim(3);
        let passed = (through * chunk.input.clone()).sum_dim(3);
        let whole = (carry.clone() * h).sum_dim(3).sum_dim(2) * chunk.all();
        let dlog_decay = within
            + ends.flip([2]).cumsum(2).flip([2])
            + (passed.clone().cumsum(2) - passed)
            + whole;

        let dscores = chunks.over_heads(dmixed * chunk.decay.clone());
        let [b, c] = [&chunk.b_group, &chunk.c_group].map(Tensor::clone);
        let dc = dscores.clone().matmul(b) + chunks.over_heads(read);
        let late = (chunk.input.clone() * chunk.left.clone()).matmul(carry.clone().transpose());
        let db = dscores.transpose().matmul(c) + chunks.over_heads(late);
        carry = carry * chunk.all() + chunk.c.clone().transpose().matmul(early);

        let mut dx = chunks.tokens(dinput.clone() * chunk.weight.clone());
        if let Some(d) = chunks.skip() {
            let dy = chunks.tokens(dy);
            dx = dx + dy.clone() * d;
            dd = dd
                + (dy * chunks.tokens(chunk.x.clone())).sum_dim(1).sum_dim(0).squeeze_dims(&[0, 1]);
        }
        let dweight = chunks.tokens((dinput * chunk.x).sum_dim(3));
        rows.push([dx, dweight, chunks.tokens(dlog_decay), chunks.tokens(db), chunks.tokens(dc)]);
    }
    rows.reverse();
    let joined =
        |i: usize| Tensor::cat(rows.iter().map(|row| row[i].clone()).collect(), 1).cast(types[i]);
    Inputs {
        x: joined(0),
        weight: joined(1),
        log_decay: joined(2),
        b: joined(3),
        c: joined(4),
        d: dd.cast(chunks.x.d.dtype()),
        h0: chunks.flat(carry).cast(types[5]),
    }
}

/// A call's tensors, to be cut into chunks.
struct Chunks<'a> {
    x: Inputs,
    plan: &'a Plan,
    kind: DType,
    batch: usize,
    len: usize,
    n: usize,
    /// `[B, H, N, P]`
    h0: Tensor<4>,
}

/// One chunk of Q tokens.
struct Chunk {
    /// `[B, H, Q, P]`
    x: Tensor<4>,
    /// `[B, H, Q, 1]`
    weight: Tensor<4>,
    /// x times weight.
    input: Tensor<4>,
    /// `[B, G, Q, N]`
    b_group: Tensor<4>,
    c_group: Tensor<4>,
    /// `[B, H, Q, N]`
    b: Tensor<4>,
    c: Tensor<4>,
    /// From token j to i, zero where j is later: `[B, H, Q, Q]`
    decay: Tensor<4>,
    /// From before the chunk to each token, `[B, H, Q, 1]`
    entered: Tensor<4>,
    /// From each token to the chunk's end, `[B, H, Q, 1]`
    left: Tensor<4>,
    /// 1 where j is before i, else 0: `[1, 1, Q, Q]`
    before: Tensor<4>,
    /// The same with i itself.
    up_to: Tensor<4>,
}

impl<'a> Chunks<'a> {
    fn new(x: Inputs, plan: &'a Plan) -> Self {
        let ([batch, len, _], kind) = (x.x.dims(), wide(x.x.dtype()));
        let n = x.b.dims()[2] / plan.groups;
        let h0 = x.h0.clone().cast(kind);
        let mut chunks =
            Self { x, plan, kind, batch, len, n, h0: Tensor::zeros([1; 4], &h0.device()) };
        chunks.h0 = chunks.split(h0);
        chunks
    }

    /// D, `[1, 1, E]`
    fn skip(&self) -> Option<Tensor<3>> {
        self.plan.skip.then(|| self.x.d.clone().cast(self.kind).unsqueeze())
    }

    fn starts(&self) -> Vec<usize> {
        (0..self.len).step_by(self.plan.chunk).collect()
    }

    /// `[B, t, H·X] -> [B, H, t, X]`
    fn split(&self, x: Tensor<3>) -> Tensor<4> {
        let [batch, tokens, width] = x.dims();
        let heads = self.plan.heads;
        x.reshape([batch, tokens, heads, width / heads]).swap_dims(1, 2)
    }

    /// `[B, H, t, X] -> [B, t, H·X]`
    fn tokens(&self, x: Tensor<4>) -> Tensor<3> {
        let [batch, heads, tokens, width] = x.dims();
        x.swap_dims(1, 2).reshape([batch, tokens, heads * width])
    }

    /// `[B, H, N, P] -> [B, N, E]`
    fn flat(&self, h: Tensor<4>) -> Tensor<3> {
        self.tokens(h)
    }

    /// `[B, G, Q, X] -> [B, H, Q, X]`
    fn to_heads(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, groups, q, width] = x.dims();
        let each = self.plan.heads / groups;
        if each == 1 {
            return x;
        }
        x.unsqueeze_dim::<5>(2).repeat_dim(2, each).reshape([batch, groups * each, q, width])
    }

    /// Sums over the heads of each group, `[B, H, Q, X] -> [B, G, Q, X]`.
    fn over_heads(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, heads, q, width] = x.dims();
        let groups = self.plan.groups;
        x.reshape([batch, groups, heads / groups, q, width]).sum_dim(2).squeeze_dim(2)
    }

    fn at(&self, start: usize) -> Chunk {
        let q = self.plan.chunk.min(self.len - start);
        let cut = |x: &Tensor<3>| x.clone().narrow(1, start, q).cast(self.kind);
        let (x, weight) = (self.split(cut(&self.x.x)), self.split(cut(&self.x.weight)));
        let groups = |x: &Tensor<3>| {
            cut(x).reshape([self.batch, q, self.plan.groups, self.n]).swap_dims(1, 2)
        };
        let (b_group, c_group) = (groups(&self.x.b), groups(&self.x.c));
        let log_decay = self.split(cut(&self.x.log_decay));
        let device = x.device();
        let square = Tensor::<2>::ones([q, q], (&device, self.kind));
        let up_to = square.clone().tril(0).unsqueeze::<4>();
        let before: Tensor<4> = square.tril(-1).unsqueeze();
        let sums = (log_decay.clone().repeat_dim(3, q) * before.clone()).cumsum(2);
        let decay = sums.exp() * up_to.clone();
        Chunk {
            input: x.clone() * weight.clone(),
            x,
            weight,
            b: self.to_heads(b_group.clone()),
            c: self.to_heads(c_group.clone()),
            b_group,
            c_group,
            entered: log_decay.cumsum(2).exp(),
            left: decay.clone().narrow(2, q - 1, 1).transpose(),
            decay,
            before,
            up_to,
        }
    }
}

impl Chunk {
    /// (C Bᵀ) ∘ L, `[B, H, Q, Q]`
    fn mixed(&self) -> Tensor<4> {
        self.c.clone().matmul(self.b.clone().transpose()) * self.decay.clone()
    }

    /// What the state before the chunk gives to its tokens.
    fn of_before(&self, h: &Tensor<4>) -> Tensor<4> {
        self.c.clone().matmul(h.clone()) * self.entered.clone()
    }

    /// Decay over the whole chunk, `[B, H, 1, 1]`
    fn all(&self) -> Tensor<4> {
        let q = self.entered.dims()[2];
        self.entered.clone().narrow(2, q - 1, 1)
    }

    /// The state behind the chunk.
    fn behind(&self, h: Tensor<4>) -> Tensor<4> {
        let input = self.input.clone() * self.left.clone();
        h * self.all() + self.b.clone().transpose().matmul(input)
    }
}
