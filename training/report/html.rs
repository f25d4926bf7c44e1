//! The report of a run: one page that needs nothing but itself.

use std::fmt;
use std::path::Path;

use super::{Plot, Table, escape};
use crate::Result;
use crate::models::weights::write_atomic;

/// A report page under way; [`Report::save`] writes it.
///
/// Texts are plain: they are escaped, `` `code` `` becomes code, and `[^name]` refers to the
/// footnote of that name.
#[derive(Clone, Debug, Default)]
pub struct Report {
    title: String,
    lead: String,
    facts: Vec<(String, String)>,
    sections: Vec<Section>,
    footnotes: Vec<(String, String)>,
    refresh: Option<u32>,
}

impl Report {
    /// A report with its title and the paragraph below it.
    pub fn new(title: impl Into<String>, lead: impl Into<String>) -> Self {
        Self { title: title.into(), lead: lead.into(), ..Self::default() }
    }

    /// A key figure of the run, shown at the top: `41.5 ± 1.4`, "perplexity to 512".
    pub fn fact(mut self, value: impl Into<String>, label: impl Into<String>) -> Self {
        self.facts.push((label.into(), value.into()));
        self
    }

    /// Adds a section.
    pub fn section(mut self, section: Section) -> Self {
        self.sections.push(section);
        self
    }

    /// A footnote, numbered in the order of these calls.
    pub fn footnote(mut self, name: impl Into<String>, text: impl Into<String>) -> Self {
        self.footnotes.push((name.into(), text.into()));
        self
    }

    /// The page loads itself anew every so many seconds, as that of a run under way does.
    pub fn refreshed_every(mut self, seconds: u32) -> Self {
        self.refresh = Some(seconds);
        self
    }

    /// The whole page.
    pub fn render(&self) -> String {
        let mut body = format!("<header>\n<h1>{}</h1>\n", escape(&self.title));
        if !self.lead.is_empty() {
            body += &format!("<p class=\"lead\">{}</p>\n", self.inline(&self.lead));
        }
        body += "</header>\n";
        if !self.facts.is_empty() {
            body += &pairs("facts", &self.facts, |text| self.inline(text));
        }
        for section in &self.sections {
            body += &format!("<section>\n<h2>{}</h2>\n", escape(&section.heading));
            for block in &section.blocks {
                body += &self.block(block);
            }
            body += "</section>\n";
        }
        if !self.footnotes.is_empty() {
            body += "<footer>\n<h2>Notes</h2>\n<ol>\n";
            for (i, (_, text)) in self.footnotes.iter().enumerate() {
                body += &format!("<li id=\"note-{}\">{}</li>\n", i + 1, self.inline(text));
            }
            body += "</ol>\n</footer>\n";
        }
        page(&escape(&self.title), self.refresh, &body)
    }

    /// Writes the page to a file, in one piece: who reads it sees the old page or the new one.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        write_atomic(path, self.render().as_bytes())
    }

    fn block(&self, block: &Block) -> String {
        match block {
            Block::Text(text) => format!("<p>{}</p>\n", self.inline(text)),
            Block::Figure(figure) => format!(
                "<figure>\n{}<figcaption><b>{}.</b> {}</figcaption>\n</figure>\n",
                figure.svg,
                escape(&figure.title),
                self.inline(&figure.caption)
            ),
            Block::Table(caption, table) => format!(
                "<div class=\"scroll\" role=\"region\" aria-label=\"{}\" tabindex=\"0\">\n{}</div>\n",
                escape(if caption.is_empty() { "table" } else { caption }),
                table.to_html(caption)
            ),
            Block::Findings(findings) => {
                let part = |title: &str, list: &[Finding]| {
                    let items: String = list
                        .iter()
                        .map(|f| {
                            let (class, word) = (f.status.class(), f.status.word());
                            let text = self.inline(&f.text);
                            format!("<li><b class=\"{class}\">{word}</b> {text}</li>\n")
                        })
                        .collect();
                    format!("<div>\n<h3>{title}</h3>\n<ul>\n{items}</ul>\n</div>\n")
                };
                let shows = part("What this run shows", &findings.shows);
                let does_not = part("What it does not show", &findings.does_not);
                format!("<div class=\"findings\">\n{shows}{does_not}</div>\n")
            }
            Block::Command(command) => {
                format!(
                    "<pre class=\"scroll\" tabindex=\"0\"><code>{}</code></pre>\n",
                    escape(command)
                )
            }
            Block::Pairs(list) => pairs("pairs", list, |text| self.inline(text)),
        }
    }

    /// Escapes `text`, then marks up code and references to footnotes.
    fn inline(&self, text: &str) -> String {
        // A mean is not torn from its error at the end of a line.
        let text = escape(text).replace(" ± ", "\u{a0}±\u{a0}");
        let parts: Vec<&str> = text.split('`').collect();
        let mut out = String::new();
        for (i, part) in parts.iter().enumerate() {
            match i % 2 {
                // A lone backtick opens nothing.
                1 if i + 1 == parts.len() => out += &format!("`{}", self.references(part)),
                1 => out += &format!("<code>{part}</code>"),
                _ => out += &self.references(part),
            }
        }
        out
    }

    fn references(&self, escaped: &str) -> String {
        let mut out = escaped.to_owned();
        for (i, (name, _)) in self.footnotes.iter().enumerate() {
            let number = i + 1;
            let link = format!("<sup><a href=\"#note-{number}\">{number}</a></sup>");
            out = out.replace(&format!("[^{}]", escape(name)), &link);
        }
        out
    }
}

/// A heading and what stands below it, in the order of the calls.
#[derive(Clone, Debug, Default)]
pub struct Section {
    heading: String,
    blocks: Vec<Block>,
}

#[derive(Clone, Debug)]
enum Block {
    Text(String),
    Figure(Figure),
    Table(String, Table),
    Findings(Findings),
    Command(String),
    Pairs(Vec<(String, String)>),
}

impl Section {
    /// An empty section.
    pub fn new(heading: impl Into<String>) -> Self {
        Self { heading: heading.into(), blocks: Vec::new() }
    }

    /// A paragraph.
    pub fn text(self, text: impl Into<String>) -> Self {
        self.with(Block::Text(text.into()))
    }

    /// A figure.
    pub fn figure(self, figure: Figure) -> Self {
        self.with(Block::Figure(figure))
    }

    /// A table with its caption.
    pub fn table(self, caption: impl Into<String>, table: Table) -> Self {
        self.with(Block::Table(caption.into(), table))
    }

    /// What was and was not found.
    pub fn findings(self, findings: Findings) -> Self {
        self.with(Block::Findings(findings))
    }

    /// A command line, such as the one that repeats the run.
    pub fn command(self, command: impl Into<String>) -> Self {
        self.with(Block::Command(command.into()))
    }

    /// Names with their values: version, device, seed, hash of the data.
    pub fn pairs<K: Into<String>, V: Into<String>>(
        self,
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        self.with(Block::Pairs(pairs.into_iter().map(|(k, v)| (k.into(), v.into())).collect()))
    }

    fn with(mut self, block: Block) -> Self {
        self.blocks.push(block);
        self
    }
}

/// A plot with its caption, which starts with the plot's title.
#[derive(Clone, Debug)]
pub struct Figure {
    title: String,
    svg: String,
    caption: String,
}

impl Figure {
    /// Renders `plot` for the page.
    ///
    /// # Errors
    /// Those of [`Plot::render`].
    pub fn new(plot: &Plot, caption: impl Into<String>) -> Result<Self> {
        Ok(Self { title: plot.title.clone(), svg: plot.svg(false)?, caption: caption.into() })
    }
}

/// The two-part answer of a run: what it shows, and what it does not.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// Claims that the run checked.
    pub shows: Vec<Finding>,
    /// Claims that the run does not support, and limits of what was measured.
    pub does_not: Vec<Finding>,
}

impl Findings {
    /// How many checks failed.
    pub fn failures(&self) -> usize {
        self.shows.iter().chain(&self.does_not).filter(|f| f.status == Status::Failed).count()
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (title, list) in
            [("What this run shows", &self.shows), ("What it does not show", &self.does_not)]
        {
            writeln!(f, "{title}")?;
            for finding in list {
                let text = without_references(&finding.text);
                writeln!(f, "  {:<6}  {text}", finding.status.word())?;
            }
        }
        Ok(())
    }
}

/// `text` without its `[^name]`, for where there are no footnotes.
fn without_references(text: &str) -> String {
    let mut parts = text.split("[^");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out += part.split_once(']').map_or(part, |(_, rest)| rest);
    }
    out
}

/// A sentence and whether the run bears it out.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// Whether it held.
    pub status: Status,
    /// The sentence, with its numbers.
    pub text: String,
}

impl Finding {
    /// A sentence that was checked: `holds` decides between ok and failed.
    pub fn check(holds: bool, text: impl Into<String>) -> Self {
        let status = if holds { Status::Ok } else { Status::Failed };
        Self { status, text: text.into() }
    }

    /// A limit of the run, which nothing measured.
    pub fn limit(text: impl Into<String>) -> Self {
        Self { status: Status::Limit, text: text.into() }
    }
}

/// Whether a [`Finding`] held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Checked, and so.
    Ok,
    /// Checked, and not so.
    Failed,
    /// Not checked: a limit of the run.
    Limit,
}

impl Status {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Limit => "limit",
        }
    }

    fn class(self) -> &'static str {
        match self {
            Self::Ok => "status ok",
            Self::Failed => "status failed",
            Self::Limit => "status",
        }
    }
}

fn pairs(class: &str, list: &[(String, String)], inline: impl Fn(&str) -> String) -> String {
    let rows: String = list
        .iter()
        .map(|(k, v)| format!("<div><dt>{}</dt><dd>{}</dd></div>\n", inline(k), inline(v)))
        .collect();
    format!("<dl class=\"{class}\">\n{rows}</dl>\n")
}

fn page(title: &str, refresh: Option<u32>, body: &str) -> String {
    let refresh = refresh.map_or(String::new(), |seconds| {
        format!("<meta http-equiv=\"refresh\" content=\"{seconds}\">\n")
    });
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta http-equiv=\"Content-Security-Policy\" \
         content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         {refresh}<title>{title}</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n{body}</main>\n\
         </body>\n</html>\n",
        include_str!("report.css")
    )
}
