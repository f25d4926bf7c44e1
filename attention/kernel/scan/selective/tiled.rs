//! Spans of tokens out of tensor operations, any device: within a span all states at once by
//! doubling, `[B, span, N, E]`, and from span to span the last one.

use super::{Inputs, Plan};
use crate::precision::wide;
use crate::scan::{Step, softplus};
use burn::tensor::activation::sigmoid;
use burn::tensor::{Bool, DType, Tensor};

/// Tokens whose states are there at once.
const SPAN: usize = 64;

/// (y and the state behind it `[B, T (+ N), E]`, the state before each span `[B, spans, N, E]`).
pub(super) fn forward(x: Inputs, plan: &Plan) -> (Tensor<3>, Tensor<4>) {
    let dtype = x.u.dtype();
    let spans = Spans::new(x, plan);
    let mut h = spans.h0.clone();
    let (mut out, mut states) = (Vec::new(), Vec::new());
    for start in (0..spans.len).step_by(SPAN) {
        states.push(h.clone());
        let span = spans.at(start);
        let all = span.states(h);
        let y = span.mixed(&all) * span.gate();
        let [batch, tokens, ..] = y.dims();
        out.push(spans.live(y.reshape([batch, tokens, spans.channels]), start).cast(dtype));
        h = last(all);
    }
    let [batch, n, ..] = h.dims();
    let flat = |h: Tensor<4>| h.reshape([batch, n, spans.channels]);
    if plan.keep_state {
        out.push(flat(h).cast(dtype));
    }
    let states = if plan.tracked { states } else { states[..1].to_vec() };
    (Tensor::cat(out, 1), Tensor::stack(states.into_iter().map(flat).collect(), 1))
}

/// Gradients of all inputs, from the last span to the first.
pub(super) fn gradients(x: Inputs, states: Tensor<4>, dout: Tensor<3>, plan: &Plan) -> Inputs {
    let types = [&x.u, &x.delta, &x.b, &x.c, &x.z, &x.h0].map(|x| x.dtype());
    let [of_u, of_delta, of_b, of_c, of_z, of_h0] = types;
    let (of_a, of_d) = (x.a.dtype(), x.d.dtype());
    let spans = Spans::new(x, plan);
    let [batch, _, n, _] = states.dims();
    let shape = [batch, n, plan.groups, spans.channels / plan.groups];
    let dout = dout.cast(spans.kind);
    // Gradient of the state behind the span.
    let mut carry = match plan.keep_state {
        true => dout.clone().narrow(1, spans.len, n).reshape(shape),
        false => Tensor::zeros(shape, (&dout.device(), spans.kind)),
    };
    let starts: Vec<usize> = (0..spans.len).step_by(SPAN).collect();
    let (mut rows, mut da, mut dd) = (Vec::new(), None, None);
    for (i, &start) in starts.iter().enumerate().rev() {
        let span = spans.at(start);
        let h0 = states.clone().narrow(1, i, 1).cast(spans.kind).reshape(shape);
        let h = span.states(h0.clone());
        let tokens = span.u.dims()[1];
        let dout = spans.channelwise(spans.live(dout.clone().narrow(1, start, tokens), start));
        let (dy, dz) = match span.z.clone() {
            Some(z) => {
                let s = sigmoid(z.clone());
                let slope = s.clone() * (z.clone() * (s.clone().neg() + 1.0) + 1.0);
                (dout.clone() * z * s, dout * span.mixed(&h) * slope)
            }
            None => (dout, span.u.zeros_like()),
        };
        let dh = span.reverse(dy.clone() * span.c.clone(), carry);
        let passed = span.unless_first(dh.clone() * span.decay.clone());
        carry = first(passed.clone());
        let before = Tensor::cat([vec![h0.unsqueeze_dim(1)], but_last(&h)].concat(), 1);
        let before = span.unless_first(before);
        let through = passed * before;
        let into = (dh.clone() * span.b.clone()).sum_dim(2);
        let mut du = into.clone() * span.delta.clone();
        if let Some(d) = &span.d {
            du = du + dy.clone() * d.clone();
        }
        let ddelta = (through.clone() * span.a.clone()).sum_dim(2) + into * span.u.clone();
        let slope = if plan.softplus { sigmoid(span.raw.clone()) } else { span.raw.ones_like() };
        let ddelta = ddelta * slope;
        let add = |sum: Option<Tensor<5>>, x: Tensor<5>| Some(sum.map_or(x.clone(), |s| s + x));
        da = add(da, (through * span.delta.clone()).sum_dim(1).sum_dim(0));
        dd = add(dd, (dy.clone() * span.u.clone()).sum_dim(1).sum_dim(0));
        let db = (dh * span.delta.clone() * span.u.clone()).sum_dim(4);
        let dc = (h * dy).sum_dim(4);
        let wide = |x: Tensor<5>| x.reshape([batch, tokens, spans.channels]);
        let narrow = |x: Tensor<5>| x.swap_dims(2, 3).reshape([batch, tokens, plan.groups * n]);
        // The state that passes padding by may be no number.
        let all = [wide(du), wide(ddelta), wide(dz), narrow(db), narrow(dc)];
        rows.push(all.map(|x| spans.live(x, start)));
    }
    rows.reverse();
    let joined = |i: usize| Tensor::cat(rows.iter().map(|row| row[i].clone()).collect(), 1);
    let device = dout.device();
    let d = match dd.filter(|_| plan.skip) {
        Some(d) => d.reshape([spans.channels]),
        None => Tensor::zeros([1], &device),
    };
    let z = if plan.gate { joined(2) } else { Tensor::zeros([1, 1, 1], &device) };
    let a = da.map_or_else(
        || Tensor::zeros([n, spans.channels], &device),
        |a| a.reshape([n, spans.channels]),
    );
    Inputs {
        u: joined(0).cast(of_u),
        delta: joined(1).cast(of_delta),
        a: a.cast(of_a),
        b: joined(3).cast(of_b),
        c: joined(4).cast(of_c),
        d: d.cast(of_d),
        z: z.cast(of_z),
        h0: carry.reshape([batch, n, spans.channels]).cast(of_h0),
    }
}

/// A call's tensors, to be cut into spans. Channels are split into (G, E/G), so that everything
/// broadcasts against `[B, T, N, G, E/G]`.
struct Spans<'a> {
    x: Inputs,
    plan: &'a Plan,
    kind: DType,
    len: usize,
    channels: usize,
    /// `[B, N, G, E/G]`
    h0: Tensor<4>,
    /// Where there is padding and where documents begin, `[B, T, 1]`, if anywhere.
    padding: Option<Tensor<3, Bool>>,
    first: Option<Tensor<3, Bool>>,
}

/// One span: `[B, t, N or 1, G, E/G or 1]` each.
struct Span {
    u: Tensor<5>,
    /// Before softplus.
    raw: Tensor<5>,
    /// After softplus, zero at padding.
    delta: Tensor<5>,
    a: Tensor<5>,
    b: Tensor<5>,
    c: Tensor<5>,
    d: Option<Tensor<5>>,
    z: Option<Tensor<5>>,
    /// exp(Δ A)
    decay: Tensor<5>,
    documents: Option<Documents>,
}

/// Documents that begin in a span, `[B, t, 1, 1, 1]`.
struct Documents {
    first: Tensor<5, Bool>,
    /// How many have begun up to each token. What lies between tokens of different documents is left
    /// out, not multiplied by zero, which what is no number would outlive.
    count: Tensor<5>,
}

impl<'a> Spans<'a> {
    fn new(x: Inputs, plan: &'a Plan) -> Self {
        let [batch, len, channels] = x.u.dims();
        let (kind, n, groups) = (wide(x.u.dtype()), x.a.dims()[0], plan.groups);
        let h0 = x.h0.clone().cast(kind).reshape([batch, n, groups, channels / groups]);
        let device = x.u.device();
        let [padding, first] = [Step::Skip, Step::First].map(|step| plan.steps.mask(step, &device));
        Self { x, plan, kind, len, channels, h0, padding, first }
    }

    /// Tokens from `start` on, zero at padding.
    fn live(&self, x: Tensor<3>, start: usize) -> Tensor<3> {
        match &self.padding {
            Some(padding) => {
                let tokens = x.dims()[1];
                x.mask_fill(padding.clone().narrow(1, start, tokens), 0.0)
            }
            None => x,
        }
    }

    /// `[B, t, E] -> [B, t, 1, G, E/G]`
    fn channelwise(&self, x: Tensor<3>) -> Tensor<5> {
        let [batch, tokens, _] = x.dims();
        let groups = self.plan.groups;
        x.reshape([batch, tokens, 1, groups, self.channels / groups])
    }

    fn at(&self, start: usize) -> Span {
        let (plan, groups) = (self.plan, self.plan.groups);
        let tokens = SPAN.min(self.len - start);
        let batch = self.x.u.dims()[0];
        let n = self.x.a.dims()[0];
        let cut =
            |x: &Tensor<3>| self.live(x.clone().narrow(1, start, tokens).cast(self.kind), start);
        let per_state =
            |x: &Tensor<3>| cut(x).reshape([batch, tokens, groups, n, 1]).swap_dims(2, 3);
        let of_token = [batch, tokens, 1, 1, 1];
        let u = self.channelwise(cut(&self.x.u));
        let raw = cut(&self.x.delta);
        let delta =
            if plan.softplus { self.live(softplus(raw.clone()), start) } else { raw.clone() };
        let [raw, delta] = [raw, delta].map(|x| self.channelwise(x));
        let a = self.x.a.clone().cast(self.kind).reshape([1, 1, n, groups, self.channels / groups]);
        let decay = (delta.clone() * a.clone()).exp();
        let documents = self.first.as_ref().map(|first| {
            let first = first.clone().narrow(1, start, tokens).reshape(of_token);
            let count = first.clone().float().cast(self.kind).cumsum(1);
            Documents { first, count }
        });
        let d = self.x.d.clone().cast(self.kind);
        Span {
            u,
            raw,
            delta,
            a,
            b: per_state(&self.x.b),
            c: per_state(&self.x.c),
            d: plan.skip.then(|| d.reshape([1, 1, 1, groups, self.channels / groups])),
            z: plan.gate.then(|| self.channelwise(cut(&self.x.z))),
            decay,
            documents,
        }
    }
}

impl Span {
    /// `x` of all pairs of tokens `step` apart, zero where they are of different documents.
    fn within(&self, x: Tensor<5>, step: usize) -> Tensor<5> {
        match &self.documents {
            Some(Documents { count, .. }) => {
                let pairs = x.dims()[1];
                let [early, late] = [0, step].map(|from| count.clone().narrow(1, from, pairs));
                x.mask_fill(late.not_equal(early), 0.0)
            }
            None => x,
        }
    }

    /// `x` of all tokens, zero where a document begins.
    fn unless_first(&self, x: Tensor<5>) -> Tensor<5> {
        match &self.documents {
            Some(Documents { first, .. }) => x.mask_fill(first.clone(), 0.0),
            None => x,
        }
    }

    /// The state behind every token, `[B, t, N, G, E/G]`.
    fn states(&self, h0: Tensor<4>) -> Tensor<5> {
        let (mut decay, mut h) =
            (self.decay.clone(), self.delta.clone() * self.u.clone() * self.b.clone());
        let tokens = h.dims()[1];
        let mut step = 1;
        while step < tokens {
            // What lies `step` tokens back comes on top, decayed by all between.
            let rest = tokens - step;
            let late = decay.clone().narrow(1, step, rest);
            let add = self.within(late.clone() * h.clone().narrow(1, 0, rest), step);
            h = Tensor::cat(vec![h.clone().narrow(1, 0, step), h.narrow(1, step, rest) + add], 1);
            let both = late * decay.clone().narrow(1, 0, rest);
            decay = Tensor::cat(vec![decay.narrow(1, 0, step), both], 1);
            step *= 2;
        }
        let of_before = decay * h0.unsqueeze_dim(1);
        h + match &self.documents {
            Some(Documents { count, .. }) => {
                of_before.mask_fill(count.clone().greater_elem(0.0), 0.0)
            }
            None => of_before,
        }
    }

    /// `dh_t = r_t + decay_{t+1} dh_{t+1}`, with `carry` on top of the last.
    fn reverse(&self, r: Tensor<5>, carry: Tensor<4>) -> Tensor<5> {
        let tokens = r.dims()[1];
        let end = r.clone().narrow(1, tokens - 1, 1) + carry.unsqueeze_dim(1);
        let mut dh = Tensor::cat([but_last(&r), vec![end.clone()]].concat(), 1);
        let mut decay = Tensor::cat([but_first(&self.decay), vec![end.zeros_like()]].concat(), 1);
        let mut step = 1;
        while step < tokens {
            let rest = tokens - step;
            let early = decay.clone().narrow(1, 0, rest);
            let add = self.within(early.clone() * dh.clone().narrow(1, step, rest), step);
            dh =
                Tensor::cat(vec![dh.clone().narrow(1, 0, rest) + add, dh.narrow(1, rest, step)], 1);
            let both = early * decay.clone().narrow(1, step, rest);
            decay = Tensor::cat(vec![both, decay.narrow(1, rest, step)], 1);
            step *= 2;
        }
        dh
    }

    /// C·h + D u, `[B, t, 1, G, E/G]`
    fn mixed(&self, h: &Tensor<5>) -> Tensor<5> {
        let y = (h.clone() * self.c.clone()).sum_dim(2);
        match &self.d {
            Some(d) => y + d.clone() * self.u.clone(),
            None => y,
        }
    }

    /// silu(z), or one.
    fn gate(&self) -> Tensor<5> {
        match self.z.clone() {
            Some(z) => z.clone() * sigmoid(z),
            None => self.u.ones_like(),
        }
    }
}

fn first(x: Tensor<5>) -> Tensor<4> {
    x.narrow(1, 0, 1).squeeze_dim(1)
}

fn last(x: Tensor<5>) -> Tensor<4> {
    let tokens = x.dims()[1];
    x.narrow(1, tokens - 1, 1).squeeze_dim(1)
}

/// Nothing of a single token: tensors have no dimension of size 0.
fn but_last(x: &Tensor<5>) -> Vec<Tensor<5>> {
    let tokens = x.dims()[1];
    if tokens == 1 { vec![] } else { vec![x.clone().narrow(1, 0, tokens - 1)] }
}

fn but_first(x: &Tensor<5>) -> Vec<Tensor<5>> {
    let tokens = x.dims()[1];
    if tokens == 1 { vec![] } else { vec![x.clone().narrow(1, 1, tokens - 1)] }
}
