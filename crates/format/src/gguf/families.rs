//! Which Hugging Face architecture a GGUF file's model is.

use super::Gguf;
use super::config::Keys;
use super::names::{self, Names};
use crate::Result;

/// A family whose files can be shown as a Hugging Face checkpoint.
#[derive(Debug)]
pub(super) struct Family {
    /// The name for `architectures`.
    pub(super) hf: &'static str,
    /// The name for `model_type`.
    pub(super) model_type: &'static str,
    pub(super) names: &'static Names,
    /// Whether the rows of queries and keys (and their biases) stand in another order than in the
    /// checkpoint that the file was made from, so that rotary embedding turns neighbours.
    pub(super) interleaved: bool,
    /// How its configuration differs from Llama's.
    pub(super) spelling: Spelling,
}

/// How the configuration of a family is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// As Llama's.
    Llama,
    /// With Mixtral's experts.
    Mixtral,
    /// With Qwen's experts; whether the weights of the chosen ones are made to add up to 1.
    QwenExperts(bool),
    /// With Gemma 2's caps and windows.
    Gemma2,
    /// With Gemma 3's windows.
    Gemma3,
    /// In words of its own.
    ChatGlm,
    /// In words of its own.
    Qwen1,
}

const fn family(
    hf: &'static str,
    model_type: &'static str,
    names: &'static Names,
    spelling: Spelling,
) -> Family {
    Family { hf, model_type, names, interleaved: false, spelling }
}

/// Families whose tensors are Llama's after conversion (fused ones are taken apart there), in its order.
const LLAMA: Family =
    Family { interleaved: true, ..family("LlamaForCausalLM", "llama", &names::LLAMA, Spelling::Llama) };
/// Llama with a window. Other converters do not write one.
const MISTRAL: Family =
    Family { interleaved: true, ..family("MistralForCausalLM", "mistral", &names::LLAMA, Spelling::Llama) };
const MIXTRAL: Family = Family {
    interleaved: true,
    ..family("MixtralForCausalLM", "mixtral", &names::MIXTRAL, Spelling::Mixtral)
};
const QWEN1: Family = family("QWenLMHeadModel", "qwen", &names::QWEN1, Spelling::Qwen1);
const QWEN2: Family = family("Qwen2ForCausalLM", "qwen2", &names::LLAMA, Spelling::Llama);
const QWEN3: Family = family("Qwen3ForCausalLM", "qwen3", &names::QWEN3, Spelling::Llama);
const QWEN2_MOE: Family =
    family("Qwen2MoeForCausalLM", "qwen2_moe", &names::QWEN2_MOE, Spelling::QwenExperts(false));
const QWEN3_MOE: Family =
    family("Qwen3MoeForCausalLM", "qwen3_moe", &names::QWEN3_MOE, Spelling::QwenExperts(true));
const PHI3: Family = family("Phi3ForCausalLM", "phi3", &names::PHI3, Spelling::Llama);
const GEMMA2: Family = family("Gemma2ForCausalLM", "gemma2", &names::GEMMA2, Spelling::Gemma2);
const GEMMA3: Family = family("Gemma3ForCausalLM", "gemma3_text", &names::GEMMA3, Spelling::Gemma3);
const CHATGLM: Family = family("ChatGLMModel", "chatglm", &names::CHATGLM, Spelling::ChatGlm);
const GLM: Family = family("GlmForCausalLM", "glm", &names::GLM, Spelling::Llama);
const GLM4: Family = family("Glm4ForCausalLM", "glm4", &names::GLM4, Spelling::Llama);

/// The family of a file; `None` for one that is not known, or that has no place among the tensors of its
/// Hugging Face counterpart. `has` says whether there is a tensor of a name.
pub(super) fn find(gguf: &Gguf, has: &dyn Fn(&str) -> bool) -> Result<Option<&'static Family>> {
    let keys = Keys::new(gguf);
    Ok(Some(match keys.arch {
        "llama" if keys.whole("expert_count")?.unwrap_or(0) > 0 => &MIXTRAL,
        "llama" if keys.whole("attention.sliding_window")?.unwrap_or(0) > 0 => &MISTRAL,
        "llama" => &LLAMA,
        // The conversion splits `W_pack`; what is left of Baichuan 7B is a Llama. The 13B has no rotary
        // embedding, which its file does not say: other readers know it by its 40 layers.
        "baichuan" if keys.whole("block_count")? == Some(40) => return Ok(None),
        "baichuan" if keys.number("attention.max_alibi_bias")?.unwrap_or(0.0) > 0.0 => return Ok(None),
        "baichuan" | "internlm2" => &LLAMA,
        "qwen" => &QWEN1,
        "qwen2" => &QWEN2,
        "qwen3" => &QWEN3,
        "qwen2moe" => &QWEN2_MOE,
        "qwen3moe" => &QWEN3_MOE,
        "phi3" => &PHI3,
        "gemma2" => &GEMMA2,
        "gemma3" => &GEMMA3,
        "chatglm" if has("blk.0.attn_qkv.weight") => &CHATGLM,
        "chatglm" => &GLM,
        "glm4" => &GLM4,
        _ => return Ok(None),
    }))
}
