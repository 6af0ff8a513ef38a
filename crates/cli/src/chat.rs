//! `airllm chat`: a conversation at the terminal, or over a pipe.
//!
//! Standard output carries the answers alone. When the conversation outgrows the context, its oldest turns
//! are left out of the prompt, with a notice; they stay in the history that `/save` writes.

mod conversation;
mod lines;

use crate::args::{Chat, Common};
use crate::exit::{Failure, Result, bad_input};
use crate::progress::Bars;
use crate::{generate, model, output, signal};
use airllm::{
    AutoModel, Cancel, ChatFormat, Error, ErrorKind, FinishReason, Generation, Message, Physics, Timings,
};
use conversation::Conversation;
use lines::{Input, Line};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The most tokens of an answer, unless said otherwise.
const MAX_NEW_TOKENS: usize = 1024;

const HELP: &str = r#"A line is a message. One that ends in \ goes on in the next line; """ begins and ends one of many lines.
  /system TEXT   say what the model should be or know; without TEXT, take that back
  /reset         forget the conversation, but not the system message
  /drop N        forget the N oldest questions with their answers; 1 without N
  /save FILE     write the conversation as JSON messages
  /load FILE     go on with such a conversation
  /history       show the conversation
  /help          show this
  /exit          leave (also Ctrl-D)
Ctrl-C stops an answer; what came of it stays. A message that begins with / is written with //."#;

/// An answer, as `--json` shows it.
#[derive(Serialize)]
struct AnswerObject<'a> {
    role: &'static str,
    content: &'a str,
    ids: &'a [u32],
    finish_reason: &'a str,
    prompt_tokens: usize,
    timings: Timings,
    physics: Physics,
}

struct Session {
    model: AutoModel,
    format: ChatFormat,
    options: Generation,
    conversation: Conversation,
    json: bool,
}

pub fn run(common: &Common, args: &Chat, cancel: &Cancel) -> Result<()> {
    let options = generate::options(&args.sampling, MAX_NEW_TOKENS);
    options.validate()?;
    let bars = Arc::new(Bars::new());
    let mut builder = model::builder(common, cancel, &bars);
    builder = model::running(builder, &args.running)?;
    if let Some(context) = args.context {
        builder = builder.context(context);
    }
    let checkpoint = model::find(&builder, common, None)?;
    let format = checkpoint.chat()?;
    let mut conversation = match &args.load {
        Some(path) => Conversation::load(path)?,
        None => Conversation::default(),
    };
    if args.system.is_some() {
        conversation.system = args.system.clone();
    }
    let model = builder.load(&checkpoint)?;
    bars.clear();
    let options = options.stop_ids(format.stops());
    let mut session = Session { model, format, options, conversation, json: common.json };
    let mut input = Input::open()?;
    if input.is_terminal() {
        let (name, context) = (checkpoint.name(), session.model.plan().context);
        output::note(&format!("{name}: {context} tokens of context. /help lists the commands."));
    }
    session.talk(&mut input)
}

/// What to do after a line.
enum Next {
    Go,
    Leave,
}

impl Session {
    fn talk(&mut self, input: &mut Input) -> Result<()> {
        loop {
            let next = match input.message()? {
                Line::Text(text) if text.trim().is_empty() => Next::Go,
                Line::Text(text) => match text.strip_prefix('/') {
                    Some(rest) if !rest.starts_with('/') => self.command(rest.trim())?,
                    escaped => {
                        self.say(escaped.unwrap_or(&text))?;
                        Next::Go
                    }
                },
                Line::End => Next::Leave,
                Line::Interrupted => return Err(Failure::Interrupted),
            };
            if let Next::Leave = next {
                return Ok(());
            }
        }
    }

    /// Does what a command says. A mistake in one is told, and the conversation goes on.
    fn command(&mut self, line: &str) -> Result<Next> {
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        let done = match (name, rest) {
            ("exit" | "quit", "") => return Ok(Next::Leave),
            ("help", "") => Ok(HELP.to_owned()),
            ("reset", "") => {
                self.conversation.turns.clear();
                Ok("a new conversation".to_owned())
            }
            ("system", text) => {
                self.conversation.system = (!text.is_empty()).then(|| text.to_owned());
                Ok(if text.is_empty() { "no system message" } else { "the system message is set" }.to_owned())
            }
            ("drop", count) => match if count.is_empty() { Ok(1) } else { count.parse() } {
                Ok(count) => {
                    let dropped = self.conversation.drop_oldest(count);
                    Ok(format!("{dropped} forgotten, {} left", self.conversation.questions()))
                }
                Err(_) => Err(bad_input(format!("/drop: {count:?} is not a number"))),
            },
            ("save", path) => file(path).and_then(|path| {
                let count = self.conversation.save(&path)?;
                Ok(format!("{count} messages in {}", path.display()))
            }),
            ("load", path) => file(path).and_then(|path| {
                self.conversation = Conversation::load(&path)?;
                Ok(format!("{} messages from {}", self.conversation.messages().len(), path.display()))
            }),
            ("history", "") => Ok(self.conversation.to_string()),
            _ => Err(bad_input(format!("/{line} is no command; /help lists them"))),
        };
        match done {
            Ok(words) => output::note(&words),
            Err(Failure::Error(error)) => output::note(&format!("{error:#}")),
            Err(other) => return Err(other),
        }
        Ok(Next::Go)
    }

    /// Sends a message and shows the answer. A message that cannot be answered is taken back.
    fn say(&mut self, text: &str) -> Result<()> {
        self.conversation.turns.push(Message::user(text));
        let result = self.answer();
        let answered = self.conversation.turns.last().is_some_and(|last| last.role == "assistant");
        if !answered {
            self.conversation.turns.pop();
        }
        match result {
            Err(Failure::Error(error)) if is_the_messages_fault(&error) => {
                output::note(&format!("not sent: {error:#}"));
                Ok(())
            }
            result => result,
        }
    }

    fn answer(&mut self) -> Result<()> {
        let context = self.model.plan().context;
        // Room for a good answer, but not at the price of half the conversation.
        let reserve = self.options.max_new_tokens.min(context / 4).max(1);
        let (ids, skipped) = self.conversation.prompt(&self.format, context.saturating_sub(reserve))?;
        if skipped > 0 {
            output::note(&format!(
                "the context of {context} tokens is full: the {skipped} oldest messages are left out (/drop forgets \
                 them, --context makes room)"
            ));
        }
        let flag = Cancel::new();
        signal::chat(signal::Chat::Answering(flag.clone()));
        let mut run = self.model.generate_ids(vec![ids], &self.options)?;
        run.end_when(&flag);
        for piece in run.by_ref() {
            let piece = piece?;
            if !self.json {
                output::text(&piece.text)?;
            }
        }
        let (timings, physics) = (run.timings(), run.physics());
        let Some(answer) = run.answers().next().cloned() else { return Ok(()) };
        drop(run);
        if self.json {
            output::json(&AnswerObject {
                role: "assistant",
                content: &answer.text,
                ids: &answer.ids,
                finish_reason: answer.finish.map_or("error", FinishReason::name),
                prompt_tokens: answer.prompt_ids.len(),
                timings,
                physics: physics.clone(),
            })?;
        } else {
            output::text("\n")?;
        }
        match answer.finish {
            Some(FinishReason::Interrupted) => output::note("stopped"),
            Some(FinishReason::Length) if answer.ids.len() < self.options.max_new_tokens => {
                output::note(&format!("the answer ends here: the context of {context} tokens is full"));
            }
            Some(FinishReason::Length) => {
                let most = self.options.max_new_tokens;
                output::note(&format!("the answer ends here after {most} tokens; -n allows for more"));
            }
            _ => {}
        }
        if !answer.ids.is_empty() {
            self.conversation.turns.push(Message::assistant(answer.text));
            output::note(&physics.to_string());
        }
        Ok(())
    }
}

/// A file named after a command.
fn file(path: &str) -> Result<PathBuf> {
    match path {
        "" => Err(bad_input("name a file")),
        path => Ok(Path::new(path).to_path_buf()),
    }
}

/// Whether another message may fare better.
fn is_the_messages_fault(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Error::Context { .. } | Error::Text(_)))
        || error.downcast_ref().is_some_and(|error: &Error| error.kind() == ErrorKind::DoesNotFit)
}
