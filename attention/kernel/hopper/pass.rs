//! Forward and backward: what runs here, buffers, and the launches of a call.

use super::card::{Layout, ready};
use super::few;
use super::launch::{Call, Side, Steps};
use super::lists::{Lists, kept_under};
use super::rules::{ROUND, Rules, Tokens};
use super::source::{Kernel, MOST_BRANCHES, Numbers, OF_GROUP, Variant};
use crate::Mask;
use crate::attention::Plan;
use crate::card::OnCard;
use crate::cuda::cubin;
use crate::cuda::kernel::{Entry, Loaded, capability};
use crate::stream::submit;
use burn::backend::{Cube, TensorMetadata, tensor::FloatTensor};
use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::CubeDevice;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::server::Handle;
use std::sync::Arc;

/// Channels of the widest head.
const WIDEST: usize = 256;
/// Rows of TMA begin at multiples of 16 bytes.
const ALIGNED: usize = 8;
/// Threads of the kernels around those that compute tiles.
const SMALL: u32 = 256;
/// Of an H100, where the runtime does not tell.
const MULTIPROCESSORS: usize = 132;
/// Tiles of keys that a tile of queries sees, on average, up to which dq has a pass of its own. Measured on an H100 with
/// heads of 128 channels, 16384 tokens: of 4 tiles (lists of density 0.05) it takes 0.78, of 7 (0.1) 0.92, of 8.5
/// (documents of 2048) 0.95, of 17 (a window of 2048) 1.09 times as long as the pass that adds up.
const FEW_TILES: usize = 10;
/// How many times as many pairs the tiles by keys have as those by queries from which on dq has a pass of its own, too:
/// a tile by keys passes over the half that nobody sees where it has not to be there for dq. Measured on an H100 with
/// heads of 128 channels, 16384 tokens: of a stride of 8 with blocks of 64, which has 1.6 times as many, both passes take
/// 0.53 times as long.
const HALVES: f64 = 1.25;
/// Bytes of sums that stay in the cache, where adding up costs little.
const IN_CACHE: usize = 16 << 20;

/// Whether `v` is on an NVIDIA card.
pub(crate) fn on_cuda(v: &Tensor<4>) -> bool {
    let x = v.clone().inner().try_into_primitive::<Cube>();
    x.is_ok_and(|x| x.device().client().name() == "cuda")
}

/// Why the kernels do not run for tensors like `v`, if they do not.
pub(crate) fn refusal(v: &Tensor<4>) -> Option<String> {
    let Ok(x) = v.clone().inner().try_into_primitive::<Cube>() else {
        return Some(format!("`Hopper` runs on NVIDIA cards, not on {:?}", v.device()));
    };
    let client = x.device().client();
    if client.name() != "cuda" {
        return Some(format!("`Hopper` runs through CUDA, not on {:?}", v.device()));
    }
    if capability(&x.device()) != Some(90) {
        let said = &client.properties().identity.fingerprint;
        return Some(format!("`Hopper` runs on compute capability 9.0; this card says {said}"));
    }
    if numbers(v.dtype()).is_none() {
        return Some(format!("`Hopper` computes in bf16 and f16, not in {:?}", v.dtype()));
    }
    if v.dims()[3] > WIDEST {
        let width = v.dims()[3];
        return Some(format!("`Hopper` has heads of up to {WIDEST} channels, not {width}"));
    }
    cubin::version().err()
}

fn numbers(dtype: DType) -> Option<Numbers> {
    match dtype {
        DType::BF16 => Some(Numbers::Bf16),
        DType::F16 => Some(Numbers::F16),
        _ => None,
    }
}

/// Compiles and loads what a call launches, backward too where it will come to that; why that cannot be,
/// if it cannot.
///
/// # Shapes
/// q `[B, H, T, D]` of one branch, v `[B, K, S, E]`.
pub(crate) fn prepare(
    plan: &Plan,
    [b, h, t, d]: [usize; 4],
    v: &Tensor<4>,
    backward: bool,
) -> Result<(), String> {
    let e = v.dims()[3];
    if d.max(e) > WIDEST {
        return Err(format!("`Hopper` has heads of up to {WIDEST} channels, not {}", d.max(e)));
    }
    let head = d.max(e).next_multiple_of(64);
    let (branches, most) = (plan.0.masks.len(), Variant::most_branches(head));
    if branches > most {
        return Err(format!(
            "`Hopper` has up to {most} branches for heads of {head}, not {branches}"
        ));
    }
    if plan.0.scale <= 0.0 {
        return Err(format!("`Hopper` scales scores by more than 0, not by {}", plan.0.scale));
    }
    if b * h * t.next_multiple_of(ROUND) > i32::MAX as usize {
        return Err(format!("`Hopper` counts queries of all heads in 31 bits, not {}", b * h * t));
    }
    let primitive = v.clone().inner().try_into_primitive::<Cube>();
    let device = primitive.map_err(|_| "not on a card".to_string())?.device();
    let form = Form::new(plan, &device, d.max(e), v.dtype())?;
    match few::packed(plan, [b, h, t, d], v.dims()) {
        Some(packed) => {
            let form = Form::new(&packed, &device, d.max(e), v.dtype())?;
            form.ready(Kernel::Forward)?;
            form.ready(Kernel::Combine)?;
        }
        None => {
            form.ready(Kernel::Forward)?;
        }
    }
    if backward {
        let alone = form.alone(plan, [b, h, t], v.dims()[1]);
        form.ready_for_backward(Kernel::Keys, alone)?;
        form.ready_for_backward(if alone { Kernel::Queries } else { Kernel::Around }, alone)?;
    }
    Ok(())
}

/// What workgroups have a list for: a tile of queries of a kernel, parts of its keys, a tile of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Queries(Kernel),
    Parts,
    Keys,
}

/// A mask's numbers on a card.
struct Kept {
    rules: Rules,
    side: Side,
    numbers: Handle,
}

/// Lists of tiles on a card: starts, tiles and order in one buffer.
struct KeptLists {
    handle: Handle,
    /// How many lists there are.
    rows: usize,
    tiles: usize,
    order: usize,
    /// Tiles over all lists, workgroups or places of turns, and turns.
    cost: usize,
    groups: usize,
    turns: usize,
    /// Of the keys of a row.
    parts: usize,
}

/// How a call is compiled, and its masks on the card.
struct Form {
    device: CubeDevice,
    index: i32,
    variant: Variant,
    /// Of every branch: where in its numbers what begins, and these.
    masks: Vec<(Side, Handle)>,
}

impl Form {
    fn new(plan: &Plan, device: &CubeDevice, widest: usize, dtype: DType) -> Result<Self, String> {
        let index = device.to_id().index_id;
        let mut masks = Vec::with_capacity(plan.0.masks.len());
        let mut rules = [Rules::default(); MOST_BRANCHES];
        for (mask, rules) in plan.0.masks.iter().zip(&mut rules) {
            let kept = mask.kept([index.into(), 0, 0, 0], || {
                Tokens::new(mask).map(|tokens| Kept {
                    rules: tokens.rules,
                    side: tokens.side,
                    numbers: device.client().create_from_slice(i32::as_bytes(&tokens.numbers)),
                })
            });
            let Some(of_mask) = kept.as_ref() else {
                return Err("`Hopper` counts a mask's numbers in 31 bits; this has more".into());
            };
            *rules = of_mask.rules;
            masks.push((of_mask.side, of_mask.numbers.clone()));
        }
        let variant = Variant {
            kernel: Kernel::Forward,
            head: widest.next_multiple_of(64),
            numbers: numbers(dtype).ok_or("neither bf16 nor f16")?,
            branches: masks.len(),
            rules,
            alone: false,
        };
        Ok(Self { device: device.clone(), index: index.into(), variant, masks })
    }

    fn of(&self, kernel: Kernel) -> Variant {
        Variant { kernel, ..self.variant }
    }

    fn ready(&self, kernel: Kernel) -> Loaded {
        self.ready_for_backward(kernel, false)
    }

    /// Where dq has a pass of its own, or not.
    fn ready_for_backward(&self, kernel: Kernel, alone: bool) -> Loaded {
        let mut variant = Variant { alone, ..self.of(kernel) };
        // Tiles of keys have one size there, so that it needs no kernel for each.
        if kernel == Kernel::Keys {
            let sizes = Rules::SMALL.and(Rules::APART, true);
            variant.rules = variant.rules.map(|rules| rules.without(sizes));
        }
        // What does not look at masks is the same for all.
        if matches!(kernel, Kernel::Around | Kernel::Combine) {
            variant.rules = Default::default();
        }
        ready(self.index, &variant)
    }

    /// As `prepare` has left it.
    fn entries(&self, kernel: Kernel, alone: bool) -> Arc<[Entry]> {
        let loaded = self.ready_for_backward(kernel, alone);
        loaded.expect("`prepare` has loaded the kernels of a call")
    }

    /// Whether dq has a pass of its own: where two runs must give the same bits, and where a tile of queries sees so
    /// few tiles of keys that computing their scores twice takes less than adding up dq in memory, or tiles by keys of
    /// which a fifth and more is empty, by lists of the forward pass; of wide heads always.
    ///
    /// # Shapes
    /// q `[B, H, T, ..]`, v `[B, kv, ..]`
    fn alone(&self, plan: &Plan, [b, h, t]: [usize; 3], kv: usize) -> bool {
        if plan.0.deterministic || Variant::always_alone(self.variant.head) {
            return true;
        }
        let numbers = self.masks.len() * b * h * t.next_multiple_of(ROUND) * self.variant.head;
        if size_of::<f32>() * numbers < IN_CACHE {
            return false;
        }
        let lists = self.lists(plan, By::Queries(Kernel::Forward), kv);
        let tiles: usize = lists.iter().map(|lists| lists.cost).sum();
        let rows: usize = lists.iter().map(|lists| lists.rows).sum();
        let tile = self.variant.tile_by_queries();
        if tiles * tile.1 <= FEW_TILES * ROUND * rows {
            return true;
        }
        let area = |(queries, keys): (usize, usize), tiles: usize| (queries * keys * tiles) as f64;
        let by_keys = self.lists(plan, By::Keys, kv).iter().map(|lists| lists.cost).sum();
        let by_keys = area(Variant::tile_by_keys(self.variant.head), by_keys);
        by_keys >= HALVES * area(tile, tiles)
    }

    /// Lists of every branch, by queries or by keys, of `kv` key heads.
    fn lists(&self, plan: &Plan, by: By, kv: usize) -> Vec<Arc<KeptLists>> {
        let index = self.device.to_id().index_id as usize;
        let of = |mask: &Mask| {
            let (kind, tile) = match by {
                By::Queries(kernel) => (4, self.of(kernel).tile_by_queries()),
                By::Parts => (5, self.of(Kernel::Forward).tile_by_queries()),
                By::Keys => (6, Variant::tile_by_keys(self.variant.head)),
            };
            mask.kept(kept_under(index, kind, tile, kv), || {
                let groups = self.multiprocessors();
                let (lists, parts) = match by {
                    By::Queries(_) => (Lists::by_queries(mask, tile, kv, groups), 1),
                    By::Parts => Lists::in_parts(mask, tile, groups),
                    By::Keys => (Lists::by_keys(mask, tile, kv, groups), 1),
                };
                let (cost, groups) = (lists.cost(), lists.order.len() / 2);
                let Lists { starts: mut all, tiles, order, turns } = lists;
                let (rows, tiles_at) = (all.len() - 1, all.len());
                all.extend(tiles);
                let order_at = all.len();
                all.extend(order);
                let handle = self.device.client().create_from_slice(i32::as_bytes(&all));
                KeptLists {
                    handle,
                    rows,
                    tiles: tiles_at,
                    order: order_at,
                    cost,
                    groups,
                    turns,
                    parts,
                }
            })
        };
        plan.0.masks.iter().map(of).collect()
    }

    /// As many workgroups run at a time.
    fn multiprocessors(&self) -> usize {
        let client = self.device.client();
        let count = client.properties().hardware.num_streaming_multiprocessors;
        count.map_or(MULTIPROCESSORS, |count| count.max(1) as usize)
    }

    /// Handles of masks and their lists, in the order that [`sides`](Lent::sides) takes their addresses.
    fn lent(&self, lists: &[Arc<KeptLists>]) -> (Vec<Handle>, Lent) {
        let numbers = self.masks.iter().map(|(_, numbers)| numbers.clone());
        let handles = numbers.chain(lists.iter().map(|lists| lists.handle.clone())).collect();
        let longest = (0..lists.len()).max_by_key(|i| lists[*i].cost).unwrap_or_default();
        let lent = Lent {
            sides: self.masks.iter().map(|(side, _)| *side).collect(),
            tiles: lists.iter().map(|lists| lists.tiles).collect(),
            longest,
            order: lists[longest].order,
            groups: lists[longest].groups as u32,
            turns: lists[longest].turns as u32,
        };
        (handles, lent)
    }
}

/// What a launch needs of masks and lists beside their addresses.
struct Lent {
    sides: Vec<Side>,
    tiles: Vec<usize>,
    /// The branch whose order workgroups keep.
    longest: usize,
    order: usize,
    groups: u32,
    turns: u32,
}

impl Lent {
    /// Puts addresses into a call: of numbers, then of lists.
    fn put(&self, addresses: &[u64], call: &mut Call) {
        let (numbers, lists) = addresses.split_at(self.sides.len());
        for (i, side) in self.sides.iter().enumerate() {
            call.sides[i] = Side {
                numbers: numbers[i],
                starts: lists[i],
                tiles: lists[i] + 4 * self.tiles[i] as u64,
                ..*side
            };
        }
        call.order = lists[self.longest] + 4 * self.order as u64;
        call.turns = self.turns as i32;
    }
}

/// q, k and v as they lie, and the sizes of a call.
struct Inputs {
    q: CubeTensor,
    k: CubeTensor,
    v: CubeTensor,
    /// Channels before any were added.
    widths: (usize, usize),
}

impl Inputs {
    fn new(q: FloatTensor<Cube>, k: FloatTensor<Cube>, v: FloatTensor<Cube>) -> Self {
        let (d, e) = (q.shape()[3], v.shape()[3]);
        Self { q: lowered(q), k: lowered(k), v: lowered(v), widths: (d, e) }
    }

    fn dims(x: &CubeTensor) -> [usize; 4] {
        x.meta.shape().dims()
    }

    fn call(&self, plan: &Plan) -> Call {
        Call::new(Self::dims(&self.q), Self::dims(&self.v), plan.0.scale as f32)
    }

    fn empty(&self, shape: &[usize], dtype: DType) -> CubeTensor {
        let (client, device) = (self.q.client.clone(), self.q.device.clone());
        empty_device_contiguous_dtype(client, device, Shape::from(shape.to_vec()), dtype)
    }

    /// The same, a token's heads side by side: the layers around attention have them so, and need no copy.
    fn empty_by_tokens(&self, [b, h, t, d]: [usize; 4], dtype: DType) -> CubeTensor {
        let mut x = self.empty(&[b, t, h, d], dtype);
        x.meta.swap(1, 2);
        x
    }
}

/// On the card, as TMA reads it: whole runs of 8 channels, rows at multiples of 16 bytes.
fn lowered(x: FloatTensor<Cube>) -> CubeTensor {
    let width = x.shape()[3];
    let x = match width % ALIGNED {
        0 => x,
        _ => {
            let x = Tensor::<4>::from_primitive::<Cube>(x);
            let [b, h, t, _] = x.dims();
            let more = [b, h, t, width.next_multiple_of(ALIGNED) - width];
            let zeros = Tensor::<4>::zeros(more, (&x.device(), x.dtype()));
            primitive!(Cube, Tensor::cat(vec![x, zeros], 3))
        }
    };
    let x = Cube::lower(x);
    if readable(&x) {
        return x;
    }
    let x = into_contiguous(x);
    if readable(&x) {
        return x;
    }
    // It lies at an odd place of a larger buffer; the sum does not.
    let x = Tensor::<4>::from_primitive::<Cube>(Cube::lift(x));
    let zeros = x.zeros_like();
    into_contiguous(Cube::lower(primitive!(Cube, x + zeros)))
}

fn readable(x: &CubeTensor) -> bool {
    let (shape, strides) = (x.meta.shape(), x.meta.strides());
    let aligned = |i: usize| shape[i] == 1 || strides[i] > 0 && strides[i].is_multiple_of(ALIGNED);
    let begins = x.handle.offset_start.unwrap_or_default();
    strides[3] == 1 && (0..3).all(aligned) && begins.is_multiple_of(2 * ALIGNED as u64)
}

fn layout(x: &CubeTensor) -> Layout {
    let (shape, strides) = (Inputs::dims(x), x.meta.strides());
    // The stride of a dimension of 1 says nothing, and may be odd.
    let stride = |i: usize| if shape[i] == 1 { ALIGNED } else { strides[i] };
    Layout { shape, strides: [stride(0), stride(1), stride(2)] }
}

fn steps(x: &CubeTensor) -> Steps {
    let [row, head, token] = layout(x).strides.map(|x| x as i64);
    Steps { row, head, token }
}

/// Without the channels that were added.
fn cut(x: CubeTensor, width: usize) -> FloatTensor<Cube> {
    let x = Cube::lift(x);
    if x.shape()[3] == width {
        return x;
    }
    let x = Tensor::<4>::from_primitive::<Cube>(x);
    primitive!(Cube, x.narrow(3, 0, width))
}

/// out `[B, H, T, E]`, lse `[B, H, T]`.
pub(crate) fn forward(
    q: FloatTensor<Cube>,
    k: FloatTensor<Cube>,
    v: FloatTensor<Cube>,
    plan: &Plan,
) -> (FloatTensor<Cube>, FloatTensor<Cube>) {
    let ([b, h, t, d], of_v) = (q.shape().dims(), v.shape().dims());
    let Some(packed) = few::packed(plan, [b, h, t, d], of_v) else {
        let x = Inputs::new(q, k, v);
        let (out, lse) = tiles(&x, plan, By::Queries(Kernel::Forward));
        return (cut(out, x.widths.1), Cube::lift(lse));
    };
    let kv = of_v[1];
    let q = Tensor::<4>::from_primitive::<Cube>(q).reshape([b, kv, h / kv * t, d]);
    let x = Inputs::new(primitive!(Cube, q), k, v);
    let (out, lse) = tiles(&x, &packed, By::Parts);
    let out = Tensor::<4>::from_primitive::<Cube>(cut(out, x.widths.1));
    let lse = Tensor::<3>::from_primitive::<Cube>(Cube::lift(lse));
    let out = out.reshape([b, h, t, x.widths.1]);
    (primitive!(Cube, out), primitive!(Cube, lse.reshape([b, h, t])))
}

/// The kernel by tiles of queries, and what puts parts of their keys together.
fn tiles(x: &Inputs, plan: &Plan, by: By) -> (CubeTensor, CubeTensor) {
    let widest = x.widths.0.max(x.widths.1);
    let form = Form::new(plan, &x.q.device, widest, x.q.dtype)
        .expect("`prepare` has looked at the masks of a call");
    let ([_, heads, queries, _], [batch, kv, _, e]) = (Inputs::dims(&x.q), Inputs::dims(&x.v));
    let lists = form.lists(plan, by, kv);
    let parts = lists[0].parts;
    let dtype = x.q.dtype;
    let empty = |parts: usize| {
        let shape = [batch * parts, heads, queries, e];
        let by_tokens = by != By::Parts;
        let out = if by_tokens { x.empty_by_tokens(shape, dtype) } else { x.empty(&shape, dtype) };
        (out, x.empty(&[batch * parts, heads, queries], DType::F32))
    };
    let (out, lse) = empty(parts);
    let whole = (parts > 1).then(|| empty(1));
    let (masks, lent) = form.lent(&lists);
    let mut reads = vec![x.q.handle.clone(), x.k.handle.clone(), x.v.handle.clone()];
    reads.extend(masks);
    let all_reads = reads.len();
    let maps = [&x.q, &x.k, &x.v, &out].map(layout);
    let (mut call, numbers) = (x.call(plan), form.variant.numbers);
    (call.parts, call.of_out) = (parts as i32, steps(&out));
    let variant = form.of(Kernel::Forward);
    let (tall, piece) = (variant.tile_by_queries().0 as u32, variant.piece() as u32);
    let entries = form.entries(Kernel::Forward, false);
    let combine = whole.is_some().then(|| form.entries(Kernel::Combine, false));
    let mut writes = vec![out.handle.clone(), lse.handle.clone()];
    writes.extend(whole.iter().flat_map(|(out, lse)| [out.handle.clone(), lse.handle.clone()]));
    submit(&form.device, reads, writes, move |stream, at| {
        let (from, to) = at.split_at(all_reads);
        call.q = maps[0].map(from[0], numbers, tall)?;
        call.k = maps[1].map(from[1], numbers, piece)?;
        call.v = maps[2].map(from[2], numbers, piece)?;
        lent.put(&from[3..], &mut call);
        (call.out, call.lse) = (to[0], to[1]);
        call.to = maps[3].map(call.out, numbers, OF_GROUP as u32)?;
        let groups = lent.groups / lent.turns.max(1);
        // Safe: all buffers have the sizes that the call tells.
        unsafe {
            entries[0].launch(stream, (groups, 1, 1), variant.threads(), &call)?;
            let Some(combine) = combine else { return Ok(()) };
            (call.whole, call.whole_lse) = (to[2], to[3]);
            let rows = (batch * heads * queries) as u32;
            combine[0].launch(stream, (rows.div_ceil(SMALL / 32), 1, 1), SMALL, &call)
        }
    });
    whole.unwrap_or((out, lse))
}

/// (dq, dk, dv), shaped like q, k and v.
pub(crate) fn backward(
    q: FloatTensor<Cube>,
    k: FloatTensor<Cube>,
    v: FloatTensor<Cube>,
    out: FloatTensor<Cube>,
    lse: FloatTensor<Cube>,
    dout: FloatTensor<Cube>,
    plan: &Plan,
) -> (FloatTensor<Cube>, FloatTensor<Cube>, FloatTensor<Cube>) {
    let x = Inputs::new(q, k, v);
    let (out, dout, lse) = (lowered(out), lowered(dout), into_contiguous(Cube::lower(lse)));
    let widest = x.widths.0.max(x.widths.1);
    let form = Form::new(plan, &x.q.device, widest, x.q.dtype)
        .expect("`prepare` has looked at the masks of a call");
    let (head, dtype) = (form.variant.head, x.q.dtype);
    let ([stacked, heads, queries, _], [batch, kv, ..]) = (Inputs::dims(&x.q), Inputs::dims(&x.v));
    let alone = form.alone(plan, [batch, heads, queries], kv);
    let tall = queries.next_multiple_of(ROUND);
    let dq = x.empty(&Inputs::dims(&x.q), dtype);
    let dk = x.empty_by_tokens(Inputs::dims(&x.k), dtype);
    let dv = x.empty_by_tokens(Inputs::dims(&x.v), dtype);
    let lse2 = x.empty(&[batch, heads, tall], DType::F32);
    let dots = x.empty(&[batch, heads, tall], DType::F32);
    // In rows of whole tiles; a number where nothing is added up.
    let sums = x.empty(&[if alone { 1 } else { stacked * heads * tall * head }], DType::F32);

    let (by_keys, of_keys) = form.lent(&form.lists(plan, By::Keys, kv));
    let by_queries = alone.then(|| form.lent(&form.lists(plan, By::Queries(Kernel::Queries), kv)));
    let mut reads: Vec<Handle> =
        [&x.q, &x.k, &x.v, &out, &lse, &dout].map(|x| x.handle.clone()).to_vec();
    let inputs = reads.len();
    let masks = by_keys.len();
    reads.extend(by_keys);
    let of_queries = by_queries.map(|(handles, lent)| {
        reads.extend(handles);
        lent
    });
    let all_reads = reads.len();
    let writes = [&dq, &dk, &dv, &lse2, &dots, &sums].map(|x| x.handle.clone()).to_vec();

    let [of_q, of_k, of_v, of_out, of_dout, of_dq] =
        [&x.q, &x.k, &x.v, &out, &dout, &dq].map(layout);
    let (mut call, numbers, branches) = (x.call(plan), form.variant.numbers, form.masks.len());
    (call.of_out, call.of_dout) = (steps(&out), steps(&dout));
    (call.of_dk, call.of_dv) = (steps(&dk), steps(&dv));
    let keys = form.entries(Kernel::Keys, alone);
    let others = form.entries(if alone { Kernel::Queries } else { Kernel::Around }, alone);
    let (tile, variant) = (Variant::tile_by_keys(head), form.of(Kernel::Queries));
    let (threads, piece) = (variant.threads(), variant.piece() as u32);
    submit(&form.device, reads, writes, move |stream, at| {
        let (from, to) = at.split_at(all_reads);
        (call.out, call.lse, call.dout_rows) = (from[3], from[4], from[5]);
        (call.dq, call.dk, call.dv) = (to[0], to[1], to[2]);
        (call.lse2, call.dots, call.sums) = (to[3], to[4], to[5]);
        let of_tiles = |call: &mut Call, queries: u32, keys: u32| -> Result<(), String> {
            call.q = of_q.map(from[0], numbers, queries)?;
            call.dout = of_dout.map(from[5], numbers, queries)?;
            call.k = of_k.map(from[1], numbers, keys)?;
            call.v = of_v.map(from[2], numbers, keys)?;
            Ok(())
        };
        // Safe: all buffers have the sizes that the call tells.
        unsafe {
            if let Some(lent) = &of_queries {
                of_tiles(&mut call, ROUND as u32, piece)?;
                call.o = of_out.map(call.out, numbers, ROUND as u32)?;
                call.to = of_dq.map(call.dq, numbers, OF_GROUP as u32)?;
                lent.put(&from[inputs + masks..], &mut call);
                let groups = lent.groups / lent.turns.max(1);
                others[0].launch(stream, (groups, 1, 1), threads, &call)?;
            } else {
                let rows = SMALL / Variant::lanes(head) as u32;
                let groups = (batch * heads * tall) as u32 / rows;
                others[0].launch(stream, (groups, 1, 1), SMALL, &call)?;
            }
            of_tiles(&mut call, tile.0 as u32, tile.1 as u32)?;
            of_keys.put(&from[inputs..inputs + masks], &mut call);
            keys[0].launch(stream, (of_keys.groups, 1, 1), threads, &call)?;
            if of_queries.is_some() {
                return Ok(());
            }
            let groups = (branches * batch * heads * tall / tile.0) as u32;
            others[1].launch(stream, (groups, 1, 1), SMALL, &call)
        }
    });
    let (d, e) = x.widths;
    (cut(dq, d), cut(dk, d), cut(dv, e))
}
