//! `longburn reference`: the page that describes every verb, out of the same tree as `--help`.

use crate::{Cli, output};
use clap::builder::StyledStr;
use clap::{Arg, Args, Command, CommandFactory};
use longburn::Result;

/// Write the reference page of all commands, Markdown
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn reference > docs/reference.md")]
pub struct ReferenceArgs {}

impl ReferenceArgs {
    pub fn run(&self) -> Result<()> {
        let mut root = Cli::command();
        root.build();
        let mut page = String::from(
            "# The command\n\n<!-- Generated from the command's own help: \
             LONGBURN_BLESS=1 cargo test --test suite book -->\n\n",
        );
        page += &format!("{}.\n\n", text(root.get_about()));
        page += &after_help(&root);
        page += "## Options of all commands\n\n";
        page += &options(&root, |arg| arg.is_global_set());
        for verb in root.get_subcommands() {
            section(verb, "longburn", &mut page);
        }
        output::print(&format!("{}\n", page.replace("\n\n\n", "\n\n").trim_end()))
    }
}

/// One command and those below it.
fn section(command: &Command, parent: &str, page: &mut String) {
    if command.is_hide_set() || command.get_name() == "help" {
        return;
    }
    let name = format!("{parent} {}", command.get_name());
    let about = command.get_long_about().or(command.get_about());
    let paragraphs = text(about);
    let (first, rest) = paragraphs.split_once("\n\n").unwrap_or((&paragraphs, ""));
    *page += &format!("\n## `{name}`\n\n{first}.\n\n");
    if !rest.is_empty() {
        *page += &format!("{rest}\n\n");
    }
    if command.has_subcommands() {
        for below in command.get_subcommands() {
            section(below, &name, page);
        }
        return;
    }
    let usage = text(Some(&command.clone().render_usage()));
    let usage = usage.split_whitespace().skip(1).collect::<Vec<_>>().join(" ");
    *page += &format!("```text\n{usage}\n```\n\n");
    *page += &options(command, |arg| !arg.is_global_set());
    *page += &after_help(command);
}

/// A table of the arguments that `wanted` holds for; nothing where there are none.
fn options(command: &Command, wanted: impl Fn(&Arg) -> bool) -> String {
    let built_in = |arg: &Arg| ["help", "version"].contains(&arg.get_id().as_str());
    let shown = |arg: &&Arg| wanted(arg) && !built_in(arg) && !arg.is_hide_set();
    let rows: Vec<String> = command.get_arguments().filter(shown).map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    format!("| Argument | What it does |\n|---|---|\n{}\n", rows.concat())
}

fn row(arg: &Arg) -> String {
    let value = match arg.get_action().takes_values() {
        true => {
            let names = arg.get_value_names().unwrap_or_default();
            names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(" ")
        }
        false => String::new(),
    };
    let name = match arg.get_long() {
        Some(long) => format!("--{long} {value}"),
        None => value,
    };
    let mut words = text(arg.get_help());
    let choices: Vec<String> = match arg.get_action().takes_values() {
        true => arg.get_possible_values().iter().map(|v| format!("`{}`", v.get_name())).collect(),
        false => Vec::new(),
    };
    if !choices.is_empty() {
        words += &format!("; one of {}", choices.join(", "));
    }
    if let [default] = arg.get_default_values()
        && arg.get_action().takes_values()
    {
        words += &format!("; {} where not given", default.to_string_lossy());
    }
    if arg.is_required_set() {
        words += "; required";
    }
    format!("| `{}` | {} |\n", name.trim(), words.replace('|', "\\|"))
}

/// The examples as a block, what else there is as text.
fn after_help(command: &Command) -> String {
    let help = text(command.get_after_help());
    let mut page = String::new();
    for part in help.split("\n\n") {
        match part.strip_prefix("Examples:\n") {
            Some(examples) => {
                let lines: Vec<&str> = examples.lines().map(str::trim).collect();
                page += &format!("```text\n{}\n```\n\n", lines.join("\n"));
            }
            None if part.is_empty() => {}
            None => page += &format!("{part}\n\n"),
        }
    }
    page
}

/// Without styles.
fn text(styled: Option<&StyledStr>) -> String {
    styled.map(ToString::to_string).unwrap_or_default().trim().to_string()
}
