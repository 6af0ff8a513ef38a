//! Chat templates: a conversation becomes the text that the model was trained on.

use std::collections::BTreeMap;
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value as Cell};
use serde_json::{Map, Value};

use crate::config::{Settings, malformed, read_json};
use crate::{DateTime, Error, Result, python};

/// Steps a template may take, before and for each byte of the conversation. Real ones take a few
/// hundred for a message; the limit ends loops that would not end.
const FUEL: u64 = 10_000_000;
const FUEL_PER_BYTE: u64 = 32;

/// The name under which a checkpoint's only template is known.
const DEFAULT: &str = "default";

/// The chat templates of a checkpoint, in the dialect of Jinja that such templates are written for:
/// Python's methods on values, its way of printing and its JSON, `raise_exception`, `strftime_now`,
/// and blocks that take no line of their own.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    names: Vec<String>,
    variables: BTreeMap<String, Cell>,
}

/// What a template is asked to write.
#[derive(Debug, Clone)]
pub struct Chat<'a> {
    /// The messages, as in the OpenAI interface: objects with `role`, `content` and perhaps
    /// `tool_calls`.
    pub messages: &'a [Value],
    /// Descriptions of functions that the model may call.
    pub tools: Option<&'a [Value]>,
    /// Documents to answer from.
    pub documents: Option<&'a [Value]>,
    /// Whether to end with the beginning of the model's answer.
    pub add_generation_prompt: bool,
    /// Further variables that the template knows (`enable_thinking`, …). They may replace others.
    pub kwargs: Map<String, Value>,
    /// Which of several templates to use; without a name, `tool_use` where there are tools, else
    /// `default`.
    pub template: Option<&'a str>,
    /// What `strftime_now` sees.
    pub now: DateTime,
}

impl<'a> Chat<'a> {
    /// Asks for these messages, followed by the beginning of the model's answer.
    pub fn new(messages: &'a [Value], now: DateTime) -> Self {
        Self {
            messages,
            tools: None,
            documents: None,
            add_generation_prompt: true,
            kwargs: Map::new(),
            template: None,
            now,
        }
    }
}

impl ChatTemplate {
    /// Reads the templates of a checkpoint folder: `chat_template.jinja` (with
    /// `additional_chat_templates/*.jinja`), or `chat_template` in `tokenizer_config.json` (one
    /// template, or a list of named ones), or `chat_template.json`; the first that is there.
    ///
    /// # Errors
    /// There is none ([`Error::NoTemplate`]), a file is broken, or a template is not valid Jinja.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        Self::find(dir)?.ok_or_else(|| Error::NoTemplate { path: dir.to_owned() })
    }

    /// Like [`open`](Self::open), with `None` for a folder that has no template.
    ///
    /// # Errors
    /// A file is broken, or a template is not valid Jinja.
    pub fn find(dir: impl AsRef<Path>) -> Result<Option<Self>> {
        let dir = dir.as_ref();
        let settings = Settings::open(dir)?;
        let mut sources = template_files(dir)?;
        if sources.is_empty()
            && let Some(value) = &settings.template
        {
            sources = template_field(value, &dir.join("tokenizer_config.json"))?;
        }
        if sources.is_empty() {
            let path = dir.join("chat_template.json");
            if let Some(value) = read_json(&path)?.as_ref().and_then(|file| file.get("chat_template")) {
                sources = template_field(value, &path)?;
            }
        }
        if sources.is_empty() {
            return Ok(None);
        }
        let mut template = Self::compile(sources)?;
        for (role, token) in &settings.named {
            template.set_variable(role, &Value::from(token.as_str()));
        }
        if !settings.additional.is_empty() {
            template.set_variable("additional_special_tokens", &Value::from(settings.additional.clone()));
        }
        Ok(Some(template))
    }

    /// Takes the source of one template. It knows no special tokens until
    /// [`set_variable`](Self::set_variable) names them.
    ///
    /// # Errors
    /// The source is not valid Jinja.
    pub fn parse(source: &str) -> Result<Self> {
        Self::compile(vec![(DEFAULT.to_owned(), source.to_owned())])
    }

    /// Sets a variable for all renderings, such as `bos_token`. [`open`](Self::open) does this for the
    /// special tokens that the checkpoint names.
    pub fn set_variable(&mut self, name: &str, value: &Value) {
        self.variables.insert(name.to_owned(), cell(value));
    }

    /// The names of the templates.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Writes a conversation. Encode the text without adding special tokens: they are in it.
    ///
    /// # Errors
    /// [`Error::Refused`] with the template's own words if it calls `raise_exception`;
    /// [`Error::Template`] if it fails otherwise or does not end; [`Error::NoSuchTemplate`].
    pub fn render(&self, chat: &Chat<'_>) -> Result<String> {
        let name = self.choose(chat)?;
        let mut context = self.variables.clone();
        let list = |list: Option<&[Value]>| list.map_or(Cell::from(()), cell);
        context.insert("messages".to_owned(), cell(chat.messages));
        context.insert("tools".to_owned(), list(chat.tools));
        context.insert("documents".to_owned(), list(chat.documents));
        context.insert("add_generation_prompt".to_owned(), Cell::from(chat.add_generation_prompt));
        let now = chat.now;
        let strftime_now = Cell::from_function(move |pattern: &str| now.format(pattern));
        context.insert("strftime_now".to_owned(), strftime_now);
        for (name, value) in &chat.kwargs {
            context.insert(name.clone(), cell(value));
        }
        let mut env = self.env.clone();
        env.set_fuel(Some(FUEL + FUEL_PER_BYTE * size(chat)));
        let template = env.get_template(name).map_err(failed)?;
        template.render(Cell::from(context)).map_err(failed)
    }

    fn choose(&self, chat: &Chat<'_>) -> Result<&str> {
        let find = |name: &str| self.names.iter().find(|known| *known == name).map(String::as_str);
        let chosen = match chat.template {
            Some(name) => find(name),
            None => chat.tools.and_then(|_| find("tool_use")).or_else(|| find(DEFAULT)),
        };
        chosen.ok_or_else(|| Error::NoSuchTemplate {
            name: chat.template.unwrap_or(DEFAULT).to_owned(),
            have: self.names.join(", "),
        })
    }

    fn compile(sources: Vec<(String, String)>) -> Result<Self> {
        let mut env = environment()?;
        let mut names = Vec::new();
        for (name, source) in sources {
            env.add_template_owned(name.clone(), without_generation_tags(&source)).map_err(failed)?;
            names.push(name);
        }
        Ok(Self { env, names, variables: BTreeMap::new() })
    }
}

fn cell(value: impl serde::Serialize) -> Cell {
    Cell::from(minijinja::value::Serde(value))
}

/// `chat_template.jinja` and its companions.
fn template_files(dir: &Path) -> Result<Vec<(String, String)>> {
    let read = |path: &Path| std::fs::read_to_string(path);
    let mut sources = Vec::new();
    let path = dir.join("chat_template.jinja");
    match read(&path) {
        Ok(source) => sources.push((DEFAULT.to_owned(), source)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(Error::Io { path, source }),
    }
    let folder = dir.join("additional_chat_templates");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        return Ok(sources);
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let name =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".jinja"));
        if let Some(name) = name {
            let source = read(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
            sources.push((name.to_owned(), source));
        }
    }
    Ok(sources)
}

/// A template in a JSON file: a string, or a list of `{"name": …, "template": …}`.
fn template_field(value: &Value, path: &Path) -> Result<Vec<(String, String)>> {
    if let Some(source) = value.as_str() {
        return Ok(vec![(DEFAULT.to_owned(), source.to_owned())]);
    }
    let wrong = || {
        malformed(path, "`chat_template`: expected a string or a list of objects with `name` and `template`")
    };
    let list = value.as_array().ok_or_else(wrong)?;
    list.iter()
        .map(|entry| {
            let field = |name: &str| entry.get(name).and_then(Value::as_str).map(str::to_owned);
            Some((field("name")?, field("template")?))
        })
        .collect::<Option<Vec<_>>>()
        .ok_or_else(wrong)
}

fn environment() -> Result<Environment<'static>> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?;
    env.set_syntax(syntax);
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.set_formatter(|out, _, value| {
        let text = python::str(value)?;
        out.write_str(&text).map_err(minijinja::Error::from)
    });
    env.add_filter("tojson", python::tojson);
    env.add_filter("string", |value: &Cell| python::str(value));
    // In Jinja nothing can be iterated over in None, and a string is a sequence, as is a mapping.
    env.add_test("iterable", |value: &Cell| !value.is_none() && value.try_iter().is_ok());
    env.add_test("sequence", |value: &Cell| !value.is_none() && value.try_iter().is_ok());
    env.add_function("raise_exception", |message: &Cell| -> std::result::Result<Cell, minijinja::Error> {
        let message = python::str(message)?;
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    Ok(env)
}

/// Marks an error that a template raised on purpose.
#[derive(Debug)]
struct Raised(String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn failed(error: minijinja::Error) -> Error {
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return Error::Refused { message: message.clone() };
        }
        source = cause.source();
    }
    let what = match error.kind() {
        ErrorKind::OutOfFuel => "it takes too many steps; does it have a loop that does not end?".to_owned(),
        _ => error.to_string(),
    };
    Error::Template { what }
}

/// `{% generation %}` marks the model's own words for training and writes nothing.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let inside = &tag[2..end];
        let word = inside.trim_matches(['-', '+']).trim();
        let new = match word {
            "generation" => inside.replacen("generation", "if true", 1),
            "endgeneration" => inside.replacen("endgeneration", "endif", 1),
            _ => inside.to_owned(),
        };
        out.push_str("{%");
        out.push_str(&new);
        out.push_str("%}");
        rest = &tag[end + 2..];
    }
    out.push_str(rest);
    out
}

/// About as many bytes as the conversation has.
fn size(chat: &Chat<'_>) -> u64 {
    fn of(value: &Value) -> u64 {
        match value {
            Value::String(text) => text.len() as u64,
            Value::Array(list) => 8 + list.iter().map(of).sum::<u64>(),
            Value::Object(map) => {
                8 + map.iter().map(|(key, value)| key.len() as u64 + of(value)).sum::<u64>()
            }
            _ => 8,
        }
    }
    let lists = [Some(chat.messages), chat.tools, chat.documents];
    lists.into_iter().flatten().flatten().chain(chat.kwargs.values()).map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(source: &str, messages: Value) -> Result<String> {
        let messages = messages.as_array().unwrap().clone();
        ChatTemplate::parse(source)?.render(&Chat::new(&messages, DateTime::from_unix(0)))
    }

    #[test]
    fn values_print_and_test_as_in_jinja() {
        assert_eq!(
            render("{{ none }} {{ true }} {{ nothing }}|{{ [1.0, 'a', {}] }}", json!([])).unwrap(),
            "None True |[1.0, 'a', {}]"
        );
        assert_eq!(
            render("{{ 'a' is iterable }} {{ none is iterable }} {{ 1 is iterable }}", json!([])).unwrap(),
            "True False False"
        );
        assert_eq!(render("{{ tools is none }} {{ tools is defined }}", json!([])).unwrap(), "True True");
        assert_eq!(render("{{ ' x '.strip() + {'a': 1}.get('b', 'c') }}", json!([])).unwrap(), "xc");
        assert_eq!(render("{{ '<>&' }}{{ ['<'] | tojson }}", json!([])).unwrap(), "<>&[\"<\"]");
    }

    #[test]
    fn blocks_take_no_line() {
        let source = "a\n  {% if true %}\nb\n  {% endif %}\nc\n";
        assert_eq!(render(source, json!([])).unwrap(), "a\nb\nc");
    }

    #[test]
    fn refusals_carry_the_templates_words() {
        let error = render("{{ raise_exception('roles ' ~ 'must alternate') }}", json!([])).unwrap_err();
        assert!(matches!(&error, Error::Refused { message } if message == "roles must alternate"), "{error}");
        let inside = "{% macro m() %}{{ raise_exception('no') }}{% endmacro %}{{ m() }}";
        assert!(
            matches!(render(inside, json!([])).unwrap_err(), Error::Refused { message } if message == "no")
        );
    }

    #[test]
    fn mistakes_say_where() {
        let error = ChatTemplate::parse("a\n{% if %}").unwrap_err().to_string();
        assert!(error.contains("line 2") || error.contains(":2"), "{error}");
        let error =
            render("\n{{ messages[0].content.missing.deeper }}", json!([{"content": {}}])).unwrap_err();
        assert!(matches!(error, Error::Template { .. }), "{error}");
    }

    #[test]
    fn endless_work_ends() {
        let source = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% set x = a %}\
                      {% endfor %}{% endfor %}{% endfor %}";
        let error = render(source, json!([])).unwrap_err().to_string();
        assert!(error.contains("too many steps"), "{error}");
    }

    #[test]
    fn long_conversations_are_not_taken_for_endless_work() {
        let messages: Vec<Value> =
            (0..20_000).map(|i| json!({"role": "user", "content": format!("message {i}")})).collect();
        let text = render(
            "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] | trim }}{% endfor %}",
            json!(messages),
        )
        .unwrap();
        assert!(text.ends_with("<user>message 19999"));
    }

    #[test]
    fn generation_tags_write_nothing() {
        let source =
            "{% for m in messages %}\n{% generation %}\n{{ m.content }}\n{%- endgeneration -%}\n{% endfor %}";
        assert_eq!(render(source, json!([{"content": "x"}])).unwrap(), "x");
    }

    #[test]
    fn templates_are_found_where_checkpoints_keep_them() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let messages = [];
        let tools = [json!({})];
        let mut chat = Chat::new(&messages, DateTime::from_unix(0));
        assert!(matches!(ChatTemplate::open(dir.path()).unwrap_err(), Error::NoTemplate { .. }));
        assert!(ChatTemplate::find(dir.path()).unwrap().is_none());

        write("chat_template.json", r#"{"chat_template": "processor"}"#);
        assert_eq!(ChatTemplate::open(dir.path()).unwrap().render(&chat).unwrap(), "processor");

        let config = json!({"eos_token": "</s>", "chat_template": [
            {"name": "default", "template": "plain{{ bos_token }}{{ eos_token }}"},
            {"name": "tool_use", "template": "tools"}, {"name": "rag", "template": "rag"}]});
        write("tokenizer_config.json", &config.to_string());
        let template = ChatTemplate::open(dir.path()).unwrap();
        assert_eq!(template.names(), ["default", "tool_use", "rag"]);
        assert_eq!(template.render(&chat).unwrap(), "plain</s>");
        chat.template = Some("rag");
        assert_eq!(template.render(&chat).unwrap(), "rag");
        chat.template = Some("other");
        let error = template.render(&chat).unwrap_err().to_string();
        assert!(error.contains("\"other\"") && error.contains("default, tool_use, rag"), "{error}");
        chat.template = None;
        chat.tools = Some(&tools);
        assert_eq!(template.render(&chat).unwrap(), "tools");

        write("chat_template.jinja", "file");
        std::fs::create_dir(dir.path().join("additional_chat_templates")).unwrap();
        write("additional_chat_templates/tool_use.jinja", "more");
        assert_eq!(ChatTemplate::open(dir.path()).unwrap().render(&chat).unwrap(), "more");

        std::fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
        std::fs::remove_file(dir.path().join("additional_chat_templates/tool_use.jinja")).unwrap();
        write("tokenizer_config.json", r#"{"chat_template": 7}"#);
        let error = ChatTemplate::open(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("tokenizer_config.json") && error.contains("expected a string or a list"),
            "{error}"
        );
    }
}
