//! An API server's judgement of custom resources, as far as the CRDs use it: structural schemas
//! (apiextensions.k8s.io/v1) with `fieldValidation=Strict`, and their rules in CEL.

use std::{
    cell::RefCell,
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use cel::{
    Context, ExecutionError, Program,
    objects::{Key, Map},
};
use jiff::Timestamp;
use portcullis::policy::crd;
use regex::Regex;
use serde_json::{Value, json};

/// An API server that has the CRDs.
pub(super) struct Server {
    definitions: Vec<Value>,
    patterns: HashMap<String, Regex>,
    rules: HashMap<String, Program>,
    functions: Context<'static, 'static>,
    /// Whether rules held of texts.
    known: RefCell<HashMap<(String, String), bool>>,
}

impl Server {
    pub(super) fn new() -> Self {
        let definitions: Vec<_> = crd::definitions().into_iter().map(|(_, crd)| crd).collect();
        let (mut patterns, mut rules) = (HashMap::new(), HashMap::new());
        for definition in &definitions {
            walk(schema_of(definition), &mut |schema| {
                if let Some(pattern) = schema["pattern"].as_str() {
                    patterns.insert(pattern.to_owned(), Regex::new(pattern).unwrap());
                }
                for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
                    let rule = rule["rule"].as_str().unwrap();
                    rules.insert(rule.to_owned(), Program::compile(rule).unwrap());
                }
            });
        }
        let mut functions = Context::default();
        functions.add_function("timestamp", timestamp).unwrap();
        Self { definitions, patterns, rules, functions, known: RefCell::default() }
    }

    /// The object as it is stored, or why it is not.
    pub(super) fn judge(&self, object: &Value) -> Result<Value, Vec<String>> {
        let definition = self.definitions.iter().find(|definition| {
            let spec = &definition["spec"];
            let version = format!(
                "{}/{}",
                spec["group"].as_str().unwrap(),
                spec["versions"][0]["name"].as_str().unwrap()
            );
            object["apiVersion"] == version && object["kind"] == spec["names"]["kind"]
        });
        let definition = definition.ok_or_else(|| vec!["no matches for kind".to_owned()])?;
        let schema = schema_of(definition);
        let mut stored = object.clone();
        complete(&mut stored, schema);
        let mut errors = Vec::new();
        metadata(&stored["metadata"], &mut errors);
        let fields = Field { path: String::new(), schema, value: &stored };
        self.validate(&fields, &mut errors);
        if errors.is_empty() {
            self.rules(&fields, &mut errors);
        }
        if errors.is_empty() { Ok(stored) } else { Err(errors) }
    }

    fn validate(&self, field: &Field<'_>, errors: &mut Vec<String>) {
        let Field { path, schema, value } = field;
        let mut wrong = |what: String| errors.push(format!("{path}: {what}"));
        let limit = |key: &str| schema[key].as_f64();
        let size = match (schema["type"].as_str().unwrap(), value) {
            ("object", Value::Object(fields)) => fields.len(),
            ("array", Value::Array(entries)) => entries.len(),
            // An API server counts code points, not bytes.
            ("string", Value::String(text)) => text.chars().count(),
            ("integer", Value::Number(number)) if number.as_f64().unwrap().fract() == 0.0 => 0,
            (wanted, _) => return wrong(format!("must be of type {wanted}")),
        };
        for (min, max) in [
            ("minLength", "maxLength"),
            ("minItems", "maxItems"),
            ("minProperties", "maxProperties"),
        ] {
            if limit(min).is_some_and(|min| (size as f64) < min) {
                wrong(format!("{min} is not reached"));
            }
            if limit(max).is_some_and(|max| (size as f64) > max) {
                wrong(format!("{max} is exceeded"));
            }
        }
        if let Some(number) = value.as_f64()
            && (limit("minimum").is_some_and(|min| number < min)
                || limit("maximum").is_some_and(|max| number > max))
        {
            wrong("is out of range".to_owned());
        }
        if schema["enum"].as_array().is_some_and(|words| !words.contains(value)) {
            wrong("is no supported value".to_owned());
        }
        if let (Some(pattern), Some(text)) = (schema["pattern"].as_str(), value.as_str())
            && !self.patterns[pattern].is_match(text)
        {
            wrong(format!("should match {pattern}"));
        }
        for name in schema["required"].as_array().into_iter().flatten() {
            if value.get(name.as_str().unwrap()).is_none() {
                wrong(format!("{name} is required"));
            }
        }
        if let (Some(known), Some(fields)) = (schema["properties"].as_object(), value.as_object())
            && path != "metadata"
        {
            for name in fields.keys().filter(|name| !known.contains_key(*name)) {
                wrong(format!("unknown field {name:?}"));
            }
        }
        let keys: Option<Vec<_>> = match schema["x-kubernetes-list-type"].as_str() {
            Some("set") => value.as_array().cloned(),
            Some("map") => value.as_array().map(|entries| {
                let keys = schema["x-kubernetes-list-map-keys"].as_array().unwrap();
                let [key] = &keys[..] else { panic!("{path}: one key is expected") };
                entries.iter().map(|entry| entry[key.as_str().unwrap()].clone()).collect()
            }),
            other => {
                assert_eq!(other, None);
                None
            }
        };
        if let Some(mut keys) =
            keys.map(|keys| keys.iter().map(Value::to_string).collect::<Vec<_>>())
        {
            keys.sort();
            if keys.windows(2).any(|pair| pair[0] == pair[1]) {
                wrong("an entry is there twice".to_owned());
            }
        }
        field.below().iter().for_each(|field| self.validate(field, errors));
    }

    fn rules(&self, field: &Field<'_>, errors: &mut Vec<String>) {
        for rule in field.schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            if !self.holds(rule["rule"].as_str().unwrap(), field) {
                errors.push(format!("{}: {}", field.path, rule["message"].as_str().unwrap()));
            }
        }
        field.below().iter().for_each(|field| self.rules(field, errors));
    }

    fn holds(&self, rule: &str, field: &Field<'_>) -> bool {
        // The interpreter compiles a rule's expressions anew each time, and texts come again.
        let key = field.value.as_str().map(|text| (rule.to_owned(), text.to_owned()));
        if let Some(holds) = key.as_ref().and_then(|key| self.known.borrow().get(key).copied()) {
            return holds;
        }
        let mut context = self.functions.new_inner_scope();
        context.add_variable_from_value("self", cel_value(field.schema, field.value));
        let holds = match self.rules[rule].execute(&context) {
            Ok(cel::Value::Bool(holds)) => holds,
            // A rule that cannot be evaluated does not hold.
            Err(ExecutionError::FunctionError { function, .. }) if function == "timestamp" => false,
            other => panic!("{}: {rule}: {other:?}", field.path),
        };
        self.known.borrow_mut().extend(key.map(|key| (key, holds)));
        holds
    }
}

/// A value, its schema, and the path to it.
struct Field<'a> {
    path: String,
    schema: &'a Value,
    value: &'a Value,
}

impl<'a> Field<'a> {
    /// The fields and entries that have a schema.
    fn below(&self) -> Vec<Self> {
        let Self { path, schema, value } = self;
        match value {
            Value::Object(fields) => fields
                .iter()
                .filter_map(|(name, value)| {
                    let schema = schema["properties"].get(name);
                    let schema = schema.or(schema_values(self.schema))?;
                    let path =
                        if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    Some(Field { path, schema, value })
                })
                .collect(),
            Value::Array(entries) => entries
                .iter()
                .enumerate()
                .map(|(index, value)| Field {
                    path: format!("{path}[{index}]"),
                    schema: &schema["items"],
                    value,
                })
                .collect(),
            _ => Vec::new(),
        }
    }
}

fn schema_values(schema: &Value) -> Option<&Value> {
    schema.get("additionalProperties")
}

fn schema_of(definition: &Value) -> &Value {
    &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
}

/// Every schema below one, and itself.
fn walk(schema: &Value, see: &mut impl FnMut(&Value)) {
    see(schema);
    for below in schema["properties"].as_object().into_iter().flat_map(|fields| fields.values()) {
        walk(below, see);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(below) = schema.get(key) {
            walk(below, see);
        }
    }
}

/// Drops fields that are null, fills in defaults, and makes whole numbers integers.
fn complete(value: &mut Value, schema: &Value) {
    match value {
        Value::Object(fields) => {
            let is_known =
                |name: &str| schema["properties"].get(name).or(schema_values(schema)).is_some();
            fields.retain(|name, value| !(value.is_null() && is_known(name)));
            if let Some(known) = schema["properties"].as_object() {
                for (name, schema) in known {
                    if let Some(default) = schema.get("default") {
                        fields.entry(name).or_insert_with(|| default.clone());
                    }
                }
            }
            for (name, value) in fields {
                let below = schema["properties"].get(name);
                if let Some(schema) = below.or(schema_values(schema)) {
                    complete(value, schema);
                }
            }
        }
        Value::Array(entries) => {
            entries.iter_mut().for_each(|entry| complete(entry, &schema["items"]));
        }
        Value::Number(number) if schema["type"] == "integer" => {
            let float = number.as_f64().unwrap();
            if float.fract() == 0.0 && float.abs() < 1e15 {
                *value = json!(float as i64);
            }
        }
        _ => {}
    }
}

static SUBDOMAIN: LazyLock<Regex> = LazyLock::new(|| whole(PART));
static KEY: LazyLock<Regex> = LazyLock::new(|| whole(&format!("({PART}/)?{WORD}")));
static LABEL: LazyLock<Regex> = LazyLock::new(|| whole(&format!("({WORD})?")));

const PART: &str = "[a-z0-9]([a-z0-9-]*[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*";
const WORD: &str = "[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?";

fn whole(pattern: &str) -> Regex {
    Regex::new(&format!("^({pattern})$")).unwrap()
}

/// What an API server demands of the metadata of every object.
fn metadata(metadata: &Value, errors: &mut Vec<String>) {
    let name = metadata["name"].as_str().unwrap_or_default();
    if name.len() > 253 || !SUBDOMAIN.is_match(name) {
        errors.push("metadata.name: is no name".to_owned());
    }
    for map in ["labels", "annotations"] {
        for (key, value) in metadata[map].as_object().into_iter().flatten() {
            let key = if map == "labels" { key.clone() } else { key.to_ascii_lowercase() };
            let is_value = |text| map != "labels" || LABEL.is_match(text);
            if !KEY.is_match(&key) || !value.as_str().is_some_and(is_value) {
                errors.push(format!("metadata.{map}: {key} is refused"));
            }
        }
    }
}

/// A time of RFC 3339, so written that texts have the order of their times. What pattern and
/// parser of Go agree on is what the one of our own reads, behind the pattern.
fn timestamp(text: Arc<String>) -> Result<cel::Value, ExecutionError> {
    let moment = text.parse::<Timestamp>();
    let moment = moment.map_err(|error| ExecutionError::function_error("timestamp", error));
    Ok(format!("{:.9}", moment?).into())
}

/// A value as rules see it: whole numbers are `int`.
fn cel_value(schema: &Value, value: &Value) -> cel::Value {
    let field = Field { path: String::new(), schema, value };
    match value {
        Value::Object(_) => {
            let below = field.below().into_iter();
            let entries = below
                .map(|field| (Key::from(field.path.clone()), cel_value(field.schema, field.value)));
            cel::Value::Map(Map { map: entries.collect::<HashMap<_, _>>().into() })
        }
        Value::Array(_) => {
            let below = field.below();
            let entries: Vec<_> = below.iter().map(|f| cel_value(f.schema, f.value)).collect();
            cel::Value::List(entries.into())
        }
        Value::String(text) => cel::Value::String(text.clone().into()),
        Value::Number(number) => cel::Value::Int(number.as_i64().unwrap()),
        other => panic!("{other} where a schema has no such type"),
    }
}
