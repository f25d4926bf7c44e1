//! A peer written in Python: a child process that is told, line by line, what to do.

use super::job::Job;
use super::probe::Probe;
use longburn::{Error, Result};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// The script, which can be run by hand, too.
const SCRIPT: &str = include_str!("../../../benches/peers/torch_cpu.py");

/// How to start the peer.
#[derive(Clone, Debug)]
pub struct Torch {
    pub python: PathBuf,
    pub threads: usize,
    /// As PyTorch names it.
    pub device: String,
}

/// A running peer.
pub struct TorchPeer {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    python: PathBuf,
    /// Of the library that computes.
    pub version: String,
    pub probe: Probe,
}

impl Torch {
    /// Start a peer that holds the inputs of `job` and has run once. `folder` has the weights.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where Python, or what the script needs, is not there.
    pub fn start(&self, job: &Job, code: &str, folder: Option<&Path>) -> Result<TorchPeer> {
        let mut peer = self.spawn(false)?;
        let ready = peer.ask(&self.order(job, code, folder, false))?;
        peer.version = ready["version"].as_str().unwrap_or("unknown").to_string();
        peer.probe = serde_json::from_value(ready["probe"].clone())
            .map_err(|e| peer.broken(&format!("results in no form that is known: {e}")))?;
        Ok(peer)
    }

    /// Most memory of one run beyond its inputs, in a process of its own.
    ///
    /// # Errors
    /// As [`start`](Torch::start).
    pub fn memory(&self, job: &Job, code: &str, folder: Option<&Path>) -> Result<Option<u64>> {
        let mut peer = self.spawn(true)?;
        let said = peer.ask(&self.order(job, code, folder, true))?;
        Ok(said["peak_bytes"].as_u64())
    }

    fn order(&self, job: &Job, code: &str, folder: Option<&Path>, memory: bool) -> Value {
        json!({
            "job": job,
            "tiny": memory.then(|| job.tiny()),
            "code": code,
            "threads": self.threads,
            "device": self.device,
            "folder": folder,
        })
    }

    fn spawn(&self, memory: bool) -> Result<TorchPeer> {
        let mut command = Command::new(&self.python);
        command.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped());
        if memory {
            command.envs(super::memory::ALLOCATOR);
        }
        let mut child = command.spawn().map_err(|e| self.missing(&e.to_string()))?;
        let pipes = (child.stdin.take(), child.stdout.take());
        let (Some(input), Some(output)) = pipes else {
            return Err(self.missing("its standard input and output are not there"));
        };
        Ok(TorchPeer {
            child,
            input: Some(input),
            output: BufReader::new(output),
            python: self.python.clone(),
            version: String::new(),
            probe: Probe::new(),
        })
    }

    fn missing(&self, reason: &str) -> Error {
        unusable(&self.python, reason)
    }
}

fn unusable(python: &Path, reason: &str) -> Error {
    Error::Unsupported {
        what: format!("a peer in Python by {}: {reason}", python.display()),
        remedy: "name a Python that has torch, safetensors and transformers with --python".into(),
    }
}

impl TorchPeer {
    /// Seconds per run, over so many runs.
    ///
    /// # Errors
    /// When the process has died.
    pub fn run(&mut self, times: usize) -> Result<f64> {
        let said = self.ask(&json!({ "run": times }))?;
        said["seconds"].as_f64().ok_or_else(|| self.broken("no time"))
    }

    fn ask(&mut self, order: &Value) -> Result<Value> {
        let mut line = String::new();
        let sent = self.input.as_mut().map(|input| {
            writeln!(input, "{order}").and_then(|()| input.flush())?;
            self.output.read_line(&mut line)
        });
        match sent {
            Some(Ok(bytes)) if bytes > 0 => {}
            Some(Err(e)) => return Err(self.broken(&e.to_string())),
            _ => return Err(self.broken("it ended without an answer")),
        }
        let said: Value = serde_json::from_str(&line).map_err(|e| self.broken(&e.to_string()))?;
        match said["error"].as_str() {
            Some(error) => Err(self.broken(error)),
            None => Ok(said),
        }
    }

    fn broken(&self, reason: &str) -> Error {
        unusable(&self.python, reason)
    }
}

impl Drop for TorchPeer {
    fn drop(&mut self) {
        // The script ends with its input.
        drop(self.input.take());
        let _ = self.child.wait();
    }
}
