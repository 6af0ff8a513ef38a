"""GGUF files: made from a Hugging Face folder, measured, and turned back into plain numbers."""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

# llama.cpp knows how texts are cut into words by name alone, and refuses names that it does not know. Whether this one
# gives the ids of the folder's own tokenizer is for `tools.check_ids` to find out.
PRE_TOKENIZER = "gpt-2"

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tensors(folder):
    """Name and numbers of every tensor of a folder, widened from what a file holds to float32."""
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise SystemExit(f"{folder}: no .safetensors files")
    for file in files:
        # Torch is not needed for float16 and float32; NumPy has no bfloat16, so its bits are widened here.
        with open(file, "rb") as raw:
            head = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(head))
        with safe_open(file, framework="np") as opened:
            for name in sorted(name for name in header if name != "__metadata__"):
                entry = header[name]
                if entry["dtype"] == "BF16":
                    begin, end = entry["data_offsets"]
                    bits = np.fromfile(file, np.uint16, (end - begin) // 2, offset=8 + head + begin)
                    numbers = (bits.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])
                else:
                    numbers = opened.get_tensor(name).astype(np.float32)
                yield name, numbers


def count_weights(folder, tied):
    """All numbers of a model. A head that is the embedding is counted once, even if a file has it twice."""
    return sum(x.size for name, x in tensors(folder) if not (tied and name == "lm_head.weight"))


def gguf_name(name):
    if name in NAMES:
        return NAMES[name]
    parts = name.split(".", 3)
    if parts[:2] == ["model", "layers"] and parts[3].endswith(".weight"):
        part = LAYER_NAMES.get(parts[3].removesuffix(".weight"))
        if part:
            return f"blk.{parts[2]}.{part}.weight"
    raise SystemExit(f"{name}: expected a tensor of a Llama model without biases")


def pairs_side_by_side(rows, heads):
    """Rows of queries or keys in llama.cpp's order: the two numbers that are turned together are neighbours."""
    width = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, width, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def from_folder(folder, path):
    """Writes the model of a folder as a GGUF file with float16 matrices and float32 vectors."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    if config.get("architectures") != ["LlamaForCausalLM"]:
        raise SystemExit(f"{folder}: expected LlamaForCausalLM, found {config.get('architectures')}")
    if config.get("rope_scaling"):
        raise SystemExit(f"{folder}: rope_scaling {config['rope_scaling']} is not converted by this script")
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    head_dim = config.get("head_dim") or config["hidden_size"] // heads

    out = gguf.GGUFWriter(str(path), "llama")
    out.add_name(folder.name)
    out.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    out.add_block_count(config["num_hidden_layers"])
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(heads)
    out.add_head_count_kv(kv_heads)
    out.add_key_length(head_dim)
    out.add_value_length(head_dim)
    out.add_rope_dimension_count(head_dim)
    out.add_rope_freq_base(config.get("rope_theta", 10000.0))
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_vocab_size(config["vocab_size"])
    vocabulary(folder, config, out)
    for name, numbers in tensors(folder):
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        if name.endswith("q_proj.weight"):
            numbers = pairs_side_by_side(numbers, heads)
        elif name.endswith("k_proj.weight"):
            numbers = pairs_side_by_side(numbers, kv_heads)
        kind = np.float32 if numbers.ndim == 1 else np.float16
        out.add_tensor(gguf_name(name), np.ascontiguousarray(numbers, kind))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def vocabulary(folder, config, out):
    """The byte-level BPE vocabulary of a folder's tokenizer.json."""
    file = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    model = file["model"]
    if model["type"] != "BPE" or "ByteLevel" not in json.dumps(file["pre_tokenizer"]):
        raise SystemExit(f"{folder}/tokenizer.json: expected a byte-level BPE vocabulary")
    if file.get("normalizer"):
        raise SystemExit(f"{folder}/tokenizer.json: normalizers are not converted by this script")
    tokens = [f"[PAD{id}]" for id in range(config["vocab_size"])]
    types = [gguf.TokenType.UNUSED] * len(tokens)
    for token, id in model["vocab"].items():
        tokens[id], types[id] = token, gguf.TokenType.NORMAL
    for token in file["added_tokens"]:
        special = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
        tokens[token["id"]], types[token["id"]] = token["content"], special
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(PRE_TOKENIZER)
    out.add_token_list(tokens)
    out.add_token_types(types)
    out.add_token_merges([" ".join(pair) for pair in pairs])
    ends = config.get("eos_token_id")
    for id, add in [
        (config.get("bos_token_id"), out.add_bos_token_id),
        (ends[0] if isinstance(ends, list) else ends, out.add_eos_token_id),
    ]:
        if id is not None:
            add(id)
    out.add_add_bos_token(settings.get("add_bos_token", False))
    out.add_add_eos_token(settings.get("add_eos_token", False))


def sizes(path):
    """Bytes of all tensors of a file, and how many tensors there are of each type."""
    kinds, total = {}, 0
    for tensor in gguf.GGUFReader(str(path)).tensors:
        total += int(tensor.n_bytes)
        kinds[tensor.tensor_type.name] = kinds.get(tensor.tensor_type.name, 0) + 1
    return total, kinds


def halves_apart(rows, heads):
    """Undoes `pairs_side_by_side`."""
    width = rows.shape[0] // heads // 2
    return rows.reshape(heads, width, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def to_folder(path, original, to):
    """Writes the numbers that a quantised file stands for, as the `gguf` package reads them, as a float32 folder.

    It has the original's configuration and tokenizer, so that its tokens are the original's.
    """
    config = json.loads((original / "config.json").read_text("utf-8"))
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    names = {gguf_name(name): name for name, _ in tensors(original)}
    found = {}
    for tensor in gguf.GGUFReader(str(path)).tensors:
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        numbers = np.asarray(numbers, np.float32).reshape([int(n) for n in reversed(tensor.shape)])
        name = names[tensor.name]
        if name.endswith("q_proj.weight"):
            numbers = halves_apart(numbers, heads)
        elif name.endswith("k_proj.weight"):
            numbers = halves_apart(numbers, kv_heads)
        found[name] = np.ascontiguousarray(numbers)
    to.mkdir(parents=True, exist_ok=True)
    save_file(found, to / "model.safetensors")
    config["torch_dtype"] = "float32"
    (to / "config.json").write_text(json.dumps(config), "utf-8")
    for file in original.glob("tokenizer*"):
        shutil.copyfile(file, to / file.name)
