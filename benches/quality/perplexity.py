#!/usr/bin/env python3
"""`airllm eval` against `llama-perplexity`: one model as one float16 GGUF file, the same windows. See README.md."""

import argparse
import sys
import tempfile
from pathlib import Path

import gguf_files
import tools

ALLOWED = 0.005


def main():
    cli = argparse.ArgumentParser(description=__doc__)
    cli.add_argument("model", type=Path, help="a folder with config.json, tokenizer.json, *.safetensors; or a .gguf file")
    cli.add_argument("--text", type=Path, action="append", required=True)
    cli.add_argument("--llama", type=Path, required=True, help="folder of llama-perplexity")
    cli.add_argument("--airllm", type=Path, default=Path("target/release/airllm"))
    cli.add_argument("--context", type=int, default=512)
    cli.add_argument("--chunks", type=int)
    cli.add_argument("--threads", type=int, default=1, help="for llama.cpp, whose threads wait by spinning")
    args = cli.parse_args()

    airllm = tools.Airllm(args.airllm, args.context, args.chunks, None)
    llama = tools.Llama(args.llama, args.context, args.chunks, args.threads)
    worst = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        gguf = args.model
        if args.model.is_dir():
            gguf = Path(scratch) / "f16.gguf"
            gguf_files.from_folder(args.model, gguf)
        for text in args.text:
            # Both sides read the GGUF file's own vocabulary; it need not be the folder's.
            count, missing = tools.check_ids(airllm, llama, gguf, gguf, text)
            ours = airllm.evaluate(gguf, text)
            here, here_error = ours["perplexity"]["value"], ours["perplexity"]["error"]
            there, there_error = llama.perplexity(gguf, text)
            difference = here / there - 1
            worst = max(worst, abs(difference))
            print(f"{text.name}: {count} tokens, {ours['windows']} windows of {ours['context']}, {ours['tokens']} counted")
            print(f"  the tokenizers' ids:  {'DIFFERENT' if any(missing.values()) else 'the same'}")
            print(f"  airllm eval:          {here:.4f} ± {here_error:.5f}")
            print(f"  llama-perplexity:     {there:.4f} ± {there_error:.5f}")
            print(f"  difference:           {difference:+.4%}")
    print(f"largest difference {worst:.4%}, {ALLOWED:.1%} allowed: {'passed' if worst <= ALLOWED else 'FAILED'}")
    sys.exit(0 if worst <= ALLOWED else 1)


if __name__ == "__main__":
    main()
