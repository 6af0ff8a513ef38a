//! The prompts of models without a chat template, as their families' published code builds them.

use serde_json::Value;

use crate::chat::{Part, Said};
use crate::{Chat, ChatSource, Error, Result, Tokenizer};

/// A family's own format, with the ids of its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Native {
    /// `<|im_start|>role`, a line end, the content, `<|im_end|>`.
    ChatMl {
        start: u32,
        end: u32,
        bos: Option<u32>,
        /// Said where the conversation has no system message.
        system: Option<&'static str>,
        /// Whether role and content are encoded apart.
        apart: bool,
    },
    /// ChatGLM-6B: rounds of text, the two tokens at the end.
    Glm1 { suffix: [u32; 2] },
    /// ChatGLM2: rounds of text, the two tokens at the beginning.
    Glm2 { prefix: [u32; 2] },
    /// ChatGLM3 and GLM-4: a token for each role.
    Glm3 { prefix: [u32; 2], roles: [u32; 4] },
    /// Baichuan 1 and 2: a reserved token for each of two roles.
    Baichuan { user: u32, assistant: u32 },
    /// Llama 2: `[INST]` as text, each round between the tokens for begin and end.
    Llama2 { bos: u32, eos: u32 },
    /// Mistral and Mixtral: `[INST]` as text, or as a token where the vocabulary has it.
    Mistral { bos: u32, eos: u32, inst: Option<[u32; 2]> },
    /// DeepSeek LLM: `User: ` and `Assistant: ` as text.
    DeepSeek { bos: u32, eos: u32 },
}

/// A question and perhaps its answer.
type Round<'a> = (&'a str, Option<&'a str>);

/// Roles of ChatGLM3 and GLM-4, in the order of their ids in [`Native::Glm3`].
const GLM_ROLES: [&str; 4] = ["system", "user", "assistant", "observation"];

/// Which format a model without a template wants, if any.
pub(crate) fn detect(source: &ChatSource<'_>, tokenizer: &Tokenizer) -> Option<Native> {
    let field = |name: &str| source.config.get(name).and_then(Value::as_str).unwrap_or_default();
    let model = field("model_type").to_ascii_lowercase();
    // The folder of a downloaded model is named after a commit; its id is further up.
    let folders = source.dir.iter().rev().take(3).map(|name| name.to_string_lossy());
    let named = |words: &str| {
        let names = [source.name, field("_name_or_path"), tokenizer.origin()];
        let mut names = names.iter().map(|name| (*name).into()).chain(folders.clone());
        names.any(|name| name.to_ascii_lowercase().contains(words))
    };
    let id = |token: &str| tokenizer.id(token).ok();
    let pair = |a: &str, b: &str| Some([id(a)?, id(b)?]);
    let bos = tokenizer.special().bos.as_ref().map(|token| token.id);
    let frame = || Some((bos?, tokenizer.special().eos.as_ref()?.id));

    match model.as_str() {
        "chatglm" | "glm" | "glm4" => glm(tokenizer, named("chatglm2")),
        "baichuan" => baichuan(source, named("chat"), tokenizer),
        _ => {
            if let Some([start, end]) = pair("<|im_start|>", "<|im_end|>") {
                let qwen = model.starts_with("qwen") && !model.starts_with("qwen3");
                return Some(Native::ChatMl {
                    start,
                    end,
                    bos: bos.filter(|_| model.starts_with("internlm")),
                    system: qwen.then_some("You are a helpful assistant."),
                    apart: model == "qwen",
                });
            }
            let (bos, eos) = frame()?;
            match model.as_str() {
                "llama" if id("<｜begin▁of▁sentence｜>") == Some(bos) && named("chat") => {
                    Some(Native::DeepSeek { bos, eos })
                }
                "llama" if (named("llama-2") || named("llama2")) && named("chat") => {
                    Some(Native::Llama2 { bos, eos })
                }
                "mistral" | "mixtral" if named("instruct") => {
                    Some(Native::Mistral { bos, eos, inst: pair("[INST]", "[/INST]") })
                }
                _ => None,
            }
        }
    }
}

fn glm(tokenizer: &Tokenizer, second: bool) -> Option<Native> {
    let id = |token: &str| tokenizer.id(token).ok();
    let roles = || Some([id("<|system|>")?, id("<|user|>")?, id("<|assistant|>")?, id("<|observation|>")?]);
    let mask = id("[gMASK]")?;
    match (id("sop"), id("<sop>")) {
        // ChatGLM2 and ChatGLM3 differ in nothing but their names: the same file, the same sizes.
        (Some(sop), _) => match roles().filter(|_| !second) {
            Some(roles) => Some(Native::Glm3 { prefix: [mask, sop], roles }),
            None => Some(Native::Glm2 { prefix: [mask, sop] }),
        },
        (None, Some(sop)) => match roles() {
            Some(roles) => Some(Native::Glm3 { prefix: [mask, sop], roles }),
            None => Some(Native::Glm1 { suffix: [mask, sop] }),
        },
        (None, None) => None,
    }
}

/// The chat models say in `generation_config.json` which ids stand for whom.
fn baichuan(source: &ChatSource<'_>, chat: bool, tokenizer: &Tokenizer) -> Option<Native> {
    let said = |name: &str| {
        let id = source.generation_config?.get(name)?.as_u64()?;
        u32::try_from(id).ok().filter(|id| (*id as usize) < tokenizer.vocab_size())
    };
    if let (Some(user), Some(assistant)) = (said("user_token_id"), said("assistant_token_id")) {
        return Some(Native::Baichuan { user, assistant });
    }
    // All published vocabularies have them at these ids.
    let reserved = |id: &u32| tokenizer.token(*id).is_some_and(|token| token.starts_with("<reserved_"));
    let (user, assistant) = (Some(195).filter(reserved)?, Some(196).filter(reserved)?);
    chat.then_some(Native::Baichuan { user, assistant })
}

impl Native {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Native::ChatMl { .. } => "ChatML",
            Native::Glm1 { .. } => "ChatGLM-6B",
            Native::Glm2 { .. } => "ChatGLM2",
            Native::Glm3 { .. } => "ChatGLM3/GLM-4",
            Native::Baichuan { .. } => "Baichuan",
            Native::Llama2 { .. } => "Llama 2",
            Native::Mistral { .. } => "Mistral",
            Native::DeepSeek { .. } => "DeepSeek LLM",
        }
    }

    /// Ids that end an answer beside what follows it in a conversation.
    pub(crate) fn stops(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        match self {
            Native::ChatMl { start, .. } => {
                [Some(*start), tokenizer.id("<|endoftext|>").ok()].into_iter().flatten().collect()
            }
            Native::Glm3 { roles: [_, user, _, observation], .. } => {
                let end = tokenizer.id("<|endoftext|>").ok();
                [Some(*user), Some(*observation), end].into_iter().flatten().collect()
            }
            Native::Glm1 { .. } => tokenizer.id("<eop>").into_iter().collect(),
            _ => Vec::new(),
        }
    }

    /// The prompt in parts.
    pub(crate) fn parts(&self, chat: &Chat<'_>) -> Result<Vec<Part>> {
        if chat.tools.is_some() || chat.documents.is_some() {
            return Err(self.refuse("it has no place for tools or documents"));
        }
        let said = Said::read(chat.messages)?;
        if said.is_empty() {
            return Err(self.refuse("there are none"));
        }
        let more = chat.add_generation_prompt;
        let mut parts = Parts::default();
        match self {
            Native::ChatMl { start, end, bos, system, apart } => {
                if let Some(bos) = bos {
                    parts.token(*bos);
                }
                let default = system.filter(|_| said[0].role != "system");
                let default = default.map(|text| ("system", text));
                let turns = said.iter().map(|said| (said.role.as_str(), said.content.as_str()));
                for (role, content) in default.into_iter().chain(turns) {
                    parts.token(*start);
                    match apart {
                        true => parts.text(role).text("\n").text(content),
                        false => parts.text(format!("{role}\n{content}")),
                    };
                    parts.token(*end).text("\n");
                }
                if more {
                    parts.token(*start);
                    match apart {
                        true => parts.text("assistant").text("\n"),
                        false => parts.text("assistant\n"),
                    };
                }
            }
            Native::Glm1 { suffix: [mask, sop] } => {
                parts.text(self.glm1(&said, more)?).token(*mask).token(*sop);
            }
            Native::Glm2 { prefix: [mask, sop] } => {
                parts.token(*mask).token(*sop).text(self.glm2(&said, more)?);
            }
            Native::Glm3 { prefix: [mask, sop], roles } => {
                parts.token(*mask).token(*sop);
                for Said { role, content } in &said {
                    let known = if role == "tool" { "observation" } else { role };
                    let place = GLM_ROLES.iter().position(|name| *name == known);
                    let place = place.ok_or_else(|| self.unknown_role(role))?;
                    parts.token(roles[place]).text("\n").text(content);
                }
                if more {
                    parts.token(roles[2]);
                }
            }
            Native::Baichuan { user, assistant } => {
                for (i, Said { role, content }) in said.iter().enumerate() {
                    match role.as_str() {
                        "system" if i == 0 => parts.text(content),
                        "user" => parts.token(*user).text(content),
                        "assistant" => parts.token(*assistant).text(content),
                        _ => return Err(self.unknown_role(role)),
                    };
                }
                // An answer that was begun is continued.
                if more && said.last().is_none_or(|last| last.role != "assistant") {
                    parts.token(*assistant);
                }
            }
            Native::Llama2 { bos, eos } => {
                let (system, rounds) = self.rounds(&said)?;
                for (i, (question, answer)) in rounds.iter().enumerate() {
                    let question = match system.filter(|_| i == 0) {
                        Some(system) => format!("<<SYS>>\n{system}\n<</SYS>>\n\n{question}"),
                        None => (*question).to_owned(),
                    };
                    let question = format!("[INST] {} [/INST]", question.trim());
                    parts.token(*bos);
                    match answer {
                        Some(answer) => parts.text(format!("{question} {} ", answer.trim())).token(*eos),
                        None => parts.text(question),
                    };
                }
            }
            Native::Mistral { bos, eos, inst } => {
                let (system, rounds) = self.rounds(&said)?;
                parts.token(*bos);
                // Before the first question; the versions with tokens of their own put it before the last.
                let at = if inst.is_some() { rounds.len() - 1 } else { 0 };
                for (i, (question, answer)) in rounds.iter().enumerate() {
                    let question = match system.filter(|_| i == at) {
                        Some(system) => format!("{system}\n\n{question}"),
                        None => (*question).to_owned(),
                    };
                    match inst {
                        Some([open, close]) => parts.token(*open).text(question).token(*close),
                        None => parts.text(format!("[INST] {question} [/INST]")),
                    };
                    if let Some(answer) = answer {
                        parts.text(*answer).token(*eos);
                    }
                }
            }
            Native::DeepSeek { bos, eos } => {
                parts.token(*bos);
                let mut text = String::new();
                for (i, Said { role, content }) in said.iter().enumerate() {
                    match role.as_str() {
                        "system" if i == 0 => text.push_str(&format!("{content}\n\n")),
                        "user" => text.push_str(&format!("User: {content}\n\n")),
                        "assistant" => {
                            text.push_str(&format!("Assistant: {content}"));
                            parts.text(std::mem::take(&mut text)).token(*eos);
                        }
                        _ => return Err(self.unknown_role(role)),
                    }
                }
                if more {
                    text.push_str("Assistant:");
                }
                parts.text(text);
            }
        }
        Ok(parts.0)
    }

    fn glm1(&self, said: &[Said], more: bool) -> Result<String> {
        let (system, rounds) = self.rounds(said)?;
        self.no_system(system)?;
        // A first question goes as it is.
        if let [(question, None)] = rounds.as_slice() {
            return Ok((*question).to_owned());
        }
        let mut text = String::new();
        for (i, (question, answer)) in rounds.iter().enumerate() {
            text.push_str(&format!("[Round {i}]\n问：{question}\n"));
            match answer {
                Some(answer) => text.push_str(&format!("答：{answer}\n")),
                None if more => text.push_str("答："),
                None => {}
            }
        }
        Ok(text)
    }

    fn glm2(&self, said: &[Said], more: bool) -> Result<String> {
        let (system, rounds) = self.rounds(said)?;
        self.no_system(system)?;
        let mut text = String::new();
        for (i, (question, answer)) in rounds.iter().enumerate() {
            text.push_str(&format!("[Round {}]\n\n问：{question}\n\n", i + 1));
            match answer {
                Some(answer) => text.push_str(&format!("答：{answer}\n\n")),
                None if more => text.push_str("答："),
                None => {}
            }
        }
        Ok(text)
    }

    /// The system message, and each question with its answer; the last may have none yet.
    fn rounds<'a>(&self, said: &'a [Said]) -> Result<(Option<&'a str>, Vec<Round<'a>>)> {
        let (system, said) = match said.split_first() {
            Some((first, rest)) if first.role == "system" => (Some(first.content.as_str()), rest),
            _ => (None, said),
        };
        if let Some(other) = said.iter().find(|one| !["user", "assistant"].contains(&one.role.as_str())) {
            return Err(self.unknown_role(&other.role));
        }
        let wanted = |i: usize| if i.is_multiple_of(2) { "user" } else { "assistant" };
        if said.is_empty() || said.iter().enumerate().any(|(i, one)| one.role != wanted(i)) {
            return Err(self.refuse("user and assistant should take turns, the user first"));
        }
        let round = |round: &'a [Said]| (round[0].content.as_str(), round.get(1).map(|a| a.content.as_str()));
        Ok((system, said.chunks(2).map(round).collect()))
    }

    fn no_system(&self, system: Option<&str>) -> Result<()> {
        match system {
            Some(_) => Err(self.refuse("it has no system message: say it in the first question")),
            None => Ok(()),
        }
    }

    fn unknown_role(&self, role: &str) -> Error {
        self.refuse(&format!("it has no place for the role {role:?} here"))
    }

    fn refuse(&self, what: &str) -> Error {
        Error::Refused { message: format!("{} format: {what}", self.name()) }
    }
}

/// Parts of a prompt, one after the other.
#[derive(Default)]
struct Parts(Vec<Part>);

impl Parts {
    fn token(&mut self, id: u32) -> &mut Self {
        self.0.push(Part::Token(id));
        self
    }

    fn text(&mut self, text: impl Into<String>) -> &mut Self {
        let text = text.into();
        if !text.is_empty() {
            self.0.push(Part::Text(text));
        }
        self
    }
}
