//! Tensors on the host, and their bytes.

use crate::{Error, Result};
use half::{bf16, f16};
use safetensors::{Dtype, View};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Number type of written weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SaveDtype {
    /// 32 bits, as they are in memory.
    F32,
    /// 16 bits with the range of f32.
    BF16,
    /// 16 bits with more digits and less range.
    F16,
}

impl SaveDtype {
    /// The name that `config.json` uses.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::BF16 => "bfloat16",
            Self::F16 => "float16",
        }
    }

    /// The name that safetensors uses.
    pub fn stored(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::BF16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
        }
    }

    fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => to_bytes(values, |x| x.to_le_bytes()),
            Self::BF16 => to_bytes(values, |x| bf16::from_f32(x).to_le_bytes()),
            Self::F16 => to_bytes(values, |x| f16::from_f32(x).to_le_bytes()),
        }
    }

    /// A finite value that this type turns infinite, if there is one.
    pub(super) fn overflow(self, values: &[f32]) -> Option<f32> {
        let infinite: fn(f32) -> bool = match self {
            Self::F32 => return None,
            Self::BF16 => |x| bf16::from_f32(x).is_infinite(),
            Self::F16 => |x| f16::from_f32(x).is_infinite(),
        };
        values.iter().copied().find(|x| x.is_finite() && infinite(*x))
    }
}

/// A named weight in f32.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// Name in the file.
    pub name: String,
    /// Lengths of the axes.
    pub shape: Vec<usize>,
    /// Values, last axis fastest.
    pub data: Vec<f32>,
}

impl HostTensor {
    /// From name, shape and values.
    ///
    /// # Errors
    /// When the shape does not hold as many values.
    pub fn new(name: impl Into<String>, shape: Vec<usize>, data: Vec<f32>) -> Result<Self> {
        let tensor = Self { name: name.into(), shape, data };
        tensor.check()?;
        Ok(tensor)
    }

    pub(super) fn check(&self) -> Result<()> {
        check_count(&self.name, &self.shape, self.data.len())
    }
}

/// A tensor as it lies in a file: type, shape and little-endian bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct RawTensor {
    /// Number type.
    pub dtype: Dtype,
    /// Lengths of the axes.
    pub shape: Vec<usize>,
    /// Bytes, last axis fastest.
    pub data: Vec<u8>,
}

impl RawTensor {
    /// From f32 values, rounded to the nearest of `dtype`.
    ///
    /// # Errors
    /// When the shape does not hold as many values, or a finite one leaves the range of `dtype`.
    pub fn from_f32(shape: Vec<usize>, values: &[f32], dtype: SaveDtype) -> Result<Self> {
        check_count("tensor", &shape, values.len())?;
        check_range("tensor", values, dtype)?;
        Ok(Self { dtype: dtype.stored(), shape, data: dtype.encode(values) })
    }

    /// From integers, as I64.
    ///
    /// # Errors
    /// When the shape does not hold as many values.
    pub fn from_i64(shape: Vec<usize>, values: &[i64]) -> Result<Self> {
        check_count("tensor", &shape, values.len())?;
        Ok(Self { dtype: Dtype::I64, shape, data: to_bytes(values, |x| x.to_le_bytes()) })
    }

    /// The values of an F32, BF16 or F16 tensor, exactly.
    ///
    /// # Errors
    /// Another type.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        decode(self.dtype, &self.data).ok_or_else(|| self.wrong_type("F32, BF16 or F16"))
    }

    /// The values of an I64 or I32 tensor.
    ///
    /// # Errors
    /// Another type.
    pub fn to_i64(&self) -> Result<Vec<i64>> {
        match self.dtype {
            Dtype::I64 => Ok(from_bytes(&self.data, i64::from_le_bytes)),
            Dtype::I32 => Ok(from_bytes(&self.data, |b| i32::from_le_bytes(b).into())),
            _ => Err(self.wrong_type("I64 or I32")),
        }
    }

    fn wrong_type(&self, expected: &str) -> Error {
        Error::shape("tensor", format!("{:?} {:?} is not {expected}", self.dtype, self.shape))
    }
}

impl View for &RawTensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        (&self.data).into()
    }

    fn data_len(&self) -> usize {
        self.data.len()
    }
}

/// A weight in the type it is written in, converted only when its turn comes.
pub(super) struct Saved<'a>(pub &'a HostTensor, pub SaveDtype);

impl View for Saved<'_> {
    fn dtype(&self) -> Dtype {
        self.1.stored()
    }

    fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.1.encode(&self.0.data).into()
    }

    fn data_len(&self) -> usize {
        self.0.data.len() * self.1.stored().bitsize() / 8
    }
}

/// Stored values as f32; `None` for types that f32 does not hold exactly.
pub(super) fn decode(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    match dtype {
        Dtype::F32 => Some(from_bytes(bytes, f32::from_le_bytes)),
        Dtype::BF16 => Some(from_bytes(bytes, |b| bf16::from_le_bytes(b).to_f32())),
        Dtype::F16 => Some(from_bytes(bytes, |b| f16::from_le_bytes(b).to_f32())),
        _ => None,
    }
}

pub(super) fn check_range(what: &str, values: &[f32], dtype: SaveDtype) -> Result<()> {
    match dtype.overflow(values) {
        None => Ok(()),
        Some(value) => Err(Error::Unsupported {
            what: format!("{what} holds {value}, which {} cannot hold", dtype.torch_name()),
            remedy: "save as float32 or bfloat16".into(),
        }),
    }
}

fn check_count(what: &str, shape: &[usize], count: usize) -> Result<()> {
    let held = shape.iter().try_fold(1usize, |n, axis| n.checked_mul(*axis));
    if held == Some(count) {
        return Ok(());
    }
    Err(Error::shape(what, format!("shape {shape:?} does not hold {count} values")))
}

fn to_bytes<T: Copy, const N: usize>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    let mut out = vec![0; values.len() * N];
    for (to, from) in out.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *to = bytes(*from);
    }
    out
}

fn from_bytes<T, const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| value(*chunk)).collect()
}
