//! Sparse masks against their rules, written down once more.

use crate::*;

fn masked(spec: MaskSpec, q: &TokenMeta, k: &TokenMeta, heads: usize) -> Mask {
    Mask::new(spec, q.clone(), k.clone(), heads).unwrap()
}

/// Pairs of [`Mask::visible`], one by one.
fn counted(mask: &Mask) -> u64 {
    let (b, t, s) = (mask.queries().batch(), mask.queries().len(), mask.keys().len());
    let all = (0..b * mask.heads() * t * s)
        .map(|n| (n / (mask.heads() * t * s), n / (t * s) % mask.heads(), n / s % t, n % s));
    all.filter(|&(b, h, t, s)| mask.visible(b, h, t, s)).count() as u64
}

/// The rule of S2-Attention, with the phase counted up block by block.
#[test]
fn a_stride_keeps_near_blocks_and_one_in_so_many() {
    let tokens = TokenMeta::contiguous(1, 100, 0);
    for (heads, stride) in [
        (4, BlockStride::new(8, 2, 4, 4).with_step(1)),
        (8, BlockStride::new(16, 1, 3, 2)),
        (4, BlockStride::new(8, 3, 4, 4).with_step(1).with_offset(2).with_dense_heads(1)),
        (6, BlockStride::new(4, 2, 5, 3).with_step(0)),
        (2, BlockStride::new(7, 2, 40, 2)),
        (2, BlockStride::new(8, 1, 1, 1)),
    ] {
        let mask = masked(MaskSpec::causal().with_stride(stride), &tokens, &tokens, heads);
        let step = stride.step.unwrap_or((stride.stride / heads).max(1));
        for h in 0..heads {
            let key_head = h / (heads / stride.key_heads);
            let dense = key_head + stride.dense_heads >= stride.key_heads;
            for (t, s) in (0..100).flat_map(|t| (0..100).map(move |s| (t, s))) {
                let (m, n) = (t / stride.block, s / stride.block);
                let near = n + stride.local_blocks > m;
                let kept = (n + key_head * step + stride.offset).is_multiple_of(stride.stride);
                let want = s <= t && (near || kept || dense);
                assert_eq!(mask.visible(0, h, t, s), want, "{stride:?}: head {h}, {t} and {s}");
            }
        }
    }
}

#[test]
fn a_stride_is_the_same_in_a_cache_and_in_a_packed_row() {
    let stride = MaskSpec::causal().with_stride(BlockStride::new(8, 1, 3, 2));
    let whole = TokenMeta::contiguous(1, 80, 0);
    let alone = masked(stride.clone(), &whole, &whole, 4);
    let late = masked(stride.clone(), &whole.slice(53..80).unwrap(), &whole, 4);
    // Evicted: only keys from the 24th on are still there.
    let left = masked(stride.clone(), &whole, &whole.slice(24..80).unwrap(), 4);
    let row = TokenMeta::packed(&[vec![13, 80, 7]], 104).unwrap();
    let packed = masked(stride, &row, &row, 4);
    for (h, t, s) in (0..4 * 80 * 80).map(|n| (n / 6400, n / 80 % 80, n % 80)) {
        let want = alone.visible(0, h, t, s);
        assert_eq!(packed.visible(0, h, 13 + t, 13 + s), want, "packed, head {h}: {t}, {s}");
        if t >= 53 {
            assert_eq!(late.visible(0, h, t - 53, s), want, "in a cache, head {h}: {t}, {s}");
        }
        if s >= 24 {
            assert_eq!(left.visible(0, h, t, s - 24), want, "evicted, head {h}: {t}, {s}");
        }
    }
}

#[test]
fn pairs_are_those_counted_one_by_one() {
    let stride = |block| MaskSpec::causal().with_stride(BlockStride::new(block, 2, 3, 2));
    let window = MaskSpec::causal().with_window(Some(40)).with_sinks(3);
    let packed = TokenMeta::packed(&[vec![300, 33, 250], vec![600]], 610).unwrap();
    for spec in [MaskSpec::causal(), MaskSpec::bidirectional(), window, stride(16), stride(100)] {
        let mask = masked(spec.clone(), &packed, &packed, 2);
        assert_eq!(mask.pairs(), counted(&mask), "{spec:?}");
    }
}

/// Skipped where neither near nor kept, full where either.
#[test]
fn a_stride_visits_its_blocks_alone() {
    let tokens = TokenMeta::contiguous(1, 1024, 0);
    let stride = BlockStride::new(64, 2, 4, 4).with_step(1);
    let mask = masked(MaskSpec::causal().with_stride(stride), &tokens, &tokens, 8);
    let kept =
        |h: usize, m: usize| (0..=m).filter(|n| n + 2 > m || (n + h).is_multiple_of(4)).count();
    let want: usize = (0..4).flat_map(|h| (0..16).map(move |m| 2 * kept(h, m))).sum();
    let map = mask.blocks(64, 64);
    assert_eq!(map.visited(), want);
    assert_eq!(map.classes(), [0..2, 2..4, 4..6, 6..8]);
    for (class, q, k) in (0..4 * 256).map(|n| (n / 256, n / 16 % 16, n % 16)) {
        let partial = map.kind(0, class, q, k) == BlockKind::Partial;
        assert_eq!(partial, q == k, "class {class}, tile {q}, {k}");
    }
    // Every block of 128 holds one of two that some stride of 2 keeps: visited, in part.
    let stride = BlockStride::new(64, 1, 2, 1);
    let mask = masked(MaskSpec::causal().with_stride(stride), &tokens, &tokens, 1);
    assert_eq!(mask.blocks(128, 128).visited(), 8 * 9 / 2);
    assert_eq!(mask.blocks(128, 128).kind(0, 0, 4, 1), BlockKind::Partial);
    assert_eq!(mask.blocks(32, 32).kind(0, 0, 20, 2), BlockKind::Skip);
    assert_eq!(mask.blocks(32, 32).kind(0, 0, 20, 4), BlockKind::Full);
}

/// As many as there are, in order, for every row and class.
#[test]
fn computed_tiles_are_listed_by_queries_and_by_keys() {
    let packed = TokenMeta::packed(&[vec![300, 33, 250], vec![600]], 610).unwrap();
    let stride = MaskSpec::causal().with_stride(BlockStride::new(32, 2, 4, 4).with_step(1));
    let window = MaskSpec::causal().with_window(Some(90)).with_sinks(3);
    let list = BlockList::from_fn([2, 4, 610, 610], [50, 40], third).unwrap();
    let chosen = masked(MaskSpec::causal(), &packed, &packed, 4).with_blocks(list).unwrap();
    let of = |spec| masked(spec, &packed, &packed, 4);
    for mask in [of(MaskSpec::bidirectional()), of(window), of(stride), chosen] {
        let map = mask.blocks(64, 32);
        let (q_tiles, k_tiles) = map.tiles();
        for (b, class) in (0..2 * map.classes().len()).map(|i| (i % 2, i / 2)) {
            let computed =
                |q: &u32, k: &u32| map.kind(b, class, *q as usize, *k as usize) != BlockKind::Skip;
            for q in 0..q_tiles as u32 {
                let want: Vec<u32> = (0..k_tiles as u32).filter(|k| computed(&q, k)).collect();
                assert_eq!(map.keys_of(b, class, q as usize), want);
            }
            for k in 0..k_tiles as u32 {
                let want: Vec<u32> = (0..q_tiles as u32).filter(|q| computed(q, &k)).collect();
                assert_eq!(map.queries_of(b, class, k as usize), want);
            }
        }
    }
}

#[test]
fn strides_that_make_no_sense_are_refused() {
    let tokens = TokenMeta::contiguous(1, 20, 0);
    let go = |spec: MaskSpec| Mask::new(spec, tokens.clone(), tokens.clone(), 4);
    let causal = |stride| MaskSpec::causal().with_stride(stride);
    let good = BlockStride::new(4, 1, 2, 2);
    assert!(go(causal(good)).is_ok());
    for (spec, field) in [
        (causal(BlockStride::new(0, 1, 2, 2)), "stride.block"),
        (causal(BlockStride::new(4, 0, 2, 2)), "stride.local_blocks"),
        (causal(BlockStride::new(4, 1, 0, 2)), "stride.stride"),
        (causal(BlockStride::new(4, 1, 2, 0)), "stride.key_heads"),
        (causal(BlockStride::new(4, 1, 2, 3)), "stride.key_heads"),
        (causal(good.with_dense_heads(3)), "stride.dense_heads"),
        (MaskSpec::bidirectional().with_stride(good), "causal masks only"),
        (causal(good).with_window(Some(4)), "leave the window out"),
        (causal(good).with_anchor(true), "a shared anchor excludes"),
    ] {
        let error = go(spec).unwrap_err().to_string();
        assert!(error.contains(field), "{error}");
    }
    // What exceeds the sequence, by however much, is the same as what reaches just as far.
    let far = usize::MAX;
    let pairs = |stride| go(causal(stride)).unwrap().pairs();
    let dense = 4 * 20 * 21 / 2;
    assert_eq!(pairs(BlockStride::new(far, 1, 2, 2)), dense);
    assert_eq!(pairs(BlockStride::new(4, far, 2, 2)), dense);
    // Block 0 alone for the first key head, none for the second.
    let own = 4 * 5 * (4 * 5 / 2);
    assert_eq!(pairs(BlockStride::new(4, 1, far, 2)), own + 2 * 16 * 4);
    assert_eq!(pairs(BlockStride::new(4, 1, 5, 2).with_step(far).with_offset(far)), {
        // far is a multiple of 5: all phases are 0.
        own + 4 * 16 * 4
    });
}

/// A third of the blocks, those on the diagonal among them.
fn third(b: usize, h: usize, q: usize, k: usize) -> bool {
    q == k || (b * 7 + h * 5 + q * 3 + k * k).is_multiple_of(3)
}

#[test]
fn a_list_takes_away_from_what_the_rules_let_through() {
    let tokens = TokenMeta::packed(&[vec![50, 40], vec![97]], 100).unwrap();
    let stride = BlockStride::new(8, 2, 3, 2);
    for spec in [
        MaskSpec::causal(),
        MaskSpec::bidirectional(),
        MaskSpec::causal().with_window(Some(30)).with_sinks(2),
        MaskSpec::causal().with_stride(stride),
    ] {
        let rules = masked(spec, &tokens, &tokens, 4);
        for (q, k) in [(16, 16), (7, 33), (100, 1), (500, 500)] {
            let list = BlockList::from_fn([2, 4, 100, 100], [q, k], third).unwrap();
            let mask = rules.clone().with_blocks(list).unwrap();
            for n in 0..2 * 4 * 100 * 100 {
                let (b, h, t, s) = (n / 40_000, n / 10_000 % 4, n / 100 % 100, n % 100);
                let want = rules.visible(b, h, t, s) && third(b, h, t / q, s / k);
                assert_eq!(mask.visible(b, h, t, s), want, "{q} x {k}: {b}, {h}, {t}, {s}");
            }
            assert_eq!(mask.pairs(), counted(&mask), "{q} x {k}");
        }
    }
}

/// One from lists is the one from a function; another takes its place.
#[test]
fn lists_name_blocks_by_row_head_and_query_block() {
    let tokens = [2, 3, 130, 70];
    let chosen: Vec<Vec<usize>> = (0..2 * 3 * 9)
        .map(|n| (0..5).filter(|k| third(n / 27, n / 9 % 3, n % 9, *k)).collect())
        .collect();
    let list = BlockList::from_lists(tokens, [15, 16], &chosen).unwrap();
    assert_eq!(list.numbers(), (9, 5));
    assert_eq!(list, BlockList::from_fn(tokens, [15, 16], third).unwrap());
    let of = |len| TokenMeta::contiguous(2, len, 0);
    let rules = masked(MaskSpec::bidirectional(), &of(130), &of(70), 3);
    let none = BlockList::from_fn(tokens, [1, 70], |_, _, _, _| false).unwrap();
    let mask = rules.with_blocks(none).unwrap();
    assert_eq!((mask.pairs(), mask.blocks(64, 64).visited()), (0, 0));
    assert_ne!(mask.with_blocks(list).unwrap().pairs(), 0);
}

/// Tiles that no chosen block touches are skipped, whatever the sizes of both.
#[test]
fn a_list_visits_its_blocks_alone() {
    let tokens = TokenMeta::contiguous(2, 600, 0);
    for block in [16, 48, 64, 128, 1000] {
        let list = BlockList::from_fn([2, 3, 600, 600], [block; 2], third).unwrap();
        let mask = masked(MaskSpec::causal(), &tokens, &tokens, 3).with_blocks(list).unwrap();
        let map = mask.blocks(64, 64);
        let mut visited = 0;
        for (b, h, q) in (0..60).map(|n| (n / 30, n / 10 % 3, n % 10)) {
            let class = map.classes().iter().position(|heads| heads.contains(&h)).unwrap();
            for k in 0..10 {
                let of = |tile: usize| tile * 64..(tile * 64 + 64).min(600);
                let pairs = of(q).flat_map(|t| of(k).map(move |s| (t, s)));
                let seen = pairs.clone().filter(|(t, s)| mask.visible(b, h, *t, *s)).count();
                let want = match seen {
                    0 => BlockKind::Skip,
                    n if n == pairs.count() => BlockKind::Full,
                    _ => BlockKind::Partial,
                };
                assert_eq!(map.kind(b, class, q, k), want, "{block}: {b}, {h}, {q}, {k}");
                visited += usize::from(seen > 0);
            }
        }
        assert_eq!(map.visited(), visited, "{block}");
    }
}

#[test]
fn heads_with_the_same_list_are_of_one_class() {
    let tokens = TokenMeta::contiguous(2, 40, 0);
    let list = |of: fn(usize, usize) -> usize| {
        let seen = move |b, h, q, k| third(b, of(b, h), q, k);
        BlockList::from_fn([2, 6, 40, 40], [8, 8], seen).unwrap()
    };
    let classes = |spec: MaskSpec, list| {
        let mask = masked(spec, &tokens, &tokens, 6).with_blocks(list).unwrap();
        mask.blocks(64, 64).classes().to_vec()
    };
    let whole: Vec<_> = std::iter::once(0..6).collect();
    assert_eq!(classes(MaskSpec::causal(), list(|_, _| 0)), whole);
    assert_eq!(classes(MaskSpec::causal(), list(|_, h| h / 2)), [0..2, 2..4, 4..6]);
    // In one of the rows only.
    assert_eq!(classes(MaskSpec::causal(), list(|b, h| b * (h / 3))), [0..3, 3..6]);
    let stride = BlockStride::new(8, 1, 3, 2).with_step(1);
    assert_eq!(classes(MaskSpec::causal().with_stride(stride), list(|_, _| 0)), [0..3, 3..6]);
}

#[test]
fn lists_that_do_not_fit_are_refused() {
    let tokens = [1, 2, 100, 100];
    let text = |found: Result<BlockList, Error>| found.unwrap_err().to_string();
    let all = |_: usize, _: usize, _: usize, _: usize| true;
    assert!(text(BlockList::from_fn(tokens, [0, 16], all)).contains("at least one token"));
    assert!(text(BlockList::from_fn(tokens, [16, 0], all)).contains("at least one token"));
    let vast = BlockList::from_fn([1 << 30, 1 << 30, 1 << 30, 64], [1, 1], all);
    assert!(text(vast).contains("memory does not hold"));
    let mut lists = vec![vec![0]; 2 * 7];
    assert!(BlockList::from_lists(tokens, [16, 16], &lists).is_ok());
    lists[9] = vec![3, 7];
    let error = text(BlockList::from_lists(tokens, [16, 16], &lists));
    assert!(error.contains("blocks is 7; listed for row 0, head 1, query block 2"), "{error}");
    lists.pop();
    let error = text(BlockList::from_lists(tokens, [16, 16], &lists));
    assert!(error.contains("13 lists"), "{error}");
    let of = |batch, queries, heads| {
        let of = |len| TokenMeta::contiguous(batch, len, 0);
        masked(MaskSpec::causal(), &of(queries), &of(100), heads)
    };
    let list = || BlockList::from_fn(tokens, [16, 16], all).unwrap();
    assert!(of(1, 100, 2).with_blocks(list()).is_ok());
    for mask in [of(2, 100, 2), of(1, 99, 2), of(1, 100, 3)] {
        let error = mask.with_blocks(list()).unwrap_err().to_string();
        assert!(error.contains("[1, 2, 100, 100], the mask is for"), "{error}");
    }
    let nothing = BlockList::from_lists([1, 2, 0, 0], [16, 16], &[]).unwrap();
    assert!(of(1, 100, 2).with_blocks(nothing).is_err());
}

/// Near blocks of positions, beside the first of each document.
#[test]
fn near_blocks_and_sinks_go_by_position() {
    let (block, near, sinks) = (8, 2, 12);
    let row = TokenMeta::packed(&[vec![13, 80, 7]], 104).unwrap();
    let spec = MaskSpec::causal().with_stride(BlockStride::near(block, near, 2)).with_sinks(sinks);
    let mask = masked(spec.clone(), &row, &row, 4);
    assert_eq!(mask.blocks(8, 8).classes().len(), 1, "all heads are alike");
    for (h, t, s) in (0..4 * 104 * 104).map(|n| (n / 10_816, n / 104 % 104, n % 104)) {
        let (p, r) = (row.pos()[t] as usize, row.pos()[s] as usize);
        let same = row.segment()[t] >= 0 && row.segment()[t] == row.segment()[s];
        let want = same && r <= p && (r < sinks || p / block - r / block < near);
        assert_eq!(mask.visible(0, h, t, s), want, "head {h}: {t}, {s}");
    }
    let tokens = TokenMeta::contiguous(1, 1024, 0);
    let map = masked(spec.with_sinks(64), &tokens, &tokens, 4).blocks(64, 64);
    // The diagonal, the tile before it (with a block of 8 that is near) and the first.
    assert_eq!(map.visited(), 4 * (1 + 2 + 14 * 3));
    assert_eq!(map.kind(0, 0, 9, 0), BlockKind::Full);
    assert_eq!(map.kind(0, 0, 9, 5), BlockKind::Skip);
}

/// The rule of AnchorAttention: the same document, or the anchor.
#[test]
fn all_documents_see_the_anchor() {
    let documents = [vec![5, 1, 9, 17], vec![3, 20]];
    let tokens = TokenMeta::anchored(&documents, 33).unwrap();
    let mask = masked(MaskSpec::causal().with_anchor(true), &tokens, &tokens, 2);
    let number = |b: usize, at: usize| -> Option<usize> {
        let mut end = 1;
        let of = |n: &usize| {
            end += n;
            at < end
        };
        if at == 0 { Some(0) } else { Some(1 + documents[b].iter().position(of)?) }
    };
    for (b, t, s) in (0..2 * 33 * 33).map(|n| (n / 1089, n / 33 % 33, n % 33)) {
        let want = s <= t
            && match (number(b, t), number(b, s)) {
                (Some(q), Some(k)) => q == k || k == 0,
                _ => false,
            };
        assert_eq!(mask.visible(b, 1, t, s), want, "row {b}: {t}, {s}");
    }
    assert_eq!(mask.pairs(), counted(&mask));
    let triangle = |n: &usize| (n * (n + 1) / 2 + n) as u64;
    let of_row = |row: &Vec<usize>| 1 + row.iter().map(triangle).sum::<u64>();
    assert_eq!(mask.pairs(), 2 * documents.iter().map(of_row).sum::<u64>());
}

#[test]
fn an_anchor_costs_its_tile_and_no_more() {
    let tokens = TokenMeta::anchored(&[vec![63, 64, 64, 128, 64, 64]], 448).unwrap();
    let map = masked(MaskSpec::causal().with_anchor(true), &tokens, &tokens, 1).blocks(64, 64);
    // Seven tiles on the diagonal, one within the document of 128, and the anchor's for six.
    assert_eq!(map.visited(), 7 + 1 + 6);
    assert_eq!(map.kind(0, 0, 4, 0), BlockKind::Partial);
    assert_eq!(map.kind(0, 0, 4, 3), BlockKind::Full);
    assert_eq!(map.kind(0, 0, 0, 1), BlockKind::Skip);
}

#[test]
fn tokens_with_an_anchor_are_refused_by_rules_that_would_hide_it() {
    let tokens = TokenMeta::anchored(&[vec![5, 6]], 12).unwrap();
    let go = |spec: MaskSpec| Mask::new(spec, tokens.clone(), tokens.clone(), 2);
    let error = go(MaskSpec::causal()).unwrap_err().to_string();
    assert!(error.contains("an anchor that all documents are to see"), "{error}");
    let anchor = || MaskSpec::causal().with_anchor(true);
    assert!(go(anchor()).is_ok());
    let groups = Groups { size: GroupSize::Fixed(4), shift: false, ragged: true };
    for spec in [anchor().with_window(Some(4)), anchor().with_groups(groups)] {
        assert!(go(spec).unwrap_err().to_string().contains("a shared anchor excludes"));
    }
    assert!(TokenMeta::anchored(&[vec![5, 7]], 12).is_err());
    assert!(TokenMeta::anchored(&[vec![]], 0).is_err());
}

/// Rotary positions go where their tokens go.
#[test]
fn rotary_positions_follow_their_tokens() {
    let tokens = TokenMeta::packed(&[vec![3, 2], vec![4]], 6).unwrap();
    assert_eq!(tokens.rotary(), tokens.pos());
    let other = tokens.clone().with_rotary((0..12).collect()).unwrap();
    assert_ne!(other, tokens);
    assert_eq!(other.slice(2..4).unwrap().rotary(), [2, 3, 8, 9]);
    let joined = tokens.concat(&other.slice(0..1).unwrap()).unwrap();
    assert_eq!(joined.rotary(), [0, 1, 2, 0, 1, 0, 0, 0, 1, 2, 3, 0, 0, 6]);
    let kept = other.gather(&[vec![1, 4], vec![3]]).unwrap();
    assert_eq!(kept.pos(), [1, 1, 3, 0]);
    assert_eq!(kept.segment(), [0, 1, 0, -1]);
    assert_eq!(kept.rotary(), [1, 4, 9, 0]);
    assert!(tokens.gather(&[vec![6], vec![]]).is_err());
    assert!(tokens.gather(&[vec![0]]).is_err());
    assert!(tokens.clone().with_rotary(vec![0; 11]).is_err());
    assert!(tokens.with_rotary(vec![-1; 12]).is_err());
}

/// A map is kept with its mask, and a list makes another mask of it.
#[test]
fn maps_belong_to_one_mask() {
    let mask = Mask::causal(1, 64, 2);
    let plain = mask.blocks(16, 16);
    assert_eq!((plain.visited(), mask.blocks(16, 16).visited()), (20, 20));
    // Another size beside it, and one that is not kept.
    for tile in [8, 32, 5] {
        let tiles = 64usize.div_ceil(tile);
        assert_eq!(mask.blocks(tile, tile).tiles(), (tiles, tiles));
        assert_eq!(mask.blocks(tile, tile).visited(), tiles * (tiles + 1));
    }
    let list = BlockList::from_fn([1, 2, 64, 64], [16, 16], |_, h, q, k| h == 0 && q == k).unwrap();
    let other = mask.clone().with_blocks(list.clone()).unwrap();
    assert_eq!((other.blocks(16, 16).visited(), mask.blocks(16, 16).visited()), (4, 20));
    // Nobody else holds this one.
    let alone = Mask::causal(1, 64, 2);
    assert_eq!(alone.blocks(16, 16).visited(), 20);
    assert_eq!(alone.with_blocks(list).unwrap().blocks(16, 16).visited(), 4);
}
