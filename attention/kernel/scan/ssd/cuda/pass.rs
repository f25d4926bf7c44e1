//! Which kernels a call has, its buffers, and its launches.

use super::source::{self, BACKWARD, BEHIND, Call, FORWARD, Kernel, N, P, Q, THREADS};
use crate::card::OnCard;
use crate::cuda::cubin;
use crate::cuda::kernel::{Entry, PerDevice, capability, load, or_warn};
use crate::scan::ssd::Inputs;
use crate::scan::ssd::tiled::{OfRows, joined};
use crate::stream::submit;
use burn::backend::{Cube, TensorMetadata};
use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::CubeDevice;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::server::Handle;
use cudarc::driver::sys;
use std::sync::{Arc, Once};

/// The first cards with products of parts of f32.
const OLDEST: u32 = 80;
/// Most workgroups in the second and third dimension.
const MOST: usize = 65535;
/// Numbers of the states of a run; longer rows are several runs.
const NUMBERS: usize = 1 << 25;

/// With and without D.
static LOADED: PerDevice<bool> = PerDevice::new();
static TOLD: Once = Once::new();

/// The capability of a card that has kernels for heads of P channels with N numbers of state.
fn card_for(device: &CubeDevice, p: usize, n: usize) -> Option<u32> {
    let card = capability(device).filter(|card| *card >= OLDEST && p <= P && n <= N)?;
    let most = source::entries().iter().map(|(_, shared)| *shared).max();
    (Some(device.client().properties().hardware.max_shared_memory_size) >= most).then_some(card)
}

/// Whether there are kernels for tensors like `x`, heads of P channels and N numbers of state.
pub(in crate::scan::ssd) fn run_for(x: &Tensor<3>, p: usize, n: usize) -> bool {
    let on_card = x.clone().inner().try_into_primitive::<Cube>();
    on_card.is_ok_and(|x| card_for(&x.device(), p, n).is_some()) && cubin::version().is_ok()
}

/// The kernels of a call, and its sizes.
pub(in crate::scan::ssd) struct Kernels {
    entries: Arc<[Entry]>,
    device: CubeDevice,
    heads: usize,
    groups: usize,
    n: usize,
    p: usize,
    skip: bool,
    cores: usize,
}

impl Kernels {
    /// Where there are any for tensors like `x`.
    pub fn new(x: &Inputs, heads: usize, groups: usize, skip: bool) -> Option<Self> {
        let (n, p) = (x.b.dims()[2] / groups, x.x.dims()[2] / heads);
        if heads.max(x.x.dims()[0]) > MOST || x.x.dtype() == DType::F64 {
            return None;
        }
        let device = x.x.clone().try_into_primitive::<Cube>().ok()?.device();
        let card = card_for(&device, p, n)?;
        let index = i32::from(device.to_id().index_id);
        let compiled = || {
            let option = format!("--gpu-architecture=sm_{card}");
            load(index, &source::source(skip), &[&option], &source::entries())
        };
        let found = LOADED.get(index, skip, compiled);
        let entries = or_warn(found, "the scan of Mamba-2 runs in tensor operations", &TOLD)?;
        let cores = device.client().properties().hardware.num_streaming_multiprocessors;
        let cores = cores.unwrap_or(64) as usize;
        Some(Self { entries, device, heads, groups, n, p, skip, cores })
    }

    /// y `[S, t, E]` and the states behind the rows, `[S, N, E]`, from those before.
    pub fn forward(&self, x: &Inputs, before: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        let mut h = before;
        let mut out = Vec::new();
        for (first, tokens) in self.runs(x) {
            let (y, behind) = self.run(x, first, tokens, h).forward();
            out.push(y);
            h = behind;
        }
        (joined(out, 1), h)
    }

    /// Of dy `[S, t, E]` and the gradients of the states behind the rows, `[S, N, E]`.
    pub fn gradients(
        &self,
        x: &Inputs,
        before: Tensor<3>,
        dy: Tensor<3>,
        carry: Tensor<3>,
    ) -> OfRows {
        let runs = self.runs(x);
        // What each run goes on from.
        let mut states = vec![before];
        for (first, tokens) in &runs[..runs.len() - 1] {
            states.push(self.run(x, *first, *tokens, states[states.len() - 1].clone()).behind());
        }
        let mut carry = carry;
        let mut found: [Vec<Tensor<3>>; 5] = Default::default();
        let mut dd: Option<Tensor<1>> = None;
        for ((first, tokens), h) in runs.into_iter().zip(states).rev() {
            let dy = dy.clone().narrow(1, first, tokens);
            let of = self.run(x, first, tokens, h).gradients(dy, carry);
            for (part, x) in found.iter_mut().zip(of.tokens) {
                part.push(x);
            }
            dd = match (dd, of.d) {
                (Some(sum), Some(d)) => Some(sum + d),
                (sum, d) => sum.or(d),
            };
            carry = of.h0.expect("runs have states before them");
        }
        let tokens = found.map(|mut part| {
            part.reverse();
            joined(part, 1)
        });
        OfRows { tokens, d: dd, h0: Some(carry) }
    }

    /// First token and tokens of each run.
    fn runs(&self, x: &Inputs) -> Vec<(usize, usize)> {
        let [rows, len, channels] = x.x.dims();
        let chunks = (NUMBERS / (rows * channels * self.n)).clamp(1, MOST);
        let run = |first| (first, (chunks * Q).min(len - first));
        (0..len).step_by(chunks * Q).map(run).collect()
    }

    fn run(&self, x: &Inputs, first: usize, tokens: usize, h: Tensor<3>) -> Run<'_> {
        let cut = |x: &Tensor<3>| plain(x.clone().narrow(1, first, tokens));
        let [rows, ..] = x.x.dims();
        let chunks = tokens.div_ceil(Q);
        let small = |x: usize| x as i32;
        // As many workgroups as the card has room for at a time.
        let parts = self.cores / (rows * chunks * self.groups);
        let call = Call {
            rows: small(rows),
            len: small(tokens),
            heads: small(self.heads),
            groups: small(self.groups),
            n: small(self.n),
            p: small(self.p),
            chunks: small(chunks),
            parts: small(parts.clamp(1, self.heads / self.groups)),
            ..Call::default()
        };
        let x = [cut(&x.x), cut(&x.weight), cut(&x.log_decay), cut(&x.b), cut(&x.c), {
            plain(x.d.clone())
        }];
        Run { of: self, x, h: plain(h), call }
    }
}

/// In f32 and without gaps.
fn plain<const D: usize>(x: Tensor<D>) -> CubeTensor {
    into_contiguous(Cube::lower(primitive!(Cube, x.cast(DType::F32))))
}

fn tensor<const D: usize>(x: CubeTensor) -> Tensor<D> {
    Tensor::from_primitive::<Cube>(Cube::lift(x))
}

/// Chunks that are computed at once.
struct Run<'a> {
    of: &'a Kernels,
    /// x, weight, logarithms of decays, B, C and D.
    x: [CubeTensor; 6],
    h: CubeTensor,
    call: Call,
}

impl Run<'_> {
    fn empty<const D: usize>(&self, shape: [i32; D]) -> CubeTensor {
        let (client, device) = (self.h.client.clone(), self.h.device.clone());
        let shape = Shape::from(shape.map(|x| x as usize));
        empty_device_contiguous_dtype(client, device, shape, DType::F32)
    }

    fn like(&self, x: &CubeTensor) -> CubeTensor {
        let (client, device) = (self.h.client.clone(), self.h.device.clone());
        empty_device_contiguous_dtype(client, device, x.meta.shape().clone(), DType::F32)
    }

    fn reads(&self) -> Vec<Handle> {
        self.x.iter().chain([&self.h]).map(|x| x.handle.clone()).collect()
    }

    /// Scores, what chunks add to states and then those before them, and sums over chunks.
    fn between(&self) -> [CubeTensor; 3] {
        let Call { rows, heads, groups, n, p, chunks, .. } = self.call;
        let pairs = (Q * Q) as i32;
        [
            self.empty([rows, chunks, groups, pairs]),
            self.empty([rows, chunks, heads, n, p]),
            self.empty([rows, chunks, heads]),
        ]
    }

    /// States behind the rows, `[S, N, E]`.
    fn behind(self) -> Tensor<3> {
        let [_, states, whole] = self.between();
        let behind = self.like(&self.h);
        let writes = [&states, &whole, &behind].map(|x| x.handle.clone()).to_vec();
        let (mut call, entries) = (self.call, self.of.entries.clone());
        submit(&self.of.device, self.reads(), writes, move |stream, at| {
            let to = call.put(at);
            [call.states, call.whole, call.behind] = std::array::from_fn(|i| to[i]);
            // Safe: all buffers have the sizes that the call tells.
            unsafe { call.launch(&entries, &BEHIND, stream) }
        });
        tensor(behind)
    }

    fn forward(self) -> (Tensor<3>, Tensor<3>) {
        let [scores, states, whole] = self.between();
        let (behind, y) = (self.like(&self.h), self.like(&self.x[0]));
        let all = [&scores, &states, &whole, &behind, &y];
        let writes = all.map(|x| x.handle.clone()).to_vec();
        let (mut call, entries) = (self.call, self.of.entries.clone());
        submit(&self.of.device, self.reads(), writes, move |stream, at| {
            let to = call.put(at);
            [call.scores, call.states, call.whole, call.behind, call.y] =
                std::array::from_fn(|i| to[i]);
            // Safe: all buffers have the sizes that the call tells.
            unsafe { call.launch(&entries, &FORWARD, stream) }
        });
        (tensor(y), tensor(behind))
    }

    fn gradients(self, dy: Tensor<3>, carry: Tensor<3>) -> OfRows {
        let Call { rows, len, heads, groups, n, p, chunks, parts, .. } = self.call;
        let (dy, dh) = (plain(dy), plain(carry));
        let [scores, states, whole] = self.between();
        let (behind, carries) = (self.like(&self.h), self.like(&states));
        let [dx, dweight, dlog, sum_b, sum_c, sum_d] = self.x.each_ref().map(|x| self.like(x));
        let of_parts = [parts, rows, len, groups * n];
        let (db, dc) = (self.empty(of_parts), self.empty(of_parts));
        let dd = self.empty([rows, chunks, heads * p]);
        let dh0 = self.like(&self.h);
        let mut reads = self.reads();
        reads.extend([&dy, &dh].map(|x| x.handle.clone()));
        let all = [
            &scores, &states, &whole, &behind, &carries, &dx, &dweight, &dlog, &db, &dc, &dd, &dh0,
            &sum_b, &sum_c, &sum_d,
        ];
        let writes = all.map(|x| x.handle.clone()).to_vec();
        let (mut call, entries) = (self.call, self.of.entries.clone());
        submit(&self.of.device, reads, writes, move |stream, at| {
            let to = call.put(at);
            (call.dy, call.dh) = (to[0], to[1]);
            let to = &to[2..];
            [call.scores, call.states, call.whole, call.behind, call.carries] =
                std::array::from_fn(|i| to[i]);
            [call.dx, call.dweight, call.dlog, call.db, call.dc] =
                std::array::from_fn(|i| to[5 + i]);
            [call.dd, call.dh0, call.sum_b, call.sum_c, call.sum_d] =
                std::array::from_fn(|i| to[10 + i]);
            // Safe: all buffers have the sizes that the call tells.
            unsafe { call.launch(&entries, &BACKWARD, stream) }
        });
        OfRows {
            tokens: [dx, dweight, dlog, sum_b, sum_c].map(tensor),
            d: self.of.skip.then(|| tensor(sum_d)),
            h0: Some(tensor(dh0)),
        }
    }
}

impl Call {
    /// Addresses of inputs; those behind them are returned.
    fn put<'a>(&mut self, at: &'a [u64]) -> &'a [u64] {
        [self.x, self.weight, self.log, self.b, self.c, self.d, self.h] =
            std::array::from_fn(|i| at[i]);
        &at[7..]
    }

    /// # Safety
    /// On CubeCL's thread for the device, with buffers as large as the call says.
    unsafe fn launch(
        &self,
        entries: &[Entry],
        kernels: &[Kernel],
        stream: sys::CUstream,
    ) -> Result<(), String> {
        for kernel in kernels {
            let (entry, threads) = (entries[*kernel as usize], THREADS as u32);
            // Safe: as above.
            unsafe { entry.launch(stream, self.grid(*kernel), threads, self)? };
        }
        Ok(())
    }
}
