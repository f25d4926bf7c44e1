//! Jobs that no machine, or not this one, could hold or count: refused before anything is made.

use super::job::{Job, MaskKind, ModelJob};
use longburn::models::ModelConfig;
use longburn::training::plan::bytes;
use longburn::{Error, Result};

/// Bytes of an f32: inputs are made of them, whatever they are cast to.
const F32: f64 = 4.0;

/// Most pairs of blocks that are looked at, one by one, before anything is measured: some seconds.
const MOST_PAIRS: f64 = (1u64 << 30) as f64;

/// Edge of the blocks that visible pairs are counted by, where a mask does not have its own.
const EDGE: usize = 64;

/// Memory that is free; where the system does not say, that of a large machine.
fn free() -> f64 {
    let said = std::fs::read_to_string("/proc/meminfo").ok();
    said.as_deref().and_then(available).unwrap_or((1u64 << 40) as f64)
}

/// Of the text of `/proc/meminfo`.
fn available(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()? * 1024.0)
}

/// # Errors
/// [`Error::Config`] with the size that makes it so.
pub fn check(job: &Job) -> Result<()> {
    fits(job, free())?;
    counts(job)
}

fn fits(job: &Job, free: f64) -> Result<()> {
    let needed = least(job);
    if needed <= free {
        return Ok(());
    }
    let (field, value) = largest(job);
    // Above this many bytes nothing is told apart any more.
    let [needed, free] = [needed, free].map(|x| bytes(x.min(u64::MAX as f64) as u64));
    let expected = format!(
        "smaller: inputs and results alone take {needed}, and {free} of memory are free on this machine"
    );
    Err(Error::config("command line", field, value, expected))
}

/// Pairs of blocks.
fn counts(job: &Job) -> Result<()> {
    let (len, batch, heads, mask) = match job {
        Job::Attention(j) => (j.len, j.batch, j.heads, j.mask),
        Job::Block(j) | Job::TrainStep(j) => (j.len, j.batch, j.heads, j.mask),
        _ => return Ok(()),
    };
    // Heads that are alike are counted once.
    let (heads, edge) = match mask {
        MaskKind::Dense | MaskKind::Window { .. } | MaskKind::Documents { .. } => (1, EDGE),
        MaskKind::Longlora { .. } => (2, EDGE),
        MaskKind::Longgen { block, stride: None, .. } => (1, block),
        MaskKind::Stride { block, .. }
        | MaskKind::Blocks { block, .. }
        | MaskKind::Longgen { block, .. } => (heads, block),
    };
    let blocks = (len as f64 / edge.max(1) as f64).ceil();
    let pairs = batch as f64 * heads as f64 * blocks * blocks;
    if pairs <= MOST_PAIRS {
        return Ok(());
    }
    let most = (MOST_PAIRS / (batch as f64 * heads as f64)).sqrt();
    let expected = |what: &str, n: f64| {
        format!(
            "{what} {n:.0}: {pairs:.0e} pairs of blocks would be looked at before anything is measured, \
             and at most {MOST_PAIRS:.0e} are"
        )
    };
    match mask {
        MaskKind::Stride { block, .. }
        | MaskKind::Blocks { block, .. }
        | MaskKind::Longgen { block, .. } => {
            let least = (len as f64 / most).ceil();
            Err(Error::config("command line", "block", block, expected("at least", least)))
        }
        _ => {
            let longest = (most * edge as f64).floor();
            Err(Error::config("command line", "len", len, expected("at most", longest)))
        }
    }
}

/// Bytes that inputs and results take at least.
fn least(job: &Job) -> f64 {
    let product = |sizes: &[usize]| sizes.iter().map(|n| *n as f64).product::<f64>();
    let passes = |backward: bool| if backward { 2.0 } else { 1.0 };
    F32 * match job {
        Job::Attention(j) => {
            let rows = product(&[j.batch, j.len, j.head_dim]);
            // q, k, v and out; their gradients.
            2.0 * passes(j.backward) * rows * (j.heads as f64 + j.kv_heads as f64)
        }
        Job::Matmul(j) => {
            product(&[j.batch])
                * (product(&[j.m, j.k]) + product(&[j.k, j.n]) + product(&[j.m, j.n]))
        }
        Job::LinearLoss(j) => 2.0 * (product(&[j.tokens, j.width]) + product(&[j.vocab, j.width])),
        Job::Scan(j) => {
            let of_token = 3.0 * j.width as f64 + 2.0 * j.states as f64;
            passes(j.backward) * product(&[j.batch, j.len]) * of_token
        }
        Job::Block(j) => model(&ModelJob { layers: 1, ..j.clone() }, 2.0),
        // Weights, gradients and two moments.
        Job::TrainStep(j) => model(j, 4.0),
        // Weights as they were drawn, and the cache.
        Job::Decode(j) => {
            let of_heads = (j.width / j.heads.max(1)) * j.kv_heads;
            model(&ModelJob { len: 0, ..j.clone() }, 1.0)
                + 2.0 * product(&[j.layers, j.batch, j.len, of_heads])
        }
        Job::Generate(j) => {
            let config = ModelConfig::from_file(&j.folder.join("config.json"));
            let of_token = config.map_or(0.0, |c| {
                2.0 * product(&[c.num_hidden_layers, c.num_key_value_heads, c.head_dim])
            });
            (j.prompt as f64 + j.new as f64) * of_token
        }
        // The model's weights and moments, and one row's activations.
        Job::Growth(j) => {
            let width = j.width as f64;
            4.0 * (2.0 * 12.0 * width * width + 1024.0 * width) + j.longest as f64 * width
        }
    }
}

/// Values of a Llama whose weights are held `times` over, with what each block keeps for its backward
/// pass: its input, queries, keys, values and what attention gives.
fn model(job: &ModelJob, times: f64) -> f64 {
    let (width, layers) = (job.width as f64, job.layers as f64);
    let weights = layers * 12.0 * width * width + 2.0 * job.vocab as f64 * width;
    times * weights + 4.0 * layers * job.batch as f64 * job.len as f64 * width
}

/// The size that a job has most of.
fn largest(job: &Job) -> (&'static str, usize) {
    job.sizes().into_iter().max_by_key(|(_, value)| *value).unwrap_or(("len", 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::cases;
    use crate::bench::job::{Layout, LossJob, MatmulJob, Numbers};

    const GIB: f64 = (1u64 << 30) as f64;

    fn refused(found: Result<()>) -> String {
        found.unwrap_err().to_string()
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_largest_size() {
        // 8 heads of 64, 4096 tokens: 8 MiB each of q, k, v and out, twice with gradients.
        let job = |backward| cases::attention(4096, 64, MaskKind::Dense, backward);
        assert_eq!((least(&job(false)), least(&job(true))), (GIB / 32.0, GIB / 16.0));
        fits(&job(true), GIB / 16.0).unwrap();
        let said = refused(fits(&job(true), GIB / 17.0));
        for part in ["`len`", "4096", "64.0 MiB", "of memory are free"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        let (layout, dtype) = (Layout::Nn, Numbers::F32);
        let product = Job::Matmul(MatmulJob { batch: 2, m: 3, k: 5, n: 7, layout, dtype });
        assert_eq!(least(&product), 4.0 * 2.0 * 71.0);
        let loss = Job::LinearLoss(LossJob { tokens: 3, width: 5, vocab: 7 });
        assert_eq!(least(&loss), 4.0 * 2.0 * 50.0);
    }

    #[test]
    fn sizes_that_overflow_are_refused_like_others() {
        let most = 1 << 24;
        let (layout, dtype) = (Layout::Nn, Numbers::F32);
        let job = Job::Matmul(MatmulJob { batch: most, m: most, k: most, n: most, layout, dtype });
        assert!(refused(check(&job)).contains("of memory are free"));
    }

    #[test]
    fn blocks_that_would_be_looked_at_for_ever_are_refused() {
        let of = |len, block| {
            let mask = MaskKind::Blocks { block, density: 0.1 };
            counts(&cases::attention(len, 64, mask, false))
        };
        of(65_536, 64).unwrap();
        let said = refused(of(1 << 20, 1));
        assert!(said.contains("`block`") && said.contains("at least 91"), "{said}");
        of(1 << 20, 91).unwrap();
        let dense = |len| counts(&cases::attention(len, 64, MaskKind::Dense, false));
        dense(1 << 20).unwrap();
        let said = refused(dense(1 << 24));
        assert!(said.contains("`len`") && said.contains("at most 2097152"), "{said}");
        dense(2_097_152).unwrap();
    }

    #[test]
    fn the_standard_cases_are_counted_and_fit_a_machine_of_8_gib() {
        let mut jobs = [cases::products(&|n| n), cases::squares(&|n| n)].concat();
        jobs.extend(cases::SPARSE_LENGTHS.iter().flat_map(|len| cases::sparse(*len, &|n| n)));
        jobs.push(Job::TrainStep(cases::model(MaskKind::Dense, &|n| n)));
        for job in jobs {
            fits(&job, 8.0 * GIB).and_then(|()| counts(&job)).unwrap();
        }
    }

    #[test]
    fn free_memory_is_the_systems_count() {
        let text = "MemTotal:  100 kB\nMemAvailable:     12 kB\n";
        assert_eq!(available(text), Some(12_288.0));
        assert_eq!(available("MemTotal: 1 kB"), None);
    }
}
