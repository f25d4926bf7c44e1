//! A golden file: inputs, expected results and how far from them one may be.

use crate::Failure;
use longburn::models::weights::{RawTensor, read_safetensors};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// An opened golden; remembers what was read and how far off the results were.
pub struct Golden {
    path: PathBuf,
    tensors: BTreeMap<String, RawTensor>,
    config: Value,
    tolerance: Value,
    read: RefCell<BTreeSet<String>>,
    deviations: RefCell<Vec<Deviation>>,
}

/// How a file went.
pub enum Outcome {
    /// Worst of measured over allowed.
    Ok(f64),
    /// What is wrong.
    Fail(String),
}

struct Deviation {
    tensor: String,
    measure: &'static str,
    got: f64,
    allowed: f64,
}

impl Deviation {
    fn ratio(&self) -> f64 {
        if self.got.is_nan() {
            return f64::INFINITY;
        }
        if self.got == 0.0 { 0.0 } else { self.got / self.allowed }
    }
}

impl Golden {
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let (tensors, metadata) = read_safetensors(path)?;
        let text = metadata.get("golden").ok_or("no metadata entry `golden`")?;
        let mut meta: Value = serde_json::from_str(text)?;
        Ok(Self {
            path: path.into(),
            tensors,
            config: meta["config"].take(),
            tolerance: meta["tolerance"].take(),
            read: RefCell::default(),
            deviations: RefCell::default(),
        })
    }

    /// The settings the file was made with.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// A whole number among the settings.
    pub fn number(&self, key: &str) -> Result<usize, Failure> {
        let value = self.config[key].as_u64();
        Ok(value.ok_or_else(|| format!("config.{key} is no whole number"))? as usize)
    }

    /// The folder beside the file that the setting `key` names, by default the file's own name.
    pub fn folder(&self, key: &str) -> PathBuf {
        match self.config[key].as_str() {
            Some(name) => self.path.with_file_name(name),
            None => self.path.with_extension(""),
        }
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Names that begin with `prefix`.
    pub fn names(&self, prefix: &str) -> Vec<&str> {
        self.tensors.keys().filter(|n| n.starts_with(prefix)).map(String::as_str).collect()
    }

    fn tensor(&self, name: &str) -> Result<&RawTensor, Failure> {
        self.read.borrow_mut().insert(name.into());
        Ok(self.tensors.get(name).ok_or_else(|| format!("no tensor `{name}`"))?)
    }

    pub fn shape(&self, name: &str) -> Result<&[usize], Failure> {
        Ok(&self.tensor(name)?.shape)
    }

    pub fn floats(&self, name: &str) -> Result<Vec<f32>, Failure> {
        Ok(self.tensor(name)?.to_f32().map_err(|e| format!("{name}: {e}"))?)
    }

    pub fn integers(&self, name: &str) -> Result<Vec<i64>, Failure> {
        Ok(self.tensor(name)?.to_i64().map_err(|e| format!("{name}: {e}"))?)
    }

    /// Token ids.
    pub fn ids(&self, name: &str) -> Result<Vec<u32>, Failure> {
        let ids = self.integers(name)?.into_iter().map(u32::try_from);
        Ok(ids.collect::<Result<_, _>>().map_err(|_| format!("{name}: an id below 0"))?)
    }

    /// Tensors that hold no result to compare with, by the beginning of their names.
    pub fn ignore(&self, prefix: &str) {
        let names = self.names(prefix).into_iter().map(String::from).collect::<Vec<_>>();
        self.read.borrow_mut().extend(names);
    }

    /// Compare with a float tensor by the largest difference and by RMS(got − want) / RMS(want).
    pub fn compare(&self, name: &str, got: &[f32]) -> Result<(), Failure> {
        self.compare_within(name, name, got)
    }

    /// The same with the tolerance of another tensor, for a file that gives `name` none.
    pub fn compare_within(
        &self,
        tolerance_of: &str,
        name: &str,
        got: &[f32],
    ) -> Result<(), Failure> {
        let want = self.floats(name)?;
        if got.len() != want.len() {
            return Err(format!("{name}: {} values, expected {}", got.len(), want.len()).into());
        }
        let allowed = |key: &str| {
            let of = |tensor: &str| self.tolerance[tensor][key].as_f64();
            of(tolerance_of)
                .or_else(|| of("*"))
                .ok_or_else(|| format!("{name}: no tolerance {key}"))
        };
        let (mut largest, mut error, mut size) = (0f64, 0f64, 0f64);
        for (got, want) in got.iter().zip(&want) {
            let (difference, want) = (f64::from(*got) - f64::from(*want), f64::from(*want));
            // f64::max would drop NaN.
            if difference.is_nan() || difference.abs() > largest {
                largest = difference.abs();
            }
            error += difference * difference;
            size += want * want;
        }
        self.note(name, "max_abs", largest, allowed("max_abs")?);
        // Where all is zero there is nothing to relate to, and the largest difference decides, as
        // where a tensor's tolerance is for that alone.
        let alone = self.tolerance[tolerance_of]["max_abs"].is_f64()
            && self.tolerance[tolerance_of]["rms_ratio"].is_null();
        if size > 0.0 && !alone {
            self.note(name, "rms_ratio", (error / size).sqrt(), allowed("rms_ratio")?);
        }
        Ok(())
    }

    /// Compare with some of the values of a tensor, whose tolerance is relative: where it is for
    /// groups of tensors, as `out.*`.
    pub fn compare_part(
        &self,
        name: &str,
        part: std::ops::Range<usize>,
        got: &[f32],
    ) -> Result<(), Failure> {
        let want = self.floats(name)?;
        let want = want.get(part.clone()).ok_or_else(|| format!("{name} has no {part:?}"))?;
        let group = name.split('.').next().unwrap_or_default();
        let allowed = self.tolerance[format!("{group}.*")]["rel"].as_f64();
        let allowed = allowed.ok_or_else(|| format!("{name}: no relative tolerance"))?;
        if got.len() != want.len() {
            return Err(format!("{name}: {} values, expected {}", got.len(), want.len()).into());
        }
        for (got, want) in got.iter().zip(want) {
            let apart = (f64::from(*got) - f64::from(*want)).abs() / f64::from(*want).abs();
            self.note(name, "relative", apart, allowed);
        }
        Ok(())
    }

    /// Compare with an integer tensor, exactly.
    pub fn compare_integers(&self, name: &str, got: &[i64]) -> Result<(), Failure> {
        let want = self.integers(name)?;
        if got.len() != want.len() {
            return Err(format!("{name}: {} values, expected {}", got.len(), want.len()).into());
        }
        let wrong = got.iter().zip(&want).filter(|(a, b)| a != b).count();
        self.note(name, "values that differ", wrong as f64, 0.0);
        Ok(())
    }

    fn note(&self, tensor: &str, measure: &'static str, got: f64, allowed: f64) {
        let deviation = Deviation { tensor: tensor.into(), measure, got, allowed };
        self.deviations.borrow_mut().push(deviation);
    }

    /// The verdict, once a check has run.
    pub fn outcome(&self) -> Outcome {
        let read = self.read.borrow();
        let unread: Vec<_> = self.tensors.keys().filter(|name| !read.contains(*name)).collect();
        if !unread.is_empty() {
            return Outcome::Fail(format!("unread tensors: {unread:?}"));
        }
        let deviations = self.deviations.borrow();
        let worst = deviations.iter().max_by(|a, b| a.ratio().total_cmp(&b.ratio()));
        let Some(worst) = worst else {
            return Outcome::Fail("nothing was compared".into());
        };
        let failing: BTreeSet<&str> =
            deviations.iter().filter(|d| d.ratio() > 1.0).map(|d| d.tensor.as_str()).collect();
        if failing.is_empty() {
            return Outcome::Ok(worst.ratio());
        }
        let Deviation { tensor, measure, got, allowed } = worst;
        let more = match failing.len() - 1 {
            0 => String::new(),
            n => format!(" and {n} more tensors"),
        };
        Outcome::Fail(format!("{tensor} {got:.3e} {allowed:.3e} ({measure}){more}"))
    }
}
