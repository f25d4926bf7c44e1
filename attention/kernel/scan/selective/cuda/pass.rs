//! Which kernels a call has, its buffers, and its launches.

use super::cut::{self, Row};
use super::source::{BACKWARD, Call, FORWARD, Form, Kernel, LONGEST, ROOM, STATES, WIDE};
use crate::card::OnCard;
use crate::cuda::cubin;
use crate::cuda::kernel::{Entry, InTurn, PerDevice, capability, load, or_warn};
use crate::scan::selective::Plan;
use crate::scan::selective::autodiff::ScanTensors;
use crate::scan::selective::cube::{plain, steps};
use crate::stream::submit;
use burn::backend::{Cube, TensorMetadata, tensor::FloatTensor};
use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::kernel::cast;
use burn_cubecl::ops::numeric::{empty_device_contiguous_dtype, zeros_client};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, CubeDevice};
use cubecl::server::Handle;
use cudarc::driver::sys;
use std::sync::{Arc, Once};

/// The first cards whose workgroups have as much shared memory as the gradients take.
const OLDEST: u32 = 80;
/// Most numbers that are counted in 31 bits.
const SMALL: usize = i32::MAX as usize;
/// Most workgroups in the second and third dimension.
const MOST: usize = 65535;
static LOADED: PerDevice<Form> = PerDevice::new();
static TOLD: Once = Once::new();

/// The capability of a card that has kernels for N states.
fn card_for(device: &CubeDevice, n: usize) -> Option<u32> {
    let card = capability(device).filter(|card| *card >= OLDEST && n <= STATES)?;
    (device.client().properties().hardware.max_shared_memory_size >= ROOM).then_some(card)
}

/// Whether a kernel may begin before the one before it ends.
fn overlaps(device: &CubeDevice) -> bool {
    capability(device).is_some_and(|card| card >= 90)
}

/// Whether there are kernels for tensors like `u` and N states.
pub(in crate::scan::selective) fn run_for(u: &Tensor<3>, n: usize) -> bool {
    let on_card = u.clone().inner().try_into_primitive::<Cube>();
    on_card.is_ok_and(|u| card_for(&u.device(), n).is_some()) && cubin::version().is_ok()
}

/// The kernels of a call, where there are any for it.
pub(in crate::scan::selective) fn kernels(
    x: &ScanTensors<CubeBackend>,
    plan: &Plan,
) -> Option<Arc<[Entry]>> {
    let [n, channels] = x.a.meta.shape().dims();
    let card = card_for(&x.u.device, n)?;
    // Within a chunk, and among the states of a row, they count in 31 bits; a launch has so many rows.
    let [rows, len, _] = x.u.meta.shape().dims();
    let most = LONGEST.max(n) * channels.max(plan.groups * n);
    if most > SMALL || rows.max(len.div_ceil(cut::SHORTEST)) > MOST {
        return None;
    }
    let form = form(plan);
    let device = i32::from(x.u.device.to_id().index_id);
    let compiled = || {
        let option = format!("--gpu-architecture=sm_{card}");
        load(device, &form.source(), &[&option], &form.entries())
    };
    let found = LOADED.get(device, form, compiled);
    or_warn(found, "the selective scan runs in CubeCL", &TOLD)
}

fn form(plan: &Plan) -> Form {
    Form {
        plain: plan.steps.is_plain(),
        softplus: plan.softplus,
        skip: plan.skip,
        gate: plan.gate,
        tracked: plan.tracked,
        keep_state: plan.keep_state,
    }
}

/// The tensors of a pass in f32 without gaps, and how it is divided.
struct Pass {
    x: ScanTensors<CubeBackend>,
    steps: Handle,
    call: Call,
}

impl Pass {
    fn new(x: ScanTensors<CubeBackend>, plan: &Plan, cut: fn(Row, usize, usize) -> usize) -> Self {
        let [batch, len, channels] = x.u.meta.shape().dims();
        let [n, _] = x.a.meta.shape().dims();
        let client = &x.u.client;
        let cores = client.properties().hardware.num_streaming_multiprocessors.unwrap_or(64);
        let blocks = (channels / plan.groups).div_ceil(WIDE);
        let whole = len * channels.max(plan.groups * n) <= SMALL;
        let chunk = cut(Row { len, whole }, batch * plan.groups * blocks, cores as usize);
        let call = Call::new([batch, len, channels], n, plan.groups, chunk, form(plan));
        // Nothing reads them where all tokens are alike.
        let steps = match plan.steps.is_plain() {
            true => x.u.handle.clone(),
            false => {
                let steps: Vec<u8> = steps(plan, len).into_iter().map(|step| step as u8).collect();
                client.create_from_slice(&steps)
            }
        };
        Self { x: x.map(plain), steps, call }
    }

    fn of<const D: usize>(&self, shape: [i32; D], dtype: DType) -> CubeTensor {
        let (client, device) = (self.x.u.client.clone(), self.x.u.device.clone());
        let shape = Shape::from(shape.map(|x| x as usize));
        empty_device_contiguous_dtype(client, device, shape, dtype)
    }

    fn empty<const D: usize>(&self, shape: [i32; D]) -> CubeTensor {
        self.of(shape, DType::F32)
    }

    fn zero<const D: usize>(&self, shape: [usize; D]) -> CubeTensor {
        let (client, device) = (self.x.u.client.clone(), self.x.u.device.clone());
        zeros_client(client, device, Shape::from(shape), DType::F32)
    }

    /// Inputs, in the order of [`Call::put`], and what tokens do.
    fn reads(&self) -> Vec<Handle> {
        let x = &self.x;
        let all = [&x.u, &x.delta, &x.z, &x.a, &x.d, &x.b, &x.c].map(|x| x.handle.clone());
        all.into_iter().chain([self.steps.clone()]).collect()
    }
}

impl Call {
    fn put(&mut self, at: &[u64]) {
        [self.u, self.delta, self.z, self.a, self.d, self.b, self.c, self.steps] =
            std::array::from_fn(|i| at[i]);
    }

    /// # Safety
    /// On CubeCL's thread for the device, with buffers as large as the call says.
    unsafe fn launch(
        &self,
        entries: &[Entry],
        kernels: &[Kernel],
        overlap: bool,
        stream: sys::CUstream,
    ) -> Result<(), String> {
        let mut turns = InTurn::on(stream, overlap);
        for kernel in kernels {
            let (grid, shared) = self.grid(*kernel);
            if grid.1 > 0 {
                let entry = entries[*kernel as usize].with_shared(shared);
                // Safe: as above.
                unsafe { turns.launch(entry, grid, WIDE as u32, self)? };
            }
        }
        Ok(())
    }
}

/// (y and the state behind it `[B, T (+ N), E]`, the state before each span `[B, spans, N, E]`).
pub(in crate::scan::selective) fn forward(
    x: ScanTensors<CubeBackend>,
    plan: &Plan,
    kernels: Arc<[Entry]>,
) -> (FloatTensor<Cube>, FloatTensor<Cube>) {
    let dtype = x.u.dtype;
    let pass = Pass::new(x, plan, cut::forward);
    let mut call = pass.call;
    let Call { batch, channels, states_n, chunks, slots, rows, .. } = call;
    let out = pass.empty([batch, rows, channels]);
    let states = pass.empty([batch, slots, states_n, channels]);
    let totals = pass.empty([batch, chunks, channels]);
    let cuts = pass.of([batch, chunks], DType::I32);
    let mut reads = pass.reads();
    reads.push(pass.x.h0.handle.clone());
    let writes = [&out, &states, &totals, &cuts].map(|x| x.handle.clone()).to_vec();
    let overlap = overlaps(&out.device);
    submit(&out.device, reads, writes, move |stream, at| {
        call.put(at);
        call.first = at[8];
        call.of_row = i64::from(states_n) * i64::from(channels);
        [call.out, call.states, call.totals, call.cuts] = std::array::from_fn(|i| at[9 + i]);
        // Safe: all buffers have the sizes that the call tells.
        unsafe { call.launch(&kernels, &FORWARD, overlap, stream) }
    });
    (Cube::lift(cast(out, dtype)), Cube::lift(states))
}

/// Gradients of all inputs; see [`ScanTensors`].
pub(in crate::scan::selective) fn gradients(
    x: ScanTensors<CubeBackend>,
    states: CubeTensor,
    dout: CubeTensor,
    plan: &Plan,
    kernels: Arc<[Entry]>,
) -> ScanTensors<Cube> {
    let like = x.clone();
    let pass = Pass::new(x, plan, cut::backward);
    let mut call = pass.call;
    let Call { batch, len, channels, states_n, groups, blocks, chunks, .. } = call;
    let dout = plain(dout);
    let carry = pass.empty([batch, chunks, states_n, channels]);
    let totals = pass.empty([batch, chunks, channels]);
    let cuts = pass.of([batch, chunks], DType::I32);
    let rows = [batch, len, channels];
    let (du, ddelta) = (pass.empty(rows), pass.empty(rows));
    let dz = if plan.gate { pass.empty(rows) } else { pass.zero([1, 1, 1]) };
    let dh0 = pass.empty([batch, states_n, channels]);
    // Of all chunks, and of all workgroups by channels.
    let da = pass.empty([batch, chunks, states_n, channels]);
    let dd = pass.empty(if plan.skip { [batch, chunks, channels] } else { [1, 1, 1] });
    let shared = pass.empty([blocks, batch, groups, len, 2 * STATES as i32]);
    let sum_a = pass.empty([states_n, channels]);
    let sum_d = if plan.skip { pass.empty([channels]) } else { pass.zero([1]) };
    let narrow = [batch, len, groups * states_n];
    let (sum_b, sum_c) = (pass.empty(narrow), pass.empty(narrow));
    let mut reads = pass.reads();
    reads.extend([&dout, &states].map(|x| x.handle.clone()));
    let writes = [
        &carry, &totals, &cuts, &du, &ddelta, &dz, &dh0, &da, &dd, &shared, &sum_a, &sum_d, &sum_b,
        &sum_c,
    ];
    let writes = writes.map(|x| x.handle.clone()).to_vec();
    let overlap = overlaps(&du.device);
    submit(&du.device, reads, writes, move |stream, at| {
        call.put(at);
        (call.dout, call.states) = (at[8], at[9]);
        [call.carry, call.totals, call.cuts] = std::array::from_fn(|i| at[10 + i]);
        [call.du, call.ddelta, call.dz, call.dh0] = std::array::from_fn(|i| at[13 + i]);
        [call.da, call.dd, call.shared] = std::array::from_fn(|i| at[17 + i]);
        [call.sum_a, call.sum_d, call.sum_b, call.sum_c] = std::array::from_fn(|i| at[20 + i]);
        // Behind the tokens.
        call.first = call.dout + 4 * len as u64 * channels as u64;
        call.of_row = i64::from(call.rows) * i64::from(channels);
        // Safe: all buffers have the sizes that the call tells.
        unsafe { call.launch(&kernels, &BACKWARD, overlap, stream) }
    });
    let of = |x: CubeTensor, like: &CubeTensor| Cube::lift(cast(x, like.dtype));
    ScanTensors {
        u: of(du, &like.u),
        delta: of(ddelta, &like.delta),
        a: of(sum_a, &like.a),
        b: of(sum_b, &like.b),
        c: of(sum_c, &like.c),
        d: of(sum_d, &like.d),
        z: of(dz, &like.z),
        h0: of(dh0, &like.h0),
    }
}
