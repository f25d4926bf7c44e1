//! Chat templates: a conversation as the text that a model was trained on.
//!
//! Templates are programs that come with checkpoints of strangers. They run in an interpreter
//! that reaches no file and no network, on a budget of steps, memory and output.

use super::{Message, date, python};
use crate::datasets::Tokenizer;
use crate::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, ErrorKind, State};
use std::collections::BTreeMap;
use std::error::Error as _;
use std::io::Write;
use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

/// Longest template that is read, bytes: the engine counts lines and columns in 16 bits.
pub(super) const MAX_SOURCE: usize = u16::MAX as usize;

/// Longest tag that is read, bytes outside of its strings: what compiles in the square of the
/// length of an expression does so for longer.
const MAX_TAG: usize = 4096;

/// Steps of one rendering; 64 bytes of text count as one, so this bounds memory, too.
const FUEL: u64 = 500_000;

/// More steps for longer messages: one for so many bytes.
const BYTES_PER_STEP: u64 = 8;

/// Longest text that is written, bytes.
const MAX_OUTPUT: usize = 16 << 20;

/// Stack of the thread that the engine works on, bytes: it nests as deeply as a template or its
/// values do, which the limits above bound. Memory is used only as far as it is touched.
const STACK: usize = 256 << 20;

/// Around what `{% generation %}` holds: characters that no text has by Unicode's own rule.
const MARKS: [char; 2] = ['\u{fdd0}', '\u{fdd1}'];

/// A chat template, rendered as `transformers` renders it: blocks trimmed, nothing escaped for
/// HTML, `raise_exception`, `strftime_now` and `tojson` at hand, Python's methods on strings, lists
/// and maps, and what `{% generation %}` holds known as the assistant's.
///
/// *Deviations:* `strftime_now` gives universal time, not that of a place; reasoning is passed on
/// under the name it has, without aliases; maps that a template writes down itself are in the
/// order of their keys.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    /// For messages: a file, or the field of one.
    place: String,
    variables: BTreeMap<String, Value>,
    marked: bool,
    max_output: usize,
}

impl ChatTemplate {
    /// A template from its text; `place` is its name in messages.
    ///
    /// # Errors
    /// [`Error::Template`] with the line for what is no template, or one of 64 KiB or more.
    ///
    /// ```
    /// use longburn::datasets::{ChatTemplate, Message};
    /// let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}\
    ///               {% if add_generation_prompt %}<assistant>{% endif %}";
    /// let template = ChatTemplate::new(source, "my template")?;
    /// let text = template.render(&[Message::new("user", "Hello")], true)?;
    /// assert_eq!(text, "<user>Hello<assistant>");
    /// # Ok::<(), longburn::Error>(())
    /// ```
    pub fn new(source: impl Into<String>, place: impl Into<String>) -> Result<Self> {
        let (source, place) = (source.into(), place.into());
        let tag = longest_tag(&source);
        for (what, bytes, limit) in
            [("has", source.len(), MAX_SOURCE), ("has a tag of", tag, MAX_TAG)]
        {
            if bytes > limit {
                return Err(Error::Template {
                    place,
                    reason: format!("{what} {bytes} bytes; at most {limit} are read"),
                    remedy: "check that this is a chat template".into(),
                });
            }
        }
        let mut environment = Environment::new();
        environment.set_debug(false);
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| Error::Template {
            place: place.clone(),
            reason: error.to_string(),
            remedy: "report this: the syntax is fixed".into(),
        })?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        // It prints all of the state, whose size no budget knows.
        environment.remove_global("debug");
        environment.add_filter("tojson", python::tojson);
        environment.add_function("raise_exception", |reason: String| -> Result<(), _> {
            let refusal = Refusal(reason.clone());
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, reason).with_source(refusal))
        });
        environment.add_function(GENERATION, generation);
        let (text, marked) = marks_to_calls(&source);
        let mut template = Self {
            environment,
            source,
            place,
            variables: BTreeMap::new(),
            marked,
            max_output: MAX_OUTPUT,
        }
        .with_clock(None);
        deeply(|| {
            let added = template.environment.add_template_owned(NAME, text);
            added.map_err(|error| template.fault(&error, 0))
        })??;
        Ok(template)
    }

    /// Let the template know the special tokens (`bos_token`, `eos_token` ...) of a tokenizer.
    pub fn with_tokenizer(mut self, tokenizer: &Tokenizer) -> Self {
        for (name, token) in tokenizer.special_tokens() {
            self = self.with_variable(name, token.into());
        }
        self
    }

    /// Give the template a variable: a special token, `tools`, `enable_thinking` ...
    pub fn with_variable(mut self, name: impl Into<String>, value: serde_json::Value) -> Self {
        self.variables.insert(name.into(), python::value(&value));
        self
    }

    /// What `strftime_now` takes for the present, seconds since 1970; the clock's time where not
    /// set.
    pub fn with_clock(mut self, seconds: Option<i64>) -> Self {
        let now = move || {
            seconds.unwrap_or_else(|| {
                let since = SystemTime::now().duration_since(UNIX_EPOCH);
                since.map_or(0, |time| time.as_secs() as i64)
            })
        };
        self.environment
            .add_function("strftime_now", move |format: String| date::strftime(&format, now()));
        self
    }

    /// The template as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text of a conversation; with `generation_prompt`, up to where the assistant's next
    /// message begins.
    ///
    /// # Errors
    /// [`Error::Template`] when the template refuses the messages, fails, does not end, or writes
    /// more than 16 MiB.
    pub fn render(&self, messages: &[Message], generation_prompt: bool) -> Result<String> {
        self.run(messages, generation_prompt).map(|(text, _)| text)
    }

    /// The text of a conversation, and which bytes of it are the assistant's: what
    /// `{% generation %}` holds where the template has it, else what an assistant's message adds
    /// to the text that would have asked for it, its end-of-turn token included.
    ///
    /// # Errors
    /// Those of [`render`](Self::render), and [`Error::Template`] where the text of the first
    /// messages is not the beginning of the text of all of them.
    pub fn render_spans(&self, messages: &[Message]) -> Result<(String, Vec<Range<usize>>)> {
        let (text, marked) = self.run(messages, false)?;
        if self.marked {
            return Ok((text, marked));
        }
        let mut spans = Vec::new();
        for (i, message) in messages.iter().enumerate() {
            if message.role() == "assistant" {
                let before = self.render(&messages[..i], true)?;
                let through = self.render(&messages[..=i], false)?;
                for (part, prefix) in [(i, &before), (i + 1, &through)] {
                    self.check_prefix(prefix, &text, part, messages.len())?;
                }
                if through.len() > before.len() {
                    spans.push(before.len()..through.len());
                }
            }
        }
        Ok((text, spans))
    }

    fn check_prefix(&self, prefix: &str, text: &str, part: usize, all: usize) -> Result<()> {
        if text.starts_with(prefix) {
            return Ok(());
        }
        let same = prefix.chars().zip(text.chars()).take_while(|(a, b)| a == b).count();
        Err(Error::Template {
            place: self.place.clone(),
            reason: format!(
                "writes the first {part} of {all} messages differently when the others follow \
                 (from character {same} on), so that the assistant's text cannot be told apart"
            ),
            remedy: "put the assistant's text between {% generation %} and {% endgeneration %}, \
                     or use a template that does not look ahead"
                .into(),
        })
    }

    fn run(&self, messages: &[Message], prompt: bool) -> Result<(String, Vec<Range<usize>>)> {
        let mut context = self.variables.clone();
        context.insert("messages".into(), messages.iter().map(Message::value).collect());
        context.insert("add_generation_prompt".into(), prompt.into());
        for name in ["tools", "documents"] {
            context.entry(name.into()).or_insert(().into());
        }
        let mut out = Capped { bytes: Vec::new(), cap: self.max_output };
        let mut environment = self.environment.clone();
        let json = serde_json::to_string(messages).unwrap_or_default();
        if self.marked && json.contains(MARKS) {
            return Err(Error::Template {
                place: self.place.clone(),
                reason: "a message holds U+FDD0 or U+FDD1, which mark the assistant's text".into(),
                remedy: "take these noncharacters out of the message".into(),
            });
        }
        let fuel = FUEL + json.len() as u64 / BYTES_PER_STEP;
        environment.set_fuel(Some(fuel));
        // An error may hold values, so it is taken apart and dropped there, too.
        deeply(|| {
            let template = environment.get_template(NAME);
            let rendered = template
                .and_then(|template| template.render_captured_to(Value::from(context), &mut out));
            rendered.map(|_| ()).map_err(|error| self.fault(&error, fuel))
        })??;
        // The engine writes strings only.
        self.unmark(&String::from_utf8_lossy(&out.bytes))
    }

    /// Take the marks out of a text; where they stood.
    fn unmark(&self, text: &str) -> Result<(String, Vec<Range<usize>>)> {
        let (mut plain, mut spans, mut open) = (String::with_capacity(text.len()), vec![], None);
        let [begin, end] = MARKS;
        for c in text.chars() {
            match open {
                None if self.marked && c == begin => open = Some(plain.len()),
                Some(start) if c == end => {
                    spans.push(start..plain.len());
                    open = None;
                }
                _ if self.marked && MARKS.contains(&c) => {
                    return Err(Error::Template {
                        place: self.place.clone(),
                        reason: "nests {% generation %}, or writes U+FDD0 or U+FDD1 itself".into(),
                        remedy: "put one {% generation %} behind the other".into(),
                    });
                }
                _ => plain.push(c),
            }
        }
        spans.retain(|span| !span.is_empty());
        Ok((plain, spans))
    }

    /// An error of the engine in words for those who wrote the template or the messages.
    fn fault(&self, error: &minijinja::Error, fuel: u64) -> Error {
        let place = match error.line() {
            Some(line) => format!("{}, line {line}", self.place),
            None => self.place.clone(),
        };
        let mut source = error.source();
        while let Some(cause) = source {
            if let Some(Refusal(reason)) = cause.downcast_ref() {
                return Error::Template {
                    place,
                    reason: format!("the template refuses these messages: {reason}"),
                    remedy: "give it messages in the roles and order that it accepts".into(),
                };
            }
            source = cause.source();
        }
        let (reason, remedy) = match error.kind() {
            ErrorKind::OutOfFuel => (
                format!("takes more than {fuel} steps"),
                "look for a loop without end or a text that grows; give fewer messages",
            ),
            ErrorKind::WriteFailure => (
                format!("writes more than {} bytes", self.max_output),
                "look for a text that grows; give fewer messages",
            ),
            kind => {
                let detail = error.detail().map(|d| format!(": {d}")).unwrap_or_default();
                let cause = error.source().map(|c| format!(" ({c})")).unwrap_or_default();
                (
                    format!("{kind}{detail}{cause}"),
                    "mend the template, or give the messages the fields that it asks for",
                )
            }
        };
        Error::Template { place, reason, remedy: remedy.into() }
    }
}

/// The engine's name of the one template.
const NAME: &str = "chat";

/// The function that stands in for the statement `{% generation %}`.
const GENERATION: &str = "longburn_generation";

/// Do `work` where the stack is large.
fn deeply<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    let failed = |reason: String| Error::Template {
        place: "the engine of chat templates".into(),
        reason,
        remedy: "free memory, or give a simpler template".into(),
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work);
        let thread = thread.map_err(|e| failed(format!("does not start: {e}")))?;
        thread.join().map_err(|_| failed("has given up".into()))
    })
}

/// Why a template called `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn generation(state: &mut State, options: Kwargs) -> Result<String, minijinja::Error> {
    let caller: Value = options.get("caller")?;
    let [begin, end] = MARKS;
    Ok(format!("{begin}{}{end}", caller.call(state, &[])?))
}

/// `{% generation %}` as a call that the engine knows, on the same lines; whether there is one.
fn marks_to_calls(source: &str) -> (String, bool) {
    let (mut out, mut rest, mut found) = (String::with_capacity(source.len()), source, false);
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        let words = tag.trim_start_matches(['-', '+']).trim_start();
        out.push_str(&tag[..tag.len() - words.len()]);
        rest = words;
        for (name, call) in
            [("generation", format!("call {GENERATION}()")), ("endgeneration", "endcall".into())]
        {
            let behind = words.strip_prefix(name).filter(|behind| {
                let end = behind.trim_start().trim_start_matches(['-', '+']);
                end.starts_with("%}")
            });
            if let Some(behind) = behind {
                out.push_str(&call);
                rest = behind;
                found = true;
            }
        }
    }
    out.push_str(rest);
    (out, found)
}

/// Bytes of the longest `{{ .. }}` or `{% .. %}`, strings in it left out.
fn longest_tag(source: &str) -> usize {
    let (mut longest, mut rest) = (0, source);
    while let Some(at) = rest.find(['{']) {
        rest = &rest[at + 1..];
        let end = match rest.as_bytes().first() {
            Some(b'{') => "}}",
            Some(b'%') => "%}",
            Some(b'#') => {
                rest = rest.find("#}").map_or("", |end| &rest[end + 2..]);
                continue;
            }
            _ => continue,
        };
        let (mut quote, mut escaped, mut length) = (None, false, 0);
        let mut stop = rest.len();
        for (i, c) in rest.char_indices().skip(1) {
            match quote {
                Some(_) if escaped => escaped = false,
                Some(_) if c == '\\' => escaped = true,
                Some(open) if c == open => quote = None,
                Some(_) => {}
                None if rest[i..].starts_with(end) => {
                    stop = i + 2;
                    break;
                }
                None => {
                    quote = Some(c).filter(|c| matches!(c, '"' | '\''));
                    length += c.len_utf8();
                }
            }
        }
        longest = longest.max(length);
        rest = &rest[stop..];
    }
    longest
}

/// Takes so many bytes and no more.
struct Capped {
    bytes: Vec<u8>,
    cap: usize,
}

impl Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.cap {
            return Err(std::io::Error::other("the text is too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
