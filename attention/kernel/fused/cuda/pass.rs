//! Which tensors have the kernels, and their launches.

use super::source::{Call, ENTRIES, THREADS, source};
use crate::card::OnCard;
use crate::card::launch::{empty, empty_like};
use crate::cuda::cubin;
use crate::cuda::kernel::{Entry, PerDevice, capability, load, or_warn};
use crate::fused::AdamWStep;
use crate::stream::submit;
use burn::backend::{Cube, TensorMetadata};
use burn::tensor::{DType, Tensor};
use burn_cubecl::CubeDevice;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::server::Handle;
use std::sync::{Arc, Once};

static LOADED: PerDevice<()> = PerDevice::new();
static TOLD: Once = Once::new();

/// Bytes that a thread reads at once.
const RUN: u64 = 16;

/// The kernels for a device, where it has them.
fn kernels(device: &CubeDevice) -> Option<Arc<[Entry]>> {
    let card = capability(device)?;
    cubin::version().ok()?;
    let index = i32::from(device.to_id().index_id);
    let compiled = || {
        let option = format!("--gpu-architecture=sm_{card}");
        load(index, &source(), &[&option], &ENTRIES)
    };
    or_warn(LOADED.get(index, (), compiled), "tensors are updated one by one", &TOLD)
}

/// As the kernels read it, where it is on a card and f32.
fn plain<const N: usize>(x: &Tensor<N>) -> Option<CubeTensor> {
    if x.dtype() != DType::F32 || x.shape().num_elements() == 0 {
        return None;
    }
    Some(Cube::lower(x.clone().inner().try_into_primitive::<Cube>().ok()?))
}

/// Whether it lies where whole runs are read.
fn aligned(x: &CubeTensor) -> bool {
    x.handle.offset_start.unwrap_or_default().is_multiple_of(RUN)
}

/// Steps of AdamW that were asked for and wait for their factor.
#[derive(Default)]
pub(in crate::fused) struct Waiting {
    launches: Vec<Launch>,
}

struct Launch {
    device: CubeDevice,
    entries: Arc<[Entry]>,
    call: Box<Call>,
    /// Weight, gradient and moments of each.
    reads: Vec<Handle>,
    /// Where the new weight and moments go.
    writes: Vec<Handle>,
}

/// A weight, its gradient and both moments.
type Given<const N: usize> = (Tensor<N>, Tensor<N>, [Tensor<N>; 2]);

impl Waiting {
    /// Whether there are kernels for a step of this weight.
    pub fn takes<const N: usize>(weight: &Tensor<N>, grad: &Tensor<N>) -> bool {
        let (Some(weight), Some(grad)) = (plain(weight), plain(grad)) else { return false };
        let device = weight.device();
        let fits = Call::default().takes(weight.meta.num_elements());
        fits && grad.device() == device && kernels(&device).is_some()
    }

    /// Takes up a step of a weight that it [takes](Self::takes). What it returns is not there before
    /// [`launch`](Self::launch). What nobody else holds is written over.
    pub fn push<const N: usize>(
        &mut self,
        (weight, grad, [m, v]): Given<N>,
        step: &AdamWStep,
    ) -> (Tensor<N>, [Tensor<N>; 2]) {
        let lower = |x: Tensor<N>| into_contiguous(Cube::lower(primitive!(Cube, x.inner())));
        let [weight, grad, m, v] = [weight, grad, m, v].map(lower);
        let (device, len) = (weight.device(), weight.meta.num_elements());
        let there =
            [&grad, &m, &v].into_iter().all(|x| x.device() == device && x.dtype == DType::F32);
        assert!(there, "adamw: gradient or moments are not beside the weight, in f32");
        let fits = |last: &Launch| last.device == device && last.call.takes(len);
        if !self.launches.last().is_some_and(fits) {
            let entries = kernels(&device).expect("adamw: a weight that does not wait");
            let (call, reads, writes) = Default::default();
            self.launches.push(Launch { device, entries, call, reads, writes });
        }
        let to = self.launches.last_mut().expect("one was pushed");
        to.call.push_step(len, step);
        let over = [&weight, &m, &v].map(CubeTensor::can_mut);
        to.reads.extend([&weight, &grad, &m, &v].map(|x| x.handle.clone()));
        let mut new = [weight, m, v];
        for (x, over) in new.iter_mut().zip(over) {
            if !over {
                *x = empty_like(x);
            }
            to.writes.push(x.handle.clone());
        }
        let [weight, m, v] = new.map(|x| Tensor::<N>::from_primitive::<Cube>(Cube::lift(x)));
        (weight, [m, v])
    }

    /// Launches all by `scale` times their gradients; without one, the new ones are as the old ones were.
    pub fn launch(self, scale: Option<f32>) {
        for Launch { device, entries, mut call, reads, writes } in self.launches {
            call.scale(scale);
            let inputs = reads.len();
            submit(&device, reads, writes, move |stream, at| {
                let (from, to) = at.split_at(inputs);
                for (i, (from, to)) in from.chunks(4).zip(to.chunks(3)).enumerate() {
                    for (of, address) in from.iter().chain(to).enumerate() {
                        call.of[of][i] = *address;
                    }
                }
                // Safe: all buffers have the sizes that the call tells.
                unsafe { entries[0].launch(stream, (call.groups(), 1, 1), THREADS as u32, &*call) }
            });
        }
    }
}

/// Σ x² of each, where the kernels run for all of them.
pub(in crate::fused) fn sums_of_squares(tensors: &[Tensor<1>]) -> Option<Tensor<1>> {
    let all: Vec<CubeTensor> =
        tensors.iter().map(|x| plain(x).map(into_contiguous)).collect::<Option<_>>()?;
    let device = all.first()?.device();
    let fits = |x: &CubeTensor| Call::default().takes(x.meta.num_elements());
    if !all.iter().all(|x| aligned(x) && fits(x) && x.device() == device) {
        return None;
    }
    let entries = kernels(&device)?;
    let sums = empty(&[all.len()], DType::F32, &all[0]);
    let mut rest = &all[..];
    while !rest.is_empty() {
        let (mut call, first) = (Box::<Call>::default(), all.len() - rest.len());
        let fit = rest.iter().take_while(|x| {
            let fits = call.takes(x.meta.num_elements());
            if fits {
                call.push(x.meta.num_elements());
            }
            fits
        });
        let fit = fit.count();
        let (now, later) = rest.split_at(fit);
        rest = later;
        let parts = empty(&[call.groups() as usize], DType::F32, &all[0]);
        let reads = now.iter().map(|x| x.handle.clone()).collect();
        let writes = [&parts, &sums].map(|x| x.handle.clone()).to_vec();
        let entries = entries.clone();
        submit(&device, reads, writes, move |stream, at| {
            let (from, to) = at.split_at(fit);
            call.of[0][..fit].copy_from_slice(from);
            (call.of[1][0], call.of[2][0]) = (to[0], to[1] + 4 * first as u64);
            // Safe: all buffers have the sizes that the call tells.
            unsafe {
                entries[1].launch(stream, (call.groups(), 1, 1), THREADS as u32, &*call)?;
                entries[2].launch(stream, (fit as u32, 1, 1), THREADS as u32, &*call)
            }
        });
    }
    Some(Tensor::from_primitive::<Cube>(Cube::lift(sums)))
}
