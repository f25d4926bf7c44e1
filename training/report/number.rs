//! Serde for floats in JSON: numbers where JSON can hold them, strings where it cannot.
//! Used as `#[serde(with = "number")]` on a float, or an option, list or map of floats.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(super) fn serialize<T: Floats, S: Serializer>(value: &T, s: S) -> Result<S::Ok, S::Error> {
    value.to_wire().serialize(s)
}

pub(super) fn deserialize<'de, T: Floats, D: Deserializer<'de>>(d: D) -> Result<T, D::Error> {
    T::Wire::deserialize(d).map(T::from_wire)
}

/// What holds floats, and its form on the wire.
pub(super) trait Floats {
    type Wire: Serialize + for<'de> Deserialize<'de>;

    fn to_wire(&self) -> Self::Wire;

    fn from_wire(wire: Self::Wire) -> Self;
}

pub(super) struct Number(f64);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            v if v.is_finite() => s.serialize_f64(v),
            v if v.is_nan() => s.serialize_str("NaN"),
            v if v > 0.0 => s.serialize_str("Infinity"),
            _ => s.serialize_str("-Infinity"),
        }
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a number, \"NaN\", \"Infinity\" or \"-Infinity\"")]
        enum Form {
            Number(f64),
            Word(Word),
        }
        #[derive(Deserialize)]
        enum Word {
            NaN,
            Infinity,
            #[serde(rename = "-Infinity")]
            MinusInfinity,
        }
        Ok(Self(match Form::deserialize(d)? {
            Form::Number(v) => v,
            Form::Word(Word::NaN) => f64::NAN,
            Form::Word(Word::Infinity) => f64::INFINITY,
            Form::Word(Word::MinusInfinity) => f64::NEG_INFINITY,
        }))
    }
}

impl Floats for f64 {
    type Wire = Number;

    fn to_wire(&self) -> Number {
        Number(*self)
    }

    fn from_wire(wire: Number) -> Self {
        wire.0
    }
}

impl Floats for Option<f64> {
    type Wire = Option<Number>;

    fn to_wire(&self) -> Option<Number> {
        self.map(Number)
    }

    fn from_wire(wire: Option<Number>) -> Self {
        wire.map(|n| n.0)
    }
}

impl Floats for Vec<f64> {
    type Wire = Vec<Number>;

    fn to_wire(&self) -> Vec<Number> {
        self.iter().copied().map(Number).collect()
    }

    fn from_wire(wire: Vec<Number>) -> Self {
        wire.into_iter().map(|n| n.0).collect()
    }
}

impl Floats for BTreeMap<String, f64> {
    type Wire = BTreeMap<String, Number>;

    fn to_wire(&self) -> Self::Wire {
        self.iter().map(|(name, v)| (name.clone(), Number(*v))).collect()
    }

    fn from_wire(wire: Self::Wire) -> Self {
        wire.into_iter().map(|(name, n)| (name, n.0)).collect()
    }
}
