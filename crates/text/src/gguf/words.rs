//! The rules by which byte-level vocabularies cut a text into words, by the names that GGUF files give them.
//!
//! The expressions are those of the tokenizers that the names stand for (their `tokenizer.json`), not the forms
//! that other readers have made of them for lack of a full regex engine.

use serde_json::{Value, json};

/// A rule.
#[derive(Debug)]
pub(super) struct Rule {
    names: &'static [&'static str],
    /// Each cuts what the ones before it have left.
    expressions: &'static [&'static str],
    /// Whether characters are composed first (NFC).
    pub(super) composes: bool,
    /// Whether a word that is in the vocabulary is taken whole, whatever the merges say.
    pub(super) whole_words: bool,
    /// Whether a token for the beginning is put before a text where the file does not say.
    pub(super) begins: bool,
    /// Whether `[gMASK]` and `<sop>` are what begins a text.
    pub(super) glm: bool,
}

const PLAIN: Rule =
    Rule { names: &[], expressions: &[], composes: false, whole_words: false, begins: false, glm: false };

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const UP_TO_THREE_DIGITS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const ONE_DIGIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The letters with upper and lower case, as DeepSeek's list has them.
const DEEPSEEK_LETTERS: &str = "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u{1F7D}ᾀ-ᾴᾶ-ᾼ\u{1FBE}ῂ-ῄῆ-ῌῐ-\u{1FD3}ῖ-\u{1FDB}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u{2126}ℨ\u{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";

const RULES: [Rule; 8] = [
    // What files have that were made before there were names.
    Rule {
        names: &["default"],
        expressions: &[
            r"[\p{P}\$\+<=>\^~\|]+",
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
            r"\p{N}+",
            "[0-9][0-9][0-9]",
        ],
        ..PLAIN
    },
    Rule { names: &["gpt-2"], expressions: &[GPT2], ..PLAIN },
    Rule {
        names: &["llama-bpe", "llama3", "llama-v3"],
        expressions: &[UP_TO_THREE_DIGITS],
        whole_words: true,
        begins: true,
        ..PLAIN
    },
    Rule { names: &["qwen2", "deepseek-r1-qwen"], expressions: &[ONE_DIGIT], composes: true, ..PLAIN },
    Rule { names: &["chatglm-bpe", "glm4"], expressions: &[UP_TO_THREE_DIGITS], glm: true, ..PLAIN },
    Rule { names: &["tekken"], expressions: &[TEKKEN], whole_words: true, begins: true, ..PLAIN },
    Rule {
        names: &["deepseek-llm"],
        expressions: &[
            "[\r\n]",
            DEEPSEEK_LETTERS,
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            "[一-龥ࠀ-一가-\u{D7FF}]+",
            r"\p{N}",
        ],
        ..PLAIN
    },
    Rule {
        names: &["deepseek-v3"],
        expressions: &[
            r"\p{N}{1,3}",
            "[一-龥\u{3040}-ゟ゠-ヿ]+",
            r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
        ],
        ..PLAIN
    },
];

impl Rule {
    /// The rule of that name.
    pub(super) fn find(name: &str) -> Option<&'static Self> {
        RULES.iter().find(|rule| rule.names.contains(&name))
    }

    /// The names that are known.
    pub(super) fn names() -> Vec<&'static str> {
        RULES.iter().flat_map(|rule| rule.names).copied().collect()
    }

    /// As `tokenizer.json` has it.
    pub(super) fn pre_tokenizer(&self) -> Value {
        let cut = |expression: &&str| json!({ "type": "Split", "pattern": { "Regex": expression }, "behavior": "Isolated", "invert": false });
        let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
        let steps: Vec<Value> = self.expressions.iter().map(cut).chain([bytes]).collect();
        json!({ "type": "Sequence", "pretokenizers": steps })
    }
}
