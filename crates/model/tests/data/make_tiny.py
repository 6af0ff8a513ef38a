#!/usr/bin/env python3
"""Makes the two tiny checkpoints beside it, with what a plain Llama in double precision says of them.

    python3 make_tiny.py                 writes tiny_yarn_bias/ and tiny_dynamic_tied/
    python3 make_tiny.py --check DIR...  compares the same code with other fixtures' goldens

Nothing but the standard library, no speed, no tricks: it is what the Rust forward is compared with. The
form of the golden tensors is that of the reference fixtures, which were made with transformers.
"""

import array
import json
import math
import os
import random
import struct
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


# --- safetensors ---------------------------------------------------------------------------------


def half_to_float(bits):
    return struct.unpack("<e", struct.pack("<H", bits))[0]


def bf16_to_float(bits):
    return struct.unpack("<f", struct.pack("<I", bits << 16))[0]


def read_safetensors(path):
    """Name -> (shape, flat list of numbers)."""
    data = open(path, "rb").read()
    (size,) = struct.unpack("<Q", data[:8])
    header, data = json.loads(data[8 : 8 + size]), data[8 + size :]
    out = {}
    for name, info in header.items():
        if name == "__metadata__":
            continue
        raw = data[slice(*info["data_offsets"])]
        kind = info["dtype"]
        if kind in ("F16", "BF16"):
            widen = half_to_float if kind == "F16" else bf16_to_float
            values = [widen(b) for b in array.array("H", raw)]
        else:
            values = list(array.array({"F32": "f", "I64": "q"}[kind], raw))
        out[name] = (info["shape"], values)
    return out


def write_safetensors(path, tensors):
    """`tensors`: name -> (dtype, shape, values)."""
    header, data = {}, b""
    for name, (kind, shape, values) in tensors.items():
        if kind == "BF16":
            # The values were rounded to bf16 before, so the low half is zero.
            raw = b"".join(struct.pack("<f", v)[2:] for v in values)
        else:
            code = {"F16": "e", "F32": "f", "I64": "q"}[kind]
            raw = struct.pack(f"<{len(values)}{code}", *values)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


# --- the model -----------------------------------------------------------------------------------


def inverse_frequencies(config, dim, length):
    """(frequencies, attention factor) at a total length."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    theta = scaling.get("rope_theta", config.get("rope_theta", 10000.0))
    positions = config.get("max_position_embeddings", 2048)
    original = scaling.get("original_max_position_embeddings", positions)
    if kind == "dynamic" and length > positions:
        factor = scaling["factor"]
        theta *= (factor * length / positions - (factor - 1)) ** (dim / (dim - 2))
    plain = [theta ** (-2 * i / dim) for i in range(dim // 2)]
    if kind in ("default", "dynamic"):
        return plain, 1.0
    factor = scaling["factor"]
    if kind == "linear":
        return [f / factor for f in plain], 1.0
    if kind == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        out = []
        for f in plain:
            wave = 2 * math.pi / f
            blend = (original / wave - low) / (high - low)
            out.append(f * min(1, max(0, blend)) + f / factor * (1 - min(1, max(0, blend))))
        return out, 1.0
    assert kind == "yarn", kind

    def dimension(turns):
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dimension(scaling.get("beta_fast", 32))), 0)
    high = min(math.ceil(dimension(scaling.get("beta_slow", 1))), dim - 1)
    high += 0.001 if low == high else 0
    divided = [min(1, max(0, (i - low) / (high - low))) for i in range(dim // 2)]
    freqs = [f / factor * d + f * (1 - d) for f, d in zip(plain, divided)]
    return freqs, scaling.get("attention_factor") or 0.1 * math.log(factor) + 1


class Llama:
    """One sequence at a time; `keys` and `values` are its cache."""

    def __init__(self, config, weights):
        self.config, self.weights = config, weights
        self.hidden, self.heads = config["hidden_size"], config["num_attention_heads"]
        self.kv_heads = config.get("num_key_value_heads", self.heads)
        self.dim = config.get("head_dim") or self.hidden // self.heads
        self.layers = config["num_hidden_layers"]
        self.reset()

    def reset(self):
        self.keys = [[] for _ in range(self.layers)]
        self.values = [[] for _ in range(self.layers)]
        self.freqs = {}

    def linear(self, name, x):
        (rows, cols), w = self.weights[name + ".weight"]
        y = [math.sumprod(x, w[r * cols : (r + 1) * cols]) if hasattr(math, "sumprod")
             else sum(map(float.__mul__, x, w[r * cols : (r + 1) * cols])) for r in range(rows)]
        bias = self.weights.get(name + ".bias")
        return [a + b for a, b in zip(y, bias[1])] if bias else y

    def norm(self, name, x):
        scale = 1 / math.sqrt(sum(v * v for v in x) / len(x) + self.config["rms_norm_eps"])
        return [v * scale * w for v, w in zip(x, self.weights[name + ".weight"][1])]

    def turn(self, x, position, length):
        half = self.dim // 2
        if length not in self.freqs:
            self.freqs[length] = inverse_frequencies(self.config, self.dim, length)
        freqs, factor = self.freqs[length]
        out = []
        for head in range(0, len(x), self.dim):
            a, b = x[head : head + half], x[head + half : head + self.dim]
            cos = [math.cos(position * f) * factor for f in freqs]
            sin = [math.sin(position * f) * factor for f in freqs]
            out += [p * c - q * s for p, q, c, s in zip(a, b, cos, sin)]
            out += [q * c + p * s for p, q, c, s in zip(a, b, cos, sin)]
        return out

    def step(self, token, length):
        """Runs one token at the end of the sequence; (hidden states, logits)."""
        position = len(self.keys[0])
        h = self.hidden
        x = self.weights["model.embed_tokens.weight"][1][token * h : (token + 1) * h]
        states = [x]
        for layer in range(self.layers):
            at = f"model.layers.{layer}."
            n = self.norm(at + "input_layernorm", x)
            q = self.turn(self.linear(at + "self_attn.q_proj", n), position, length)
            self.keys[layer].append(self.turn(self.linear(at + "self_attn.k_proj", n), position, length))
            self.values[layer].append(self.linear(at + "self_attn.v_proj", n))
            o = self.linear(at + "self_attn.o_proj", self.attend(layer, q))
            x = [a + b for a, b in zip(x, o)]
            n = self.norm(at + "post_attention_layernorm", x)
            gate, up = self.linear(at + "mlp.gate_proj", n), self.linear(at + "mlp.up_proj", n)
            inner = [g / (1 + math.exp(-g)) * u for g, u in zip(gate, up)]
            x = [a + b for a, b in zip(x, self.linear(at + "mlp.down_proj", inner))]
            states.append(x)
        head = "lm_head" if "lm_head.weight" in self.weights else "model.embed_tokens"
        return states, self.linear(head, self.norm("model.norm", x))

    def attend(self, layer, q):
        keys, values, dim = self.keys[layer], self.values[layer], self.dim
        out = []
        for head in range(self.heads):
            kv = slice(head // (self.heads // self.kv_heads) * dim, None)
            kv = slice(kv.start, kv.start + dim)
            query = q[head * dim : (head + 1) * dim]
            scores = [sum(map(float.__mul__, query, k[kv])) / math.sqrt(dim) for k in keys]
            top = max(scores)
            scores = [math.exp(s - top) for s in scores]
            total = sum(scores)
            out += [sum(s * v[kv][i] for s, v in zip(scores, values)) / total for i in range(dim)]
        return out

    def run(self, ids):
        """A whole prompt from an empty cache; lists of (hidden states, logits)."""
        self.reset()
        return [self.step(token, len(ids)) for token in ids]

    def greedy(self, logits, count):
        """Continues what was run last: (ids, logits each was taken from, least margin)."""
        ids, steps, margin = [], [], math.inf
        for _ in range(count):
            best = max(range(len(logits)), key=logits.__getitem__)
            second = max(v for i, v in enumerate(logits) if i != best)
            margin = min(margin, logits[best] - second)
            ids.append(best)
            steps.append(logits)
            # A token generated past the limit of dynamic scaling has the base of its own length.
            _, logits = self.step(best, len(self.keys[0]) + 1)
        return ids, steps, margin


# --- the two checkpoints -------------------------------------------------------------------------

YARN_BIAS = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 32, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False,
    "rope_theta": 1000.0, "eos_token_id": None, "torch_dtype": "bfloat16",
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
                     "beta_fast": 4.0, "beta_slow": 0.5},
}
DYNAMIC_TIED = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "vocab_size": 32, "max_position_embeddings": 12, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True, "eos_token_id": [0, 1], "dtype": "float16",
    "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
}


def make(folder, config, kind, seed):
    rng = random.Random(seed)
    h, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads = config["num_attention_heads"]
    dim = config.get("head_dim", h // heads)
    query, kv = heads * dim, config.get("num_key_value_heads", heads) * dim
    tensors = {}

    def rounded(value):
        if kind == "F16":
            return struct.unpack("<e", struct.pack("<e", value))[0]
        return bf16_to_float(struct.unpack("<I", struct.pack("<f", value))[0] >> 16)

    def matrix(name, rows, cols, bias, scale=1.0):
        values = [rounded(rng.gauss(0, scale / math.sqrt(cols))) for _ in range(rows * cols)]
        tensors[name + ".weight"] = (kind, [rows, cols], values)
        if bias:
            tensors[name + ".bias"] = (kind, [rows], [rounded(rng.gauss(0, 0.3)) for _ in range(rows)])

    def norm(name):
        tensors[name + ".weight"] = (kind, [h], [rounded(rng.uniform(0.6, 1.4)) for _ in range(h)])

    attention, mlp = config.get("attention_bias", False), config.get("mlp_bias", False)
    matrix("model.embed_tokens", vocab, h, False, math.sqrt(h) * 0.6)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        norm(at + "input_layernorm")
        for name, rows, cols in (("q", query, h), ("k", kv, h), ("v", kv, h), ("o", h, query)):
            matrix(f"{at}self_attn.{name}_proj", rows, cols, attention, 1.5)
        norm(at + "post_attention_layernorm")
        for name, rows, cols in (("gate", inner, h), ("up", inner, h), ("down", h, inner)):
            matrix(f"{at}mlp.{name}_proj", rows, cols, mlp, 1.5)
    norm("model.norm")
    if not config["tie_word_embeddings"]:
        matrix("lm_head", vocab, h, False, 2.0)

    model = Llama(config, {name: (shape, values) for name, (_, shape, values) in tensors.items()})
    golden = {}
    for prompt, length in enumerate((4, 15)):
        ids = [rng.randrange(vocab) for _ in range(length)]
        result = model.run(ids)
        greedy, steps, margin = model.greedy(result[-1][1], 6)
        if margin < 0.03:
            # Single precision must not be able to pick another id.
            return make(folder, config, kind, seed + 1)
        at, rows = f"p{prompt}.", list(range(length))
        golden[at + "input_ids"] = ("I64", [length], ids)
        golden[at + "logits_rows"] = golden[at + "hidden_rows"] = ("I64", [length], rows)
        golden[at + "logits"] = ("F32", [length, vocab], [v for _, row in result for v in row])
        for state in range(config["num_hidden_layers"] + 1):
            values = [v for states, _ in result for v in states[state]]
            golden[f"{at}hidden.{state}"] = ("F32", [length, h], values)
        golden[at + "greedy_ids"] = ("I64", [6], greedy)
        golden[at + "step_logits"] = ("F32", [6, vocab], [v for row in steps for v in row])
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file, indent=2)
        file.write("\n")
    write_safetensors(os.path.join(folder, "model.safetensors"), tensors)
    write_safetensors(os.path.join(folder, "golden.safetensors"), golden)


def check(folder):
    """Largest difference of logits and of hidden states on the first two prompts of a fixture."""
    config = json.load(open(os.path.join(folder, "config.json")))
    weights = {}
    for name in os.listdir(folder):
        if name.startswith("model") and name.endswith(".safetensors"):
            weights |= read_safetensors(os.path.join(folder, name))
    golden = read_safetensors(os.path.join(folder, "golden.safetensors"))
    model = Llama(config, weights)
    worst, same = {"logits": 0.0, "hidden": 0.0, "step_logits": 0.0}, True
    for at in ("p0.", "p1."):
        result = model.run(golden[at + "input_ids"][1])
        vocab, h = config["vocab_size"], config["hidden_size"]
        for row, at_row in enumerate(golden[at + "logits_rows"][1]):
            want = golden[at + "logits"][1][row * vocab : (row + 1) * vocab]
            worst["logits"] = max(worst["logits"], *(abs(a - b) for a, b in zip(result[at_row][1], want)))
        for row, at_row in enumerate(golden[at + "hidden_rows"][1]):
            for state in range(config["num_hidden_layers"] + 1):
                want = golden[f"{at}hidden.{state}"][1][row * h : (row + 1) * h]
                got = result[at_row][0][state]
                worst["hidden"] = max(worst["hidden"], *(abs(a - b) for a, b in zip(got, want)))
        want = golden[at + "greedy_ids"][1]
        greedy, steps, _ = model.greedy(result[-1][1], len(want))
        same &= greedy == want
        if at + "step_logits" in golden:
            flat = [v for row in steps for v in row]
            pairs = zip(flat, golden[at + "step_logits"][1])
            worst["step_logits"] = max(worst["step_logits"], *(abs(a - b) for a, b in pairs))
    print(f"{os.path.basename(folder)}: greedy ids {'equal' if same else 'DIFFER'};", worst)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--check"]:
        for folder in sys.argv[2:]:
            check(folder)
    else:
        make(os.path.join(HERE, "tiny_yarn_bias"), YARN_BIAS, "BF16", 1)
        make(os.path.join(HERE, "tiny_dynamic_tied"), DYNAMIC_TIED, "F16", 1)
