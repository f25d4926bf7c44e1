//! Damaged and hostile weight files.

use super::fixture;
use longburn::Error;
use longburn::models::weights::{SaveDtype, WeightFiles, save_weights};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

/// The refusal, which must name `file` and a remedy.
fn refusal(opened: longburn::Result<WeightFiles>, file: &Path) -> String {
    match opened.map(|_| ()) {
        Err(Error::Weights { file: named, reason, remedy }) => {
            assert_eq!(named, file, "{reason}");
            assert!(!remedy.is_empty());
            reason
        }
        other => panic!("{}: expected a refusal, got {other:?}", file.display()),
    }
}

#[test]
fn f1_truncated_safetensors() {
    let dir = tempfile::tempdir().unwrap();
    save_weights(dir.path(), &fixture(), SaveDtype::F32, None).unwrap();
    let path = dir.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let payload = whole.len() - header;
    let points = (0..64).map(|i| header + i * payload / 64);
    for length in (0..header).chain(points) {
        fs::write(&path, &whole[..length]).unwrap();
        refusal(WeightFiles::open(dir.path()), &path);
    }
    fs::write(&path, &whole).unwrap();
    WeightFiles::open(dir.path()).unwrap();

    // Of several shards, the one at fault is named.
    save_weights(dir.path(), &fixture(), SaveDtype::F32, Some(60)).unwrap();
    let shard = dir.path().join("model-00002-of-00002.safetensors");
    let bytes = fs::read(&shard).unwrap();
    fs::write(&shard, &bytes[..bytes.len() - 1]).unwrap();
    assert!(refusal(WeightFiles::open(dir.path()), &shard).contains("announced"));
}

/// Header text and payload as one file.
fn file_of(header: impl AsRef<[u8]>, payload: usize) -> Vec<u8> {
    let header = header.as_ref();
    [&(header.len() as u64).to_le_bytes(), header, &vec![0; payload]].concat()
}

/// Names the folder when this test runs itself as a process of its own, to see its memory.
const ALONE: &str = "LONGBURN_TEST_HOSTILE_HEADERS";

#[test]
fn f2_hostile_headers() {
    if let Some(dir) = std::env::var_os(ALONE) {
        return refuse_all(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    let one = |shape: &str, dtype: &str, offsets: &str| {
        format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let two = |first: &str, second: &str| {
        let part = |name: &str, offsets: &str| {
            format!(r#""{name}":{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}"#)
        };
        format!("{{{},{}}}", part("a", first), part("b", second))
    };
    let good = file_of(one("[2]", "F32", "[0,8]"), 8);
    write("good", &good);
    WeightFiles::open_file(&dir.path().join("good")).unwrap();
    fs::remove_file(dir.path().join("good")).unwrap();

    for (name, length) in [("length_2_63", 1 << 63), ("length_max", u64::MAX), ("length_0", 0)] {
        write(name, &[&u64::to_le_bytes(length), &good[8..]].concat());
    }
    // 150 MB that are really there, as a hole in the file.
    let large = File::create(dir.path().join("large")).unwrap();
    std::io::Write::write_all(&mut &large, &150_000_000u64.to_le_bytes()).unwrap();
    large.set_len(200_000_000).unwrap();

    write("overlap", &file_of(two("[0,8]", "[4,12]"), 12));
    write("same_region", &file_of(two("[0,8]", "[0,8]"), 8));
    write("gap", &file_of(two("[0,8]", "[12,20]"), 20));
    write("gap_at_start", &file_of(one("[2]", "F32", "[4,12]"), 12));
    write("backwards", &file_of(one("[2]", "F32", "[8,0]"), 8));
    write("negative", &file_of(one("[2]", "F32", "[-8,0]"), 8));
    write("negative_axis", &file_of(one("[-2]", "F32", "[0,8]"), 8));
    write("beyond_the_end", &file_of(one("[2000000000000]", "F32", "[0,8000000000000]"), 8));
    write("more_behind", &file_of(one("[2]", "F32", "[0,8]"), 9));
    write("other_size", &file_of(one("[3]", "F32", "[0,8]"), 8));
    write("overflow_axes", &file_of(one("[4294967296,4294967296]", "F32", "[0,8]"), 8));
    write("overflow_bytes", &file_of(one("[9223372036854775807]", "F32", "[0,8]"), 8));
    write("huge_number", &file_of(one("[1e308]", "F32", "[0,8]"), 8));
    write("unknown_dtype", &file_of(one("[2]", "F33", "[0,8]"), 8));
    write("long_dtype", &file_of(one("[2]", &"F".repeat(1_000_000), "[0,8]"), 8));
    let tensor = r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;
    write("duplicate_key", &file_of(format!("{{{tensor},{tensor}}}"), 8));
    let notes = r#""__metadata__":{"x":"1"}"#;
    write("duplicate_metadata", &file_of(format!("{{{notes},{notes},{tensor}}}"), 8));
    write("metadata_number", &file_of(format!(r#"{{"__metadata__":{{"x":1}},{tensor}}}"#), 8));
    write("not_utf8", &file_of([b"{\"\xff\":".as_slice(), tensor.as_bytes()].concat(), 8));
    write("not_json", &file_of("{\"a\":", 8));
    write("a_list", &file_of("[]", 0));
    write("deep", &file_of(format!("{{\"a\":{}", "[".repeat(10_000)), 8));
    write("web_page", b"<!DOCTYPE html><html><body>404</body></html>");
    write("lfs_pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n");

    let this = std::env::current_exe().unwrap();
    let run = std::process::Command::new(this)
        .args(["files::faults::f2_hostile_headers", "--exact", "--nocapture"])
        .env(ALONE, dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{text}\n{}", String::from_utf8_lossy(&run.stderr));
    assert!(text.contains("1 passed"), "{text}");
}

fn refuse_all(dir: &Path) {
    let mut seen = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let (memory, start) = (peak_memory(), Instant::now());
        let reason = refusal(WeightFiles::open_file(&path), &path);
        assert!(start.elapsed() < Duration::from_secs(1), "{}", path.display());
        assert!(peak_memory() - memory < 64 << 20, "{}", path.display());
        assert!(reason.len() < 1000, "{}: {} bytes of text", path.display(), reason.len());
        seen += 1;
    }
    assert_eq!(seen, 28);
}

/// Highest resident memory so far, bytes; 0 where the system does not tell.
fn peak_memory() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<usize>().ok());
    kilobytes.unwrap_or(0) << 10
}

#[test]
fn f4_wrong_index() {
    let dir = tempfile::tempdir().unwrap();
    save_weights(dir.path(), &fixture(), SaveDtype::F32, Some(60)).unwrap();
    let index = dir.path().join("model.safetensors.index.json");
    let shards = [1, 2].map(|i| format!("model-0000{i}-of-00002.safetensors"));
    let paths = shards.each_ref().map(|s| dir.path().join(s));
    let text = fs::read_to_string(&index).unwrap();
    let good: serde_json::Value = serde_json::from_str(&text).unwrap();
    let open = |map: &serde_json::Value| {
        fs::write(&index, map.to_string()).unwrap();
        WeightFiles::open(dir.path())
    };
    let with = |tensor: &str, shard: &str| {
        let mut changed = good.clone();
        changed["weight_map"][tensor] = json!(shard);
        changed
    };
    open(&good).unwrap();

    // Listed but absent; in the other shard; in no list.
    assert!(refusal(open(&with("e", &shards[1])), &paths[1]).contains("\"e\""));
    let reason = refusal(open(&with("a.weight", &shards[1])), &paths[1]);
    assert!(reason.contains("lacks") && reason.contains("a.weight"), "{reason}");
    let mut unlisted = good.clone();
    unlisted["weight_map"].as_object_mut().unwrap().remove("b.bias");
    assert!(refusal(open(&unlisted), &paths[1]).contains("b.bias"));

    // Listed twice, and in two shards.
    let twice =
        format!(r#"{{"weight_map":{{"a.weight":"{0}","a.weight":"{1}"}}}}"#, shards[0], shards[1]);
    fs::write(&index, twice).unwrap();
    assert!(refusal(WeightFiles::open(dir.path()), &index).contains("twice"));
    let (first, second) = (fs::read(&paths[0]).unwrap(), fs::read(&paths[1]).unwrap());
    fs::write(&paths[1], &first).unwrap();
    assert!(refusal(open(&good), &paths[1]).contains("a.weight"));
    fs::write(&paths[1], &second).unwrap();

    // Not a plain file name: a file that is there, by ways that lead out of the folder or back.
    let absolute = paths[0].display().to_string();
    let name = dir.path().file_name().unwrap().to_str().unwrap();
    let back = format!("../{name}/{}", shards[0]);
    let dotted = format!("./{}", shards[0]);
    let windows = format!("..\\{}", shards[0]);
    for shard in [&absolute, &back, &dotted, &windows, "C:x", "..", ".", "", "x\0"] {
        let reason = refusal(open(&with("a.weight", shard)), &index);
        assert!(reason.contains("plain file name"), "{shard}: {reason}");
    }

    for text in ["", "[]", "{}", r#"{"weight_map":{}}"#, r#"{"weight_map":{"a":1}}"#] {
        fs::write(&index, text).unwrap();
        refusal(WeightFiles::open(dir.path()), &index);
    }
    fs::write(&index, format!("{{\"weight_map\":{}", "[".repeat(10_000))).unwrap();
    refusal(WeightFiles::open(dir.path()), &index);
    File::create(&index).unwrap().set_len(200_000_000).unwrap();
    assert!(matches!(WeightFiles::open(dir.path()), Err(Error::Parse { .. })));

    fs::remove_file(&paths[0]).unwrap();
    assert!(refusal(open(&good), &paths[0]).contains("missing"));
}

/// Sizes that the files do not bear out are refused before anything of those sizes is made.
#[test]
fn f5_declared_sizes_are_compared_with_the_files() {
    use longburn::attention::MixerConfig;
    use longburn::models::{Decoder, ModelConfig, SaveOptions};
    let dir = tempfile::tempdir().unwrap();
    let device = burn::tensor::Device::flex();
    let config = ModelConfig::llama(16, 8, 1, 2);
    let model = Decoder::new(&config, &MixerConfig::Dense, 0, &device).unwrap();
    model.save(dir.path(), &SaveOptions::default()).unwrap();
    let path = dir.path().join("config.json");
    let good: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    for (field, value, says) in [
        ("num_hidden_layers", 10_000, "model.layers.9999.mlp.down_proj.weight"),
        ("intermediate_size", 1 << 24, "expected [8, 16777216]"),
        ("num_attention_heads", 1 << 16, "expected [262144, 8]"),
    ] {
        let mut wrong = good.clone();
        wrong["head_dim"] = json!(4);
        wrong[field] = json!(value);
        fs::write(&path, wrong.to_string()).unwrap();
        let start = Instant::now();
        let error = Decoder::load(dir.path(), &MixerConfig::Dense, &device).unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(5), "{field}");
        assert!(error.to_string().contains(says), "{field}: {:.300}", error.to_string());
    }
}

#[test]
fn f6_mismatch_lists_everything() {
    let dir = tempfile::tempdir().unwrap();
    save_weights(dir.path(), &fixture(), SaveDtype::F32, None).unwrap();
    let files = WeightFiles::open(dir.path()).unwrap();
    let shapes = |list: &[(&str, &[usize])]| -> BTreeMap<String, Vec<usize>> {
        list.iter().map(|(n, s)| (n.to_string(), s.to_vec())).collect()
    };
    let right: &[(&str, &[usize])] =
        &[("a.weight", &[3, 5]), ("b.bias", &[7]), ("c.empty", &[0, 4]), ("d.scalar", &[])];
    files.check_names(&shapes(right), |_| false).unwrap();

    // Same number of values in a.weight, but turned round.
    let other = shapes(&[("a.weight", &[5, 3]), ("b.bias", &[8]), ("e", &[1]), ("f", &[2])]);
    match files.check_names(&other, |_| false).unwrap_err() {
        Error::TensorMismatch { what, missing, unexpected, misshaped } => {
            assert_eq!(what, dir.path().display().to_string());
            assert_eq!(missing, ["e", "f"]);
            assert_eq!(unexpected, ["c.empty", "d.scalar"]);
            assert_eq!(misshaped.len(), 2);
            assert_eq!(misshaped[0], "a.weight: got [3, 5], expected [5, 3]");
        }
        other => panic!("{other:?}"),
    }
    // What may be absent or superfluous is neither; its shape still counts.
    let lax = shapes(&[("a.weight", &[3, 5]), ("b.bias", &[7]), ("c.empty", &[0, 4]), ("e", &[1])]);
    files.check_names(&lax, |name| ["d.scalar", "e"].contains(&name)).unwrap();
    assert!(files.check_names(&other, |_| true).is_err());
    assert!(matches!(files.load_f32("e"), Err(Error::Weights { .. })));
}

#[test]
fn f7_pickle_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let reason = refusal(WeightFiles::open(dir.path()), dir.path());
    assert!(reason.contains("neither"), "{reason}");
    fs::write(dir.path().join("pytorch_model.bin"), "x").unwrap();
    let reason = refusal(WeightFiles::open(dir.path()), dir.path());
    assert!(reason.contains("pytorch_model.bin"), "{reason}");
    let nowhere = dir.path().join("nowhere");
    assert!(matches!(WeightFiles::open(&nowhere), Err(Error::Io { path, .. }) if path == nowhere));
}
