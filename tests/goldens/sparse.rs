//! LongGen's patterns and AnchorAttention as layers, and the packing of rows with anchors.

use crate::Failure;
use crate::golden::Golden;
use crate::layer::{context, gradients, projections, shape};
use crate::model::values;
use burn::tensor::{Device, Int, Tensor, TensorData};
use longburn::attention::{AnchorConfig, DenseConfig, LongGenConfig, SequenceMixer};
use longburn::datasets::{AnchorEngine, AnchorPacking, PackConfig, TokenBatch, TokenDocument};
use longburn::kernel::{Mask, MaskSpec, TokenMeta};
use longburn::positional::{Positions, RopeConfig};
use longburn::streams::Streams;
use serde_json::Value;
use std::collections::BTreeMap;

/// Gradients by name, added up over several passes.
type Grads = BTreeMap<String, Vec<f32>>;

fn add(sum: &mut Grads, name: &str, grad: Vec<f32>) {
    match sum.get_mut(name) {
        Some(sum) => sum.iter_mut().zip(grad).for_each(|(sum, x)| *sum += x),
        None => drop(sum.insert(name.into(), grad)),
    }
}

/// Runs `mixer` on `x`, compares the output, and adds the gradients up; those of the input are
/// called `input`.
fn pass<M: SequenceMixer>(
    golden: &Golden,
    name: &str,
    mixer: M,
    tokens: &TokenMeta,
    (leaf, x): (Tensor<3>, Tensor<3>),
    sum: &mut Grads,
    input: &str,
) -> Result<(), Failure> {
    let theta = golden.config()["rope_theta"].as_f64().ok_or("config.rope_theta")?;
    let rope = RopeConfig::new(theta, golden.number("D")?).init()?;
    let rope = rope.table(&Positions::of(tokens), &Device::flex());
    let mixer = mixer.train();
    let y = mixer.forward(x, &context(tokens, Some(&rope), &[]), None)?.y;
    golden.compare(&format!("out.{name}"), &values(y.clone()))?;
    let cot = golden.floats(&format!("cot.{name}"))?;
    let cot = Tensor::<3>::from_data(TensorData::new(cot, y.dims()), &Device::flex());
    let mut grads = (y * cot).sum().backward();
    let grad = leaf.grad_remove(&mut grads).ok_or("no gradient of the input")?;
    add(sum, input, values(grad));
    for (name, grad) in gradients(&mixer, grads)? {
        add(sum, &name, grad);
    }
    Ok(())
}

pub fn longgen(golden: &Golden) -> Result<(), Failure> {
    let size: [usize; 3] = golden.shape("in.hidden")?.try_into()?;
    let number = |of: &Value, key: &str| -> Result<usize, Failure> {
        Ok(of[key].as_u64().ok_or_else(|| format!("no number {key}"))? as usize)
    };
    let (strided, sink) = (&golden.config()["strided"], &golden.config()["window_sink"]);
    let block = LongGenConfig::new().with_block(golden.number("block")?);
    let patterns = [
        (
            "strided",
            block
                .clone()
                .with_local_blocks(number(strided, "local_blocks")?)
                .with_stride(number(strided, "vert_stride")?)
                .with_step(number(strided, "step")?)
                .with_offset(number(strided, "offset")?)
                .with_dense_heads(number(strided, "num_dense_heads")?),
        ),
        (
            "window_sink",
            block
                .with_local_blocks(number(sink, "local_blocks")?)
                .with_sink_blocks(number(sink, "sink_blocks")?),
        ),
    ];
    let sizes = shape(golden, size[2])?;
    let mut sum = Grads::new();
    for (name, config) in patterns {
        let proj = projections(&sizes, |path| golden.floats(&format!("in.{path}")))?;
        let hidden = TensorData::new(golden.floats("in.hidden")?, size);
        let x = Tensor::<3>::from_data(hidden, &Device::flex()).autodiff().require_grad();
        let tokens = TokenMeta::contiguous(size[0], size[1], 0);
        let mixer = config.init(proj, None)?;
        pass(golden, name, mixer, &tokens, (x.clone(), x), &mut sum, "hidden")?;
    }
    compare_all(golden, sum)
}

fn compare_all(golden: &Golden, sum: Grads) -> Result<(), Failure> {
    sum.iter().try_for_each(|(name, grad)| golden.compare(&format!("grad.{name}"), grad))
}

pub fn anchor(golden: &Golden) -> Result<(), Failure> {
    let [rows, hidden]: [usize; 2] = golden.shape("in.embedding")?.try_into()?;
    let window = golden.number("window")?;
    let positions = |engine: &str| -> Result<Vec<i32>, Failure> {
        let positions = golden.integers(&format!("in.{engine}.positions"))?;
        Ok(positions.into_iter().map(|p| p as i32).collect())
    };
    let flash: Vec<i32> =
        golden.integers("in.flash.doc_id")?.into_iter().map(|id| id as i32).collect();
    let local = |t: usize| flash[..t].iter().rev().take_while(|id| **id == flash[t]).count() as i32;
    let flash = TokenMeta::new(1, window, (0..window).map(local).collect(), flash.clone())?
        .with_rotary(positions("flash")?)?;
    // A document begins where a token does not see the one before it, which is not the anchor.
    let mask = golden.integers("in.flex.mask")?;
    let mut lengths: Vec<usize> = Vec::new();
    for t in 1..window {
        match lengths.last_mut() {
            Some(len) if mask[t * window + t - 1] == 1 => *len += 1,
            _ => lengths.push(1),
        }
    }
    let flex = TokenMeta::anchored(&[lengths], window)?.with_rotary(positions("flex")?)?;
    golden.compare_integers("in.flex.mask", &seen(AnchorConfig.spec(), &flex)?)?;

    let sizes = shape(golden, hidden)?;
    let mut sum = Grads::new();
    for (name, tokens) in [("flex", flex), ("flash", flash)] {
        let proj = projections(&sizes, |path| golden.floats(&format!("in.{path}")))?;
        let embedding = TensorData::new(golden.floats("in.embedding")?, [1, rows, hidden]);
        let leaf = Tensor::<3>::from_data(embedding, &Device::flex()).autodiff().require_grad();
        let ids = golden.integers(&format!("in.{name}.input_ids"))?;
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [window]), &Device::flex());
        let x = (leaf.clone(), leaf.select(1, ids));
        match name {
            "flex" => {
                let mixer = AnchorConfig::new().init(proj, None)?;
                pass(golden, name, mixer, &tokens, x, &mut sum, "embedding")?;
            }
            _ => {
                let mixer = DenseConfig::new().init(proj);
                pass(golden, name, mixer, &tokens, x, &mut sum, "embedding")?;
            }
        }
    }
    compare_all(golden, sum)
}

/// Visible pairs of head 0, `[B, T, T]`.
fn seen(spec: MaskSpec, tokens: &TokenMeta) -> Result<Vec<i64>, Failure> {
    let (rows, len) = (tokens.batch(), tokens.len());
    let mask = Mask::new(spec, tokens.clone(), tokens.clone(), 1)?;
    let all = (0..rows * len * len).map(|n| (n / len / len, n / len % len, n % len));
    Ok(all.map(|(b, t, s)| i64::from(mask.visible(b, 0, t, s))).collect())
}

pub fn packing(golden: &Golden) -> Result<(), Failure> {
    let window = golden.number("window")?;
    let min_len = golden.number("min_doc_len")?;
    let id = golden.number("anchor_id")? as u32;
    for (name, engine) in [("flex", AnchorEngine::Shared), ("flash", AnchorEngine::PerDocument)] {
        let anchor = AnchorPacking::new(id).with_engine(engine).with_min_len(min_len);
        let rows = rows(golden)?.into_iter().map(|documents| {
            let config = PackConfig::new(window).with_anchor(anchor.clone()).with_epochs(Some(1));
            let mut source = config.init(documents, 1, Streams::new(0))?;
            source.next_batch()?.ok_or_else(|| "no row".into())
        });
        let rows: Vec<TokenBatch> = rows.collect::<Result<_, Failure>>()?;
        let all = |of: &dyn Fn(&TokenBatch) -> Vec<i64>| -> Vec<i64> {
            rows.iter().flat_map(of).collect()
        };
        let wide = |x: &[i32]| x.iter().map(|x| i64::from(*x)).collect::<Vec<_>>();
        let compare =
            |of: &str, got: Vec<i64>| golden.compare_integers(&format!("out.{name}.{of}"), &got);
        compare("input_ids", all(&|row| row.ids.iter().map(|id| i64::from(*id)).collect()))?;
        compare("rope_positions", all(&|row| wide(row.tokens.rotary())))?;
        compare("local_positions", all(&|row| wide(row.tokens.pos())))?;
        compare("doc_id", all(&|row| documents(row)))?;
        let ends = |row: &TokenBatch| -> Vec<i64> {
            let of = documents(row);
            (1..=window).filter(|t| of.get(*t) != of.get(t - 1)).map(|t| t as i64).collect()
        };
        compare("ends", all(&ends))?;
        compare("ends_count", all(&|row| vec![ends(row).len() as i64]))?;
        if engine == AnchorEngine::Shared {
            let mut shared = Vec::new();
            let mut alone = Vec::new();
            for row in &rows {
                shared.extend(seen(AnchorConfig.spec(), &row.tokens)?);
                let segment = documents(row).into_iter().map(|id| id as i32).collect();
                let tokens = TokenMeta::new(1, window, row.tokens.pos().to_vec(), segment)?;
                alone.extend(seen(MaskSpec::causal(), &tokens)?);
            }
            compare("anchor_mask", shared)?;
            compare("intra_doc_mask", alone)?;
        }
    }
    Ok(())
}

/// Document of every token; a shared anchor is document 0.
fn documents(row: &TokenBatch) -> Vec<i64> {
    let shared = i64::from(row.tokens.has_anchor());
    let number = |s: &i32| if *s == TokenMeta::ANCHOR { 0 } else { i64::from(*s) + shared };
    row.tokens.segment().iter().map(number).collect()
}

/// The documents of every row.
fn rows(golden: &Golden) -> Result<Vec<Vec<TokenDocument>>, Failure> {
    let (tokens, ends) = (golden.ids("in.tokens")?, golden.integers("in.doc_ends")?);
    let (mut tokens, mut ends) = (tokens.as_slice(), ends.into_iter());
    let counts = golden.integers("in.doc_ends_count")?;
    let mut rows = Vec::new();
    for (length, count) in golden.integers("in.row_lengths")?.into_iter().zip(counts) {
        let (row, rest) = tokens.split_at_checked(length as usize).ok_or("too few tokens")?;
        tokens = rest;
        let mut start = 0;
        let mut documents = Vec::new();
        for end in ends.by_ref().take(count as usize) {
            let ids = row.get(start..end as usize).ok_or("a document behind its row")?.to_vec();
            let id = format!("{}.{start}", rows.len());
            documents.push(TokenDocument { id, ids: ids.into() });
            start = end as usize;
        }
        rows.push(documents);
    }
    Ok(rows)
}
