//! What launches of kernels share: tensors as buffers, how many numbers a thread takes at once, how many
//! workgroups there are.

use super::OnCard;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

/// Threads of a workgroup.
pub(crate) const UNITS: usize = 256;
/// Most bytes that a thread reads at once.
const RUN: usize = 16;

/// Without gaps, as the kernels read what is not said to have strides.
pub(crate) fn plain<B: OnCard>(x: FloatTensor<B>) -> CubeTensor {
    into_contiguous(B::lower(x))
}

pub(crate) fn empty(shape: &[usize], dtype: DType, beside: &CubeTensor) -> CubeTensor {
    let (client, device) = (beside.client.clone(), beside.device.clone());
    empty_device_contiguous_dtype(client, device, Shape::from(shape.to_vec()), dtype)
}

pub(crate) fn empty_like(x: &CubeTensor) -> CubeTensor {
    empty(x.meta.shape(), x.dtype, x)
}

pub(crate) fn buffer(x: &CubeTensor) -> BufferArg {
    x.clone().binding().into_buffer_arg()
}

/// What numbers a tensor has; one of those that [`floats_on_card`](super::floats_on_card) lets through.
pub(crate) fn element(x: &CubeTensor) -> ElemType {
    ElemType::Float(match x.dtype {
        DType::BF16 => FloatKind::BF16,
        DType::F16 => FloatKind::F16,
        _ => FloatKind::F32,
    })
}

/// How many neighbours a thread takes at once: a part of every length, such that all tensors are read at
/// multiples of it.
pub(crate) fn lanes(tensors: &[&CubeTensor], lengths: &[usize]) -> usize {
    let sizes = tensors.iter().map(|x| x.dtype.size());
    let narrowest = sizes.min().unwrap_or(RUN);
    let widest = tensors[0].client.io_optimized_vector_sizes(narrowest).next().unwrap_or(1);
    let fits = |lanes: usize| {
        let begins = |x: &&CubeTensor| x.handle.offset_start.unwrap_or_default() as usize;
        lengths.iter().all(|len| len.is_multiple_of(lanes))
            && tensors.iter().all(|x| begins(x).is_multiple_of(lanes * x.dtype.size()))
    };
    let mut lanes = widest.min(RUN / narrowest);
    while !fits(lanes) {
        lanes /= 2;
    }
    lanes
}

/// A thread per run of numbers.
pub(crate) fn threads(client: &Client, runs: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new_1d(UNITS as u32);
    let padded = runs.next_multiple_of(UNITS);
    (cubecl::calculate_cube_count_elemwise(client, padded, dim), dim)
}

/// Wide enough to count the numbers of the largest tensor.
pub(crate) fn addresses(tensors: &[&CubeTensor]) -> AddressType {
    AddressType::from_len(tensors.iter().map(|x| x.handle.size() as usize).max().unwrap_or(0))
}
