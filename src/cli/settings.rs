//! `qonnx.toml` on the command line: what its table for a command says stands in front of the arguments that were typed,
//! so that those win; lists add up.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, ArgMatches, Command};
use toml::Value;

use super::console::Format;
use super::help::nearest;
use crate::calibrate::config::Config;
use crate::error::{Error, Fault};

/// The arguments with those of the settings file in front, if `--config` names one; an error comes with the form in which
/// it is to be told.
pub fn with_file(command: &Command, typed: Vec<OsString>) -> Result<Vec<OsString>, (Format, Error)> {
    let Ok(found) = command.clone().ignore_errors(true).try_get_matches_from(&typed) else {
        return Ok(typed);
    };
    let format = found.try_get_one("message_format").ok().flatten().copied().unwrap_or_default();
    joined(command, &found, typed).map_err(|error| (format, error))
}

fn joined(command: &Command, found: &ArgMatches, typed: Vec<OsString>) -> Result<Vec<OsString>, Error> {
    let Some((name, matches)) = found.subcommand() else { return Ok(typed) };
    let Some(sub) =
        command.find_subcommand(name).filter(|s| s.get_arguments().any(|a| a.get_id() == "config"))
    else {
        return Ok(typed);
    };
    let Some(path) = matches.try_get_one::<PathBuf>("config").ok().flatten() else { return Ok(typed) };
    let config = Config::read(path)?;
    let Some(table) = config.command(name) else { return Ok(typed) };
    let Some(place) = typed.iter().position(|word| word == name) else { return Ok(typed) };
    let mut all = typed[..=place].to_vec();
    for (key, value) in table {
        let words = words(sub, name, key, value).map_err(|f| f.at(path.display()))?;
        all.extend(words.into_iter().map(OsString::from));
    }
    all.extend_from_slice(&typed[place + 1..]);
    Ok(all)
}

/// One entry as arguments.
fn words(command: &Command, table: &str, key: &str, value: &Value) -> Result<Vec<String>, Fault> {
    let long =
        |a: &clap::Arg| a.get_long().map(String::from).filter(|l| !["config", "help"].contains(&l.as_str()));
    let names: Vec<String> = command.get_arguments().filter_map(long).collect();
    let Some(option) = command.get_arguments().find(|a| long(a).is_some_and(|l| l == key)) else {
        let fault = Fault::new(format!("[{table}] has no key `{key}`"));
        return Err(match nearest(key, names.iter().map(String::as_str)) {
            Some(near) => fault.hint(format!("did you mean `{near}`?")),
            None => fault.hint(format!("its keys are the options of `qonnx {table}`: {}", names.join(", "))),
        });
    };
    let text = |value: &Value| match value {
        Value::String(s) => Ok(s.clone()),
        Value::Integer(i) => Ok(i.to_string()),
        Value::Float(f) => Ok(f.to_string()),
        Value::Boolean(b) => Ok(b.to_string()),
        other => Err(Fault::new(format!("[{table}] {key}: a {} is no value here", other.type_str()))),
    };
    match (option.get_action(), value) {
        (ArgAction::SetTrue, Value::Boolean(set)) => {
            Ok(set.then(|| format!("--{key}")).into_iter().collect())
        }
        (ArgAction::SetTrue, _) => Err(Fault::new(format!("[{table}] {key}: true or false is wanted"))),
        (_, Value::Array(values)) => {
            let values: Vec<String> = values.iter().map(text).collect::<Result<_, _>>()?;
            match option.get_value_delimiter() {
                Some(',') => Ok(vec![format!("--{key}={}", values.join(","))]),
                _ => Ok(values.iter().map(|v| format!("--{key}={v}")).collect()),
            }
        }
        (_, value) => Ok(vec![format!("--{key}={}", text(value)?)]),
    }
}
