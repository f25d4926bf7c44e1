//! Blockwise strides: which blocks, and how many tokens, every head sees.

use crate::Failure;
use crate::golden::Golden;
use longburn::kernel::{BlockKind, BlockStride, Mask, MaskSpec, TokenMeta};
use serde_json::Value;

pub fn check(golden: &Golden) -> Result<(), Failure> {
    let cases = golden.config()["cases"].as_array().ok_or("config.cases is no list")?;
    for case in cases {
        let number = |key: &str| {
            let value = case[key].as_u64().ok_or_else(|| format!("cases: no number {key}"));
            value.map(|x| x as usize)
        };
        let (n, len, block) = (number("n")?, number("T")?, number("block")?);
        let alike = case["homo_head"] == Value::Bool(true);
        let stride = BlockStride {
            block,
            local_blocks: number("local_blocks")?,
            stride: number("vert_stride")?,
            key_heads: number("kv_heads")?,
            step: if alike { Some(0) } else { default_or(number("step")?, case) },
            offset: number("offset")?,
            dense_heads: number("num_dense_heads")?,
        };
        let (heads, tokens) = (number("query_heads")?, TokenMeta::contiguous(1, len, 0));
        let spec = MaskSpec::causal().with_stride(stride);
        let mask = Mask::new(spec.clone(), tokens.clone(), tokens.clone(), heads)?;
        // One pattern is stored where all heads are alike.
        let shown = if alike { 1 } else { heads };
        golden.compare_integers(&format!("out.block_{n}"), &blocks(&mask, shown, block))?;
        golden.compare_integers(&format!("out.token_count_{n}"), &tokens_seen(&mask, shown))?;
        if n == 0 {
            let start = golden.number("chunk_start_of_case_0")?;
            let chunk = Mask::new(spec, tokens.slice(start..len)?, tokens, heads)?;
            golden.compare_integers("out.block_0_chunk", &blocks(&chunk, shown, block))?;
        }
    }
    Ok(())
}

/// No step where the file has what a mask takes by itself.
fn default_or(step: usize, case: &Value) -> Option<usize> {
    let (stride, heads) = (case["vert_stride"].as_u64()?, case["query_heads"].as_u64()?);
    (step as u64 != (stride / heads).max(1)).then_some(step)
}

/// 1 for every block that is computed, `[heads, query blocks, key blocks]`.
fn blocks(mask: &Mask, heads: usize, block: usize) -> Vec<i64> {
    let map = mask.blocks(block, block);
    let (rows, columns) = map.tiles();
    let mut seen = Vec::new();
    for head in 0..heads {
        let class = map.classes().iter().position(|heads| heads.contains(&head)).unwrap_or(0);
        let all = (0..rows * columns).map(|n| map.kind(0, class, n / columns, n % columns));
        seen.extend(all.map(|kind| i64::from(kind != BlockKind::Skip)));
    }
    seen
}

/// Keys that every query sees, `[heads, T]`.
fn tokens_seen(mask: &Mask, heads: usize) -> Vec<i64> {
    let len = mask.queries().len();
    let seen = |n| (0..len).filter(|s| mask.visible(0, n / len, n % len, *s)).count() as i64;
    (0..heads * len).map(seen).collect()
}
