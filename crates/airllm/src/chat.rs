//! Conversations, as the ids that a chat model expects.

use crate::{Checkpoint, Error, Form, Result};
use airllm_text::{Chat, ChatSource, ChatTemplate, DateTime};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::SystemTime;

/// How a model wants conversations to be written: its chat template, or what its family's published code
/// writes for a model without one.
///
/// ```no_run
/// use airllm::{AutoModel, Generation, Message};
///
/// let model = AutoModel::from_pretrained("path/to/a-chat-model")?;
/// let chat = model.chat()?;
/// let ids = chat.ids(&[Message::system("Be brief."), Message::user("Why is the sky blue?")])?;
/// let options = Generation::default().stop_ids(chat.stops());
/// for piece in model.generate_ids(vec![ids], &options)? {
///     print!("{}", piece?);
/// }
/// # Ok::<(), airllm::Error>(())
/// ```
#[derive(Debug)]
pub struct ChatFormat(airllm_text::ChatFormat);

/// What somebody said, in the form of the OpenAI interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who: "system", "user" or "assistant"; templates may know others.
    pub role: String,
    /// What.
    pub content: String,
}

impl Message {
    /// What the model should be or know.
    pub fn system(content: impl Into<String>) -> Message {
        Message { role: "system".to_owned(), content: content.into() }
    }

    /// What the user says.
    pub fn user(content: impl Into<String>) -> Message {
        Message { role: "user".to_owned(), content: content.into() }
    }

    /// What the model answered.
    pub fn assistant(content: impl Into<String>) -> Message {
        Message { role: "assistant".to_owned(), content: content.into() }
    }
}

impl ChatFormat {
    /// The format of a model that was found.
    ///
    /// # Errors
    /// It has no tokenizer or no chat format, or a file is broken.
    pub fn of(checkpoint: &Checkpoint) -> Result<ChatFormat> {
        let tokenizer = checkpoint.tokenizer()?;
        if let Form::Published(repo) = checkpoint.form()
            && let Some(template) = repo.gguf().and_then(|it| it.metadata().text("tokenizer.chat_template"))
        {
            let template = ChatTemplate::parse(template)?;
            return Ok(ChatFormat(airllm_text::ChatFormat::from_template(template, &tokenizer)));
        }
        let (config, generation_config, id) = match checkpoint.form() {
            Form::Published(repo) => (repo.config(), repo.generation_config(), None),
            Form::Prepared(prepared) => {
                let manifest = prepared.manifest();
                (&manifest.config, manifest.generation_config.as_ref(), manifest.source.id.as_deref())
            }
        };
        let name = id.unwrap_or(checkpoint.name());
        let source = ChatSource { dir: checkpoint.dir(), name, config, generation_config };
        let format = airllm_text::ChatFormat::detect(&source, &tokenizer)?;
        let none = || airllm_text::Error::NoTemplate { path: checkpoint.dir().to_path_buf() };
        Ok(ChatFormat(format.ok_or_else(none)?))
    }

    /// What it is: "template", or the family whose format it is.
    pub fn name(&self) -> &'static str {
        self.0.name()
    }

    /// The prompt for a conversation, ready for [`generate_ids`](crate::AutoModel::generate_ids).
    ///
    /// # Errors
    /// The format has no place for these messages.
    pub fn ids(&self, messages: &[Message]) -> Result<Vec<u32>> {
        self.ids_of(&values(messages)?)
    }

    /// The same as text, for people to read: encoded again, a special token's name in a message would
    /// become that token.
    ///
    /// # Errors
    /// As [`ids`](Self::ids).
    pub fn text(&self, messages: &[Message]) -> Result<String> {
        self.text_of(&values(messages)?)
    }

    /// [`ids`](Self::ids) of messages with more fields than role and content (`tool_calls`, …).
    ///
    /// # Errors
    /// As [`ids`](Self::ids).
    pub fn ids_of(&self, messages: &[Value]) -> Result<Vec<u32>> {
        Ok(self.0.ids(&Chat::new(messages, now()))?)
    }

    /// [`text`](Self::text) of such messages.
    ///
    /// # Errors
    /// As [`ids`](Self::ids).
    pub fn text_of(&self, messages: &[Value]) -> Result<String> {
        Ok(self.0.text(&Chat::new(messages, now()))?)
    }

    /// The ids that end an answer, for [`Generation::stop_ids`](crate::Generation::stop_ids):
    /// `generation_config.json` does not always list them.
    pub fn stops(&self) -> &[u32] {
        self.0.stops()
    }
}

fn values(messages: &[Message]) -> Result<Vec<Value>> {
    let value = |message| serde_json::to_value(message).map_err(|e| Error::Input { what: e.to_string() });
    messages.iter().map(value).collect()
}

fn now() -> DateTime {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |t| t.as_secs());
    DateTime::from_unix(i64::try_from(now).unwrap_or(i64::MAX))
}
