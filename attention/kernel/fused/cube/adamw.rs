//! One step of AdamW in place.

use crate::card::OnCard;
use crate::card::launch::{addresses, buffer, element, lanes, threads};
use crate::fused::AdamWStep;
use burn::backend::Cube;
use burn::tensor::Tensor;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// All four on a card, of one shape and dtype. What nobody else holds is written over.
pub fn adamw<const N: usize>(
    weight: Tensor<N>,
    grad: Tensor<N>,
    [m, v]: [Tensor<N>; 2],
    step: &AdamWStep,
    scale: f32,
) -> (Tensor<N>, [Tensor<N>; 2]) {
    let lower = |x: Tensor<N>| into_contiguous(Cube::lower(primitive!(Cube, x)));
    let grad = lower(grad);
    let [weight, m, v] = [weight, m, v].map(|x| owned(lower(x)));
    let all = [&weight, &grad, &m, &v];
    let len = weight.meta.num_elements();
    let lanes = lanes(&all, &[len]);
    let (cubes, dim) = threads(&weight.client, len / lanes);
    let (c1, c2) = step.corrections();
    // Safe: a thread per run of numbers that all four have.
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
    (lift(weight), [lift(m), lift(v)])
}

fn owned(x: CubeTensor) -> CubeTensor {
    if x.can_mut() { x } else { x.copy() }
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
    weight: &mut [Vector<F, N>],
    grad: &[Vector<F, N>],
    m: &mut [Vector<F, N>],
    v: &mut [Vector<F, N>],
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
    m[ABSOLUTE_POS] = Vector::cast_from(mean);
    v[ABSOLUTE_POS] = Vector::cast_from(square);
    weight[ABSOLUTE_POS] = Vector::cast_from(kept - delta);
}
