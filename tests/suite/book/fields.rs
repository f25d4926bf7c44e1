//! The fields of a recipe: descriptions from the sources' own doc comments, names, choices and
//! defaults from reading recipes, so that neither can miss one.

use longburn::training::Recipe;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use toml::Table;

/// The least that a recipe with every section needs; what stands here is required.
const LEAST: &str = r#"
[model]
path = "model"
[extend]
to = 64
[mixer]
name = "longlora"
[lora]
[data]
train = "texts"
split = 4
mix = [{ path = "more", weight = 1.0 }]
[train]
steps = 8
length = 64
lr = 1e-3
schedule = { name = "linear" }
groups = [{ roles = ["norm"] }]
muon = {}
[eval]
protocol = { name = "strided", max_len = 64, stride = 32 }
[output]
dir = "run"
"#;

/// Fields of [`LEAST`] that stand there although they are not required.
const OPTIONAL: [&str; 13] = [
    "model.path",
    "model.new",
    "extend",
    "mixer",
    "data.split",
    "data.mix",
    "train.schedule",
    "train.groups",
    "train.muon",
    "eval",
    "eval.protocol",
    "output",
    "output.dir",
];

/// A table of the page: where it stands in a recipe, of which mixer, its heading, source and type.
struct Section {
    path: &'static str,
    mixer: Option<&'static str>,
    heading: &'static str,
    file: &'static str,
    item: &'static str,
}

const fn section(
    path: &'static str,
    heading: &'static str,
    file: &'static str,
    item: &'static str,
) -> Section {
    Section { path, mixer: None, heading, file, item }
}

/// Of a mixer other than that of [`LEAST`]; the name is marked as no variant of an enum's.
const fn of_mixer(
    mixer: &'static str,
    path: &'static str,
    heading: &'static str,
    file: &'static str,
    item: &'static str,
) -> Section {
    Section { path, mixer: Some(mixer), heading, file, item }
}

/// Before the name of a mixer in the place of a variant's.
const MIXER: &str = "mixer=";

const SECTIONS: &str = "training/recipe/sections.rs";

/// In the order of the page.
const PAGE: [Section; 25] = [
    section("", "The recipe itself", SECTIONS, "struct Recipe"),
    section("model", "`[model]`", SECTIONS, "struct ModelSection"),
    section("model.new", "`[model.new]`", SECTIONS, "struct NewModel"),
    section("extend", "`[extend]`", "training/recipe/extend.rs", "struct ExtendSection"),
    section(
        "mixer",
        "`[mixer]`, `name = \"longlora\"`",
        "attention/longlora.rs",
        "struct LongLoraConfig",
    ),
    of_mixer(
        "mixer=longgen",
        "mixer",
        "`[mixer]`, `name = \"longgen\"`",
        "attention/longgen.rs",
        "struct LongGenConfig",
    ),
    of_mixer(
        "mixer=mamba1",
        "mixer",
        "`[mixer]`, `name = \"mamba1\"`",
        "attention/mamba1.rs",
        "struct Mamba1Config",
    ),
    of_mixer(
        "mixer=mamba2",
        "mixer",
        "`[mixer]`, `name = \"mamba2\"`",
        "attention/mamba2.rs",
        "struct Mamba2Config",
    ),
    of_mixer(
        "mixer=mamba1",
        "mixer.step_sizes",
        "`[mixer.step_sizes]`, of `mamba1` and `mamba2`",
        "attention/state_space.rs",
        "struct StepSizes",
    ),
    of_mixer(
        "mixer=lact",
        "mixer",
        "`[mixer]`, `name = \"lact\"`",
        "attention/lact/mod.rs",
        "struct LactConfig",
    ),
    of_mixer(
        "mixer=seer",
        "mixer",
        "`[mixer]`, `name = \"seer\"`",
        "attention/seer/mod.rs",
        "struct SeerConfig",
    ),
    section("lora", "`[lora]`", "models/lora.rs", "struct LoraConfig"),
    section("data", "`[data]`", SECTIONS, "struct DataSection"),
    section("data.mix", "`[[data.mix]]`", SECTIONS, "struct MixSection"),
    section("data.anchor", "`[data.anchor]`", SECTIONS, "struct AnchorSection"),
    section("data.chat", "`[data.chat]`", "training/recipe/chat.rs", "struct ChatSection"),
    section("train", "`[train]`", SECTIONS, "struct TrainSection"),
    section("train.adamw", "`[train.adamw]`", "training/adamw.rs", "struct AdamW"),
    section("train.muon", "`[train.muon]`", "training/muon.rs", "struct Muon"),
    section("train.groups", "`[[train.groups]]`", "training/optim.rs", "struct ParamGroup"),
    section("train.schedule", "`train.schedule`", "training/schedule.rs", "enum Schedule"),
    section("eval", "`[eval]`", SECTIONS, "struct EvalSection"),
    section("eval.protocol", "`eval.protocol`", "training/eval/perplexity.rs", "enum Protocol"),
    section("checkpoints", "`[checkpoints]`", SECTIONS, "struct CheckpointSection"),
    section("output", "`[output]`", SECTIONS, "struct OutputSection"),
];

/// Tables beside those that the page has: `[model.new]` excludes `path`.
const NEW: &str = "new = { vocab_size = 300, hidden_size = 16, layers = 1, heads = 2 }";

/// All tables of the page.
pub fn tables() -> String {
    let mut page = String::new();
    for section in &PAGE {
        let found = read_item(section);
        page += &format!("\n## {}\n\n", section.heading);
        for (variant, about, fields) in found {
            if let Some(variant) = &variant {
                page += &format!("**`name = \"{variant}\"`**: {about}\n\n");
            }
            let variant = variant.or(section.mixer.map(Into::into));
            let path = section.path;
            let known = known_fields(path, variant.as_deref());
            let mut named: Vec<&str> = fields.iter().map(|(name, _)| name.as_str()).collect();
            named.sort_unstable();
            assert_eq!(named, known, "{path}: the sources beside what recipes accept");
            if fields.is_empty() {
                continue;
            }
            page += "| Field | Meaning | Where not set |\n|---|---|---|\n";
            for (name, about) in &fields {
                let place = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                page += &row(&place, name, about, variant.as_deref());
            }
            page.push('\n');
        }
    }
    page.replace("\n\n\n", "\n\n")
}

fn row(place: &str, name: &str, about: &str, variant: Option<&str>) -> String {
    let about = about.trim_end_matches('.').replace('|', "\\|");
    let choices = match choices(place, variant) {
        choices if choices.is_empty() => String::new(),
        choices => format!("; one of {choices}"),
    };
    if is_table(place, variant) {
        let listed = PAGE.iter().any(|section| section.path == place);
        assert!(listed, "{place} is a table of its own, and the page has none for it");
    }
    format!("| `{name}` | {about}{choices} | {} |\n", default(place, variant))
}

/// What a recipe has there when it does not say.
fn default(place: &str, variant: Option<&str>) -> String {
    let least = recipe(place, variant);
    let parts: Vec<&str> = place.split('.').collect();
    let mut at: Option<&toml::Value> = least.get(parts[0]);
    for part in &parts[1..] {
        at = at.and_then(inner).and_then(|table| table.get(*part));
    }
    let empty = at.and_then(inner).is_some_and(Table::is_empty);
    if at.is_some() && !empty && !OPTIONAL.contains(&place) {
        return "required".into();
    }
    let mut bare = least.clone();
    remove(&mut bare, &parts);
    let Ok(read) = Recipe::parse(&bare.to_string(), "least.toml") else { return "none".into() };
    // By way of text, in which an f32 has its own digits.
    let read: Value = serde_json::from_str(&serde_json::to_string(&read).unwrap()).unwrap();
    let value = parts.iter().fold(&read, |value, part| match value {
        Value::Array(items) => items.first().map_or(&Value::Null, |item| &item[*part]),
        other => &other[*part],
    });
    match value {
        Value::Null => "none".into(),
        Value::String(text) if text.is_empty() => "empty".into(),
        Value::Object(map) if map.contains_key("name") => {
            format!("`{}`", map["name"].as_str().unwrap())
        }
        Value::Object(map) => match map.iter().next() {
            Some((key, value)) if map.len() == 1 => format!("`{{ {key} = {value} }}`"),
            _ => "as below".into(),
        },
        Value::Array(items) if items.is_empty() => "none".into(),
        other => format!("`{other}`"),
    }
}

/// A table, or the first one of a list.
fn inner(value: &toml::Value) -> Option<&Table> {
    match value {
        toml::Value::Table(table) => Some(table),
        toml::Value::Array(items) => items.first()?.as_table(),
        _ => None,
    }
}

fn inner_mut(value: &mut toml::Value) -> Option<&mut Table> {
    match value {
        toml::Value::Table(table) => Some(table),
        toml::Value::Array(items) => items.first_mut()?.as_table_mut(),
        _ => None,
    }
}

fn remove(table: &mut Table, parts: &[&str]) {
    match parts {
        [last] => drop(table.remove(*last)),
        [first, rest @ ..] => {
            if let Some(inner) = table.get_mut(*first).and_then(inner_mut) {
                remove(inner, rest);
            }
        }
        [] => {}
    }
}

/// The least recipe in which the table around `place` can stand, in its `variant`.
fn recipe(place: &str, variant: Option<&str>) -> Table {
    let text = match place.starts_with("model.new.") || place == "model.new" {
        true => {
            let text = LEAST.replace("path = \"model\"", NEW).replace("[lora]\n", "");
            text.replace("[extend]\nto = 64\n", "")
        }
        false => LEAST.to_string(),
    };
    let mut recipe: Table = text.parse().unwrap();
    if place.starts_with("data.anchor.") {
        put(&mut recipe, "data.anchor", Table::new().into());
    }
    if let Some(mixer) = variant.and_then(|variant| variant.strip_prefix(MIXER)) {
        put(&mut recipe, "mixer", Table::from_iter([("name".to_string(), mixer.into())]).into());
        if mixer == "seer" {
            recipe.remove("lora");
        }
    } else if let Some(variant) = variant {
        let (parent, _) = place.rsplit_once('.').unwrap();
        let fields: &[(&str, i64)] = match (parent, variant) {
            ("eval.protocol", "strided") => &[("max_len", 64), ("stride", 32)],
            ("eval.protocol", "longlora") => &[("len", 64), ("step", 32)],
            _ => &[],
        };
        let mut table = Table::from_iter([("name".to_string(), variant.into())]);
        table.extend(fields.iter().map(|(k, v)| (k.to_string(), (*v).into())));
        put(&mut recipe, parent, table.into());
    }
    recipe
}

fn put(recipe: &mut Table, place: &str, value: toml::Value) {
    let (parent, name) = match place.rsplit_once('.') {
        Some((parent, name)) => (Some(parent), name),
        None => (None, place),
    };
    let mut table = recipe;
    for part in parent.iter().flat_map(|parent| parent.split('.')) {
        let entry = table.entry(part).or_insert_with(|| Table::new().into());
        table = inner_mut(entry).unwrap();
    }
    table.insert(name.into(), value);
}

/// What is said when `value` stands at `place`.
fn complaint(place: &str, variant: Option<&str>, value: toml::Value) -> String {
    let mut recipe = recipe(place, variant);
    put(&mut recipe, place, value);
    Recipe::parse(&recipe.to_string(), "r.toml").map_or_else(|e| e.to_string(), |_| String::new())
}

/// The fields that a table accepts, from the complaint about one that it does not, sorted.
fn known_fields(path: &str, variant: Option<&str>) -> Vec<String> {
    let place = if path.is_empty() { "zzz".to_string() } else { format!("{path}.zzz") };
    let said = complaint(&place, variant, 1.into());
    let Some((_, list)) = said.split_once("unknown field `zzz`") else {
        panic!("{path}: {said}");
    };
    let mut names: Vec<String> = list.split('`').skip(1).step_by(2).map(Into::into).collect();
    names.retain(|name| name != "name");
    names.sort_unstable();
    names
}

/// The values that a field of few values accepts.
fn choices(place: &str, variant: Option<&str>) -> String {
    for value in [toml::Value::from("?"), vec![toml::Value::from("?")].into()] {
        let said = complaint(place, variant, value);
        if let Some((_, list)) = said.split_once("unknown variant `?`, expected ") {
            let list = list.split(" (remedy: ").next().unwrap_or_default();
            let list = list.trim_start_matches("one of ").replace(" or ", ", ");
            return list.lines().next().unwrap_or_default().to_string();
        }
    }
    String::new()
}

/// Whether a field is a table with fields of its own.
fn is_table(place: &str, variant: Option<&str>) -> bool {
    let table = toml::Value::from(Table::from_iter([("zzz".to_string(), 1.into())]));
    [table.clone(), vec![table].into()].into_iter().any(|value| {
        let said = complaint(place, variant, value);
        said.contains("unknown field `zzz`") || said.contains("missing field `name`")
    })
}

type Fields = Vec<(String, String)>;

/// Fields of a struct, or of every variant of an enum, with their doc comments.
fn read_item(section: &Section) -> Vec<(Option<String>, String, Fields)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(section.file);
    let text = fs::read_to_string(&path).unwrap();
    let start = format!("\npub {} {{\n", section.item);
    let (_, body) = text.split_once(&start).unwrap_or_else(|| panic!("{}", section.item));
    let body = body.split_once("\n}\n").unwrap().0;
    let is_enum = section.item.starts_with("enum");
    let (mut docs, mut skipped) = (String::new(), false);
    let mut found = match is_enum {
        true => Vec::new(),
        false => vec![(None, String::new(), Fields::new())],
    };
    for line in body.lines().map(str::trim) {
        if let Some(doc) = line.strip_prefix("///") {
            // The first paragraph is enough.
            match doc.trim() {
                "" => docs.push('\n'),
                _ if docs.contains('\n') => {}
                doc => docs += &format!("{}{doc}", if docs.is_empty() { "" } else { " " }),
            }
            continue;
        }
        if line.starts_with("#[serde(skip)]") {
            skipped = true;
        }
        if line.starts_with('#') || line.is_empty() {
            continue;
        }
        let about = std::mem::take(&mut docs).trim().to_string();
        let field = line.trim_start_matches("pub(super) ").trim_start_matches("pub ");
        if std::mem::take(&mut skipped) {
            continue;
        }
        match field.split_once(": ") {
            Some((name, _)) => found.last_mut().unwrap().2.push((name.to_string(), about)),
            None if is_enum && field.starts_with(char::is_uppercase) => {
                let name = field.trim_end_matches([' ', '{', ',']).to_lowercase();
                found.push((Some(name), about, Fields::new()));
            }
            None => {}
        }
    }
    // Links of rustdoc lead nowhere here.
    let plain = |text: &mut String| {
        *text = text
            .replace("[`", "`")
            .replace("`]", "`")
            .replace("super::", "")
            .replace("Protocol::Strided", "strided");
    };
    for (_, about, fields) in &mut found {
        plain(about);
        fields.iter_mut().for_each(|(_, about)| plain(about));
    }
    found
}

#[test]
fn doc_comments_are_read_with_their_fields() {
    let found: BTreeMap<String, String> = read_item(&PAGE[2]).remove(0).2.into_iter().collect();
    assert_eq!(found["layers"], "Blocks.");
    assert!(!found.contains_key("file"));
    let protocol = PAGE.iter().find(|section| section.path == "eval.protocol").unwrap();
    let names: Vec<_> = read_item(protocol).into_iter().map(|(name, ..)| name.unwrap()).collect();
    assert_eq!(names, ["strided", "longlora"]);
}
