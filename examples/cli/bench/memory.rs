//! Most memory that a run takes beyond its inputs: in a process of its own, so that nothing else
//! is counted. On the CPU by the system's count, so that every allocation of every library is; on a
//! card by what the allocator of all tensors holds.

use super::job::Job;
use super::work::{Side, work};
use crate::device::DeviceName;
use crate::{Globals, output};
use burn::tensor::Device;
use clap::{Args, ValueEnum};
use longburn::training::plan::Resident;
use longburn::{Error, Result};
use serde_json::{Value, json};
use std::process::Command;

/// The C library gives back at once what is freed, so that inputs in the making do not hide
/// what the work takes later.
pub const ALLOCATOR: [(&str, &str); 2] =
    [("MALLOC_MMAP_THRESHOLD_", "65536"), ("MALLOC_TRIM_THRESHOLD_", "0")];

/// The process that measures one side.
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn bench side --job '{}'")]
pub struct SideArgs {
    /// What to run, JSON
    #[arg(long)]
    job: String,
    #[arg(long, default_value = "longburn")]
    side: Side,
}

impl SideArgs {
    pub fn run(&self, globals: &Globals) -> Result<()> {
        let job: Job = serde_json::from_str(&self.job)
            .map_err(|e| Error::config("command line", "job", &self.job, e.to_string()))?;
        if let Job::Growth(job) = &job {
            return output::json(&super::growth::child(job, globals)?);
        }
        let device = globals.device.open()?;
        work(&job.tiny(), self.side, &device)?.run(1)?;
        let mut work = work(&job, self.side, &device)?;
        if let Job::TrainStep(_) = &job {
            // The model is made on the way to the first step, which also makes the moments.
            work.run(1)?;
        }
        let mut run = || work.run(1).map(drop);
        let peak = match globals.device {
            DeviceName::Flex => most(run)?,
            DeviceName::Wgpu(_) | DeviceName::Cuda(_) => most_on_card(&device, &mut run)?,
        };
        output::json(&json!({ "peak_bytes": peak }))
    }
}

/// Most that `run` takes beyond what there was; none where the system does not say.
fn most(run: impl FnOnce() -> Result<()>) -> Result<Option<u64>> {
    let reset = Resident::reset_peak();
    let before = Resident::read();
    run()?;
    let after = Resident::read();
    let (Some(before), Some(after)) = (before, after) else { return Ok(None) };
    // Without a reset the peak may be older than the run, unless it has risen since.
    let known = reset || after.peak > before.peak;
    Ok(known.then(|| after.peak.saturating_sub(before.now)))
}

/// Most that the allocator of a card takes from it in `run`, beyond what tensors held before; none
/// where a device does not say. Pages that are not full count as a whole.
fn most_on_card(device: &Device, run: &mut impl FnMut() -> Result<()>) -> Result<Option<u64>> {
    // What is compiled and tuned on the way takes memory of its own, which is given back.
    run()?;
    device.memory_cleanup();
    let before = device.memory_pool_usage();
    run()?;
    // No page is given back in between: the sizes that decide so are those of the first run.
    let after = device.memory_pool_usage();
    Ok(before
        .zip(after)
        .map(|(before, after)| after.bytes_reserved.saturating_sub(before.bytes_in_use)))
}

/// Run this program again for one side, and what it says.
///
/// # Errors
/// What the other process says, and [`Error::Io`] where it cannot be started.
pub fn other_process(job: &Job, side: Side, globals: &Globals) -> Result<Value> {
    let program = std::env::current_exe().map_err(|e| Error::io("this program", e))?;
    let text = serde_json::to_string(job).unwrap_or_default();
    let name = side.to_possible_value();
    let side = name.as_ref().map_or("longburn", |name| name.get_name());
    let mut command = Command::new(&program);
    command
        .args(["bench", "side", "--json", "--side", side, "--job", &text])
        .args(["--device", &globals.device.to_string()])
        .args(["--threads", &rayon::current_num_threads().to_string()]);
    if job.has_memory() {
        command.envs(ALLOCATOR);
    }
    let out = command.output().map_err(|e| Error::io(&program, e))?;
    let said: Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
    if out.status.success() {
        return Ok(said);
    }
    let reason = said["error"]["message"].as_str().unwrap_or("it was killed");
    Err(Error::Unsupported {
        what: format!(
            "{}, {}, by {side} in a process of its own: {reason}",
            job.what(),
            job.shape()
        ),
        // What grows is measured in no other way.
        remedy: match job.has_memory() {
            true => "a smaller case, or --no-memory".into(),
            false => "a smaller case".into(),
        },
    })
}

/// The peak that [`SideArgs`] finds.
///
/// # Errors
/// As [`other_process`].
pub fn peak(job: &Job, side: Side, globals: &Globals) -> Result<Option<u64>> {
    Ok(other_process(job, side, globals)?["peak_bytes"].as_u64())
}
