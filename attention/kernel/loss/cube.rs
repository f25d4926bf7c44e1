//! The same on cards: a product gives the logits of a chunk, and one kernel turns them into their own
//! gradient where they lie.

use super::{LossPlan, chunk_on};
use crate::card::OnCard;
use crate::card::launch::{UNITS, addresses, buffer, element, empty, lanes, plain, threads};
use crate::card::team::{across, largest, team_sums};
use crate::linear::{add_product_on_card, product_on_card, wide_product_on_card};
use burn::backend::{Cube, tensor::FloatTensor};
use burn::tensor::{DType, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::Handle;

/// (loss `[1]`, dx like x, dw like w); gradients that are not wanted are one zero.
pub(super) fn forward(
    x: FloatTensor<Cube>,
    w: FloatTensor<Cube>,
    plan: &LossPlan,
) -> (FloatTensor<Cube>, FloatTensor<Cube>, FloatTensor<Cube>) {
    let tensor = Tensor::<2>::from_primitive::<Cube>;
    let (x, w) = (tensor(x), tensor(w));
    let (device, dtype, of_w) = (x.device(), x.dtype(), w.dtype());
    let w = w.cast(dtype);
    let (n, v) = (x.dims()[0], w.dims()[0]);
    let nothing = |dtype| Tensor::<2>::zeros([1, 1], (&device, dtype));
    let beside = plain::<Cube>(primitive!(Cube, x.clone()));
    let losses = empty(&[n], DType::F32, &beside);
    let labels = beside.client.create_from_slice(i32::as_bytes(&plan.labels));
    let mut dx = Vec::new();
    let mut dw: Option<CubeTensor> = None;
    let chunk = chunk_on(&x, v);
    for start in (0..n).step_by(chunk) {
        let len = chunk.min(n - start);
        let part = x.clone().narrow(0, start, len);
        let logits = product_on_card(part.clone(), w.clone().transpose());
        // The product has made them for this pass alone.
        let logits = plain::<Cube>(primitive!(Cube, logits));
        differentiate(&logits, (&labels, n), &losses, start, plan.x_grad || plan.w_grad);
        let dlogits = tensor(Cube::lift(logits));
        if plan.x_grad {
            dx.push(product_on_card(dlogits.clone(), w.clone()));
        }
        if plan.w_grad {
            let turned = dlogits.transpose();
            let added = |sum: &CubeTensor| add_product_on_card(&turned, &part, sum);
            if !dw.as_ref().is_some_and(added) {
                let part = plain::<Cube>(primitive!(Cube, wide_product_on_card(turned, part)));
                match &dw {
                    None => dw = Some(owned(part)),
                    Some(sum) => add(&part, sum),
                }
            }
        }
    }
    let loss = Tensor::<1>::from_primitive::<Cube>(Cube::lift(losses)).sum();
    let dx = match dx.len() {
        0 => nothing(dtype),
        1 => dx.remove(0),
        _ => Tensor::cat(dx, 0),
    };
    let dw = dw.map_or_else(|| nothing(of_w), |dw| tensor(Cube::lift(dw)).cast(of_w));
    (primitive!(Cube, loss), primitive!(Cube, dx), primitive!(Cube, dw))
}

/// A copy's rows may lie apart on cards of NVIDIA.
fn owned(x: CubeTensor) -> CubeTensor {
    if x.can_mut() { x } else { into_contiguous(x.copy()) }
}

/// Logits `[n, V]` of the tokens from `first` on, of which there are `labels.1` in all, become their own
/// gradients where those are wanted, and every token's loss is written.
fn differentiate(
    logits: &CubeTensor,
    labels: (&Handle, usize),
    losses: &CubeTensor,
    first: usize,
    gradients: bool,
) {
    let [n, v]: [usize; 2] = logits.meta.shape().dims();
    let lanes = lanes(&[logits], &[v]);
    // Safe: labels are below V, and there is one for every token.
    unsafe {
        of_rows::launch_unchecked(
            &logits.client,
            CubeCount::Static(n as u32, 1, 1),
            CubeDim::new_1d(UNITS as u32),
            addresses(&[logits]),
            lanes,
            buffer(logits),
            BufferArg::from_raw_parts(labels.0.clone(), labels.1),
            buffer(losses),
            first,
            v / lanes,
            gradients,
            element(logits),
        );
    }
}

/// `sum + part` in the place of `sum`, both in f32.
fn add(part: &CubeTensor, sum: &CubeTensor) {
    let len = part.meta.num_elements();
    let lanes = lanes(&[part, sum], &[len]);
    let (cubes, dim) = threads(&part.client, len / lanes);
    // Safe: a thread per run of numbers that both have.
    unsafe {
        add_to::launch_unchecked(
            &part.client,
            cubes,
            dim,
            addresses(&[part, sum]),
            lanes,
            buffer(part),
            buffer(sum),
        );
    }
}

/// A workgroup per token: the largest logit and the sum of exponentials in one pass, `softmax − label` in
/// a second.
#[cube(launch_unchecked, address_type = "dynamic")]
fn of_rows<F: Float, N: Size>(
    logits: &mut [Vector<F, N>],
    labels: &[i32],
    losses: &mut [f32],
    first: usize,
    width: usize,
    #[comptime] gradients: bool,
    #[define(F)] _dtype: ElemType,
) {
    let unit = UNIT_POS as usize;
    let start = CUBE_POS * width;
    let label = labels[first + CUBE_POS];
    let counts = label >= 0;
    let label = select(counts, label, 0) as usize;
    let lanes = N::value();
    // What is not asked for is not read.
    let end = select(counts, width, 0);
    let of_label = f32::cast_from(logits[start + label / lanes].extract_dynamic(label % lanes));
    let turns = end.div_ceil(UNITS);
    let mut top = f32::MIN.runtime();
    let mut sum = 0.0f32;
    for turn in 0..turns {
        let at = turn * UNITS + unit;
        if at < end {
            let x = Vector::<f32, N>::cast_from(logits[start + at]);
            let mut here = x.extract(0usize);
            #[unroll]
            for i in 1..lanes {
                here = here.max(x.extract(i));
            }
            if here > top {
                sum *= (top - here).exp();
                top = here;
            }
            sum += across((x - Vector::new(top)).exp());
        }
    }
    let most = largest(top);
    let mut sums = Array::<f32>::new(1usize);
    sums[0] = sum * (top - most).exp();
    team_sums(&mut sums, 1usize, UNITS);
    let all = sums[0];
    if unit == 0 {
        losses[first + CUBE_POS] = select(counts, all.ln() + most - of_label, 0.0);
    }
    if comptime!(gradients) {
        let share = Vector::<f32, N>::new(1.0 / all);
        let turns = width.div_ceil(UNITS);
        for turn in 0..turns {
            let at = turn * UNITS + unit;
            if at < width {
                if counts {
                    let x = Vector::<f32, N>::cast_from(logits[start + at]);
                    let mut p = (x - Vector::new(most)).exp() * share;
                    if at == label / lanes {
                        #[unroll]
                        for i in 0..lanes {
                            let value = p.extract(i);
                            p.insert(i, select(i == label % lanes, value - 1.0, value));
                        }
                    }
                    logits[start + at] = Vector::cast_from(p);
                } else {
                    logits[start + at] = Vector::cast_from(Vector::<f32, N>::new(0.0));
                }
            }
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn add_to<N: Size>(part: &[Vector<f32, N>], sum: &mut [Vector<f32, N>]) {
    if ABSOLUTE_POS >= sum.len() {
        terminate!();
    }
    sum[ABSOLUTE_POS] += part[ABSOLUTE_POS];
}
