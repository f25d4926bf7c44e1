//! Chunks of tokens out of tensor operations, any device: `[S, H, Q, Q]` at a time, with S documents
//! side by side.

use super::documents::{Documents, Group, Span};
use super::{Inputs, Plan, whole};
use crate::linear::products_on_card as products;
use crate::scan::wide;
use burn::tensor::{DType, Tensor};

/// y and the state behind it, `[B, T (+ N), E]`.
pub(super) fn forward(x: Inputs, plan: &Plan) -> Tensor<3> {
    if plan.steps.is_plain() {
        return whole::forward(x, plan);
    }
    let chunks = Chunks::new(x, plan);
    let (mut out, mut ends) = (Vec::new(), Vec::new());
    for group in &chunks.documents.groups {
        let mut h = chunks.documents.before(group, &chunks.h0);
        // Documents end from the last one on.
        let mut ended = Vec::new();
        for (i, span) in group.spans.iter().enumerate() {
            let chunk = chunks.at(span);
            let mut y = products(chunk.mixed(), chunk.input.clone());
            if let Some(before) = h {
                y = y + chunk.of_before(&before);
                let behind = chunk.behind(before);
                let go_on = group.spans.get(i + 1).map_or(0, |next| next.documents);
                if go_on < span.documents {
                    ended.push(behind.clone().narrow(0, go_on, span.documents - go_on));
                }
                h = (go_on > 0).then(|| behind.narrow(0, 0, go_on));
            }
            let mut y = chunks.tokens(y);
            if let Some(d) = chunks.skip() {
                y = y + chunks.tokens(chunk.x.clone()) * d;
            }
            out.push(y);
        }
        ended.reverse();
        ends.extend(ended);
    }
    let mut out = vec![chunks.documents.put(out, &chunks.x.x)];
    if plan.keep_state {
        let h = chunks.documents.last(ends, &chunks.h0);
        out.push(chunks.tokens(h).cast(chunks.x.x.dtype()));
    }
    Tensor::cat(out, 1)
}

/// Gradients of all inputs, from the last chunk of the last documents to the first.
pub(super) fn gradients(x: Inputs, dout: Tensor<3>, plan: &Plan) -> Inputs {
    if plan.steps.is_plain() {
        return whole::gradients(x, dout, plan);
    }
    let chunks = Chunks::new(x, plan);
    let (x, documents) = (&chunks.x, &chunks.documents);
    let mut dd = x.d.zeros_like().cast(chunks.kind);
    let dout = dout.cast(chunks.kind);
    // Gradient of the state behind each row, `[B, H, N, P]`.
    let dh = match plan.keep_state {
        true => chunks.split(dout.clone().narrow(1, chunks.len, chunks.n)),
        false => chunks.h0.zeros_like(),
    };
    let dy = dout.narrow(1, 0, chunks.len);
    let (mut rows, mut carries) = (Vec::new(), Vec::new());
    for group in documents.groups.iter().rev() {
        let ends = documents.behind(group, &dh);
        // Gradient of the state behind the chunk, `[S, H, N, P]`, if the documents have one.
        let mut carry: Option<Tensor<4>> = None;
        for (span, h) in group.spans.iter().zip(chunks.states(group)).rev() {
            let chunk = chunks.at(span);
            let dy = chunks.split(documents.take(&dy, span));
            let mut of = chunks.within(&chunk, &dy);
            carry = match (h, &ends) {
                (Some(h), Some(ends)) => {
                    let carry = joined(carry, ends, span.documents);
                    Some(chunks.across(&chunk, &dy, h, carry, &mut of))
                }
                _ => None,
            };
            let mut dx = chunks.tokens(of.input.clone() * chunk.weight.clone());
            if let Some(d) = chunks.skip() {
                let dy = chunks.tokens(dy);
                dx = dx + dy.clone() * d;
                dd = dd
                    + (dy * chunks.tokens(chunk.x.clone()))
                        .sum_dim(1)
                        .sum_dim(0)
                        .squeeze_dims(&[0, 1]);
            }
            let dweight = (of.input * chunk.x).sum_dim(3);
            let others = [dweight, of.log_decay, of.b, of.c].map(|x| chunks.tokens(x));
            rows.push((dx, others));
        }
        carries.extend(carry);
    }
    rows.reverse();
    carries.reverse();
    let others = |i: usize, like: &Tensor<3>| {
        documents.put(rows.iter().map(|(_, others)| others[i].clone()).collect(), like)
    };
    Inputs {
        x: documents.put(rows.iter().map(|(dx, _)| dx.clone()).collect(), &x.x),
        weight: others(0, &x.weight),
        log_decay: others(1, &x.log_decay),
        b: others(2, &x.b),
        c: others(3, &x.c),
        d: dd.cast(x.d.dtype()),
        h0: chunks.tokens(documents.first(carries, &dh)).cast(x.h0.dtype()),
    }
}

/// Gradients of the states behind the first `documents` of a group: those behind the next chunk are
/// there for the documents that have one.
fn joined(carry: Option<Tensor<4>>, ends: &Tensor<4>, documents: usize) -> Tensor<4> {
    let there = carry.as_ref().map_or(0, |carry| carry.dims()[0]);
    let mut parts: Vec<_> = carry.into_iter().collect();
    if there < documents {
        parts.push(ends.clone().narrow(0, there, documents - there));
    }
    Tensor::cat(parts, 0)
}

/// Gradients of a chunk.
struct OfChunk {
    /// Of x times weight, `[S, H, Q, P]`
    input: Tensor<4>,
    /// `[S, H, Q, 1]`
    log_decay: Tensor<4>,
    /// `[S, G, Q, N]`
    b: Tensor<4>,
    c: Tensor<4>,
}

/// A call's tensors, to be cut into chunks.
struct Chunks<'a> {
    x: Inputs,
    plan: &'a Plan,
    documents: Documents,
    kind: DType,
    len: usize,
    n: usize,
    /// `[B, H, N, P]`
    h0: Tensor<4>,
}

/// One chunk of Q tokens of S documents; those of a document that ends before have x, B, C and decays
/// of zero behind it.
struct Chunk {
    /// `[S, H, Q, P]`
    x: Tensor<4>,
    /// `[S, H, Q, 1]`
    weight: Tensor<4>,
    /// x times weight.
    input: Tensor<4>,
    /// `[S, G, Q, N]`
    b_group: Tensor<4>,
    c_group: Tensor<4>,
    /// `[S, H, Q, N]`
    b: Tensor<4>,
    c: Tensor<4>,
    /// From token j to i, zero where j is later: `[S, H, Q, Q]`
    decay: Tensor<4>,
    /// From before the chunk to each token, `[S, H, Q, 1]`
    entered: Tensor<4>,
    /// From each token to the chunk's end, `[S, H, Q, 1]`
    left: Tensor<4>,
    /// 1 where j is before i, else 0: `[1, 1, Q, Q]`
    before: Tensor<4>,
    /// The same with i itself.
    up_to: Tensor<4>,
}

impl<'a> Chunks<'a> {
    fn new(x: Inputs, plan: &'a Plan) -> Self {
        let ([_, len, _], kind) = (x.x.dims(), wide(x.x.dtype()));
        let n = x.b.dims()[2] / plan.groups;
        let h0 = x.h0.clone().cast(kind);
        let documents = Documents::new(&plan.steps, plan.chunk, plan.keep_state, &h0.device());
        let h0 = split(h0, plan.heads);
        Self { x, plan, documents, kind, len, n, h0 }
    }

    /// D, `[1, 1, E]`
    fn skip(&self) -> Option<Tensor<3>> {
        self.plan.skip.then(|| self.x.d.clone().cast(self.kind).unsqueeze())
    }

    /// `[S, t, H·X] -> [S, H, t, X]`
    fn split(&self, x: Tensor<3>) -> Tensor<4> {
        split(x, self.plan.heads)
    }

    /// `[S, H, t, X] -> [S, t, H·X]`
    fn tokens(&self, x: Tensor<4>) -> Tensor<3> {
        let [documents, heads, tokens, width] = x.dims();
        x.swap_dims(1, 2).reshape([documents, tokens, heads * width])
    }

    /// `[S, G, Q, X] -> [S, H, Q, X]`
    fn to_heads(&self, x: Tensor<4>) -> Tensor<4> {
        let [documents, groups, q, width] = x.dims();
        let each = self.plan.heads / groups;
        if each == 1 {
            return x;
        }
        x.unsqueeze_dim::<5>(2).repeat_dim(2, each).reshape([documents, groups * each, q, width])
    }

    /// Sums over the heads of each group, `[S, H, Q, X] -> [S, G, Q, X]`.
    fn over_heads(&self, x: Tensor<4>) -> Tensor<4> {
        let [documents, heads, q, width] = x.dims();
        let groups = self.plan.groups;
        x.reshape([documents, groups, heads / groups, q, width]).sum_dim(2).squeeze_dim(2)
    }

    fn at(&self, span: &Span) -> Chunk {
        let q = span.tokens;
        let cut = |x: &Tensor<3>| self.documents.take(x, span).cast(self.kind);
        let (x, weight) = (self.split(cut(&self.x.x)), self.split(cut(&self.x.weight)));
        let groups = |x: &Tensor<3>| {
            cut(x).reshape([span.documents, q, self.plan.groups, self.n]).swap_dims(1, 2)
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

    /// States before the chunks of a group, if its documents have any.
    fn states(&self, group: &Group) -> Vec<Option<Tensor<4>>> {
        let mut states = vec![self.documents.before(group, &self.h0)];
        for spans in group.spans.windows(2) {
            let h = states[states.len() - 1].clone();
            let behind = |h| self.at(&spans[0]).behind(h).narrow(0, 0, spans[1].documents);
            states.push(h.map(behind));
        }
        states
    }

    /// Gradients through the chunk's own outputs.
    fn within(&self, chunk: &Chunk, dy: &Tensor<4>) -> OfChunk {
        let mixed = chunk.mixed();
        let input = products(mixed.clone().transpose(), dy.clone());
        let dmixed = products(dy.clone(), chunk.input.clone().transpose());
        // A pair of tokens (i, j) passes the decays of j + 1 ..= i. Sums of pairs, never differences
        // of sums, which would lose what is small.
        let pairs = dmixed.clone() * mixed * chunk.before.clone();
        let crossing = (pairs.clone().cumsum(3) - pairs) * chunk.up_to.clone();
        let dscores = self.over_heads(dmixed * chunk.decay.clone());
        let [b, c] = [&chunk.b_group, &chunk.c_group].map(Tensor::clone);
        OfChunk {
            input,
            log_decay: crossing.sum_dim(2).transpose(),
            b: products(dscores.clone().transpose(), c),
            c: products(dscores, b),
        }
    }

    /// Adds gradients through the state `h` before the chunk and the one behind it, of whose gradient
    /// `carry` it makes that of `h`.
    fn across(
        &self,
        chunk: &Chunk,
        dy: &Tensor<4>,
        h: Tensor<4>,
        carry: Tensor<4>,
        of: &mut OfChunk,
    ) -> Tensor<4> {
        let through = products(chunk.b.clone(), carry.clone()) * chunk.left.clone();
        let early = dy.clone() * chunk.entered.clone();
        let read = products(early.clone(), h.clone().transpose());
        let ends = (read.clone() * chunk.c.clone()).sum_dim(3);
        let passed = (through.clone() * chunk.input.clone()).sum_dim(3);
        let whole = (carry.clone() * h).sum_dim(3).sum_dim(2) * chunk.all();
        let late = products(chunk.input.clone() * chunk.left.clone(), carry.clone().transpose());
        of.input = of.input.clone() + through;
        of.log_decay = of.log_decay.clone()
            + ends.flip([2]).cumsum(2).flip([2])
            + (passed.clone().cumsum(2) - passed)
            + whole;
        of.b = of.b.clone() + self.over_heads(late);
        of.c = of.c.clone() + self.over_heads(read);
        carry * chunk.all() + products(chunk.c.clone().transpose(), early)
    }
}

/// `[S, t, H·X] -> [S, H, t, X]`
fn split(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [documents, tokens, width] = x.dims();
    x.reshape([documents, tokens, heads, width / heads]).swap_dims(1, 2)
}

impl Chunk {
    /// (C Bᵀ) ∘ L, `[B, H, Q, Q]`
    fn mixed(&self) -> Tensor<4> {
        products(self.c.clone(), self.b.clone().transpose()) * self.decay.clone()
    }

    /// What the state before the chunk gives to its tokens.
    fn of_before(&self, h: &Tensor<4>) -> Tensor<4> {
        products(self.c.clone(), h.clone()) * self.entered.clone()
    }

    /// Decay over the whole chunk, `[B, H, 1, 1]`
    fn all(&self) -> Tensor<4> {
        let q = self.entered.dims()[2];
        self.entered.clone().narrow(2, q - 1, 1)
    }

    /// The state behind the chunk.
    fn behind(&self, h: Tensor<4>) -> Tensor<4> {
        let input = self.input.clone() * self.left.clone();
        h * self.all() + products(self.b.clone().transpose(), input)
    }
}
