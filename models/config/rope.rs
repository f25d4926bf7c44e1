//! The rotary fields, in both shapes: `rope_theta` + `rope_scaling` (transformers 4) and
//! `rope_parameters` (transformers 5).

use super::check::limit;
use super::fields::Fields;
use crate::positional::{RopeConfig, RopeKind};
use crate::{Error, Result};
use serde_json::{Map, Value, json};

const THETA: f64 = 10_000.0;
const LATER: [&str; 4] = ["dynamic", "yarn", "longrope", "proportional"];

/// Read either shape; where a file has both, they must agree.
pub(super) fn read(f: &Fields, head_dim: usize, max_positions: usize) -> Result<RopeConfig> {
    whole_heads(f)?;
    let theta = f.number("rope_theta")?.unwrap_or(THETA);
    let scaling = f.object("rope_scaling")?;
    let parameters = f.object("rope_parameters")?;
    // In the older shape the original length stands inside; in the newer one a field at the
    // top wins, and without any it is the length of the model.
    let old = scaling.map(|s| {
        let length = original_length(&s)?;
        one(&s, theta, head_dim, length)
    });
    let new = parameters.map(|p| {
        let length = match original_length(f)? {
            Some(length) => length,
            None => original_length(&p)?.unwrap_or(max_positions),
        };
        one(&p, theta, head_dim, Some(length))
    });
    match (old.transpose()?, new.transpose()?) {
        (None, None) => Ok(RopeConfig::new(theta, head_dim)),
        (Some(rope), None) | (None, Some(rope)) => Ok(rope),
        (Some(old), Some(new)) if old == new => Ok(old),
        _ => Err(f.error("rope_parameters", "the same as rope_scaling, or only one of the two")),
    }
}

fn original_length(f: &Fields) -> Result<Option<usize>> {
    let key = "original_max_position_embeddings";
    f.integer(key, 1..=limit(key))
}

/// One description: `rope_type` and what belongs to it.
fn one(
    r: &Fields,
    theta: f64,
    head_dim: usize,
    original_length: Option<usize>,
) -> Result<RopeConfig> {
    if r.map.contains_key("full_attention") || r.map.contains_key("sliding_attention") {
        return Err(Error::Unsupported {
            what: format!("{}: `{}` differs by layer type", r.file, r.path.trim_end_matches('.')),
            remedy: "use a checkpoint with one rotary encoding for all layers".into(),
        });
    }
    whole_heads(r)?;
    let need = |key: &str| r.number(key)?.ok_or_else(|| r.error(key, "a number"));
    let kind = match rope_type(r)? {
        "default" => RopeKind::Default,
        "linear" => RopeKind::Linear { factor: need("factor")? },
        "llama3" => RopeKind::Llama3 {
            factor: need("factor")?,
            low_freq_factor: need("low_freq_factor")?,
            high_freq_factor: need("high_freq_factor")?,
            original_max_position_embeddings: original_length
                .ok_or_else(|| r.error("original_max_position_embeddings", "an integer"))?,
        },
        name if LATER.contains(&name) => {
            return Err(Error::Unsupported {
                what: format!(
                    "{}: field `{}rope_type` is \"{name}\": known, but not in this version",
                    r.file, r.path
                ),
                remedy: "use a checkpoint with rope_type default, linear or llama3".into(),
            });
        }
        _ => {
            let key = if r.has("rope_type") { "rope_type" } else { "type" };
            let later = LATER.join(", ");
            let expected =
                format!("default, linear or llama3 (known, but not in this version: {later})");
            return Err(r.error(key, expected));
        }
    };
    Ok(RopeConfig::new(r.number("rope_theta")?.unwrap_or(theta), head_dim).with_kind(kind))
}

/// `type` is the older name of `rope_type`; a description that scales must have one of them.
fn rope_type<'a>(r: &Fields<'a>) -> Result<&'a str> {
    match (r.text("rope_type")?, r.text("type")?) {
        (Some(new), Some(old)) if new != old => {
            Err(r.error("type", format!("\"{new}\", as rope_type says")))
        }
        (Some(name), _) | (None, Some(name)) => Ok(name),
        (None, None) if r.has("factor") => Err(r.error("rope_type", "default, linear or llama3")),
        (None, None) => Ok("default"),
    }
}

/// These families rotate whole heads; a smaller share would be read wrongly.
fn whole_heads(f: &Fields) -> Result<()> {
    match f.number("partial_rotary_factor")? {
        Some(share) if share != 1.0 => Err(f.error("partial_rotary_factor", "1")),
        _ => Ok(()),
    }
}

/// Write `rope` in the shape that `map` has (the older one where it has none).
pub(super) fn write(map: &mut Map<String, Value>, rope: &RopeConfig) {
    let kind = json!(rope.kind);
    let newer = has(map, "rope_parameters");
    let older = has(map, "rope_scaling") || !newer;
    if older || map.contains_key("rope_theta") {
        map.insert("rope_theta".into(), json!(rope.theta));
    }
    if older {
        let scaled = rope.kind != RopeKind::Default;
        map.insert("rope_scaling".into(), if scaled { kind.clone() } else { Value::Null });
    }
    if newer {
        let mut parameters = kind;
        parameters["rope_theta"] = json!(rope.theta);
        map.insert("rope_parameters".into(), parameters);
    }
    // transformers 5 prefers a length at the top to the one inside.
    if let RopeKind::Llama3 { original_max_position_embeddings: length, .. } = &rope.kind
        && let Some(top) = map.get_mut("original_max_position_embeddings")
    {
        *top = json!(length);
    }
}

fn has(map: &Map<String, Value>, key: &str) -> bool {
    map.get(key).and_then(Value::as_object).is_some_and(|m| !m.is_empty())
}
