//! The standard cases: what the suite measures and what targets speak of.

use super::job::{
    AttentionJob, Code, GrowthJob, Job, Layout, MaskKind, MatmulJob, ModelJob, Numbers,
};
use super::models::two_layers;

/// Lengths of dense attention beside peers.
pub const LENGTHS: [usize; 5] = [1024, 2048, 4096, 8192, 16_384];
/// Widths of its heads.
pub const HEAD_DIMS: [usize; 2] = [64, 128];
/// Lengths of attention with gaps.
pub const SPARSE_LENGTHS: [usize; 2] = [8192, 16_384];
/// Sides of square products.
pub const SIDES: [usize; 3] = [512, 1024, 2048];
/// Tokens of a training step.
pub const STEP: usize = 4096;
/// Prompt and new tokens of a generated text.
pub const TEXT: [usize; 2] = [64, 128];
/// LongLoRA's groups in the training step.
pub const LONGLORA: MaskKind = MaskKind::Longlora { parts: 4 };

/// Makes lengths shorter, where only a look is wanted.
pub type Short<'a> = &'a dyn Fn(usize) -> usize;

/// One row, 8 heads, f32.
pub fn attention(len: usize, head_dim: usize, mask: MaskKind, backward: bool) -> Job {
    Job::Attention(AttentionJob {
        len,
        batch: 1,
        heads: 8,
        kv_heads: 8,
        head_dim,
        mask,
        backward,
        dtype: Numbers::F32,
        code: Code::Auto,
        deterministic: false,
    })
}

/// Attention with gaps of one length; forward alone, too, where that is measured.
pub fn sparse(len: usize, short: Short) -> Vec<Job> {
    let len = short(len);
    let mut jobs = Vec::new();
    let mut push = |mask, backward| jobs.push(attention(len, 64, mask, backward));
    for window in [512, 1024, 2048] {
        let mask = MaskKind::Window { window: short(window), sinks: 4 };
        push(mask, false);
        push(mask, true);
    }
    for parts in [4, 8] {
        push(MaskKind::Longlora { parts }, true);
    }
    let stride = MaskKind::Stride { block: 64, local: 8, stride: 8 };
    let blocks = [0.05, 0.1, 0.25].map(|density| MaskKind::Blocks { block: 64, density });
    for mask in [&[stride][..], &blocks].concat() {
        push(mask, false);
        push(mask, true);
    }
    jobs
}

fn product(batch: usize, [m, k, n]: [usize; 3], layout: Layout) -> Job {
    Job::Matmul(MatmulJob { batch, m, k, n, layout, dtype: Numbers::F32 })
}

pub fn squares(short: Short) -> Vec<Job> {
    SIDES.map(|side| product(1, [short(side); 3], Layout::Nn)).into()
}

/// The products of a training step of the two-layer model: per layer forward, to the inputs and to
/// the weights, the head, and the scores that attention without tiles would form.
pub fn products(short: Short) -> Vec<Job> {
    use Layout::{Nn, Nt, Tn};
    let (t, width, inner, vocab) = (short(STEP), 256, 688, 4096);
    let mut jobs: Vec<Job> = [
        ([t, width, width], Nt),
        ([t, width, inner], Nt),
        ([t, inner, width], Nt),
        ([t, width, width], Nn),
        ([t, inner, width], Nn),
        ([width, t, width], Tn),
        ([inner, t, width], Tn),
        ([t, width, vocab], Nt),
        ([vocab, t, width], Tn),
    ]
    .map(|(sizes, layout)| product(1, sizes, layout))
    .into();
    jobs.push(product(8, [short(1024), 64, short(1024)], Nt));
    jobs
}

/// The model whose training step is measured.
pub fn model(mask: MaskKind, short: Short) -> ModelJob {
    two_layers(short(STEP), mask)
}

pub fn growth(quick: bool) -> Job {
    let (steps, early, longest) = if quick { (20, 10, 32) } else { (300, 30, 512) };
    Job::Growth(GrowthJob { steps, early, longest, width: 64 })
}
