//! The keys of the configuration as they are set: by the built-in defaults, then the file, then `MUSTER__…` variables. Each
//! is one that there is, has its form, and is spelled in one way.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use config::{Config, File, FileFormat};
use muster_messaging::tls::file::{self, FileError};
use toml::{Table, Value};

use super::error::{PREFIX, SettingsError, variable};
use crate::chain::chain;

/// The defaults, in the form of the file.
pub(crate) const DEFAULTS: &str = include_str!("../defaults.toml");
/// The variable that names the file.
const CONFIG_FILE: &str = "MUSTER_CONFIG_FILE";
/// The most bytes of the file: the defaults with all their comments are a few kilobytes.
const MAX_FILE: usize = 1024 * 1024;

/// Keys without a default. Each is a text.
const WITHOUT_DEFAULT: [&str; 19] = [
    "nats.ca_file",
    "nats.certificate_file",
    "nats.key_file",
    "nats.user",
    "nats.password",
    "nats.password_file",
    "nats.token",
    "nats.token_file",
    "nats.nkey_file",
    "nats.credentials_file",
    "database.url",
    "database.url_file",
    "database.ca_file",
    "database.certificate_file",
    "database.key_file",
    "database.read_url_file",
    "log.filter",
    "traces.endpoint",
    "traces.ca_file",
];

/// The form of a key's values, which is the form of its default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Number,
    Switch,
    List,
}

impl Form {
    const fn of(value: &Value) -> Option<Self> {
        match value {
            Value::String(_) => Some(Self::Text),
            Value::Integer(_) => Some(Self::Number),
            Value::Boolean(_) => Some(Self::Switch),
            Value::Array(_) => Some(Self::List),
            Value::Float(_) | Value::Datetime(_) | Value::Table(_) => None,
        }
    }

    /// One word for it.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Number => "number",
            Self::Switch => "switch",
            Self::List => "list",
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Text => "a text in quotes",
            Self::Number => "a whole number",
            Self::Switch => "true or false",
            Self::List => "a list of texts, each in quotes",
        }
    }

    /// Reads a variable's text. An error does not repeat it: it may be a secret that was given to the wrong variable.
    fn parse(self, text: &str) -> Option<Value> {
        Some(match self {
            Self::Text => Value::String(text.to_owned()),
            Self::Number => Value::Integer(text.trim().parse().ok()?),
            Self::Switch => Value::Boolean(match text.trim().to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" | "1" => true,
                "false" | "no" | "off" | "0" => false,
                _ => return None,
            }),
            Self::List => {
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                Value::Array(parts.map(|part| Value::String(part.to_owned())).collect())
            }
        })
    }
}

/// The built-in defaults.
fn defaults() -> Result<Table, SettingsError> {
    toml::from_str(DEFAULTS)
        .map_err(|error| SettingsError::new(format!("the defaults are not TOML: {}", error.message())))
}

/// Every key, as `muster-worker describe` prints it.
pub(crate) fn described() -> Result<Vec<serde_json::Value>, SettingsError> {
    let defaults = defaults()?;
    let with =
        flat(&defaults).into_iter().filter_map(|(key, value)| Some((key, Form::of(value)?, Some(value))));
    let without = WITHOUT_DEFAULT.into_iter().map(|key| (key.to_owned(), Form::Text, None));
    let mut keys: Vec<_> = with.chain(without).collect();
    // By section, those of no section first.
    keys.sort_by_cached_key(|(key, ..)| (key.contains('.'), key.clone()));
    let described = keys.into_iter().map(|(key, form, default)| {
        serde_json::json!({"key": key, "variable": variable(&key), "form": form.as_str(), "default": default})
    });
    Ok(described.collect())
}

/// The keys that there are, each with its form.
pub(crate) struct Keys(BTreeMap<String, Form>);

impl Keys {
    /// Reads all of them. `file` is what the command line names; without it, the variable `MUSTER_CONFIG_FILE` may.
    pub(crate) fn read(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Config, SettingsError> {
        let defaults = defaults()?;
        let without = WITHOUT_DEFAULT.into_iter().map(|key| (key.to_owned(), Form::Text));
        let with = flat(&defaults).into_iter().filter_map(|(key, value)| Some((key, Form::of(value)?)));
        let keys = Self(without.chain(with).collect());
        let mut layers = Config::builder().add_source(File::from_str(DEFAULTS, FileFormat::Toml));
        let (named, set) = keys.variables(variables)?;
        if let Some(file) = file.map(Path::to_owned).or(named) {
            layers = layers.add_source(File::from_str(&keys.file(&file)?, FileFormat::Toml));
        }
        for (key, value) in set {
            layers = layers
                .set_override(&key, plain(value))
                .map_err(|_| SettingsError::key(&key, "cannot be set"))?;
        }
        layers.build().map_err(|error| SettingsError::new(format!("the configuration is wrong: {error}")))
    }

    /// The text of a file after a check that its keys exist and that their values have the right form.
    fn file(&self, path: &Path) -> Result<String, SettingsError> {
        let wrong = |problem: String| SettingsError::new(format!("{}: {problem}", path.display()));
        let text = match file::read(path, MAX_FILE) {
            Ok(bytes) => String::from_utf8(bytes)
                .map_err(|_| wrong("the configuration is not UTF-8 text: save it so".to_owned()))?,
            // A pipe would be waited for, and signals with it.
            Err(FileError::Irregular) => {
                return Err(wrong("the configuration is not a regular file: name one".to_owned()));
            }
            Err(error) => return Err(wrong(format!("the configuration {}", chain(&error)))),
        };
        // What the line holds is not repeated: it may be a secret.
        let table: Table = toml::from_str(&text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start));
            let line = before.map_or(1, |before| before.matches('\n').count().saturating_add(1));
            wrong(format!("line {line} is not TOML: {}", error.message()))
        })?;
        let is_section = |name: &str| {
            self.0.keys().any(|key| key.split_once('.').is_some_and(|(section, _)| section == name))
        };
        if let Some((name, _)) = table.iter().find(|(name, value)| value.is_table() && !is_section(name)) {
            return Err(wrong(self.unknown(name)));
        }
        for (key, value) in flat(&table) {
            let Some(form) = self.0.get(&key).copied() else {
                return Err(wrong(self.unknown(&key)));
            };
            let right = match value {
                Value::Array(parts) => form == Form::List && parts.iter().all(Value::is_str),
                other => Form::of(other) == Some(form),
            };
            if !right {
                let problem = format!("is {}, and must be {}", found(value), form.name());
                return Err(SettingsError::key(&key, problem));
            }
            if value.as_str().is_some_and(|text| text.trim().is_empty()) {
                return Err(SettingsError::key(&key, "is empty: set a value, or remove the key"));
            }
        }
        Ok(text)
    }

    /// The file that the variables name, and the keys that they set. An empty variable counts as unset.
    fn variables(
        &self,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<(Option<PathBuf>, BTreeMap<String, Value>), SettingsError> {
        let names: BTreeMap<String, (&str, Form)> =
            self.0.iter().map(|(key, form)| (variable(key), (key.as_str(), *form))).collect();
        let (mut file, mut set) = (None, BTreeMap::new());
        for (name, value) in variables {
            let name = name.to_string_lossy().into_owned();
            if value.to_str().is_some_and(|text| text.trim().is_empty())
                && (names.contains_key(&name) || name == CONFIG_FILE)
            {
                continue;
            }
            if name == CONFIG_FILE {
                file = Some(PathBuf::from(value));
            } else if let Some((key, form)) = names.get(&name) {
                let text = value.into_string().map_err(|_| SettingsError::key(key, "is not UTF-8"))?;
                let value = form
                    .parse(&text)
                    .ok_or_else(|| SettingsError::key(key, format!("is not {}", form.name())))?;
                if set.insert((*key).to_owned(), value).is_some() {
                    return Err(SettingsError::key(key, "is set twice in the environment"));
                }
            } else if let Some(meant) = names
                .keys()
                .map(String::as_str)
                .chain([CONFIG_FILE])
                .find(|known| squeezed(known) == squeezed(&name))
            {
                let problem = format!("{name}: only one spelling counts: write {meant}, and unset {name}");
                return Err(SettingsError::new(problem));
            } else if name.get(..PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(PREFIX)) {
                let key = name.get(PREFIX.len()..).unwrap_or_default().to_lowercase().replace("__", ".");
                return Err(SettingsError::new(format!("{name}: {}", self.unknown(&key))));
            }
        }
        Ok((file, set))
    }

    /// Says that there is no such key, and which there are beside it.
    fn unknown(&self, key: &str) -> String {
        let section = key.split_once('.').map(|(section, _)| format!("{section}."));
        let beside = |known: &&String| section.as_ref().is_some_and(|section| known.starts_with(section));
        let beside: Vec<&str> = self.0.keys().filter(beside).map(String::as_str).collect();
        if beside.is_empty() {
            return format!("unknown key {key}: `muster-worker defaults` lists all keys");
        }
        format!("unknown key {key}: there are {}", beside.join(", "))
    }
}

/// A variable's value, as the layers take it.
fn plain(value: Value) -> config::Value {
    match value {
        Value::Integer(number) => number.into(),
        Value::Boolean(switch) => switch.into(),
        Value::Array(parts) => {
            let texts = parts.into_iter().filter_map(|part| part.as_str().map(str::to_owned));
            texts.collect::<Vec<String>>().into()
        }
        other => other.as_str().unwrap_or_default().into(),
    }
}

/// Every value with its key; those of a section under `section.key`.
fn flat(table: &Table) -> Vec<(String, &Value)> {
    let mut all = Vec::new();
    for (name, value) in table {
        match value {
            Value::Table(section) => {
                all.extend(section.iter().map(|(key, value)| (format!("{name}.{key}"), value)));
            }
            value => all.push((name.clone(), value)),
        }
    }
    all
}

const fn found(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number with a fraction",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a section",
    }
}

/// A variable's name for the search for misspellings: in one case, and with one underscore where there are several.
fn squeezed(name: &str) -> String {
    let parts: Vec<&str> = name.split('_').filter(|part| !part.is_empty()).collect();
    parts.join("_").to_ascii_uppercase()
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Table, String> {
        let variables = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let read = Keys::read(None, variables).map_err(|error| error.to_string())?;
        read.try_deserialize().map_err(|error| error.to_string())
    }

    fn read_file(text: &str) -> Result<Table, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("muster.toml");
        std::fs::write(&path, text).unwrap();
        let read = Keys::read(Some(&path), []).map_err(|error| error.to_string())?;
        read.try_deserialize().map_err(|error| error.to_string())
    }

    #[test]
    fn every_key_without_a_default_stands_in_a_comment_of_the_defaults() {
        for key in WITHOUT_DEFAULT {
            let (_, name) = key.split_once('.').unwrap();
            let told = DEFAULTS.lines().any(|line| line.starts_with('#') && line.contains(name));
            assert!(told || ["password", "token", "url"].contains(&name), "{key}");
        }
    }

    #[test]
    fn an_empty_variable_is_an_unset_one_for_every_key() {
        let plain = read(&[]).unwrap();
        let defaults: Table = toml::from_str(DEFAULTS).unwrap();
        let keys = flat(&defaults).into_iter().map(|(key, _)| key);
        for key in keys.chain(WITHOUT_DEFAULT.map(str::to_owned)) {
            for empty in ["", " ", "\n"] {
                assert_eq!(read(&[(&variable(&key), empty)]).unwrap(), plain, "{key}");
            }
        }
        assert_eq!(read(&[(CONFIG_FILE, "")]).unwrap(), plain);
    }

    #[test]
    fn one_spelling_of_a_variable_counts_and_every_other_is_refused() {
        let right = ("MUSTER__ENVIRONMENT", "production");
        for name in [
            "muster__environment",
            "Muster__Environment",
            "MUSTER__environment",
            "MUSTER_ENVIRONMENT",
            "muster_environment",
            "MUSTER___ENVIRONMENT",
            "MUSTER__ENVIRONMENT_",
            "_MUSTER__ENVIRONMENT",
        ] {
            let said = read(&[right, (name, "development")]).unwrap_err();
            assert!(said.contains(name) && said.contains("write MUSTER__ENVIRONMENT,"), "{said}");
        }
        let slips = [
            ("MUSTER__NATS_URLS", "MUSTER__NATS__URLS"),
            ("MUSTER_NATS_CA_FILE", "MUSTER__NATS__CA_FILE"),
            ("MUSTER__NATS__CA__FILE", "MUSTER__NATS__CA_FILE"),
            ("muster_config_file", CONFIG_FILE),
            ("MUSTER__CONFIG_FILE", CONFIG_FILE),
        ];
        for (name, meant) in slips {
            let said = read(&[(name, "x")]).unwrap_err();
            assert!(said.starts_with(name) && said.contains(&format!("write {meant},")), "{said}");
        }
        let unknown = read(&[("MUSTER__NATS__URSL", "x")]).unwrap_err();
        assert!(unknown.contains("unknown key nats.ursl") && unknown.contains("nats.urls"), "{unknown}");
        assert!(read(&[("MUSTER__", "")]).is_err());
        assert!(read(&[("MUSTER__SECRET", "hunter2")]).is_err_and(|said| !said.contains("hunter2")));
        // What an orchestrator sets beside a service of that name.
        let foreign = [
            ("MUSTER_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
            ("MUSTER_SERVICE_HOST", "10.0.0.1"),
            ("MUST", ""),
        ];
        assert!(read(&foreign).is_ok());
        let twice = [right, right].map(|(name, value)| (OsString::from(name), OsString::from(value)));
        assert!(Keys::read(None, twice).is_err());
    }

    #[test]
    fn a_value_of_another_form_is_refused_by_its_key_and_not_repeated() {
        let variables = [
            ("MUSTER__DATABASE__POOL_SIZE", "hunter2", "database.pool_size: is not a whole number"),
            ("MUSTER__DATABASE__POOL_SIZE", "true", "MUSTER__DATABASE__POOL_SIZE"),
            ("MUSTER__EVENTS__BATCH", "9.7", "events.batch"),
            ("MUSTER__EVENTS__BATCH", "99999999999999999999", "events.batch"),
            ("MUSTER__REQUIRE_TLS", "hunter2", "require_tls: is not true or false"),
        ];
        for (name, value, named) in variables {
            let said = read(&[(name, value)]).unwrap_err();
            assert!(said.contains(named) && !said.contains("hunter2"), "{said}");
        }
        let broken = [(OsString::from("MUSTER__NATS__USER"), OsString::from_vec(vec![b'a', 0xff]))];
        let said = Keys::read(None, broken).unwrap_err().to_string();
        assert!(said.contains("nats.user: is not UTF-8"), "{said}");
        let files = [
            ("[events]\nbatch = \"5\"", "events.batch: is a text, and must be a whole number"),
            ("[events]\nbatch = 9.7", "events.batch: is a number with a fraction"),
            ("[nats]\nurls = \"tls://a\"", "nats.urls: is a text, and must be a list"),
            ("[nats]\nurls = [1]", "nats.urls: is a list"),
            (
                "[nats]\nminimum_tls = 1.3",
                "nats.minimum_tls: is a number with a fraction, and must be a text in quotes",
            ),
            ("[nats]\nca_file = \"\"", "nats.ca_file: is empty"),
            ("environment = \" \"", "environment: is empty"),
            ("[nats]\nursl = []", "unknown key nats.ursl"),
            ("Environment = \"test\"", "unknown key Environment"),
            ("[nats.more]\na = 1", "unknown key nats.more"),
            ("nats = 5", "unknown key nats"),
            ("[nast]", "unknown key nast"),
            ("[environment]", "unknown key environment"),
            ("[[nats]]\nurls = []", "unknown key nats"),
            ("[nats]\ntls_first = true\ntls_first = false", "line 3 is not TOML"),
            ("[nats]\npassword = hunter2\n", "line 2 is not TOML"),
        ];
        for (text, named) in files {
            let said = read_file(text).unwrap_err();
            assert!(said.contains(named) && !said.contains("hunter2"), "{said}");
        }
    }
}
