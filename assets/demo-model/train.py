#!/usr/bin/env python3
"""Trains the demo model: a small bilingual Llama with its own byte-level BPE tokenizer.

    python train.py CORPUS                 train, and write the model into ./model
    python train.py CORPUS --evaluate      validation loss per language of the written model
    python train.py --sample "ROMEO:"      continue a prompt with the written model
    python train.py --golden               write golden.safetensors from the written model
    python train.py CORPUS --size large --out FOLDER
                                           a model of 22 million parameters, to measure quantisation with

CORPUS is a folder with en.train.txt, en.valid.txt, zh.train.txt and zh.valid.txt: UTF-8, documents
separated by blank lines. The model folder has the ordinary Hugging Face layout (16-bit safetensors).
"""

import argparse
import json
import math
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

HERE = Path(__file__).resolve().parent
EOT = "<|endoftext|>"
LANGUAGES = ("en", "zh")
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 704,
    "max_position_embeddings": 512,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float16",
    "use_cache": True,
    "vocab_size": 6144,
}
# What other sizes have differently. Rows are multiples of 256, so that every format in blocks holds them.
SIZES = {
    "demo": {},
    "large": {
        "hidden_size": 512,
        "intermediate_size": 1280,
        "num_attention_heads": 8,
        "num_hidden_layers": 7,
        "num_key_value_heads": 4,
    },
}
# Every Chinese character is a word of its own, so a line's length in tokens is its length in
# characters; the rest splits as GPT-2 does.
WORDS = r"[一-龥]|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GOLDEN_PROMPT = "ROMEO:\nO, speak again, bright angel!\n\n水调歌头 · 苏轼\n明月几时有，"


# ---------------------------------------------------------------- the model (Hugging Face names)


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def rotate(x, cos, sin):
    """Rotary position embedding, halves rotated against each other."""
    a, b = x.unflatten(-1, (2, -1)).unbind(-2)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-2).flatten(-2)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.kv_heads, self.dim = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        hidden = c["hidden_size"]
        self.q_proj = nn.Linear(hidden, self.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(hidden, self.kv_heads * self.dim, bias=False)
        self.v_proj = nn.Linear(hidden, self.kv_heads * self.dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.dim, hidden, bias=False)

    def forward(self, x, cos, sin):
        rows, length, _ = x.shape
        q = self.q_proj(x).view(rows, length, self.heads, self.dim).transpose(1, 2)
        k = self.k_proj(x).view(rows, length, self.kv_heads, self.dim).transpose(1, 2)
        v = self.v_proj(x).view(rows, length, self.kv_heads, self.dim).transpose(1, 2)
        share = self.heads // self.kv_heads
        q = rotate(q, cos, sin)
        k = rotate(k, cos, sin).repeat_interleave(share, dim=1)
        v = v.repeat_interleave(share, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(rows, length, -1))


class Mlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        hidden, inner = c["hidden_size"], c["intermediate_size"]
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, c, dropout):
        super().__init__()
        self.input_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.mlp = Mlp(c)
        self.dropout = dropout

    def forward(self, x, cos, sin):
        x = x + F.dropout(self.self_attn(self.input_layernorm(x), cos, sin), self.dropout, self.training)
        return x + F.dropout(self.mlp(self.post_attention_layernorm(x)), self.dropout, self.training)


class Llama(nn.Module):
    def __init__(self, c, dropout=0.0):
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.model.layers = nn.ModuleList(Block(c, dropout) for _ in range(c["num_hidden_layers"]))
        self.model.norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        inverse = c["rope_theta"] ** (-torch.arange(0, c["head_dim"], 2).double() / c["head_dim"])
        angle = torch.outer(torch.arange(c["max_position_embeddings"]).double(), inverse)
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                out = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = c["initializer_range"] / (math.sqrt(2 * c["num_hidden_layers"]) if out else 1.0)
                nn.init.normal_(p, std=std)

    def forward(self, ids):
        x = self.model.embed_tokens(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)


# ---------------------------------------------------------------- text


def documents(path):
    return [d.strip("\n") for d in path.read_text(encoding="utf-8").split("\n\n") if d.strip()]


def train_tokenizer(corpus, vocab_size):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[EOT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    en, zh = (documents(corpus / f"{lang}.train.txt") for lang in LANGUAGES)
    tok.train_from_iterator(en * 2 + zh, trainer)
    return tok


class Stream:
    """One language as one long row of tokens, with the places where a document begins."""

    def __init__(self, tok, docs, end_share, rng):
        eot = tok.token_to_id(EOT)
        blank = tok.encode("\n\n").ids
        ids, starts = [], []
        for enc in tok.encode_batch(docs, add_special_tokens=False):
            starts.append(len(ids))
            ids += enc.ids
            ids += [eot] if rng.random() < end_share else blank
        self.ids = torch.tensor(ids)
        self.starts = [s for s in starts if s + CONFIG["max_position_embeddings"] < len(ids)]

    def row(self, length, rng):
        """A window of the stream: half of them begin where a document does."""
        at = rng.choice(self.starts) if rng.random() < 0.5 else rng.randrange(len(self.ids) - length)
        return self.ids[at : at + length + 1]


# ---------------------------------------------------------------- training


class Muon(torch.optim.Optimizer):
    """Momentum whose update of a weight matrix is made orthogonal (five Newton-Schulz steps),
    scaled so that its size is that of an AdamW update."""

    def __init__(self, params, lr, pool, momentum=0.95, weight_decay=0.1):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        self.pool = pool

    @torch.no_grad()
    def update(self, p, group):
        state = self.state[p].setdefault("momentum", torch.zeros_like(p))
        state.lerp_(p.grad, 1 - group["momentum"])
        x = p.grad.lerp(state, group["momentum"])
        tall = p.shape[0] > p.shape[1]
        x = x.T if tall else x
        x = x / (x.norm() + 1e-7)
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(x.T if tall else x, alpha=-group["lr"] * 0.2 * math.sqrt(max(p.shape)))

    def step(self):
        for group in self.param_groups:
            list(self.pool.map(lambda p: self.update(p, group), group["params"]))


def learning_rate(progress, warmup=0.03, floor=0.02):
    """Share of the peak rate: a warm-up, then half a cosine."""
    if progress < warmup:
        return max(progress / warmup, 0.02)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def train(args):
    corpus, out = Path(args.corpus), Path(args.out)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Threads take whole windows, each on one core: they wait for one another once a step, not once
    # an operation, which on a machine with other work is several times faster.
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(args.threads)
    tok = train_tokenizer(corpus, CONFIG["vocab_size"])
    assert tok.get_vocab_size() == CONFIG["vocab_size"] and tok.token_to_id(EOT) == CONFIG["eos_token_id"]
    # English speeches come in groups of about twelve; a Chinese piece stands alone or before another.
    streams = {
        lang: Stream(tok, documents(corpus / f"{lang}.train.txt"), share, rng)
        for lang, share in (("en", 1 / 12), ("zh", 1 / 2))
    }
    print({lang: len(s.ids) for lang, s in streams.items()}, "training tokens", flush=True)

    model = Llama(CONFIG, args.dropout).to(device)
    if args.resume:
        model.load_state_dict(read(Path(args.resume))[0].state_dict())
    params = list(model.parameters())

    def gradient(row):
        """Loss and gradients of one window."""
        row = row.to(device)
        with torch.autocast(device, torch.bfloat16, enabled=args.bf16):
            logits = model(row[None, :-1])[0]
        loss = F.cross_entropy(logits.float(), row[1:])
        return loss.item(), torch.autograd.grad(loss / count, params)

    matrices = [p for n, p in model.named_parameters() if n.endswith("_proj.weight")]
    norms = [p for p in model.parameters() if p.ndim == 1]
    optimizers = [
        Muon(matrices, args.lr, pool),
        torch.optim.AdamW(
            [
                {"params": [model.model.embed_tokens.weight], "weight_decay": 0.1},
                {"params": norms, "weight_decay": 0.0},
            ],
            lr=args.lr,
            betas=(0.9, 0.95),
        ),
    ]
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)

    begin = last = time.time()
    running, tokens = {}, 0
    for step in range(args.steps):
        progress = step / args.steps
        if args.minutes:
            progress = max(progress, (time.time() - begin) / 60 / args.minutes)
        if progress >= 1:
            break
        for opt in optimizers:
            for group in opt.param_groups:
                group["lr"] = args.lr * learning_rate(progress)
        # Half-length windows first: cheaper, and short contexts come first anyway.
        halves = 2 if progress < 0.7 else 1
        count, length = args.rows * halves, CONFIG["max_position_embeddings"] // halves
        english = round(count * args.english)
        rows = [streams["en" if r < english else "zh"].row(length, rng) for r in range(count)]
        losses = []
        for loss, grads in pool.map(gradient, rows):
            losses.append(loss)
            for param, grad in zip(params, grads):
                param.grad = grad if param.grad is None else param.grad.add_(grad)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in optimizers:
            opt.step()
            opt.zero_grad(set_to_none=True)

        tokens += count * length
        for lang, part in (("en", losses[:english]), ("zh", losses[english:])):
            running[lang] = running.get(lang, 0.0) + sum(part) / len(part) / args.log_every
        if (step + 1) % args.log_every == 0:
            now = time.time()
            rate = tokens / (now - last)
            shown = " ".join(f"{lang} {loss:.3f}" for lang, loss in running.items())
            print(f"step {step + 1} loss {shown} | {rate:.0f} tokens/s, {(now - begin) / 60:.1f} min", flush=True)
            running, tokens, last = {}, 0, now
        if (step + 1) % args.save_every == 0:
            write(model, tok, out)
    pool.shutdown()
    torch.set_num_threads(args.threads)
    print(f"{step + 1} steps, {(time.time() - begin) / 60:.1f} minutes", flush=True)
    write(model, tok, out)
    model, tok = read(out)
    evaluate(model, tok, corpus)
    for prompt in ("ROMEO:\n", "KING HENRY:\nMy lords,", "水调歌头 · 苏轼\n明月", "春"):
        print("-" * 40 + "\n" + sample(model, tok, prompt, args.seed), flush=True)


@torch.no_grad()
def evaluate(model, tok, corpus):
    """The validation text as it stands, in windows of 512 tokens that share nothing, no token added:
    each window's first token is given, the others are predicted."""
    model.eval()
    device = model.cos.device
    length = CONFIG["max_position_embeddings"]
    for lang in LANGUAGES:
        text = (Path(corpus) / f"{lang}.valid.txt").read_text(encoding="utf-8")
        ids = torch.tensor(tok.encode(text).ids)
        nats, count, size = 0.0, 0, 0
        # A token's spelling in a byte-level vocabulary has one character for each byte.
        for window in ids.split(length):
            if len(window) < 2:
                continue
            logits = model(window[None, :-1].to(device))[0]
            nats += F.cross_entropy(logits, window[1:].to(device), reduction="sum").item()
            count += len(window) - 1
            size += sum(len(tok.id_to_token(i)) for i in window[1:].tolist())
        print(f"valid {lang}: {nats / count:.4f} nats per token, {nats / math.log(2) / size:.4f} bits per byte", flush=True)
    model.train()


# ---------------------------------------------------------------- files


def write(model, tok, out):
    out.mkdir(parents=True, exist_ok=True)
    tensors = {n: p.detach().half().cpu().contiguous() for n, p in model.named_parameters()}
    save_file(tensors, str(out / "model.safetensors"), metadata={"format": "pt"})
    tok.save(str(out / "tokenizer.json"))
    tokenizer_config = {
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": EOT,
        "clean_up_tokenization_spaces": False,
        "eos_token": EOT,
        "model_max_length": CONFIG["max_position_embeddings"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    generation = {
        "bos_token_id": CONFIG["bos_token_id"],
        "do_sample": True,
        "eos_token_id": CONFIG["eos_token_id"],
        "temperature": 0.7,
        "top_p": 0.9,
    }
    for name, value in (
        ("config.json", CONFIG),
        ("tokenizer_config.json", tokenizer_config),
        ("generation_config.json", generation),
    ):
        (out / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read(folder):
    """The written model, its 16-bit weights widened to 32 bits."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = Llama(config)
    model.load_state_dict({n: t.float() for n, t in load_file(str(folder / "model.safetensors")).items()})
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


@torch.no_grad()
def sample(model, tok, prompt, seed, tokens=160, temperature=0.7, top_p=0.9):
    model.eval()
    random_state = torch.Generator().manual_seed(seed)
    ids = tok.encode(prompt).ids
    while tokens and len(ids) < CONFIG["max_position_embeddings"]:
        p, order = F.softmax(model(torch.tensor([ids]))[0, -1] / temperature, dim=-1).sort(descending=True)
        p[p.cumsum(0) - p > top_p] = 0.0
        token = order[torch.multinomial(p, 1, generator=random_state)].item()
        if token == CONFIG["eos_token_id"]:
            break
        ids.append(token)
        tokens -= 1
    return tok.decode(ids)


@torch.no_grad()
def golden(model, tok, path, count=16):
    ids = tok.encode(GOLDEN_PROMPT).ids
    logits = model(torch.tensor([ids]))[0, -1:].contiguous()
    row = list(ids)
    for _ in range(count):
        row.append(model(torch.tensor([row]))[0, -1].argmax().item())
    tensors = {
        "p0.input_ids": torch.tensor(ids),
        "p0.logits": logits,
        "p0.greedy_ids": torch.tensor(row[len(ids) :]),
    }
    save_file(tensors, str(path), metadata={"format": "pt", "p0.prompt": GOLDEN_PROMPT})
    print(f"{len(ids)} prompt tokens; greedy: {tok.decode(row)!r}")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("corpus", nargs="?", help="folder of the corpus")
    p.add_argument("--out", default=str(HERE / "model"), help="the model's folder")
    p.add_argument("--size", choices=SIZES, default="demo", help="which model to train")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--steps", type=int, default=2000)
    p.add_argument("--minutes", type=float, default=0, help="end the schedule by then, fewer steps or not (0: no limit)")
    p.add_argument("--resume", metavar="FOLDER", help="begin with a written model's weights, not with random ones")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rows", type=int, default=6, help="windows of 512 tokens a step (at first twice as many of 256)")
    p.add_argument("--english", type=float, default=1 / 3, help="share of the windows that are English")
    p.add_argument("--lr", type=float, default=4e-3)
    p.add_argument("--dropout", type=float, default=0.0)
    p.add_argument("--bf16", action="store_true", help="multiply matrices in bfloat16, twice as fast on some processors")
    p.add_argument("--log-every", type=int, default=25)
    p.add_argument("--save-every", type=int, default=250)
    p.add_argument("--evaluate", action="store_true", help="only evaluate the written model")
    p.add_argument("--sample", metavar="PROMPT", help="only continue a prompt")
    p.add_argument("--golden", action="store_true", help="only write golden.safetensors")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    CONFIG.update(SIZES[args.size])
    if args.golden:
        golden(*read(Path(args.out)), HERE / "golden.safetensors")
    elif args.sample is not None:
        print(sample(*read(Path(args.out)), args.sample.replace("\\n", "\n"), args.seed))
    elif not args.corpus:
        p.error("the corpus folder is missing")
    elif args.evaluate:
        evaluate(*read(Path(args.out)), Path(args.corpus))
    else:
        train(args)


if __name__ == "__main__":
    main()
