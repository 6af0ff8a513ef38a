//! Text for language models: tokenizers, incremental detokenising, chat templates.
//!
//! - [`Tokenizer`] turns text into ids and back, exactly as the model's own tokenizer does.
//! - [`Detokenizer`] does the way back while ids are still coming.
//! - [`ChatTemplate`] writes a conversation as the one text that the model was trained on.
//! - [`ChatFormat`] does that for every model, those without a template included, and gives ids.
//!
//! The crate opens small files of a checkpoint folder and nothing else; it knows no network, no clock
//! and no weights.
//!
//! ```
//! use airllm_text::{Chat, ChatTemplate, DateTime, Tokenizer};
//! use serde_json::json;
//!
//! let vocabulary = json!({
//!     "version": "1.0",
//!     "added_tokens": [{"id": 3, "content": "<end>", "special": true, "normalized": false,
//!                       "single_word": false, "lstrip": false, "rstrip": false}],
//!     "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
//!     "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
//!     "model": {"type": "WordLevel", "vocab": {"?": 0, "▁good": 1, "▁day": 2}, "unk_token": "?"}
//! });
//! let tokenizer = Tokenizer::from_json(vocabulary.to_string().as_bytes(), None)?;
//! let ids = tokenizer.encode("good day<end>", false)?;
//! assert_eq!(ids, [1, 2, 3]);
//! assert_eq!(tokenizer.decode(&ids, true), "good day");
//!
//! let mut stream = tokenizer.stream(true);
//! assert_eq!(stream.push(1).as_deref(), Some("good"));
//! assert_eq!(stream.push(2).as_deref(), Some(" day"));
//! assert_eq!(stream.finish(), None);
//!
//! let template = ChatTemplate::parse("{% for m in messages %}{{ m.role }}: {{ m.content }}<end>{% endfor %}")?;
//! let messages = [json!({"role": "user", "content": "good day"})];
//! let text = template.render(&Chat::new(&messages, DateTime::from_unix(0)))?;
//! assert_eq!(text, "user: good day<end>");
//! # Ok::<(), airllm_text::Error>(())
//! ```
#![forbid(unsafe_code)]

mod bytes;
mod chat;
mod clock;
mod config;
mod error;
mod gguf;
mod json;
mod merge;
mod native;
mod prefixes;
mod python;
mod sentencepiece;
mod specials;
mod stages;
mod template;
mod tiktoken;
mod tokenizer;
mod utf8;
mod vocabulary;

pub use chat::{ChatFormat, ChatSource};
pub use clock::DateTime;
pub use error::{Error, Result};
pub use gguf::GgufVocabulary;
pub use template::{Chat, ChatTemplate};
pub use tokenizer::{Detokenizer, Special, SpecialTokens, Tokenizer};
