//! What templates expect of Python: maps in the order in which they were written, JSON as its
//! `json.dumps` writes it.

use minijinja::value::{Enumerator, Kwargs, Object, ObjectExt, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};
use std::fmt::Write;
use std::sync::Arc;

/// A map in its own order.
#[derive(Debug)]
struct Dict(Vec<(Value, Value)>);

impl Object for Dict {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.mapped_enumerator(|this| Box::new(this.0.iter().map(|(name, _)| name.clone())))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.0.len())
    }
}

/// A JSON object as templates see it.
pub(super) fn map(fields: &serde_json::Map<String, serde_json::Value>) -> Value {
    let pair = |(name, field): (&String, _)| (Value::from(name.as_str()), value(field));
    Value::from_object(Dict(fields.iter().map(pair).collect()))
}

/// A JSON value as templates see it.
pub(super) fn value(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::from(()),
        Json::Bool(x) => Value::from(*x),
        Json::Number(n) => match (n.as_i64(), n.as_u64(), n.as_f64()) {
            (Some(n), ..) => Value::from(n),
            (_, Some(n), _) => Value::from(n),
            (.., x) => Value::from(x.unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(list) => list.iter().map(value).collect(),
        Json::Object(fields) => map(fields),
    }
}

fn invalid(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}

/// The filter `tojson` as `transformers` defines it: nothing is escaped for HTML, and `indent`,
/// `separators`, `sort_keys` and `ensure_ascii` are those of `json.dumps`.
pub(super) fn tojson(state: &State, value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<Value> = options.get("indent")?;
    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(text) if text.as_str().is_some() => text.as_str().map(str::to_string),
        Some(n) => Some(" ".repeat(usize::try_from(n)?.min(MAX_INDENT))),
    };
    let separators: Option<(String, String)> = match options.get::<Option<Value>>("separators")? {
        Some(pair) if !pair.is_none() => {
            let part = |i: usize| Ok::<_, Error>(pair.get_item(&Value::from(i))?.to_string());
            Some((part(0)?, part(1)?))
        }
        _ => None,
    };
    let (item, key) = separators.unwrap_or_else(|| {
        (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string())
    });
    let mut writer = JsonWriter {
        out: String::new(),
        indent,
        item,
        key,
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sorted: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        paid: 0,
    };
    options.assert_all_used()?;
    writer.write(state, value, 0)?;
    Ok(writer.out)
}

/// Wider indentation is only good for filling memory.
const MAX_INDENT: usize = 64;

/// Bytes written per unit of fuel.
const BYTES_PER_FUEL: usize = 16;

struct JsonWriter {
    out: String,
    indent: Option<String>,
    item: String,
    key: String,
    ascii: bool,
    sorted: bool,
    /// Bytes that fuel was spent on.
    paid: usize,
}

impl JsonWriter {
    fn write(&mut self, state: &State, value: &Value, depth: usize) -> Result<(), Error> {
        // The engine only sees the result, which may be far larger than what went in.
        let due = (self.out.len() - self.paid) / BYTES_PER_FUEL + 1;
        self.paid = self.out.len();
        state.consume_fuel(due as u64)?;
        if depth > MAX_DEPTH {
            return Err(invalid("tojson: nested too deeply"));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let mut items = value.try_iter()?.peekable();
                self.open('[', items.peek().is_none(), depth);
                while let Some(item) = items.next() {
                    self.write(state, &item, depth + 1)?;
                    self.separate(items.peek().is_none(), depth);
                }
                self.out.push(']');
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                self.open('{', keys.is_empty(), depth);
                for (i, key) in keys.iter().enumerate() {
                    match key.kind() {
                        ValueKind::String => self.string(key.as_str().unwrap_or_default()),
                        ValueKind::None => self.out.push_str("\"null\""),
                        ValueKind::Bool => {
                            let name = if key.is_true() { "\"true\"" } else { "\"false\"" };
                            self.out.push_str(name);
                        }
                        ValueKind::Number => self.string(&number(key)),
                        kind => return Err(invalid(format!("tojson: a key that is {kind}"))),
                    }
                    self.out.push_str(&self.key);
                    self.write(state, &value.get_item(key)?, depth + 1)?;
                    self.separate(i + 1 == keys.len(), depth);
                }
                self.out.push('}');
            }
            kind => return Err(invalid(format!("tojson: {kind} is not JSON serializable"))),
        }
        Ok(())
    }

    fn open(&mut self, bracket: char, empty: bool, depth: usize) {
        self.out.push(bracket);
        if !empty {
            self.line(depth + 1);
        }
    }

    /// Behind an item.
    fn separate(&mut self, last: bool, depth: usize) {
        if !last {
            self.out.push_str(&self.item);
        }
        self.line(if last { depth } else { depth + 1 });
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            (0..depth).for_each(|_| self.out.push_str(indent));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !c.is_ascii()) || (self.ascii && c == '\u{7f}') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        // Writing to a string cannot fail.
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// Deeper values than messages can be are only good for filling the stack.
const MAX_DEPTH: usize = 128;

fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(x) if !value.is_integer() => float(x),
        _ => value.to_string(),
    }
}

/// Python's `repr`: the shortest digits that give the number back, with an exponent where it is
/// below 1e-4 or from 1e16 on.
pub(super) fn float(x: f64) -> String {
    if x.is_nan() {
        return "NaN".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        // Without an exponent, and with a point that shows it is no integer.
        let plain = x.to_string();
        return if plain.contains('.') { plain } else { format!("{plain}.0") };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (x, text) in [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (-2.5e-9, "-2.5e-09"),
            (f64::INFINITY, "Infinity"),
        ] {
            assert_eq!(float(x), text);
        }
    }
}
