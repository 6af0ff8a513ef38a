//! Ids that come one by one.

use std::time::{Duration, Instant};

use airllm_text::Tokenizer;
use proptest::prelude::*;

use crate::common::data;

fn tokenizers() -> Vec<Tokenizer> {
    let open = |file: &str| Tokenizer::open_file(data().join(file)).unwrap();
    vec![
        open("tiny-llama2/tokenizer.json"),
        open("tiny-llama2/tokenizer.model"),
        open("tiny-llama3/tokenizer.json"),
        open("tiny-qwen2/tokenizer.json"),
    ]
}

fn pieces(tokenizer: &Tokenizer, ids: &[u32], skip: bool) -> Vec<String> {
    let mut stream = tokenizer.stream(skip);
    let mut pieces: Vec<String> = ids.iter().filter_map(|id| stream.push(*id)).collect();
    pieces.extend(stream.finish());
    pieces
}

#[test]
fn any_ids() {
    let tokenizers = tokenizers();
    // The library's own decode, of the same files.
    let oracles: Vec<_> = ["tiny-llama2", "tiny-llama3", "tiny-qwen2"]
        .map(|name| tokenizers::Tokenizer::from_file(data().join(name).join("tokenizer.json")).unwrap())
        .into();
    let oracle_of = [Some(0), None, Some(1), Some(2)];
    proptest!(|(ids in prop::collection::vec(prop_oneof![0u32..300, 0u32..2020, 258u32..262], 0..40), skip in any::<bool>())| {
        for (tokenizer, oracle) in tokenizers.iter().zip(oracle_of) {
            let pieces = pieces(tokenizer, &ids, skip);
            prop_assert!(pieces.iter().all(|piece| !piece.is_empty()));
            prop_assert_eq!(pieces.concat(), tokenizer.decode(&ids, skip));
            if let Some(oracle) = oracle {
                prop_assert_eq!(pieces.concat(), oracles[oracle].decode(&ids, skip).unwrap());
            }
        }
    });
}

#[test]
fn any_text() {
    let tokenizers = tokenizers();
    proptest!(|(text in "[ a-z你好世界🙂é\n<>|]{0,40}")| {
        for tokenizer in &tokenizers {
            let ids = tokenizer.encode_plain(&text).unwrap();
            prop_assert_eq!(tokenizer.decode(&ids, false), text.clone());
            prop_assert_eq!(pieces(tokenizer, &ids, true).concat(), text.clone());
        }
    });
}

#[test]
fn text_is_given_as_soon_as_it_is_certain() {
    for tokenizer in tokenizers() {
        let ids = tokenizer.encode("The road is long. And so on.", false).unwrap();
        let mut stream = tokenizer.stream(true);
        // Plain words need no waiting at all, the blank before the first one apart.
        for (i, id) in ids.iter().enumerate() {
            let piece = stream.push(*id);
            assert!(piece.is_some() || i == 0, "{tokenizer:?}: nothing for id {id} at {i}");
        }
        assert_eq!(stream.finish(), None);
    }
}

#[test]
fn the_first_words_blank_is_the_encoders() {
    for tokenizer in &tokenizers()[..2] {
        let ids = tokenizer.encode(" two words", false).unwrap();
        assert_eq!(pieces(tokenizer, &ids, true).concat(), " two words");
        let ids = tokenizer.encode("two words", true).unwrap();
        assert_eq!(pieces(tokenizer, &ids, true).concat(), "two words");
    }
}

#[test]
fn an_unfinished_character_ends_as_in_the_full_decode() {
    for tokenizer in tokenizers() {
        let ids = tokenizer.encode_plain("x🙂").unwrap();
        for cut in 1..ids.len() {
            let pieces = pieces(&tokenizer, &ids[..cut], false);
            assert_eq!(pieces.concat(), tokenizer.decode(&ids[..cut], false));
        }
    }
}

#[test]
fn time_is_linear() {
    for tokenizer in tokenizers() {
        let words = tokenizer.encode_plain("春眠不觉晓 🙂 and then ").unwrap();
        let run = |count: usize| {
            let begun = Instant::now();
            let mut stream = tokenizer.stream(true);
            let mut length = 0;
            for id in words.iter().cycle().take(count) {
                length += stream.push(*id).map_or(0, |piece| piece.len());
            }
            length += stream.finish().map_or(0, |piece| piece.len());
            assert!(length > count / 4);
            begun.elapsed()
        };
        run(1000);
        // Eight times the ids in much less than 64 times the time, whatever else the machine does.
        let fastest = |count| (0..3).map(|_| run(count)).min().unwrap();
        let (short, long) = (fastest(5_000), fastest(40_000));
        assert!(long < short * 30 + Duration::from_millis(50), "{tokenizer:?}: {short:?}, {long:?}");
    }
}
