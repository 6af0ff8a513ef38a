"""Tokens a second of the original airllm (Python) for `compare.py`:

`original.py MODEL SHARDS THREADS DEVICE COMPRESSION NEW_TOKENS`, COMPRESSION being `none` or `4bit`.
"""

import json
import sys
import time

import torch
from airllm import AutoModel


def main():
    model_folder, shards, threads, device, compression, new = sys.argv[1:]
    new = int(new)
    torch.set_num_threads(int(threads))
    model = AutoModel.from_pretrained(
        model_folder,
        device=device,
        dtype=torch.bfloat16,
        layer_shards_saving_path=shards,
        compression=None if compression == "none" else compression,
    )
    ids = torch.tensor([[11, 7930, 15849]], device=device)

    def seconds(tokens):
        start = time.monotonic()
        model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, use_cache=True, do_sample=False)
        return time.monotonic() - start

    # A run of one token reads the prompt; what more tokens take beyond it is decoding.
    first = seconds(1)
    if new > 1:
        rate = (new - 1) / (seconds(new) - first)
    else:
        rate = 1 / first
    print(json.dumps({"tokens_per_s": rate}))


if __name__ == "__main__":
    main()
