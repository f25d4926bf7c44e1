//! Checkpoints on disk: what is written is read back, and what is wrong is refused by name.

mod config;
mod faults;
mod rope;
mod saving;

use longburn::models::weights::HostTensor;
use std::path::Path;

/// Four tensors of awkward shapes, values all different.
fn fixture() -> Vec<HostTensor> {
    let mut next = 0.0;
    [("a.weight", vec![3, 5]), ("b.bias", vec![7]), ("c.empty", vec![0, 4]), ("d.scalar", vec![])]
        .into_iter()
        .map(|(name, shape)| {
            let count = shape.iter().product();
            let data = std::iter::repeat_with(|| {
                next += 0.37;
                next
            });
            HostTensor::new(name, shape, data.take(count).collect()).unwrap()
        })
        .collect()
}

/// Sorted names in a folder.
fn listing(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
