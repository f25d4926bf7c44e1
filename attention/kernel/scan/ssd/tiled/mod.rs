//! Chunks of tokens out of tensor operations, any device: many at once, so that a pass is a few dozen
//! operations for each group of documents, however many chunks they have.
//!
//! Sums of logarithms of decays are products with triangles of ones: each is of the tokens that it spans
//! and no others. States go from chunk to chunk by a product, too: decays between chunks are those between
//! tokens, with what a chunk leaves in the place of a token's input. What heads share is multiplied once
//! for all heads of a group, with their channels side by side.

mod across;
mod rows;
mod triangle;
mod within;

#[cfg(feature = "cuda-nvrtc")]
use super::cuda::Kernels;
pub(super) use super::documents::joined;
use super::documents::{Documents, Group, Limits};
use super::{Inputs, Plan};
use crate::precision::wide;
use burn::tensor::Tensor;
pub(super) use rows::OfRows;
use rows::Rows;

/// Numbers of the largest tensors.
const MOST: usize = 1 << 24;
/// Tokens of a chunk: with more, pairs of tokens are more numbers than states.
const TOKENS: usize = 128;

/// y and the state behind it, `[B, T (+ N), E]`.
pub(super) fn forward(x: Inputs, plan: &Plan) -> Tensor<3> {
    let call = Call::new(x, plan);
    let (mut out, mut ends) = (Vec::new(), Vec::new());
    for group in &call.documents.groups {
        let (y, h) = call.forward(group);
        out.push(y);
        ends.extend(h);
    }
    let mut out = vec![call.documents.put(out, &call.x.x)];
    if plan.keep_state {
        out.push(call.documents.last(ends, &call.h0).cast(call.x.x.dtype()));
    }
    joined(out, 1)
}

/// Gradients of all inputs.
pub(super) fn gradients(x: Inputs, dout: Tensor<3>, plan: &Plan) -> Inputs {
    let call = Call::new(x, plan);
    let (x, documents) = (&call.x, &call.documents);
    let len = x.x.dims()[1];
    // Gradient of the state behind each row, `[B, N, E]`.
    let dh = match plan.keep_state {
        true => dout.clone().narrow(1, len, call.h0.dims()[1]).cast(call.h0.dtype()),
        false => call.h0.zeros_like(),
    };
    let dy = dout.narrow(1, 0, len);
    let mut dd = x.d.zeros_like().cast(call.h0.dtype());
    let mut parts: [Vec<Tensor<3>>; 5] = Default::default();
    let mut carries = Vec::new();
    for group in &documents.groups {
        let carry = documents.behind(group, &dh);
        let of = call.gradients(group, documents.take(&dy, group), carry);
        for (part, of_group) in parts.iter_mut().zip(of.tokens) {
            part.push(of_group);
        }
        if let Some(of_group) = of.d {
            dd = dd + of_group;
        }
        carries.extend(of.h0);
    }
    let [dx, weight, log_decay, b, c] = parts;
    Inputs {
        x: documents.put(dx, &x.x),
        weight: documents.put(weight, &x.weight),
        log_decay: documents.put(log_decay, &x.log_decay),
        b: documents.put(b, &x.b),
        c: documents.put(c, &x.c),
        d: dd.cast(x.d.dtype()),
        h0: documents.first(carries, &dh).cast(x.h0.dtype()),
    }
}

/// A call's tensors, to be cut into groups of documents.
struct Call<'a> {
    x: Inputs,
    plan: &'a Plan,
    documents: Documents,
    limits: Limits,
    /// `[B, N, E]`, in f32 or f64
    h0: Tensor<3>,
    /// Kernels of the card's own, where there are any for these sizes.
    #[cfg(feature = "cuda-nvrtc")]
    kernels: Option<Kernels>,
}

impl<'a> Call<'a> {
    fn new(x: Inputs, plan: &'a Plan) -> Self {
        let [_, len, channels] = x.x.dims();
        let h0 = x.h0.clone().cast(wide(x.x.dtype()));
        let limits = Limits {
            chunk: plan.chunk.min(len).min(TOKENS),
            most: MOST,
            heads: plan.heads,
            state: h0.dims()[1] * channels,
        };
        let documents = Documents::new(&plan.steps, &limits, plan.keep_state, &h0.device());
        #[cfg(feature = "cuda-nvrtc")]
        let kernels = Kernels::new(&x, plan.heads, plan.groups, plan.skip);
        Self {
            x,
            plan,
            documents,
            limits,
            h0,
            #[cfg(feature = "cuda-nvrtc")]
            kernels,
        }
    }

    /// y `[S, t, E]` of a group's documents and, where they have states, those behind them, `[S, N, E]`.
    fn forward(&self, group: &Group) -> (Tensor<3>, Option<Tensor<3>>) {
        #[cfg(feature = "cuda-nvrtc")]
        if let Some(kernels) = &self.kernels {
            let x = self.inputs(group);
            let before = self.documents.before(group, &self.h0);
            let states = before.is_some();
            let (y, h) = kernels.forward(&x, self.or_zeros(before, &x));
            return (y, states.then_some(h));
        }
        self.rows(group).forward()
    }

    /// Of dy and the gradients of states behind the documents.
    fn gradients(&self, group: &Group, dy: Tensor<3>, carry: Option<Tensor<3>>) -> OfRows {
        #[cfg(feature = "cuda-nvrtc")]
        if let Some(kernels) = &self.kernels {
            let x = self.inputs(group);
            let before = self.documents.before(group, &self.h0);
            let states = before.is_some();
            let (before, carry) = (self.or_zeros(before, &x), self.or_zeros(carry, &x));
            let of = kernels.gradients(&x, before, dy, carry);
            return OfRows { h0: of.h0.filter(|_| states), ..of };
        }
        self.rows(group).gradients(dy, carry)
    }

    /// States of a group's documents, `[S, N, E]`.
    #[cfg(feature = "cuda-nvrtc")]
    fn or_zeros(&self, h: Option<Tensor<3>>, x: &Inputs) -> Tensor<3> {
        let [_, n, channels] = self.h0.dims();
        let zeros =
            || Tensor::zeros([x.x.dims()[0], n, channels], (&self.h0.device(), self.h0.dtype()));
        h.unwrap_or_else(zeros)
    }

    fn rows(&self, group: &Group) -> Rows<'_> {
        let x = self.inputs(group);
        Rows::new(x, self.documents.before(group, &self.h0), self.plan, &self.limits)
    }

    /// A group's tensors in f32 or f64.
    fn inputs(&self, group: &Group) -> Inputs {
        let take = |x: &Tensor<3>| self.documents.take(x, group).cast(self.h0.dtype());
        Inputs {
            x: take(&self.x.x),
            weight: take(&self.x.weight),
            log_decay: take(&self.x.log_decay),
            b: take(&self.x.b),
            c: take(&self.x.c),
            d: self.x.d.clone().cast(self.h0.dtype()),
            h0: self.h0.clone(),
        }
    }
}
