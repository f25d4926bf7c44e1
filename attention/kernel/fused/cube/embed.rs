//! The gradient of an embedding: tokens of one id are linked in their order, and the first of them adds up
//! what all of them have.

use crate::card::OnCard;
use crate::card::launch::{UNITS, addresses, buffer, element, empty, lanes, plain, threads};
use crate::fused::embed::op::EmbedOps;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Cube, ops::FloatTensorOps};
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::zeros_client;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Threads that look for a token's neighbours.
const TEAM: usize = 32;
/// There is no further token of the id.
const LAST: u32 = u32::MAX;
/// There is an earlier one.
const LATER: u32 = 1;

impl EmbedOps for Cube {
    fn embed_op(weight: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self> {
        Self::float_select(weight, 0, ids)
    }

    fn embed_gradient(
        ids: IntTensor<Self>,
        dy: FloatTensor<Self>,
        rows: usize,
    ) -> FloatTensor<Self> {
        let (ids, dy) = (into_contiguous(Self::lower_int(ids)), plain::<Self>(dy));
        let [n, width]: [usize; 2] = dy.meta.shape().dims();
        let links = empty(&[2, n], DType::U32, &dy);
        // Burn lays the rows of matrices apart on cards of NVIDIA.
        let (client, device) = (dy.client.clone(), dy.device.clone());
        let zeros = zeros_client(client.clone(), device.clone(), [rows * width].into(), dy.dtype);
        let shape = [rows, width].into();
        let dw = CubeTensor::new_contiguous(client, device, shape, zeros.handle, dy.dtype);
        let lanes = lanes(&[&dy], &[width]);
        let (cubes, dim) = threads(&dy.client, n.div_ceil(UNITS / TEAM) * UNITS);
        // Safe: ids are below the number of rows, as the forward pass has them, and links below that of tokens.
        unsafe {
            link::launch_unchecked(
                &dy.client,
                cubes,
                dim,
                addresses(&[&ids, &links]),
                buffer(&ids),
                buffer(&links),
                n,
            );
            let (cubes, dim) = threads(&dy.client, n * (width / lanes));
            add_rows::launch_unchecked(
                &dy.client,
                cubes,
                dim,
                addresses(&[&dw, &dy]),
                lanes,
                buffer(&ids),
                buffer(&links),
                buffer(&dy),
                buffer(&dw),
                n,
                width / lanes,
                element(&dy),
            );
        }
        Self::lift(dw)
    }
}

/// The next token of the same id, and whether there is an earlier one.
#[cube(launch_unchecked, address_type = "dynamic")]
fn link(ids: &[i32], links: &mut [u32], n: usize) {
    let unit = UNIT_POS as usize;
    let token = CUBE_POS * (UNITS / TEAM) + unit / TEAM;
    let within = min(token, n - 1);
    let id = ids[within];
    let mut next = LAST.runtime();
    let mut earlier = 0u32;
    let turns = n.div_ceil(TEAM);
    for turn in 0..turns {
        let other = turn * TEAM + unit % TEAM;
        if other < n && ids[other] == id {
            if other > within {
                next = min(next, other as u32);
            }
            if other < within {
                earlier = LATER;
            }
        }
    }
    let mut nexts = Shared::<[u32]>::new_slice(UNITS);
    let mut before = Shared::<[u32]>::new_slice(UNITS);
    nexts[unit] = next;
    before[unit] = earlier;
    sync_cube();
    if unit == unit / TEAM * TEAM && token < n {
        let mut next = LAST.runtime();
        let mut earlier = 0u32;
        for i in 0..TEAM {
            next = min(next, nexts[unit + i]);
            earlier = max(earlier, before[unit + i]);
        }
        links[token] = next;
        links[n + token] = earlier;
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn add_rows<F: Float, N: Size>(
    ids: &[i32],
    links: &[u32],
    dy: &[Vector<F, N>],
    dw: &mut [Vector<F, N>],
    tokens: usize,
    width: usize,
    #[define(F)] _dtype: ElemType,
) {
    let token = ABSOLUTE_POS / width;
    if token >= tokens {
        terminate!();
    }
    if links[tokens + token] == LATER {
        terminate!();
    }
    let at = ABSOLUTE_POS % width;
    let mut sum = Vector::<f32, N>::cast_from(dy[ABSOLUTE_POS]);
    let mut next = links[token];
    while next != LAST {
        sum += Vector::<f32, N>::cast_from(dy[next as usize * width + at]);
        next = links[next as usize];
    }
    dw[ids[token] as usize * width + at] = Vector::cast_from(sum);
}
