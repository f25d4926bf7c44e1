//! The causal convolution and its gradients: a thread per run of channels of a token, or of a span of tokens
//! where it adds up what the weights get.

use super::parts::add_parts;
use super::sigmoid;
use crate::card::OnCard;
use crate::card::launch::{addresses, buffer, element, empty, empty_like, lanes, plain, threads};
use crate::fused::conv::op::ConvOps;
use crate::scan::Steps;
use burn::backend::{Cube, tensor::FloatTensor};
use burn::tensor::{DType, Tensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::Handle;

/// Tokens of a thread that adds up what the weights get.
const SPAN: usize = 32;
/// No token, or no input.
const NONE: i32 = -1;

type Tensors<T> = [T; 4];

/// A call: x, weight `[K, C]`, bias and tail, and how it is divided.
struct Call {
    x: CubeTensor,
    weight: CubeTensor,
    bias: CubeTensor,
    tail: CubeTensor,
    k: usize,
    batch: usize,
    len: usize,
    lanes: usize,
    /// Channels in runs.
    width: usize,
    /// Which inputs a token has, as [`Steps::taps`] numbers them; one number where that is plain.
    taps: Vec<i32>,
    plain: bool,
}

impl Call {
    fn new(of: Tensors<FloatTensor<Cube>>, others: &[&CubeTensor], steps: &Steps) -> Self {
        let [x, weight, bias, tail] = of.map(plain::<Cube>);
        let [batch, len, channels]: [usize; 3] = x.meta.shape().dims();
        let k = weight.meta.shape()[0];
        let lanes = lanes(&[&[&x, &weight, &bias, &tail], others].concat(), &[channels]);
        let plain = steps.is_plain();
        let taps = if plain { vec![NONE] } else { steps.taps(k) };
        let width = channels / lanes;
        Self { x, weight, bias, tail, k, batch, len, lanes, width, taps, plain }
    }

    fn numbers(&self, of: &[i32]) -> (Handle, usize) {
        (self.x.client.create_from_slice(i32::as_bytes(of)), of.len())
    }

    /// Which token has an input of the tail or the row as its so many-th, `[B, K + T, K]`.
    fn uses(&self) -> Vec<i32> {
        if self.plain {
            return vec![NONE];
        }
        let (k, known) = (self.k, self.k + self.len);
        let mut uses = vec![NONE; self.batch * known * k];
        for (line, taps) in self.taps.chunks(k).enumerate() {
            let (row, token) = (line / self.len, line % self.len);
            for (j, tap) in taps.iter().enumerate().filter(|(_, tap)| **tap >= 0) {
                // Padding has no output, and no inputs that count.
                if taps[k - 1] >= 0 {
                    uses[(row * known + *tap as usize) * k + j] = token as i32;
                }
            }
        }
        uses
    }

    fn sizes(&self) -> SizesLaunch {
        SizesLaunch::new(self.batch, self.len, self.width)
    }
}

impl ConvOps for Cube {
    fn conv_op(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        tail: FloatTensor<Self>,
        steps: Steps,
    ) -> FloatTensor<Self> {
        let call = Call::new([x, weight, bias, tail], &[], &steps);
        let y = empty_like(&call.x);
        let taps = call.numbers(&call.taps);
        let (cubes, dim) = threads(&call.x.client, call.batch * call.len * call.width);
        // Safe: taps are of the tail or the row, and there is a thread per run of the output.
        unsafe {
            forward::launch_unchecked(
                &call.x.client,
                cubes,
                dim,
                addresses(&[&call.x]),
                call.lanes,
                buffer(&call.x),
                buffer(&call.weight),
                buffer(&call.bias),
                buffer(&call.tail),
                BufferArg::from_raw_parts(taps.0, taps.1),
                buffer(&y),
                call.sizes(),
                call.k,
                call.plain,
                element(&call.x),
            );
        }
        Self::lift(y)
    }

    fn conv_gradients(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        tail: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        steps: Steps,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let dy = plain::<Self>(dy);
        let call = Call::new([x, weight, bias, tail], &[&dy], &steps);
        let (k, channels) = (call.k, call.width * call.lanes);
        let spans = (call.batch * call.len).div_ceil(SPAN);
        let ds = empty(&[call.batch, call.len, channels], DType::F32, &dy);
        let parts = empty(&[spans, k + 1, channels], DType::F32, &dy);
        let sums = empty(&[k + 1, channels], call.weight.dtype, &dy);
        let (dx, dtail) = (empty_like(&call.x), empty_like(&call.tail));
        let (taps, uses) = (call.numbers(&call.taps), call.numbers(&call.uses()));
        let client = &call.x.client;
        let most = addresses(&[&ds, &parts, &dtail]);
        // Safe: as above; uses are tokens.
        unsafe {
            let (cubes, dim) = threads(client, spans * call.width);
            before_silu::launch_unchecked(
                client,
                cubes,
                dim,
                most,
                call.lanes,
                buffer(&call.x),
                buffer(&call.weight),
                buffer(&call.bias),
                buffer(&call.tail),
                BufferArg::from_raw_parts(taps.0, taps.1),
                buffer(&dy),
                buffer(&ds),
                buffer(&parts),
                call.sizes(),
                k,
                call.plain,
                element(&call.x),
            );
            let (cubes, dim) = threads(client, call.batch * (k + call.len) * call.width);
            of_inputs::launch_unchecked(
                client,
                cubes,
                dim,
                most,
                call.lanes,
                buffer(&call.weight),
                buffer(&ds),
                BufferArg::from_raw_parts(uses.0, uses.1),
                buffer(&dx),
                buffer(&dtail),
                call.sizes(),
                k,
                call.plain,
                element(&call.x),
            );
        }
        add_parts(&parts, &sums);
        let sums = Tensor::<2>::from_primitive::<Cube>(Self::lift(sums));
        let (dw, db) = (sums.clone().narrow(0, 0, k), sums.narrow(0, k, 1).reshape([channels]));
        let (dw, db) = (primitive!(Cube, dw), primitive!(Cube, db));
        (Self::lift(dx), dw, db, Self::lift(dtail))
    }
}

#[derive(CubeType, CubeLaunch, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Sizes {
    batch: usize,
    len: usize,
    width: usize,
}

/// The so many-th input of a token: below K in the tail, else in the row; none where it is negative.
#[cube]
fn tap(
    taps: &[i32],
    line: usize,
    j: usize,
    sizes: &Sizes,
    #[comptime] k: usize,
    #[comptime] plain: bool,
) -> i32 {
    if comptime!(plain) { (line % sizes.len + j + 1) as i32 } else { taps[line * k + j] }
}

/// Input `tap` of a row.
#[cube]
fn input<F: Float, N: Size>(
    x: &[Vector<F, N>],
    tail: &[Vector<F, N>],
    row: usize,
    tap: i32,
    at: usize,
    sizes: &Sizes,
    #[comptime] k: usize,
) -> Vector<f32, N> {
    let mut value = Vector::<f32, N>::new(0.0);
    if tap >= 0 {
        let tap = tap as usize;
        if tap < k {
            value = Vector::cast_from(tail[(row * k + tap) * sizes.width + at]);
        } else {
            value = Vector::cast_from(x[(row * sizes.len + tap - k) * sizes.width + at]);
        }
    }
    value
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn forward<F: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[Vector<F, N>],
    bias: &[Vector<F, N>],
    tail: &[Vector<F, N>],
    taps: &[i32],
    y: &mut [Vector<F, N>],
    sizes: Sizes,
    #[comptime] k: usize,
    #[comptime] plain: bool,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= y.len() {
        terminate!();
    }
    let at = ABSOLUTE_POS % sizes.width;
    let line = ABSOLUTE_POS / sizes.width;
    let row = line / sizes.len;
    let mut sum = Vector::<f32, N>::cast_from(bias[at]);
    #[unroll(k <= 8)]
    for j in 0..k {
        let w = Vector::<f32, N>::cast_from(weight[j * sizes.width + at]);
        let tap = tap(taps, line, j, &sizes, k, plain);
        sum += w * input::<F, N>(x, tail, row, tap, at, &sizes, k);
    }
    if tap(taps, line, comptime!(k - 1).runtime(), &sizes, k, plain) >= 0 {
        y[ABSOLUTE_POS] = Vector::cast_from(sum * sigmoid(sum));
    } else {
        y[ABSOLUTE_POS] = Vector::cast_from(Vector::<f32, N>::new(0.0));
    }
}

/// Gradients of what goes into silu, and the share of a span of tokens in those of the weights and the bias.
#[cube(launch_unchecked, address_type = "dynamic")]
fn before_silu<F: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[Vector<F, N>],
    bias: &[Vector<F, N>],
    tail: &[Vector<F, N>],
    taps: &[i32],
    dy: &[Vector<F, N>],
    ds: &mut [Vector<f32, N>],
    parts: &mut [Vector<f32, N>],
    sizes: Sizes,
    #[comptime] k: usize,
    #[comptime] plain: bool,
    #[define(F)] _dtype: ElemType,
) {
    let at = ABSOLUTE_POS % sizes.width;
    let span = ABSOLUTE_POS / sizes.width;
    let lines = sizes.batch * sizes.len;
    if span * SPAN >= lines {
        terminate!();
    }
    let one = Vector::<f32, N>::new(1.0);
    let mut sums = Array::<Vector<f32, N>>::new(comptime!(k + 1));
    #[unroll(k <= 8)]
    for j in 0..comptime!(k + 1) {
        sums[j] = Vector::new(0.0);
    }
    let end = min((span + 1) * SPAN, lines);
    for line in span * SPAN..end {
        let row = line / sizes.len;
        let mut sum = Vector::<f32, N>::cast_from(bias[at]);
        #[unroll(k <= 8)]
        for j in 0..k {
            let w = Vector::<f32, N>::cast_from(weight[j * sizes.width + at]);
            let tap = tap(taps, line, j, &sizes, k, plain);
            sum += w * input::<F, N>(x, tail, row, tap, at, &sizes, k);
        }
        let s = sigmoid(sum);
        let grad = Vector::<f32, N>::cast_from(dy[line * sizes.width + at]);
        let mut grad = grad * s * (one + sum * (one - s));
        if tap(taps, line, comptime!(k - 1).runtime(), &sizes, k, plain) < 0 {
            grad = Vector::new(0.0);
        }
        ds[line * sizes.width + at] = grad;
        #[unroll(k <= 8)]
        for j in 0..k {
            let tap = tap(taps, line, j, &sizes, k, plain);
            sums[j] += grad * input::<F, N>(x, tail, row, tap, at, &sizes, k);
        }
        sums[k] += grad;
    }
    #[unroll(k <= 8)]
    for j in 0..comptime!(k + 1) {
        parts[(span * comptime!(k + 1) + j) * sizes.width + at] = sums[j];
    }
}

/// Gradients of the tail and of the row: every input is given by those that have it.
#[cube(launch_unchecked, address_type = "dynamic")]
fn of_inputs<F: Float, N: Size>(
    weight: &[Vector<F, N>],
    ds: &[Vector<f32, N>],
    uses: &[i32],
    dx: &mut [Vector<F, N>],
    dtail: &mut [Vector<F, N>],
    sizes: Sizes,
    #[comptime] k: usize,
    #[comptime] plain: bool,
    #[define(F)] _dtype: ElemType,
) {
    let at = ABSOLUTE_POS % sizes.width;
    let line = ABSOLUTE_POS / sizes.width;
    let known = sizes.len + k;
    let row = line / known;
    if row >= sizes.batch {
        terminate!();
    }
    let place = line % known;
    let mut sum = Vector::<f32, N>::new(0.0);
    #[unroll(k <= 8)]
    for j in 0..k {
        let of = place as i32 - j as i32 - 1;
        let token = if comptime!(plain) {
            select(of < sizes.len as i32, of, NONE)
        } else {
            uses[line * k + j]
        };
        if token >= 0 {
            let w = Vector::<f32, N>::cast_from(weight[j * sizes.width + at]);
            sum += w * ds[(row * sizes.len + token as usize) * sizes.width + at];
        }
    }
    if place < k {
        dtail[(row * k + place) * sizes.width + at] = Vector::cast_from(sum);
    } else {
        dx[(row * sizes.len + place - k) * sizes.width + at] = Vector::cast_from(sum);
    }
}
