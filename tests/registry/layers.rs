//! Which layer uses which, read from the sources: a small scanner over Rust tokens that resolves
//! `crate::`, `super::` and `self::` paths to the top folder that they lead to.

/// Bottom up. A layer uses itself and those before it.
pub const LAYERS: [&str; 7] =
    ["kernel", "positional", "attention", "models", "datasets", "training", "testing"];

/// What a layer may not use although it lies below.
const FORBIDDEN: [(&str, &str); 1] = [("datasets", "models")];

/// Names at the root of the crate that every layer may use.
const SHARED: [&str; 8] =
    ["atomic", "error", "paths", "streams", "Error", "HubFault", "Result", "kernel"];

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Mark(char),
}

/// Every forbidden edge of one file, as `file:line: from may not use to (path)`.
///
/// `file` is the path from the crate's root, with `/` between folders. Comments, strings and
/// items under `#[cfg(test)]` are passed over.
pub fn violations(file: &str, text: &str) -> Vec<String> {
    let module = module_of(file);
    let from = module.first().map_or("root", String::as_str);
    let mut found: Vec<String> = paths(&module, text)
        .into_iter()
        .filter_map(|(line, path)| {
            let to = path.first()?;
            forbidden(from, to).then(|| {
                format!("{file}:{line}: {from} may not use {to} (crate::{})", path.join("::"))
            })
        })
        .collect();
    found.dedup();
    found
}

fn forbidden(from: &str, to: &str) -> bool {
    if from == to || SHARED.contains(&to) {
        return false;
    }
    let rank = |name: &str| LAYERS.iter().position(|layer| *layer == name);
    match (rank(from), rank(to)) {
        (Some(from_rank), Some(to_rank)) => to_rank > from_rank || FORBIDDEN.contains(&(from, to)),
        // A name at the root that is no layer would be a way around them, and what all layers
        // use may itself use none.
        _ => true,
    }
}

/// `models/weights/read.rs` -> models, weights, read
fn module_of(file: &str) -> Vec<String> {
    let stem = file.strip_suffix(".rs").unwrap_or(file);
    let stem = stem.strip_suffix("/mod").unwrap_or(stem);
    stem.split('/').map(String::from).collect()
}

/// All paths that begin with `crate`, `super` or `self`, from the root, with their lines.
fn paths(module: &[String], text: &str) -> Vec<(usize, Vec<String>)> {
    let tokens = tokens(text);
    let mut found = Vec::new();
    let mut here = module.to_vec();
    // Depth of braces at which each inline module ends.
    let (mut depth, mut inline) = (0, Vec::new());
    let mut i = 0;
    while i < tokens.len() {
        if let Some(next) = skip_test_item(&tokens, i) {
            i = next;
            continue;
        }
        match &tokens[i].1 {
            Token::Mark('{') => depth += 1,
            Token::Mark('}') => {
                depth -= 1;
                if inline.last() == Some(&depth) {
                    inline.pop();
                    here.pop();
                }
            }
            Token::Word(word) if word == "mod" => {
                if let (Some(Token::Word(name)), Some(Token::Mark('{'))) =
                    (token(&tokens, i + 1), token(&tokens, i + 2))
                {
                    here.push(name.clone());
                    inline.push(depth);
                }
            }
            Token::Word(word) if is_anchor(word) && !continues_a_path(&tokens, i) => {
                let (next, ends) = read_path(&tokens, i);
                for (line, path) in ends {
                    found.extend(resolve(&here, &path).map(|path| (line, path)));
                }
                // Braces of a use tree have been read; those of a body have not.
                i = next;
                continue;
            }
            _ => {}
        }
        i += 1;
    }
    found
}

fn is_anchor(word: &str) -> bool {
    matches!(word, "crate" | "super" | "self")
}

fn token(tokens: &[(usize, Token)], i: usize) -> Option<&Token> {
    tokens.get(i).map(|(_, token)| token)
}

fn is_mark(tokens: &[(usize, Token)], i: usize, mark: char) -> bool {
    token(tokens, i) == Some(&Token::Mark(mark))
}

fn is_separator(tokens: &[(usize, Token)], i: usize) -> bool {
    is_mark(tokens, i, ':') && is_mark(tokens, i + 1, ':')
}

fn continues_a_path(tokens: &[(usize, Token)], i: usize) -> bool {
    i >= 2 && is_separator(tokens, i - 2)
}

/// The paths of a use tree or expression that starts at `i`, and the token behind it.
fn read_path(tokens: &[(usize, Token)], mut i: usize) -> (usize, Vec<(usize, Vec<String>)>) {
    let mut path = Vec::new();
    let line = tokens[i].0;
    while let Some(Token::Word(word)) = token(tokens, i) {
        path.push(word.clone());
        if !is_separator(tokens, i + 1) {
            return (i + 1, vec![(line, path)]);
        }
        i += 3;
    }
    if !is_mark(tokens, i, '{') {
        return (i, vec![(line, path)]);
    }
    let mut ends = Vec::new();
    i += 1;
    while i < tokens.len() && !is_mark(tokens, i, '}') {
        if matches!(token(tokens, i), Some(Token::Word(_))) {
            let (next, branches) = read_path(tokens, i);
            let join = |(line, rest)| (line, [path.clone(), rest].concat());
            ends.extend(branches.into_iter().map(join));
            i = next;
        } else {
            i += 1;
        }
    }
    (i + 1, ends)
}

/// A path from the root; none where it names nothing but the current module.
fn resolve(here: &[String], path: &[String]) -> Option<Vec<String>> {
    let mut base = here.to_vec();
    let mut rest = path;
    while let Some((first, tail)) = rest.split_first() {
        match first.as_str() {
            "crate" => base.clear(),
            "super" => {
                base.pop();
            }
            "self" => {}
            _ => break,
        }
        rest = tail;
    }
    base.extend(rest.iter().cloned());
    (!rest.is_empty()).then_some(base)
}

/// Behind the item that `#[cfg(test)]` at `i` belongs to.
fn skip_test_item(tokens: &[(usize, Token)], i: usize) -> Option<usize> {
    let pattern = ["#", "[", "cfg", "(", "test", ")", "]"];
    let matches = pattern.iter().enumerate().all(|(k, want)| match token(tokens, i + k) {
        Some(Token::Word(word)) => word == want,
        Some(Token::Mark(mark)) => want.starts_with(*mark),
        None => false,
    });
    if !matches {
        return None;
    }
    let mut depth = 0;
    for (k, (_, token)) in tokens.iter().enumerate().skip(i + pattern.len()) {
        match token {
            Token::Mark('{') => depth += 1,
            Token::Mark('}') if depth == 1 => return Some(k + 1),
            Token::Mark('}') => depth -= 1,
            Token::Mark(';') if depth == 0 => return Some(k + 1),
            _ => {}
        }
    }
    Some(tokens.len())
}

/// Words and punctuation with their lines; comments, strings and characters left out.
fn tokens(text: &str) -> Vec<(usize, Token)> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut found = Vec::new();
    let (mut i, mut line) = (0, 1);
    while i < chars.len() {
        let start = i;
        match at(i) {
            '/' if at(i + 1) == '/' => {
                while i < chars.len() && at(i) != '\n' {
                    i += 1;
                }
            }
            '/' if at(i + 1) == '*' => {
                let mut depth = 0;
                while i < chars.len() {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                    if depth == 0 {
                        break;
                    }
                }
            }
            'r' if raw_hashes(&chars, i).is_some() => {
                let hashes = raw_hashes(&chars, i).unwrap_or(0);
                i += hashes + 2;
                while i < chars.len() && !(at(i) == '"' && (1..=hashes).all(|k| at(i + k) == '#')) {
                    i += 1;
                }
                i += hashes + 1;
            }
            '"' => {
                i += 1;
                while i < chars.len() && at(i) != '"' {
                    i += if at(i) == '\\' { 2 } else { 1 };
                }
                i += 1;
            }
            // A character, not a lifetime.
            '\'' if at(i + 1) == '\\' || at(i + 2) == '\'' => {
                i += if at(i + 1) == '\\' { 3 } else { 2 };
                while i < chars.len() && at(i) != '\'' {
                    i += 1;
                }
                i += 1;
            }
            c if c.is_alphanumeric() || c == '_' => {
                while at(i).is_alphanumeric() || at(i) == '_' {
                    i += 1;
                }
                found.push((line, Token::Word(chars[start..i].iter().collect())));
            }
            c => {
                if !c.is_whitespace() {
                    found.push((line, Token::Mark(c)));
                }
                i += 1;
            }
        }
        line += chars[start..i.min(chars.len())].iter().filter(|c| **c == '\n').count();
    }
    found
}

/// Number of `#` of the raw string that starts at `i`.
fn raw_hashes(chars: &[char], i: usize) -> Option<usize> {
    let joined =
        i > 0 && (chars[i - 1].is_alphanumeric() && chars[i - 1] != 'b' || chars[i - 1] == '_');
    let hashes = chars[i + 1..].iter().take_while(|c| **c == '#').count();
    (!joined && chars.get(i + 1 + hashes) == Some(&'"')).then_some(hashes)
}

mod tests {
    use super::violations;

    fn edges(file: &str, text: &str) -> Vec<String> {
        let short = |v: String| v.split(" (").next().map(String::from).unwrap_or_default();
        violations(file, text).into_iter().map(short).collect()
    }

    #[test]
    fn an_import_from_above_is_named_with_its_line() {
        let text = "//! Doc.\n\nuse crate::Error;\nuse crate::training::Trainer;\n";
        assert_eq!(
            violations("models/decoder.rs", text),
            ["models/decoder.rs:4: models may not use training (crate::training::Trainer)"]
        );
    }

    #[test]
    fn every_way_to_write_a_path_is_seen() {
        let up = |file, text| edges(file, text).len();
        assert_eq!(up("positional/rope.rs", "use super::super::attention::Linear;"), 1);
        assert_eq!(up("positional/mod.rs", "use super::attention::Linear;"), 1);
        assert_eq!(
            up("positional/rope.rs", "use super::attention::Linear;"),
            0,
            "positional::attention"
        );
        assert_eq!(up("attention/mod.rs", "pub(crate) use crate::{Error, models::{a, b}};"), 2);
        assert_eq!(up("attention/x.rs", "use crate::{\n    Error,\n    models::a,\n};"), 1);
        assert_eq!(up("attention/x.rs", "fn f() -> crate::models::Decoder { todo!() }"), 1);
        assert_eq!(up("attention/x.rs", "macro_rules! m { () => { $crate::models::f() } }"), 1);
        assert_eq!(up("attention/x.rs", "mod inner {\n use super::super::super::models::f; }"), 1);
        assert_eq!(
            up("attention/x.rs", "mod inner { fn f() {} }\nuse super::super::models::f;"),
            1
        );
        assert_eq!(
            up("datasets/mod.rs", "use crate::models::ModelConfig;"),
            1,
            "not below datasets"
        );
        assert_eq!(
            up("streams.rs", "use crate::attention::Linear;"),
            1,
            "shared code uses no layer"
        );
        assert_eq!(up("attention/x.rs", "use crate::Decoder;"), 1, "re-export at the root");
    }

    #[test]
    fn what_is_allowed_or_no_code_passes() {
        let up = |file, text| edges(file, text).len();
        assert_eq!(
            up("training/mod.rs", "use crate::{Result, datasets::Batch, models::*, streams};"),
            0
        );
        assert_eq!(
            up("models/a.rs", "use super::config::X; use self::inner::Y; use crate::models::Z;"),
            0
        );
        assert_eq!(
            up("models/a.rs", "use crate::{self, kernel::Mask}; pub(crate) fn f(&self) {}"),
            0
        );
        assert_eq!(
            up("models/a.rs", "/// See [`crate::training::X`].\n/* use crate::training; */"),
            0
        );
        assert_eq!(
            up("models/a.rs", "const A: &str = \"use crate::training\"; const C: char = '\"';"),
            0
        );
        assert_eq!(up("models/a.rs", "const A: &str = r#\"a \" crate::training::b\"#;"), 0);
        let tests =
            "#[cfg(test)]\nmod tests { use crate::training::Trainer; }\nuse crate::datasets::A;";
        assert_eq!(edges("models/a.rs", tests), ["models/a.rs:3: models may not use datasets"]);
    }
}
