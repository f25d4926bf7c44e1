//! Attention for Hopper cards against the reference. Elsewhere it must say why it does not run.

use super::{host, random};
use burn::tensor::{DType, Device, Tensor};
use longburn::kernel::attention::{implementation_for, passed_over};
use longburn::kernel::{
    AttentionOptions, AttentionOutput, BlockList, BlockStride, Branch, Error, GroupSize, Groups,
    Implementation, Mask, MaskSpec, TokenMeta, attention_backward, masked_attention,
};
use longburn::testing::ratio;

/// Inputs are the same; weights, gradients of scores and results are rounded to 8 or 11 bits.
const FORWARD: f64 = 4e-3;
const GRADIENTS: f64 = 1e-2;
const LSE: f64 = 1e-4;

struct Case {
    name: String,
    /// Rows, query heads, key heads, queries, keys, channels, channels of values.
    sizes: [usize; 7],
    masks: Vec<Mask>,
}

/// Whether the card has it; if not, the reason is a typed error.
fn there(device: &Device) -> bool {
    let v = random([1, 1, 8, 64], 1, device).cast(DType::BF16);
    match implementation_for(Implementation::Hopper, &v) {
        Ok(_) => true,
        Err(Error::Unsupported { reason, .. }) => {
            println!("skipped: {reason}");
            assert!(reason.contains("Hopper") || reason.contains("NVRTC"), "{reason}");
            let branch = Branch { q: v.clone(), k: v.clone(), mask: Mask::causal(1, 8, 1) };
            let options = AttentionOptions::default().with_implementation(Implementation::Hopper);
            assert!(masked_attention(&[branch], v, &options).is_err());
            false
        }
        Err(other) => panic!("{other}"),
    }
}

fn square(name: &str, sizes: [usize; 4], d: usize, spec: MaskSpec, tokens: TokenMeta) -> Case {
    let [b, h, kv, t] = sizes;
    let mask = Mask::new(spec, tokens.clone(), tokens, h).expect(name);
    Case { name: name.into(), sizes: [b, h, kv, t, t, d, d], masks: vec![mask] }
}

/// About 3 in 8 blocks.
fn some(b: usize, h: usize, q: usize, k: usize) -> bool {
    let n = ((b * 31 + h) * 1009 + q) * 2003 + k;
    (n as u32).wrapping_mul(0x9E37_79B9) >> 29 < 3
}

fn listed(mut case: Case, block: [usize; 2]) -> Case {
    let [b, h, _, t, s, ..] = case.sizes;
    let list = BlockList::from_fn([b, h, t, s], block, some).unwrap();
    case.masks = case.masks.into_iter().map(|m| m.with_blocks(list.clone()).unwrap()).collect();
    case
}

/// Every width of heads with ragged and whole tiles.
fn widths() -> Vec<Case> {
    let of = |d, t: usize| {
        let (name, tokens) = (format!("{t} tokens, {d} channels"), TokenMeta::contiguous(2, t, 0));
        square(&name, [2, 4, 2, t], d, MaskSpec::causal(), tokens)
    };
    let lengths = [1, 63, 128, 257];
    let narrow = [64, 128, 96, 40, 12];
    let wide = [192, 256, 136, 200];
    narrow.into_iter().chain(wide).flat_map(|d| lengths.map(|t| of(d, t))).collect()
}

/// Every rule of masks.
fn rules(d: usize) -> Vec<Case> {
    let (causal, plain) = (MaskSpec::causal, TokenMeta::contiguous);
    let groups = Groups { size: GroupSize::Fixed(32), shift: true, ragged: true };
    let window = causal().with_window(Some(70)).with_sinks(3);
    let packed = TokenMeta::packed(&[vec![29, 200], vec![7, 5, 288]], 300).unwrap();
    let anchored = TokenMeta::anchored(&[vec![1, 70, 64, 164], vec![149, 140]], 300).unwrap();
    let padded = TokenMeta::left_padded(&[300, 40], 300).unwrap();
    let right = TokenMeta::right_padded(&[0, 290], 300).unwrap();
    let stride = causal().with_stride(BlockStride::new(16, 2, 3, 2));
    let near = causal().with_stride(BlockStride::near(16, 2, 2)).with_sinks(16);
    // Blocks that are hidden as a whole.
    let whole = causal().with_stride(BlockStride::new(64, 1, 3, 2));
    let of = |name: &str, spec: MaskSpec, tokens: &TokenMeta| {
        square(&format!("{name}, {d} channels"), [2, 4, 2, 300], d, spec, tokens.clone())
    };
    vec![
        of("bidirectional", MaskSpec::bidirectional(), &plain(2, 300, 0)),
        of("window", causal().with_window(Some(17)), &plain(2, 300, 0)),
        of("sinks", window.clone(), &plain(2, 300, 0)),
        of("left padding", causal(), &padded),
        of("right padding", causal(), &right),
        of("packed", causal(), &packed),
        of("packed, sinks", window.clone(), &packed),
        of("groups", causal().with_groups(groups), &packed),
        of("anchor", causal().with_anchor(true), &anchored),
        of("stride", stride.clone(), &padded),
        of("near blocks, sinks", near.clone(), &plain(2, 300, 0)),
        of("stride of blocks of 64", whole.clone(), &plain(2, 300, 0)),
        listed(of("the same, chosen", whole, &plain(2, 300, 0)), [128, 64]),
        listed(of("blocks of 64", causal(), &plain(2, 300, 0)), [64, 64]),
        listed(of("blocks of 64 x 128", causal(), &packed), [64, 128]),
        listed(of("blocks of 20 x 90", causal(), &packed), [20, 90]),
        listed(of("blocks in a window", window.clone(), &plain(2, 300, 0)), [32, 32]),
        listed(of("blocks of a stride", stride.clone(), &plain(2, 300, 0)), [24, 24]),
    ]
}

/// Longer lists than stages, queries behind a cache with another width of values, and branches.
fn others() -> Vec<Case> {
    let (causal, plain) = (MaskSpec::causal, TokenMeta::contiguous);
    let keys = TokenMeta::left_padded(&[290, 40], 290).unwrap();
    let queries = keys.slice(285..290).unwrap();
    let mask = Mask::new(causal().with_window(Some(60)), queries, keys, 4).unwrap();
    let cache = Case { name: "cache".into(), sizes: [2, 4, 2, 5, 290, 64, 104], masks: vec![mask] };
    // Keys in parts, and heads of a key head together; a row of which little is left.
    let long = TokenMeta::left_padded(&[1300, 40], 1300).unwrap();
    let few = |name: &str, count: usize, d: usize, e: usize, window: Option<usize>| {
        let queries = long.slice(1300 - count..1300).unwrap();
        let mask = Mask::new(causal().with_window(window), queries, long.clone(), 4).unwrap();
        Case { name: name.into(), sizes: [2, 4, 2, count, 1300, d, e], masks: vec![mask] }
    };
    vec![
        few("long cache", 5, 64, 104, None),
        few("long cache, one query", 1, 128, 128, None),
        few("long cache, window", 16, 128, 64, Some(300)),
        few("long cache, wide", 5, 256, 200, None),
        few("long cache, wide, window", 1, 192, 136, Some(300)),
        square("one key head", [1, 3, 1, 900], 64, causal(), plain(1, 900, 0)),
        square("1500 tokens", [1, 2, 2, 1500], 128, causal(), plain(1, 1500, 0)),
        square("1500 tokens, 192 channels", [1, 4, 2, 1500], 192, causal(), plain(1, 1500, 0)),
        square("1500 tokens, 256 channels", [1, 4, 2, 1500], 256, causal(), plain(1, 1500, 0)),
        // So many tokens that dq has a pass of its own unless many keys are seen.
        square("2100 tokens", [2, 8, 2, 2100], 128, causal(), plain(2, 2100, 0)),
        // And so many keys that it is added up.
        square("3500 tokens", [1, 10, 2, 3500], 128, causal(), plain(1, 3500, 0)),
        // More tiles of queries than workgroups, with tiles of 64 keys.
        listed(
            square("blocks of 64, 2100", [1, 16, 2, 2100], 64, causal(), plain(1, 2100, 0)),
            [64, 64],
        ),
        listed(
            square("the same, 128 channels", [1, 16, 2, 2100], 128, causal(), plain(1, 2100, 0)),
            [64, 64],
        ),
        // Tiles by keys of which a good part is empty, so that dq has a pass of its own.
        square(
            "stride of blocks of 64, 4160",
            [1, 8, 2, 4160],
            128,
            causal().with_stride(BlockStride::new(64, 12, 2, 2)),
            plain(1, 4160, 0),
        ),
        later_blocks("stride of blocks of 64, positions from 320", 64, 320, false),
        later_blocks("blocks of 64, fewer queries than keys", 128, 448, true),
        cache,
        branches(64, 64),
        branches(192, 136),
        branches(256, 256),
        three(64),
        three(192),
    ]
}

/// Blocks of 64 where queries begin later than keys: all of them from a position on, or the last ones alone.
fn later_blocks(name: &str, d: usize, first: usize, last: bool) -> Case {
    let stride = MaskSpec::causal().with_stride(BlockStride::new(64, 2, 3, 2));
    let (t, s) = (260, if last { first + 260 } else { 260 });
    let start = if last { 0 } else { first };
    let keys = TokenMeta::contiguous(2, s, start);
    let queries = if last { keys.slice(first..s).unwrap() } else { keys.clone() };
    let mask = Mask::new(stride, queries, keys, 4).unwrap();
    let case = Case { name: name.into(), sizes: [2, 4, 2, t, s, d, d], masks: vec![mask] };
    if last { listed(case, [64, 64]) } else { case }
}

/// Near pairs with one rotation, far pairs with another: every pair in one branch only.
fn branches(d: usize, e: usize) -> Case {
    let (t, far) = (300, 40);
    let plain = TokenMeta::contiguous(2, t, 0);
    let near = MaskSpec::causal().with_window(Some(far));
    let near = Mask::new(near, plain.clone(), plain.clone(), 4).unwrap();
    let pos = (0..2 * t).map(|i| ((i % t) as i32 - far as i32).max(0)).collect();
    // The first queries have no far keys at all.
    let segment = (0..2 * t).map(|i| if i % t < far { -1 } else { 0 }).collect();
    let shifted = TokenMeta::new(2, t, pos, segment).unwrap();
    let far = Mask::new(MaskSpec::causal(), shifted, plain, 4).unwrap();
    let name = format!("two branches, {d} channels");
    Case { name, sizes: [2, 4, 2, t, t, d, e], masks: vec![near, far] }
}

/// A third of the keys in each branch.
fn three(d: usize) -> Case {
    let t = 300;
    let tokens = |shown: usize| {
        let pos = (0..t as i32).collect();
        let segment = |i: usize| if i * 3 / t == shown { 0 } else { -1 };
        TokenMeta::new(1, t, pos, (0..t).map(segment).collect()).unwrap()
    };
    let queries = TokenMeta::contiguous(1, t, 0);
    let of = |shown| Mask::new(MaskSpec::causal(), queries.clone(), tokens(shown), 4).unwrap();
    let name = format!("three branches, {d} channels");
    Case { name, sizes: [1, 4, 2, t, t, d, d], masks: (0..3).map(of).collect() }
}

/// out, lse, gradients of v and of q and k of every branch.
type Pass = Vec<Vec<f32>>;

/// `dtype` rounds the inputs; the reference computes with them in f32.
fn run(case: &Case, device: &Device, dtype: DType, options: &AttentionOptions) -> Pass {
    let [b, h, kv, t, s, d, e] = case.sizes;
    let exact = options.implementation == Implementation::Reference;
    let given = |shape, stream| {
        let x = random(shape, stream, device).cast(dtype);
        if exact { x.cast(DType::F32) } else { x }
    };
    let leaf = |shape, stream| Tensor::<4>::from_inner(given(shape, stream)).require_grad();
    let v = leaf([b, kv, s, e], 1);
    let (mut leaves, mut all) = (vec![v.clone()], Vec::new());
    for (i, mask) in case.masks.iter().enumerate() {
        let q = leaf([b, h, t, d], 2 + 2 * i as u64);
        let k = leaf([b, kv, s, d], 3 + 2 * i as u64);
        leaves.extend([q.clone(), k.clone()]);
        all.push(Branch { q, k, mask: mask.clone() });
    }
    let AttentionOutput { out, lse } = masked_attention(&all, v, options).expect(&case.name);
    let weight = Tensor::from_inner(given([b, h, t, e], 99));
    let grads = (out.clone() * weight).sum().backward();
    let mut pass = vec![host(out), host(lse)];
    pass.extend(leaves.iter().map(|x| host(x.grad(&grads).expect("a gradient"))));
    pass
}

/// What results are written over.
fn poison(case: &Case, device: &Device) {
    let [b, h, _, t, _, d, e] = case.sizes;
    let shape = [b, h, t.next_multiple_of(128), d.max(e).next_multiple_of(64)];
    let nan: Vec<_> =
        (0..8).map(|_| Tensor::<4>::full(shape, f32::NAN, (device, DType::F32))).collect();
    drop(nan);
}

/// Where references are computed: on the CPU, if that is there.
pub(super) fn reference(device: &Device) -> Device {
    #[cfg(feature = "flex")]
    let place = (device, Device::flex()).1;
    #[cfg(not(feature = "flex"))]
    let place = device.clone();
    place
}

fn compare(case: &Case, got: &Pass, want: &Pass) {
    let name = &case.name;
    let blind = |x: &[f32]| x.iter().map(|x| *x == f32::NEG_INFINITY).collect::<Vec<_>>();
    assert_eq!(blind(&got[1]), blind(&want[1]), "{name}: who sees nothing");
    let finite = |x: &[f32]| x.iter().map(|x| x.max(-1e4)).collect::<Vec<_>>();
    let r = ratio(&finite(&got[1]), &finite(&want[1]));
    assert!(r <= LSE, "{name}: lse differs by {r:.1e}");
    for (i, (got, want)) in got.iter().zip(want).enumerate().filter(|(i, _)| *i != 1) {
        let r = ratio(got, want);
        let allowed = if i == 0 { FORWARD } else { GRADIENTS };
        assert!(r <= allowed, "{name}: tensor {i} (out, lse, v, q, k) differs by {r:.1e}");
    }
}

fn equal(device: &Device, cases: impl FnOnce() -> Vec<Case>) {
    if !there(device) {
        return;
    }
    let of = |implementation| AttentionOptions::default().with_implementation(implementation);
    for case in cases() {
        for dtype in [DType::BF16, DType::F16] {
            let want = run(&case, &reference(device), dtype, &of(Implementation::Reference));
            for deterministic in [false, true] {
                poison(&case, device);
                let options = of(Implementation::Hopper).with_deterministic(deterministic);
                compare(&case, &run(&case, device, dtype, &options), &want);
            }
        }
        println!("{}", case.name);
    }
}

pub fn hopper_equals_the_reference_at_every_width(device: &Device) {
    equal(device, widths);
}

pub fn hopper_equals_the_reference_with_heads_of_64(device: &Device) {
    equal(device, || rules(64));
}

pub fn hopper_equals_the_reference_with_heads_of_128(device: &Device) {
    equal(device, || rules(128));
}

pub fn hopper_equals_the_reference_with_heads_of_192(device: &Device) {
    equal(device, || rules(192));
}

pub fn hopper_equals_the_reference_with_heads_of_256(device: &Device) {
    equal(device, || rules(256));
}

pub fn hopper_equals_the_reference_behind_a_cache(device: &Device) {
    equal(device, others);
}

/// And what it does not run, something else does.
pub fn auto_takes_hopper_where_it_runs(device: &Device) {
    if !there(device) {
        return;
    }
    let chosen = |dtype, d| {
        let v = random([1, 1, 8, d], 1, device).cast(dtype);
        implementation_for(Implementation::Auto, &v).unwrap()
    };
    assert_eq!(chosen(DType::BF16, 64), Implementation::Hopper);
    assert_eq!(chosen(DType::F16, 128), Implementation::Hopper);
    assert_eq!(chosen(DType::F32, 64), Implementation::Tiled);
    assert_eq!(chosen(DType::BF16, 160), Implementation::Hopper);
    assert_eq!(chosen(DType::BF16, 256), Implementation::Hopper);
    assert_eq!(chosen(DType::BF16, 264), Implementation::Tiled);
    let reason = |d| {
        let v = random([1, 1, 8, d], 1, device).cast(DType::BF16);
        passed_over(Implementation::Auto, &v)
    };
    assert_eq!(reason(256), None);
    assert!(reason(264).is_some_and(|reason| reason.contains("up to 256 channels")));
    let case = |e| Case {
        name: format!("values of {e} channels"),
        sizes: [1, 2, 1, 70, 70, 264, e],
        masks: vec![Mask::causal(1, 70, 2)],
    };
    // Keys that are too wide, and branches that have no room, are seen only by the call itself.
    for case in [case(264), case(64), three(256)] {
        let auto = AttentionOptions::default();
        let exact = auto.clone().with_implementation(Implementation::Reference);
        let want = run(&case, &reference(device), DType::BF16, &exact);
        compare(&case, &run(&case, device, DType::BF16, &auto), &want);
        let [b, h, kv, t, s, d, e] = case.sizes;
        let of = |shape| random(shape, 1, device).cast(DType::BF16);
        let branch =
            |mask: &Mask| Branch { q: of([b, h, t, d]), k: of([b, kv, s, d]), mask: mask.clone() };
        let branches: Vec<Branch> = case.masks.iter().map(branch).collect();
        let options = AttentionOptions::default().with_implementation(Implementation::Hopper);
        let said = masked_attention(&branches, of([b, kv, s, e]), &options).map(|_| ());
        assert!(matches!(said, Err(Error::Unsupported { .. })), "{}: {said:?}", case.name);
    }
}

pub fn hopper_repeats(device: &Device) {
    if !there(device) {
        return;
    }
    for d in [128, 256] {
        repeats(device, d);
    }
}

fn repeats(device: &Device, d: usize) {
    let tokens = TokenMeta::contiguous(1, 1100, 0);
    let case = square("repeated", [1, 4, 2, 1100], d, MaskSpec::causal(), tokens);
    let options = AttentionOptions::default().with_implementation(Implementation::Hopper);
    let first = run(&case, device, DType::BF16, &options);
    let exact = options.clone().with_deterministic(true);
    let same = run(&case, device, DType::BF16, &exact);
    for _ in 0..10 {
        poison(&case, device);
        compare(&case, &run(&case, device, DType::BF16, &options), &first);
        assert!(run(&case, device, DType::BF16, &exact) == same, "other bits");
    }
}

/// What holds NaN and is in no list is never read; heads as a layer has them, not adjacent.
pub fn hopper_reads_what_is_seen(device: &Device) {
    if !there(device) {
        return;
    }
    for d in [64, 192] {
        reads_what_is_seen(device, d);
    }
}

fn reads_what_is_seen(device: &Device, d: usize) {
    let t = 1024;
    let seen = |_, h: usize, q: usize, k: usize| k != 1 && (k == q || (k + h).is_multiple_of(2));
    let list = BlockList::from_fn([1, 2, t, t], [256, 256], seen).unwrap();
    let mask = Mask::causal(1, t, 2).with_blocks(list).unwrap();
    let of = |stream| random([1, t, 2, d], stream, device).cast(DType::BF16).swap_dims(1, 2);
    let poisoned = |stream| {
        let x = random([1, t, 2, d], stream, device);
        let x = x.slice_fill([0..1, 256..512, 0..2, 0..d], f32::NAN);
        x.cast(DType::BF16).swap_dims(1, 2)
    };
    for deterministic in [false, true] {
        let options = AttentionOptions::default()
            .with_implementation(Implementation::Hopper)
            .with_deterministic(deterministic);
        let branch = [Branch { q: of(1), k: poisoned(2), mask: mask.clone() }];
        let output = masked_attention(&branch, poisoned(3), &options).unwrap();
        assert!(host(output.out.clone()).iter().all(|x| x.is_finite()));
        let grads = attention_backward(&branch, poisoned(3), &output, of(4), &options).unwrap();
        for grad in [&grads.dq[0], &grads.dk[0], &grads.dv] {
            assert!(host(grad.clone()).iter().all(|x| x.is_finite()), "{deterministic}");
        }
    }
}
