"""A small sentence-embedding model of real files, made of texts: words that stand in like texts are near. One command:

    python tests/lsa.py FOLDER

makes one of the descriptions in $ATDATA_SHARED/corpora, in the layout of sentence-transformers: latent semantic
analysis, a vector for each word, and the mean over a text's words. Nobody would search with it; it is what can be
had where no model can be fetched.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

CARDS = "corpora/dataset_cards.jsonl"


def word_vectors(texts: Iterable[str], dimensions: int) -> tuple[list[str], NDArray[np.float32]]:
    """The words of *texts*, and a vector for each: the singular vectors of how often which word is in which text."""
    counts = [Counter(re.findall(r"\w+", text.lower())) for text in texts]
    frequency = Counter(word for count in counts for word in count)
    words = sorted(frequency)
    row = {word: i for i, word in enumerate(words)}
    table = np.zeros((len(words), len(counts)), dtype=np.float32)
    for column, count in enumerate(counts):
        for word, times in count.items():
            table[row[word], column] = np.log1p(times)
    rarity = np.log(len(counts) / np.array([frequency[word] for word in words]) + 0.1).clip(0)[:, None]
    left, values, _ = np.linalg.svd(table * rarity, full_matrices=False)
    # Weighted once more: in a mean, common words would drown the others.
    return words, (left * values)[:, :dimensions].astype(np.float32) * rarity.astype(np.float32)


def save(folder: Path, words: list[str], vectors: NDArray[np.float32], **config: Any) -> Path:
    """Write the model into *folder*; *config* goes into config_sentence_transformers.json."""
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    # The unknown word is of no meaning: the zero vector.
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, **{word: i + 1 for i, word in enumerate(words)}}, "[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    dimensions = vectors.shape[1]
    weights = np.vstack([np.zeros((1, dimensions), dtype=np.float32), vectors])
    graph = helper.make_graph(
        [helper.make_node("Gather", ["weights", "input_ids"], ["token_embeddings"])],
        "lsa",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("token_embeddings", TensorProto.FLOAT, ["batch", "sequence", dimensions])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "onnx" / "model.onnx")
    modules = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize")]
    listed = [{"name": n, "path": path, "type": f"sentence_transformers.models.{kind}"} for n, path, kind in modules]
    (folder / "modules.json").write_text(json.dumps(listed))
    pooling = {"word_embedding_dimension": dimensions, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(config))
    return folder


def make(folder: Path, texts: Iterable[str], dimensions: int = 100, **config: Any) -> Path:
    """A model of *texts* in *folder*."""
    return save(folder, *word_vectors(texts, dimensions), **config)


def main() -> None:
    from conformance import shared_folder

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    cards = [json.loads(line) for line in (shared_folder() / CARDS).read_text("utf-8").splitlines()]
    make(parser.parse_args().folder, (f"{card['title']} {card['description'] or ''}" for card in cards))


if __name__ == "__main__":
    main()
