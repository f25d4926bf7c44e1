//! Faults of data files, by their ids.

use super::{message, numbered};
use longburn::datasets::source::{
    BadLines, JsonlSourceConfig, ParquetSourceConfig, SourceOptions, TextSourceConfig,
};
use longburn::datasets::{DocumentSource, Pack, PackConfig};
use longburn::streams::Streams;
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// A file with the columns `id` and `text`, a row group for each list.
pub(crate) fn write_parquet(path: &Path, groups: &[&[Option<&str>]], compression: Compression) {
    let schema = "message rows { required int64 id; optional binary text (UTF8); \
                  repeated binary tags (UTF8); }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder().set_compression(compression).build();
    let file = File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
    for rows in groups {
        let mut group = writer.next_row_group().unwrap();
        let ids: Vec<i64> = (0..rows.len() as i64).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&ids, None, None).unwrap();
        column.close().unwrap();
        let present: Vec<i16> = rows.iter().map(|row| i16::from(row.is_some())).collect();
        let texts: Vec<ByteArray> = rows.iter().flatten().map(|text| (*text).into()).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&texts, Some(&present), None).unwrap();
        column.close().unwrap();
        let none = vec![0_i16; rows.len()];
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&[], Some(&none), Some(&none)).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

pub(crate) fn zstd() -> Compression {
    Compression::ZSTD(ZstdLevel::try_new(3).unwrap())
}

fn texts(source: &mut dyn DocumentSource) -> Vec<String> {
    source.read_all().unwrap().into_iter().map(|document| document.text).collect()
}

#[test]
fn d1_text_that_is_not_clean() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    put("bom.txt", "\u{feff}lamp\r\nriver\r\n".as_bytes());
    put("latin1.txt", b"caf\xe9");
    put("long.txt", &b"word ".repeat(100));
    put("nul.txt", b"nul \0 byte");
    let config = TextSourceConfig::new(folder.path()).with_file_cap(Some(400));
    let mut source = config.clone().init().unwrap();
    assert_eq!(texts(&mut source), ["lamp\r\nriver\r\n"]);
    assert_eq!(source.report().skipped["not UTF-8 text"], 2);
    assert_eq!(source.report().skipped["longer than the cap"], 1);
    let mut strict = config.with_bad_files(BadLines::Fail).init().unwrap();
    strict.next_document().unwrap();
    for name in ["latin1.txt", "long.txt", "nul.txt"] {
        let text = message(strict.next_document());
        assert!(text.contains(name) && text.contains("remedy"), "{text}");
    }

    let lines: [&[u8]; 6] = [
        b"\xef\xbb\xbf{\"text\": \"lamp\"}\r\n",
        b"{\"text\": \"caf\xe9\"}\n",
        b"{\"text\": \"nul \0 byte\"}\n",
        b"{\"text\": \"escaped \\u0000 NUL and \\r\\n\"}\n",
        b"\r\n",
        b"{\"text\": \"river\"}",
    ];
    put("a.jsonl", &lines.concat());
    let file = folder.path().join("a.jsonl");
    let strict = JsonlSourceConfig::new(&file);
    let lenient = SourceOptions::new().with_bad_lines(Some(BadLines::Skip));
    let mut skipping = strict.clone().with_options(lenient).init().unwrap();
    assert_eq!(texts(&mut skipping), ["lamp", "escaped \0 NUL and \r\n", "river"]);
    assert_eq!(skipping.report().skipped["bad line"], 2);
    let mut strict = strict.init().unwrap();
    strict.next_document().unwrap();
    for (line, reason) in [(2, "not UTF-8"), (3, "not JSON")] {
        let text = message(strict.next_document());
        assert!(text.contains(&format!("a.jsonl:{line}: {reason}")), "{text}");
    }
    assert_eq!(strict.read_all().unwrap().len(), 2);
}

#[test]
fn d1_a_line_of_a_gigabyte_is_passed_over_in_little_memory() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.jsonl");
    let mut writer = File::create(&file).unwrap();
    writer.write_all(b"{\"text\": \"one\"}\n").unwrap();
    // A hole: a gigabyte of NUL that takes no room on the disk.
    let end = 16 + (1 << 30);
    writer.set_len(end).unwrap();
    let mut writer = File::options().append(true).open(&file).unwrap();
    writer.write_all(b"\n{\"text\": \"two\"}\n").unwrap();
    let short = SourceOptions::new().with_line_cap(Some(1 << 16));
    let config = JsonlSourceConfig::new(&file).with_options(short.clone());
    let lenient = short.with_bad_lines(Some(BadLines::Skip));
    let usage = crate::alloc::measure(|| {
        let mut source = config.clone().with_options(lenient.clone()).init().unwrap();
        assert_eq!(texts(&mut source), ["one", "two"]);
        assert_eq!(source.report().skipped["bad line"], 1);
    });
    assert!(usage.peak < 1 << 20, "{usage:?}");
    let mut strict = config.init().unwrap();
    strict.next_document().unwrap();
    let text = message(strict.next_document());
    assert!(text.contains("a.jsonl:2: longer than the cap of 65536 bytes"), "{text}");
}

#[test]
fn d4_a_document_longer_than_a_row_by_each_policy() {
    let run = |pack| {
        let config = PackConfig::new(10).with_pack(pack).with_epochs(Some(1));
        let mut source = config.init(numbered(&[25, 3]), 1, Streams::new(0)).unwrap();
        let mut rows = 0;
        while source.next_batch().unwrap().is_some() {
            rows += 1;
        }
        (rows, source.report().to_string())
    };
    let (rows, report) = run(Pack::Concat);
    assert_eq!((rows, report.contains("lost")), (3, false), "{report}");
    let (rows, report) = run(Pack::Split);
    assert_eq!((rows, report.contains("lost")), (3, false), "{report}");
    let (rows, report) = run(Pack::Truncate);
    assert_eq!(rows, 2);
    assert!(report.contains("truncated: 1 document, 15 tokens; 53.57 % lost"), "{report}");
    let (rows, report) = run(Pack::Drop);
    assert_eq!(rows, 1);
    let dropped = "dropped (longer than a row): 1 document, 25 tokens; 89.29 % lost";
    assert!(report.contains(dropped), "{report}");
}

#[test]
fn d5_damaged_zstd_names_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let lines: String =
        (0..4000).map(|i| format!("{{\"text\": \"line {i} {}\"}}\n", i * i)).collect();
    let good = zstd::encode_all(lines.as_bytes(), 3).unwrap();
    let file = folder.path().join("a.jsonl.zst");
    fs::write(&file, &good).unwrap();
    let mut source = SourceOptions::new().open(folder.path()).unwrap();
    assert_eq!(source.read_all().unwrap().len(), 4000);
    let damages =
        [good[..good.len() / 2].to_vec(), good[..3].to_vec(), b"plain text\n".to_vec(), {
            let mut bytes = good.clone();
            let at = bytes.len() / 2;
            bytes[at..at + 64].fill(0xA5);
            bytes
        }];
    for bytes in damages {
        fs::write(&file, bytes).unwrap();
        // No policy passes over it: how much is missing cannot be told.
        let options = SourceOptions::new().with_bad_lines(Some(BadLines::Skip));
        let text = message(options.open(&file).unwrap().read_all());
        assert!(text.contains("a.jsonl.zst:") && text.contains("Zstandard"), "{text}");
        assert!(text.contains("remedy"), "{text}");
    }
}

/// A file of another writer, for whose compression there is no code here: the number that stands
/// for it, in the description of the column, is changed.
#[test]
fn d5_parquet_that_is_compressed_otherwise_says_how() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.parquet");
    write_parquet(&file, &[&[Some("one")]], Compression::UNCOMPRESSED);
    let good = fs::read(&file).unwrap();
    // The path of the column, then field 4: the codec, none.
    let described = b"\x19\x18\x04text\x15\x00";
    let at = good.windows(described.len()).position(|bytes| bytes == described).unwrap();
    for (codec, name) in [(2, "GZIP"), (4, "BROTLI"), (7, "LZ4_RAW")] {
        let mut bytes = good.clone();
        // Numbers are zigzag.
        bytes[at + described.len() - 1] = 2 * codec;
        fs::write(&file, bytes).unwrap();
        let rows = longburn::datasets::ChatRows::new().read(&file).map(drop);
        let texts = SourceOptions::new().open(&file).unwrap().read_all().map(drop);
        for text in [message(texts), message(rows)] {
            assert!(text.contains("a.parquet: column `text` is compressed with"), "{text}");
            assert!(text.contains(name) && text.contains("Snappy and Zstandard"), "{text}");
            assert!(text.contains("remedy") && !text.contains("damaged"), "{text}");
        }
    }
}

#[test]
fn d5_damaged_parquet_names_file_row_group_and_column() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.parquet");
    let texts: Vec<String> = (0..300).map(|i| format!("row {i} {}", i * 7919 % 1000)).collect();
    let rows: Vec<Option<&str>> = texts.iter().map(|text| Some(text.as_str())).collect();
    write_parquet(&file, &[&rows[..150], &rows[150..]], zstd());
    let good = fs::read(&file).unwrap();
    let read = |column: &str| {
        let config = ParquetSourceConfig::new(&file)
            .with_options(SourceOptions::new().with_text_field(Some(column.into())));
        config.init().unwrap().read_all()
    };
    assert_eq!(read("text").unwrap().len(), 300);

    let missing = message(read("body"));
    assert!(missing.contains("a.parquet: field `column` is `body`"), "{missing}");
    assert!(missing.contains("id, text, tags"), "{missing}");
    let number = message(read("id"));
    assert!(number.contains("`id` of type INT64") && number.contains("strings"), "{number}");
    let list = message(read("tags"));
    assert!(list.contains("`tags` of type a list of BYTE_ARRAY"), "{list}");

    for bytes in [&good[..good.len() - 5], &good[..40], b"", b"PAR1 but not the rest of it PAR1"] {
        fs::write(&file, bytes).unwrap();
        let text = message(read("text"));
        assert!(text.contains("a.parquet, metadata, column `text`: damaged"), "{text}");
        assert!(text.contains("remedy"), "{text}");
    }
    fs::write(&file, &good).unwrap();
    let index = SerializedFileReader::new(File::open(&file).unwrap()).unwrap();
    let (start, len) = index.metadata().row_group(1).column(1).byte_range();
    let mut bytes = good.clone();
    let at = (start + len / 2) as usize;
    bytes[at..at + 40].fill(0xA5);
    fs::write(&file, &bytes).unwrap();
    let mut source = ParquetSourceConfig::new(&file).init().unwrap();
    for _ in 0..150 {
        source.next_document().unwrap();
    }
    let text = message(source.next_document());
    assert!(text.contains("a.parquet, row group 1, column `text`: damaged"), "{text}");
    // Whatever is wrong is an error or other text, never more.
    for at in (0..good.len()).step_by(7) {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(&file, bytes).unwrap();
        let _ = read("text");
    }

    write_parquet(&file, &[&[Some("one"), None, Some(" "), Some("two")]], Compression::SNAPPY);
    let mut source = SourceOptions::new().open(&file).unwrap();
    assert_eq!(self::texts(&mut *source), ["one", "two"]);
    assert_eq!(source.report().dropped["empty"].documents, 2);
    let short = SourceOptions::new().with_line_cap(Some(2));
    let capped = ParquetSourceConfig::new(&file).with_options(short.clone());
    let text = message(capped.clone().init().unwrap().read_all());
    assert!(text.contains("row 1, column `text`: 3 bytes, longer than the cap of 2"), "{text}");
    let lenient = short.with_bad_lines(Some(BadLines::Skip));
    let skipped = capped.with_options(lenient).init().unwrap().read_all();
    assert!(message(skipped).contains("skipped (bad row): 2"));
}
