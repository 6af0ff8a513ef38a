//! One chat format for every model: its template, or what its family's published code writes.

use std::path::Path;

use serde_json::{Value, json};

use crate::native::{self, Native};
use crate::{Chat, ChatTemplate, DateTime, Error, Result, Tokenizer};

/// What is known of a model when its chat format is looked for.
#[derive(Debug, Clone, Copy)]
pub struct ChatSource<'a> {
    /// The folder with its small files.
    pub dir: &'a Path,
    /// The name it goes by: a hub id, or that of a folder. Where neither files nor tokens tell a chat
    /// model from a base model (Llama 2, Mistral, DeepSeek LLM), the publisher's name does.
    pub name: &'a str,
    /// `config.json`.
    pub config: &'a Value,
    /// `generation_config.json`.
    pub generation_config: Option<&'a Value>,
}

/// How a model wants a conversation to be written.
///
/// A model with a chat template gets what the template renders. One without gets the prompt that its
/// family publishes as code or as text: Qwen 1, ChatGLM-6B, ChatGLM2, ChatGLM3, GLM-4, Baichuan 1 and 2,
/// Llama 2, Mistral and Mixtral, DeepSeek LLM, and ChatML for all whose vocabulary has its two tokens
/// (Yi, InternLM2). There, special strings inside a message stay text: a message cannot end its own
/// turn.
#[derive(Debug)]
pub struct ChatFormat {
    form: Form,
    tokenizer: Tokenizer,
    stops: Vec<u32>,
}

#[derive(Debug)]
enum Form {
    Template(Box<ChatTemplate>),
    Native(Native),
}

/// A part of a prompt. Neighbouring texts are encoded apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// A token by its id.
    Token(u32),
    /// Text in which nothing is special.
    Text(String),
}

impl ChatFormat {
    /// The chat format of a model; `None` for a model that has none, such as a base model.
    ///
    /// # Errors
    /// A file is broken, or a template is not valid Jinja.
    pub fn detect(source: &ChatSource<'_>, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        if let Some(template) = ChatTemplate::find(source.dir)? {
            return Ok(Some(Self::from_template(template, tokenizer)));
        }
        let Some(native) = native::detect(source, tokenizer) else { return Ok(None) };
        Ok(Some(Self::new(Form::Native(native), tokenizer)))
    }

    /// Takes a template from wherever it was kept.
    pub fn from_template(template: ChatTemplate, tokenizer: &Tokenizer) -> Self {
        Self::new(Form::Template(Box::new(template)), tokenizer)
    }

    /// What it is: "template", or the family whose format it is.
    pub fn name(&self) -> &'static str {
        match &self.form {
            Form::Template(_) => "template",
            Form::Native(native) => native.name(),
        }
    }

    /// The ids of a conversation, to be continued by the model without adding any.
    ///
    /// # Errors
    /// The format has no place for these messages ([`Error::Refused`]), a template fails, or the
    /// vocabulary cannot express a text. Tools, documents and further variables are for templates alone:
    /// a built-in format refuses tools and documents.
    pub fn ids(&self, chat: &Chat<'_>) -> Result<Vec<u32>> {
        match &self.form {
            Form::Template(template) => self.tokenizer.encode(&template.render(chat)?, false),
            Form::Native(native) => {
                let mut ids = Vec::new();
                for part in native.parts(chat)? {
                    match part {
                        Part::Token(id) => ids.push(id),
                        Part::Text(text) => ids.extend(self.tokenizer.encode_plain(&text)?),
                    }
                }
                Ok(ids)
            }
        }
    }

    /// The same as text, for people to read. Encoding it again may give other ids than
    /// [`ids`](Self::ids), which keeps a special string in a message apart from a special token.
    ///
    /// # Errors
    /// As [`ids`](Self::ids).
    pub fn text(&self, chat: &Chat<'_>) -> Result<String> {
        match &self.form {
            Form::Template(template) => template.render(chat),
            Form::Native(native) => {
                let part = |part| match part {
                    Part::Token(id) => self.tokenizer.token(id).unwrap_or_default(),
                    Part::Text(text) => text,
                };
                Ok(native.parts(chat)?.into_iter().map(part).collect())
            }
        }
    }

    /// The ids that end an answer (`<|im_end|>`, `<|eot_id|>`, `<|user|>`, …), whether
    /// `generation_config.json` lists them or not: what the format writes after an answer, and the end
    /// of a text.
    pub fn stops(&self) -> &[u32] {
        &self.stops
    }

    fn new(form: Form, tokenizer: &Tokenizer) -> Self {
        let mut format = Self { form, tokenizer: tokenizer.clone(), stops: Vec::new() };
        let mut stops: Vec<u32> = format.after_answer().into_iter().collect();
        stops.extend(tokenizer.special().eos.as_ref().map(|eos| eos.id));
        if let Form::Native(native) = &format.form {
            stops.extend(native.stops(tokenizer));
        }
        stops.sort_unstable();
        stops.dedup();
        format.stops = stops;
        format
    }

    /// The token that follows an answer when the conversation goes on.
    fn after_answer(&self) -> Option<u32> {
        const ANSWER: &str = "ANSWER";
        let said = |role: &str, content: &str| json!({"role": role, "content": content});
        let messages = [said("user", "question"), said("assistant", ANSWER), said("user", "next")];
        let mut chat = Chat::new(&messages, DateTime::from_unix(0));
        chat.add_generation_prompt = false;
        match &self.form {
            Form::Template(template) => {
                // A template may refuse this conversation; then it does not say what ends an answer.
                let text = template.render(&chat).ok()?;
                let (_, rest) = text.rsplit_once(ANSWER)?;
                let rest = rest.trim_start();
                let id = *self.tokenizer.encode(rest, false).ok()?.first()?;
                let marks =
                    |token: String| token.starts_with('<') && token.len() > 3 && rest.starts_with(&token);
                let special = self.tokenizer.is_special(id) || self.tokenizer.token(id).is_some_and(marks);
                special.then_some(id)
            }
            Form::Native(native) => {
                let parts = native.parts(&chat).ok()?;
                let mut rest = parts.iter().skip_while(
                    |part| !matches!(part, Part::Text(text) if text.trim_end().ends_with(ANSWER)),
                );
                match (rest.next(), rest.next()) {
                    (Some(_), Some(Part::Token(id))) => Some(*id),
                    _ => None,
                }
            }
        }
    }
}

/// A message, with its content as one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) role: String,
    pub(crate) content: String,
}

impl Said {
    /// Reads the messages of a request: objects with `role` and `content`, the latter a string or a list
    /// of `{"type": "text", "text": …}`.
    pub(crate) fn read(messages: &[Value]) -> Result<Vec<Said>> {
        messages.iter().enumerate().map(|(i, message)| Self::one(i, message)).collect()
    }

    fn one(index: usize, message: &Value) -> Result<Said> {
        let wrong = |what: &str| Error::Refused { message: format!("message {}: {what}", index + 1) };
        let role = message.get("role").and_then(Value::as_str).ok_or_else(|| wrong("it has no role"))?;
        let content = match message.get("content") {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) => parts
                .iter()
                .map(|part| part.get("text").and_then(Value::as_str))
                .collect::<Option<String>>()
                .ok_or_else(|| wrong("its content has parts that are not text"))?,
            _ => return Err(wrong("it has no content")),
        };
        Ok(Said { role: role.to_owned(), content })
    }
}
