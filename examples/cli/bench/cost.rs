//! Operations and bytes of a job, counted from its shapes and the mask's visible pairs.

use super::job::{
    AttentionJob, Code, GenerateJob, Job, MaskKind, ModelJob, Numbers, ScanJob, ScanKind,
};
use longburn::Result;
use longburn::kernel::Mask;
use longburn::models::ModelConfig;

/// Bytes of an f32.
const F32: f64 = 4.0;

/// The backward pass of attention over its forward pass: five products of tiles (scores again,
/// and the gradients of v, the weights, q and k) where the forward pass has two.
const BACKWARD: f64 = 2.5;

/// What a job takes at least.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Multiplications and additions, visible pairs only.
    pub flops: f64,
    /// Every tensor that goes in or comes out, once per time that it must be read or written.
    pub bytes: f64,
    /// Visible query-key pairs over all rows and heads (of one layer, a sparse one where some are dense).
    pub pairs: Option<u64>,
    /// Those over all pairs.
    pub density: Option<f64>,
    /// Those over the pairs of the dense causal mask.
    pub causal_share: Option<f64>,
}

impl Cost {
    /// # Errors
    /// What masks refuse, and a checkpoint that cannot be read.
    pub fn of(job: &Job) -> Result<Self> {
        Ok(match job {
            Job::Attention(job) => attention(job)?,
            Job::Matmul(j) => {
                let (b, m, k, n) = (j.batch as f64, j.m as f64, j.k as f64, j.n as f64);
                Self {
                    flops: 2.0 * b * m * k * n,
                    bytes: j.dtype.bytes() as f64 * b * (m * k + k * n + m * n),
                    ..Self::default()
                }
            }
            Job::LinearLoss(j) => {
                let (n, d, v) = (j.tokens as f64, j.width as f64, j.vocab as f64);
                // Logits, and the gradients of both factors; x and W in, their gradients out.
                Self {
                    flops: 6.0 * n * d * v,
                    bytes: F32 * 2.0 * (n * d + v * d),
                    ..Self::default()
                }
            }
            Job::Scan(job) => scan(job),
            Job::Block(job) => model(&job.one_layer(), false)?,
            Job::TrainStep(job) => model(job, true)?,
            Job::Decode(job) => decode(job),
            Job::Generate(job) => generate(job)?,
            Job::Growth(_) => Self::default(),
        })
    }
}

/// The recurrence, an exponential as one operation: per token, channel and state the decay (where it
/// has one of its own), state and output; backward the gradients of these. States that are computed
/// again are not counted.
fn scan(job: &ScanJob) -> Cost {
    let (forward, backward) = match job.kind {
        ScanKind::Selective => (7.0, 14.0),
        ScanKind::Ssd => (5.0, 11.0),
    };
    let rows = (job.batch * job.len) as f64;
    let of_channels = rows * job.width as f64;
    let steps = match job.kind {
        ScanKind::Selective => of_channels,
        ScanKind::Ssd => rows * job.heads() as f64,
    };
    // u, z and y, Δ, B and C; backward the same again with the gradient of y, and all gradients.
    let inputs = 2.0 * of_channels + steps + 2.0 * rows * job.states as f64;
    let (passes, elements) = match job.backward {
        true => (forward + backward, 3.0 * inputs + 2.0 * of_channels),
        false => (forward, inputs + of_channels),
    };
    Cost {
        flops: passes * of_channels * job.states as f64,
        bytes: F32 * elements,
        ..Cost::default()
    }
}

fn attention(job: &AttentionJob) -> Result<Cost> {
    let mask = job.mask()?;
    let passes = if job.backward { 1.0 + BACKWARD } else { 1.0 };
    let rows = (job.batch * job.len * job.head_dim) as f64;
    let (of_queries, of_keys) = (rows * job.heads as f64, rows * job.kv_heads as f64);
    // q, k, v, out; backward the same again with the gradient of out, and three gradients.
    let mut elements = 2.0 * of_queries + 2.0 * of_keys;
    if job.backward {
        elements += 3.0 * of_queries + 2.0 * of_keys + of_queries + 2.0 * of_keys;
    }
    let counted = mask.pairs();
    Ok(Cost {
        flops: passes * 4.0 * counted as f64 * job.head_dim as f64,
        bytes: job.dtype.dtype().size() as f64 * elements,
        ..shares(&mask, counted)
    })
}

fn shares(mask: &Mask, pairs: u64) -> Cost {
    let rows = (mask.queries().batch() * mask.heads()) as f64;
    let len = mask.queries().len() as f64;
    Cost {
        pairs: Some(pairs),
        density: Some(pairs as f64 / (rows * len * len)),
        causal_share: Some(pairs as f64 / (rows * len * (len + 1.0) / 2.0)),
        ..Cost::default()
    }
}

/// Weights of a model that a token is multiplied by, the head apart.
fn products(config: &ModelConfig) -> f64 {
    let (width, inner) = (config.hidden_size as f64, config.intermediate_size as f64);
    let of_heads = |heads: usize| (heads * config.head_dim) as f64;
    let (q, kv) = (of_heads(config.num_attention_heads), of_heads(config.num_key_value_heads));
    config.num_hidden_layers as f64 * (width * (2.0 * q + 2.0 * kv) + 3.0 * width * inner)
}

/// Matrix products and attention; norms, rotation and the like are not counted.
fn model(job: &ModelJob, whole: bool) -> Result<Cost> {
    let config = job.config();
    let layer = AttentionJob {
        len: job.len,
        batch: job.batch,
        heads: job.heads,
        kv_heads: job.kv_heads,
        head_dim: config.head_dim,
        mask: job.mask,
        backward: true,
        dtype: job.dtype,
        code: Code::Auto,
        deterministic: false,
    };
    let of_full = match job.full_layers.is_empty() {
        true => 0.0,
        false => attention(&AttentionJob { mask: MaskKind::Dense, ..layer.clone() })?.flops,
    };
    let attention = attention(&layer)?;
    let full = job.full_layers.len() as f64;
    let of_layers = full * of_full + (job.layers as f64 - full) * attention.flops;
    let tokens = (job.batch * job.len) as f64;
    let head = (job.vocab * job.width) as f64;
    let weights = products(&config) + if whole { head } else { 0.0 };
    // Forward, and backward to inputs and to weights.
    let flops = 6.0 * tokens * weights + of_layers;
    // Weights are read forward and backward, in 16 bits after they were read once and rounded.
    let read = match job.dtype {
        Numbers::F32 => 2.0 * F32,
        narrow => F32 + 3.0 * narrow.dtype().size() as f64,
    };
    let bytes = if whole {
        // Gradients written and read; the update reads and writes weights and two moments. The embedding
        // is a table of its own.
        read * weights + F32 * (weights + head) * (2.0 + 6.0)
    } else {
        // Gradients of weights written; x, y and their gradients.
        (read + F32) * weights + F32 * 4.0 * tokens * job.width as f64
    };
    Ok(Cost { flops, bytes, ..attention })
}

/// All weights once, in the dtype of the pass, and the keys and values of the whole cache.
fn decode(job: &ModelJob) -> Cost {
    let config = job.config();
    let weights = products(&config) + (job.vocab * job.width) as f64;
    let (layers, rows) = (job.layers as f64, job.batch as f64);
    let seen = (job.len + 1) as f64;
    let of_heads = |heads: usize| (heads * config.head_dim) as f64;
    Cost {
        flops: 2.0 * rows * weights + 4.0 * layers * rows * seen * of_heads(job.heads),
        bytes: job.dtype.bytes() as f64
            * (weights + 2.0 * layers * rows * seen * of_heads(job.kv_heads)),
        ..Cost::default()
    }
}

/// The prompt in one pass, then one pass per new token, the last of which is not fed.
fn generate(job: &GenerateJob) -> Result<Cost> {
    let config = ModelConfig::from_file(&job.folder.join("config.json"))?;
    let head = (config.vocab_size * config.hidden_size) as f64;
    let weights = products(&config);
    let (prompt, new) = (job.prompt as f64, job.new as f64);
    let fed = prompt + new - 1.0;
    let pairs = fed * (fed + 1.0) / 2.0;
    let width = (config.num_attention_heads * config.head_dim) as f64;
    let of_cache = (config.num_key_value_heads * config.head_dim) as f64;
    let layers = config.num_hidden_layers as f64;
    let decoded = (prompt + 1.0 + fed) / 2.0 * (new - 1.0);
    Ok(Cost {
        flops: 2.0 * weights * fed + 2.0 * head * new + 4.0 * layers * pairs * width,
        // All weights once per pass, and the keys and values that each new token looks at.
        bytes: F32 * ((weights + head) * new + 2.0 * layers * of_cache * decoded),
        ..Cost::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::job::LossJob;
    use crate::bench::models::{RandomLlama, two_layers};
    use burn::tensor::Device;

    /// Operations and bytes.
    fn of(job: &Job) -> (f64, f64) {
        let cost = Cost::of(job).unwrap();
        (cost.flops, cost.bytes)
    }

    #[test]
    fn attention_counts_two_products_forward_and_five_backward() {
        let job = |backward| {
            Job::Attention(AttentionJob {
                len: 3,
                batch: 2,
                heads: 4,
                kv_heads: 2,
                head_dim: 8,
                mask: MaskKind::Dense,
                backward,
                dtype: Numbers::F32,
                code: Code::Auto,
                deterministic: false,
            })
        };
        // 48 pairs; q and out have 192 values each, k and v 96.
        assert_eq!(of(&job(false)), (4.0 * 48.0 * 8.0, 4.0 * 576.0));
        assert_eq!(of(&job(true)), (14.0 * 48.0 * 8.0, 4.0 * (576.0 + 768.0 + 384.0)));
    }

    #[test]
    fn a_loss_counts_three_products_and_both_factors_with_their_gradients() {
        let job = Job::LinearLoss(LossJob { tokens: 3, width: 5, vocab: 7 });
        assert_eq!(of(&job), (630.0, 400.0));
    }

    #[test]
    fn scans_count_per_channel_and_state() {
        let job = |kind, head_dim, backward| {
            Job::Scan(ScanJob { kind, batch: 2, len: 3, width: 4, head_dim, states: 5, backward })
        };
        // 120 of them; u, z and y have 24 values each, B and C 30.
        let selective = |backward| of(&job(ScanKind::Selective, 1, backward));
        assert_eq!(selective(false), (840.0, 4.0 * 156.0));
        assert_eq!(selective(true), (2520.0, 4.0 * 444.0));
        let ssd = |backward| of(&job(ScanKind::Ssd, 2, backward));
        assert_eq!(ssd(false), (600.0, 4.0 * 144.0));
        assert_eq!(ssd(true), (1920.0, 4.0 * 408.0));
    }

    #[test]
    fn a_block_and_a_step_count_weights_three_times_per_token() {
        let (len, batch, layers, width) = (4, 1, 2, 16);
        let (heads, kv_heads, vocab, mask) = (2, 2, 40, MaskKind::Dense);
        let sizes = two_layers(len, mask);
        let job = ModelJob { batch, layers, width, heads, kv_heads, vocab, ..sizes };
        // 3328 weights per layer, 640 of the head and as many of the table; 20 pairs.
        let pairs = 14.0 * 20.0 * 8.0;
        let block = (6.0 * 4.0 * 3328.0 + pairs, 4.0 * (3.0 * 3328.0 + 4.0 * 64.0));
        assert_eq!(of(&Job::Block(job.clone())), block);
        let flops = 6.0 * 4.0 * (2.0 * 3328.0 + 640.0) + 2.0 * pairs;
        assert_eq!(of(&Job::TrainStep(job)), (flops, 4.0 * (2.0 * 7296.0 + 8.0 * 7936.0)));
    }

    #[test]
    fn a_token_behind_a_cache_reads_weights_and_cache_once() {
        let (len, batch, layers, width) = (9, 3, 2, 16);
        let (heads, kv_heads, vocab, mask) = (4, 2, 40, MaskKind::Dense);
        let sizes = ModelJob { dtype: Numbers::Bf16, ..two_layers(len, mask) };
        let job = ModelJob { batch, layers, width, heads, kv_heads, vocab, ..sizes };
        // 3072 weights per layer and 640 of the head; keys and values of 10 tokens have 8 numbers each.
        let weights = 2.0 * 3072.0 + 640.0;
        let flops = 2.0 * 3.0 * weights + 4.0 * 2.0 * 3.0 * 10.0 * 16.0;
        assert_eq!(of(&Job::Decode(job)), (flops, 2.0 * (weights + 2.0 * 2.0 * 3.0 * 10.0 * 8.0)));
    }

    #[test]
    fn a_text_counts_all_weights_once_per_pass() {
        let dir = RandomLlama::Small.save(&Device::flex()).unwrap();
        let (name, folder) = ("x".into(), dir.path().into());
        let job = Job::Generate(GenerateJob { name, folder, prompt: 3, new: 2 });
        // 25 088 weights and 2048 of the head; four tokens are fed, the last one looks at four.
        let flops = 2.0 * 25_088.0 * 4.0 + 2.0 * 2048.0 * 2.0 + 4.0 * 2.0 * 10.0 * 32.0;
        assert_eq!(of(&job), (flops, 4.0 * (27_136.0 * 2.0 + 2.0 * 2.0 * 32.0 * 4.0)));
    }
}
