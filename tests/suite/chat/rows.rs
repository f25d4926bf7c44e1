//! Rows as conversations, conversations as tokens with targets.

use super::{TURNS, fault, talk, template};
use longburn::datasets::{BpeConfig, ConversationTokens, train_bpe};
use longburn::datasets::{
    ChatRows, Conversation, IGNORE, Message, Pack, PackConfig, Tokenizer, encode_conversations,
    split,
};
use longburn::streams::Streams;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use std::fs;
use std::path::Path;
use std::sync::Arc;

const LENGTH: usize = 64;

/// Learned from its own roles, so that tokens straddle the ends of messages where they can.
fn tokenizer() -> Tokenizer {
    let special = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>"];
    let config = BpeConfig::new(300).with_special(special.map(String::from).to_vec());
    let text = "How many boats? Two boats. Question: Answer: six sacks of flour, he counted. ";
    train_bpe([text.repeat(4)].iter(), &config).unwrap()
}

fn conversation(turns: &[(&str, &str)]) -> Conversation {
    Conversation { id: "row".into(), messages: talk(turns) }
}

fn encode(source: &str, turns: &[(&str, &str)], tokenizer: &Tokenizer) -> ConversationTokens {
    let list = [conversation(turns)];
    encode_conversations(&list, &template(source), tokenizer, LENGTH).unwrap().0.remove(0)
}

/// Text of the tokens that are targets, and of those that are not.
fn parts(tokens: &ConversationTokens, tokenizer: &Tokenizer) -> (String, String) {
    let pick = |wanted: bool| {
        let ids: Vec<u32> = tokens
            .document
            .ids
            .iter()
            .zip(&tokens.targets)
            .filter(|(_, learned)| **learned == wanted)
            .map(|(id, _)| *id)
            .collect();
        tokenizer.decode(&ids, false).unwrap()
    };
    (pick(true), pick(false))
}

#[test]
fn targets_are_the_assistants_tokens() {
    let tokenizer = tokenizer();
    let turns = [
        ("system", "Count."),
        ("user", "How many boats?"),
        ("assistant", "Two boats."),
        ("user", "Größe? 🙂"),
        ("assistant", "🙂 Größe.  "),
    ];
    let tokens = encode(TURNS, &turns, &tokenizer);
    let text = template(TURNS).render(&talk(&turns), false).unwrap();
    assert_eq!(tokens.document.ids[..], tokenizer.encode(&text, false).unwrap());
    let (learned, given) = parts(&tokens, &tokenizer);
    assert_eq!(learned, "Two boats.<|endoftext|>🙂 Größe.  <|endoftext|>");
    assert_eq!(
        given,
        "<|system|>Count.<|endoftext|><|user|>How many boats?<|endoftext|>\
                       <|assistant|><|user|>Größe? 🙂<|endoftext|><|assistant|>"
    );
}

#[test]
fn a_token_that_straddles_is_the_assistants() {
    let tokenizer = tokenizer();
    // The space before the answer is written by the template and merged into the answer's token.
    let source = "{% for m in messages %}{% if m.role == 'user' %}Question: {{ m.content }}\
                  {% else %} Answer: {{ m.content }}{% endif %}{% endfor %}\
                  {% if add_generation_prompt %} Answer: {% endif %}";
    let tokens = encode(source, &[("user", "How many?"), ("assistant", "six sacks")], &tokenizer);
    let (learned, given) = parts(&tokens, &tokenizer);
    assert_eq!((&*learned, &*given), (" six sacks", "Question: How many? Answer:"));
}

#[test]
fn ranges_cover_the_text_once() {
    let folder = tempfile::tempdir().unwrap();
    for tokenizer in [tokenizer(), crate::data::sentencepiece(folder.path())] {
        for text in ["", " ", "  a", "ab  c ", "a\n\n ü🙂b", "<s>a</s>", "<|user|>  Two"] {
            let ranges = tokenizer.encode_ranges(text).unwrap();
            let ids: Vec<u32> = ranges.iter().map(|(id, _)| *id).collect();
            assert_eq!(ids, tokenizer.encode(text, false).unwrap(), "{text:?}");
            let mut end = 0;
            for (_, range) in &ranges {
                assert_eq!(range.start, end, "{text:?}: {ranges:?}");
                end = range.end;
            }
            assert!(ranges.is_empty() || end == text.len(), "{text:?}: {ranges:?}");
        }
    }
}

#[test]
fn packed_rows_predict_the_assistant_alone() {
    let tokenizer = tokenizer();
    let talks = [("How many?", "Two."), ("Six sacks?", "He counted."), ("Of flour?", "boats")];
    let list: Vec<_> =
        talks.iter().map(|(q, a)| conversation(&[("user", q), ("assistant", a)])).collect();
    let (all, _) = encode_conversations(&list, &template(TURNS), &tokenizer, LENGTH).unwrap();
    let documents: Vec<_> = all.iter().map(|c| c.document.clone()).collect();
    let targets: Vec<_> = all.iter().map(|c| c.targets.clone()).collect();
    let config = PackConfig::new(LENGTH).with_pack(Pack::Truncate).with_segments(true);
    let config = config.with_epochs(Some(1));
    let source = config.init(documents, 1, Streams::new(0)).unwrap();
    let mut source = source.with_targets(targets).unwrap();
    let mut learned = String::new();
    while let Some(batch) = source.next_batch().unwrap() {
        for t in 0..batch.len() {
            let label = batch.labels[t];
            if label == IGNORE {
                continue;
            }
            // The label is the next token of the same conversation.
            assert_eq!(label, i64::from(batch.ids[t + 1]));
            assert_eq!(batch.tokens.segment()[t], batch.tokens.segment()[t + 1]);
            learned.push_str(&tokenizer.decode(&[label as u32], false).unwrap());
        }
        assert!(batch.tokens.segment().contains(&1), "several conversations share a row");
    }
    assert_eq!(learned, "Two.<|endoftext|>He counted.<|endoftext|>boats<|endoftext|>");
}

#[test]
fn targets_must_fit_the_documents() {
    let one =
        || vec![longburn::datasets::TokenDocument { id: "d".into(), ids: vec![1, 2, 3].into() }];
    let source = || PackConfig::new(8).init(one(), 1, Streams::new(0)).unwrap();
    assert!(source().with_targets(vec![vec![true; 3]]).is_ok());
    assert!(source().with_targets(vec![vec![true; 2]]).is_err());
    assert!(source().with_targets(vec![vec![true; 3]; 2]).is_err());
}

#[test]
fn d2_d4_conversations_without_targets_are_dropped_and_long_ones_counted() {
    let tokenizer = tokenizer();
    let long = "How many boats? ".repeat(40);
    let list = [
        conversation(&[("user", &long), ("assistant", "Two.")]),
        conversation(&[("user", "How many?"), ("assistant", &long)]),
        conversation(&[("user", "How many?"), ("assistant", "Two.")]),
    ];
    let (kept, report) = encode_conversations(&list, &template(TURNS), &tokenizer, LENGTH).unwrap();
    assert_eq!((kept.len(), report.kept.documents), (2, 2));
    let dropped = &report.dropped["no token of the assistant within a row"];
    assert_eq!((dropped.documents, dropped.tokens > 64), (1, true));
    let documents: Vec<_> = kept.iter().map(|c| c.document.clone()).collect();
    let whole: usize = documents.iter().map(|d| d.ids.len()).sum();
    let config = PackConfig::new(LENGTH).with_pack(Pack::Truncate).with_segments(true);
    let packed = config.init(documents, 1, Streams::new(0)).unwrap();
    let truncated = packed.report().truncated;
    assert_eq!(truncated.documents, 1);
    assert_eq!(truncated.tokens + packed.report().kept.tokens, whole as u64);
}

#[test]
fn rows_come_as_lists_or_pairs_and_are_split_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("chat.jsonl");
    let rows: Vec<String> = (0..6)
        .map(|i| format!(r#"{{"id": "r{i}", "q": "question {i}", "a": "answer {i}"}}"#))
        .collect();
    std::fs::write(&file, rows.join("\n")).unwrap();
    let pairs = ChatRows::new().with_pair("q", "a").with_system("Be brief.");
    let (read, report) = pairs.read(&file).unwrap();
    assert_eq!((read.len(), report.kept.documents), (6, 6));
    let expected =
        talk(&[("system", "Be brief."), ("user", "question 3"), ("assistant", "answer 3")]);
    assert_eq!((read[3].id.as_str(), &read[3].messages), ("r3", &expected));
    let (train, held) = split(read, 3).unwrap();
    let names = |list: &[Conversation]| list.iter().map(|c| c.id.clone()).collect::<Vec<_>>();
    assert_eq!(
        (names(&train), names(&held)),
        (["r0", "r1", "r3", "r4"].map(String::from).to_vec(), vec!["r2".into(), "r5".into()])
    );

    std::fs::write(
        &file,
        r#"{"turns": [{"role": "system", "content": "Own."},
        {"role": "assistant", "content": "b", "weight": 1}]}"#
            .replace('\n', ""),
    )
    .unwrap();
    let (read, _) =
        ChatRows::new().with_messages("turns").with_system("Other").read(&file).unwrap();
    assert_eq!(read[0].messages[0].get("content").unwrap(), "Own.");
    assert_eq!(read[0].messages[1].get("weight").unwrap(), 1);
}

/// The column `messages` as data sets have it: a list of a role and a content.
fn write_messages(path: &Path, rows: &[&[(&str, Option<&str>)]]) {
    let schema = "message rows { optional group messages (LIST) { repeated group list { optional \
                  group element { optional binary role (UTF8); optional binary content (UTF8); } \
                  } } }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().build());
    let mut writer =
        SerializedFileWriter::new(fs::File::create(path).unwrap(), schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let starts: Vec<i16> =
        rows.iter().flat_map(|row| (0..row.len()).map(|i| i16::from(i > 0))).collect();
    let all: Vec<_> = rows.iter().copied().flatten().collect();
    let columns: [Vec<Option<&str>>; 2] =
        [all.iter().map(|m| Some(m.0)).collect(), all.iter().map(|m| m.1).collect()];
    for column in columns {
        let present: Vec<i16> = column.iter().map(|x| if x.is_some() { 4 } else { 3 }).collect();
        let values: Vec<ByteArray> = column.iter().flatten().map(|text| (*text).into()).collect();
        let mut out = group.next_column().unwrap().unwrap();
        let typed = out.typed::<ByteArrayType>();
        typed.write_batch(&values, Some(&present), Some(&starts)).unwrap();
        out.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn lists_of_messages_come_from_parquet() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("chat.parquet");
    let talk = [("user", Some("How many?")), ("assistant", Some("Seven."))];
    let long = [("system", Some("Count.")), talk[0], talk[1], talk[0], talk[1]];
    write_messages(&file, &[&talk, &long, &talk[..1]]);
    let (found, report) = ChatRows::new().read(&file).unwrap();
    assert_eq!((found.len(), report.dropped["nothing said by the assistant"].documents), (2, 1));
    assert_eq!((found[0].id.as_str(), found[1].id.as_str()), ("chat.parquet:1", "chat.parquet:2"));
    let plain = |turns: &[(&str, Option<&str>)]| -> Vec<Message> {
        turns.iter().map(|(role, text)| Message::new(*role, text.unwrap())).collect()
    };
    assert_eq!(found[0].messages, plain(&talk));
    assert_eq!(found[1].messages, plain(&long));

    let failure = |rows: ChatRows| crate::data::message(rows.read(&file));
    let said = failure(ChatRows::new().with_messages("talk"));
    assert!(said.contains("chat.parquet, row 1: no field `talk`"), "{said}");
    write_messages(&file, &[&talk, &[talk[0], ("assistant", None)]]);
    let said = failure(ChatRows::new());
    assert!(said.contains("chat.parquet, row 2") && said.contains("content"), "{said}");
    // Whatever its bytes, a file gives rows or an error.
    let good = fs::read(&file).unwrap();
    for at in (0..good.len()).step_by(3) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x55;
        fs::write(&file, &bytes).unwrap();
        let _ = ChatRows::new().read(&file);
        fs::write(&file, &good[..at]).unwrap();
        assert!(failure(ChatRows::new()).contains("chat.parquet"));
    }
}

#[test]
fn a_refusing_template_names_the_row() {
    let source =
        "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}";
    let list = [Conversation { id: "chat.jsonl:7".into(), messages: talk(&[("assistant", "x")]) }];
    let encoded = encode_conversations(&list, &template(source), &tokenizer(), LENGTH);
    let [place, reason, _] = fault(encoded);
    assert!(place.starts_with("chat.jsonl:7: t.jinja"), "{place}");
    assert!(reason.ends_with("user first"), "{reason}");
}
