//! The runner on damaged copies of one of its own fixtures: each must fail, and say why.

use crate::golden::Outcome;
use crate::table::Table;
use crate::{Failure, outcome, rope};
use longburn::models::weights::{RawTensor, SaveDtype, read_safetensors, write_safetensors};
use std::collections::BTreeMap;
use std::path::Path;

type Tensors = BTreeMap<String, RawTensor>;
type Metadata = BTreeMap<String, String>;

type Damage = fn(&mut Tensors, &mut Metadata);

/// What is done to the copy, and what the runner has to say of it.
const DAMAGES: [(Damage, &str); 7] = [
    (|t, _| scale(t, "out.q", 1.01), "out.q"),
    (|t, _| scale(t, "grad.k", -1.0), "grad.k"),
    (|t, _| scale(t, "out.sin", f32::NAN), "out.sin NaN"),
    (|t, _| copy(t, "out.q", "mid.q"), "unread tensors: [\"mid.q\"]"),
    (|t, _| drop(t.remove("grad.q")), "no tensor `grad.q`"),
    (|_, m| edit(m, "\"factor\": 8.0", "\"factor\": 4.0"), "out."),
    (|_, m| edit(m, "\"grad.q\": {", "\"grad.x\": {"), "grad.q: no tolerance"),
];

/// # Errors
/// What the runner let pass.
pub fn run(fixture: &Path, table: &Table) -> Result<(), Failure> {
    let folder = std::env::temp_dir().join(format!("longburn-goldens-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let result = damages(fixture, &folder);
    std::fs::remove_dir_all(&folder)?;
    result?;
    if table.find("group/nothing_reads_this")?.is_some() {
        return Err("selftest: an unknown file has a check".into());
    }
    Ok(())
}

fn damages(fixture: &Path, folder: &Path) -> Result<(), Failure> {
    let path = folder.join("copy.safetensors");
    for (damage, expected) in DAMAGES {
        let (mut tensors, mut metadata) = read_safetensors(fixture)?;
        damage(&mut tensors, &mut metadata);
        write_safetensors(&path, &tensors, &metadata)?;
        expect(&path, expected)?;
    }
    let bytes = std::fs::read(fixture)?;
    std::fs::write(&path, &bytes[..bytes.len() - 1])?;
    expect(&path, "cut short")
}

fn expect(path: &Path, expected: &str) -> Result<(), Failure> {
    match outcome(rope::check, path) {
        Outcome::Fail(reason) if reason.contains(expected) => Ok(()),
        Outcome::Fail(reason) => {
            Err(format!("selftest: `{reason}` where `{expected}` was expected").into())
        }
        Outcome::Ok(ratio) => Err(format!("selftest: {ratio} where `{expected}` must fail").into()),
    }
}

fn scale(tensors: &mut Tensors, name: &str, factor: f32) {
    if let Some(tensor) = tensors.get_mut(name) {
        let values: Vec<f32> =
            tensor.to_f32().unwrap_or_default().iter().map(|x| x * factor).collect();
        if let Ok(scaled) = RawTensor::from_f32(tensor.shape.clone(), &values, SaveDtype::F32) {
            *tensor = scaled;
        }
    }
}

fn copy(tensors: &mut Tensors, from: &str, to: &str) {
    if let Some(tensor) = tensors.get(from).cloned() {
        tensors.insert(to.into(), tensor);
    }
}

fn edit(metadata: &mut Metadata, from: &str, to: &str) {
    if let Some(text) = metadata.get_mut("golden") {
        *text = text.replace(from, to);
    }
}
