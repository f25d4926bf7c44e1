//! `longburn bench suite`: the rows that the page of results is made from.

use super::args::{MeasureArgs, PeerName};
use super::cases::{self, Short};
use super::job::{GenerateJob, Job, LossJob, MaskKind, ScanJob, ScanKind};
use super::measure::Case;
use super::models::{self, RandomLlama};
use super::table;
use crate::device::DeviceName;
use crate::{Globals, output};
use clap::Args;
use longburn::{Error, Result};
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

impl SuiteArgs {
    pub fn run(&self, globals: &Globals) -> Result<()> {
        let start = Instant::now();
        let device = globals.device.open()?;
        let size = if self.quick { RandomLlama::Small } else { RandomLlama::Large };
        let llama = size.save(&device)?;
        let wanted =
            |(job, _): &Case| self.only.as_ref().is_none_or(|text| job.line().contains(text));
        let all = self.cases(size, &llama, globals.device);
        let lines: Vec<String> = all.iter().map(|(job, _)| job.line()).collect();
        let cases: Vec<Case> = all.into_iter().filter(wanted).map(|c| self.asked(c)).collect();
        if cases.is_empty() {
            let expected = format!("part of one of these lines:\n{}", lines.join("\n"));
            let text = self.only.as_deref().unwrap_or_default();
            return Err(Error::config("command line", "only", text, expected));
        }
        table::run(&cases, &self.measure, globals, |done| {
            let (all, seconds) = (cases.len(), start.elapsed().as_secs_f64());
            output::note(format_args!("row {done} of {all}, {seconds:.0} s"));
        })
    }

    /// With all peers, or those of them that were asked for.
    fn asked(&self, (job, mut peers): Case) -> Case {
        let asked = &self.measure.peer;
        peers.retain(|peer| asked.is_empty() || asked.contains(peer));
        (job, peers)
    }

    fn cases(&self, size: RandomLlama, llama: &TempDir, device: DeviceName) -> Vec<Case> {
        let mut cases = Vec::new();
        let short: Short = &|long| if self.quick { long / 32 } else { long };
        attention(&mut cases, short, device);
        let products = [cases::squares(short), cases::products(short)].concat();
        cases.extend(products.into_iter().map(|job| (job, vec![PeerName::Torch])));
        let (width, vocab) = (256, 4096);
        let loss = LossJob { tokens: short(cases::STEP), width, vocab };
        cases.push((Job::LinearLoss(loss), vec![PeerName::Stock, PeerName::Torch]));
        scans(&mut cases, short);
        for mask in [MaskKind::Dense, cases::LONGLORA] {
            let job = cases::model(mask, short);
            let block = Job::Block(models::one_block(&job));
            let dense = mask == MaskKind::Dense;
            let more = if dense { vec![] } else { vec![PeerName::TorchDense, PeerName::Dense] };
            let peers = [vec![PeerName::Torch], more].concat();
            cases.push((block, peers.clone()));
            cases.push((Job::TrainStep(job), peers));
        }
        let [prompt, new] = cases::TEXT;
        let new = short(new);
        for folder in &self.model {
            let job = models::checkpoint(folder, prompt, new);
            cases.push((job, vec![PeerName::Transformers]));
        }
        let random = GenerateJob { name: size.name(), folder: llama.path().into(), prompt, new };
        cases.push((Job::Generate(random), vec![PeerName::Transformers]));
        cases.push((cases::growth(self.quick), vec![]));
        cases
    }
}

/// Small layers, and of sizes as in models of about 130 million weights, where plain Burn
/// would hold tens of gigabytes.
fn scans(cases: &mut Vec<Case>, short: Short) {
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

fn attention(cases: &mut Vec<Case>, short: Short, device: DeviceName) {
    use PeerName::{Dense, Stock, Torch, TorchFlex};
    let mut push = |job: Job, peers: &[PeerName]| {
        let peers = peers.iter().copied().filter(|peer| peer.does(&job, device)).collect();
        cases.push((job, peers));
    };
    for head_dim in cases::HEAD_DIMS {
        for len in cases::LENGTHS {
            let job = |backward| cases::attention(short(len), head_dim, MaskKind::Dense, backward);
            push(job(false), &[Torch]);
            // Plain Burn holds several matrices of scores at once.
            let stock = len <= 4096 && head_dim == 64;
            push(job(true), if stock { &[Stock, Torch] } else { &[Torch] });
        }
    }
    // Where peers would take minutes a run, or all memory.
    push(cases::attention(short(32_768), 64, MaskKind::Dense, false), &[]);
    let window = MaskKind::Window { window: short(1024), sinks: 4 };
    push(cases::attention(short(65_536), 64, window, true), &[]);
    for len in cases::SPARSE_LENGTHS {
        for job in cases::sparse(len, short) {
            push(job, &[Dense, Torch, TorchFlex]);
        }
    }
}
