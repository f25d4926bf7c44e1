//! One step of AdamW in place.

use crate::card::OnCard;
use crate::card::launch::{addresses, buffer, element, empty_like, lanes, threads};
use crate::fused::AdamWStep;
use burn::backend::Cube;
use burn::tensor::Tensor;
use burn_cubecl::kernel::into_contiguous;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// All four on a card, of one shape and dtype. What nobody else holds is written over; what somebody does is
/// left alone, without a copy of it.
pub fn adamw<const N: usize>(
    weight: Tensor<N>,
    grad: Tensor<N>,
    [m, v]: [Tensor<N>; 2],
    step: &AdamWStep,
    scale: f32,
) -> (Tensor<N>, [Tensor<N>; 2]) {
    let lower = |x: Tensor<N>| into_contiguous(Cube::lower(primitive!(Cube, x)));
    let grad = lower(grad);
    let [weight, m, v] = [weight, m, v].map(lower);
    let all = [&weight, &grad, &m, &v];
    let len = weight.meta.num_elements();
    let lanes = lanes(&all, &[len]);
    let (cubes, dim) = threads(&weight.client, len / lanes);
    let (c1, c2) = step.corrections();
    // With where each is among the buffers of the kernel.
    let [new_weight, new_m, new_v] = [(&weight, 0), (&m, 2), (&v, 3)].map(|(x, place)| {
        let over = x.can_mut();
        let out = if over { x.clone() } else { empty_like(x) };
        let alias = x.as_tensor_alias(place).into_buffer_arg();
        (if over { alias } else { buffer(&out) }, out)
    });
    // Safe: a thread per run of numbers that all have, which it reads before it writes.
    unsafe {
        update::launch_unchecked(
            &weight.client,
            cubes,
            dim,
            addresses(&all),
            lanes,
            buffer(&weight),
            buffer(&grad),
            buffer(&m),
            buffer(&v),
            new_weight.0,
            new_m.0,
            new_v.0,
            NumbersLaunch::new(
                scale,
                step.lr,
                step.beta1,
                step.beta2,
                step.eps,
                1.0 - step.lr * step.weight_decay,
                c1,
                c2,
            ),
            element(&weight),
        );
    }
    let lift = |x| Tensor::from_primitive::<Cube>(Cube::lift(x));
    (lift(new_weight.1), [lift(new_m.1), lift(new_v.1)])
}

#[derive(CubeType, CubeLaunch, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Numbers {
    scale: f32,
    lr: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    /// What decay leaves of the weight.
    keep: f32,
    c1: f32,
    c2: f32,
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn update<F: Float, N: Size>(
    weight: &[Vector<F, N>],
    grad: &[Vector<F, N>],
    m: &[Vector<F, N>],
    v: &[Vector<F, N>],
    new_weight: &mut [Vector<F, N>],
    new_m: &mut [Vector<F, N>],
    new_v: &mut [Vector<F, N>],
    by: Numbers,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= weight.len() {
        terminate!();
    }
    let one = Vector::<f32, N>::new(1.0);
    let (beta1, beta2) = (Vector::new(by.beta1), Vector::new(by.beta2));
    let g = Vector::<f32, N>::cast_from(grad[ABSOLUTE_POS]) * Vector::new(by.scale);
    let mean = Vector::<f32, N>::cast_from(m[ABSOLUTE_POS]) * beta1 + g * (one - beta1);
    let square = Vector::<f32, N>::cast_from(v[ABSOLUTE_POS]) * beta2 + g * g * (one - beta2);
    let root = (square / Vector::new(by.c2)).sqrt() + Vector::new(by.eps);
    let delta = mean / Vector::new(by.c1) / root * Vector::new(by.lr);
    let kept = Vector::<f32, N>::cast_from(weight[ABSOLUTE_POS]) * Vector::new(by.keep);
    new_m[ABSOLUTE_POS] = Vector::cast_from(mean);
    new_v[ABSOLUTE_POS] = Vector::cast_from(square);
    new_weight[ABSOLUTE_POS] = Vector::cast_from(kept - delta);
}
