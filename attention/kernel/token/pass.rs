//! What a model's launches are, and one token of every row.

use super::source::{Columns, Form, Kind, MOST_ROWS, OneCall, TILE, ThinCall, parts};
use super::{Logits, TokenModel, Tokens};
use crate::Error;
use crate::card::OnCard;
use crate::card::launch::empty;
use crate::cuda::cubin;
use crate::cuda::kernel::{Entry, InTurn, PerDevice, capability, load, or_warn};
use crate::stream::submit;
use burn::backend::{Cube, TensorMetadata};
use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::CubeDevice;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::zeros_client;
use burn_cubecl::tensor::CubeTensor;
use cubecl::server::{BufferBinding, Handle};
use cubecl_environment::stream::StreamId;
use cudarc::driver::sys;
use std::sync::{Arc, Once, OnceLock};

static LOADED: PerDevice<Form> = PerDevice::new();
static TOLD: Once = Once::new();

const OPTIONS: [&str; 1] = ["--gpu-architecture=sm_90a"];
/// Widths of heads that there are kernels for, and the most query heads of a key head.
const HEAD_DIMS: [usize; 2] = [64, 128];
const MOST_OF_GROUP: usize = 8;
/// Weights of a layer, in the order in which their addresses are found: norms, biases where there are any, matrices.
const OF_LAYER: usize = 12;

#[derive(Clone, Copy, Debug)]
struct Sizes {
    width: usize,
    inner: usize,
    vocab: usize,
    heads: usize,
    kv: usize,
    d: usize,
    eps: f32,
}

/// The kernels of a model for so many rows.
#[derive(Clone, Copy, Debug)]
struct Kernels {
    turned: Kernel,
    one: Kernel,
    out: Kernel,
    gated: Kernel,
    down: Kernel,
    head: Kernel,
}

#[derive(Clone, Copy, Debug)]
struct Kernel {
    entry: Entry,
    form: Form,
}

impl Kernel {
    /// # Safety
    /// As of [`Entry::launch`].
    unsafe fn launch<C: Copy>(
        self,
        turns: &mut InTurn,
        grid: (u32, u32, u32),
        call: &C,
    ) -> Result<(), String> {
        // Safe: as of this function.
        unsafe { turns.launch(self.entry, grid, self.form.threads(), call) }
    }
}

/// A model on a card, with its kernels for up to 8 rows and for up to 16.
#[derive(Debug)]
pub(super) struct Pass {
    device: CubeDevice,
    sizes: Sizes,
    /// Of every layer [`OF_LAYER`], then the last norm and the head; a missing bias is the norm, and its address unread.
    weights: Vec<Handle>,
    /// How far rows of the same lie apart, in elements.
    steps: Arc<[i32]>,
    biased: Vec<[bool; 3]>,
    kernels: [Kernels; 2],
    cores: usize,
    /// `[16 * K]`, zeros between launches.
    done: CubeTensor,
    /// Addresses of the weights, known after the first token.
    addresses: Arc<OnceLock<Vec<u64>>>,
    /// What is bound stays where it is; what is only held may be moved when memory runs short.
    _bound: Vec<BufferBinding>,
    /// Where all weights were made: launches on that stream come behind that, without being told.
    stream: Option<StreamId>,
}

impl Pass {
    pub fn new(model: &TokenModel) -> Option<Self> {
        let first = model.layers.first()?;
        let on_card = first.qkv[0].clone().inner().try_into_primitive::<Cube>().ok()?;
        let device = on_card.device();
        if capability(&device) != Some(90) || cubin::version().is_err() {
            return None;
        }
        let ([of_q, width], [inner, _]) = (first.qkv[0].dims(), first.gate.dims());
        let (heads, kv) = (model.heads, model.kv_heads);
        if heads == 0 || kv == 0 || !heads.is_multiple_of(kv) || !of_q.is_multiple_of(heads) {
            return None;
        }
        let [vocab, _] = model.head.dims();
        let eps = model.eps as f32;
        let sizes = Sizes { width, inner, vocab, heads, kv, d: of_q / heads, eps };
        if !HEAD_DIMS.contains(&sizes.d) || heads / kv > MOST_OF_GROUP {
            return None;
        }
        let mut weights: Vec<(Handle, i32)> = Vec::with_capacity(OF_LAYER * model.layers.len() + 2);
        for layer in &model.layers {
            let narrow = kv * sizes.d;
            let input = wide(&layer.input_norm, width, &device)?;
            weights.push(input.clone());
            for (bias, len) in layer.biases.iter().zip([of_q, narrow, narrow]) {
                weights.push(match bias {
                    Some(bias) => wide(bias, len, &device)?,
                    None => input.clone(),
                });
            }
            weights.push(wide(&layer.post_norm, width, &device)?);
            for (weight, shape) in
                layer.qkv.iter().chain([&layer.o, &layer.gate, &layer.up, &layer.down]).zip([
                    [of_q, width],
                    [narrow, width],
                    [narrow, width],
                    [width, of_q],
                    [inner, width],
                    [inner, width],
                    [width, inner],
                ])
            {
                weights.push(matrix(weight, shape, &device)?);
            }
        }
        weights.push(wide(&model.norm, width, &device)?);
        weights.push(matrix(&model.head, [vocab, width], &device)?);
        let index = i32::from(device.to_id().index_id);
        let kernels = [kernels(index, sizes, 1)?, kernels(index, sizes, 2)?];
        let client = device.client();
        let cores = client.properties().hardware.num_streaming_multiprocessors.unwrap_or(132);
        // In one row: those of several may lie apart.
        let done = Shape::from([MOST_ROWS * kv]);
        let (weights, steps): (Vec<_>, Vec<_>) = weights.into_iter().unzip();
        let stream = weights.first().map(|x| x.stream);
        let alike = weights.iter().all(|x| Some(x.stream) == stream);
        Some(Self {
            addresses: Arc::default(),
            _bound: weights.iter().cloned().map(Handle::binding).collect(),
            stream: stream.filter(|_| alike),
            steps: steps.into(),
            biased: model.layers.iter().map(|x| x.biases.each_ref().map(Option::is_some)).collect(),
            done: zeros_client(client, device.clone(), done, DType::U32),
            cores: cores as usize,
            device,
            sizes,
            weights,
            kernels,
        })
    }

    /// One at a time: all count in the same numbers.
    pub fn step(&mut self, tokens: Tokens) -> Result<Logits, Error> {
        let Sizes { width, vocab, heads, kv, d, .. } = self.sizes;
        let ([rows, of_x], layers) = (tokens.x.dims(), self.biased.len());
        let fail = |reason: String| Err(Error::shape("TokenPass", reason));
        if rows > MOST_ROWS
            || of_x != width
            || tokens.caches.len() != layers
            || tokens.starts.len() != rows
        {
            let (x, caches, starts) = (tokens.x.dims(), tokens.caches.len(), tokens.starts.len());
            return fail(format!(
                "{x:?} tokens with {caches} caches and {starts} starts, where a model of {layers} layers takes \
                 [1 to {MOST_ROWS}, {width}]"
            ));
        }
        if tokens.starts.iter().any(|start| *start > tokens.len) {
            return fail(format!("starts {:?} behind {} tokens", tokens.starts, tokens.len));
        }
        let [cos, sin] = [&tokens.cos, &tokens.sin].map(|x| {
            let fits = x.dims() == [rows, d / 2] || x.dims() == [1, d / 2];
            (fits && x.dtype() == DType::F32).then(|| self.lowered(x.clone()))?
        });
        let (Some(cos), Some(sin)) = (cos, sin) else {
            let (cos, sin) = (tokens.cos.dims(), tokens.sin.dims());
            return fail(format!(
                "angles {cos:?} and {sin:?}, expected [{rows} or 1, {}] in f32",
                d / 2
            ));
        };
        let x = match self.lowered(tokens.x) {
            Some(x) if x.dtype == DType::BF16 => own(x),
            _ => return fail("tokens are not in bf16 beside the model".into()),
        };
        let mut caches = Vec::with_capacity(2 * layers);
        for cache in tokens.caches.into_iter().flatten() {
            let dims = cache.dims();
            match self.lowered(cache) {
                Some(x)
                    if x.dtype == DType::BF16
                        && dims[..2] == [rows, kv]
                        && dims[2] > tokens.len
                        && dims[3] == d =>
                {
                    caches.push(own(x));
                }
                _ => {
                    let len = tokens.len;
                    return fail(format!(
                        "a cache {dims:?}, expected bf16 [{rows}, {kv}, more than {len}, {d}]"
                    ));
                }
            }
        }

        let keys = tokens.len + 1;
        let cut = parts(rows * kv, keys, 2 * self.cores);
        let new = |shape: &[usize], dtype| empty(shape, dtype, &x);
        let (q, mixed) =
            (new(&[rows, heads * d], DType::BF16), new(&[rows, heads * d], DType::BF16));
        let inner = new(&[rows, self.sizes.inner], DType::BF16);
        let sums = new(&[rows * heads * cut, d], DType::F32);
        let ends = new(&[rows * heads * cut, 2], DType::F32);
        let logits = new(&[rows, vocab], DType::F32);
        let mut starts = [0; MOST_ROWS];
        for (to, start) in starts.iter_mut().zip(&tokens.starts) {
            *to = *start as i32;
        }
        let of_row = if cos.meta.shape()[0] == 1 { 0 } else { d / 2 };
        let kernels = self.kernels[usize::from(rows > 8)];
        let stride = |i: usize| move |x: &CubeTensor| x.meta.strides()[i] as i64;
        let work = Work {
            sizes: self.sizes,
            kernels,
            cores: self.cores as u32,
            biased: self.biased.clone(),
            steps: self.steps.clone(),
            rows: rows as u32,
            keys,
            parts: cut as u32,
            starts,
            of_row: of_row as i32,
            row: caches.chunks(2).map(|x| [&x[0], &x[1]].map(stride(0))).collect(),
            head: caches.chunks(2).map(|x| [&x[0], &x[1]].map(stride(1))).collect(),
        };
        // To look up what stays where it is takes longer than all the rest that a token asks of the host.
        let addresses = self.addresses.clone();
        let known = addresses.get().is_some() && self.stream == Some(StreamId::current());
        let weights = if known { &[][..] } else { &self.weights[..] };
        let reads: Vec<Handle> =
            weights.iter().cloned().chain([&cos, &sin].map(|x| x.handle.clone())).collect();
        let writes =
            [&x, &q, &mixed, &inner, &sums, &ends, &self.done, &logits].into_iter().chain(&caches);
        let writes: Vec<Handle> = writes.map(|x| x.handle.clone()).collect();
        let of_weights = self.weights.len();
        submit(&self.device, reads, writes, move |stream, at| {
            let (found, rest) = at.split_at(if known { 0 } else { of_weights });
            let weights = addresses.get_or_init(|| found.to_vec());
            // Safe: all buffers have the sizes that the calls tell.
            unsafe { work.launch(stream, weights, rest) }
        });
        let mut caches = caches.into_iter().map(|x| Tensor::from_primitive::<Cube>(Cube::lift(x)));
        let pairs = std::iter::from_fn(|| Some([caches.next()?, caches.next()?])).collect();
        Ok((Tensor::from_primitive::<Cube>(Cube::lift(logits)), pairs))
    }

    /// Without gaps, where it lies on the model's card.
    fn lowered<const N: usize>(&self, x: Tensor<N>) -> Option<CubeTensor> {
        let x = into_contiguous(Cube::lower(x.inner().try_into_primitive::<Cube>().ok()?));
        (x.device == self.device && begins_well(&x)).then_some(x)
    }
}

/// A buffer that nobody else reads.
fn own(x: CubeTensor) -> CubeTensor {
    match x.can_mut() {
        true => x,
        // The rows of a copy may lie apart.
        false => into_contiguous(x.copy()),
    }
}

/// Whether it can be read 16 bytes at a time.
fn begins_well(x: &CubeTensor) -> bool {
    x.handle.offset_start.unwrap_or_default().is_multiple_of(16)
}

/// Where it lies, and how far its rows are apart.
fn weight<const N: usize>(
    x: &Tensor<N>,
    shape: [usize; N],
    dtype: DType,
    device: &CubeDevice,
) -> Option<(Handle, i32)> {
    if x.dims() != shape || x.dtype() != dtype {
        return None;
    }
    let x = Cube::lower(x.clone().inner().try_into_primitive::<Cube>().ok()?);
    let step = |x: &CubeTensor| if N > 1 { x.meta.strides()[0] } else { 0 };
    let fits = |x: &CubeTensor| {
        // Rows that lie apart are as good as others, if they begin well.
        let rows = x.meta.strides()[N - 1] == 1 && (step(x) * dtype.size()).is_multiple_of(16);
        rows && begins_well(x) && i32::try_from(step(x)).is_ok()
    };
    let x = if fits(&x) { x } else { into_contiguous(x) };
    (x.device == *device && fits(&x)).then(|| (x.handle.clone(), step(&x) as i32))
}

fn wide(x: &Tensor<1>, len: usize, device: &CubeDevice) -> Option<(Handle, i32)> {
    weight(x, [len], DType::F32, device)
}

fn matrix(x: &Tensor<2>, shape: [usize; 2], device: &CubeDevice) -> Option<(Handle, i32)> {
    weight(x, shape, DType::BF16, device)
}

fn kernels(device: i32, sizes: Sizes, eights: usize) -> Option<Kernels> {
    let ready = |form: Form| {
        let compiled = || load(device, &form.source(), &OPTIONS, &[form.entry()]);
        let found = LOADED.get(device, form, compiled);
        let entry = or_warn(found, "a token takes a launch for every operation", &TOLD)?[0];
        Some(Kernel { entry, form })
    };
    let thin = |kind, columns| ready(Form::Thin { kind, eights, columns: Columns::of(columns)? });
    let Sizes { width, inner, heads, kv, d, .. } = sizes;
    Some(Kernels {
        turned: thin(Kind::Turned, width)?,
        one: ready(Form::One { d, group: heads / kv })?,
        out: thin(Kind::Added, heads * d)?,
        gated: thin(Kind::Gated, width)?,
        down: thin(Kind::Added, inner)?,
        head: thin(Kind::Plain, width)?,
    })
}

/// What the launches of a token need beside addresses.
struct Work {
    sizes: Sizes,
    kernels: Kernels,
    cores: u32,
    biased: Vec<[bool; 3]>,
    steps: Arc<[i32]>,
    rows: u32,
    keys: usize,
    parts: u32,
    starts: [i32; MOST_ROWS],
    of_row: i32,
    row: Vec<[i64; 2]>,
    head: Vec<[i64; 2]>,
}

impl Work {
    /// # Safety
    /// On CubeCL's thread for the device, with addresses of the weights and of the rest in the order of [`Pass::step`].
    unsafe fn launch(
        &self,
        stream: sys::CUstream,
        weights: &[u64],
        rest: &[u64],
    ) -> Result<(), String> {
        let Sizes { width, inner, vocab, heads, kv, d, eps } = self.sizes;
        let (weights, end) = weights.split_at(OF_LAYER * self.biased.len());
        let (&[norm, head], [cos, sin, x, q, mixed, gated, sums, ends, done, logits, caches @ ..]) =
            (end, rest)
        else {
            return Err("a token's buffers are not all there".into());
        };
        let [cos, sin, x, q, mixed] = [*cos, *sin, *x, *q, *mixed];
        let [gated, sums, ends, done, logits] = [*gated, *sums, *ends, *done, *logits];
        let call = ThinCall { eps, rows: self.rows as i32, ..ThinCall::default() };
        let plain = |norm, w: [u64; 2], at: usize, y, first: usize, tile: usize| ThinCall {
            w: [w[0], w[1], 0],
            step: [self.steps[at], self.steps[at + usize::from(w[1] != 0)], 0],
            norm,
            x,
            y,
            first: first as i32,
            tiles: first.div_ceil(tile) as i32,
            ..call
        };
        // Each kernel waits for the one ahead before it reads what that wrote.
        let mut turns = InTurn::on(stream, true);
        for (layer, of) in weights.chunks(OF_LAYER).enumerate() {
            let [input, bq, bk, bv, post, wq, wk, wv, wo, wg, wu, wd] = of[..] else { break };
            let bias =
                std::array::from_fn(|i| if self.biased[layer][i] { [bq, bk, bv][i] } else { 0 });
            let (cache, row, each) =
                ([caches[2 * layer], caches[2 * layer + 1]], self.row[layer], self.head[layer]);
            let to = cache.map(|x| x + 2 * ((self.keys - 1) * d) as u64);
            let at = layer * OF_LAYER;
            let turned = ThinCall {
                w: [wq, wk, wv],
                step: std::array::from_fn(|i| self.steps[at + 5 + i]),
                bias,
                norm: input,
                x,
                y: q,
                cache: to,
                row,
                head: each,
                cos,
                sin,
                of_row: self.of_row,
                first: (heads * d) as i32,
                second: (kv * d) as i32,
                d: d as i32,
                tiles: ((heads + 2 * kv) * d / TILE) as i32,
                ..call
            };
            let one = OneCall {
                q,
                out: mixed,
                cache,
                row,
                head: each,
                sums,
                ends,
                done,
                keys: self.keys as i32,
                kv: kv as i32,
                parts: self.parts as i32,
                scale_log2: (d as f32).powf(-0.5) * std::f32::consts::LOG2_E,
                start: self.starts,
            };
            let out = ThinCall { x: mixed, ..plain(0, [wo, 0], at + 8, x, width, TILE) };
            let down = ThinCall { x: gated, ..plain(0, [wd, 0], at + 11, x, width, TILE) };
            let kernels = self.kernels;
            // Safe: as of this function.
            unsafe {
                self.thin(&mut turns, kernels.turned, &turned)?;
                kernels.one.launch(&mut turns, (self.parts, kv as u32, self.rows), &one)?;
                self.thin(&mut turns, kernels.out, &out)?;
                self.thin(
                    &mut turns,
                    kernels.gated,
                    &plain(post, [wg, wu], at + 9, gated, inner, TILE / 2),
                )?;
                self.thin(&mut turns, kernels.down, &down)?;
            }
        }
        let head = ThinCall {
            wide: logits,
            ..plain(norm, [head, 0], self.steps.len() - 1, 0, vocab, TILE)
        };
        // Safe: as of this function.
        unsafe { self.thin(&mut turns, self.kernels.head, &head) }
    }

    /// # Safety
    /// As of [`launch`](Self::launch).
    unsafe fn thin(
        &self,
        turns: &mut InTurn,
        kernel: Kernel,
        call: &ThinCall,
    ) -> Result<(), String> {
        // Two small workgroups find room on a multiprocessor; with two sums of tokens they want its registers alone.
        let each = if self.rows <= 8 && kernel.form.threads() <= 256 { 2 } else { 1 };
        let groups = (call.tiles as u32).min(each * self.cores);
        // Safe: as of this function.
        unsafe { kernel.launch(turns, (groups, 1, 1), call) }
    }
}
