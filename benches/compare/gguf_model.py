"""Writes a checkpoint of `cargo xtask random-model` as an f16 GGUF: `gguf_model.py FOLDER FILE`.

Its vocabulary is bytes without merges, which GGUF's kind of vocabulary must have: one that never occurs is added.
"""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "quality"))
import gguf_files


def main():
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    file = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / folder.name
        copy.mkdir()
        for name in folder.iterdir():
            (copy / name.name).symlink_to(name.resolve())
        if not file["model"]["merges"]:
            taken = [*file["model"]["vocab"].values(), *(token["id"] for token in file["added_tokens"])]
            file["model"]["vocab"]["ab"] = max(taken) + 1
            file["model"]["merges"] = ["a b"]
            (copy / "tokenizer.json").unlink()
            (copy / "tokenizer.json").write_text(json.dumps(file, ensure_ascii=False), "utf-8")
        gguf_files.from_folder(copy, out)


if __name__ == "__main__":
    main()
