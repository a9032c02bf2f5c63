//! Dead letters, for an operator who has nothing but the worker's own program: listed, shown, replayed, dropped.

use std::collections::{BTreeMap, HashMap};

use clap::{Args, Subcommand};
use muster_domain::{ErasedPerson, GuildId, PageLimit};
use muster_messaging::connection::Connection;
use muster_messaging::events::dead_letter::{DeadLetter, DeadLetterError, DeadLetters};
use muster_storage::Store;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::erasures;
use crate::chain::chain;
use crate::connect;
use crate::failure::Failure;
use crate::settings::Configuration;

/// How many are listed where nothing else is asked for.
const LISTED: i64 = 20;

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Action {
    /// Lists them, oldest first, without their payloads.
    List {
        /// How many at most: 1 to 1000.
        #[arg(long, default_value_t = LISTED)]
        limit: i64,
        /// The sequence to begin from.
        #[arg(long, default_value_t = 1)]
        from: u64,
        /// As JSON: an object with items, next and limit.
        #[arg(long)]
        json: bool,
    },
    /// Shows one whole, with its payload, which may hold personal data.
    Show {
        /// Its sequence.
        sequence: u64,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Publishes their events again on their own subjects, and drops each once the broker has taken its event.
    Replay {
        #[command(flatten)]
        which: Which,
        /// As JSON: an object for each.
        #[arg(long)]
        json: bool,
    },
    /// Drops them for good.
    Drop {
        #[command(flatten)]
        which: Which,
        /// Those of erased persons whose event came before the erasure, also where it names one as the awarder. Needs the database, too.
        #[arg(long, group = "Which")]
        erased: bool,
        /// As JSON: an object for each.
        #[arg(long)]
        json: bool,
    },
}

/// The selection of dead letters.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Which {
    /// Their sequences.
    #[arg(num_args = 1..=1000)]
    sequences: Vec<u64>,
    /// The oldest so many: 1 to 1000.
    #[arg(long)]
    oldest: Option<i64>,
}

impl Which {
    async fn sequences(&self, letters: &DeadLetters) -> Result<Vec<u64>, Failure> {
        let Some(limit) = self.oldest else { return Ok(self.sequences.clone()) };
        let (oldest, _) = letters.list(1, PageLimit::clamp(limit)).await?;
        Ok(oldest.iter().map(|letter| letter.sequence).collect())
    }
}

/// Runs the command and prints the results. When one dead letter fails, the others are done all the same, and the error comes
/// last.
#[expect(clippy::print_stdout, reason = "the command's result is for standard output")]
pub(crate) async fn run(configuration: &Configuration, action: &Action) -> Result<(), Failure> {
    let config = connect::nats(&configuration.nats()?)?;
    let letters = DeadLetters::open(&Connection::open(config).await?).await?;
    match action {
        Action::List { limit, from, json } => {
            let limit = PageLimit::clamp(*limit);
            let (items, next) = letters.list(*from, limit).await?;
            if *json {
                let items: Vec<Value> = items.iter().map(described).collect();
                println!("{:#}", json!({"items": items, "next": next, "limit": limit}));
                return Ok(());
            }
            println!(
                "{:>10}  {:<20}  {:>10}  {:>7}  {:<20}  REASON",
                "SEQUENCE", "AT", "DELIVERIES", "BYTES", "SUBJECT"
            );
            for letter in &items {
                println!(
                    "{:>10}  {:<20}  {:>10}  {:>7}  {:<20}  {}",
                    letter.sequence,
                    when(letter),
                    letter.deliveries.map(|number| number.to_string()).unwrap_or_default(),
                    letter.bytes,
                    letter.subject,
                    letter.reason
                );
            }
            if let Some(next) = next {
                println!("there are more: --from {next}");
            }
            Ok(())
        }
        Action::Show { sequence, json } => {
            let (letter, payload) = letters.get(*sequence).await?;
            let payload = String::from_utf8_lossy(&payload);
            let mut whole = described(&letter);
            if *json {
                if let Value::Object(fields) = &mut whole {
                    fields.insert("payload".to_owned(), Value::String(payload.into_owned()));
                }
                println!("{whole:#}");
                return Ok(());
            }
            if let Value::Object(fields) = &whole {
                for (field, value) in fields {
                    println!(
                        "{field:<15} {}",
                        value.as_str().map_or_else(|| value.to_string(), str::to_owned)
                    );
                }
            }
            println!("\n{}", printable(&payload));
            Ok(())
        }
        Action::Replay { which, json } => {
            each(which.sequences(&letters).await?, *json, async |sequence| {
                letters.replay(sequence).await.map(|event| ("replayed", Some(event)))
            })
            .await
        }
        Action::Drop { which, erased, json } => {
            let sequences = match erased {
                true => of_erased(configuration, &letters).await?,
                false => which.sequences(&letters).await?,
            };
            each(sequences, *json, async |sequence| letters.drop(sequence).await.map(|()| ("dropped", None)))
                .await
        }
    }
}

/// The fields that say whose event it is. Every other field may be wrong in a dead letter.
#[derive(Deserialize)]
struct Persons {
    guild_id: Option<Value>,
    user_id: Option<Value>,
    data: Option<Value>,
}

/// The dead letters that name an erased person and whose events came before the erasure. The log counts those that cannot be
/// read.
async fn of_erased(configuration: &Configuration, letters: &DeadLetters) -> Result<Vec<u64>, Failure> {
    let store = Store::open(connect::database(&configuration.database()?)?.0).await?;
    let mut erasures: BTreeMap<GuildId, HashMap<ErasedPerson, OffsetDateTime>> = BTreeMap::new();
    let (mut found, mut unread, mut from) = (Vec::new(), 0_u64, Some(1));
    while let Some(start) = from {
        let (page, next) = letters.list(start, PageLimit::MAX).await?;
        from = next;
        for letter in page {
            let payload = match letters.get(letter.sequence).await {
                Ok((_, payload)) => payload,
                // It was dropped since.
                Err(DeadLetterError::NotFound(_)) => continue,
                Err(error) => return Err(error.into()),
            };
            let Ok(persons) = serde_json::from_slice::<Persons>(&payload) else {
                unread = unread.saturating_add(1);
                continue;
            };
            let awarder = persons.data.as_ref().and_then(|data| data.get("by"));
            let named = [persons.user_id.as_ref(), awarder].into_iter().flatten().filter_map(id);
            let named: Vec<String> = named.collect();
            if named.is_empty() {
                continue;
            }
            let Some(Ok(guild)) = persons.guild_id.as_ref().and_then(id).map(GuildId::parse) else {
                unread = unread.saturating_add(1);
                continue;
            };
            if !erasures.contains_key(&guild) {
                erasures.insert(guild.clone(), erasures::of_guild(&store, &guild).await?);
            }
            let known = erasures.get(&guild);
            let came = letter.event_at.unwrap_or(letter.at);
            let is_erased = |id: &String| {
                let person = store.erasure_key().person(&guild, id);
                known.and_then(|known| known.get(&person)).is_some_and(|erased_at| came <= *erased_at)
            };
            if named.iter().any(is_erased) {
                found.push(letter.sequence);
            }
        }
    }
    if unread > 0 {
        tracing::warn!(
            dead_letters = unread,
            "some dead letters are no JSON, are truncated, or name a person and no chat server: look at each by `deadletters show`"
        );
    }
    Ok(found)
}

/// An id as it was sent. That it was sent as a number is what made the event a dead letter.
fn id(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Does one thing to each selected dead letter.
#[expect(clippy::print_stdout, reason = "the command's result is for standard output")]
async fn each(
    sequences: Vec<u64>,
    json: bool,
    act: impl AsyncFn(u64) -> Result<(&'static str, Option<u64>), DeadLetterError>,
) -> Result<(), Failure> {
    let mut failed = 0_usize;
    for sequence in &sequences {
        let (outcome, event, error) = match act(*sequence).await {
            Ok((outcome, event)) => (outcome, event, None),
            Err(error) => {
                failed = failed.saturating_add(1);
                ("failed", None, Some(chain(&error)))
            }
        };
        if json {
            println!(
                "{}",
                json!({"sequence": sequence, "outcome": outcome, "event_sequence": event, "error": error})
            );
        } else {
            let event = event.map(|event| format!(" as event {event}")).unwrap_or_default();
            let error = error.map(|error| format!(": {error}")).unwrap_or_default();
            println!("{sequence} {outcome}{event}{error}");
        }
    }
    if failed > 0 { Err(Failure::DeadLettersLeft { failed, of: sequences.len() }) } else { Ok(()) }
}

/// The text without control characters, which could move a terminal's cursor or worse.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && !matches!(c, '\n' | '\t') {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

fn when(letter: &DeadLetter) -> String {
    letter.at.replace_nanosecond(0).unwrap_or(letter.at).format(&Rfc3339).unwrap_or_default()
}

fn described(letter: &DeadLetter) -> Value {
    json!({
        "sequence": letter.sequence,
        "at": letter.at.format(&Rfc3339).unwrap_or_default(),
        "reason": letter.reason,
        "subject": letter.subject,
        "event_sequence": letter.event_sequence,
        "event_at": letter.event_at.and_then(|at| at.format(&Rfc3339).ok()),
        "deliveries": letter.deliveries,
        "bytes": letter.bytes,
        "cut_from": letter.truncated_from,
    })
}
