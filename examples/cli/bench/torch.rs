//! A peer written in Python: a child process that is told, line by line, what to do.

use super::job::Job;
use super::probe::Probe;
use longburn::{Error, Result};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use tempfile::TempDir;

macro_rules! program {
    ($($file:literal),+) => {
        [$(($file, include_str!(concat!("../../../benches/peers/torch_peer/", $file)))),+]
    };
}

/// The program, a folder that can be run by hand, too.
const PROGRAM: [(&str, &str); 8] = program!(
    "__main__.py",
    "attention.py",
    "generation.py",
    "inputs.py",
    "layers.py",
    "llama.py",
    "masks.py",
    "scans.py"
);

/// How long a peer may take to end, once it has been told to.
const GRACE: Duration = Duration::from_secs(2);

/// How to start the peer.
#[derive(Clone, Debug)]
pub struct Torch {
    pub python: PathBuf,
    pub threads: usize,
    /// As PyTorch names it.
    pub device: String,
    /// Longest time for any answer.
    pub timeout: Duration,
}

/// A running peer.
pub struct TorchPeer {
    /// The program.
    _folder: TempDir,
    child: Child,
    input: Option<ChildStdin>,
    /// Lines that it has said; an error is the last.
    output: Receiver<std::io::Result<String>>,
    python: PathBuf,
    timeout: Duration,
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
        peer.take_up(&self.order(job, code, folder, false))?;
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

    /// Start a peer that has nothing to do, if Python has these libraries beside torch.
    ///
    /// # Errors
    /// As [`start`](Torch::start).
    pub fn idle(&self, libraries: &[&str]) -> Result<TorchPeer> {
        let mut peer = self.spawn(false)?;
        peer.ask(&json!({ "import": libraries }))?;
        Ok(peer)
    }

    /// Give `peer` another job, as [`start`](Torch::start) does to a new one.
    ///
    /// # Errors
    /// As there.
    pub fn again(
        &self,
        peer: &mut TorchPeer,
        job: &Job,
        code: &str,
        folder: Option<&Path>,
    ) -> Result<()> {
        peer.take_up(&self.order(job, code, folder, false))
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
        let folder = written()?;
        let mut command = Command::new(&self.python);
        command.arg(folder.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        if memory {
            command.envs(super::memory::ALLOCATOR);
        }
        let mut child = command.spawn().map_err(|e| self.missing(&e.to_string()))?;
        let pipes = (child.stdin.take(), child.stdout.take());
        let (Some(input), Some(output)) = pipes else {
            return Err(self.missing("its standard input and output are not there"));
        };
        // Read by a thread of its own: a read cannot be given up.
        let (say, said) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                if say.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(TorchPeer {
            _folder: folder,
            child,
            input: Some(input),
            output: said,
            python: self.python.clone(),
            timeout: self.timeout,
            version: String::new(),
            probe: Probe::new(),
        })
    }

    fn missing(&self, reason: &str) -> Error {
        unusable(&self.python, reason)
    }
}

/// The program, for as long as it runs.
fn written() -> Result<TempDir> {
    let failed = |e| Error::io(std::env::temp_dir(), e);
    let folder = tempfile::tempdir().map_err(failed)?;
    for (name, text) in PROGRAM {
        std::fs::write(folder.path().join(name), text).map_err(failed)?;
    }
    Ok(folder)
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

    fn take_up(&mut self, order: &Value) -> Result<()> {
        let ready = self.ask(order)?;
        self.version = ready["version"].as_str().unwrap_or("unknown").to_string();
        self.probe = serde_json::from_value(ready["probe"].clone())
            .map_err(|e| self.broken(&format!("results in no form that is known: {e}")))?;
        Ok(())
    }

    fn ask(&mut self, order: &Value) -> Result<Value> {
        let sent = self
            .input
            .as_mut()
            .map(|input| writeln!(input, "{order}").and_then(|()| input.flush()));
        // One that has ended may have said why.
        let line = match self.output.recv_timeout(self.timeout) {
            Ok(Ok(line)) => line,
            Ok(Err(e)) => return Err(self.broken(&e.to_string())),
            Err(RecvTimeoutError::Timeout) => return Err(self.late()),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(match sent {
                    Some(Err(e)) => self.broken(&format!("it ended without an answer ({e})")),
                    _ => self.broken("it ended without an answer"),
                });
            }
        };
        let said: Value = serde_json::from_str(&line).map_err(|e| self.broken(&e.to_string()))?;
        match said["error"].as_str() {
            Some(error) => Err(self.broken(error)),
            None => Ok(said),
        }
    }

    /// Nothing more is expected of it.
    fn late(&mut self) -> Error {
        let _ = self.child.kill();
        Error::Unsupported {
            what: format!(
                "a peer in Python by {}: no answer within {} s",
                self.python.display(),
                self.timeout.as_secs_f64()
            ),
            remedy: "measure a smaller case, or give more time with --peer-timeout".into(),
        }
    }

    fn broken(&self, reason: &str) -> Error {
        unusable(&self.python, reason)
    }
}

impl Drop for TorchPeer {
    fn drop(&mut self) {
        // The script ends with its input; one that does not is ended.
        drop(self.input.take());
        let start = Instant::now();
        while start.elapsed() < GRACE {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
                _ => return,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::bench::cases;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    /// A process that starts while a program is written holds it open, and it cannot run.
    static ALONE: Mutex<()> = Mutex::new(());

    type Held = (MutexGuard<'static, ()>, TempDir);

    /// A program in place of Python.
    fn stand_in(script: &str, timeout: Duration) -> (Held, Torch) {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        let python = dir.path().join("python");
        std::fs::write(&python, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
        ((alone, dir), Torch { python, threads: 1, device: "cpu".into(), timeout })
    }

    fn start(torch: &Torch) -> Result<TorchPeer> {
        torch.start(&cases::squares(&|_| 8)[0], "sdpa", None)
    }

    const READY: &str = r#"echo '{"version": "x", "probe": [], "seconds": 0.5}'"#;

    #[test]
    fn its_time_is_what_it_says() {
        let script = format!("while read line; do {READY}; done");
        let (_held, torch) = stand_in(&script, Duration::from_secs(60));
        let mut peer = start(&torch).unwrap();
        assert_eq!(peer.version, "x");
        assert_eq!((peer.run(1).unwrap(), peer.run(7).unwrap()), (0.5, 0.5));
        let mut peer = torch.idle(&["numpy"]).unwrap();
        torch.again(&mut peer, &cases::squares(&|_| 8)[0], "sdpa", None).unwrap();
        assert_eq!(peer.version, "x");
        assert_eq!(peer.run(1).unwrap(), 0.5);
    }

    #[test]
    fn one_that_says_nothing_is_given_up() {
        // Neither listens to the end of its input.
        for script in ["sleep 100".to_string(), format!("read line; {READY}; exec sleep 100")] {
            let (_held, torch) =
                stand_in(&format!("exec 2>&-; {script}"), Duration::from_millis(300));
            let began = Instant::now();
            let error = match start(&torch) {
                Ok(mut peer) => peer.run(1).unwrap_err(),
                Err(error) => error,
            };
            let said = error.to_string();
            assert!(said.contains("no answer within 0.3 s"), "{said}");
            assert!(said.contains("--peer-timeout"), "{said}");
            assert!(began.elapsed() < Duration::from_secs(30));
        }
    }

    #[test]
    fn one_that_does_not_end_is_ended() {
        let script = format!("read line; {READY}; exec sleep 100");
        let (_held, torch) = stand_in(&script, Duration::from_secs(60));
        let peer = start(&torch).unwrap();
        let process = format!("/proc/{}", peer.child.id());
        let began = Instant::now();
        drop(peer);
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        assert!(!Path::new(&process).exists());
    }

    #[test]
    fn one_that_dies_is_told() {
        let (_held, torch) = stand_in("exit 3", Duration::from_secs(60));
        let said = start(&torch).err().unwrap().to_string();
        assert!(said.contains("it ended without an answer"), "{said}");
    }
}
