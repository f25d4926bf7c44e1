//! What tokens of a chunk give to each other: `y = ((C Bᵀ) ∘ L)(Δ x)`.

use super::rows::{OfRun, Run};
use super::triangle::{by_matrix, sums_of_rows};
use crate::linear::products_on_card as products;
use burn::tensor::Tensor;

impl Run<'_> {
    /// (B Cᵀ) ∘ L, from token j to i at (j, i), `[C·H, Q, Q]`
    fn mixed(&self) -> Tensor<3> {
        let scores = products(self.b.clone(), self.c.clone().transpose());
        let (of, q) = (self.many() * self.groups, self.q);
        // Heads of a group share scores.
        let decay = self.decay.clone().reshape([of, self.heads / self.groups, q * q]);
        (decay * scores.reshape([of, 1, q * q])).reshape([of / self.groups * self.heads, q, q])
    }

    /// `[C, Q, H, P]`
    pub(super) fn within(&self) -> Tensor<4> {
        self.heads_inside(products(self.mixed().transpose(), self.by_heads.clone()))
    }

    pub(super) fn within_gradients(&self, dy: &Tensor<4>) -> OfRun {
        let (mixed, ones, q) = (self.mixed(), &self.of.ones, self.q);
        let dy = self.heads_outside(dy.clone());
        let input = self.heads_inside(products(mixed.clone(), dy.clone()));
        let dmixed = products(self.by_heads.clone(), dy.transpose());
        let of = self.many() * self.groups;
        let dscores =
            (dmixed.clone() * self.decay.clone()).reshape([of, self.heads / self.groups, q * q]);
        let dscores = sums_of_rows(dscores).reshape([of, q, q]);
        // A pair of tokens (j, i) passes the decays of j + 1 ..= i. Sums of pairs, never differences
        // of sums, which would lose what is small.
        let before: Tensor<3> = ones.before.clone().unsqueeze();
        let pairs = dmixed * mixed * before.clone();
        let crossing = sums_of_rows(by_matrix(pairs, ones.up_to.clone().transpose()) * before);
        OfRun {
            input,
            log_decay: self.heads_inside(crossing.transpose()),
            b: products(dscores.clone(), self.c.clone()),
            c: products(dscores.transpose(), self.b.clone()),
        }
    }
}
