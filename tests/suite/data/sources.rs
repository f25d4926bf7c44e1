use super::faults::{write_parquet, zstd};
use super::{message, numbered, tokenizer};
use longburn::Error;
use longburn::datasets::source::{
    BadLines, CrateSourceConfig, JsonlSourceConfig, SourceOptions, TextSourceConfig, open,
};
use longburn::datasets::{
    Cursor, Document, DocumentSource, PackConfig, Side, TokenBatch, split, tokenize,
};
use longburn::streams::Streams;
use std::fs;

#[test]
fn d2_empty_documents_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    put("a.txt", b"river");
    put("b.txt", b" \n\t ");
    put("c.txt", b"");
    put("d.txt", &[0xff, 0xfe, b'x']);
    put("e.bin", b"nul \0 byte");
    put("f.md", "\u{feff}lamp\r\n".as_bytes());
    put(".hidden", b"secret");
    fs::create_dir(folder.path().join("Sub")).unwrap();
    put("Sub/z.txt", b"stone");

    let mut source = TextSourceConfig::new(folder.path()).init().unwrap();
    let documents = source.read_all().unwrap();
    let names: Vec<_> = documents.iter().map(|d| (d.id.as_str(), d.text.as_str())).collect();
    assert_eq!(names, [("Sub/z.txt", "stone"), ("a.txt", "river"), ("f.md", "lamp\r\n")]);
    assert_eq!(source.report().kept.documents, 3);
    assert_eq!(source.report().kept.characters, 16);
    assert_eq!(source.report().dropped["empty"].documents, 2);
    assert_eq!(source.report().skipped["not UTF-8 text"], 2);

    let only_md = TextSourceConfig::new(folder.path()).with_extensions(Some(vec![".MD".into()]));
    assert_eq!(only_md.init().unwrap().read_all().unwrap().len(), 1);
    let none = TextSourceConfig::new(folder.path()).with_extensions(Some(vec!["rs".into()]));
    assert!(message(none.init()).contains("rs"));
    let empty = open(folder.path().join("c.txt")).unwrap().read_all();
    assert!(message(empty).contains("empty"));

    let documents =
        ["river", "<|endoftext|>", ""].map(|t| Document { id: t.into(), text: t.into() });
    let (kept, report) = tokenize(&documents, tokenizer(), true).unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!(report.dropped["no tokens of its own"].documents, 2);
    assert_eq!(report.kept.tokens, kept[0].ids.len() as u64);

    let source = PackConfig::new(4).init(numbered(&[3, 0]), 1, Streams::new(0)).unwrap();
    assert_eq!(source.report().dropped["empty"].documents, 1);
    let nothing = PackConfig::new(4).init(numbered(&[0]), 1, Streams::new(0));
    assert!(matches!(nothing, Err(Error::Data(_))));
    assert!(TokenBatch::from_rows(vec![vec![1], vec![]], Side::Left, 0).is_err());
    assert!(TokenBatch::from_rows(vec![], Side::Left, 0).is_err());
}

#[test]
fn jsonl_names_the_line_or_skips_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.jsonl");
    let lines = [
        "\u{feff}{\"text\": \"one\", \"id\": \"first\"}\r\n",
        "\n",
        "{\"text\": \"  \"}\n",
        "{\"text\": 3}\n",
        "{\"body\": \"x\"}\n",
        "{\"text\": \n",
        "{\"text\": \"a line that is longer than sixty-four bytes, the cap of this test\"}\n",
        "{\"text\": \"naïve\"}",
    ];
    fs::write(&file, lines.concat()).unwrap();
    let short = SourceOptions::new().with_line_cap(Some(64));
    let config = JsonlSourceConfig::new(&file).with_options(short.clone());
    let lenient = short.with_bad_lines(Some(BadLines::Skip));

    let mut source = config.clone().init().unwrap();
    assert_eq!(source.next_document().unwrap().unwrap().id, "first");
    for (line, reason) in [(4, "not a string"), (5, "no field `text`"), (6, "JSON"), (7, "64")] {
        let text = message(source.next_document());
        assert!(text.contains(&format!("a.jsonl:{line}:")) && text.contains(reason), "{text}");
    }
    let last = source.next_document().unwrap().unwrap();
    assert_eq!((last.id.as_str(), last.text.as_str()), ("a.jsonl:8", "naïve"));
    assert_eq!(source.next_document().unwrap(), None);

    fs::write(folder.path().join("b.jsonl"), b"{\"text\": \"two\"}\n\xff\n").unwrap();
    let skipping = JsonlSourceConfig::new(folder.path()).with_options(lenient.clone());
    let mut skipping = skipping.init().unwrap();
    assert_eq!(skipping.read_all().unwrap().len(), 3);
    assert_eq!(skipping.report().skipped["bad line"], 5);
    assert_eq!(skipping.report().dropped["empty"].documents, 1);
    // A folder of nothing but .jsonl files is opened as lines, not as text.
    assert_eq!(open(folder.path()).unwrap().next_document().unwrap().unwrap().text, "one");
    let body = config.with_options(lenient.with_text_field(Some("body".into())));
    let body = body.init().unwrap().read_all();
    assert_eq!(body.unwrap()[0].text, "x");
}

#[test]
fn sources_go_on_where_a_cursor_stands() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        let lines: String = (0..4).map(|i| format!("{{\"text\": \"{name}{i}\"}}\n")).collect();
        fs::write(folder.path().join(format!("{name}.jsonl")), lines).unwrap();
    }
    fs::write(folder.path().join("c.jsonl"), format!("{}\n{{\"text\": \"c\"}}", "x".repeat(99)))
        .unwrap();
    let lines = JsonlSourceConfig::new(folder.path());
    let options = SourceOptions::new().with_line_cap(Some(32));
    let lines = lines.with_options(options.with_bad_lines(Some(BadLines::Skip)));
    let packed = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c"] {
        let lines = fs::read(folder.path().join(format!("{name}.jsonl"))).unwrap();
        let path = packed.path().join(format!("{name}.jsonl.zst"));
        fs::write(path, ::zstd::encode_all(&lines[..], 1).unwrap()).unwrap();
    }
    let compressed = JsonlSourceConfig { path: packed.path().into(), ..lines.clone() };
    let table = tempfile::tempdir().unwrap();
    let rows: Vec<String> = (0..700).map(|i| format!("row {i}")).collect();
    let rows: Vec<Option<&str>> =
        rows.iter().enumerate().map(|(i, row)| (i % 5 != 3).then_some(row.as_str())).collect();
    write_parquet(&table.path().join("a.parquet"), &[&rows[..3], &rows[3..9]], zstd());
    let uncompressed = parquet::basic::Compression::UNCOMPRESSED;
    write_parquet(&table.path().join("b.parquet"), &[&rows[..0], &rows[9..12]], uncompressed);
    let sources: [&dyn Fn() -> Box<dyn DocumentSource>; 4] = [
        &|| Box::new(lines.init().unwrap()),
        &|| Box::new(compressed.init().unwrap()),
        &|| open(table.path()).unwrap(),
        &|| Box::new(TextSourceConfig::new(folder.path()).init().unwrap()),
    ];
    for make in sources {
        let whole = make().read_all().unwrap();
        let mut source = make();
        for seen in 0..whole.len() {
            let json = serde_json::to_string(&source.cursor()).unwrap();
            let mut other = make();
            other.seek(&serde_json::from_str::<Cursor>(&json).unwrap()).unwrap();
            assert_eq!(other.read_all().unwrap(), whole[seen..]);
            source.next_document().unwrap();
        }
        let end = source.cursor();
        source.seek(&end).unwrap();
        assert_eq!(source.next_document().unwrap(), None);
        for wrong in [
            Cursor { file: 9, offset: 0, line: 0 },
            Cursor { file: 0, offset: 3, line: 1 },
            Cursor { file: 0, offset: 1 << 40, line: 1 << 40 },
        ] {
            assert!(message(source.seek(&wrong)).contains("not a place"));
        }
    }
}

#[test]
fn crates_of_a_lock_file_are_documents() {
    let home = tempfile::tempdir().unwrap();
    let registry = home.path().join("registry/src/index-1");
    let put = |root: &std::path::Path, path: &str, text: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    put(&registry, "alpha-1.0.0/src/lib.rs", "mod b;");
    put(&registry, "alpha-1.0.0/src/b.rs", "fn b() {}\n");
    put(&registry, "alpha-1.0.0/README.md", "not Rust");
    put(&registry, "beta-0.1.0/lib.rs", &"é".repeat(60));
    put(&registry, "beta-0.2.0/lib.rs", &"e".repeat(99));
    put(&registry, "tiny-1.0.0/lib.rs", "//");
    let vendor = home.path().join("vendor");
    put(&vendor, "gamma/src/lib.rs", "fn gamma() {}");
    let package = |name: &str, version: &str, source: &str| {
        format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\n{source}\n")
    };
    let registry_line = "source = \"registry+index\"";
    let lock: String = [
        package("alpha", "1.0.0", registry_line),
        package("beta", "0.1.0", registry_line),
        package("beta", "0.2.0", registry_line),
        package("gamma", "3.0.0", registry_line),
        package("missing", "1.0.0", registry_line),
        package("../../etc", "1", registry_line),
        package("own", "0.1.0", ""),
        package("tiny", "1.0.0", registry_line),
    ]
    .concat();
    let config = CrateSourceConfig::new(&lock).with_cargo_home(home.path()).with_vendor(&vendor);
    let texts = |min, max, enough| {
        let crates = config.clone().with_sizes(min, max, enough).read().unwrap();
        let texts = crates.documents.iter().map(|d| (d.id.clone(), d.text.clone()));
        (texts.collect::<Vec<_>>(), crates)
    };
    let owned = |id: &str, text: &str| (id.to_string(), text.to_string());
    let alpha = owned("alpha-1.0.0", "fn b() {}\nmod b;\n");
    let gamma = owned("gamma-3.0.0", "fn gamma() {}\n");

    let (within, crates) = texts(10, 50, 2);
    assert_eq!(within, [alpha.clone(), gamma.clone()]);
    assert_eq!(crates.report.skipped["crate not unpacked here"], 2);
    assert_eq!(crates.report.skipped["other version of a crate"], 1);
    assert_eq!(crates.report.skipped["crate larger than wanted"], 1);
    assert_eq!(crates.report.skipped["crate smaller than wanted"], 1);
    // Too few of that size: the larger ones too, cut, and the newest version of each.
    let (cut, other) = texts(10, 50, 3);
    assert_eq!(cut, [alpha, owned("beta-0.2.0", &"e".repeat(50)), gamma]);
    assert_eq!((other.report.truncated.documents, other.report.truncated.characters), (1, 50));
    assert_ne!(crates.sha256, other.sha256);
    assert_eq!(crates.sha256, texts(10, 50, 2).1.sha256);
    assert_eq!(crates.sha256.len(), 64);

    let nowhere = CrateSourceConfig::new(&lock).with_cargo_home(home.path().join("none")).read();
    assert!(message(nowhere).contains("--data PATH"));
    assert!(matches!(CrateSourceConfig::new("[[package").read(), Err(Error::Parse { .. })));
}

#[test]
fn split_is_by_document_and_complete() {
    let documents = |n: usize| -> Vec<Document> {
        let one = |i: usize| Document { id: format!("{:02}", n - i), text: String::new() };
        (0..n).map(one).collect()
    };
    let (train, held) = split(documents(13), 6).unwrap();
    let ids = |d: &[Document]| d.iter().map(|d| d.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&held), ["06", "12"]);
    assert_eq!(train.len(), 11);
    let mut other = documents(13);
    other.reverse();
    assert_eq!(split(other, 6).unwrap(), (train, held));
    assert_eq!(ids(&split(documents(2), 6).unwrap().1), ["02"]);
    assert!(message(split(documents(1), 6)).contains("at least two"));
}
