//! The command line, read so that what does not fit is named with its option.

use crate::Cli;
use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory, Error, FromArgMatches};
use std::ffi::OsString;

/// # Errors
/// What does not fit, as clap says it, and a call for help or the version.
pub fn read(words: impl IntoIterator<Item = OsString>) -> Result<Cli, Error> {
    let mut command = signed(Cli::command());
    let matches = command.try_get_matches_from_mut(words).map_err(explained)?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// A number with a minus sign is the value of the option before it, not an option of its own, so that
/// the message names that option.
fn signed(command: Command) -> Command {
    let command = command.mut_args(|arg| match arg.get_action().takes_values() {
        true => arg.allow_negative_numbers(true),
        false => arg,
    });
    command.mut_subcommands(signed)
}

/// Says what to do about a negative number.
fn explained(mut error: Error) -> Error {
    let is_negative =
        |value: &str| value.strip_prefix('-').is_some_and(|x| x.parse::<f64>().is_ok());
    match error.get(ContextKind::InvalidValue) {
        Some(ContextValue::String(value))
            if error.kind() == ErrorKind::ValueValidation && is_negative(value) =>
        {
            let remedy = StyledStr::from("give a value without a minus sign");
            error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![remedy]));
            error
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &str) -> String {
        let words = line.split(' ').map(OsString::from);
        read(words).err().expect("the line does not fit").to_string()
    }

    #[test]
    fn negative_numbers_are_named_with_their_option() {
        for (line, option) in [
            ("longburn bench attention --len -5", "--len"),
            ("longburn bench attention --len 4,-5", "--len"),
            ("longburn bench scan --states -5", "--states"),
            ("longburn bench train-step --heads=-5", "--heads"),
            ("longburn --threads -5 doctor", "--threads"),
        ] {
            let text = refused(line);
            assert!(text.contains("invalid value '-5'"), "{text}");
            assert!(text.contains(option) && text.contains("without a minus sign"), "{text}");
        }
        // What may be negative stays a number, what is no number an option.
        assert!(!refused("longburn bench attention --len 5 -x").contains("minus"));
        assert!(!refused("longburn bench attention --len five").contains("minus"));
    }

    #[test]
    fn steps_take_the_dtypes_of_training() {
        for verb in ["train-step", "block"] {
            let text = refused(&format!("longburn bench {verb} --dtype f16"));
            assert!(text.contains("invalid value 'f16'") && text.contains("--dtype"), "{text}");
            assert!(text.contains("f32, bf16"), "{text}");
            for dtype in ["f32", "bf16"] {
                let line = format!("longburn bench {verb} --dtype {dtype}");
                assert!(read(line.split(' ').map(OsString::from)).is_ok(), "{line}");
            }
        }
    }
}
