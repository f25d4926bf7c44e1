//! The rotary fields, in every shape: `rope_theta` + `rope_scaling` (transformers 4), and
//! `rope_parameters` (transformers 5), flat or one object per type of layer.
//!
//! The shapes disagree on where the original length, the factor and `truncate` stand; each is read
//! as the version that writes it does.

use super::check::limit;
use super::fields::Fields;
use super::{Architecture, ModelConfig};
use crate::positional::{LongRope, RopeConfig, RopeKind, Yarn};
use crate::{Error, Result};
use serde_json::{Map, Value, json};

const THETA: f64 = 10_000.0;
const ORIGINAL: &str = "original_max_position_embeddings";
/// Keys of an object that holds one description per type of layer.
const LAYER_TYPES: [&str; 2] = ["full_attention", "sliding_attention"];

/// What the top of the file says, and the model's sizes.
struct Top<'a> {
    f: &'a Fields<'a>,
    architecture: Architecture,
    head_dim: usize,
    max_positions: usize,
}

/// Where a description stands.
#[derive(Clone, Copy, PartialEq)]
enum Shape<'a> {
    /// In `rope_scaling`.
    Older,
    /// In `rope_parameters`.
    Flat,
    /// In `rope_parameters.full_attention` or the like; the object around it.
    Nested(&'a Map<String, Value>),
}

/// Names of the base and of the rotated share outside of the descriptions.
fn names(architecture: Architecture) -> (&'static str, &'static str) {
    match architecture {
        Architecture::GptNeoX => ("rotary_emb_base", "rotary_pct"),
        _ => ("rope_theta", "partial_rotary_factor"),
    }
}

/// Read either shape; where a file has both, they must agree.
pub(super) fn read(
    f: &Fields,
    architecture: Architecture,
    head_dim: usize,
    max_positions: usize,
) -> Result<RopeConfig> {
    let top = Top { f, architecture, head_dim, max_positions };
    let older = f.object("rope_scaling")?.map(|r| top.one(&r, Shape::Older));
    let newer = f.object("rope_parameters")?.map(|r| top.newer(&r));
    match (older.transpose()?, newer.transpose()?) {
        (None, None) => {
            let empty = Map::new();
            let none = Fields { file: f.file, path: String::new(), map: &empty };
            top.one(&none, Shape::Flat)
        }
        (Some(rope), None) | (None, Some(rope)) => Ok(rope),
        (Some(older), Some(newer)) if older == newer => Ok(older),
        _ => Err(f.error("rope_parameters", "the same as rope_scaling, or only one of the two")),
    }
}

impl Top<'_> {
    fn newer(&self, r: &Fields) -> Result<RopeConfig> {
        let mut found: Option<RopeConfig> = None;
        for key in LAYER_TYPES.into_iter().filter(|key| r.map.contains_key(*key)) {
            let one = match r.object(key)? {
                Some(inner) => Some(self.one(&inner, Shape::Nested(r.map))?),
                None => None,
            };
            match (one, &found) {
                (Some(one), None) => found = Some(one),
                (Some(one), Some(first)) if one == *first => {}
                _ => {
                    let path = r.path.trim_end_matches('.');
                    return Err(Error::Unsupported {
                        what: format!("{}: `{path}` differs by layer type", r.file),
                        remedy: "use a checkpoint with one rotary encoding for all layers".into(),
                    });
                }
            }
        }
        found.map_or_else(|| self.one(r, Shape::Flat), Ok)
    }

    /// One description: `rope_type` and what belongs to it.
    fn one(&self, r: &Fields, shape: Shape) -> Result<RopeConfig> {
        let need = |key: &str| r.number(key)?.ok_or_else(|| r.error(key, "a number"));
        let list = |key: &str| r.numbers(key)?.ok_or_else(|| r.error(key, "a list of numbers"));
        let kind = match rope_type(r)? {
            "default" => RopeKind::Default,
            "linear" => RopeKind::Linear { factor: need("factor")? },
            // A length inside is ignored, by every version.
            "dynamic" => RopeKind::Dynamic {
                factor: need("factor")?,
                original_max_position_embeddings: self.max_positions,
            },
            "yarn" => self.yarn(r, shape)?,
            "longrope" => {
                let (length, factor) = self.longrope(r, shape)?;
                RopeKind::LongRope(LongRope {
                    factor,
                    original_max_position_embeddings: length,
                    short_factor: list("short_factor")?,
                    long_factor: list("long_factor")?,
                    attention_factor: r.number("attention_factor")?,
                })
            }
            "llama3" => RopeKind::Llama3 {
                factor: need("factor")?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                original_max_position_embeddings: match (shape, length_in(r)?) {
                    (Shape::Older, None) => return Err(r.error(ORIGINAL, "an integer")),
                    (Shape::Older, Some(length)) => length,
                    _ => self.original(r, shape)?,
                },
            },
            "proportional" => RopeKind::Proportional {
                factor: r.number("factor")?.unwrap_or(1.0),
                partial_rotary_factor: self.share(r)?,
            },
            _ => {
                let key = if r.has("rope_type") { "rope_type" } else { "type" };
                return Err(r.error(key, format!("one of {}", RopeKind::NAMES.join(", "))));
            }
        };
        let (theta, _) = names(self.architecture);
        let theta = match r.number("rope_theta")? {
            Some(theta) => theta,
            None => self.f.number(theta)?.unwrap_or(THETA),
        };
        Ok(RopeConfig::new(theta, self.width(r, &kind)?).with_kind(kind))
    }

    /// Where L stands; a length at the top of the file wins over the one inside only in the
    /// newer, flat shape.
    fn original(&self, r: &Fields, shape: Shape) -> Result<usize> {
        let top = if shape == Shape::Flat { length_in(self.f)? } else { None };
        Ok(match top {
            Some(length) => length,
            None => length_in(r)?.unwrap_or(self.max_positions),
        })
    }

    fn yarn(&self, r: &Fields, shape: Shape) -> Result<RopeKind> {
        let length = self.original(r, shape)?;
        let factor = match r.number("factor")? {
            Some(factor) => factor,
            // A null means "what the two lengths say", an absent key is a mistake.
            None if shape != Shape::Older && r.has("factor") => self.stretch(length),
            None => return Err(r.error("factor", "a number")),
        };
        let around;
        let truncate = match shape {
            Shape::Nested(map) => {
                around = Fields { file: r.file, path: "rope_parameters.".into(), map };
                &around
            }
            _ => r,
        };
        // 0 counts as absent.
        let bound = |key: &str| Ok::<_, Error>(r.number(key)?.filter(|x| *x != 0.0));
        let default = Yarn::new(factor, length);
        Ok(RopeKind::Yarn(Yarn {
            beta_fast: bound("beta_fast")?.unwrap_or(default.beta_fast),
            beta_slow: bound("beta_slow")?.unwrap_or(default.beta_slow),
            attention_factor: r.number("attention_factor")?,
            mscale: r.number("mscale")?,
            mscale_all_dim: r.number("mscale_all_dim")?,
            truncate: truncate.boolean("truncate")?.unwrap_or(true),
            ..default
        }))
    }

    /// L and s. The older shape has L at the top of the file, where it also decides s.
    fn longrope(&self, r: &Fields, shape: Shape) -> Result<(usize, f64)> {
        let given = r.number("factor")?;
        if shape != Shape::Older {
            let length = self.original(r, shape)?;
            return Ok((length, given.unwrap_or_else(|| self.stretch(length))));
        }
        match (length_in(self.f)?, given) {
            (Some(length), _) => Ok((length, self.stretch(length))),
            (None, Some(factor)) => Ok((self.max_positions, factor)),
            (None, None) => {
                Err(r.error("factor", format!("a number, or {ORIGINAL} at the top of the file")))
            }
        }
    }

    fn stretch(&self, original: usize) -> f64 {
        self.max_positions as f64 / original as f64
    }

    /// Share of a head that rotates.
    fn share(&self, r: &Fields) -> Result<f64> {
        let (_, key) = names(self.architecture);
        let default = if self.architecture == Architecture::GptNeoX { 0.25 } else { 1.0 };
        Ok(match r.number("partial_rotary_factor")? {
            Some(share) => share,
            None => self.f.number(key)?.unwrap_or(default),
        })
    }

    /// Rotated channels of a head.
    fn width(&self, r: &Fields, kind: &RopeKind) -> Result<usize> {
        if matches!(kind, RopeKind::Proportional { .. }) {
            return Ok(self.head_dim);
        }
        let share = self.share(r)?;
        let (_, outside) = names(self.architecture);
        let (fields, key) = match r.has("partial_rotary_factor") {
            true => (r, "partial_rotary_factor"),
            false => (self.f, outside),
        };
        // The other families rotate whole heads; a smaller share would be read wrongly.
        if self.architecture != Architecture::GptNeoX {
            return if share == 1.0 { Ok(self.head_dim) } else { Err(fields.error(key, "1")) };
        }
        let width = (share * self.head_dim as f64) as usize;
        if !(share > 0.0 && share <= 1.0) || width == 0 || !width.is_multiple_of(2) {
            let expected = format!(
                "above 0, at most 1, and an even number of the {} channels of a head",
                self.head_dim
            );
            return Err(fields.error(key, expected));
        }
        Ok(width)
    }
}

fn length_in(f: &Fields) -> Result<Option<usize>> {
    f.integer(ORIGINAL, 1..=limit(ORIGINAL))
}

/// `type` is the older name of `rope_type`; a description that scales must have one of them.
fn rope_type<'a>(r: &Fields<'a>) -> Result<&'a str> {
    match (r.text("rope_type")?, r.text("type")?) {
        (Some(new), Some(old)) if new != old => {
            Err(r.error("type", format!("\"{new}\", as rope_type says")))
        }
        (Some(name), _) | (None, Some(name)) => Ok(name),
        (None, None) if r.has("factor") => {
            Err(r.error("rope_type", format!("one of {}", RopeKind::NAMES.join(", "))))
        }
        (None, None) => Ok("default"),
    }
}

/// Write the rotary fields in the shape that `map` has (the older one where it has none), so that
/// both versions of transformers read the same.
pub(super) fn write(map: &mut Map<String, Value>, config: &ModelConfig) {
    let rope = &config.rope;
    let (theta, share) = names(config.architecture);
    let mut kind = json!(rope.kind);
    match &rope.kind {
        RopeKind::Dynamic { .. } => _ = kind.as_object_mut().map(|k| k.remove(ORIGINAL)),
        // The older shape would make s of the two lengths; with the factor that s leads to written
        // out, nothing is left to differ.
        RopeKind::LongRope(long) if long.attention_factor.is_none() => {
            let implied = config.max_position_embeddings as f64
                / long.original_max_position_embeddings as f64;
            if let (true, Ok(rope)) = (implied != long.factor, rope.init()) {
                kind["attention_factor"] = json!(rope.attention_factor());
            }
        }
        _ => {}
    }
    let neox = config.architecture == Architecture::GptNeoX;
    let newer = has(map, "rope_parameters");
    let older = has(map, "rope_scaling") || !newer;
    if older || map.contains_key(theta) {
        map.insert(theta.into(), json!(rope.theta));
    }
    if neox && (older || map.contains_key(share)) {
        map.insert(share.into(), json!(share_of(rope.dim, config.head_dim)));
    }
    if older {
        let scaled = rope.kind != RopeKind::Default;
        map.insert("rope_scaling".into(), if scaled { kind.clone() } else { Value::Null });
    }
    if newer {
        let mut parameters = kind;
        parameters["rope_theta"] = json!(rope.theta);
        if neox {
            parameters["partial_rotary_factor"] = json!(share_of(rope.dim, config.head_dim));
        }
        map.insert("rope_parameters".into(), parameters);
    }
    // A length at the top wins over the one inside for some, and for others is the only one.
    if let Some(length) = rope.kind.original_length() {
        let wanted = older && matches!(rope.kind, RopeKind::LongRope(_));
        if wanted || map.contains_key(ORIGINAL) {
            map.insert(ORIGINAL.into(), json!(length));
        }
    }
}

/// The share of `head_dim` that truncates to `dim`.
fn share_of(dim: usize, head_dim: usize) -> f64 {
    let share = dim as f64 / head_dim as f64;
    if (share * head_dim as f64) as usize == dim { share } else { share.next_up() }
}

fn has(map: &Map<String, Value>, key: &str) -> bool {
    map.get(key).and_then(Value::as_object).is_some_and(|m| !m.is_empty())
}
