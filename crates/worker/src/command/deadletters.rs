//! Dead letters, for an operator who has nothing but the worker's own program: listed, shown, replayed, dropped.

use clap::{Args, Subcommand};
use muster_domain::PageLimit;
use muster_messaging::connection::Connection;
use muster_messaging::events::dead_letter::{DeadLetter, DeadLetterError, DeadLetters};
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;

use crate::chain::chain;
use crate::connect;
use crate::failure::Failure;
use crate::settings::Nats;

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
    Replay(Which),
    /// Drops them for good.
    Drop(Which),
}

/// Which dead letters are meant.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Which {
    /// Their sequences.
    #[arg(num_args = 1..=1000)]
    sequences: Vec<u64>,
    /// The oldest so many: 1 to 1000.
    #[arg(long)]
    oldest: Option<i64>,
    /// As JSON: an object for each.
    #[arg(long)]
    json: bool,
}

/// Does it, and prints what came of it. One that fails does not keep the others from being done; the error then comes last.
#[expect(clippy::print_stdout, reason = "the command's result is for standard output")]
pub(crate) async fn run(nats: &Nats, action: &Action) -> Result<(), Failure> {
    let letters = DeadLetters::open(&Connection::open(connect::nats(nats)?).await?).await?;
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
        Action::Replay(which) => {
            each(&letters, which, async |sequence| {
                letters.replay(sequence).await.map(|event| ("replayed", Some(event)))
            })
            .await
        }
        Action::Drop(which) => {
            each(&letters, which, async |sequence| letters.drop(sequence).await.map(|()| ("dropped", None)))
                .await
        }
    }
}

/// Does one thing to each that is meant.
#[expect(clippy::print_stdout, reason = "the command's result is for standard output")]
async fn each(
    letters: &DeadLetters,
    which: &Which,
    act: impl AsyncFn(u64) -> Result<(&'static str, Option<u64>), DeadLetterError>,
) -> Result<(), Failure> {
    let sequences = match which.oldest {
        Some(limit) => {
            let (oldest, _) = letters.list(1, PageLimit::clamp(limit)).await?;
            oldest.iter().map(|letter| letter.sequence).collect()
        }
        None => which.sequences.clone(),
    };
    let mut failed = 0_usize;
    for sequence in &sequences {
        let (outcome, event, error) = match act(*sequence).await {
            Ok((outcome, event)) => (outcome, event, None),
            Err(error) => {
                failed = failed.saturating_add(1);
                ("failed", None, Some(chain(&error)))
            }
        };
        if which.json {
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

/// The text without what would move a terminal's cursor or worse.
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
        "cut_from": letter.cut_from,
    })
}
