//! The `longburn` command, as a process.

mod absurd;
mod bad_input;
mod chat;
mod compat;
mod eval;
mod extend;
mod machine;
mod merge;
mod mixers;
mod models;
mod outputs;
mod plan;
mod resume;
mod train;
mod view;

use assert_cmd::Command;
use longburn::attention::MixerConfig;
use longburn::datasets::{BpeConfig, Tokenizer, train_bpe};
use longburn::models::{Decoder, ModelConfig, SaveOptions};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const TEXT: &str = "The river ran past the mill, and the miller counted seven sacks of flour. \
                    Every evening he walked home along the river and counted the boats. ";

/// A folder with a tiny model and its tokenizer in `model/` and four texts in `texts/`.
struct Bench {
    dir: TempDir,
    decoder: Decoder,
    tokenizer: Tokenizer,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let texts: Vec<String> = (1..5).map(|n| TEXT.repeat(n)).collect();
        std::fs::create_dir(dir.path().join("texts")).unwrap();
        for (i, text) in texts.iter().enumerate() {
            std::fs::write(dir.path().join(format!("texts/{i}.txt")), text).unwrap();
        }
        let special = vec!["<|endoftext|>".into()];
        let config = BpeConfig::new(300).with_special(special);
        let tokenizer = train_bpe(texts.iter(), &config).unwrap();
        let config =
            ModelConfig::llama(304, 16, 2, 2).with_max_positions(32).with_tied(true).with_eos([0]);
        let device = burn::tensor::Device::flex();
        let decoder = Decoder::new(&config, &MixerConfig::Dense, 3, &device).unwrap();
        let model = dir.path().join("model");
        decoder.save(&model, &SaveOptions::default()).unwrap();
        tokenizer.save(&model).unwrap();
        Self { dir, decoder, tokenizer }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    /// Run in the folder and expect success.
    fn run(&self, args: &[&str]) -> String {
        let out = longburn(self.dir.path(), args).assert().success();
        String::from_utf8(out.get_output().stdout.clone()).unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        let text = self.run(&[args, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    /// Run in the folder; what standard error says.
    fn notes(&self, args: &[&str]) -> String {
        let out = longburn(self.dir.path(), args).assert().success();
        String::from_utf8(out.get_output().stderr.clone()).unwrap()
    }

    /// Run in the folder, expect exit status 1; the message that programs get.
    fn refusal(&self, args: &[&str]) -> String {
        let out = longburn(self.dir.path(), &[args, &["--json"]].concat()).assert().code(1);
        let said: Value = serde_json::from_slice(&out.get_output().stdout).unwrap();
        said["error"]["message"].as_str().unwrap().to_string()
    }

    /// Run in the folder, expect exit status 1; what standard error says.
    fn fails(&self, args: &[&str]) -> String {
        let out = longburn(self.dir.path(), args).assert().code(1);
        String::from_utf8(out.get_output().stderr.clone()).unwrap()
    }
}

fn longburn(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longburn"));
    command.current_dir(dir).env("NO_COLOR", "1").args(args);
    // A name that is no folder is no reason to ask the Hub.
    command.env("HF_HUB_OFFLINE", "1").env("HF_HUB_CACHE", dir.join("cache"));
    command
}
