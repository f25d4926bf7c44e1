//! `longburn doctor`

use crate::device::{DeviceName, quietly};
use crate::{Globals, output};
use burn::tensor::{DType, Device, Tensor, TensorData};
use clap::Args;
use longburn::Result;
use longburn::models::hub::HubConfig;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::sync::LazyLock;

/// Burn's version, which Cargo.toml pins.
pub const BURN: &str = "0.22.1";

/// Features of this build, as Cargo.toml names them.
const FEATURES: [(&str, bool); 5] = [
    ("flex", cfg!(feature = "flex")),
    ("wgpu", cfg!(feature = "wgpu")),
    ("cuda", cfg!(feature = "cuda")),
    ("hub", cfg!(feature = "hub")),
    ("tui", cfg!(feature = "tui")),
];

/// What `--version` says.
pub static LONG_VERSION: LazyLock<String> = LazyLock::new(|| {
    let devices: Vec<String> = devices().iter().map(ToString::to_string).collect();
    format!(
        "{}\nfeatures: {}\ndevices: {}\nburn {BURN}",
        env!("CARGO_PKG_VERSION"),
        features().join(", "),
        devices.join(", ")
    )
});

/// Say what this machine and this build can do
///
/// Every device that is compiled in, and the one that --device names, computes a small product in
/// each number format; a format is listed where the result is right. Then threads, vector
/// instructions, the cache of downloads and the room on disk.
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn doctor
  longburn doctor --device wgpu:1 --json")]
pub struct DoctorArgs {}

impl DoctorArgs {
    pub fn run(&self, globals: &Globals) -> Result<()> {
        let mut names = devices();
        if !names.contains(&globals.device) {
            names.push(globals.device);
        }
        let mut found = Map::new();
        for name in names {
            found.insert(name.to_string(), examine(name));
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let hub = HubConfig::new().init();
        let cache = hub.cache();
        let facts = json!({
            "versions": {
                "longburn": env!("CARGO_PKG_VERSION"),
                "burn": BURN,
                "system": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            },
            "features": features(),
            "devices": found,
            "cpu": { "cores": cores, "threads": rayon::current_num_threads(), "simd": simd() },
            "cache": { "path": cache, "free_bytes": free(cache) },
            "here": { "free_bytes": free(Path::new(".")) },
        });
        match globals.json {
            true => output::json(&facts),
            false => output::print(&text(&facts)),
        }
    }
}

fn features() -> Vec<&'static str> {
    FEATURES.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect()
}

/// The devices that this build knows, by their default names.
fn devices() -> Vec<DeviceName> {
    [
        (cfg!(feature = "flex"), DeviceName::Flex),
        (cfg!(feature = "wgpu"), DeviceName::Wgpu(None)),
        (cfg!(feature = "cuda"), DeviceName::Cuda(None)),
    ]
    .into_iter()
    .filter_map(|(on, name)| on.then_some(name))
    .collect()
}

/// Whether a device computes, and in which formats.
fn examine(name: DeviceName) -> Value {
    let device = match name.open() {
        Ok(device) => device,
        Err(error) => return json!({ "runs": false, "problem": error.to_string() }),
    };
    let formats =
        [("f32", DType::F32), ("bf16", DType::BF16), ("f16", DType::F16), ("f64", DType::F64)];
    let right = |dtype: DType| {
        device.supports_dtype(dtype) && quietly(|| product(&device, dtype)).unwrap_or(false)
    };
    let dtypes: Vec<&str> =
        formats.iter().filter(|(_, dtype)| right(*dtype)).map(|(name, _)| *name).collect();
    match dtypes.contains(&"f32") {
        true => json!({ "runs": true, "dtypes": dtypes }),
        false => json!({
            "runs": false,
            "dtypes": dtypes,
            "problem": "a product in f32 failed or was wrong; check the driver",
        }),
    }
}

/// Whether a product of zeros and ones comes out as it must, to the last bit: its sums are whole
/// numbers small enough for every format.
fn product(device: &Device, dtype: DType) -> bool {
    const N: usize = 48;
    let bit = |i: usize, j: usize| ((i * 7 + j * 3) % 5 < 2) as u8 as f32;
    let values: Vec<f32> = (0..N * N).map(|at| bit(at / N, at % N)).collect();
    let x = Tensor::<2>::from_data(TensorData::new(values, [N, N]), (device, dtype));
    let got: Vec<f32> = x.clone().matmul(x).into_data().iter::<f32>().collect();
    (0..N * N).all(|at| {
        let (i, j) = (at / N, at % N);
        got[at] == (0..N).map(|k| bit(i, k) * bit(k, j)).sum::<f32>()
    })
}

/// Vector instructions that the CPU code chooses from when it runs.
pub fn simd() -> Vec<&'static str> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    for (name, there) in [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
    ] {
        if there {
            found.push(name);
        }
    }
    #[cfg(target_arch = "aarch64")]
    found.push("neon");
    found
}

/// Room for this user on the disk that holds `path`, or will.
fn free(path: &Path) -> Option<u64> {
    let there = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("."));
    fs4::available_space(there).ok()
}

fn text(facts: &Value) -> String {
    let line = |name: &str, value: String| format!("{name:<10} {value}\n");
    let words = |value: &Value| {
        let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
        items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
    };
    let string = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let bytes = |value: &Value| match value.as_u64() {
        Some(bytes) => format!("{:.1} GB free", bytes as f64 / 1e9),
        None => "free space unknown".into(),
    };
    let versions = &facts["versions"];
    let mut text = line(
        "longburn",
        format!(
            "{}, burn {}, {}",
            string(&versions["longburn"]),
            string(&versions["burn"]),
            string(&versions["system"])
        ),
    );
    text += &line("features", words(&facts["features"]));
    for (name, device) in facts["devices"].as_object().into_iter().flatten() {
        let state = match device["runs"] == true {
            true => format!("runs; {}", words(&device["dtypes"])),
            false => format!("does not run: {}", string(&device["problem"])),
        };
        text += &line(name, state);
    }
    let cpu = &facts["cpu"];
    text += &line("cpu", format!("{} cores, {} threads", cpu["cores"], cpu["threads"]));
    text += &line("simd", words(&cpu["simd"]));
    let cache = &facts["cache"];
    text += &line("cache", format!("{}, {}", string(&cache["path"]), bytes(&cache["free_bytes"])));
    text + &line("here", bytes(&facts["here"]["free_bytes"]))
}
