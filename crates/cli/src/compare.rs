//! `airllm tokenize --compare`: what a text costs in the tokens of several models.
//!
//! A model larger than memory reads its weights once a token, so for equal speed in tokens the time of a text
//! is its number of tokens: the columns say how many a character takes, in Chinese, in Latin letters and in
//! everything else.

use crate::exit::Result;
use crate::output;
use airllm::{Error, Tokenizer};
use serde::Serialize;
use std::time::{Duration, Instant};

/// What is compared where no text is given.
pub const SAMPLE: &str = "\
清晨的江面上还有一层薄雾，渡口的老人已经把船擦得干干净净。他说，船和人一样，每天都要有点事做，才不会生锈。孩子们背着书包跑下石阶，\
笑声落在水里，惊起两只白鹭。\n\
模型的权重比内存大得多，只能一层一层地从磁盘读入；每生成一个词元，都要把全部权重读一遍。因此，同样一段话用的词元越少，等待的时间就越短。\
2024 年以后训练的词表大多收录了常用的汉字和词语，平均一个词元可以表示一个半到两个汉字。\n\
In the morning there was still a thin mist on the river, and the old ferryman had already scrubbed his boat clean. \
A boat is like a person, he said: it rusts unless it has something to do every day.\n\
The weights are larger than the memory, so they are read from the disk layer by layer, and all of them once for every \
token. The fewer tokens a text takes, the sooner it is written.\n\
fn sum(list: &[u32]) -> u32 { list.iter().copied().sum() } // 1 + 2 + 3 = 6\n";

/// How long encoding is timed.
const TIMED: Duration = Duration::from_millis(200);

/// Kinds of characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Cjk,
    Latin,
    Other,
}

/// Characters and tokens of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Share {
    characters: usize,
    tokens: usize,
    /// `null` where there are no such characters.
    tokens_per_character: Option<f64>,
}

/// One model's cost of the text.
#[derive(Debug, Clone, Serialize)]
pub struct Cost {
    model: String,
    vocabulary: usize,
    characters: usize,
    tokens: usize,
    tokens_per_character: f64,
    cjk: Share,
    latin: Share,
    other: Share,
    /// Seconds for 1,000 characters as a multiple of the best model here, if all made equally many tokens a
    /// second.
    relative_time: f64,
    /// Characters encoded in a second, by one thread.
    characters_per_s: f64,
}

#[derive(Serialize)]
struct Table<'a> {
    compare: &'a [Cost],
}

/// Prints the cost of a text for each model.
pub fn run(models: &[(String, Tokenizer)], text: &str, json: bool) -> Result<()> {
    let cost = |(name, tokenizer): &(String, Tokenizer)| cost(name, tokenizer, text);
    let mut costs = models.iter().map(cost).collect::<Result<Vec<Cost>>>()?;
    let best = costs.iter().map(|cost| cost.tokens).min().unwrap_or_default().max(1);
    costs.iter_mut().for_each(|cost| cost.relative_time = cost.tokens as f64 / best as f64);
    if json {
        return output::json(&Table { compare: &costs });
    }
    let head = ["model", "tokens", "tokens/char", "CJK", "Latin", "other", "time", "chars/s"];
    let number = |number: Option<f64>| number.map_or("-".to_owned(), |n| format!("{n:.2}"));
    let row = |cost: &Cost| {
        vec![
            cost.model.clone(),
            cost.tokens.to_string(),
            number(Some(cost.tokens_per_character)),
            number(cost.cjk.tokens_per_character),
            number(cost.latin.tokens_per_character),
            number(cost.other.tokens_per_character),
            format!("{:.2}x", cost.relative_time),
            format!("{:.0}", cost.characters_per_s),
        ]
    };
    output::text(&output::table(&head, &costs.iter().map(row).collect::<Vec<_>>()))?;
    output::note(&format!(
        "{} characters; time: seconds for 1,000 characters against the best here, if all made as many tokens a second; \
         chars/s: encoding, one thread, caches warm",
        text.chars().count()
    ));
    Ok(())
}

fn cost(name: &str, tokenizer: &Tokenizer, text: &str) -> Result<Cost> {
    let begin = Instant::now();
    let ids = tokenizer.encode_plain(text).map_err(Error::from)?;
    // The first run fills caches; the best of the others is what the tokenizer can do.
    let mut fastest = begin.elapsed();
    while begin.elapsed() < TIMED {
        let start = Instant::now();
        tokenizer.encode_plain(text).map_err(Error::from)?;
        fastest = fastest.min(start.elapsed());
    }
    let [cjk, latin, other] = shares(tokenizer, text, &ids);
    let characters = text.chars().count();
    Ok(Cost {
        model: name.to_owned(),
        vocabulary: tokenizer.vocab_size(),
        characters,
        tokens: ids.len(),
        tokens_per_character: ids.len() as f64 / characters.max(1) as f64,
        cjk,
        latin,
        other,
        relative_time: 1.0,
        characters_per_s: characters as f64 / fastest.as_secs_f64().max(1e-9),
    })
}

/// Characters by kind; and tokens by the kind of the text that they stand for: that of a character with any
/// ideograph, else Latin with any letter. Tokens that are parts of a character count where it is complete.
fn shares(tokenizer: &Tokenizer, text: &str, ids: &[u32]) -> [Share; 3] {
    let mut shares = [Share::default(); 3];
    text.chars().for_each(|c| shares[kind(c) as usize].characters += 1);
    let mut stream = tokenizer.stream(false);
    let (mut waiting, mut last) = (0, Kind::Other);
    for id in ids {
        waiting += 1;
        if let Some(piece) = stream.push(*id) {
            last = piece.chars().map(kind).min_by_key(|kind| *kind as usize).unwrap_or(Kind::Other);
            shares[last as usize].tokens += std::mem::take(&mut waiting);
        }
    }
    let rest = stream.finish().and_then(|rest| rest.chars().map(kind).min_by_key(|kind| *kind as usize));
    shares[rest.unwrap_or(last) as usize].tokens += waiting;
    for share in &mut shares {
        let (tokens, characters) = (share.tokens as f64, share.characters as f64);
        share.tokens_per_character = (share.characters > 0).then(|| tokens / characters);
    }
    shares
}

fn kind(c: char) -> Kind {
    match u32::from(c) {
        // Punctuation and kana; ideographs; Hangul; compatibility and full-width forms; the later planes.
        0x3000..=0x30FF | 0x3400..=0x9FFF | 0xAC00..=0xD7AF | 0xF900..=0xFAFF | 0xFE30..=0xFE4F => Kind::Cjk,
        0xFF00..=0xFFEF | 0x20000..=0x3FFFF => Kind::Cjk,
        // Typographic quotation marks, dashes and dots as Chinese text has them count as other.
        0x0041..=0x005A | 0x0061..=0x007A | 0x00C0..=0x024F | 0x1E00..=0x1EFF => Kind::Latin,
        _ => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer() -> Tokenizer {
        let vocabulary = serde_json::json!({"?": 0, "▁good": 1, "▁day": 2, "▁你好": 3, "▁你": 4, "▁,": 5});
        let space = serde_json::json!(
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
        let file = serde_json::json!({"version": "1.0", "pre_tokenizer": space, "decoder": space,
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "?"}});
        Tokenizer::from_json(file.to_string().as_bytes(), None).unwrap()
    }

    #[test]
    fn tokens_count_for_the_kind_of_their_text() {
        let text = "good day 你好 你 ,";
        let tokenizer = tokenizer();
        let [cjk, latin, other] = shares(&tokenizer, text, &tokenizer.encode_plain(text).unwrap());
        assert_eq!((cjk.characters, cjk.tokens), (3, 2));
        assert_eq!((latin.characters, latin.tokens), (7, 2));
        assert_eq!((other.characters, other.tokens), (5, 1));
        assert_eq!(latin.tokens_per_character, Some(2.0 / 7.0));
        let [none, ..] = shares(&tokenizer, "good", &[1]);
        assert_eq!(none.tokens_per_character, None);
    }

    #[test]
    fn kinds() {
        for (c, expected) in [('诗', Kind::Cjk), ('，', Kind::Cjk), ('한', Kind::Cjk), ('é', Kind::Latin)]
        {
            assert_eq!(kind(c), expected, "{c}");
        }
        assert_eq!([kind('1'), kind(' '), kind('ж')], [Kind::Other; 3]);
    }
}
