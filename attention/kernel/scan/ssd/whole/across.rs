//! What chunks give to later ones through the state.

use super::{OfRun, Run, matrix_by, products};
use burn::tensor::Tensor;

impl Run<'_> {
    /// States before the chunks of all rows and behind the last ones, of the one `h` before the first:
    /// `[B·H, 1, N·P] -> [B·H, M + 1, N·P]`
    pub(super) fn states(&self, h: Tensor<3>) -> Tensor<3> {
        let input = self.side_by_side(self.input.clone() * self.left.clone());
        let added = self.in_turn(products(self.b.clone().transpose(), input));
        products(self.passed.clone().transpose(), Tensor::cat(vec![h, added], 1))
    }

    /// Those before chunks, `[S·G, N, H/G·P]`.
    pub(super) fn before(&self, states: &Tensor<3>) -> Tensor<3> {
        self.by_chunks(states.clone().narrow(1, 0, self.chunks))
    }

    /// The one behind the last chunk, `[B·H, 1, N·P]`.
    pub(super) fn behind(&self, states: Tensor<3>) -> Tensor<3> {
        states.narrow(1, self.chunks, 1)
    }

    /// What tokens get of the states before their chunks, `[S, Q, H, P]`.
    pub(super) fn of_before(&self, before: &Tensor<3>) -> Tensor<4> {
        self.apart(products(self.c.clone(), before.clone())) * self.entered.clone()
    }

    /// Adds gradients through the state `h` before the run and the one behind it, of whose gradient `carry`
    /// it makes that of `h`.
    pub(super) fn across_gradients(
        &self,
        dy: &Tensor<4>,
        h: Tensor<3>,
        carry: Tensor<3>,
        of: &mut OfRun,
    ) -> Tensor<3> {
        let states = self.states(h);
        let before = self.before(&states);
        let early = self.side_by_side(dy.clone() * self.entered.clone());
        let read = self.in_turn(products(self.c.clone().transpose(), early.clone()));
        // Gradients of the state before the run and of what each chunk adds, which is that of the state
        // behind it.
        let carries = products(self.passed.clone(), Tensor::cat(vec![read, carry], 1));
        let behind = carries.clone().narrow(1, 1, self.chunks);
        let of_chunks =
            (behind.clone() * states.narrow(1, 0, self.chunks)).sum_dim(2) * self.whole.clone();
        let behind = self.by_chunks(behind);

        let through = self.apart(products(self.b.clone(), behind.clone())) * self.left.clone();
        let ends = (dy.clone() * self.of_before(&before)).sum_dim(3).squeeze_dim::<3>(3);
        let passed = (through.clone() * self.input.clone()).sum_dim(3).squeeze_dim::<3>(3);
        let late = self.side_by_side(self.input.clone() * self.left.clone());
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

    /// `[S·G, N, H/G·P] -> [B·H, M, N·P]`
    fn in_turn(&self, x: Tensor<3>) -> Tensor<3> {
        let (batch, each) = (self.of.batch, self.heads / self.groups);
        x.reshape([batch, self.chunks, self.groups, self.n, each, self.p])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([batch * self.heads, self.chunks, self.n * self.p])
    }

    /// `[B·H, M, N·P] -> [S·G, N, H/G·P]`
    fn by_chunks(&self, x: Tensor<3>) -> Tensor<3> {
        let (batch, each) = (self.of.batch, self.heads / self.groups);
        x.reshape([batch, self.groups, each, self.chunks, self.n, self.p])
            .permute([0, 3, 1, 4, 2, 5])
            .reshape([self.many() * self.groups, self.n, each * self.p])
    }
}
