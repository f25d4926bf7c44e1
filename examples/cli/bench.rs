//! `longburn bench`

mod args;
mod cases;
mod ceiling;
mod compare;
mod cost;
mod growth;
mod inputs;
mod job;
mod machine;
mod masks;
mod measure;
mod memory;
mod models;
mod page;
mod probe;
mod profile;
mod recall;
mod room;
mod row;
mod suite;
mod table;
mod torch;
mod verbs;
mod work;

use crate::Globals;
use clap::Subcommand;
use longburn::Result;

/// Measure speed and memory, in turn with other programs
///
/// Longburn and every peer do the same with the same inputs, one after the other in one run; before
/// that their results are compared, and a difference beyond rounding ends the run. Times are medians.
/// Each row tells operations, bytes, the machine's measured ceiling and the share of it that was
/// reached; a ratio above 1 says that Longburn is faster.
#[derive(Subcommand)]
#[command(after_help = "\
Examples:
  longburn bench attention --len 4096 --backward --peer stock
  longburn bench suite --out results.json --python python3")]
pub enum BenchVerb {
    Attention(verbs::AttentionArgs),
    Matmul(verbs::MatmulArgs),
    LinearLoss(verbs::LossArgs),
    Scan(verbs::ScanArgs),
    Block(models::BlockArgs),
    TrainStep(models::TrainStepArgs),
    Decode(models::DecodeArgs),
    Generate(models::GenerateArgs),
    Growth(models::GrowthArgs),
    Suite(suite::SuiteArgs),
    Compare(compare::CompareArgs),
    Page(page::PageArgs),
    Recall(recall::RecallArgs),
    RecallPage(recall::RecallPageArgs),
    #[command(hide = true)]
    Side(memory::SideArgs),
}

impl BenchVerb {
    pub fn run(&self, globals: &Globals) -> Result<()> {
        match self {
            Self::Attention(args) => args.run(globals),
            Self::Matmul(args) => args.run(globals),
            Self::LinearLoss(args) => args.run(globals),
            Self::Scan(args) => args.run(globals),
            Self::Block(args) => args.run(globals),
            Self::TrainStep(args) => args.run(globals),
            Self::Decode(args) => args.run(globals),
            Self::Generate(args) => args.run(globals),
            Self::Growth(args) => args.run(globals),
            Self::Suite(args) => args.run(globals),
            Self::Compare(args) => args.run(globals),
            Self::Page(args) => args.run(globals),
            Self::Recall(args) => args.run(globals),
            Self::RecallPage(args) => args.run(globals),
            Self::Side(args) => args.run(globals),
        }
    }
}
