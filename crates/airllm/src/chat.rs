//! A user's message as the prompt that a chat model expects.

use crate::Result;
use airllm_text::{Chat, ChatTemplate, DateTime};
use serde_json::Value;
use std::path::Path;
use std::time::SystemTime;

/// The chat template of a checkpoint.
#[derive(Debug)]
pub struct ChatFormat(ChatTemplate);

impl ChatFormat {
    /// Reads the template of a folder.
    pub fn open(dir: &Path) -> Result<ChatFormat> {
        Ok(ChatFormat(ChatTemplate::open(dir)?))
    }

    /// The prompt for one message of the user. Its special tokens are written out: to be encoded without
    /// adding any.
    pub fn user(&self, message: &str) -> Result<String> {
        self.messages(&[serde_json::json!({ "role": "user", "content": message })])
    }

    /// The prompt for a conversation: objects with `role` and `content`, as in the OpenAI interface.
    pub fn messages(&self, messages: &[Value]) -> Result<String> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |t| t.as_secs());
        let now = DateTime::from_unix(i64::try_from(now).unwrap_or(i64::MAX));
        Ok(self.0.render(&Chat::new(messages, now))?)
    }
}
