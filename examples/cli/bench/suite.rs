//! `longburn bench suite`: the rows that the page of results is made from.

use super::args::{MeasureArgs, PeerName};
use super::job::{
    AttentionJob, Code, GenerateJob, GrowthJob, Job, Layout, LossJob, MaskKind, MatmulJob, Numbers,
    ScanJob, ScanKind,
};
use super::measure::Bench;
use super::models::{self, RandomLlama, two_layers};
use super::row::Results;
use super::table;
use crate::{Globals, output};
use clap::Args;
use longburn::Result;
use std::path::PathBuf;
use std::time::Instant;
use tempfile::TempDir;

/// Measure the standard list of cases
///
/// The rows behind the page of results, with every peer that does them; about an hour on two cores.
/// The file is written anew after every row.
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn bench suite --out results.json --python python3 --model MODEL
  longburn bench suite --quick --peer stock")]
pub struct SuiteArgs {
    /// Short rows only, to see that everything works
    #[arg(long)]
    quick: bool,
    /// A checkpoint to generate with, beside random ones; may be given several times
    #[arg(long, value_name = "DIR")]
    model: Vec<PathBuf>,
    /// Measure only rows whose line contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    #[command(flatten)]
    measure: MeasureArgs,
}

/// A job and who takes part.
type Case = (Job, Vec<PeerName>);

impl SuiteArgs {
    pub fn run(&self, globals: &Globals) -> Result<()> {
        let start = Instant::now();
        let device = globals.device.open()?;
        let size = if self.quick { RandomLlama::Small } else { RandomLlama::Large };
        let llama = size.save(&device)?;
        let wanted = |(job, _): &Case| {
            let line = format!("{}, {}, {}", job.what(), job.case(), job.shape());
            self.only.as_ref().is_none_or(|text| line.contains(text))
        };
        let cases: Vec<Case> = self.cases(size, &llama).into_iter().filter(wanted).collect();
        let mut results = Results::default();
        // The ceiling is measured once; what peers there are is said row by row.
        let all = MeasureArgs { peer: self.peers(&cases), ..self.measure.clone() };
        let bench = Bench::new(&all, globals)?;
        for (i, (job, peers)) in cases.iter().enumerate() {
            let taking_part: Vec<PeerName> =
                peers.iter().copied().filter(|p| all.peer.contains(p)).collect();
            let row = bench.row_with(job, &taking_part)?;
            if !globals.json {
                output::print(&table::text(&row))?;
            }
            output::note(format_args!(
                "row {} of {}, {:.0} s",
                i + 1,
                cases.len(),
                start.elapsed().as_secs_f64()
            ));
            results.rows.push(row);
            if let Some(out) = &self.measure.out {
                results.write(out)?;
            }
        }
        if globals.json { output::json(&output::value(&results)) } else { Ok(()) }
    }

    /// Those of all cases, or those of them that were asked for.
    fn peers(&self, cases: &[Case]) -> Vec<PeerName> {
        let mut all: Vec<PeerName> = Vec::new();
        for peer in cases.iter().flat_map(|(_, peers)| peers) {
            let asked = self.measure.peer.is_empty() || self.measure.peer.contains(peer);
            if asked && !all.contains(peer) {
                all.push(*peer);
            }
        }
        all
    }

    fn cases(&self, size: RandomLlama, llama: &TempDir) -> Vec<Case> {
        let mut cases = Vec::new();
        let short = |long: usize| if self.quick { long / 32 } else { long };
        attention(&mut cases, short);
        matmul(&mut cases, short);
        let (width, vocab) = (256, 4096);
        let loss = LossJob { tokens: short(4096), width, vocab };
        cases.push((Job::LinearLoss(loss), vec![PeerName::Stock, PeerName::Torch]));
        scans(&mut cases, short);
        let longlora = MaskKind::Longlora { parts: 4 };
        for mask in [MaskKind::Dense, longlora] {
            let job = two_layers(short(4096), mask);
            let block = Job::Block(models::one_block(&job));
            let dense = mask == MaskKind::Dense;
            let more = if dense { vec![] } else { vec![PeerName::TorchDense, PeerName::Dense] };
            let peers = [vec![PeerName::Torch], more].concat();
            cases.push((block, peers.clone()));
            cases.push((Job::TrainStep(job), peers));
        }
        let (prompt, new) = (64, short(128));
        for folder in &self.model {
            let job = models::checkpoint(folder, prompt, new);
            cases.push((job, vec![PeerName::Transformers]));
        }
        let random = GenerateJob { name: size.name(), folder: llama.path().into(), prompt, new };
        cases.push((Job::Generate(random), vec![PeerName::Transformers]));
        let (steps, early) = if self.quick { (20, 10) } else { (300, 30) };
        let growth = GrowthJob { steps, early, longest: short(512).max(32), width: 64 };
        cases.push((Job::Growth(growth), vec![]));
        cases
    }
}

/// Small layers, and of sizes as in models of about 130 million weights, where plain Burn
/// would hold tens of gigabytes.
fn scans(cases: &mut Vec<Case>, short: impl Fn(usize) -> usize) {
    use PeerName::{Stock, Torch};
    let (batch, len, backward) = (1, short(4096), true);
    for (kind, width, head_dim, states, peers) in [
        (ScanKind::Selective, 256, 1, 16, vec![Stock, Torch]),
        (ScanKind::Selective, 1536, 1, 16, vec![]),
        (ScanKind::Ssd, 512, 64, 64, vec![Stock, Torch]),
        (ScanKind::Ssd, 1536, 64, 128, vec![Torch]),
    ] {
        let job = ScanJob { kind, batch, len, width, head_dim, states, backward };
        cases.push((Job::Scan(job), peers));
    }
}

fn attention(cases: &mut Vec<Case>, short: impl Fn(usize) -> usize) {
    use PeerName::{Dense, Stock, Torch, TorchFlex};
    let mut push = |len: usize, head_dim, mask, backward, peers: &[PeerName]| {
        let (batch, heads) = (1, 8);
        let len = short(len);
        let job = Job::Attention(AttentionJob {
            len,
            batch,
            heads,
            kv_heads: heads,
            head_dim,
            mask,
            backward,
            dtype: Numbers::F32,
            code: Code::Auto,
            deterministic: false,
        });
        let peers = peers.iter().copied().filter(|peer| peer.does(&job)).collect();
        cases.push((job, peers));
    };
    for head_dim in [64, 128] {
        for len in [1024, 2048, 4096, 8192, 16_384] {
            push(len, head_dim, MaskKind::Dense, false, &[Torch]);
            // Plain Burn holds several matrices of scores at once.
            let both = len <= 4096 && head_dim == 64;
            let peers: &[PeerName] = if both { &[Stock, Torch] } else { &[Torch] };
            push(len, head_dim, MaskKind::Dense, true, peers);
        }
    }
    // Where peers would take minutes a run, or all memory.
    push(32_768, 64, MaskKind::Dense, false, &[]);
    push(65_536, 64, MaskKind::Window { window: short(1024), sinks: 4 }, true, &[]);
    for len in [8192, 16_384] {
        for mask in [
            MaskKind::Window { window: short(512), sinks: 4 },
            MaskKind::Window { window: short(1024), sinks: 4 },
            MaskKind::Window { window: short(2048), sinks: 4 },
        ] {
            push(len, 64, mask, false, &[Dense, Torch, TorchFlex]);
            push(len, 64, mask, true, &[Dense, Torch]);
        }
        for parts in [4, 8] {
            push(len, 64, MaskKind::Longlora { parts }, true, &[Dense, Torch]);
        }
        let stride = MaskKind::Stride { block: 64, local: 8, stride: 8 };
        let blocks = [0.05, 0.1, 0.25].map(|density| MaskKind::Blocks { block: 64, density });
        for mask in [&[stride][..], &blocks].concat() {
            for backward in [false, true] {
                push(len, 64, mask, backward, &[Dense, Torch]);
            }
        }
    }
}

/// Squares, and the products of a training step of the two-layer model: per layer forward, to the
/// inputs and to the weights, the head, and the scores that attention without tiles would form.
fn matmul(cases: &mut Vec<Case>, short: impl Fn(usize) -> usize) {
    use Layout::{Nn, Nt, Tn};
    let mut push = |batch, m: usize, k: usize, n: usize, layout| {
        let job = MatmulJob { batch, m, k, n, layout, dtype: Numbers::F32 };
        cases.push((Job::Matmul(job), vec![PeerName::Torch]));
    };
    for side in [512, 1024, 2048] {
        push(1, short(side), short(side), short(side), Nn);
    }
    let (t, width, inner, vocab) = (short(4096), 256, 688, 4096);
    for (m, k, n, layout) in [
        (t, width, width, Nt),
        (t, width, inner, Nt),
        (t, inner, width, Nt),
        (t, width, width, Nn),
        (t, inner, width, Nn),
        (width, t, width, Tn),
        (inner, t, width, Tn),
        (t, width, vocab, Nt),
        (vocab, t, width, Tn),
    ] {
        push(1, m, k, n, layout);
    }
    push(8, short(1024), 64, short(1024), Nt);
}
