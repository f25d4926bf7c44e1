//! What chunks give to later ones through the state.

use super::rows::{OfRun, Rows, Run, sums};
use super::triangle::{Triangle, matrix_by, sums_of_last};
use crate::linear::products_on_card as products;
use burn::tensor::Tensor;

/// Decays to and from the ends of chunks.
pub(super) struct Between {
    /// From before the chunk to each token, `[C, Q, H, 1]`
    entered: Tensor<4>,
    /// From each token to the chunk's end, `[C, Q, H, 1]`
    left: Tensor<4>,
    /// Between the beginnings of chunks, and the end of the last: from c to z at (c, z),
    /// `[S·H, M + 1, M + 1]`
    passed: Tensor<3>,
    /// Over each chunk, `[S·H, M, 1]`
    whole: Tensor<3>,
}

impl Between {
    /// Of logarithms of decays, `[C, Q, H]`.
    pub fn new(of: &Rows<'_>, ones: &Triangle, log: Tensor<3>) -> Self {
        let ([many, q, heads], batch) = (log.dims(), of.batch);
        let chunks = many / batch;
        let [entered, left] = sums(&of.ones, log);
        let whole = entered.clone().narrow(1, q - 1, 1).reshape([batch, chunks, heads]);
        let whole = whole.swap_dims(1, 2).reshape([batch * heads, chunks]);
        // Nothing is passed before the first chunk.
        let beginning = Tensor::zeros([batch * heads, 1], (&whole.device(), whole.dtype()));
        let passed = Tensor::cat(vec![beginning, whole.clone()], 1);
        Self {
            entered: entered.exp().unsqueeze_dim(3),
            left: left.exp().unsqueeze_dim(3),
            passed: ones.first(chunks + 1).decays(passed),
            whole: whole.exp().unsqueeze_dim(2),
        }
    }
}

impl Run<'_> {
    /// States before the chunks of all rows and behind the last ones, of the one `h` before the first:
    /// `[S·H, 1, N·P] -> [S·H, M + 1, N·P]`
    pub(super) fn states(&self, between: &Between, h: Tensor<3>) -> Tensor<3> {
        let input = self.side_by_side(self.input.clone() * between.left.clone());
        let added = self.in_turn(products(self.b.clone().transpose(), input));
        products(between.passed.clone().transpose(), Tensor::cat(vec![h, added], 1))
    }

    /// Those before chunks, `[C·G, N, H/G·P]`.
    pub(super) fn before(&self, states: &Tensor<3>) -> Tensor<3> {
        self.by_chunks(states.clone().narrow(1, 0, self.chunks))
    }

    /// The one behind the last chunk, `[S·H, 1, N·P]`.
    pub(super) fn behind(&self, states: Tensor<3>) -> Tensor<3> {
        states.narrow(1, self.chunks, 1)
    }

    /// What tokens get of the states before their chunks, `[C, Q, H, P]`.
    pub(super) fn of_before(&self, between: &Between, before: &Tensor<3>) -> Tensor<4> {
        self.apart(products(self.c.clone(), before.clone())) * between.entered.clone()
    }

    /// Adds gradients through the state `h` before the run and the one behind it, of whose gradient `carry`
    /// it makes that of `h`.
    pub(super) fn across_gradients(
        &self,
        between: &Between,
        dy: &Tensor<4>,
        (h, carry): (Tensor<3>, Tensor<3>),
        of: &mut OfRun,
    ) -> Tensor<3> {
        let states = self.states(between, h);
        let before = self.before(&states);
        let early = self.side_by_side(dy.clone() * between.entered.clone());
        let read = self.in_turn(products(self.c.clone().transpose(), early.clone()));
        // Gradients of the state before the run and of what each chunk adds, which is that of the state
        // behind it.
        let carries = products(between.passed.clone(), Tensor::cat(vec![read, carry], 1));
        let behind = carries.clone().narrow(1, 1, self.chunks);
        let of_chunks = behind.clone() * states.narrow(1, 0, self.chunks);
        let of_chunks = sums_of_last(of_chunks.unsqueeze_dim(0)).squeeze_dim::<3>(0);
        let of_chunks = of_chunks * between.whole.clone();
        let behind = self.by_chunks(behind);

        let through = self.apart(products(self.b.clone(), behind.clone())) * between.left.clone();
        let over_channels = |x: Tensor<4>| sums_of_last(x).squeeze_dim::<3>(3);
        let ends = over_channels(dy.clone() * self.of_before(between, &before));
        let passed = over_channels(through.clone() * self.input.clone());
        let late = self.side_by_side(self.input.clone() * between.left.clone());
        let ones = &self.of.ones;
        // A token's decay is passed by what ends at it or later, and by what comes from before it.
        let in_chunk = matrix_by(ones.up_to.clone(), ends)
            + matrix_by(ones.before.clone().transpose(), passed);
        let of_chunks = of_chunks
            .reshape([self.of.batch, self.heads, self.chunks])
            .swap_dims(1, 2)
            .reshape([self.many(), 1, self.heads]);
        of.input = of.input.clone() + through;
        of.log_decay = of.log_decay.clone() + (in_chunk + of_chunks).unsqueeze_dim(3);
        of.b = of.b.clone() + products(late, behind.transpose());
        of.c = of.c.clone() + products(early, before.transpose());
        carries.narrow(1, 0, 1)
    }

    /// The channels of a group's heads side by side: `[C, Q, H, P] -> [C·G, Q, H/G·P]`
    fn side_by_side(&self, x: Tensor<4>) -> Tensor<3> {
        let width = self.heads / self.groups * self.p;
        let x = x.reshape([self.many(), self.q, self.groups, width]).swap_dims(1, 2);
        x.reshape([self.many() * self.groups, self.q, width])
    }

    /// `[C·G, Q, H/G·P] -> [C, Q, H, P]`
    fn apart(&self, x: Tensor<3>) -> Tensor<4> {
        self.groups_inside(x).reshape([self.many(), self.q, self.heads, self.p])
    }

    /// `[C·G, N, H/G·P] -> [S·H, M, N·P]`
    fn in_turn(&self, x: Tensor<3>) -> Tensor<3> {
        let (batch, each) = (self.of.batch, self.heads / self.groups);
        x.reshape([batch, self.chunks, self.groups, self.n, each, self.p])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([batch * self.heads, self.chunks, self.n * self.p])
    }

    /// `[S·H, M, N·P] -> [C·G, N, H/G·P]`
    fn by_chunks(&self, x: Tensor<3>) -> Tensor<3> {
        let (batch, each) = (self.of.batch, self.heads / self.groups);
        x.reshape([batch, self.groups, each, self.chunks, self.n, self.p])
            .permute([0, 3, 1, 4, 2, 5])
            .reshape([self.many() * self.groups, self.n, each * self.p])
    }
}
