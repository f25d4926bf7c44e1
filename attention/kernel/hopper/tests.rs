//! What can be said of the kernels without a card: masks as they read them, pair by pair, lists of tiles,
//! and the cache of cubins. Where NVRTC is, every kind of kernel is compiled.

#[cfg(feature = "cuda-nvrtc")]
mod compiled;
#[cfg(feature = "flex")]
mod emulated;
mod seen;

use super::OPTIONS;
use super::arrange::{Arranged, Item, arranged};
use super::hidden::AT;
use super::launch::Call;
use super::lists::{LATER, Lists, kept_under};
use super::rules::{BLOCK, Rules, Tokens};
use super::source::{Kernel, MOST_BRANCHES, Numbers, SHARED, Variant};
use crate::attention::tests::cases;
use crate::cuda::cubin;
use crate::cuda::emulated::Scratch;
use crate::{BlockList, BlockStride, Mask, MaskSpec, TokenMeta};

/// Masks of all kinds at awkward lengths, those longer than a tile of their own.
pub(super) fn masks() -> Vec<(String, Mask)> {
    let of_case = |case: crate::attention::tests::Case| {
        case.masks.into_iter().map(move |mask| (case.name.to_string(), mask))
    };
    let mut all: Vec<_> = cases().into_iter().flat_map(of_case).collect();
    let tokens = TokenMeta::contiguous(1, 300, 7);
    let long = Mask::new(MaskSpec::causal(), tokens.clone(), tokens, 2).unwrap();
    all.push(("300 from 7 on".into(), long));
    let whole = TokenMeta::contiguous(2, 256, 0);
    let both = Mask::new(MaskSpec::bidirectional(), whole.clone(), whole, 2).unwrap();
    all.push(("whole tiles, bidirectional".into(), both));
    let seen = |_, h: usize, q: usize, k: usize| (q + k + h).is_multiple_of(3);
    let list = BlockList::from_fn([1, 2, 300, 300], [8, 5], seen).unwrap();
    let blocks = BlockList::from_fn([1, 2, 512, 512], [256, 256], seen).unwrap();
    all.push(("blocks of 256".into(), Mask::causal(1, 512, 2).with_blocks(blocks).unwrap()));
    all.push(("many small blocks".into(), Mask::causal(1, 300, 2).with_blocks(list).unwrap()));
    all
}

/// An entry without what is said of its tile.
const TILE: i32 = (1 << AT) - 1;

/// Every list holds what is seen, whole where it is said to be, and every workgroup comes once.
fn check(
    name: &str,
    mask: &Mask,
    lists: &Lists,
    by_keys: bool,
    tile: (usize, usize),
    heads: usize,
) {
    let (t, s) = (mask.queries().len(), mask.keys().len());
    let (rows, columns) = (t.div_ceil(tile.0), s.div_ceil(tile.1));
    let (own, other) = if by_keys { (columns, rows) } else { (rows, columns) };
    let classes = mask.classes().len();
    let [q_start, k_start] = Rules::of(mask).1;
    let (mut said_of, mut hidden_in) = (0, 0);
    assert_eq!(lists.starts.len(), mask.queries().batch() * classes * own + 1, "{name}");
    for n in 0..lists.starts.len() - 1 {
        let (b, class, at) = (n / own / classes, n / own % classes, n % own);
        let head = mask.classes()[class].heads.start;
        let list = &lists.tiles[lists.starts[n] as usize..lists.starts[n + 1] as usize];
        for i in 0..other {
            let (q, k) = if by_keys { (i, at) } else { (at, i) };
            let found: Vec<i32> = list.iter().copied().filter(|e| e & TILE == i as i32).collect();
            let bits = found.first().copied().filter(|e| *e < 0).unwrap_or_default() >> AT;
            let (mut any, mut all, mut later) = (false, true, true);
            for query in q * tile.0..((q + 1) * tile.0).min(t) {
                for key in k * tile.1..(k + 1) * tile.1 {
                    // Behind the last key are zeros, which nobody sees.
                    let seen = key < s && mask.visible(b, head, query, key);
                    (any, all) = (any | seen, all & seen);
                    let block = (query % tile.0 / BLOCK, key % tile.1 / BLOCK);
                    let hidden = bits >> (2 * block.0 + block.1) & 1 == 1;
                    assert!(!(seen && hidden), "{name}: of tile {q}, {k}, {block:?} is not hidden");
                    let so_far = key as i32 + k_start <= query as i32 + q_start;
                    later &= seen == (key < s && so_far);
                }
            }
            assert!(found.len() <= 1, "{name}: tile {q}, {k} comes twice");
            assert!(!any || found.len() == 1, "{name}: tile {q}, {k} is missing");
            assert!(all || found.iter().all(|e| *e < 0), "{name}: tile {q}, {k} is not whole");
            let said = found.iter().any(|e| *e < 0 && e & LATER != 0);
            assert!(later || !said, "{name}: of tile {q}, {k} not just later keys are hidden");
            said_of += said as usize;
            hidden_in += (bits & 15 != 0) as usize;
        }
    }
    // Where documents, blocks or groups are longer than a tile.
    if ["300 from 7 on", "blocks of 256"].contains(&name) {
        assert!(said_of > 0, "{name}");
    }
    assert!(hidden_in == 0 || Rules::of(mask).0.has(Rules::BLOCKS), "{name}");
    if name == "stride of 64" && tile.1 > BLOCK {
        assert!(hidden_in > 0, "{name}");
    }
    if by_keys {
        assert_eq!(lists.turns, 0, "{name}");
    } else {
        assert_eq!(lists.order.len(), lists.turns * 3 * 2, "{name}");
    }
    // Places of turns may be empty, workgroups not.
    let places = lists.order.chunks(2).map(|x| (x[0], x[1]));
    let mut once: Vec<(i32, i32)> = places.filter(|x| by_keys || x.0 >= 0).collect();
    let places = once.len();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), places, "{name}: a workgroup comes twice");
    assert_eq!(once.len(), mask.queries().batch() * heads * own, "{name}");
}

/// What a workgroup has to do, in tiles, over the mean.
#[test]
fn workgroups_have_alike_much_to_do_and_stay_near() {
    let item =
        |part: usize, tile: usize, long| Item { place: [part as i32, tile as i32], part, long };
    let parts = |arranged: &Arranged, first: usize| -> usize {
        let mut parts: Vec<usize> = arranged.items[..first].iter().map(|item| item.part).collect();
        parts.sort_unstable();
        parts.dedup();
        parts.len()
    };
    let uneven = |(parts, tiles): (usize, usize), groups: usize, long: fn(usize) -> usize| {
        let all = (0..parts).flat_map(|p| (0..tiles).map(move |t| item(p, t, long(t))));
        let all: Vec<Item> = all.collect();
        let mean = all.iter().map(|item| item.long as f64 + 1.0).sum::<f64>() / groups as f64;
        let arranged = arranged(all, groups, 1.0);
        let (order, turns) = arranged.turns();
        let of_group = |group: usize| -> f64 {
            let places = (0..turns).map(|turn| order[2 * (turn * groups + group) + 1]);
            places.filter(|tile| *tile >= 0).map(|tile| long(tile as usize) as f64 + 1.0).sum()
        };
        let most = (0..groups).map(of_group).fold(0.0, f64::max);
        (most / mean, arranged)
    };
    // One after another, where that leaves nobody behind, and short ones of all at the end.
    let (most, of) = uneven((8, 128), 12, |t| t + 1);
    assert!(most < 1.01, "{most}");
    assert_eq!((parts(&of, 96), parts(&of, 2 * 96)), (1, 2));
    assert!(of.items[8 * 96..].iter().all(|item| item.long <= 32));
    // Few that are long: these first, and then the others.
    let (most, of) = uneven((8, 128), 132, |t| if t == 0 { 512 } else { 64 });
    assert!(most < 1.2, "{most}");
    assert_eq!(of.items[..8].iter().map(|item| item.long).min(), Some(512));
    // Together, where one part alone would keep all others waiting.
    let (most, of) = uneven((4, 16), 30, |t| t + 1);
    assert!(most < 1.25, "{most}");
    assert!(parts(&of, 16) > 1);
    assert_eq!(arranged(Vec::new(), 3, 1.0).turns(), (Vec::new(), 0));
}

#[test]
fn lists_hold_what_is_seen() {
    for (name, mask) in masks() {
        let heads = mask.heads();
        for tile in [(128, 128), (128, 64)] {
            let lists = Lists::by_queries(&mask, tile, heads, 3);
            check(&name, &mask, &lists, false, tile, heads);
        }
        for head in HEADS {
            let tile = Variant::tile_by_keys(head);
            // Key heads that divide those of all cases.
            for kv in [1, mask.heads()] {
                check(&name, &mask, &Lists::by_keys(&mask, tile, kv, 3), true, tile, kv);
            }
        }
    }
}

/// Heads of different widths share masks, and lists only where these are the same.
#[test]
fn lists_of_other_tiles_are_kept_apart() {
    let tokens = TokenMeta::contiguous(1, 300, 0);
    let mask = Mask::new(MaskSpec::causal(), tokens.clone(), tokens, 2).unwrap();
    let of = |head| {
        let tile = Variant::tile_by_keys(head);
        (kept_under(0, 6, tile, 2), Lists::by_keys(&mask, tile, 2, 3))
    };
    for (one, other) in HEADS.into_iter().flat_map(|one| HEADS.map(|other| (one, other))) {
        let ((key, lists), (other_key, other_lists)) = (of(one), of(other));
        assert!(key != other_key || lists == other_lists, "{one} and {other} channels");
    }
}

/// Nothing is read that does not decide.
#[test]
fn simple_masks_read_no_arrays() {
    let of = |spec: MaskSpec, tokens: TokenMeta| {
        Rules::of(&Mask::new(spec, tokens.clone(), tokens, 2).unwrap()).0
    };
    let (causal, plain) = (MaskSpec::causal, || TokenMeta::contiguous(2, 40, 3));
    let padded = TokenMeta::left_padded(&[40, 12], 40).unwrap();
    let packed = TokenMeta::packed(&[vec![5, 9, 26], vec![40]], 40).unwrap();
    let only = |all: &[Rules]| all.iter().fold(Rules::default(), |sum, rule| sum.and(*rule, true));
    assert_eq!(of(causal(), plain()), Rules::CAUSAL);
    assert_eq!(of(MaskSpec::bidirectional(), plain()), Rules::default());
    let window = causal().with_window(Some(9)).with_sinks(2);
    let sinks = only(&[Rules::CAUSAL, Rules::WINDOW, Rules::SINKS]);
    assert_eq!(of(window.clone(), plain()), sinks);
    assert_eq!(of(causal().with_window(Some(usize::MAX)), plain()), Rules::CAUSAL);
    // Within a document, indices are as far apart as positions; sinks are at positions.
    let labels = only(&[Rules::CAUSAL, Rules::LABELS]);
    assert_eq!(of(causal(), padded.clone()), labels);
    assert_eq!(of(causal(), packed.clone()), labels);
    assert_eq!(of(window, packed.clone()), only(&[sinks, Rules::LABELS, Rules::POSITIONS]));
    assert_eq!(of(MaskSpec::bidirectional(), packed), Rules::LABELS);
    // Blocks that begin at multiples of 64 tokens, by index and not by position.
    let stride = |block| causal().with_stride(BlockStride::new(block, 1, 2, 2));
    let strided = only(&[Rules::CAUSAL, Rules::STRIDE]);
    let long = |start| TokenMeta::contiguous(2, 200, start);
    assert_eq!(of(stride(64), long(0)), only(&[strided, Rules::BLOCKS, Rules::SMALL]));
    assert_eq!(of(stride(128), long(128)), only(&[strided, Rules::BLOCKS]));
    for (mask, tokens) in [(stride(32), long(0)), (stride(64), long(1))] {
        assert_eq!(of(mask, tokens), strided);
    }
    let two = TokenMeta::packed(&[vec![70, 130]], 200).unwrap();
    assert!(!of(stride(64), two).has(Rules::BLOCKS));
    assert!(!of(stride(64).with_sinks(3), long(0)).has(Rules::BLOCKS));
    let listed = |block| {
        let list = BlockList::from_fn([1, 2, 200, 200], block, |_, _, q, k| q == k).unwrap();
        let rules = Rules::of(&Mask::causal(1, 200, 2).with_blocks(list).unwrap()).0;
        [Rules::BLOCKS, Rules::SMALL, Rules::APART].map(|rule| rules.has(rule))
    };
    assert_eq!(listed([128, 128]), [true, false, false]);
    assert_eq!(listed([64, 128]), [true, false, true]);
    assert_eq!(listed([128, 64]), [true, true, false]);
    assert_eq!([[64, 32], [96, 64]].map(listed), [[false; 3]; 2]);
    // A token that was left out behind a cache's first ones.
    let gap = padded.gather(&[vec![0, 2, 3], vec![30, 31, 33]]).unwrap();
    assert_eq!(of(causal(), gap), only(&[Rules::CAUSAL, Rules::POSITIONS]));
    // Queries that count on from their keys.
    let keys = TokenMeta::contiguous(1, 40, 0);
    let queries = keys.slice(30..40).unwrap();
    let mask = Mask::new(causal(), queries, keys, 2).unwrap();
    assert_eq!(Rules::of(&mask), (Rules::CAUSAL, [30, 0]));
}

#[test]
fn numbers_of_tokens_are_rounded_up_to_tiles() {
    let tokens = TokenMeta::packed(&[vec![5, 130], vec![135]], 135).unwrap();
    let mask = Mask::new(MaskSpec::causal(), tokens.clone(), tokens, 2).unwrap();
    let Tokens { numbers, side, .. } = Tokens::new(&mask).unwrap();
    assert_eq!((side.tall, side.wide, side.batch), (256, 256, 2));
    let (q, k) = (side.q_label as usize, side.k_label as usize);
    assert_eq!(numbers[q + 134..q + 136], [1, crate::mask::BLIND_QUERY]);
    assert_eq!(numbers[k + 256 + 134..k + 256 + 136], [0, crate::mask::HIDDEN_KEY]);
}

pub(super) fn variant(kernel: Kernel, head: usize) -> Variant {
    let mut rules = [Rules::default(); MOST_BRANCHES];
    rules[0] = Rules::CAUSAL;
    let (numbers, branches, alone) = (Numbers::Bf16, 1, false);
    Variant { kernel, head, numbers, branches, rules, alone }
}

/// Channels of tiles.
pub(super) const HEADS: [usize; 4] = [64, 128, 192, 256];

const KERNELS: [Kernel; 5] =
    [Kernel::Forward, Kernel::Keys, Kernel::Queries, Kernel::Around, Kernel::Combine];

#[test]
fn every_kernel_fits_into_shared_memory() {
    for head in HEADS {
        for kernel in KERNELS {
            let most = Variant::most_branches(head);
            let small = Rules::BLOCKS.and(Rules::SMALL, true);
            for (branches, alone, rules) in [
                (1, false, Rules::CAUSAL),
                (most, false, Rules::CAUSAL),
                (1, true, Rules::CAUSAL),
                (1, true, small),
                (most, false, small),
            ] {
                let rules = [rules; MOST_BRANCHES];
                let variant = Variant { branches, alone, rules, ..variant(kernel, head) };
                assert!(variant.shared() <= SHARED, "{variant:?}: {}", variant.shared());
                let source = variant.source();
                for entry in variant.entries() {
                    assert!(source.contains(&format!(" {entry}(const __grid_constant__ Call")));
                }
            }
        }
    }
}

/// Three warpgroups of narrow heads, where masks leave them registers; queries of two that see other keys go apart.
#[test]
fn warpgroups_are_as_many_as_registers_allow() {
    let of = |kernel, head, rules: &[Rules]| {
        let mut variant = variant(kernel, head);
        variant.rules[0] = rules.iter().fold(Rules::CAUSAL, |sum, rule| sum.and(*rule, true));
        let apart = variant.source().contains("#define APART 1");
        (variant.threads(), variant.tile_by_queries(), apart)
    };
    let packed = [Rules::LABELS, Rules::WINDOW, Rules::SINKS];
    assert_eq!(of(Kernel::Forward, 64, &packed), (512, (192, 128), false));
    assert_eq!(of(Kernel::Forward, 64, &[Rules::POSITIONS]), (384, (128, 128), false));
    assert_eq!(of(Kernel::Forward, 128, &[]), (384, (128, 128), false));
    assert_eq!(of(Kernel::Queries, 64, &[]), (384, (128, 128), false));
    let chosen = [Rules::LIST, Rules::BLOCKS, Rules::SMALL, Rules::APART];
    assert_eq!(of(Kernel::Forward, 64, &chosen), (384, (128, 64), true));
    assert_eq!(of(Kernel::Queries, 192, &chosen), (384, (128, 64), true));
    assert_eq!(of(Kernel::Queries, 256, &chosen), (384, (128, 64), false));
    assert_eq!(of(Kernel::Keys, 128, &chosen), (384, (128, 64), false));
}

/// And what has no room is said to have none.
#[test]
fn wide_heads_have_fewer_branches() {
    assert_eq!(HEADS.map(Variant::most_branches), [3, 3, 3, 2]);
    let forward = Variant { branches: 3, ..variant(Kernel::Forward, 256) };
    assert!(forward.shared() > SHARED);
}

/// A launch's argument has what the driver takes at most.
#[test]
fn a_call_is_a_kernels_argument() {
    assert!(size_of::<Call>() <= 4 << 10);
    assert_eq!(align_of::<Call>(), 64);
}

#[test]
fn a_cubins_name_tells_all_that_it_depends_on() {
    let name = |source: &str, options: &[&str], version| cubin::key(source, options, version);
    let one = name("text", &["-a", "-b"], (13, 0));
    assert_eq!(one.len(), 32);
    assert_eq!(one, name("text", &["-a", "-b"], (13, 0)));
    for other in [
        name("texts", &["-a", "-b"], (13, 0)),
        name("text", &["-a"], (13, 0)),
        name("text", &["-a-b"], (13, 0)),
        name("text", &["-b", "-a"], (13, 0)),
        name("text-a", &["-b"], (13, 0)),
        name("text", &["-a", "-b"], (13, 1)),
        name("text", &["-a", "-b"], (12, 9)),
    ] {
        assert_ne!(one, other);
    }
    // Variants differ in their text.
    let mut names: Vec<String> = Vec::new();
    for head in HEADS {
        for kernel in KERNELS {
            for (numbers, alone) in [(Numbers::Bf16, false), (Numbers::F16, true)] {
                let variant = Variant { numbers, alone, ..variant(kernel, head) };
                names.push(name(&variant.source(), &OPTIONS, (13, 0)));
            }
        }
    }
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn cubins_are_kept_whole_or_not_at_all() {
    let scratch = Scratch::new("cubins");
    let folder = scratch.0.join("not").join("there");
    assert_eq!(cubin::kept(&folder, "a"), None);
    cubin::keep(&folder, "a", b"\x7fELF and more");
    assert_eq!(cubin::kept(&folder, "a").as_deref(), Some(&b"\x7fELF and more"[..]));
    assert_eq!(cubin::kept(&folder, "b"), None);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    std::fs::write(folder.join("a.cubin"), b"").unwrap();
    assert_eq!(cubin::kept(&folder, "a"), None);
    // A file in the folder's place: nothing is kept, and that is no error.
    let file = scratch.0.join("file");
    std::fs::write(&file, b"").unwrap();
    cubin::keep(&file, "a", b"\x7fELF");
    assert_eq!(cubin::kept(&file, "a"), None);
}

/// Also where every head has keys of its own and packing changes nothing: what a mask keeps must not keep the mask.
#[test]
fn masks_of_few_queries_are_new_ones() {
    let keys = TokenMeta::contiguous(1, 600, 0);
    let query = keys.slice(599..600).unwrap();
    let mask = Mask::new(MaskSpec::causal(), query, keys, 4).unwrap();
    for (group, kv) in [(1, 4), (2, 2)] {
        let packed = super::few::mask_of(&mask, group, kv).unwrap();
        assert!(!std::ptr::eq(mask.labels(), packed.labels()), "{group} heads per key head");
    }
}
