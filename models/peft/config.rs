//! `adapter_config.json`.

use crate::models::hub::RepoId;
use crate::models::weights::{read_needed, shortened};
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Largest file that is read, bytes.
const MAX_FILE: u64 = 1 << 20;

/// Settings that change what an adapter computes in a way that is not implemented; each may be
/// absent, null, false or empty.
const REFUSED: [&str; 16] = [
    "alora_invocation_tokens",
    "arrow_config",
    "exclude_modules",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "layers_pattern",
    "layers_to_transform",
    "lora_bias",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
];

/// The configuration of an adapter, as far as it changes what is computed.
#[derive(Debug)]
pub(super) struct AdapterConfig {
    pub r: usize,
    pub lora_alpha: f64,
    /// Names with ranks of their own, as in `target_modules`.
    pub rank_pattern: Vec<(String, usize)>,
    /// Names with an α of their own.
    pub alpha_pattern: Vec<(String, f64)>,
    pub use_rslora: bool,
    pub target_modules: Vec<String>,
    pub modules_to_save: Vec<String>,
    pub ensure_weight_tying: bool,
    pub base_model_name_or_path: String,
}

/// The value of the first name that means `module`.
fn of<T: Copy>(pattern: &[(String, T)], module: &str) -> Option<T> {
    pattern.iter().find(|(name, _)| is_target(module, name)).map(|(_, value)| *value)
}

/// Whether `module` carries an update because of `name` in `target_modules`.
pub(super) fn is_target(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

impl AdapterConfig {
    /// Whether `module` carries an update.
    pub fn targets(&self, module: &str) -> bool {
        self.target_modules.iter().any(|name| is_target(module, name))
    }

    /// Rank of the update of `module`.
    pub fn rank(&self, module: &str) -> usize {
        of(&self.rank_pattern, module).unwrap_or(self.r)
    }

    /// α of the update of `module`.
    pub fn alpha(&self, module: &str) -> f64 {
        of(&self.alpha_pattern, module).unwrap_or(self.lora_alpha)
    }

    /// Whether `module` is saved in full; names count as ends, not as whole components.
    pub fn saves(&self, module: &str) -> bool {
        self.modules_to_save.iter().any(|name| module.ends_with(name))
    }

    /// Read and check a file.
    pub fn read(path: &Path) -> Result<Self> {
        let remedy = "name the folder of an adapter in PEFT form, which holds one";
        let text = read_needed(path, MAX_FILE, remedy)?;
        let file = path.display().to_string();
        let map: Map<String, Value> = serde_json::from_str(&text).map_err(|e| Error::Parse {
            file: file.clone(),
            message: format!("{e} (remedy: get the file again from where the adapter is from)"),
            text: None,
            span: None,
        })?;
        let fields = Fields { map: &map, file: &file };
        fields.check()?;
        Ok(Self {
            r: fields.rank()?,
            lora_alpha: fields.alpha()?,
            rank_pattern: fields.pattern("rank_pattern", "ranks of at least 1", |value| {
                value.as_u64().filter(|rank| *rank > 0).map(|rank| rank as usize)
            })?,
            alpha_pattern: fields.pattern("alpha_pattern", "numbers", |value| {
                value.as_f64().filter(|alpha| (*alpha as f32).is_finite())
            })?,
            use_rslora: fields.flag("use_rslora")?,
            target_modules: fields.names("target_modules")?,
            modules_to_save: fields.names("modules_to_save")?,
            ensure_weight_tying: fields.flag("ensure_weight_tying")?,
            base_model_name_or_path: match fields.text("base_model_name_or_path") {
                Some(name) => with_revision(name, fields.text("revision")),
                None => String::new(),
            },
        })
    }

    /// The file's content.
    pub fn to_json(&self) -> Value {
        // PEFT declares α as an integer; a whole number is written as one.
        let number = |alpha: f64| match alpha {
            whole if whole.fract() == 0.0 && whole < 1e15 => json!(whole as i64),
            other => json!(other),
        };
        let ranks = self.rank_pattern.iter().map(|(name, rank)| (name.clone(), json!(rank)));
        let alphas = self.alpha_pattern.iter().map(|(name, alpha)| (name.clone(), number(*alpha)));
        let (base, revision) = without_revision(&self.base_model_name_or_path);
        let saved = (!self.modules_to_save.is_empty()).then_some(&self.modules_to_save);
        json!({
            "alpha_pattern": alphas.collect::<Map<_, _>>(),
            "base_model_name_or_path": base,
            "bias": "none",
            "ensure_weight_tying": self.ensure_weight_tying,
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "lora_alpha": number(self.lora_alpha),
            "lora_dropout": 0.0,
            "modules_to_save": saved,
            "peft_type": "LORA",
            "r": self.r,
            "rank_pattern": ranks.collect::<Map<_, _>>(),
            "revision": revision,
            "target_modules": self.target_modules,
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": self.use_rslora,
        })
    }
}

/// PEFT keeps the revision of a repository apart from its name.
fn without_revision(base: &str) -> (&str, Option<&str>) {
    match base.split_once('@') {
        Some((name, revision)) if !Path::new(base).exists() && RepoId::parse(base).is_ok() => {
            (name, Some(revision))
        }
        _ => (base, None),
    }
}

fn with_revision(name: String, revision: Option<String>) -> String {
    match revision {
        Some(revision) if RepoId::parse(&name).is_ok() && !Path::new(&name).exists() => {
            format!("{name}@{revision}")
        }
        _ => name,
    }
}

/// The raw fields, with errors that name them.
struct Fields<'a> {
    map: &'a Map<String, Value>,
    file: &'a str,
}

impl Fields<'_> {
    fn get(&self, field: &str) -> &Value {
        self.map.get(field).unwrap_or(&Value::Null)
    }

    fn text(&self, field: &str) -> Option<String> {
        self.get(field).as_str().map(Into::into)
    }

    fn bad<T>(&self, field: &str, expected: &str) -> Result<T> {
        let value = match self.map.get(field) {
            Some(value) => shortened(&value.to_string(), 80),
            None => "missing".into(),
        };
        Err(Error::config(self.file, field, value, expected))
    }

    fn refuse(&self, field: &str) -> Result<()> {
        let value = shortened(&self.get(field).to_string(), 80);
        Err(Error::Unsupported {
            what: format!("{}: `{field}` is {value}, which is not implemented", self.file),
            remedy: "merge the adapter in Python (merge_and_unload) and load the merged model"
                .into(),
        })
    }

    /// Refuse what would be computed differently here.
    fn check(&self) -> Result<()> {
        if self.text("peft_type").as_deref() != Some("LORA") {
            return self.bad("peft_type", "\"LORA\"");
        }
        if !matches!(self.text("task_type").as_deref(), None | Some("CAUSAL_LM")) {
            return self.bad("task_type", "\"CAUSAL_LM\"");
        }
        if !matches!(self.text("bias").as_deref(), None | Some("none")) {
            return self.refuse("bias");
        }
        // Other initialisations take something away from the base weights.
        let init = self.get("init_lora_weights");
        if !(init.is_null() || init.is_boolean() || init == "gaussian") {
            return self.refuse("init_lora_weights");
        }
        let set = |value: &Value| match value {
            Value::Null => false,
            Value::Bool(on) => *on,
            Value::Array(items) => !items.is_empty(),
            Value::Object(items) => !items.is_empty(),
            _ => true,
        };
        match REFUSED.iter().find(|field| set(self.get(field))) {
            Some(field) => self.refuse(field),
            None => Ok(()),
        }
    }

    fn rank(&self) -> Result<usize> {
        match self.get("r").as_u64() {
            Some(r) if r > 0 => Ok(r as usize),
            _ => self.bad("r", "a whole number of at least 1"),
        }
    }

    fn alpha(&self) -> Result<f64> {
        match self.get("lora_alpha").as_f64() {
            // It scales f32 weights.
            Some(alpha) if (alpha as f32).is_finite() => Ok(alpha),
            _ => self.bad("lora_alpha", "a number within f32"),
        }
    }

    fn flag(&self, field: &str) -> Result<bool> {
        match self.get(field) {
            Value::Null => Ok(false),
            Value::Bool(on) => Ok(*on),
            _ => self.bad(field, "true or false"),
        }
    }

    /// Values by name. PEFT takes the names for regular expressions; plain ones are read.
    fn pattern<T>(
        &self,
        field: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Vec<(String, T)>> {
        let plain = |name: &str| {
            name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
        };
        let entry = |(name, value): (&String, &Value)| {
            Some((name.clone(), read(value).filter(|_| plain(name))?))
        };
        let found = match self.get(field) {
            Value::Null => return Ok(Vec::new()),
            Value::Object(entries) => entries.iter().map(entry).collect(),
            _ => None,
        };
        match found {
            Some(found) => Ok(found),
            None => self.bad(field, &format!("plain names of modules with {expected}")),
        }
    }

    /// A list of names; a single string is a pattern or a shorthand.
    fn names(&self, field: &str) -> Result<Vec<String>> {
        let list = match self.get(field) {
            Value::Null => return Ok(Vec::new()),
            Value::Array(items) => {
                items.iter().map(|item| item.as_str().map(Into::into)).collect::<Option<Vec<_>>>()
            }
            _ => None,
        };
        match list {
            Some(names) if names.iter().all(|name: &String| !name.is_empty()) => Ok(names),
            _ => self.bad(field, "a list of module names"),
        }
    }
}
