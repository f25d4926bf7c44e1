//! The kernels' own text on this machine, with an emulator in the place of their instructions, against the
//! reference: tiles, lists, masks, barriers and what every thread reads and writes. What it cannot show is
//! what happens at the same time.

use super::super::few;
use super::super::launch::{Call, Map, Side, Steps};
use super::super::lists::Lists;
use super::super::rules::{ROUND, Rules, Tokens};
use super::super::source::{Kernel, MOST_BRANCHES, Numbers, OF_GROUP, Variant};
use super::super::wgmma::Left;
use crate::attention::tests::{Case, cases, device, random, ratio, values};
use crate::cuda::emulated::Scratch;
use crate::{
    AttentionOptions, BlockList, BlockStride, Branch, Implementation, Mask, MaskSpec, TokenMeta,
    masked_attention,
};
use burn::tensor::{DType, Tensor};
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// bf16 has 8 bits.
const FORWARD: f64 = 4e-3;
const GRADIENTS: f64 = 1e-2;
/// Workgroups at a time: each has several tiles of queries, some more than others.
const GROUPS: usize = 3;

/// Kernels that were compiled, by their text.
struct Programs {
    scratch: Scratch,
    known: HashMap<String, PathBuf>,
}

impl Programs {
    /// None where there is no compiler.
    fn get(&mut self, variant: &Variant, entry: &str) -> Option<PathBuf> {
        let mut products = String::new();
        for (name, n, left) in variant.products() {
            let (size, a, form) = match left {
                Left::Shared { turned } => (
                    n / 2,
                    "u64 a, u64 b, int add",
                    format!("shared_product<{turned}>(x, a, b, add)"),
                ),
                Left::Registers => (
                    n / 2,
                    "u32 a, u32 b, u32 c, u32 d, u64 m",
                    "register_product(x, a, b, c, d, m)".to_string(),
                ),
            };
            products += &format!("inline void {name}(float (&x)[{size}], {a}) {{ {form}; }}\n");
        }
        let text = variant.text(include_str!("emulator.h"), &products);
        let text = format!("{text}\n#define ENTRY {entry}\n{}", include_str!("emulator_main.h"));
        if let Some(program) = self.known.get(&text) {
            return Some(program.clone());
        }
        let program = self.scratch.0.join(format!("kernel{}", self.known.len()));
        let source = program.with_extension("cpp");
        std::fs::write(&source, &text).unwrap();
        let options = ["-O1", "-w", "-std=c++17", "-o"];
        match Command::new("c++").args(options).arg(&program).arg(&source).output() {
            Ok(done) => {
                assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr))
            }
            Err(_) => return None,
        }
        self.known.insert(text, program.clone());
        Some(program)
    }
}

/// A launch's buffers, each with a number in place of an address.
#[derive(Default)]
struct Memory(Vec<Vec<u8>>);

impl Memory {
    fn add(&mut self, bytes: Vec<u8>) -> u64 {
        self.0.push(bytes);
        (self.0.len() as u64) << 32
    }

    fn ints(&mut self, x: &[i32]) -> u64 {
        self.add(x.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// Rounded to bf16.
    fn halves(&mut self, x: &[f64]) -> u64 {
        self.add(x.iter().flat_map(|x| bf16(*x as f32).to_le_bytes()).collect())
    }

    /// Of NaN.
    fn empty(&mut self, count: usize, bytes: usize) -> u64 {
        self.add(vec![0xff; count * bytes])
    }

    fn read_halves(&self, address: u64) -> Vec<f64> {
        let bytes = &self.0[(address >> 32) as usize - 1];
        let wide = |x: &[u8]| f32::from_bits(u32::from(u16::from_le_bytes([x[0], x[1]])) << 16);
        bytes.chunks(2).map(|x| f64::from(wide(x))).collect()
    }

    fn read_floats(&self, address: u64) -> Vec<f64> {
        let bytes = &self.0[(address >> 32) as usize - 1];
        let float = |x: &[u8]| f32::from_le_bytes([x[0], x[1], x[2], x[3]]);
        bytes.chunks(4).map(|x| f64::from(float(x))).collect()
    }

    fn launch(&mut self, program: &Path, [x, y, threads]: [usize; 3], call: &Call) {
        let mut input = Vec::new();
        for size in [x, y, threads, self.0.len()] {
            input.extend((size as i32).to_le_bytes());
        }
        for buffer in &self.0 {
            input.extend((buffer.len() as u64).to_le_bytes());
            input.extend(buffer);
        }
        // Safe: a call is plain numbers; what lies between them does not matter.
        let bytes = unsafe {
            std::slice::from_raw_parts(std::ptr::from_ref(call).cast::<u8>(), size_of::<Call>())
        };
        input.extend(bytes);
        let file = program.with_extension("in");
        std::fs::write(&file, input).unwrap();
        let done = Command::new(program).stdin(File::open(&file).unwrap()).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let mut rest = &done.stdout[..];
        for buffer in &mut self.0 {
            let (own, behind) = rest.split_at(buffer.len());
            buffer.copy_from_slice(own);
            rest = behind;
        }
    }
}

/// Nearest, ties to even.
fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// As the driver would make it: address, sizes, distances, tokens of a box.
fn map(address: u64, [rows, heads, tokens, channels]: [usize; 4], tall: usize) -> Map {
    strided(address, [rows, heads, tokens, channels], packed([heads, tokens, channels]), tall)
}

fn strided(address: u64, shape: [usize; 4], steps: Steps, tall: usize) -> Map {
    let [rows, heads, tokens, channels] = shape.map(|x| x as u64);
    let [token, head, row] = [steps.token, steps.head, steps.row].map(|x| x as u64);
    let mut map = Map::default();
    let all = [address, channels, tokens, heads, rows, token, head, row, tall as u64];
    map.0[..all.len()].copy_from_slice(&all);
    map
}

/// Tokens of a head one after another.
fn packed([heads, tokens, channels]: [usize; 3]) -> Steps {
    let [row, head, token] = [heads * tokens * channels, tokens * channels, channels];
    Steps { row: row as i64, head: head as i64, token: token as i64 }
}

/// Heads of a token one after another.
fn by_tokens([_, heads, tokens, channels]: [usize; 4]) -> Steps {
    let [row, head, token] = [heads * tokens * channels, channels, heads * channels];
    Steps { row: row as i64, head: head as i64, token: token as i64 }
}

/// Of such numbers those of a head one after another.
fn by_heads([rows, heads, tokens, channels]: [usize; 4], x: &[f64]) -> Vec<f64> {
    let steps = by_tokens([rows, heads, tokens, channels]);
    let mut all = Vec::with_capacity(x.len());
    for i in 0..rows * heads * tokens {
        let (row, head, token) = (i / tokens / heads, i / tokens % heads, i % tokens);
        let at = row as i64 * steps.row + head as i64 * steps.head + token as i64 * steps.token;
        all.extend_from_slice(&x[at as usize..][..channels]);
    }
    all
}

/// out, lse, and gradients of v and of q and k of all branches.
type Pass = [Vec<f64>; 5];

fn emulated(case: &Case, alone: bool, programs: &mut Programs) -> Option<Pass> {
    let Case { batch, heads, kv, queries, keys, dim: d, value_dim: e, .. } = *case;
    let n = case.masks.len();
    let mut memory = Memory::default();
    let tokens: Vec<Tokens> = case.masks.iter().map(|m| Tokens::new(m).unwrap()).collect();
    let mut rules = [Rules::default(); MOST_BRANCHES];
    for (rules, tokens) in rules.iter_mut().zip(&tokens) {
        *rules = tokens.rules;
    }
    let head = d.max(e).next_multiple_of(64);
    let variant =
        |kernel, alone| Variant { kernel, head, numbers: Numbers::Bf16, branches: n, rules, alone };
    let (of_q, of_k) = ([batch, heads, queries, d], [batch, kv, keys, d]);
    let (of_v, of_out) = ([batch, kv, keys, e], [batch, heads, queries, e]);
    let all = |shape, first: u64| -> Vec<f64> {
        (0..n as u64).flat_map(|i| values(random(shape, first + 2 * i))).collect()
    };
    let (q, k) = (memory.halves(&all(of_q, 2)), memory.halves(&all(of_k, 3)));
    let v = memory.halves(&values(random(of_v, 1)));
    let dout = memory.halves(&values(random(of_out, 99)));
    let tall = queries.next_multiple_of(ROUND);
    let stacked = |[b, h, t, d]: [usize; 4]| [n * b, h, t, d];
    let rows = batch * heads * tall;
    let mut call = Call {
        out: memory.empty(batch * heads * queries * e, 2),
        lse: memory.empty(batch * heads * queries, 4),
        lse2: memory.empty(rows, 4),
        dots: memory.empty(rows, 4),
        sums: memory.empty(if alone { 1 } else { n * rows * head }, 4),
        dout_rows: dout,
        dq: memory.empty(n * batch * heads * queries * d, 2),
        dk: memory.empty(n * batch * kv * keys * d, 2),
        dv: memory.empty(batch * kv * keys * e, 2),
        of_out: by_tokens(of_out),
        of_dout: packed([heads, queries, e]),
        of_dk: by_tokens(stacked(of_k)),
        of_dv: by_tokens(of_v),
        ..Call::new(of_q, of_v, 1.0 / (d as f32).sqrt())
    };
    let numbers: Vec<u64> = tokens.iter().map(|tokens| memory.ints(&tokens.numbers)).collect();
    let tile = Variant::tile_by_keys(head);
    // Lists of one pass; how many workgroups or places of turns there are.
    let put = |call: &mut Call, memory: &mut Memory, kernel: Kernel| {
        let mut groups = 0;
        for (i, mask) in case.masks.iter().enumerate() {
            let lists = match kernel {
                Kernel::Keys => Lists::by_keys(mask, tile, kv, GROUPS),
                _ => Lists::by_queries(mask, variant(kernel, false).tile_by_queries(), kv, GROUPS),
            };
            let (starts, tiles) = (memory.ints(&lists.starts), memory.ints(&lists.tiles));
            call.sides[i] = Side { numbers: numbers[i], starts, tiles, ..tokens[i].side };
            groups = lists.order.len() / 2;
            call.order = memory.ints(&lists.order);
            call.turns = lists.turns as i32;
        }
        groups
    };
    let of_tiles = |call: &mut Call, queries, keys| {
        call.q = map(q, stacked(of_q), queries);
        call.dout = map(dout, of_out, queries);
        call.k = map(k, stacked(of_k), keys);
        call.v = map(v, of_v, keys);
    };
    let forward = variant(Kernel::Forward, false);
    let program = programs.get(&forward, "forward")?;
    of_tiles(&mut call, forward.tile_by_queries().0, forward.piece());
    put(&mut call, &mut memory, Kernel::Forward);
    call.to = strided(call.out, of_out, call.of_out, OF_GROUP);
    memory.launch(&program, [GROUPS, 1, forward.threads() as usize], &call);

    if alone {
        of_tiles(&mut call, ROUND, variant(Kernel::Queries, true).piece());
        put(&mut call, &mut memory, Kernel::Queries);
        call.o = strided(call.out, of_out, call.of_out, ROUND);
        call.to = map(call.dq, stacked(of_q), OF_GROUP);
        let program = programs.get(&variant(Kernel::Queries, true), "queries")?;
        memory.launch(&program, [GROUPS, 1, 384], &call);
    } else {
        let before = programs.get(&variant(Kernel::Around, false), "before")?;
        memory.launch(&before, [rows * Variant::lanes(head) / 256, 1, 256], &call);
    }
    of_tiles(&mut call, tile.0, tile.1);
    let by_keys = put(&mut call, &mut memory, Kernel::Keys);
    let program = programs.get(&variant(Kernel::Keys, alone), "keys")?;
    memory.launch(&program, [by_keys, 1, 384], &call);
    if !alone {
        let after = programs.get(&variant(Kernel::Around, false), "after")?;
        memory.launch(&after, [n * rows / tile.0, 1, 256], &call);
    }
    let halves = |address| memory.read_halves(address);
    let lse = memory.read_floats(call.lse);
    Some([
        by_heads(of_out, &halves(call.out)),
        lse,
        by_heads(of_v, &halves(call.dv)),
        halves(call.dq),
        by_heads(stacked(of_k), &halves(call.dk)),
    ])
}

/// The same by the reference, from inputs that are rounded alike.
fn reference(case: &Case) -> Pass {
    let Case { batch, heads, kv, queries, keys, dim: d, value_dim: e, .. } = *case;
    let rounded = |shape, seed| random(shape, seed).cast(DType::BF16).cast(DType::F64);
    let leaf = |shape, seed| Tensor::<4>::from_inner(rounded(shape, seed)).require_grad();
    let v = leaf([batch, kv, keys, e], 1);
    let branch = |(i, mask): (usize, &Mask)| Branch {
        q: leaf([batch, heads, queries, d], 2 + 2 * i as u64),
        k: leaf([batch, kv, keys, d], 3 + 2 * i as u64),
        mask: mask.clone(),
    };
    let branches: Vec<Branch> = case.masks.iter().enumerate().map(branch).collect();
    let options = AttentionOptions::default().with_implementation(Implementation::Reference);
    let output = masked_attention(&branches, v.clone(), &options).unwrap();
    let weight = Tensor::from_inner(rounded([batch, heads, queries, e], 99));
    let grads = (output.out.clone() * weight).sum().backward();
    let of = |x: &Tensor<4>| values(x.grad(&grads).expect("a gradient for every input"));
    let all = |pick: fn(&Branch) -> &Tensor<4>| branches.iter().flat_map(|b| of(pick(b))).collect();
    [values(output.out), values(output.lse), of(&v), all(|b| &b.q), all(|b| &b.k)]
}

/// How far off numbers are. Queries that see nothing must be the same ones, and their lse of -inf counts no more.
fn differs(got: &[f64], want: &[f64]) -> f64 {
    let blind = |x: &f64| *x == f64::NEG_INFINITY;
    if got.iter().map(blind).ne(want.iter().map(blind)) {
        return f64::INFINITY;
    }
    let line = |x: &[f64]| {
        let x: Vec<f32> = x.iter().filter(|x| !blind(x)).map(|x| *x as f32).collect();
        let len = x.len();
        Tensor::<1>::from_data(burn::tensor::TensorData::new(x, [len]), &device())
    };
    ratio(line(got), line(want))
}

/// With programs in a folder of that name: tests run side by side.
fn check(folder: &str, cases: impl Iterator<Item = Case>) {
    let mut programs = Programs { scratch: Scratch::new(folder), known: HashMap::new() };
    for case in cases {
        let want = reference(&case);
        let always = Variant::always_alone(case.dim.max(case.value_dim).next_multiple_of(64));
        for alone in [false, true].into_iter().filter(|alone| *alone || !always) {
            let Some(got) = emulated(&case, alone, &mut programs) else {
                return println!("skipped: there is no C++ compiler");
            };
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                let r = differs(got, want);
                let allowed = if i < 2 { FORWARD } else { GRADIENTS };
                let name = case.name;
                assert!(
                    r <= allowed,
                    "{name}, alone {alone}: tensor {i} (out, lse, v, q, k) differs by {r:e}"
                );
            }
        }
    }
}

/// Near pairs in one branch, far ones in another; two tiles, the second of them ragged.
fn branches(t: usize, dim: usize, value_dim: usize) -> Case {
    let near = 20;
    let plain = TokenMeta::contiguous(1, t, 0);
    let pos = (0..t).map(|i| i.saturating_sub(near) as i32).collect();
    // The first queries have no far keys at all.
    let segment = (0..t).map(|i| if i < near { -1 } else { 0 }).collect();
    let shifted = TokenMeta::new(1, t, pos, segment).unwrap();
    let window = MaskSpec::causal().with_window(Some(near));
    let near = Mask::new(window, plain.clone(), plain.clone(), 2).unwrap();
    let far = Mask::new(MaskSpec::causal(), shifted, plain, 2).unwrap();
    let (queries, keys, masks) = (t, t, vec![near, far]);
    let name = "two branches";
    Case { name, batch: 1, heads: 2, kv: 1, queries, keys, dim, value_dim, masks }
}

#[test]
fn kernels_equal_the_reference_where_they_are_emulated() {
    check("branches", [branches(130, 24, 64)].into_iter());
}

/// Two and one branches of heads that leave less room; several tiles of queries for a workgroup.
#[test]
fn wide_kernels_equal_the_reference_where_they_are_emulated() {
    let one = |name, mask: Mask, dim: usize, value_dim: usize| {
        let mut case = branches(mask.keys().len(), dim, value_dim);
        (case.name, case.heads, case.batch) = (name, 4, mask.keys().batch());
        case.masks = vec![mask];
        case
    };
    // What looks at most.
    let tokens = TokenMeta::packed(&[vec![150]], 150).unwrap();
    let stride = MaskSpec::causal().with_stride(BlockStride::new(16, 2, 3, 1)).with_sinks(3);
    let seen = |_, h: usize, q: usize, k: usize| !(q + k + h).is_multiple_of(3);
    let list = BlockList::from_fn([1, 4, 150, 150], [24, 20], seen).unwrap();
    let strided = Mask::new(stride, tokens.clone(), tokens, 4).unwrap();
    let cases = [
        branches(130, 136, 200),
        one("causal, 256 channels", Mask::causal(1, 200, 4), 256, 136),
        one("causal, 192 channels", Mask::causal(2, 128, 4), 152, 192),
        one("blocks of a stride", strided.with_blocks(list).unwrap(), 192, 208),
    ];
    check("wide", cases.into_iter());
}

/// Blocks of whole multiples of 64 tokens, of which entries of lists say whether they are hidden: of a list, of a stride
/// with a phase per key head, and of both, behind keys that nobody sees.
#[test]
fn whole_blocks_equal_the_reference_where_they_are_emulated() {
    let t = 330;
    let one = |name, mask: Mask, dim: usize| {
        let mut case = branches(t, dim, dim);
        (case.name, case.heads, case.kv) = (name, 4, 2);
        case.masks = vec![mask];
        case
    };
    let tokens = || TokenMeta::contiguous(1, t, 0);
    let seen = |_, h: usize, q: usize, k: usize| (3 * q + 5 * k + 2 * h) % 7 < 4;
    let list = |block| BlockList::from_fn([1, 4, t, t], block, seen).unwrap();
    let stride = MaskSpec::causal().with_stride(BlockStride::new(64, 1, 3, 2));
    let strided = || Mask::new(stride.clone(), tokens(), tokens(), 4).unwrap();
    let each = BlockList::from_fn([1, 4, t, t], [128, 64], |_, _, q, k| k == 2 * q).unwrap();
    let packed = TokenMeta::packed(&[vec![100, 230]], t).unwrap();
    let of_documents = Mask::new(MaskSpec::causal(), packed.clone(), packed, 4).unwrap();
    let cases = [
        one("chosen blocks", Mask::causal(1, t, 4).with_blocks(list([64, 64])).unwrap(), 64),
        one("in documents", of_documents.with_blocks(list([64, 128])).unwrap(), 128),
        one("blocks of a stride", strided(), 128),
        one("both, wide heads", strided().with_blocks(list([128, 64])).unwrap(), 192),
        one("wide heads", Mask::causal(1, t, 4).with_blocks(list([64, 128])).unwrap(), 192),
        // A tile of keys each, one tile of queries after the other.
        one("a block each", Mask::causal(1, t, 4).with_blocks(each).unwrap(), 64),
    ];
    // Two branches, both of small blocks, and one of them.
    let two = |name, far: BlockList| {
        let mut case = branches(t, 64, 64);
        (case.name, case.heads, case.kv) = (name, 4, 2);
        let near = |_, h: usize, q: usize, k: usize| (3 * q + 5 * k + 2 * h) % 7 < 2;
        let near = BlockList::from_fn([1, 4, t, t], [64, 64], near).unwrap();
        case.masks =
            [near, far].map(|list| Mask::causal(1, t, 4).with_blocks(list).unwrap()).into();
        case
    };
    let far = |_, h: usize, q: usize, k: usize| (2..4).contains(&((3 * q + 5 * k + 2 * h) % 7));
    let both = BlockList::from_fn([1, 4, t, t], [64, 64], far).unwrap();
    // Of blocks of 128 keys, disjoint from those of 64 in the keys that the others leave.
    let apart = |b, h, q: usize, k: usize| q >= 4 && k == 0 && far(b, h, q, 0) && far(b, h, q, 1);
    let one_of_them = BlockList::from_fn([1, 4, t, t], [64, 128], apart).unwrap();
    check("branches of blocks", [two("both", both), two("one", one_of_them)].into_iter());
    // Blocks of 64 keys have tiles that are as small.
    let small = [true, false, true, true, false, true];
    for (case, small) in cases.iter().zip(small) {
        let rules = Rules::of(&case.masks[0]).0;
        assert!(rules.has(Rules::BLOCKS) && rules.has(Rules::SMALL) == small, "{}", case.name);
    }
    check("blocks", cases.into_iter());
}

/// More turns, and more entries of them, than the lanes of a warp look up at a time; a row in which most tiles of
/// queries see nothing.
#[test]
fn many_turns_equal_the_reference_where_they_are_emulated() {
    let (keys, dim) = (140, 32);
    let tokens = TokenMeta::left_padded(&[keys, keys, keys, 4], keys).unwrap();
    let masks = vec![Mask::new(MaskSpec::causal(), tokens.clone(), tokens, 18).unwrap()];
    let name = "many turns";
    let (queries, value_dim) = (keys, 24);
    let case = Case { name, batch: 4, heads: 18, kv: 1, queries, keys, dim, value_dim, masks };
    // Those that see something come first.
    assert!(3 * case.heads * 2 > 32 * GROUPS);
    check("turns", [case].into_iter());
}

/// Few queries of several heads as one tile, keys in parts: behind a cache with padding, more queries than one,
/// some of which see nothing, and parts in which nobody sees anything.
#[test]
fn parts_equal_the_reference_where_they_are_emulated() {
    let keys = TokenMeta::left_padded(&[700, 40, 0], 700).unwrap();
    let queries = keys.slice(697..700).unwrap();
    let of = |spec: MaskSpec| Mask::new(spec, queries.clone(), keys.clone(), 4).unwrap();
    let mut programs = Programs { scratch: Scratch::new("parts"), known: HashMap::new() };
    let window = MaskSpec::causal().with_window(Some(150)).with_sinks(2);
    for (name, spec, dim, value_dim) in [
        ("cache", MaskSpec::causal(), 64, 24),
        ("cache with a window", window.clone(), 64, 24),
        ("cache of wide heads", window, 136, 200),
    ] {
        let masks = vec![of(spec)];
        let (queries, keys) = (3, 700);
        let case = Case { name, batch: 3, heads: 4, kv: 2, queries, keys, dim, value_dim, masks };
        let want = reference(&case);
        let Some(got) = in_parts(&case, &mut programs) else {
            return println!("skipped: there is no C++ compiler");
        };
        for (got, want) in got.iter().zip(&want) {
            let r = differs(got, want);
            assert!(r <= FORWARD, "{name}: differs by {r:e}");
        }
    }
}

/// out and lse.
fn in_parts(case: &Case, programs: &mut Programs) -> Option<[Vec<f64>; 2]> {
    let Case { batch, heads, kv, queries, keys, dim: d, value_dim: e, .. } = *case;
    let group = heads / kv;
    let mask = few::mask_of(&case.masks[0], group, kv).expect("all heads see the same");
    let tokens = Tokens::new(&mask).unwrap();
    let mut rules = [Rules::default(); MOST_BRANCHES];
    rules[0] = tokens.rules;
    let variant = |kernel| Variant {
        kernel,
        head: d.max(e).next_multiple_of(64),
        numbers: Numbers::Bf16,
        branches: 1,
        rules,
        alone: false,
    };
    let (lists, parts) = Lists::in_parts(&mask, variant(Kernel::Forward).tile_by_queries(), 24);
    assert!(parts > 1);
    let (rows, of_q) = (group * queries, [batch, kv, group * queries, d]);
    let (of_k, of_v) = ([batch, kv, keys, d], [batch, kv, keys, e]);
    let of_out = [batch * parts, kv, rows, e];
    let mut memory = Memory::default();
    let piece = variant(Kernel::Forward).piece();
    let q = memory.halves(&values(random([batch, heads, queries, d], 2)));
    let k = memory.halves(&values(random(of_k, 3)));
    let v = memory.halves(&values(random(of_v, 1)));
    let out = memory.empty(batch * parts * kv * rows * e, 2);
    let mut call = Call {
        q: map(q, of_q, variant(Kernel::Forward).tile_by_queries().0),
        k: map(k, of_k, piece),
        v: map(v, of_v, piece),
        to: map(out, of_out, OF_GROUP),
        out,
        of_out: packed([kv, rows, e]),
        lse: memory.empty(batch * parts * kv * rows, 4),
        whole: memory.empty(batch * kv * rows * e, 2),
        whole_lse: memory.empty(batch * kv * rows, 4),
        order: memory.ints(&lists.order),
        turns: lists.turns as i32,
        parts: parts as i32,
        ..Call::new(of_q, of_v, 1.0 / (d as f32).sqrt())
    };
    call.sides[0] = Side {
        numbers: memory.ints(&tokens.numbers),
        starts: memory.ints(&lists.starts),
        tiles: memory.ints(&lists.tiles),
        ..tokens.side
    };
    let forward = variant(Kernel::Forward);
    let program = programs.get(&forward, "forward")?;
    memory.launch(&program, [24, 1, forward.threads() as usize], &call);
    let combine = programs.get(&variant(Kernel::Combine), "combine")?;
    memory.launch(&combine, [(batch * kv * rows).div_ceil(8), 1, 256], &call);
    Some([memory.read_halves(call.whole), memory.read_floats(call.whole_lse)])
}

/// Every mask, as the tests of the other forms have them.
#[test]
#[ignore = "takes minutes"]
fn kernels_equal_the_reference_with_every_mask() {
    // Rows of eight channels, which the kernels' caller sees to.
    let whole = |case: &Case| {
        case.dim.is_multiple_of(8) && case.value_dim.is_multiple_of(8) && case.keys <= 450
    };
    let wide = |case: Case| {
        [(128, 104), (136, 192), (256, 256)].map(|(dim, value_dim)| Case {
            dim,
            value_dim,
            masks: case.masks.clone(),
            ..case
        })
    };
    let some = ["sinks", "packed", "groups ragged packed", "blocks of 20 x 90", "two branches"];
    let wider = cases().into_iter().filter(|case| some.contains(&case.name)).flat_map(wide);
    check("masks", cases().into_iter().filter(whole).chain(wider));
}
