//! `silu(gate) · up` and both gradients, element by element.

use super::sigmoid;
use crate::card::OnCard;
use crate::card::launch::{addresses, buffer, element, empty_like, lanes, plain, threads};
use crate::fused::swiglu::op::SwigluOps;
use burn::backend::{Cube, tensor::FloatTensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

impl SwigluOps for Cube {
    fn swiglu_op(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let (gate, up) = (plain::<Self>(gate), plain::<Self>(up));
        let y = empty_like(&gate);
        let len = gate.meta.num_elements();
        let lanes = lanes(&[&gate, &up], &[len]);
        let (cubes, dim) = threads(&gate.client, len / lanes);
        // Safe: a thread per run of numbers that all three have.
        unsafe {
            forward::launch_unchecked(
                &gate.client,
                cubes,
                dim,
                addresses(&[&gate, &up]),
                lanes,
                buffer(&gate),
                buffer(&up),
                buffer(&y),
                element(&gate),
            );
        }
        Self::lift(y)
    }

    fn swiglu_gradients(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        dy: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (gate, up, dy) = (plain::<Self>(gate), plain::<Self>(up), plain::<Self>(dy));
        let (dgate, dup) = (empty_like(&gate), empty_like(&gate));
        let len = gate.meta.num_elements();
        let lanes = lanes(&[&gate, &up, &dy], &[len]);
        let (cubes, dim) = threads(&gate.client, len / lanes);
        // Safe: as above.
        unsafe {
            gradients::launch_unchecked(
                &gate.client,
                cubes,
                dim,
                addresses(&[&gate, &up, &dy]),
                lanes,
                buffer(&gate),
                buffer(&up),
                buffer(&dy),
                buffer(&dgate),
                buffer(&dup),
                element(&gate),
            );
        }
        (Self::lift(dgate), Self::lift(dup))
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn forward<F: Float, N: Size>(
    gate: &[Vector<F, N>],
    up: &[Vector<F, N>],
    y: &mut [Vector<F, N>],
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= y.len() {
        terminate!();
    }
    let gate = Vector::<f32, N>::cast_from(gate[ABSOLUTE_POS]);
    let up = Vector::<f32, N>::cast_from(up[ABSOLUTE_POS]);
    y[ABSOLUTE_POS] = Vector::cast_from(gate * sigmoid(gate) * up);
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn gradients<F: Float, N: Size>(
    gate: &[Vector<F, N>],
    up: &[Vector<F, N>],
    dy: &[Vector<F, N>],
    dgate: &mut [Vector<F, N>],
    dup: &mut [Vector<F, N>],
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= dup.len() {
        terminate!();
    }
    let gate = Vector::<f32, N>::cast_from(gate[ABSOLUTE_POS]);
    let up = Vector::<f32, N>::cast_from(up[ABSOLUTE_POS]);
    let dy = Vector::<f32, N>::cast_from(dy[ABSOLUTE_POS]);
    let one = Vector::<f32, N>::new(1.0);
    let s = sigmoid(gate);
    dgate[ABSOLUTE_POS] = Vector::cast_from(dy * up * s * (one + gate * (one - s)));
    dup[ABSOLUTE_POS] = Vector::cast_from(dy * gate * s);
}
