//! Rendering, against transformers.

use super::{TURNS, fault, messages, talk, template};
use longburn::datasets::{ChatTemplate, Tokenizer};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat")
}

/// Made by `tests/fixtures/chat/make_chat.py`.
fn expected() -> Value {
    serde_json::from_str(&fs::read_to_string(fixtures().join("expected.json")).unwrap()).unwrap()
}

#[test]
fn texts_equal_those_of_transformers() {
    let expected = expected();
    let cases = expected["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 58);
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let talk = case["talk"].as_str().unwrap();
        let prompt = case["add_generation_prompt"].as_bool().unwrap();
        let what = format!("{name}, {talk}, {prompt}");
        let file = fixtures().join(format!("templates/{name}.jinja"));
        let source = fs::read_to_string(file).unwrap();
        let mut template =
            ChatTemplate::new(source, name).unwrap().with_clock(expected["now"].as_i64());
        for (name, value) in case["variables"].as_object().unwrap() {
            template = template.with_variable(name, value.clone());
        }
        let messages = messages(&expected["talks"][talk]);
        let got = template.render(&messages, prompt);
        if let Some(refused) = case.get("refused").and_then(Value::as_str) {
            let [place, reason, _] = fault(got);
            assert!(place.starts_with(&format!("{name}, line ")), "{what}: {place}");
            let refusal = format!("the template refuses these messages: {refused}");
            assert_eq!(reason, refusal, "{what}");
            continue;
        }
        assert_eq!(got.unwrap(), case["text"].as_str().unwrap(), "{what}");
        let Some(assistant) = case.get("assistant").and_then(Value::as_array) else { continue };
        if !prompt {
            let (text, spans) = template.render_spans(&messages).unwrap();
            assert_eq!(text, case["text"].as_str().unwrap(), "{what}");
            let spans: Vec<&str> = spans.into_iter().map(|span| &text[span]).collect();
            assert_eq!(spans, *assistant, "{what}");
        }
    }
}

#[test]
fn the_assistant_has_what_its_messages_add() {
    let turns = talk(&[
        ("system", "s"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", "d"),
    ]);
    let spans = |source: &str| {
        let (text, spans) = template(source).render_spans(&turns).unwrap();
        spans.into_iter().map(|span| text[span].to_string()).collect::<Vec<_>>()
    };
    assert_eq!(spans(TURNS), ["b<|endoftext|>", "d<|endoftext|>"]);
    // Without a prompt to answer to, the header is the assistant's as well.
    let bare = TURNS.replace("{% if add_generation_prompt %}<|assistant|>{% endif %}", "");
    assert_eq!(spans(&bare), ["<|assistant|>b<|endoftext|>", "<|assistant|>d<|endoftext|>"]);
    // Marks say it themselves, however they are written.
    for tags in [
        "{% generation %}{{ m.content }}{% endgeneration %}",
        "{%- generation -%} {{ m.content }} {%-endgeneration-%}",
        "{%generation%}{{ m.content }}{%+ endgeneration +%}",
    ] {
        let source = format!(
            "{{% for m in messages %}}{{% if m.role == 'assistant' %}}[{tags}]{{% endif %}}\
             {{% endfor %}}"
        );
        assert_eq!(spans(&source), ["b", "d"], "{tags}");
    }
    assert!(template(TURNS).render_spans(&turns[..2]).unwrap().1.is_empty());
}

#[test]
fn a_template_that_looks_ahead_cannot_tell_whose_text_it_is() {
    let ahead = "{% for m in messages %}{{ m.role }}:{{ m.content }}\
                 {% if loop.last %}<end>{% endif %};{% endfor %}";
    let one = talk(&[("user", "a"), ("assistant", "b")]);
    assert_eq!(template(TURNS).render_spans(&one).unwrap().1.len(), 1);
    let [place, reason, remedy] = fault(template(ahead).render_spans(&one));
    assert_eq!(place, "t.jinja");
    assert!(reason.contains("first 1 of 2 messages differently"), "{reason}");
    assert!(reason.contains("character 6"), "{reason}");
    assert!(remedy.contains("{% generation %}"), "{remedy}");
}

#[test]
fn checkpoints_bring_their_templates() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let hello = talk(&[("user", "hello")]);
    let render = |name| ChatTemplate::load(dir.path(), name)?.render(&hello, false);

    let [_, reason, _] = fault(render(None));
    assert_eq!(reason, "has no chat template");
    write("tokenizer_config.json", r#"{"eos_token": "</s>"}"#);
    assert_eq!(fault(render(None))[1], "has no chat template");
    write("tokenizer_config.json", r#"{"chat_template": "one {{ messages[0].content }}"}"#);
    assert_eq!(render(None).unwrap(), "one hello");
    let named = json!({"chat_template": [
        {"name": "default", "template": "two"}, {"name": "tool_use", "template": "three"}]});
    write("tokenizer_config.json", &named.to_string());
    assert_eq!(render(None).unwrap(), "two");
    assert_eq!(render(Some("tool_use")).unwrap(), "three");
    let [_, reason, remedy] = fault(render(Some("rag")));
    assert!(reason.contains("`rag`") && remedy.contains("default, tool_use"), "{reason} {remedy}");
    // A file of its own goes before the field, as in transformers.
    write("chat_template.jinja", "four\n");
    assert_eq!(render(None).unwrap(), "four");
}

#[test]
fn the_tokenizer_names_the_special_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let source = "{{ bos_token }}|{{ eos_token }}|{{ unk_token }}|{{ pad_token }}";
    let with = |tokenizer: &Tokenizer| {
        template(source).with_tokenizer(tokenizer).render(&talk(&[("user", "x")]), false).unwrap()
    };
    // By name in tokenizer_config.json, else by custom; what there is not is nothing.
    let tokenizer = crate::data::sentencepiece(dir.path());
    assert_eq!(with(&tokenizer), "<s>|</s>|<unk>|");
    fs::write(dir.path().join("tokenizer_config.json"), r#"{"bos_token": {"content": "<go>"}}"#)
        .unwrap();
    assert_eq!(with(&Tokenizer::from_file(dir.path()).unwrap()), "<go>|</s>|<unk>|");
}
