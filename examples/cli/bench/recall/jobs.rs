//! Cells at the same time, each in a process of its own on one thread.

use super::RecallArgs;
use super::cell::Key;
use crate::Globals;
use longburn::{Error, Result};
use serde_json::Value;
use std::collections::VecDeque;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// Compute cells, `jobs` at a time; `done` is called after each. The first failure lets those that run
/// end, and no other one begin.
///
/// # Errors
/// What a process says, and [`Error::Io`] where one cannot be started.
pub fn run(
    keys: &[Key],
    jobs: usize,
    args: &RecallArgs,
    globals: &Globals,
    done: &(dyn Fn(Key) -> Result<()> + Sync),
) -> Result<()> {
    let queue = Mutex::new(keys.iter().copied().collect::<VecDeque<Key>>());
    let failed = Mutex::new(None);
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let fail = |error: Error| {
        queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(keys.len()) {
            scope.spawn(|| {
                while let Some(key) = next() {
                    if let Err(error) = child(key, args, globals).and_then(|()| done(key)) {
                        fail(error);
                    }
                }
            });
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// This program again, for one cell.
fn child(key: Key, args: &RecallArgs, globals: &Globals) -> Result<()> {
    let program = std::env::current_exe().map_err(|e| Error::io("this program", e))?;
    let mut command = Command::new(&program);
    command
        .args(["bench", "recall", "--json", "--threads", "1"])
        .args(["--device", &globals.device.to_string()])
        .args(["--task", key.task.name(), "--mixer", key.mixer.name()])
        .args(["--seed", &key.seed.to_string()])
        .arg("--out")
        .arg(&args.out)
        .stdin(Stdio::null());
    if let Some(steps) = args.steps {
        command.args(["--steps", &steps.to_string()]);
    }
    if let Some(settings) = &args.settings {
        command.arg("--settings").arg(settings);
    }
    let out = command.output().map_err(|e| Error::io(&program, e))?;
    if out.status.success() {
        return Ok(());
    }
    let said: Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
    let reason = said["error"]["message"].as_str().unwrap_or("it was killed");
    Err(Error::Unsupported {
        what: format!("{key}, in a process of its own: {reason}"),
        remedy: "run the command again, which goes on with the cells that are not done".into(),
    })
}
