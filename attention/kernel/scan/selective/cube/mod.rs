//! The selective scan on cards, in CubeCL: a thread per channel and chunk of tokens.
//!
//! A row's tokens are cut into chunks that run side by side, since one row's channels are too few
//! threads for a card. Forward, a first kernel computes what each chunk leaves in a state of zeros, a
//! small one hands the states on from chunk to chunk, and a third computes the outputs; backward, the
//! same happens from the other end. Within a chunk a thread walks through spans of tokens: it has the
//! numbers of a span's tokens in registers and takes one state after another, so that N may be any and
//! B and C of neighbouring tokens are read together. For the backward pass the state before each span
//! is kept, and those between are computed again.
//!
//! dB and dC are sums over channels, dA, dD over tokens: workgroups write parts, which are added in
//! their order, so that two runs give the same bits.
// A kernel has an argument per buffer, and no iterators.
#![allow(clippy::too_many_arguments, clippy::needless_range_loop)]

mod backward;
mod forward;
mod span;
mod sums;

use super::Plan;
use super::autodiff::ScanTensors;
use crate::card::OnCard;
use crate::scan::Step;
use burn::backend::{Cube, TensorMetadata, tensor::FloatTensor};
use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::{cast, into_contiguous};
use burn_cubecl::ops::numeric::{empty_device_contiguous_dtype, zeros_client};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::server::Handle;
use span::{FIRST, Form, NEXT, SKIP, SPAN, STATES, SizesLaunch, UNITS};

/// Buffers that the largest kernel binds.
const BINDINGS: u32 = 24;
/// Threads that keep a card busy; a row is cut into no more chunks than that takes.
const THREADS: usize = 1 << 17;
/// Fewest spans of a chunk: with fewer, handing on states costs more than it gains.
const CHUNK: usize = 4;
/// Threads of a workgroup of the small kernels.
const SMALL: u32 = 256;

/// Why the kernels do not run for tensors like `u`, if they do not.
pub(super) fn refusal(u: &Tensor<3>) -> Option<String> {
    let Ok(u) = u.clone().inner().try_into_primitive::<Cube>() else {
        return Some(format!("`Cube` runs on graphics cards, not on {:?}", u.device()));
    };
    if u.dtype() == DType::F64 {
        return Some("`Cube` computes in f32".to_string());
    }
    let bindings = u.device().client().properties().hardware.max_bindings;
    (bindings < BINDINGS)
        .then(|| format!("`Cube` binds {BINDINGS} buffers, and the device has {bindings}"))
}

/// A call: its tensors in f32 without gaps, and how it is divided.
struct Call {
    x: ScanTensors<CubeBackend>,
    /// What each token does, and how many numbers these are.
    steps: (Handle, usize),
    form: Form,
    batch: usize,
    len: usize,
    channels: usize,
    n: usize,
    groups: usize,
    spans: usize,
    chunks: usize,
    per_chunk: usize,
}

/// (y and the state behind it `[B, T (+ N), E]`, the state before each span `[B, spans, N, E]`).
pub(super) fn forward(x: ScanTensors<Cube>, plan: &Plan) -> (FloatTensor<Cube>, FloatTensor<Cube>) {
    let x: ScanTensors<CubeBackend> = x.map(Cube::lower);
    #[cfg(feature = "cuda-nvrtc")]
    if let Some(kernels) = super::cuda::kernels(&x, plan) {
        return super::cuda::forward(x, plan, kernels);
    }
    let dtype = x.u.dtype;
    let call = Call::new(x, plan);
    let Call { batch, spans, chunks, n, channels, .. } = call;
    let x = &call.x;
    let (b, c) = (call.by_token(&x.b), call.by_token(&x.c));
    let slots = if plan.tracked { spans } else { chunks };
    let states = call.empty([batch, slots, n, channels]);
    let decays = call.empty([batch, chunks, n, channels]);
    let out = call.empty([batch, call.rows(), channels]);
    if chunks > 1 {
        // Safe: the kernel stays within the sizes that the buffers have.
        unsafe {
            forward::ends::launch_unchecked(
                &x.u.client,
                call.cubes(),
                CubeDim::new_1d(UNITS as u32),
                call.addresses(),
                buffer(&x.u),
                buffer(&x.delta),
                buffer(&x.a),
                buffer(&b),
                call.steps(),
                buffer(&states),
                buffer(&decays),
                call.sizes(),
                call.form,
            );
        }
    }
    let of_row = n * channels;
    let per_slot = if plan.tracked { call.per_chunk } else { 1 };
    call.combine((&x.h0, of_row, 0), &decays, &states, (per_slot, slots), true, false);
    // Safe: as above.
    unsafe {
        forward::outputs::launch_unchecked(
            &x.u.client,
            call.cubes(),
            CubeDim::new_1d(UNITS as u32),
            call.addresses(),
            buffer(&x.u),
            buffer(&x.delta),
            buffer(&x.a),
            buffer(&b),
            buffer(&c),
            buffer(&x.d),
            buffer(&x.z),
            call.steps(),
            buffer(&states),
            buffer(&out),
            call.sizes(),
            call.form,
        );
    }
    (Cube::lift(cast(out, dtype)), Cube::lift(states))
}

/// Gradients of all inputs; see [`ScanTensors`].
pub(super) fn gradients(
    x: ScanTensors<Cube>,
    states: FloatTensor<Cube>,
    dout: FloatTensor<Cube>,
    plan: &Plan,
) -> ScanTensors<Cube> {
    let x: ScanTensors<CubeBackend> = x.map(Cube::lower);
    #[cfg(feature = "cuda-nvrtc")]
    if let Some(kernels) = super::cuda::kernels(&x, plan) {
        let (states, dout) = (Cube::lower(states), Cube::lower(dout));
        return super::cuda::gradients(x, states, dout, plan, kernels);
    }
    let like = x.clone();
    let call = Call::new(x, plan);
    let Call { batch, len, chunks, n, channels, groups, .. } = call;
    let (x, dout, states) = (&call.x, plain(Cube::lower(dout)), Cube::lower(states));
    let carry = call.empty([batch, chunks, n, channels]);
    let decays = call.empty([batch, chunks, n, channels]);
    if chunks > 1 {
        // Safe: the kernel stays within the sizes that the buffers have.
        unsafe {
            backward::starts::launch_unchecked(
                &x.u.client,
                call.cubes(),
                CubeDim::new_1d(UNITS as u32),
                call.addresses(),
                buffer(&x.delta),
                buffer(&x.a),
                buffer(&call.by_token(&x.c)),
                buffer(&x.z),
                buffer(&dout),
                call.steps(),
                buffer(&carry),
                buffer(&decays),
                call.sizes(),
                call.form,
            );
        }
    }
    let behind = (&dout, call.rows() * channels, len * channels);
    call.combine(behind, &decays, &carry, (1, chunks), plan.keep_state, true);
    let rows = [batch, len, channels];
    let (du, ddelta) = (call.empty(rows), call.empty(rows));
    let dz = if plan.gate { call.empty(rows) } else { call.zero([1, 1, 1]) };
    let dh0 = call.empty([batch, n, channels]);
    let da = call.empty([batch, chunks, n, channels]);
    let dd = call.empty(if plan.skip { [batch, chunks, channels] } else { [1, 1, 1] });
    let shared = call.parts();
    let (b, c) = (call.by_state(&x.b), call.by_state(&x.c));
    // Safe: as above.
    unsafe {
        backward::gradients::launch_unchecked(
            &x.u.client,
            call.cubes(),
            CubeDim::new_1d(UNITS as u32),
            call.addresses(),
            buffer(&x.u),
            buffer(&x.delta),
            buffer(&x.a),
            buffer(&b),
            buffer(&c),
            buffer(&x.d),
            buffer(&x.z),
            buffer(&dout),
            call.steps(),
            buffer(&states),
            buffer(&carry),
            buffer(&du),
            buffer(&ddelta),
            buffer(&dz),
            buffer(&dh0),
            buffer(&da),
            buffer(&dd),
            buffer(&shared),
            batch,
            call.sizes(),
            call.form,
        );
    }
    let of = |x: CubeTensor, like: &CubeTensor| Cube::lift(cast(x, like.dtype));
    let d = match plan.skip {
        true => call.sum_parts(&dd, call.empty([channels])),
        false => call.zero([1]),
    };
    let narrow = [batch, len, groups * n];
    ScanTensors {
        u: of(du, &like.u),
        delta: of(ddelta, &like.delta),
        a: of(call.sum_parts(&da, call.empty([n, channels])), &like.a),
        b: of(call.sum_blocks(&shared, 0, call.empty(narrow)), &like.b),
        c: of(call.sum_blocks(&shared, 1, call.empty(narrow)), &like.c),
        d: of(d, &like.d),
        z: of(dz, &like.z),
        h0: of(dh0, &like.h0),
    }
}

/// `out` with the numbers of `x`, B or C, in the order of a kernel in `sums`.
macro_rules! arranged {
    ($kernel:ident, $call:expr, $x:expr, $out:expr) => {{
        let (call, x, out) = ($call, $x, $out);
        // Safe: a thread per number of `out`, which reads within `x`.
        unsafe {
            sums::$kernel::launch_unchecked(
                &x.client,
                small(&out),
                CubeDim::new_1d(SMALL),
                call.addresses(),
                buffer(x),
                call.steps(),
                buffer(&out),
                call.sizes(),
                call.form.plain,
            );
        }
        out
    }};
}

impl Call {
    fn new(x: ScanTensors<CubeBackend>, plan: &Plan) -> Self {
        let [batch, len, channels] = x.u.meta.shape().dims();
        let [n, _] = x.a.meta.shape().dims();
        let spans = len.div_ceil(SPAN);
        let wanted = (THREADS / (batch * channels)).clamp(1, spans.div_ceil(CHUNK));
        let per_chunk = spans.div_ceil(wanted);
        let plain_steps = plan.steps.is_plain();
        let ptx = cfg!(feature = "cuda-nvrtc") && x.u.client.name() == "cuda";
        let steps = if plain_steps { vec![NEXT] } else { steps(plan, spans * SPAN) };
        let on_card = x.u.client.create_from_slice(u32::as_bytes(&steps));
        Self {
            x: x.map(plain),
            steps: (on_card, steps.len()),
            form: Form {
                plain: plain_steps,
                softplus: plan.softplus,
                skip: plan.skip,
                gate: plan.gate,
                tracked: plan.tracked,
                keep_state: plan.keep_state,
                ptx,
            },
            batch,
            len,
            channels,
            n,
            groups: plan.groups,
            spans,
            chunks: spans.div_ceil(per_chunk),
            per_chunk,
        }
    }

    /// Rows of the packed output.
    fn rows(&self) -> usize {
        self.len + if self.form.keep_state { self.n } else { 0 }
    }

    /// Workgroups of a group's channels.
    fn blocks(&self) -> usize {
        (self.channels / self.groups).div_ceil(UNITS)
    }

    fn cubes(&self) -> CubeCount {
        let [x, y, z] = [self.groups * self.blocks(), self.chunks, self.batch].map(|n| n as u32);
        CubeCount::Static(x, y, z)
    }

    fn sizes(&self) -> SizesLaunch {
        SizesLaunch::new(
            self.len,
            self.channels,
            self.n,
            self.groups,
            self.spans,
            self.chunks,
            self.per_chunk,
            self.rows(),
        )
    }

    fn steps(&self) -> BufferArg {
        let (handle, len) = self.steps.clone();
        // Safe: it has as many numbers.
        unsafe { BufferArg::from_raw_parts(handle, len) }
    }

    /// Wide enough for the largest buffer.
    fn addresses(&self) -> AddressType {
        let padded = self.spans * SPAN;
        let states = self.batch * self.spans * self.n * self.channels;
        let wide = self.batch * (padded + self.n) * self.channels;
        let lines = self.batch * self.groups * padded * self.n.next_multiple_of(STATES);
        let parts = 2 * self.blocks() * self.batch * self.groups * self.n * padded;
        AddressType::from_len(states.max(wide).max(parts).max(lines))
    }

    fn empty<const D: usize>(&self, shape: [usize; D]) -> CubeTensor {
        let (client, device) = (self.x.u.client.clone(), self.x.u.device.clone());
        empty_device_contiguous_dtype(client, device, Shape::from(shape), DType::F32)
    }

    fn zero<const D: usize>(&self, shape: [usize; D]) -> CubeTensor {
        let (client, device) = (self.x.u.client.clone(), self.x.u.device.clone());
        zeros_client(client, device, Shape::from(shape), DType::F32)
    }

    /// Parts of dB and dC.
    fn parts(&self) -> CubeTensor {
        let width = self.groups * self.n;
        self.empty([self.blocks(), 2, self.batch, width, self.spans * SPAN])
    }

    fn by_token(&self, x: &CubeTensor) -> CubeTensor {
        let width = self.n.next_multiple_of(STATES);
        let out = self.empty([self.batch, self.groups, self.spans * SPAN, width]);
        arranged!(by_token, self, x, out)
    }

    fn by_state(&self, x: &CubeTensor) -> CubeTensor {
        let out = self.empty([self.batch, self.groups * self.n, self.spans * SPAN]);
        arranged!(by_state, self, x, out)
    }

    /// States, or their gradients, from chunk to chunk. `first` is the tensor that has those before
    /// all of them, the numbers of each of its rows, and how many of these come before.
    fn combine(
        &self,
        (first, of_row, skipped): (&CubeTensor, usize, usize),
        decays: &CubeTensor,
        states: &CubeTensor,
        (per_slot, slots): (usize, usize),
        given: bool,
        reverse: bool,
    ) {
        let width = (self.n * self.channels).div_ceil(SMALL as usize);
        // Safe: a thread per state of a row.
        unsafe {
            sums::combine::launch_unchecked(
                &first.client,
                CubeCount::Static(width as u32, self.batch as u32, 1),
                CubeDim::new_1d(SMALL),
                self.addresses(),
                buffer(first),
                buffer(decays),
                buffer(states),
                of_row,
                skipped,
                per_slot,
                slots,
                self.sizes(),
                given,
                reverse,
            );
        }
    }

    /// The sum of all parts of the size of `out`.
    fn sum_parts(&self, parts: &CubeTensor, out: CubeTensor) -> CubeTensor {
        // Safe: the parts have as many numbers as `out` each.
        unsafe {
            sums::sum_parts::launch_unchecked(
                &parts.client,
                small(&out),
                CubeDim::new_1d(SMALL),
                self.addresses(),
                buffer(parts),
                buffer(&out),
                self.batch * self.chunks,
            );
        }
        out
    }

    /// dB (0) or dC (1).
    fn sum_blocks(&self, parts: &CubeTensor, half: usize, out: CubeTensor) -> CubeTensor {
        // Safe: a thread per number of `out`.
        unsafe {
            sums::sum_blocks::launch_unchecked(
                &parts.client,
                small(&out),
                CubeDim::new_1d(SMALL),
                self.addresses(),
                buffer(parts),
                buffer(&out),
                self.batch,
                half,
                self.blocks(),
                self.sizes(),
            );
        }
        out
    }
}

/// What each token does, `[B, padded]`; nothing behind the end of a row.
pub(super) fn steps(plan: &Plan, padded: usize) -> Vec<u32> {
    let mut steps = vec![SKIP; plan.steps.batch() * padded];
    for (row, to) in steps.chunks_mut(padded).enumerate() {
        for (to, step) in to.iter_mut().zip(plan.steps.row(row)) {
            *to = match step {
                Step::Next => NEXT,
                Step::First => FIRST,
                Step::Skip => SKIP,
            };
        }
    }
    steps
}

/// In f32 and without gaps.
pub(super) fn plain(x: CubeTensor) -> CubeTensor {
    into_contiguous(cast(x, DType::F32))
}

fn buffer(x: &CubeTensor) -> BufferArg {
    x.clone().binding().into_buffer_arg()
}

/// A thread per number.
fn small(out: &CubeTensor) -> CubeCount {
    let groups = out.meta.num_elements().div_ceil(SMALL as usize);
    cubecl::calculate_cube_count_elemwise(
        &out.client,
        groups * SMALL as usize,
        CubeDim::new_1d(SMALL),
    )
}
