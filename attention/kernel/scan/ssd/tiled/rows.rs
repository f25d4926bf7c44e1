//! Rows of one document each, in runs of chunks that are computed at once. A run has no more chunks than
//! make tensors of the numbers that the limits name; longer rows are several runs, each of which goes on
//! from the one before.

use super::across::Between;
use super::triangle::{Triangle, matrix_by, sums_of_last, sums_of_rows};
use super::{Inputs, Limits, Plan, joined};
use burn::tensor::Tensor;

/// Chunks of a run: a product hands states from each to all later ones.
const CHUNKS: usize = 128;

/// A group's tensors in f32 or f64, S documents of t tokens. The states of `x` are not its own.
pub(super) struct Rows<'a> {
    x: Inputs,
    /// Before each document, `[S·H, 1, N·P]`
    h: Option<Tensor<3>>,
    plan: &'a Plan,
    pub batch: usize,
    len: usize,
    heads: usize,
    groups: usize,
    n: usize,
    p: usize,
    /// Tokens per chunk, Q.
    q: usize,
    /// Chunks of a run.
    most: usize,
    pub ones: Triangle,
    /// With as many rows as a run's chunks and one, which is what it goes on from.
    pub of_chunks: Option<Triangle>,
}

/// Gradients of a group's tensors.
pub(in crate::scan::ssd) struct OfRows {
    /// Of x, weight, logarithms of decays, B and C, `[S, t, X]`
    pub tokens: [Tensor<3>; 5],
    /// `[E]`
    pub d: Option<Tensor<1>>,
    /// `[S, N, E]`
    pub h0: Option<Tensor<3>>,
}

impl<'a> Rows<'a> {
    /// Rows without states before them are one chunk and leave none.
    pub fn new(x: Inputs, before: Option<Tensor<3>>, plan: &'a Plan, limits: &Limits) -> Self {
        let [batch, len, channels] = x.x.dims();
        let (heads, groups) = (plan.heads, plan.groups);
        let q = limits.chunk.min(len);
        let at_once = limits.at_once(q, before.is_some()) / batch;
        let most = len.div_ceil(q).min(at_once.clamp(1, CHUNKS));
        let ones = Triangle::new(q, &x.x);
        let of_chunks = before.is_some().then(|| Triangle::new(most + 1, &x.x));
        let (n, p) = (x.b.dims()[2] / groups, channels / heads);
        let mut rows =
            Self { x, h: None, plan, batch, len, heads, groups, n, p, q, most, ones, of_chunks };
        rows.h = before.map(|h| rows.of_states(h));
        rows
    }

    /// y `[S, t, E]` and the states behind the documents, `[S, N, E]`.
    pub fn forward(self) -> (Tensor<3>, Option<Tensor<3>>) {
        let mut h = self.h.clone();
        let mut out = Vec::new();
        for (first, tokens) in self.runs() {
            let run = Run::new(&self, first, tokens);
            let mut y = run.within();
            if let (Some(before), Some(between)) = (h.clone(), &run.between) {
                let states = run.states(between, before);
                y = y + run.of_before(between, &run.before(&states));
                h = Some(run.behind(states));
            }
            if let Some(d) = self.skip() {
                y = y + run.x.clone() * d;
            }
            out.push(run.rows(y));
        }
        (joined(out, 1), h.map(|h| self.to_states(h)))
    }

    /// Of dy `[S, t, E]` and the gradients of the states behind the documents, `[S, N, E]`; from the last run
    /// to the first.
    pub fn gradients(self, dy: Tensor<3>, carry: Option<Tensor<3>>) -> OfRows {
        let runs = self.runs();
        // What each run goes on from.
        let mut before = vec![self.h.clone()];
        for (first, tokens) in &runs[..runs.len() - 1] {
            let run = Run::new(&self, *first, *tokens);
            let h = before[before.len() - 1].clone().zip(run.between.as_ref());
            before.push(h.map(|(h, between)| run.behind(run.states(between, h))));
        }
        let dy = dy.cast(self.x.x.dtype());
        let mut carry = carry.map(|carry| self.of_states(carry));
        let mut found: [Vec<Tensor<3>>; 5] = Default::default();
        let mut dd: Option<Tensor<3>> = None;
        for ((first, tokens), h) in runs.into_iter().zip(before).rev() {
            let run = Run::new(&self, first, tokens);
            let dy = run.cut(&dy, first).reshape([run.many(), run.q, run.heads, run.p]);
            let mut of = run.within_gradients(&dy);
            if let (Some(h), Some(behind), Some(between)) = (h, carry.clone(), &run.between) {
                carry = Some(run.across_gradients(between, &dy, (h, behind), &mut of));
            }
            let mut dx = of.input.clone() * run.weight.clone();
            if let Some(d) = self.skip() {
                dx = dx + dy.clone() * d;
                let all = [1, run.many() * run.q, run.heads * run.p];
                let of_run = sums_of_rows((dy * run.x.clone()).reshape(all));
                dd = Some(match dd {
                    Some(sum) => sum + of_run,
                    None => of_run,
                });
            }
            let dweight = sums_of_last(of.input * run.x.clone());
            let (b, c) = (run.groups_inside(of.b), run.groups_inside(of.c));
            for (part, x) in found.iter_mut().zip([dx, dweight, of.log_decay, b, c]) {
                part.push(run.rows(x));
            }
        }
        let tokens = found.map(|mut part| {
            part.reverse();
            joined(part, 1)
        });
        let d = dd.map(|dd| dd.reshape([self.heads * self.p]));
        OfRows { tokens, d, h0: carry.map(|h| self.to_states(h)) }
    }

    /// D, `[1, 1, H, P]`
    fn skip(&self) -> Option<Tensor<4>> {
        self.plan.skip.then(|| self.x.d.clone().reshape([1, 1, self.heads, self.p]))
    }

    /// First token and tokens of each run.
    fn runs(&self) -> Vec<(usize, usize)> {
        let tokens = self.most * self.q;
        let run = |first| (first, tokens.min(self.len - first));
        (0..self.len).step_by(tokens).map(run).collect()
    }

    /// `[S, N, E] -> [S·H, 1, N·P]`
    fn of_states(&self, h: Tensor<3>) -> Tensor<3> {
        let h = h.reshape([self.batch, self.n, self.heads, self.p]).swap_dims(1, 2);
        h.reshape([self.batch * self.heads, 1, self.n * self.p])
    }

    /// `[S·H, 1, N·P] -> [S, N, E]`
    fn to_states(&self, h: Tensor<3>) -> Tensor<3> {
        let h = h.reshape([self.batch, self.heads, self.n, self.p]).swap_dims(1, 2);
        h.reshape([self.batch, self.n, self.heads * self.p])
    }
}

/// Chunks of Q tokens of all rows, C of them: M of each row. Behind the last token all is zero.
pub(super) struct Run<'a> {
    pub of: &'a Rows<'a>,
    /// M
    pub chunks: usize,
    tokens: usize,
    pub q: usize,
    pub heads: usize,
    pub groups: usize,
    pub n: usize,
    pub p: usize,
    /// `[C, Q, H, P]`
    x: Tensor<4>,
    /// `[C, Q, H, 1]`
    weight: Tensor<4>,
    /// x times weight.
    pub input: Tensor<4>,
    /// The same by heads, `[C·H, Q, P]`
    pub by_heads: Tensor<3>,
    /// `[C·G, Q, N]`
    pub b: Tensor<3>,
    pub c: Tensor<3>,
    /// From token j to i at (j, i), `[C·H, Q, Q]`
    pub decay: Tensor<3>,
    /// Where rows have states.
    between: Option<Between>,
}

/// Gradients of a run's tensors.
pub(super) struct OfRun {
    /// Of x times weight, `[C, Q, H, P]`
    pub input: Tensor<4>,
    /// `[C, Q, H, 1]`
    pub log_decay: Tensor<4>,
    /// `[C·G, Q, N]`
    pub b: Tensor<3>,
    pub c: Tensor<3>,
}

impl<'a> Run<'a> {
    fn new(of: &'a Rows<'a>, first: usize, tokens: usize) -> Self {
        let Rows { batch, heads, groups, n, p, q, .. } = *of;
        let chunks = tokens.div_ceil(q);
        let many = batch * chunks;
        let cut = |x: &Tensor<3>| cut(x, first, tokens, chunks * q);
        let x = cut(&of.x.x).reshape([many, q, heads, p]);
        let weight = cut(&of.x.weight).reshape([many, q, heads, 1]);
        let input = x.clone() * weight.clone();
        let log = cut(&of.x.log_decay).reshape([many, q, heads]);
        let of_heads = log.clone().swap_dims(1, 2).reshape([many * heads, q]);
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
            by_heads: input.clone().swap_dims(1, 2).reshape([many * heads, q, p]),
            x,
            weight,
            input,
            b: of_groups(&of.x.b),
            c: of_groups(&of.x.c),
            decay: of.ones.decays(of_heads),
            between: of.of_chunks.as_ref().map(|chunks| Between::new(of, chunks, log)),
        }
    }

    /// C
    pub fn many(&self) -> usize {
        self.of.batch * self.chunks
    }

    /// As the run's tensors are cut.
    fn cut(&self, x: &Tensor<3>, first: usize) -> Tensor<3> {
        cut(x, first, self.tokens, self.chunks * self.q)
    }

    /// `[C, Q, H, X] -> [S, tokens, H·X]`
    fn rows(&self, x: Tensor<4>) -> Tensor<3> {
        let [_, q, heads, width] = x.dims();
        let x = x.reshape([self.of.batch, self.chunks * q, heads * width]);
        x.narrow(1, 0, self.tokens)
    }

    /// `[C·H, Q, X] -> [C, Q, H, X]`
    pub fn heads_inside(&self, x: Tensor<3>) -> Tensor<4> {
        let width = x.dims()[2];
        x.reshape([self.many(), self.heads, self.q, width]).swap_dims(1, 2)
    }

    /// `[C, Q, H, X] -> [C·H, Q, X]`
    pub fn heads_outside(&self, x: Tensor<4>) -> Tensor<3> {
        let width = x.dims()[3];
        x.swap_dims(1, 2).reshape([self.many() * self.heads, self.q, width])
    }

    /// `[C·G, Q, X] -> [C, Q, G, X]`
    pub fn groups_inside(&self, x: Tensor<3>) -> Tensor<4> {
        let width = x.dims()[2];
        x.reshape([self.many(), self.groups, self.q, width]).swap_dims(1, 2)
    }
}

/// Sums over the tokens of each chunk up to and with each, and behind each: `[C, Q, H]`
pub(super) fn sums(ones: &Triangle, log: Tensor<3>) -> [Tensor<3>; 2] {
    let up_to = matrix_by(ones.up_to.clone().transpose(), log.clone());
    [up_to, matrix_by(ones.before.clone(), log)]
}

/// Tokens of all rows, zeros behind the last: `[S, t, X] -> [S, whole, X]`
fn cut(x: &Tensor<3>, first: usize, tokens: usize, whole: usize) -> Tensor<3> {
    let [batch, _, width] = x.dims();
    let x = x.clone().narrow(1, first, tokens);
    if tokens == whole {
        return x;
    }
    let zeros = Tensor::zeros([batch, whole - tokens, width], (&x.device(), x.dtype()));
    Tensor::cat(vec![x, zeros], 1)
}
