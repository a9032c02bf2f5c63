//! Evaluates policies of the form ValidatingAdmissionPolicy, as the API server does.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use cel::{Context, Env, Program, Value as Cel, extensions};
use serde_json::{Map, Value};

use crate::description::{list, text};

/// The policies among some objects, and what their expressions know as `params`.
pub(super) struct Policies {
    env: Arc<Env>,
    policies: Vec<Policy>,
    params: Map<String, Value>,
}

struct Policy {
    name: String,
    /// The kinds that it is for, in lower case and the plural.
    resources: Vec<Value>,
    /// Expressions, each with its name or message.
    conditions: Vec<(String, Program)>,
    variables: Vec<(String, Program)>,
    validations: Vec<(String, Program)>,
}

impl Policies {
    pub(super) fn read(objects: &[Value], params: Map<String, Value>) -> Result<Self> {
        let mut env = Env::stdlib();
        env.add_extension(extensions::strings).and_then(|()| env.add_extension(extensions::lists))?;
        let policies = objects.iter().filter(|it| text(it, "/kind") == "ValidatingAdmissionPolicy");
        let policies = policies.map(|policy| Policy::read(&env, policy)).collect::<Result<_>>()?;
        Ok(Self { env: Arc::new(env), policies, params })
    }

    /// Why objects, together `params.objects`, are refused: a line for each validation that does not hold, or fails.
    pub(super) fn refusals(&self, objects: &[Value]) -> Vec<String> {
        let mut params = self.params.clone();
        params.insert("objects".to_owned(), objects.into());
        let mut context = Context::with_env(Arc::clone(&self.env));
        context.add_variable_from_value("params", to_cel(&params.into()));
        let mut refusals = Vec::new();
        for object in objects {
            let resource = Value::from(format!("{}s", text(object, "/kind").to_lowercase()));
            context.add_variable_from_value("object", to_cel(object));
            for policy in self.policies.iter().filter(|policy| policy.resources.contains(&resource)) {
                let messages = policy.refusals(context.new_inner_scope()).into_iter();
                refusals.extend(messages.map(|it| format!("{}: {}: {it}", policy.name, name(object))));
            }
        }
        refusals
    }
}

impl Policy {
    fn read(env: &Env, policy: &Value) -> Result<Self> {
        let compile = |pointer: &str, label: &str| -> Result<Vec<(String, Program)>> {
            let compile = |it| {
                let source = text(it, "/expression");
                let program = env.compile(source).map_err(|error| anyhow!("{error}"));
                Ok((text(it, label).to_owned(), program.with_context(|| source.to_owned())?))
            };
            list(policy, pointer).iter().map(compile).collect()
        };
        let rules = list(policy, "/spec/matchConstraints/resourceRules").iter();
        Ok(Self {
            name: text(policy, "/metadata/name").to_owned(),
            resources: rules.flat_map(|rule| list(rule, "/resources")).cloned().collect(),
            conditions: compile("/spec/matchConditions", "/name")?,
            variables: compile("/spec/variables", "/name")?,
            validations: compile("/spec/validations", "/message")?,
        })
    }

    fn refusals(&self, mut context: Context<'_, '_>) -> Vec<String> {
        if self.conditions.iter().any(|(_, condition)| condition.execute(&context) == Ok(Cel::Bool(false))) {
            return Vec::new();
        }
        let mut variables = HashMap::new();
        for (name, program) in &self.variables {
            // What uses a variable that cannot be evaluated cannot be evaluated either.
            if let Ok(value) = program.execute(&context) {
                variables.insert(name.clone(), value);
                context.add_variable_from_value("variables", variables.clone());
            }
        }
        let refusals =
            self.validations.iter().filter_map(|(message, program)| match program.execute(&context) {
                Ok(Cel::Bool(true)) => None,
                Ok(_) => Some(message.clone()),
                Err(error) => Some(format!("{message} ({error})")),
            });
        refusals.collect()
    }
}

/// The same value, whose whole numbers are `int` as in the API server.
fn to_cel(value: &Value) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(value) => Cel::from(*value),
        Value::Number(number) => number.as_i64().map_or_else(|| Cel::from(number.as_f64()), Cel::from),
        Value::String(text) => Cel::from(text.as_str()),
        Value::Array(items) => Cel::from(items.iter().map(to_cel).collect::<Vec<_>>()),
        Value::Object(fields) => {
            Cel::from(fields.iter().map(|(key, it)| (key.clone(), to_cel(it))).collect::<HashMap<_, _>>())
        }
    }
}

/// An object's kind and name, without the hash that kustomize gives a ConfigMap.
pub(super) fn name(object: &Value) -> String {
    let (kind, name) = (text(object, "/kind"), text(object, "/metadata/name"));
    let stem = name.rsplit_once('-').filter(|(_, hash)| kind == "ConfigMap" && hash.len() == 10);
    format!("{kind} {}", stem.map_or(name, |(stem, _)| stem))
}
