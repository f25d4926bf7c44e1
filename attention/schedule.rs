//! Which mixer each layer has: one for all, or a list in which every layer stands once.

use super::{MixerConfig, SeerConfig};
use crate::{Error, Result};
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};
use std::fmt;

/// The mixers of a model, as a recipe or a checkpoint says them: nothing (what the checkpoint
/// has), one table for all layers, or a list of tables of which each names its `layers` and at
/// most one, without, has the rest.
///
/// ```
/// use longburn::attention::{Layers, LongLoraConfig, MixerConfig, MixerSchedule};
/// let sparse = MixerConfig::LongLora(LongLoraConfig::new());
/// let schedule = MixerSchedule::new(sparse.clone())
///     .with_layers(Layers::parse("middle third"), MixerConfig::Dense);
/// let mixers = schedule.resolve(&vec![MixerConfig::Dense; 6])?;
/// assert_eq!(mixers[0], sparse);
/// assert_eq!(mixers[2..4], [MixerConfig::Dense, MixerConfig::Dense]);
/// # Ok::<(), longburn::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub enum MixerSchedule {
    /// Those that the model has.
    #[default]
    Own,
    /// The same in all layers.
    All(MixerConfig),
    /// By layers.
    Listed(Vec<LayerMixers>),
}

/// A mixer and the layers that have it.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerMixers {
    /// The layers; those that no other entry names where not set.
    pub layers: Option<Layers>,
    /// Their mixer.
    pub mixer: MixerConfig,
}

/// Some layers of a model, counted from 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Layers {
    /// Their numbers.
    Numbers(Vec<usize>),
    /// Numbers, ranges with both ends and words, with commas between: "0, 4-7", "middle third".
    Text(String),
}

/// What may stand in [`Layers::Text`].
const WORDS: [&str; 7] =
    ["first half", "last half", "first third", "middle third", "last third", "even", "odd"];

impl Layers {
    /// Of a text.
    pub fn parse(text: &str) -> Self {
        Self::Text(text.into())
    }

    /// Numbers below `layers`; else what would be accepted.
    fn resolve(&self, layers: usize) -> std::result::Result<Vec<usize>, String> {
        let mut found = Vec::new();
        match self {
            Self::Numbers(numbers) => found.extend(numbers),
            Self::Text(text) => {
                for part in text.split(',') {
                    found.extend(part_of(part.trim(), layers)?);
                }
            }
        }
        if let Some(n) = found.iter().find(|n| **n >= layers) {
            return Err(format!("layers below {layers}, which {n} is not"));
        }
        let mut sorted = found.clone();
        sorted.sort_unstable();
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("every layer once, {} stands twice", twice[0]));
        }
        if found.is_empty() {
            return Err(format!("at least one of the {layers} layers"));
        }
        Ok(sorted)
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Numbers(numbers) => write!(f, "{numbers:?}"),
            Self::Text(text) => write!(f, "\"{text}\""),
        }
    }
}

/// The text of sorted numbers: neighbours become ranges.
fn text_of(numbers: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &n in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == n => *last = n,
            _ => runs.push((n, n)),
        }
    }
    let text = runs.iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    text.collect::<Vec<_>>().join(", ")
}

/// A number, a range or a word.
fn part_of(part: &str, layers: usize) -> std::result::Result<Vec<usize>, String> {
    let half = layers / 2;
    // Rounded; the rest lies around it, the larger part behind.
    let third = ((layers as f64 / 3.0).round() as usize).min(layers);
    let start = (layers - third) / 2;
    let range = match part {
        "first half" => 0..half,
        "last half" => half..layers,
        "first third" => 0..start,
        "middle third" => start..start + third,
        "last third" => start + third..layers,
        "even" => return Ok((0..layers).step_by(2).collect()),
        "odd" => return Ok((1..layers).step_by(2).collect()),
        _ => {
            let number = |text: &str| text.trim().parse::<usize>().ok();
            let ends = match part.split_once('-') {
                Some((first, last)) => number(first).zip(number(last)),
                None => number(part).map(|n| (n, n)),
            };
            match ends {
                // What lies outside is told by its end, without all numbers up to it.
                Some((_, last)) if last >= layers => last..last.saturating_add(1),
                Some((first, last)) if first <= last => first..last + 1,
                _ => {
                    return Err(format!(
                        "numbers, ranges such as 4-7, and {}, with commas between",
                        WORDS.join(", ")
                    ));
                }
            }
        }
    };
    Ok(range.collect())
}

impl MixerSchedule {
    /// The same in all layers.
    pub fn new(mixer: MixerConfig) -> Self {
        Self::All(mixer)
    }

    /// Another one in `layers`; what was the same in all layers has the rest.
    pub fn with_layers(self, layers: Layers, mixer: MixerConfig) -> Self {
        let mut entries = match self {
            Self::Own => Vec::new(),
            Self::All(rest) => vec![LayerMixers { layers: None, mixer: rest }],
            Self::Listed(entries) => entries,
        };
        entries.push(LayerMixers { layers: Some(layers), mixer });
        Self::Listed(entries)
    }

    /// The schedule of these mixers, one per layer.
    pub fn of(mixers: &[MixerConfig]) -> Self {
        let mut kinds: Vec<(&MixerConfig, Vec<usize>)> = Vec::new();
        for (layer, mixer) in mixers.iter().enumerate() {
            match kinds.iter_mut().find(|(known, _)| *known == mixer) {
                Some((_, layers)) => layers.push(layer),
                None => kinds.push((mixer, vec![layer])),
            }
        }
        match kinds[..] {
            [] => Self::Own,
            [(mixer, _)] => Self::All(mixer.clone()),
            _ => Self::Listed(
                kinds
                    .into_iter()
                    .map(|(mixer, layers)| LayerMixers {
                        layers: Some(Layers::Text(text_of(&layers))),
                        mixer: mixer.clone(),
                    })
                    .collect(),
            ),
        }
    }

    /// Whether nothing is said.
    pub fn is_own(&self) -> bool {
        *self == Self::Own
    }

    /// Every mixer that is named, with the place of its settings: `mixer`, or `mixer[1]`.
    pub fn named(&self) -> Vec<(String, &MixerConfig)> {
        match self {
            Self::Own => Vec::new(),
            Self::All(mixer) => vec![("mixer".into(), mixer)],
            Self::Listed(entries) => {
                let place = |(i, entry)| (format!("mixer[{i}]"), entry);
                entries.iter().map(|entry| &entry.mixer).enumerate().map(place).collect()
            }
        }
    }

    /// The settings of gates, where some layer is to have one.
    pub fn seer(&self) -> Option<&SeerConfig> {
        self.named().into_iter().find_map(|(_, mixer)| mixer.seer())
    }

    /// One mixer per layer of a model that has the mixers `own`.
    ///
    /// # Errors
    /// [`Error::Config`] with the field `mixer[1].layers` or the like: layers that the model does
    /// not have, that two entries name or that none does, words that mean nothing.
    pub fn resolve(&self, own: &[MixerConfig]) -> Result<Vec<MixerConfig>> {
        let entries = match self {
            Self::Own => return Ok(own.to_vec()),
            Self::All(mixer) => return Ok(vec![mixer.clone(); own.len()]),
            Self::Listed(entries) => entries,
        };
        let owners = owners(entries, own.len())?;
        Ok(owners.into_iter().map(|entry| entries[entry].mixer.clone()).collect())
    }

    /// Place of the settings of a layer's mixer, as in [`named`](Self::named).
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve).
    pub fn place(&self, layer: usize, layers: usize) -> Result<String> {
        match self {
            Self::Own | Self::All(_) => Ok("mixer".into()),
            Self::Listed(entries) => {
                let owners = owners(entries, layers)?;
                Ok(owners.get(layer).map_or("mixer".into(), |entry| format!("mixer[{entry}]")))
            }
        }
    }
}

/// Entry of each layer.
fn owners(entries: &[LayerMixers], layers: usize) -> Result<Vec<usize>> {
    let bad = |field: String, value: String, expected: String| {
        Err(Error::config("mixer", field, value, expected))
    };
    let mut owners: Vec<Option<usize>> = vec![None; layers];
    for (i, entry) in entries.iter().enumerate() {
        let Some(named) = &entry.layers else { continue };
        let field = format!("mixer[{i}].layers");
        let found = match named.resolve(layers) {
            Ok(found) => found,
            Err(expected) => return bad(field, named.to_string(), expected),
        };
        for layer in found {
            if let Some(other) = owners[layer] {
                let expected =
                    format!("layers of no other entry; mixer[{other}] has layer {layer}");
                return bad(field, named.to_string(), expected);
            }
            owners[layer] = Some(i);
        }
    }
    let rest: Vec<usize> = (0..entries.len()).filter(|i| entries[*i].layers.is_none()).collect();
    if let [first, second, ..] = rest[..] {
        let expected = format!("layers; mixer[{first}] has the rest already");
        return bad(format!("mixer[{second}].layers"), "missing".into(), expected);
    }
    let left: Vec<usize> = (0..layers).filter(|layer| owners[*layer].is_none()).collect();
    match (rest.first(), left.is_empty()) {
        (None, false) => {
            let expected = format!(
                "a mixer for the layers {}: one more entry, or one without `layers`, for the rest",
                text_of(&left)
            );
            bad("mixer".into(), format!("a list of {} entries", entries.len()), expected)
        }
        (Some(entry), true) => {
            let expected = format!("layers; the other entries have all {layers} of the model");
            bad(format!("mixer[{entry}].layers"), "missing".into(), expected)
        }
        (entry, _) => Ok(owners.into_iter().filter_map(|owner| owner.or(entry.copied())).collect()),
    }
}

impl From<MixerConfig> for MixerSchedule {
    fn from(mixer: MixerConfig) -> Self {
        Self::All(mixer)
    }
}

impl From<&MixerConfig> for MixerSchedule {
    fn from(mixer: &MixerConfig) -> Self {
        Self::All(mixer.clone())
    }
}

impl From<&MixerSchedule> for MixerSchedule {
    fn from(schedule: &MixerSchedule) -> Self {
        schedule.clone()
    }
}

impl fmt::Display for MixerSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => write!(f, "own"),
            Self::All(mixer) => write!(f, "{}", mixer.name()),
            Self::Listed(entries) => {
                for (i, entry) in entries.iter().enumerate() {
                    let comma = if i == 0 { "" } else { "; " };
                    write!(f, "{comma}{}", entry.mixer.name())?;
                    match &entry.layers {
                        Some(Layers::Text(text)) => write!(f, " in {text}")?,
                        Some(numbers) => write!(f, " in {numbers}")?,
                        None => write!(f, " in the rest")?,
                    }
                }
                Ok(())
            }
        }
    }
}

impl Serialize for MixerSchedule {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::Own => to.serialize_none(),
            Self::All(mixer) => mixer.serialize(to),
            Self::Listed(entries) => entries.serialize(to),
        }
    }
}

impl Serialize for LayerMixers {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        let failed = <S::Error as serde::ser::Error>::custom;
        let mut table = serde_json::to_value(&self.mixer).map_err(failed)?;
        if let Some(layers) = &self.layers {
            table["layers"] = serde_json::to_value(layers).map_err(failed)?;
        }
        table.serialize(to)
    }
}

impl<'de> Deserialize<'de> for MixerSchedule {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = MixerSchedule;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a table with the `name` of a mixer, or a list of such tables")
            }

            fn visit_unit<E: de::Error>(self) -> std::result::Result<MixerSchedule, E> {
                Ok(MixerSchedule::Own)
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                map: A,
            ) -> std::result::Result<MixerSchedule, A::Error> {
                MixerConfig::deserialize(MapAccessDeserializer::new(map)).map(MixerSchedule::All)
            }

            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut list: A,
            ) -> std::result::Result<MixerSchedule, A::Error> {
                let mut entries = Vec::new();
                while let Some(element) = list.next_element::<Value>()? {
                    let i = entries.len();
                    let said = |e: serde_json::Error| de::Error::custom(format!("mixer[{i}]: {e}"));
                    entries.push(entry(element).map_err(said)?);
                }
                if entries.is_empty() {
                    return Err(de::Error::invalid_length(0, &"at least one mixer"));
                }
                Ok(MixerSchedule::Listed(entries))
            }
        }
        from.deserialize_any(Form)
    }
}

/// A mixer's own table with `layers` in it; a name alone is one without settings.
fn entry(element: Value) -> std::result::Result<LayerMixers, serde_json::Error> {
    let mut table = match element {
        Value::Object(table) => table,
        Value::String(name) => Map::from_iter([("name".to_string(), Value::String(name))]),
        _ => return Err(de::Error::custom("invalid entry, expected a table with a `name`")),
    };
    let layers = match table.remove("layers") {
        None => None,
        Some(layers) => Some(serde_json::from_value(layers).map_err(|_| {
            de::Error::custom(
                "invalid `layers`, expected a list of numbers, or a text such as \"0, 4-7\"",
            )
        })?),
    };
    Ok(LayerMixers { layers, mixer: serde_json::from_value(Value::Object(table))? })
}
