//! Writing and reading back.

use super::{fixture, listing};
use burn::tensor::Device;
use half::{bf16, f16};
use longburn::Error;
use longburn::attention::MixerConfig;
use longburn::models::weights::{
    Dtype, HostTensor, RawTensor, SaveDtype, WeightFiles, read_safetensors, save_weights,
    write_atomic, write_safetensors,
};
use longburn::models::{Decoder, ModelConfig, SaveOptions};
use safetensors::tensor::TensorView;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Every tensor comes back with its shape and bits, and there is no other.
fn assert_holds(dir: &Path, tensors: &[HostTensor]) {
    let files = WeightFiles::open(dir).unwrap();
    let mut names: Vec<_> = tensors.iter().map(|t| t.name.as_str()).collect();
    names.sort();
    assert_eq!(files.names().collect::<Vec<_>>(), names);
    for t in tensors {
        assert_eq!(files.shape(&t.name), Some(&t.shape[..]), "{}", t.name);
        assert_eq!(bits(&files.load_f32(&t.name).unwrap()), bits(&t.data), "{}", t.name);
    }
}

#[test]
fn f32_round_trip_keeps_every_bit() {
    let dir = tempfile::tempdir().unwrap();
    let odd = [0x7fc0_1234, 0xffa0_0001, 0x8000_0000, 0x0000_0001, 0x7f80_0000, 0x7f7f_ffff];
    let mut tensors = fixture();
    let data = odd.map(f32::from_bits).to_vec();
    tensors.push(HostTensor::new("odd", vec![2, 3], data).unwrap());
    save_weights(dir.path(), &tensors, SaveDtype::F32, None).unwrap();
    assert_holds(dir.path(), &tensors);
    assert_eq!(listing(dir.path()), ["model.safetensors"]);
}

/// All 65536 patterns of both 16-bit types, against the definition of the formats.
#[test]
fn half_types_are_read_exactly_and_written_to_the_nearest() {
    let power = |e: i32| 2f64.powi(e);
    let value = |pattern: u16, mantissa: u32, bias: i32| -> f64 {
        let sign = if pattern >> 15 == 1 { -1.0 } else { 1.0 };
        let exponent = i32::from((pattern & 0x7fff) >> mantissa);
        let fraction = f64::from(pattern & ((1 << mantissa) - 1)) / power(mantissa as i32);
        let top = (1 << (15 - mantissa)) - 1;
        sign * match exponent {
            0 => fraction * power(1 - bias),
            e if e == top && fraction == 0.0 => f64::INFINITY,
            e if e == top => f64::NAN,
            e => (1.0 + fraction) * power(e - bias),
        }
    };
    let patterns: Vec<u16> = (0..=u16::MAX).collect();
    let data: Vec<u8> = patterns.iter().flat_map(|p| p.to_le_bytes()).collect();
    let cases = [(Dtype::BF16, SaveDtype::BF16, 7, 127), (Dtype::F16, SaveDtype::F16, 10, 15)];
    for (dtype, save, mantissa, bias) in cases {
        let raw = RawTensor { dtype, shape: vec![65536], data: data.clone() };
        let read = raw.to_f32().unwrap();
        for (&pattern, &got) in patterns.iter().zip(&read) {
            let want = value(pattern, mantissa, bias);
            assert!(f64::from(got) == want || (got.is_nan() && want.is_nan()), "{pattern:#x}");
        }
        let numbers: Vec<f32> = read.into_iter().filter(|x| !x.is_nan()).collect();
        let again = RawTensor::from_f32(vec![numbers.len()], &numbers, save).unwrap();
        assert_eq!(bits(&again.to_f32().unwrap()), bits(&numbers));
    }
    // Halfway between two neighbours: to the even one.
    let x = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0];
    let rounded = RawTensor::from_f32(vec![2], &x, SaveDtype::BF16).unwrap().to_f32().unwrap();
    assert_eq!(rounded, [1.0, 1.0 + 4.0 / 256.0]);
}

#[test]
fn values_beyond_a_type_are_refused_not_made_infinite() {
    let dir = tempfile::tempdir().unwrap();
    save_weights(dir.path(), &fixture(), SaveDtype::F32, None).unwrap();
    let large = [HostTensor::new("w", vec![2], vec![1.0, 7e4]).unwrap()];
    let error = save_weights(dir.path(), &large, SaveDtype::F16, None).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("70000"), "{error}");
    assert_holds(dir.path(), &fixture());
    save_weights(dir.path(), &large, SaveDtype::BF16, None).unwrap();
    let infinite = [HostTensor::new("w", vec![1], vec![f32::INFINITY]).unwrap()];
    save_weights(dir.path(), &infinite, SaveDtype::F16, None).unwrap();
    assert_holds(dir.path(), &infinite);
}

/// Same bytes as the reference implementation, mixed types and all.
#[test]
fn bytes_equal_the_reference_writer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let raw = |dtype, shape: &[usize], data: &[u8]| RawTensor {
        dtype,
        shape: shape.into(),
        data: data.into(),
    };
    let tensors = BTreeMap::from([
        ("steps".to_string(), RawTensor::from_i64(vec![2], &[i64::MIN, 7]).unwrap()),
        ("mask".to_string(), raw(Dtype::U8, &[3], &[1, 2, 3])),
        ("half \"quoted\"\n".to_string(), raw(Dtype::F16, &[1, 2], &[0, 60, 0, 64])),
        ("ids".to_string(), raw(Dtype::I32, &[1], &[255, 255, 255, 255])),
    ]);
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    write_safetensors(&path, &tensors, &metadata).unwrap();

    let views: Vec<_> = tensors
        .iter()
        .map(|(n, t)| (n, TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap()))
        .collect();
    let info = HashMap::from([("format".to_string(), "pt".to_string())]);
    assert_eq!(fs::read(&path).unwrap(), safetensors::serialize(views, Some(info)).unwrap());

    let (again, info) = read_safetensors(&path).unwrap();
    assert_eq!((&again, &info), (&tensors, &metadata));
    assert_eq!(again["steps"].to_i64().unwrap(), [i64::MIN, 7]);
    assert_eq!(again["ids"].to_i64().unwrap(), [-1]);
    assert!(again["ids"].to_f32().is_err() && again["mask"].to_i64().is_err());
    let error = WeightFiles::open_file(&path).unwrap().load_f32("steps").unwrap_err();
    assert!(matches!(&error, Error::Weights { file, .. } if *file == path), "{error}");
}

#[test]
fn shards_are_numbered_indexed_and_deterministic() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut tensors = fixture();
    save_weights(one.path(), &tensors, SaveDtype::F32, Some(60)).unwrap();
    tensors.reverse();
    save_weights(two.path(), &tensors, SaveDtype::F32, Some(60)).unwrap();
    let names = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ];
    assert_eq!(listing(one.path()), names);
    for name in names {
        let read = |dir: &tempfile::TempDir| fs::read(dir.path().join(name)).unwrap();
        assert_eq!(read(&one), read(&two), "{name}");
    }
    assert_holds(one.path(), &tensors);
    let files = WeightFiles::open(one.path()).unwrap();
    assert!(files.file("b.bias").unwrap().ends_with(names[1]));
    // What fits exactly needs no shards.
    save_weights(two.path(), &tensors, SaveDtype::F32, Some(92)).unwrap();
    assert_eq!(listing(two.path()), ["model.safetensors"]);

    let text = fs::read_to_string(one.path().join(names[2])).unwrap();
    let index: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(index["metadata"]["total_size"], 4 * (15 + 7 + 1));
    assert_eq!(index["weight_map"]["a.weight"], names[0]);
    assert_eq!(index["weight_map"].as_object().unwrap().len(), 4);
}

/// Whatever was saved before, the folder holds the new weights alone afterwards.
#[test]
fn a_save_replaces_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let bystanders = ["model-notes.safetensors", "optimizer.safetensors", "config.json"];
    for name in bystanders {
        fs::write(dir.path().join(name), "x").unwrap();
    }
    let mut tensors = fixture();
    for limit in [None, Some(20), Some(60), None, Some(60), Some(20)] {
        for t in &mut tensors {
            t.data.iter_mut().for_each(|x| *x += 1.0);
        }
        save_weights(dir.path(), &tensors, SaveDtype::F32, limit).unwrap();
        assert_holds(dir.path(), &tensors);
        let expected = match limit {
            None => 1,
            Some(60) => 3,
            _ => 4,
        };
        let names = listing(dir.path());
        assert_eq!(names.len(), expected + bystanders.len(), "{names:?}");
    }
}

/// A sharded save that was killed before its index does not pass for a checkpoint.
#[test]
fn shards_without_their_index_do_not_open() {
    let dir = tempfile::tempdir().unwrap();
    save_weights(dir.path(), &fixture(), SaveDtype::F32, Some(60)).unwrap();
    fs::remove_file(dir.path().join("model.safetensors.index.json")).unwrap();
    let error = WeightFiles::open(dir.path()).unwrap_err();
    assert!(matches!(&error, Error::Weights { file, .. } if file == dir.path()), "{error}");
    assert!(error.to_string().contains("interrupted"), "{error}");
}

/// New shards may have the names of old ones; the old index is gone before the first changes.
#[test]
fn a_save_that_fails_midway_does_not_leave_an_index() {
    let dir = tempfile::tempdir().unwrap();
    save_weights(dir.path(), &fixture(), SaveDtype::F32, Some(60)).unwrap();
    let second = dir.path().join("model-00002-of-00002.safetensors");
    fs::remove_file(&second).unwrap();
    fs::create_dir(&second).unwrap();
    let error = save_weights(dir.path(), &fixture(), SaveDtype::F32, Some(60)).unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if *path == second), "{error}");
    assert_eq!(listing(dir.path()), [1, 2].map(|i| format!("model-0000{i}-of-00002.safetensors")));
}

#[test]
fn bad_tensors_are_not_written() {
    let dir = tempfile::tempdir().unwrap();
    assert!(HostTensor::new("w", vec![2, 3], vec![0.0; 5]).is_err());
    assert!(HostTensor::new("w", vec![usize::MAX, 2], vec![]).is_err());
    let twice = [fixture(), fixture()].concat();
    let error = save_weights(dir.path(), &twice, SaveDtype::F32, None).unwrap_err();
    assert!(error.to_string().contains("a.weight"), "{error}");
    let mut torn = fixture();
    torn[0].data.pop();
    assert!(save_weights(dir.path(), &torn, SaveDtype::F32, Some(1)).is_err());
    let raw = RawTensor { dtype: Dtype::F32, shape: vec![2], data: vec![0; 7] };
    let path = dir.path().join("x.safetensors");
    let odd = BTreeMap::from([("x".to_string(), raw)]);
    assert!(write_safetensors(&path, &odd, &BTreeMap::new()).is_err());
    assert!(listing(dir.path()).is_empty());
}

#[test]
fn atomic_files_replace_and_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    write_atomic(&path, b"old").unwrap();
    write_atomic(&path, b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(listing(dir.path()), ["config.json"]);
    assert!(matches!(write_atomic(&dir.path().join("no/x"), b""), Err(Error::Io { .. })));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let plain = dir.path().join("plain");
        fs::write(&plain, "").unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&plain));
    }
}

/// What `half` says is what the file holds (guards the two types against being swapped).
#[test]
fn dtypes_are_stored_under_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let w = [HostTensor::new("w", vec![1], vec![1.2]).unwrap()];
    let bf = (SaveDtype::BF16, Dtype::BF16, bf16::from_f32(1.2).to_f32(), "bfloat16");
    let fp = (SaveDtype::F16, Dtype::F16, f16::from_f32(1.2).to_f32(), "float16");
    for (save, stored, value, name) in [bf, fp, (SaveDtype::F32, Dtype::F32, 1.2, "float32")] {
        save_weights(dir.path(), &w, save, None).unwrap();
        let files = WeightFiles::open(dir.path()).unwrap();
        assert_eq!(files.dtype("w"), Some(stored));
        assert_eq!(files.load_f32("w").unwrap(), [value]);
        assert_eq!(save.torch_name(), name);
        assert_eq!(files.metadata()["format"], "pt");
    }
}

/// The checkpoint says how far it was trained and by how much that is stretched.
#[test]
fn an_extended_model_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let config = ModelConfig::llama(16, 8, 1, 2).with_max_positions(64);
    let model = Decoder::new(&config, &MixerConfig::Dense, 0, &Device::default()).unwrap();
    let rope = config.rope.interpolated(4.0).unwrap();
    let model = model.with_rope(rope.clone(), 48).unwrap();
    model.save(dir.path(), &SaveOptions::default()).unwrap();
    let read = ModelConfig::from_file(&dir.path().join("config.json")).unwrap();
    assert_eq!((read.max_position_embeddings, read.max_context()), (48, 192));
    assert_eq!(read.rope, rope);
}
