//! A corpus of broken inputs, `tests/fixtures/broken` (written by the script there): nothing
//! panics, and every message names the file, the field and what to do.

use crate::tiny;
use burn::tensor::Device;
use longburn::datasets::source::{DocumentSource, JsonlSourceConfig};
use longburn::datasets::{
    BpeConfig, ChatRows, ChatTemplate, Message, Tokenizer, encode_conversations, train_bpe,
};
use longburn::models::lora::{self, LoraConfig};
use longburn::models::weights::WeightFiles;
use longburn::models::{ModelConfig, peft};
use longburn::training::Recipe;
use longburn::{Error, Result};
use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

const SHARD: &str = "model-00001-of-00002.safetensors";

/// A chat template that wants user and assistant in turns.
const IN_TURNS: &str = "{% for m in messages %}\
    {% if m.role not in ['user', 'assistant'] %}\
    {{ raise_exception('the role ' ~ m.role ~ ' is not known') }}\
    {% elif (m.role == 'user') != (loop.index0 % 2 == 0) %}\
    {{ raise_exception('user and assistant speak in turns') }}{% endif %}\
    <{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";

/// Of which one is in every message that says what to do; parsers have other words.
const REMEDIES: [&str; 2] = ["(remedy: ", "; expected "];

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/broken")
}

/// File (relative to the corpus) -> words that its message holds.
fn expected() -> BTreeMap<String, Vec<String>> {
    serde_json::from_str(&fs::read_to_string(corpus().join("expected.json")).unwrap()).unwrap()
}

fn outcome<T>(done: Result<T>) -> Result<()> {
    done.map(drop)
}

/// Read the file as what it claims to be; the name that the message must hold, and the outcome.
fn feed(kind: &str, file: &Path, scratch: &Path) -> (String, Result<()>) {
    let name = file.file_name().unwrap().to_string_lossy().into_owned();
    let put = |as_name: &str| {
        fs::copy(file, scratch.join(as_name)).unwrap();
        as_name.to_string()
    };
    match kind {
        "configs" => (name, outcome(ModelConfig::from_file(file))),
        "weights" => (name, outcome(WeightFiles::open_file(file))),
        "recipes" => (name, outcome(Recipe::from_file(file))),
        "tokenizers" => (name, outcome(Tokenizer::from_file(file))),
        "jsonl" => {
            let read = JsonlSourceConfig::new(file).init().and_then(|mut s| s.read_all());
            (name, outcome(read))
        }
        "indexes" => {
            // One good shard with the tensor `a`.
            let header = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend_from_slice(header);
            bytes.extend_from_slice(&[0; 4]);
            fs::write(scratch.join(SHARD), bytes).unwrap();
            (put("model.safetensors.index.json"), outcome(WeightFiles::open(scratch)))
        }
        "adapters" => {
            let base = || tiny::model(&tiny::llama(false), &Device::flex());
            let good = lora::apply(base(), &LoraConfig::new().with_rank(2)).unwrap();
            peft::save_adapter(&good, scratch, "base").unwrap();
            put("adapter_config.json");
            // What is wrong shows in the configuration or in the weights beside it.
            ("adapter_".into(), outcome(peft::load_adapter(base(), scratch)))
        }
        "manifests" => {
            fs::write(scratch.join("data"), "abc").unwrap();
            (put("manifest.json"), command(&["inspect", "--verify"], scratch))
        }
        "generation" => {
            fs::write(scratch.join("ids.json"), "[1]").unwrap();
            let ids = scratch.join("ids.json").display().to_string();
            (put("generation_config.json"), command(&["generate", "--ids", &ids], scratch))
        }
        "templates" => {
            let jinja = name.ends_with(".jinja");
            let name = put(if jinja { "chat_template.jinja" } else { "tokenizer_config.json" });
            let turn = |role: &str| Message::new(role, "Hello");
            let turns = ["user", "assistant", "user", "assistant"].map(turn);
            let template = ChatTemplate::load(scratch, None);
            (name, outcome(template.and_then(|template| template.render_spans(&turns))))
        }
        "chat_rows" => {
            let tokenizer = train_bpe(["user assistant"].iter(), &BpeConfig::new(260)).unwrap();
            let template = ChatTemplate::new(IN_TURNS, "template").unwrap();
            let rows = ChatRows::new().read(file);
            let encode =
                |(rows, _): (Vec<_>, _)| encode_conversations(&rows, &template, &tokenizer, 64);
            (name, outcome(rows.and_then(encode)))
        }
        "messages" => {
            let template = ChatTemplate::new(IN_TURNS, &name).unwrap();
            let read = Message::parse_list(&fs::read_to_string(file).unwrap(), &name);
            (name, outcome(read.and_then(|messages| template.render(&messages, true))))
        }
        other => panic!("no way to feed {other}"),
    }
}

/// What the command says of the folder, in which a good checkpoint is put beside what is there.
fn command(args: &[&str], dir: &Path) -> Result<()> {
    let tiny = tiny::model(&tiny::llama(false), &Device::flex());
    tiny.save(dir, &Default::default()).unwrap();
    let out = assert_cmd::Command::new(env!("CARGO_BIN_EXE_longburn"))
        .args(args)
        .arg("--json")
        .arg(dir)
        .output()
        .unwrap();
    match out.status.code() {
        Some(0) => Ok(()),
        Some(1) => {
            let said: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
            Err(Error::Data(said["error"]["message"].as_str().unwrap().into()))
        }
        other => panic!("{other:?}: {}", String::from_utf8_lossy(&out.stderr)),
    }
}

#[test]
fn every_broken_input_gets_a_message_that_helps() {
    let expected = expected();
    assert!(expected.len() >= 60, "{} files", expected.len());
    let mut faults = Vec::new();
    for (name, words) in &expected {
        let (kind, _) = name.split_once('/').unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let fed = || feed(kind, &corpus().join(name), scratch.path());
        let (file, outcome) = match catch_unwind(AssertUnwindSafe(fed)) {
            Ok(fed) => fed,
            Err(_) => {
                faults.push(format!("{name}: panics"));
                continue;
            }
        };
        let Err(error) = outcome else {
            faults.push(format!("{name}: is accepted"));
            continue;
        };
        let message = error.to_string();
        let lacks = |word: &str| !message.contains(word);
        let mut lacking: Vec<&str> =
            words.iter().map(String::as_str).filter(|w| lacks(w)).collect();
        // A shard is as good a name as its index.
        if lacks(&file) && !(kind == "indexes" && message.contains("model-0000")) {
            lacking.push("the name of the file");
        }
        if REMEDIES.iter().all(|word| lacks(word)) {
            lacking.push("a remedy");
        }
        if message.len() > 2000 {
            lacking.push("brevity");
        }
        if !lacking.is_empty() {
            faults.push(format!("{name}: lacks {lacking:?}: {message}"));
        }
    }
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn the_corpus_is_what_its_list_says() {
    let listed: Vec<String> = expected().into_keys().collect();
    let mut found: Vec<String> = walkdir::WalkDir::new(corpus())
        .min_depth(2)
        .into_iter()
        .map(|entry| entry.unwrap().into_path())
        .map(|path| path.strip_prefix(corpus()).unwrap().to_string_lossy().replace('\\', "/"))
        .collect();
    found.sort();
    assert_eq!(found, listed, "run make_broken.py");
}
