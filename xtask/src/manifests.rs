mod configuration;
pub(crate) mod render;
mod rules;
mod schema;

use std::process::ExitCode;

use anyhow::Result;
use comfy_table::{Table, presets};
use xtask::services::WrongDigest;

/// What `cargo xtask manifests` takes.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Show what holds too, not only what does not.
    #[arg(long)]
    all: bool,
}

/// What was found of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Verdict {
    rule: &'static str,
    object: String,
    /// `None` when the rule holds.
    problem: Option<String>,
}

/// How the checks ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    Failed,
    NotRun,
}

/// Every variable that the worker knows.
pub(crate) fn variables(root: &std::path::Path) -> Result<std::collections::BTreeSet<String>> {
    Ok(configuration::Facts::read(root)?.variables)
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    Ok(match check(arguments.all)? {
        Outcome::Passed => ExitCode::SUCCESS,
        Outcome::Failed => ExitCode::FAILURE,
        Outcome::NotRun => ExitCode::from(2),
    })
}

/// Renders every kustomization and checks it against the schema and the rules. Prints a table.
pub(crate) fn check(all: bool) -> Result<Outcome> {
    let root = crate::cargo::root();
    let facts = configuration::Facts::read(&root)?;
    let Some(kubectl) = render::kubectl() else {
        println!("NOT RUN: kubectl is not on this machine, which renders the manifests (kubectl kustomize)");
        return Ok(Outcome::NotRun);
    };
    let schema = match schema::Schema::load() {
        // Not to be had is one thing; a file that is not the pinned one another.
        Err(error) if error.is::<WrongDigest>() => return Err(error),
        loaded => loaded,
    };
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(["overlay", "rule", "object", "verdict"]);
    let (mut held, mut broken) = (0_usize, 0_usize);
    for overlay in render::OVERLAYS {
        let objects = render::objects(&kubectl, &root.join("infra/k8s").join(overlay))?;
        let mut verdicts = rules::check(overlay, &objects, &facts);
        if let Ok(schema) = &schema {
            verdicts.extend(schema.check(&objects)?);
        }
        for Verdict { rule, object, problem } in verdicts {
            if problem.is_some() {
                broken += 1
            } else {
                held += 1
            }
            if all || problem.is_some() {
                table.add_row([overlay, rule, &object, problem.as_deref().unwrap_or("holds")]);
            }
        }
    }
    if all || broken > 0 {
        println!("{table}");
    }
    println!("{held} hold, {broken} do not");
    if broken > 0 {
        return Ok(Outcome::Failed);
    }
    if let Err(error) = schema {
        println!("NOT RUN: the Kubernetes schema could not be had: {error:#}");
        return Ok(Outcome::NotRun);
    }
    Ok(Outcome::Passed)
}
