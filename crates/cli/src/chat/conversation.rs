//! What was said, and what of it fits a prompt.

use crate::exit::{Failure, Result, bad_input};
use airllm::{ChatFormat, Error, Message};
use std::fmt;
use std::path::Path;

/// A conversation: perhaps a system message, then questions and answers by turns.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Conversation {
    pub system: Option<String>,
    pub turns: Vec<Message>,
}

impl Conversation {
    /// Everything that was said.
    pub fn messages(&self) -> Vec<Message> {
        self.system.iter().map(Message::system).chain(self.turns.iter().cloned()).collect()
    }

    /// Messages of the user.
    pub fn questions(&self) -> usize {
        self.turns.iter().filter(|turn| turn.role == "user").count()
    }

    /// Forgets the oldest questions with all that follows each, and says how many there were.
    pub fn drop_oldest(&mut self, questions: usize) -> usize {
        let before = self.questions();
        let from = self.begins().nth(questions).unwrap_or(self.turns.len());
        self.turns.drain(..from);
        before - self.questions()
    }

    /// The prompt, in no more than `most` tokens: the oldest turns are left out until it fits, the system
    /// message and the last question never. Also how many messages were left out.
    ///
    /// # Errors
    /// The last question alone is too long, or the format has no place for these messages.
    pub fn prompt(&self, format: &ChatFormat, most: usize) -> Result<(Vec<u32>, usize)> {
        let mut shortest = 0;
        let begins: Vec<usize> = self.begins().collect();
        for from in begins {
            let mut rest = Conversation { system: self.system.clone(), turns: self.turns[from..].to_vec() };
            let ids = format.ids(&rest.messages())?;
            if ids.len() <= most {
                return Ok((ids, from));
            }
            shortest = ids.len();
            rest.turns.clear();
        }
        Err(Error::Context { prompt: shortest, new: 1, context: most }.into())
    }

    /// Writes all messages as a JSON list, and says how many.
    pub fn save(&self, path: &Path) -> Result<usize> {
        let messages = self.messages();
        let text = serde_json::to_string_pretty(&messages)? + "\n";
        std::fs::write(path, text).map_err(|source| Error::Io {
            path: path.to_path_buf(),
            doing: "saving the conversation",
            source,
        })?;
        Ok(messages.len())
    }

    /// Reads what [`save`](Self::save) wrote: a list of messages, or an object with such a list as
    /// `messages`.
    pub fn load(path: &Path) -> Result<Conversation> {
        let bytes = std::fs::read(path).map_err(|source| -> Failure {
            Error::Io { path: path.to_path_buf(), doing: "loading a conversation", source }.into()
        })?;
        let wrong = |what: String| bad_input(format!("{}: {what}", path.display()));
        let mut value: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
        if let Some(list) = value.get_mut("messages") {
            value = list.take();
        }
        let mut messages: Vec<Message> = serde_json::from_value(value)
            .map_err(|e| wrong(format!("expected a list of messages with `role` and `content`: {e}")))?;
        let system = match messages.first() {
            Some(first) if first.role == "system" => Some(messages.remove(0).content),
            _ => None,
        };
        let turn = |i: usize| if i.is_multiple_of(2) { "user" } else { "assistant" };
        if let Some(i) = (0..messages.len()).find(|i| messages[*i].role != turn(*i)) {
            let (found, wanted) = (&messages[i].role, turn(i));
            return Err(wrong(format!(
                "expected user and assistant by turns after at most one system message; a message of {wanted:?} \
                 should stand where {found:?} says {:?}",
                messages[i].content.chars().take(40).collect::<String>()
            )));
        }
        if messages.len() % 2 == 1 {
            return Err(wrong("the last question has no answer".to_owned()));
        }
        Ok(Conversation { system, turns: messages })
    }

    /// Where questions stand.
    fn begins(&self) -> impl Iterator<Item = usize> {
        self.turns.iter().enumerate().filter(|(_, turn)| turn.role == "user").map(|(i, _)| i)
    }
}

impl fmt::Display for Conversation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let messages = self.messages();
        if messages.is_empty() {
            return f.write_str("nothing was said");
        }
        let lines: Vec<String> =
            messages.iter().map(|message| format!("{}: {}", message.role, message.content)).collect();
        f.write_str(&lines.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Conversation {
        let turns = ["a", "b", "c"]
            .into_iter()
            .flat_map(|name| [Message::user(name), Message::assistant(name.to_uppercase())])
            .collect();
        Conversation { system: Some("S".to_owned()), turns }
    }

    #[test]
    fn the_oldest_are_dropped() {
        let mut conversation = three();
        assert_eq!(conversation.drop_oldest(2), 2);
        assert_eq!(conversation.to_string(), "system: S\nuser: c\nassistant: C");
        assert_eq!(conversation.drop_oldest(5), 1);
        assert_eq!(conversation.to_string(), "system: S");
    }

    #[test]
    fn saved_and_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        assert_eq!(three().save(&path).unwrap(), 7);
        assert_eq!(Conversation::load(&path).unwrap(), three());
        for (text, words) in [
            ("{", "EOF"),
            (r#"[{"role": "user"}]"#, "content"),
            (r#"[{"role": "assistant", "content": "x"}]"#, "by turns"),
            (r#"[{"role": "user", "content": "x"}]"#, "no answer"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = format!("{:?}", Conversation::load(&path).unwrap_err());
            assert!(error.contains(words), "{text}: {error}");
        }
        std::fs::write(&path, r#"{"messages": []}"#).unwrap();
        assert_eq!(Conversation::load(&path).unwrap(), Conversation::default());
    }
}
