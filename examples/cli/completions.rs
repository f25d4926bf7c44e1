//! `longburn completions`

use crate::{Cli, output};
use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::{Shell, generate};
use longburn::Result;

/// Write a shell's completions of this command
///
/// The script goes to standard output; where a shell looks for it is said in the shell's manual.
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn completions bash > longburn.bash
  longburn completions fish > longburn.fish")]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: ShellName,
}

#[derive(Clone, Copy, ValueEnum)]
enum ShellName {
    Bash,
    Zsh,
    Fish,
    Powershell,
}

impl CompletionsArgs {
    pub fn run(&self) -> Result<()> {
        let shell = match self.shell {
            ShellName::Bash => Shell::Bash,
            ShellName::Zsh => Shell::Zsh,
            ShellName::Fish => Shell::Fish,
            ShellName::Powershell => Shell::PowerShell,
        };
        let mut script = Vec::new();
        generate(shell, &mut Cli::command(), "longburn", &mut script);
        output::print(&String::from_utf8_lossy(&script))
    }
}
