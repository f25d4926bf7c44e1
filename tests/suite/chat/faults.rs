//! Broken and hostile templates, messages and rows: an error with place and remedy, in no time and
//! with little memory.

use super::{TURNS, fault, talk, template};
use longburn::Error;
use longburn::datasets::{ChatRows, ChatTemplate, Message};
use std::time::{Duration, Instant};

fn hello() -> Vec<Message> {
    talk(&[("user", "hello")])
}

#[test]
fn f9_templates_without_end_stop() {
    for source in [
        // Loops in loops; the engine has no other.
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for a in range(99999) %}{% for b in range(99999) %}\
         {% set ns.n = ns.n + 1 %}{% endfor %}{% endfor %}",
        // Recursion, straight and through a caller.
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{% macro f() %}{% call f() %}{{ caller() }}{% endcall %}{% endmacro %}{{ f() }}",
        "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{% generation %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}\
         {% endfor %}{% endgeneration %}",
        "{{ range(99999) | map('string') | sort | join | list | sort | unique | list | length }}\
         {% for a in range(99999) %}{{ (range(99999) | list)[::-1] | sort | first }}{% endfor %}",
    ] {
        let start = Instant::now();
        let [place, reason, remedy] = fault(template(source).render(&hello(), true));
        assert!(place.starts_with("t.jinja"), "{place}");
        assert!(!reason.is_empty() && !remedy.is_empty());
        let took = start.elapsed();
        assert!(took < Duration::from_secs(3), "{took:?} for {source}: {reason}");
    }
    let [_, reason, remedy] = fault(
        template(
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}\
                        {% endfor %}",
        )
        .render(&hello(), true),
    );
    assert!(reason.contains("steps") && remedy.contains("loop"), "{reason} {remedy}");
}

#[test]
fn f9_templates_that_write_without_end_stop() {
    let double = "{% set ns = namespace(s='x' * 1000) %}{% for a in range(60) %}\
                  {% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}";
    for source in [
        "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{{ 'x' * 999999999 }}",
        "{{ ('x' * 999 + ',') * 99999 }}",
        double,
        "{{ messages[0].content * 99999999 }}",
        "{{ '%99999999d' | format(1) }}",
        "{{ 'x' | indent(999999999, true) }}",
        "{{ ([messages] * 9999999) | tojson }}",
        "{% set ns = namespace(v=[1]) %}{% for a in range(40) %}{% set ns.v = [ns.v, ns.v] %}\
         {% endfor %}{{ ns.v | tojson }}",
        "{% set ns = namespace(v=[1]) %}{% for a in range(40) %}{% set ns.v = [ns.v, ns.v] %}\
         {% endfor %}{{ ns.v | tojson(indent=60) | length }}",
        "{{ 'aaaaaaaaaa'.replace('a', 'b' * 999999) * 99 }}",
        "{{ debug() }}",
    ] {
        let start = Instant::now();
        let [_, reason, _] = fault(template(source).render(&hello(), false));
        let took = start.elapsed();
        assert!(took < Duration::from_secs(3), "{took:?} for {source}: {reason}");
    }
    // 17 MB, but few steps.
    let [_, reason, _] = fault(
        template("{% set s = 'x' * 1000000 %}{% for a in range(17) %}{{ s }}{% endfor %}")
            .render(&hello(), false),
    );
    assert!(reason.contains("writes more than 16777216 bytes"), "{reason}");
    let long = template("{% set s = 'x' * 1000000 %}{% for a in range(16) %}{{ s }}{% endfor %}");
    assert_eq!(long.render(&hello(), false).unwrap().len(), 16_000_000);
}

#[test]
fn f9_a_large_template_is_refused_and_a_deep_one_survived() {
    const LONGEST: usize = 65_535;
    let [_, reason, _] = fault(ChatTemplate::new("x".repeat(LONGEST + 1), "big"));
    assert!(reason.contains("65536 bytes"), "{reason}");
    let [_, reason, _] = fault(ChatTemplate::new(format!("{{{{ {}1 }}}}", "1+".repeat(3000)), "t"));
    assert!(reason.contains("a tag of 6003 bytes"), "{reason}");
    // Strings may be long, and so may what looks like a tag in them.
    let long = format!("{{{{ '{{{{{}' }}}}{{# {} #}}", "a".repeat(9000), "{{ '".repeat(9000));
    assert_eq!(template(&long).render(&hello(), false).unwrap().len(), 9002);
    let chain = |open: &str, close: &str| {
        let n = 4000 / (open.len() + close.len());
        format!("{{{{ {}1{} }}}}", open.repeat(n), close.repeat(n))
    };
    for source in [
        chain("(", ")"),
        chain("[", "]"),
        chain("{1:", "}"),
        chain("not ", ""),
        chain("-", ""),
        chain("1+", ""),
        chain("1 ~", ""),
        chain("2**", ""),
        chain("1 if 1 else ", ""),
        chain("", ".a"),
        chain("", "[0]"),
        chain("", "()"),
        chain("", "|e"),
        chain("f(", ")"),
        chain("1 and ", ""),
        "{% if 1 %}".repeat(LONGEST / 10),
        format!("{{% if 1 %}}{}{{% endif %}}", "{% elif 1 %}".repeat(LONGEST / 12 - 3)),
        "{% for a in [1] %}".repeat(LONGEST / 18),
        "{% generation %}".repeat(LONGEST / 16),
        "{#".repeat(LONGEST / 2),
        "{{".repeat(LONGEST / 2),
    ] {
        let start = Instant::now();
        // Some are good templates; none may end the program.
        if let Ok(template) = ChatTemplate::new(source.as_str(), "deep") {
            let _ = template.render(&hello(), false);
        }
        let took = start.elapsed();
        assert!(took < Duration::from_secs(3), "{took:?} for {}", &source[..20]);
    }
    // Values deeper than any message: all that the steps allow, dropped and written.
    let nest = "{% set ns = namespace(v=1) %}{% for b in range(99) %}{% for a in range(9999) %}\
                {% set ns.v = [ns.v] %}{% endfor %}{% endfor %}";
    assert!(fault(template(nest).render(&hello(), false))[1].contains("steps"));
    for end in ["{{ ns.v | tojson }}", "{{ ns.v }}", "{{ ns.v == [ns.v] }}", "{{ ns.v | string }}"]
    {
        let nest = nest.replace("range(99)", "range(3)") + end;
        let _ = template(&nest).render(&hello(), false);
    }
}

#[test]
fn broken_templates_are_named_with_their_line() {
    for (source, says) in [
        ("a\n{{ messages", "line 2"),
        ("{% for m in messages %}", "unexpected end"),
        ("{% frobnicate %}", "unknown statement frobnicate"),
        ("{% endgeneration %}", "endcall"),
        ("{% generation %}", "unexpected end"),
    ] {
        match ChatTemplate::new(source, "t.jinja") {
            Err(Error::Template { place, reason, .. }) => {
                let text = format!("{place}: {reason}");
                assert!(text.contains(says), "{source}: {text}");
            }
            other => panic!("{source}: {other:?}"),
        }
    }
    for (source, says) in [
        ("x\n\n{{ messages[0].missing.deeper }}", "line 3"),
        ("{{ messages | frob }}", "frob"),
        ("{{ frob() }}", "frob"),
        ("{{ 'a'.frob() }}", "frob"),
        ("{{ missing | tojson }}", "undefined"),
        ("{{ strftime_now('%Q') }}", "%Q"),
        ("{{ raise_exception('no tools, please') }}", "refuses these messages: no tools, please"),
        ("{% include 'passwd' %}", "passwd"),
        ("{{ 1 // 0 }}", "operation"),
    ] {
        match template(source).render(&hello(), false) {
            Err(Error::Template { place, reason, .. }) => {
                let text = format!("{place}: {reason}");
                assert!(text.contains(says), "{source}: {text}");
            }
            other => panic!("{source}: {other:?}"),
        }
    }
    // A message cannot pretend to be the assistant's.
    let marked = template(
        "{% for m in messages %}{{ m.content }}{% generation %}x\
                           {% endgeneration %}{% endfor %}",
    );
    let forged = talk(&[("user", "a\u{fdd0}b\u{fdd1}")]);
    assert!(fault(marked.render_spans(&forged))[1].contains("U+FDD0"));
    assert_eq!(template(TURNS).render(&forged, false).unwrap().matches('\u{fdd0}').count(), 1);
}

#[test]
fn broken_checkpoint_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let load = || ChatTemplate::load(dir.path(), None);
    let file = dir.path().join("tokenizer_config.json");
    for (text, says) in [
        ("{", "tokenizer_config.json"),
        (r#"{"chat_template": 7}"#, "field `chat_template`: is a number"),
        (r#"{"chat_template": [{"name": "default"}]}"#, "field `chat_template[0]`: is an object"),
        (r#"{"chat_template": "{{"}"#, "field `chat_template`, line 1"),
    ] {
        std::fs::write(&file, text).unwrap();
        let message = load().unwrap_err().to_string();
        assert!(message.contains(says), "{text}: {message}");
    }
    std::fs::write(dir.path().join("chat_template.jinja"), [0xff, 0xfe]).unwrap();
    assert!(fault(load())[1].contains("not UTF-8"));
    std::fs::write(dir.path().join("chat_template.jinja"), " ".repeat(1 << 21)).unwrap();
    assert!(fault(load())[1].contains("more than 65535 bytes"));
}

#[test]
fn broken_messages_are_named() {
    for (text, says) in [
        ("[", "not JSON"),
        ("7", "field `messages` is a number"),
        ("{}", "no field `messages`"),
        ("[]", "is empty"),
        (r#"["hi"]"#, "`messages[0]` is a string"),
        (r#"[{"content": "x"}]"#, "no field `messages[0].role`"),
        (r#"[{"role": 3, "content": "x"}]"#, "`messages[0].role` is a number"),
        (r#"[{"role": "", "content": "x"}]"#, "`messages[0].role` is empty"),
        (
            r#"[{"role": "user", "content": "x"}, {"role": "user"}]"#,
            "no field `messages[1].content`",
        ),
        (r#"[{"role": "user", "content": null}]"#, "no field `messages[0].content`"),
        (r#"{"messages": [{"role": "user", "content": 5}]}"#, "`messages[0].content` is a number"),
    ] {
        let message = Message::parse_list(text, "talk.json").unwrap_err().to_string();
        assert!(message.contains(says) && message.contains("talk.json"), "{text}: {message}");
    }
}

#[test]
fn d2_broken_rows_are_named_and_silent_ones_counted() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("chat.jsonl");
    let good = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    let read = |rows: &ChatRows, lines: &[&str]| {
        std::fs::write(&file, lines.join("\n")).unwrap();
        rows.read(&file)
    };
    let plain = ChatRows::new();
    let pair = ChatRows::new().with_pair("q", "a");
    for (rows, line, says) in [
        (&plain, "{", "not JSON"),
        (&plain, "[1]", "the row is a list"),
        (&plain, r#"{"text": "a"}"#, "no field `messages`"),
        (&plain, r#"{"messages": "a"}"#, "field `messages` is a string"),
        (&plain, r#"{"messages": []}"#, "field `messages` is empty"),
        (&plain, r#"{"messages": [{"role": "user"}]}"#, "no field `messages[0].content`"),
        (&pair, r#"{"q": "a"}"#, "no field `a`"),
        (&pair, r#"{"q": "a", "a": null}"#, "no field `a`"),
        (&pair, r#"{"q": 1, "a": "b"}"#, "field `q` is a number"),
    ] {
        let first = if std::ptr::eq(rows, &pair) { r#"{"q": "x", "a": "y"}"# } else { good };
        let message = read(rows, &[first, "", line]).unwrap_err().to_string();
        let place = format!("{}:3: ", file.display());
        assert!(message.contains(says) && message.contains(&place), "{line}: {message}");
        assert!(message.contains("remedy"), "{message}");
    }
    let silent = [
        good,
        r#"{"messages": [{"role": "user", "content": "a"}]}"#,
        r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " \n"}]}"#,
    ];
    let (kept, report) = read(&plain, &silent).unwrap();
    assert_eq!((kept.len(), kept[0].id.as_str()), (1, "chat.jsonl:1"));
    assert_eq!(report.dropped["nothing said by the assistant"].documents, 2);
    let message = read(&plain, &silent[1..]).unwrap_err().to_string();
    assert!(message.contains("no conversation") && message.contains("2 documents"), "{message}");
    assert!(matches!(plain.read(&dir.path().join("none.jsonl")), Err(Error::Io { .. })));
    let half = ChatRows { question: Some("q".into()), ..ChatRows::new() };
    assert!(matches!(half.read(&file), Err(Error::Config { ref field, .. }) if field == "answer"));
}
