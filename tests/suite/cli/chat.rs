//! Conversations: training on them, and answering in them.

use super::Bench;
use longburn::datasets::{ChatRows, ChatTemplate, Message, encode_conversations};
use longburn::models::{GenerateConfig, generate};
use serde_json::{Value, json};

const TEMPLATE: &str = "{% for m in messages %}{{ m.role[0] }}: {{ m.content }}<|endoftext|>\
                        {% endfor %}{% if add_generation_prompt %}a: {% endif %}";

/// A bench whose model has a chat template, and 12 questions with answers.
fn bench() -> Bench {
    let bench = Bench::new();
    let path = bench.path("model/tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["chat_template"] = TEMPLATE.into();
    std::fs::write(&path, config.to_string()).unwrap();
    let rows: Vec<String> = (0..12)
        .map(|i| json!({"question": format!("river {i}"), "answer": "seven"}).to_string())
        .collect();
    bench.write("qa.jsonl", &rows.join("\n"));
    bench
}

fn expected(bench: &Bench, messages: &[Message], tokens: usize) -> (Vec<u32>, usize) {
    let template = ChatTemplate::new(TEMPLATE, "t").unwrap().with_tokenizer(&bench.tokenizer);
    let text = template.render(messages, true).unwrap();
    let prompt = bench.tokenizer.encode(&text, false).unwrap();
    let settings = GenerateConfig::new().with_max_new_tokens(tokens);
    (generate(&bench.decoder, &prompt, &settings, |_| {}).unwrap().ids, prompt.len())
}

#[test]
fn chat_answers_through_the_template() {
    let bench = bench();
    let common = ["generate", "model", "--max-new-tokens", "9", "--ignore-eos", "--chat"];
    let with = |args: &[&str]| bench.json(&[&common[..], args].concat());
    let user = Message::new("user", "How many?");
    let (ids, prompt) = expected(&bench, std::slice::from_ref(&user), 9);
    let answer = with(&["--user", "How many?"]);
    assert_eq!((&answer["ids"], &answer["prompt_tokens"]), (&json!(ids), &json!(prompt)));

    let (ids, _) = expected(&bench, &[Message::new("system", "Count."), user], 9);
    let answer = with(&["--user", "How many?", "--system", "Count."]);
    assert_eq!(answer["ids"], json!(ids));
    bench.write(
        "talk.json",
        r#"[{"role": "system", "content": "Count."},
                                 {"role": "user", "content": "How many?"}]"#,
    );
    assert_eq!(with(&["talk.json"])["ids"], json!(ids));
    bench.write(
        "talk.json",
        r#"{"messages": [{"role": "system", "content": "Count."},
                                 {"role": "user", "content": "How many?"}]}"#,
    );
    assert_eq!(with(&["talk.json"])["ids"], json!(ids));

    // Only the new text is printed.
    let out = bench.run(&[&common[..], &["talk.json"]].concat());
    let text = bench.tokenizer.decode(&ids, true).unwrap();
    assert!(!out.contains("Count.") && out.trim_end().ends_with(text.trim()), "{out:?} {text:?}");

    bench.write("other.jinja", "{{ messages[0].content }}!");
    let answer = with(&["--user", "How many?", "--template", "other.jinja"]);
    let prompt = bench.tokenizer.encode("How many?!", false).unwrap();
    assert_eq!(answer["prompt_tokens"], prompt.len());
}

#[test]
fn chat_says_what_is_missing() {
    let bench = bench();
    let fails = |args: &[&str]| bench.fails(&[&["generate", "model", "--chat"], args].concat());
    assert!(fails(&[]).contains("--user"));
    bench.write("talk.json", r#"[{"role": "user"}]"#);
    assert!(fails(&["talk.json", "--user", "x"]).contains("--user"));
    let message = fails(&["talk.json"]);
    assert!(message.contains("talk.json") && message.contains("messages[0].content"), "{message}");
    let message = fails(&["--user", "x", "--template", "absent"]);
    assert!(message.contains("`absent`") && message.contains("default"), "{message}");
    bench.write("bad.jinja", "{{ messages[");
    let message = fails(&["--user", "x", "--template", "bad.jinja"]);
    assert!(message.contains("bad.jinja, line 1"), "{message}");
    bench.write(
        "endless.jinja",
        "{% for a in range(9999) %}{% for b in range(9999) %}\
                                  {% endfor %}{% endfor %}",
    );
    let args =
        ["generate", "model", "--chat", "--user", "x", "--template", "endless.jinja", "--json"];
    let out = super::longburn(bench.dir.path(), &args).assert().code(1);
    let error: Value = serde_json::from_slice(&out.get_output().stdout).unwrap();
    assert_eq!(error["error"]["kind"], "template");
    std::fs::write(bench.path("model/tokenizer_config.json"), "{}").unwrap();
    assert!(fails(&["--user", "x"]).contains("has no chat template"));
}

#[test]
fn texts_end_at_stop_strings_and_ids() {
    let bench = Bench::new();
    let common = ["generate", "model", "--prompt", "The river", "--max-new-tokens", "24"];
    let free = bench.json(&[&common[..], &["--ignore-eos"]].concat());
    let text = free["text"].as_str().unwrap();
    // A string from the middle of the text, of several tokens.
    let chars: Vec<(usize, char)> = text.char_indices().collect();
    let (from, to) = (chars[chars.len() / 2].0, chars[chars.len() / 2 + 5].0);
    let stop = &text[from..to];
    let first = text.find(stop).unwrap();
    let args = [&common[..], &["--ignore-eos", "--stop", "no such", "--stop", stop]].concat();
    let stopped = bench.json(&args);
    assert_eq!(stopped["text"], text[..first]);
    assert_eq!((&stopped["finish"], &stopped["stopped"]), (&json!("caller"), &json!(true)));
    assert!(stopped["new_tokens"].as_u64() < free["new_tokens"].as_u64());
    assert_eq!(bench.run(&args), format!("{}\n", &text[..first]));

    let ids: Vec<u64> =
        free["ids"].as_array().unwrap().iter().map(|i| i.as_u64().unwrap()).collect();
    let id = ids[3];
    let at = ids.iter().position(|other| *other == id).unwrap();
    let by_id =
        bench.json(&[&common[..], &["--ignore-eos", "--stop-id", &id.to_string()]].concat());
    assert_eq!(
        (by_id["ids"].as_array().unwrap().len(), &by_id["finish"]),
        (at + 1, &json!("stop_id"))
    );
    // The id that ends a text has none itself.
    let before: Vec<u32> = ids[..at].iter().map(|id| *id as u32).collect();
    let mut whole = bench.tokenizer.encode("The river", true).unwrap();
    whole.extend(before);
    let whole = bench.tokenizer.decode(&whole, true).unwrap();
    assert_eq!(format!("The river{}", by_id["text"].as_str().unwrap()), whole);
    // What generation_config.json calls the end is one.
    bench.write("model/generation_config.json", &format!(r#"{{"eos_token_id": [0, {id}]}}"#));
    assert_eq!(bench.json(&common)["ids"], by_id["ids"]);
    bench.write("model/generation_config.json", r#"{"eos_token_id": "x"}"#);
    let message = bench.fails(&common);
    assert!(message.contains("generation_config.json") && message.contains("eos_token_id"));
    std::fs::remove_file(bench.path("model/generation_config.json")).unwrap();
    assert!(bench.fails(&[&common[..], &["--stop-id", "304"]].concat()).contains("stop-id"));
    assert!(bench.fails(&[&common[..], &["--stop", ""]].concat()).contains("stop string"));
    assert!(bench.fails(&[&common[..], &["--top-p", "0"]].concat()).contains("top_p"));
}

#[test]
fn many_prompts_are_answered_as_each_alone() {
    let bench = Bench::new();
    let prompts = ["The river ran past", "Every", "seven sacks of flour. Every evening he"];
    let common = ["--max-new-tokens", "7", "--ignore-eos"];
    let alone: Vec<Value> = prompts
        .iter()
        .map(|p| bench.json(&[&["generate", "model", "--prompt", p], &common[..]].concat()))
        .collect();
    bench.write("many.txt", &format!("{}\n\n{}\r\n{}\n", prompts[0], prompts[1], prompts[2]));
    let rows: Vec<String> = prompts.iter().map(|p| json!({ "prompt": p }).to_string()).collect();
    bench.write("many.jsonl", &rows.join("\n"));
    for (file, batch) in [("many.txt", "8"), ("many.txt", "2"), ("many.jsonl", "1")] {
        let args = ["generate", "model", "--prompts", file, "--batch", batch];
        let all = bench.json(&[&args[..], &common].concat());
        let results = all["results"].as_array().unwrap();
        assert_eq!(results.len(), 3);
        for ((result, alone), prompt) in results.iter().zip(&alone).zip(prompts) {
            assert_eq!(result["prompt"], prompt);
            assert_eq!((&result["ids"], &result["text"]), (&alone["ids"], &alone["text"]));
        }
    }
    let text = bench.run(&[&["generate", "model", "--prompts", "many.txt"], &common[..]].concat());
    let first = format!("[1] {}{}", prompts[0], alone[0]["text"].as_str().unwrap());
    assert!(text.starts_with(&first), "{text}");

    bench.write("none.txt", "\n \n");
    assert!(bench.fails(&["generate", "model", "--prompts", "none.txt"]).contains("no prompt"));
    bench.write("bad.jsonl", r#"{"text": "x"}"#);
    let message = bench.fails(&["generate", "model", "--prompts", "bad.jsonl"]);
    assert!(message.contains("bad.jsonl:1") && message.contains("`prompt`"), "{message}");
    let zero = ["generate", "model", "--prompts", "many.txt", "--batch", "0"];
    assert!(bench.fails(&zero).contains("batch"));
}

const TUNE: &str = r#"
[model]
path = "model"
[data]
kind = "chat"
train = "qa.jsonl"
split = 4
[data.chat]
question = "question"
answer = "answer"
system = "Go."
[train]
steps = 8
length = 32
batch = 2
lr = 1e-2
[eval]
[output]
dir = "run"
"#;

#[test]
fn a_recipe_trains_on_conversations() {
    let bench = bench();
    bench.write("run.toml", TUNE);
    let summary = bench.json(&["train", "run.toml"]);
    assert!(summary["last_loss"].as_f64() < summary["first_loss"].as_f64(), "{summary}");
    assert_eq!(summary["data"]["kept"]["documents"], 9);
    assert_eq!(summary["held_out"]["kept"]["documents"], 3);
    // The checkpoint's template goes along, and answers.
    let chat = ["--chat", "--user", "river 3", "--max-new-tokens", "3"];
    bench.run(&[&["generate", "run/model"], &chat[..]].concat());

    // One in the recipe goes before it, and is written beside the adapter.
    let own = TUNE.replace(
        "system = ",
        "template = \"\"\"{% for m in messages %}<{{ m.role[0] }}>\
                            {{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>\
                            {% endif %}\"\"\"\nsystem = ",
    );
    bench.write("own.toml", &own.replace("[output]", "[lora]\nrank = 2\n[output]"));
    let summary = bench.json(&["train", "own.toml", "--out", "own"]);
    assert_eq!(summary["data"]["kept"]["documents"], 9);
    let written = std::fs::read_to_string(bench.path("own/adapter/chat_template.jinja")).unwrap();
    assert!(written.starts_with("{% for m in messages %}<{{ m.role[0] }}>"), "{written}");
}

/// Held-out conversations are scored on the assistant's tokens, those that training learns.
#[test]
fn evaluation_scores_what_the_assistant_says() {
    let bench = bench();
    let rows = |from: usize, to: usize| -> String {
        let answer = |i: usize| "seven ".repeat(1 + i % 3);
        let row = |i| json!({"question": format!("river {i}"), "answer": answer(i)}).to_string();
        (from..to).map(row).collect::<Vec<_>>().join("\n")
    };
    bench.write("qa.jsonl", &rows(0, 9));
    bench.write("more.jsonl", &rows(9, 14));
    let data = "train = \"qa.jsonl\"\nheld_out = \"more.jsonl\"";
    let recipe = TUNE.replace("train = \"qa.jsonl\"\nsplit = 4", data);
    bench.write("run.toml", &recipe.replace("steps = 8", "steps = 1"));
    let before = bench.json(&["train", "run.toml"])["before"].clone();

    let rows = ChatRows::new().with_pair("question", "answer").with_system("Go.");
    let (talks, _) = rows.read(&bench.path("more.jsonl")).unwrap();
    let template = ChatTemplate::new(TEMPLATE, "t").unwrap().with_tokenizer(&bench.tokenizer);
    let (all, _) = encode_conversations(&talks, &template, &bench.tokenizer, 32).unwrap();
    assert_eq!(all.len(), 5);
    let (mut sum, mut count, mut others) = (0.0, 0, 0);
    for tokens in &all {
        let ids = tokens.document.ids.to_vec();
        assert!(ids.len() <= 32, "one window each");
        let logits = crate::tiny::logits(&bench.decoder, &ids);
        let rows = logits.chunks(logits.len() / ids.len());
        for (row, (next, counts)) in rows.zip(ids[1..].iter().zip(&tokens.targets[1..])) {
            if !counts {
                others += 1;
                continue;
            }
            let all: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
            sum += all.ln() - f64::from(row[*next as usize]);
            count += 1;
        }
    }
    assert!(others > 0);
    assert_eq!(before["tokens"], count);
    let (got, expected) = (before["mean_nll"].as_f64().unwrap(), sum / f64::from(count));
    assert!((got / expected - 1.0).abs() < 1e-5, "{got} {expected}");

    // Cut before anything is answered, there is nothing to measure.
    bench.write("run.toml", &recipe.replace("[eval]", "[eval]\ntokens = 4"));
    let message = bench.fails(&["train", "run.toml", "--out", "cut"]);
    assert!(message.contains("no held-out document"), "{message}");
}

/// The same rows compressed, or in Parquet, are the same run.
#[test]
fn conversations_come_compressed_and_in_parquet() {
    let bench = bench();
    bench.write("run.toml", &TUNE.replace("[eval]\n", ""));
    let plain = bench.json(&["train", "run.toml", "--out", "plain"]);
    let text = std::fs::read(bench.path("qa.jsonl")).unwrap();
    let packed = zstd::encode_all(&text[..], 0).unwrap();
    std::fs::write(bench.path("qa.jsonl.zst"), packed).unwrap();
    let rows: Vec<Value> = String::from_utf8(text)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let column = |name: &str| -> Vec<String> {
        rows.iter().map(|row| row[name].as_str().unwrap().to_string()).collect()
    };
    write_pairs(&bench.path("qa.parquet"), [&column("question"), &column("answer")]);
    for file in ["qa.jsonl.zst", "qa.parquet"] {
        bench.write("run.toml", &TUNE.replace("[eval]\n", "").replace("qa.jsonl", file));
        let other = bench.json(&["train", "run.toml", "--out", &format!("run-{file}")]);
        for field in ["first_loss", "last_loss", "data"] {
            assert_eq!(other[field], plain[field], "{file}: {field}");
        }
    }
}

/// Two columns of strings, required.
fn write_pairs(path: &std::path::Path, columns: [&[String]; 2]) {
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::{properties::WriterProperties, writer::SerializedFileWriter};
    let schema = "message rows { required binary question (UTF8); required binary answer (UTF8); }";
    let schema = std::sync::Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
    let properties = std::sync::Arc::new(WriterProperties::builder().build());
    let file = std::fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for column in columns {
        let values: Vec<ByteArray> = column.iter().map(|text| text.as_str().into()).collect();
        let mut out = group.next_column().unwrap().unwrap();
        out.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
        out.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn recipes_of_conversations_are_checked() {
    let bench = bench();
    for (old, new, says) in [
        ("kind = \"chat\"\n", "", &["data.chat", "kind = \"chat\""][..]),
        ("split = 4", "split = 4\nrows = \"windows\"", &["data.rows", "packed"]),
        ("split = 4", "split = 4\npack = \"split\"", &["data.pack", "truncate"]),
        ("split = 4", "split = 4\ntext_field = \"x\"", &["data.text_field"]),
        ("answer = \"answer\"\n", "", &["data.chat.answer", "missing"]),
        ("system =", "messages = \"m\"\nsystem =", &["data.chat.messages"]),
        ("system =", "template = \"{{\"\nsystem =", &["data.chat.template", "line 1"]),
        ("system =", "template = \"x\"\ntemplate_name = \"y\"\nsystem =", &["template_name"]),
        ("system =", "template_name = \"y\"\nsystem =", &["`y`", "default"]),
        ("question = \"question\"", "question = \"ask\"", &["qa.jsonl:1", "`ask`"]),
        ("length = 32", "length = 4", &["no conversation to train on", "within a row"]),
    ] {
        assert!(TUNE.contains(old), "{old}");
        bench.write("run.toml", &TUNE.replacen(old, new, 1));
        let message = bench.fails(&["train", "run.toml"]);
        let flat = message.split_whitespace().collect::<Vec<_>>().join(" ").replace("│ ", "");
        assert!(says.iter().all(|part| flat.contains(part)), "{new}: {message}");
        assert!(!bench.path("run").exists());
    }
}
